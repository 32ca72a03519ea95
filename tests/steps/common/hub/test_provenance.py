"""Whose word counts, and how long it is waited for."""

from __future__ import annotations

import time

import pytest

from runbook.protocol import StepFailure
from runbook.steps.common.hub.source import Source
from runbook.steps.publish.repository import Repository
from tests.steps.common.hub.hub import Fault, TestHub, tree, write_repository

LARGEST = "model-00003-of-00003.safetensors"
EVERYTHING = {"allow": [], "ignore": []}


@pytest.fixture
def other(tmp_path):
    """A repository of the same name with other content, and a file of code."""
    folder = tmp_path / "other"
    write_repository(folder, sizes=(200_000, 131_072, 299_999))
    (folder / "modeling_x.py").write_text("print('mine now')")
    return Repository.of(folder, "org/tiny")


class Posing(Repository):
    """Serves one content under the name of another revision."""

    @classmethod
    def under(cls, repository: Repository, revision: str) -> Posing:
        return cls(repository.name, revision, repository.folder, repository.files)


# Provenance


def test_a_mirror_adds_no_file_and_no_byte(hub, repository, other, run, folder, source):
    """The hub lists, then gives nothing; the mirror has other content under the same commit."""
    for where in ("resolve", "content"):
        hub.faults.always[where] = Fault("503", where)
    with TestHub(Posing.under(other, repository.revision)) as mirror:
        with pytest.raises(StepFailure) as failure:
            run(hub, mirrors=[mirror.url], patience=1.0)
        assert failure.value.code in ("changed_upstream", "download_stalled")
        assert not mirror.faults.requests["api"]
    assert not (folder / "modeling_x.py").exists()
    wrong = tree(other.folder)
    for path, data in tree(folder).items():
        assert data == (source / path).read_bytes()
        assert data != wrong[path] or wrong[path] == (source / path).read_bytes()


def test_the_word_of_the_hub_against_its_listing_ends_it(repository, other, run, folder):
    """Though a mirror would have what was listed."""
    with TestHub(repository) as hub, TestHub(repository) as mirror:
        hub.servers[0].repository = Lists(repository, other)
        with pytest.raises(StepFailure) as failure:
            run(hub, mirrors=[mirror.url], files={"allow": [LARGEST]})
    assert failure.value.code == "changed_upstream"
    assert not (folder / LARGEST).exists()


class Lists:
    """Lists the files of one repository and has those of another."""

    def __init__(self, listed: Repository, had: Repository) -> None:
        self._listed, self._had = listed, had

    def find(self, path):
        return self._had.find(path)

    def __getattr__(self, name):
        return getattr(self._listed, name)


@pytest.mark.parametrize("pinned", ["0" * 40, "ABCDEF0123" * 4])
def test_a_pinned_revision_that_is_answered_with_another_is_refused(
    repository, hub, run, folder, monkeypatch, pinned
):
    monkeypatch.setattr(
        hub.servers[0].RequestHandlerClass,
        "_check_revision",
        lambda self, revision: None,
    )
    with pytest.raises(StepFailure) as failure:
        run(hub, revision=pinned)
    assert failure.value.code == "other_revision"
    assert pinned in failure.value.cause
    assert repository.revision in failure.value.cause
    assert list(folder.glob("*.safetensors")) == []


def test_a_pinned_revision_may_be_written_large(repository, hub):
    listing = Source(hub.url, None).list("org/tiny", repository.revision, EVERYTHING)
    assert listing.revision == repository.revision


@pytest.mark.parametrize("revision", ["f" * 40, ""])
def test_a_mirror_of_another_revision_is_left(hub, repository, run, folder, source, revision):
    """It may have the very files: it does not say so."""
    hub.faults.pending.extend([Fault("503")] * 6)
    with TestHub(Posing.under(repository, revision)) as mirror:
        handler = type("Any", (mirror.servers[0].RequestHandlerClass,), {})
        handler._check_revision = lambda self, revision: None
        mirror.servers[0].RequestHandlerClass = handler
        lines = run(hub, mirrors=[mirror.url], files={"allow": [LARGEST]}, workers=1)
        assert mirror.faults.requests["resolve"]
        assert not mirror.faults.requests["content"]
    assert any("where" in line and "was asked for" in line for line in lines)
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()


def test_a_branch_is_shown_as_what_it_is_and_kept(hub, repository, run):
    lines = run(hub, revision="main")
    shown = [line for line in lines if "main is now" in line]
    assert len(shown) == 1
    assert repository.revision in shown[0]
    assert not [line for line in run(hub, revision="main") if "main is now" in line]
    assert not [line for line in run(hub, revision=repository.revision) if "is now" in line]


# Patience


def test_the_same_bytes_again_are_no_gain(hub, run):
    """A server that ignores ranges and cuts at half sends much and gives nothing new."""
    hub.faults.always["content"] = Fault("half")
    began = time.monotonic()
    with pytest.raises(StepFailure) as failure:
        run(hub, files={"allow": [LARGEST]}, patience=1.0)
    assert failure.value.code == "download_stalled"
    assert "nothing new" in failure.value.message
    assert "connection" in failure.value.cause
    assert time.monotonic() - began < 30


def test_a_server_that_cuts_at_half_is_asked_ever_more_rarely(hub, run, monkeypatch):
    from dataclasses import replace

    from runbook.steps.common.hub import acquire
    from tests.steps.common.hub.hub import TUNING

    tuning = replace(TUNING, first_wait=0.1, longest_wait=10.0)
    monkeypatch.setattr(acquire, "DEFAULT_TUNING", tuning)
    hub.faults.always["content"] = Fault("half")
    with pytest.raises(StepFailure):
        run(hub, files={"allow": [LARGEST]}, patience=2.0)
    assert hub.faults.requests["content"] < 12


def test_a_byte_now_and_then_is_not_enough(hub, run):
    hub.faults.always["content"] = Fault("drip")
    with pytest.raises(StepFailure) as failure:
        run(hub, files={"allow": [LARGEST]}, patience=0.6, workers=1)
    assert failure.value.code == "download_stalled"
    assert "only" in failure.value.message
    assert failure.value.retryable


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_a_content_server_that_is_blocked_ends_it(hub, run, status):
    """Asked again for where it is, and at last named; not waited for."""
    hub.faults.always["content"] = Fault(status)
    with pytest.raises(StepFailure) as failure:
        run(hub, files={"allow": [LARGEST]}, patience=60)
    assert failure.value.code == "bad_answer"
    assert f"status {status} of 127.0.0.1" in failure.value.message
    assert hub.faults.requests["resolve"] > 1


def test_many_small_files_are_not_looked_through_for_each(tmp_path, run, folder):
    """The journal grows by a line a file; the record is written at the beginning and the end."""
    from runbook.steps.common import stamp

    source = tmp_path / "many"
    for n in range(600):
        (source / str(n % 7)).mkdir(parents=True, exist_ok=True)
        (source / str(n % 7) / f"{n}.json").write_text(str(n))
    written = []
    before = stamp.write_json
    with TestHub(Repository.of(source, "org/tiny")) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stamp, "write_json", lambda path, v: (written.append(path), before(path, v)))
        run(hub)
        assert hub.faults.requests["resolve"] == 600, "one request a file"
    assert tree(folder) == tree(source)
    assert len(written) == 2
