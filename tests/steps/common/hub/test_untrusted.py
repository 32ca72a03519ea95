"""What a hub sends is data: each case ends in one clear error that names field and value."""

from __future__ import annotations

import json
import math
import random
import re
import socket
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runbook.protocol import StepFailure
from runbook.steps.common.hub import source as hub_source
from runbook.steps.common.hub import untrusted
from runbook.steps.common.hub.inventory import JOURNAL, NAME, Inventory
from runbook.steps.common.hub.parts import FOLDER, paths
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.hub.source import Source
from runbook.steps.common.pacing import retry_after
from runbook.steps.weights import Weights
from tests.cpu import bounded, examples
from tests.steps.common.hub import cases
from tests.steps.common.hub.hub import FaultyHandler, FaultyServer, TestHub, context, tree

pytestmark = pytest.mark.harness

EVERYTHING = {"allow": [], "ignore": []}


class LyingHandler(FaultyHandler):
    """Alters JSON answers, and the headers of `resolve` and content."""

    def _send_json(self, data, headers=None) -> None:
        lies = self.server.lies
        if lies.get("body") is not None:
            self._send(200, {"Content-Length": str(len(lies["body"]))})
            self.wfile.write(lies["body"])
            return
        change = lies.get("page" if "/tree/" in self.path else "info")
        if lies.get("link") is not None and "/tree/" in self.path:
            headers = {"Link": f'<{lies["link"]}>; rel="next"'}
        super()._send_json(change(data) if change else data, headers)

    def _send(self, status, headers) -> None:
        lies = self.server.lies.get("content" if self.server.content else "resolve", {})
        if not self.path.startswith("/api/"):
            headers = {k: v for k, v in {**headers, **lies}.items() if v is not None}
            headers.setdefault("Content-Length", "0")
        super()._send(status, headers)


@pytest.fixture
def liar(repository):
    with TestHub(repository) as hub:
        for server in hub.servers:
            server.RequestHandlerClass = LyingHandler
            server.lies = {}
        hub.lies = hub.servers[0].lies = hub.servers[1].lies
        yield hub


def one_clear_error(failure: StepFailure, names: str) -> None:
    said = failure.error_dict()
    text = json.dumps(said, ensure_ascii=False)
    assert names in f"{said['message']} {said['cause']}", text[:500]
    assert len(text) < 2000, "cut to what one reads"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), "no control sequences"
    text.encode()
    assert said["remedy"]
    assert "Traceback" not in text


def listing_of(hub) -> StepFailure:
    with pytest.raises(StepFailure) as failure:
        Source(hub.url, None).list("org/tiny", "main", EVERYTHING, 20)
    return failure.value


@pytest.mark.parametrize(("change", "names"), cases.INFO)
def test_info(liar, change, names):
    liar.lies["info"] = change
    failure = listing_of(liar)
    assert failure.code == "bad_answer"
    one_clear_error(failure, names)


@pytest.mark.parametrize(("change", "names"), cases.PAGES)
def test_pages(liar, change, names):
    liar.lies["page"] = change
    failure = listing_of(liar)
    assert failure.code == "bad_answer"
    one_clear_error(failure, names)


@pytest.mark.parametrize(("body", "names"), cases.BODIES)
def test_bodies(liar, body, names):
    liar.lies["body"] = body
    one_clear_error(listing_of(liar), names)


@pytest.mark.parametrize("link", cases.LINKS)
def test_links(liar, link):
    liar.lies["link"] = link
    one_clear_error(listing_of(liar), "Link")


def test_a_listing_that_never_ends(liar, monkeypatch):
    """The same page for ever, new pages for ever, empty pages, and an answer of any length."""
    tree_url = f"{liar.url}/api/models/org/tiny/tree/main?cursor=0"
    liar.lies["link"] = tree_url
    one_clear_error(listing_of(liar), "listed once")
    count = iter(range(10**9))
    liar.lies["page"] = lambda page: [{**page[-1], "path": f"f{next(count)}"} for _ in range(100)]
    monkeypatch.setattr(hub_source, "MOST_FILES", 5000)
    one_clear_error(listing_of(liar), "at most 5000")
    liar.lies["page"] = lambda page: []
    one_clear_error(listing_of(liar), "next one")
    liar.lies["page"] = lambda page: [{**e, "x": "y" * 10_000} for e in page]
    monkeypatch.setattr(hub_source, "PAGE_BYTES", 20_000)
    one_clear_error(listing_of(liar), "bytes and more")


def test_a_listing_ends_with_its_time(liar):
    count = iter(range(10**9))
    liar.lies["link"] = f"{liar.url}/api/models/org/tiny/tree/main?cursor=0"
    liar.lies["page"] = lambda page: [{**page[-1], "path": f"f{next(count)}"}]
    with pytest.raises(Busy) as busy:
        Source(liar.url, None).list("org/tiny", "main", EVERYTHING, 0.3)
    assert "does not come to an end" in str(busy.value)


def test_the_head_of_an_answer_in_drips():
    done = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not done.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Busy) as busy:
            Source(url, None).list("org/tiny", "main", EVERYTHING, 0.5)
        done.set()
    assert "does not come to an end" in str(busy.value)


def test_the_token_does_not_follow_a_listing_to_another_host(liar, repository):
    with TestHub(repository) as other:
        liar.lies["link"] = f"{other.url}/api/models/org/tiny/tree/main?recursive=true"
        liar.lies["page"] = lambda page: [{**e, "path": f"first/{e['path']}"} for e in page]
        listing = Source(liar.url, "hf_secret").list("org/tiny", "main", EVERYTHING, 20)
        assert len(listing.entries) == 2 * len(repository.files)
        assert all("Authorization" in h for _, h in liar.faults.headers)
        assert other.faults.headers
        assert not any("Authorization" in h for _, h in other.faults.headers)


@pytest.mark.parametrize(("headers", "code", "names"), cases.RESOLVE)
def test_headers_of_resolve(liar, run, headers, code, names):
    liar.lies["resolve"] = headers
    with pytest.raises(StepFailure) as failure:
        run(liar, files={"allow": [cases.LARGE]}, patience=10)
    assert failure.value.code == code
    one_clear_error(failure.value, names)


@pytest.mark.parametrize(("headers", "names"), cases.CONTENT)
def test_headers_of_content(liar, run, headers, names):
    liar.lies["content"] = headers
    with pytest.raises(StepFailure) as failure:
        run(liar, files={"allow": [cases.LARGE]}, patience=2)
    assert failure.value.code in ("bad_answer", "download_stalled")
    one_clear_error(failure.value, names)


@pytest.mark.parametrize("value", cases.WAITS)
def test_waits(value):
    wait = retry_after(value)
    assert wait is None or (math.isfinite(wait) and wait >= 0)


# Records and sidecars


def _wrong(good: object, rng: random.Random) -> object:
    """The same with one part of it replaced by something odd, or left out."""
    if isinstance(good, dict) and good and rng.random() < 0.8:
        key = rng.choice(sorted(good))
        if rng.random() < 0.3:
            return {k: v for k, v in good.items() if k != key}
        return {**good, key: _wrong(good[key], rng)}
    if isinstance(good, list) and good and rng.random() < 0.8:
        at = rng.randrange(len(good))
        return [*good[:at], _wrong(good[at], rng), *good[at + 1 :]]
    return rng.choice([v for v in cases.ODD if v != "\ud800"])


@pytest.mark.parametrize("seed", range(30))
def test_a_record_of_wrong_form_is_gone_on_without(seed, hub, run, folder, source, tmp_path):
    run(hub)
    good = json.loads((folder / NAME).read_text())
    wrong = _wrong(good, random.Random(seed))
    (folder / NAME).write_text(json.dumps(wrong))
    ctx = context(tmp_path / "workspace", hub)
    Weights().check(ctx)
    ctx.forced = True
    Weights().apply(ctx)
    run(hub)
    assert tree(folder) == tree(source)
    Weights().undo(ctx)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"7"])
def test_a_record_that_is_none(content, hub, run, folder, source):
    run(hub)
    (folder / NAME).write_bytes(content)
    run(hub)
    assert tree(folder) == tree(source)


@pytest.mark.parametrize("seed", range(30))
def test_a_sidecar_of_wrong_form_is_gone_on_without(seed, hub, run, folder, source):
    path = max(source.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    entry = next(
        e
        for e in Source(hub.url, None).list("org/tiny", "main", EVERYTHING).entries
        if e.path == path.name
    )
    part, sidecar = paths(folder, path.name)
    part.parent.mkdir(parents=True)
    part.write_bytes(data)
    good = {
        "format": "runbook-part/1",
        "digest": str(entry.digest),
        "size": entry.size,
        "passes": 1,
        "spans": [[0, 1000], [2000, entry.size]],
        "validators": {hub.url: '"x"'},
        "hashed": 0,
        "state": "00",
    }
    sidecar.write_text(json.dumps(_wrong(good, random.Random(seed))))
    run(hub, patience=5)
    assert tree(folder) == tree(source)
    assert not (folder / FOLDER).exists()


def test_a_journal_of_wrong_form_counts_for_what_is_right_in_it(hub, run, folder, source):
    run(hub)
    here = Inventory.load(folder)
    name = "config.json"
    digest = next(str(e.digest) for e in here.listing.entries if e.path == name)
    record = here.records.pop(name)
    here.save(folder)
    said = [record.size, record.mtime_ns, "downloaded", True]
    lines = [
        b"", b"{", b"[]", b"7", b"null", b"\xff\xff", b"[" * 10_000,
        json.dumps([name, digest, *said[:3]]).encode(),
        json.dumps([name, digest, "1", 2, "downloaded", True]).encode(),
        json.dumps([name, "sha256:" + "0" * 64, *said]).encode(),
        json.dumps(["nothing", digest, *said]).encode(),
        json.dumps([[], {}, *said]).encode(),
    ]  # fmt: skip
    (folder / FOLDER).mkdir(exist_ok=True)
    (folder / FOLDER / JOURNAL).write_bytes(b"\n".join(lines))
    assert name not in Inventory.load(folder).records
    good = json.dumps([name, digest, *said]).encode()
    (folder / FOLDER / JOURNAL).write_bytes(b"\n".join([*lines, good, *lines]))
    assert Inventory.load(folder).records[name] == record
    run(hub)
    assert tree(folder) == tree(source)


# Any listing

OIDS = [("0123456789abcdef" * 5)[:n] for n in (0, 39, 40, 41, 63, 64, 65)]
PATHS = ["a", "a/b", "b", "A", *cases.PATHS]
JSON = st.sampled_from([*cases.ODD, *OIDS])
PATH = st.sampled_from([*PATHS, *cases.ODD]) | st.text(max_size=4)
SIZE = st.sampled_from([0, 1, 2**50, 2**50 + 1, 2**63, *cases.ODD])
LFS = st.fixed_dictionaries({}, optional={"oid": JSON, "size": SIZE})
ENTRY = st.fixed_dictionaries(
    {"type": st.sampled_from(["file", "file", "directory", *cases.ODD]), "path": PATH},
    optional={"size": SIZE, "oid": JSON, "lfs": LFS | JSON},
)


@settings(max_examples=examples(5000))
@given(page=st.lists(ENTRY, max_size=3))
@example(page=[{"type": "file", "path": "a", "size": 1, "oid": "0" * 40}])
def test_any_listing_is_one_or_is_refused_in_words(page):
    try:
        with bounded():
            found = [untrusted.entry(value) for value in page]
            entries = untrusted.files(
                [untrusted.file(whole) for kind, _, whole in found if kind == "file"]
            )
    except untrusted.Malformed as error:
        one_clear_error(untrusted.bad_answer("http://hub", error), "is ")
    else:
        for entry in entries:
            assert 0 <= entry.size <= untrusted.LARGEST
            assert not entry.path.startswith("/")
            assert ".." not in entry.path.split("/")


FILES = st.dictionaries(st.sampled_from(PATHS), st.lists(SIZE | JSON, max_size=3), max_size=2)
RECORD = st.fixed_dictionaries({}, optional={"repo": JSON, "revision": JSON, "files": FILES | JSON})


@settings(max_examples=examples(1000))
@given(value=RECORD)
def test_any_record_of_a_listing_is_one_or_is_none(value):
    try:
        with bounded():
            untrusted.listing(value)
    except untrusted.Malformed:
        pass


def test_the_server_of_these_tests_tells_the_truth_without_lies(liar, run, folder, source):
    assert isinstance(liar.servers[0], FaultyServer)
    run(liar)
    assert tree(folder) == tree(source)
