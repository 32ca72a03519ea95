"""The step as the engine sees it: what check says, what apply keeps, what undo removes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common import disk
from runbook.steps.common.hub import acquire, pins
from runbook.steps.common.hub.parts import FOLDER, paths
from runbook.steps.publish.repository import Repository
from runbook.steps.weights import Weights
from tests.steps.common.hub.crash import Crash, crashing
from tests.steps.common.hub.hub import TUNING, Fault, TestHub, context, tree, write_repository

LARGEST = "model-00003-of-00003.safetensors"
EVERYTHING = {"allow": [], "ignore": []}


@pytest.fixture
def workspace(tmp_path):
    return tmp_path / "workspace"


@pytest.fixture
def cache(tmp_path, repository, source):
    """The Hugging Face cache with the files of the repository, as huggingface_hub fills it."""
    import huggingface_hub

    with TestHub(repository) as hub:
        huggingface_hub.snapshot_download(
            "org/tiny", endpoint=hub.url, cache_dir=tmp_path / "hf-cache", token=False
        )
    return tmp_path / "hf-cache"


# The check


def test_plan_knows_the_bytes_before_anything_was_fetched(hub, workspace, repository):
    check = Weights().check(context(workspace, hub))
    assert not check.ok
    assert check.work.bytes == check.work.disk == sum(f.size for f in repository.files)
    assert not workspace.exists(), "a check changes nothing"


def test_plan_without_a_network_goes_without_the_size(workspace):
    check = Weights().check(context(workspace, "http://127.0.0.1:9"))
    assert [r.code for r in check.reasons] == ["never_downloaded", "size_unknown"]
    assert [r.severity for r in check.reasons] == ["error", "info"]


def test_outputs(hub, run, workspace, folder, repository):
    run(hub, revision="main")
    check = Weights().check(context(workspace, hub, revision="main"))
    assert check.outputs == {
        "path": str(folder),
        "repo": "org/tiny",
        "revision": repository.revision,
        "bytes": sum(f.size for f in repository.files),
        "files": len(repository.files),
    }
    Weights.Outputs.model_validate(check.outputs)


def test_check_sees_a_change_of_size_time_or_name(hub, run, workspace, folder):
    step, ctx = Weights(), context(workspace, hub)
    for change in (
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: path.unlink(),
    ):
        run(hub)
        assert step.check(ctx).ok
        change(folder / LARGEST)
        check = step.check(ctx)
        assert not check.ok
        assert LARGEST in check.reasons[0].message


def damage_unseen(path: Path) -> bytes:
    """Flip a bit and put the times back; the content then."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return bytes(data)


def test_deep_check_sees_a_flipped_bit_that_the_stat_hides(hub, run, workspace, folder):
    run(hub)
    data = damage_unseen(folder / LARGEST)
    ctx = context(workspace, hub)
    assert Weights().check(ctx).ok
    ctx.deep = True
    check = Weights().check(ctx)
    assert [r.code for r in check.reasons] == ["digest_mismatch"]
    assert hashlib.sha256(data).hexdigest() in check.reasons[0].message


def test_a_forced_apply_reads_every_byte_and_mends_the_file_that_is_wrong(
    hub, run, workspace, folder, source
):
    run(hub)
    damage_unseen(folder / LARGEST)
    sent = hub.faults.sent
    run(hub)
    assert hub.faults.sent == sent, "by itself it trusts its record"
    ctx = context(workspace, hub)
    ctx.forced = True
    Weights().apply(ctx)
    assert Weights().check(ctx).ok
    assert tree(folder) == tree(source)
    assert hub.faults.sent == sent + (source / LARGEST).stat().st_size
    Weights().undo(ctx)
    assert not folder.exists(), "what was downloaded is still known to be ours"


def test_other_inputs_are_other_weights(hub, run, workspace):
    run(hub)
    check = Weights().check(context(workspace, hub, files={"ignore": ["*.md"]}))
    assert check.reasons[0].code == "other_weights"


def test_another_endpoint_or_port_is_no_change(hub, run, workspace):
    run(hub)
    assert Weights().check(context(workspace, "http://127.0.0.1:9", mirrors=["http://x"])).ok


def test_quick_check_of_146_gb_opens_no_shard_and_imports_nothing_heavy(tmp_path):
    """Three hundred sparse shards, in a fresh interpreter."""
    script = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from runbook.planning.context import StepContext
from runbook.steps.weights import Weights
from runbook.steps.common.hub.step import wanted
from runbook.steps.common.hub.listing import Digest, Entry, Listing
from runbook.steps.common.hub.inventory import NAME, Inventory, Record
workspace = Path({str(tmp_path)!r})
folder = workspace / "weights" / "big"
folder.mkdir(parents=True)
size = 146 * 10**9 // 300
entries = []
for n in range(300):
    name = f"model-{{n:05}}-of-00300.safetensors"
    with open(folder / name, "wb") as file:
        file.truncate(size)
    entries.append(Entry(name, size, Digest("sha256", "0" * 64)))
files = {{"allow": [], "ignore": []}}
inputs = SimpleNamespace(repo="org/big", revision="main", files=files, destination=None,
                         verify="sha256", link="none")
ctx = StepContext("weights", inputs, workspace)
records = {{e.path: Record.of(folder / e.path, "downloaded", True) for e in entries}}
Inventory(wanted(ctx), Listing("org/big", "0" * 40, tuple(entries)), records, True).save(folder)
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
assert Weights().check(ctx).ok
names = [Path(path).name for path in opened if path.startswith(str(workspace))]
assert names == [NAME, "journal.ndjson", "runbook.lock.json"], names
heavy = {{"pydantic", "httpx", "httpx2", "huggingface_hub", "urllib3", "numpy", "jinja2",
          "asyncio", "ssl", "concurrent.futures"}}
print(*sorted(heavy & set(sys.modules)))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == []


# Revisions


def test_branch_is_resolved_once(source, run, tmp_path, folder):
    """A branch that moves on does not change what was pinned; another wish does."""
    first = Repository.of(source, "org/tiny")
    newer = tmp_path / "newer"
    write_repository(newer, sizes=(50_000, 131_072))
    with TestHub(first) as hub:
        run(hub, revision="main")
        (folder / LARGEST).unlink()
        run(hub, revision="main")
    assert tree(folder) == tree(source)
    second = Repository.of(newer, "org/tiny")
    with TestHub(second) as hub:
        run(hub, revision="main")
        assert tree(folder) == tree(source), "still pinned"
        run(hub, revision=second.revision)
        assert tree(folder) == tree(newer), "files of the former revision are gone"
        same = {f.path: f for f in first.files}
        total = sum(f.size for f in second.files if same.get(f.path) != f)
        assert hub.faults.sent == total, "and what both have was not fetched again"


def test_what_a_branch_was_outlives_undo_and_other_wishes(source, run, tmp_path, workspace, folder):
    first = Repository.of(source, "org/tiny")
    newer = tmp_path / "newer"
    write_repository(newer, sizes=(50_000, 131_072))
    second = Repository.of(newer, "org/tiny")
    with TestHub(first) as hub:
        run(hub, revision="main")
        Weights().undo(context(workspace, hub))
    with TestHub(first) as hub:
        check = Weights().check(context(workspace, hub, revision="main"))
        [told] = [r.message for r in check.reasons if r.code == "revision_resolved"]
        assert first.revision in told and "locked in" in told
    with TestHub(second) as hub:
        run(hub, revision=second.revision)
        assert tree(folder) == tree(newer), "a commit that is given goes before"
    with TestHub(first) as hub:
        lines = run(hub, revision="main")
        assert any(f"main stays {first.revision}" in line for line in lines)
        assert Weights().check(context(workspace, hub)).outputs["revision"] == first.revision


def test_a_kept_commit_that_is_gone_says_where_it_is_kept(source, run, tmp_path, workspace, folder):
    newer = tmp_path / "newer"
    write_repository(newer, sizes=(50_000, 131_072))
    with TestHub(Repository.of(source, "org/tiny")) as hub:
        run(hub, revision="main")
        Weights().undo(context(workspace, hub))
    with TestHub(Repository.of(newer, "org/tiny")) as hub:
        with pytest.raises(StepFailure) as failure:
            run(hub, revision="main")
        assert failure.value.code == "revision_not_found"
        file = workspace / "runbook.lock.json"
        assert str(file) in str(failure.value.remedy)
        file.unlink()
        run(hub, revision="main")
        assert tree(folder) == tree(newer)


@pytest.mark.parametrize("revision", ["a/b", "..", "x" * 5000, "ä ö", "refs/pr/1"])
def test_a_branch_of_any_name_is_kept(revision, tmp_path, hub):
    ctx = context(tmp_path, hub)
    wanted = {"repo": "o/n", "revision": revision}
    pins.keep(ctx, "dataset", wanted, "a" * 40)
    pins.keep(ctx, "dataset", wanted, "b" * 40)
    assert pins.pinned(ctx, "dataset", wanted) == "a" * 40
    assert pins.pinned(ctx, "model", wanted) is None


def test_another_commit_in_the_lock_is_taken_up(source, run, tmp_path, workspace, folder):
    """As where the lock came from another machine, or was upgraded."""
    newer = tmp_path / "newer"
    write_repository(newer, sizes=(50_000, 131_072))
    second = Repository.of(newer, "org/tiny")
    with TestHub(Repository.of(source, "org/tiny")) as hub:
        run(hub, revision="main")
    with TestHub(second) as hub:
        ctx = context(workspace, hub, revision="main")
        assert second.revision not in Weights().resolve(ctx, False).values()
        ctx.lock.put(Weights().resolve(ctx, True))
        assert Weights().check(ctx).reasons[0].code == "other_weights"
        run(hub, revision="main")
        assert tree(folder) == tree(newer)
        assert Weights().check(ctx).outputs["revision"] == second.revision


def test_only_wanted_files(hub, run, folder):
    run(hub, files={"allow": ["*.json", "extra/"], "ignore": ["*.json"]})
    assert set(tree(folder)) == {"extra/notes with space.md"}


def test_pattern_that_matches_nothing(hub, run):
    with pytest.raises(StepFailure) as failure:
        run(hub, files={"allow": ["*.gguf"]})
    assert failure.value.code == "nothing_to_download"


# What is on this machine already


def test_file_put_there_by_hand_is_adopted(hub, run, folder, source):
    folder.mkdir(parents=True)
    (folder / LARGEST).write_bytes((source / LARGEST).read_bytes())
    run(hub)
    size = (source / LARGEST).stat().st_size
    assert hub.faults.sent == sum(len(b) for b in tree(source).values()) - size


def _put(path: Path, size: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return bytes(size)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("size", [0, 5, 300_192, 300_193])
def test_wrong_file_put_there_by_hand_is_set_aside(request, hub, run, folder, source, size, cached):
    """Of the right size or not, whether the right one is fetched or linked."""
    if cached:
        request.getfixturevalue("cache")
    wrong = _put(folder / LARGEST, size)
    earlier = _put(folder / f"{LARGEST}.replaced", 3)
    run(hub)
    assert (folder / f"{LARGEST}.replaced").read_bytes() == earlier
    assert (folder / f"{LARGEST}.replaced.2").read_bytes() == wrong
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()
    Weights().undo(context(folder.parents[1], hub))
    assert {p.name for p in folder.iterdir()} == {f"{LARGEST}.replaced", f"{LARGEST}.replaced.2"}


def test_what_stands_in_the_place_of_a_folder_or_file_is_set_aside(hub, run, folder, source):
    _put(folder / "extra", 5)
    _put(folder / "config.json" / "inside", 7)
    (folder / "empty.txt").symlink_to("nowhere")
    run(hub)
    assert (folder / "extra.replaced").stat().st_size == 5
    assert (folder / "config.json.replaced" / "inside").stat().st_size == 7
    assert (folder / "empty.txt.replaced").is_symlink()
    for path, data in tree(source).items():
        assert (folder / path).read_bytes() == data


def test_destination_that_is_a_file(hub, run, folder, workspace):
    _put(folder, 5)
    check = Weights().check(context(workspace, hub))
    assert [r.code for r in check.reasons] == ["not_a_folder"]
    with pytest.raises(StepFailure) as failure:
        run(hub)
    assert failure.value.code == "not_a_folder"
    assert str(folder) in failure.value.message
    Weights().undo(context(workspace, hub))
    assert folder.stat().st_size == 5


@pytest.mark.parametrize("how", ["hardlink", "symlink"])
def test_cached_file_is_linked_and_not_fetched(hub, run, folder, source, cache, how):
    lines = run(hub, link=how)
    assert hub.faults.sent == 0
    assert tree(folder) == tree(source)
    assert (folder / LARGEST).is_symlink() == (how == "symlink")
    blob = next(p for p in cache.rglob("blobs/*") if p.stat().st_size == 300_192)
    assert blob.samefile(folder / LARGEST)
    assert any(how in line for line in lines)


def test_cache_is_part_of_the_plan(hub, workspace, cache):
    assert Weights().check(context(workspace, hub)).work.bytes == 0
    assert Weights().check(context(workspace, hub, link="none")).work.bytes > 0


def test_cache_on_another_file_system_is_not_counted_on(hub, workspace, cache, monkeypatch):
    """Neither a hard link nor a reflink leaves its file system; a symlink does."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == workspace.parent.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=other) as elsewhere:
        moved = shutil.copytree(cache, Path(elsewhere) / "cache", symlinks=True)
        monkeypatch.setenv("HF_HUB_CACHE", str(moved))
        assert Weights().check(context(workspace, hub)).work.bytes > 0
        assert Weights().check(context(workspace, hub, link="symlink")).work.bytes == 0


def test_link_that_the_file_system_refuses_is_a_download(hub, run, folder, source, cache):
    from runbook.steps.common.hub.cache import _reflink

    try:
        _reflink(source / "config.json", folder.parents[2] / "probe")
    except OSError:
        run(hub, link="reflink")
        assert hub.faults.sent == sum(len(b) for b in tree(source).values())
    else:
        run(hub, link="reflink")
        assert hub.faults.sent == 0
    assert tree(folder) == tree(source)


def test_spoiled_cache_is_not_used(hub, run, folder, source, cache):
    blob = next(p for p in cache.rglob("blobs/*") if p.stat().st_size == 300_192)
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    run(hub)
    assert tree(folder) == tree(source)
    assert hub.faults.sent == 300_192


def test_leftovers_of_others_are_named_and_kept_ours_are_removed(hub, run, folder, workspace):
    theirs = folder / ".cache" / "huggingface" / "download" / "x.abc.incomplete"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"half")
    kept = [
        *(folder / name for name in ("a.part", "a.part.json", "config.json.part", ".x.tmp")),
        *(folder / FOLDER / name for name in ("notes.txt", "a.part", "0123.json")),
    ]
    ours = [*paths(folder, "old.safetensors"), paths(folder, "x")[0].with_suffix(".link")]
    (folder / FOLDER).mkdir()
    for path in (*kept, *ours):
        path.write_text("{}")
    named = Weights().check(context(workspace, hub)).reasons
    assert [r.code for r in named if r.code != "revision_resolved"] == [
        "never_downloaded",
        "foreign_leftover",
    ]
    lines = run(hub)
    assert [path for path in (theirs, *kept) if not path.exists()] == []
    assert [path for path in ours if path.exists()] == []
    assert any("left by another tool" in line for line in lines)
    Weights().undo(context(workspace, hub))
    assert [path for path in (theirs, *kept) if not path.exists()] == []


def test_files_of_a_repository_that_look_unfinished_are_files(run, tmp_path, folder):
    """Names that only another program gives a meaning to."""
    source = tmp_path / "odd"
    write_repository(source)
    for name in ("a.part", "a.part.json", "config.json.part", "x.link", "x.replaced"):
        (source / name).write_text(name)
    with TestHub(Repository.of(source, "org/tiny")) as hub:
        run(hub)
        assert tree(folder) == tree(source)


# Room


def test_too_small_a_disk_is_refused_before_the_first_byte(hub, run, workspace, monkeypatch):
    usage = disk.shutil.disk_usage(workspace.parent)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    check = Weights().check(context(workspace, hub))
    assert "not_enough_disk" in [r.code for r in check.reasons]
    with pytest.raises(PreconditionNotMet) as failure:
        run(hub)
    assert failure.value.code == "not_enough_disk"
    assert hub.faults.sent == 0


# Who may read


@pytest.mark.parametrize(
    ("access", "code"), [("gated", "gated_repository"), ("private", "repository_not_found")]
)
def test_closed_repository(source, run, folder, workspace, monkeypatch, access, code):
    repository = Repository.of(source, "org/tiny", access)
    with TestHub(repository, token="hf_right") as hub:
        check = Weights().check(context(workspace, hub))
        assert code in [r.code for r in check.reasons]
        with pytest.raises(PreconditionNotMet) as failure:
            run(hub)
        assert failure.value.code == code
        assert f"{hub.url}/org/tiny" in str(failure.value.remedy)
        if access == "gated":
            assert "You must have access to it" in failure.value.cause
        monkeypatch.setattr("runbook.steps.common.hub.login.login_token", lambda: "hf_right")
        run(hub)
        assert tree(folder) == tree(source)
        told = {where for where, h in hub.faults.headers if "Authorization" in h}
        assert told == {"api", "resolve"}, "the content server never sees the token"


def test_token_is_not_sent_to_mirrors(hub, repository, run, folder, source, monkeypatch):
    monkeypatch.setattr("runbook.steps.common.hub.login.login_token", lambda: "hf_secret")
    hub.faults.always["resolve"] = Fault("503", "resolve")
    with TestHub(repository) as mirror:
        run(hub, mirrors=[mirror.url])
        assert mirror.faults.sent
        assert not any("Authorization" in h for _, h in mirror.faults.headers)
    assert tree(folder) == tree(source)


def test_a_login_in_the_endpoint_is_sent_there_and_told_to_nobody(
    hub, run, folder, workspace, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//me:pass%40word@"))
    hub.faults.pending.extend([Fault("503", "api"), Fault("503", "resolve"), Fault("cut")])
    lines = run(hub, endpoint=None)
    said = {h.get("Authorization") for where, h in hub.faults.headers if where != "content"}
    assert said == {f"Basic {base64.b64encode(b'me:pass@word').decode()}"}
    assert not [h for where, h in hub.faults.headers if where == "content" and "Authorization" in h]
    records = [path.read_text() for path in folder.glob(".runbook*") if path.is_file()]
    assert "next try" in "".join(lines)
    for text in (*lines, *records):
        assert "pass" not in text.replace("passes", "")
    hub.faults.always["api"] = Fault("403", "api")
    check = Weights().check(context(workspace, hub, endpoint=None, revision="other"))
    assert "hub_refused" in [r.code for r in check.reasons]
    assert "pass" not in str(check)


def test_declared_secret_comes_before_the_login(source, workspace, monkeypatch):
    repository = Repository.of(source, "org/tiny", "private")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr("runbook.steps.common.hub.login.login_token", lambda: "hf_wrong")
    with TestHub(repository, token="hf_right") as hub:
        ctx = context(workspace, hub)
        undeclared = Weights().check(ctx)
        ctx.secrets = frozenset({"HF_TOKEN"})
        declared = Weights().check(ctx)
    assert undeclared.work.bytes == 0
    assert declared.work.bytes > 0


def test_login_file_is_read_and_the_undeclared_variable_is_not(tmp_path, monkeypatch):
    from runbook.steps.common.hub import login

    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert login.login_token() is None
    assert os.environ["HF_TOKEN"] == "hf_environment"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"repo": "org/none"}, "repository_not_found"),
        ({"revision": "v9"}, "revision_not_found"),
        ({"repo": "org/tiny--x"}, "invalid_repository"),
    ],
)
def test_what_does_not_exist(hub, run, values, code):
    with pytest.raises(StepFailure) as failure:
        run(hub, **values)
    assert failure.value.code == code


# The end


def test_undo_removes_what_is_ours(hub, run, folder, source, workspace):
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folder / "mine.txt").touch()
    run(hub)
    step, ctx = Weights(), context(workspace, hub)
    step.undo(ctx)
    assert set(tree(folder)) == {"config.json", "mine.txt"}
    step.undo(ctx)


@pytest.mark.parametrize("crash_at", range(0, 120, 3))
def test_undo_leaves_nothing_wherever_a_crash_came(crash_at, hub, run, workspace, monkeypatch):
    step, ctx = Weights(), context(workspace, hub)
    monkeypatch.setattr(acquire, "DEFAULT_TUNING", TUNING)
    with crashing(monkeypatch, crash_at), contextlib.suppress(Crash):
        step.apply(ctx)
    run(hub)
    step.undo(ctx)
    assert [path.name for path in workspace.iterdir()] == ["runbook.lock.json"]


@pytest.mark.parametrize("crash_at", range(0, 40, 3))
def test_undo_leaves_no_link_wherever_a_crash_came(
    crash_at, hub, run, workspace, monkeypatch, cache
):
    step, ctx = Weights(), context(workspace, hub)
    with crashing(monkeypatch, crash_at), contextlib.suppress(Crash):
        step.apply(ctx)
    run(hub)
    assert hub.faults.sent == 0
    step.undo(ctx)
    assert [path.name for path in workspace.iterdir()] == ["runbook.lock.json"]


def test_file_put_there_by_hand_beside_an_unfinished_download_stays(
    hub, run, folder, source, workspace, monkeypatch
):
    name = "model-00002-of-00003.safetensors"
    monkeypatch.setattr(acquire, "DEFAULT_TUNING", TUNING)
    step, ctx = Weights(), context(workspace, hub, workers=1)
    for crash_at in range(10, 60):
        with crashing(monkeypatch, crash_at), contextlib.suppress(Crash):
            step.apply(ctx)
        if paths(folder, name)[1].exists() and not (folder / name).exists():
            break
    else:
        pytest.fail("no crash came in the middle of the file")
    (folder / name).write_bytes((source / name).read_bytes())
    run(hub)
    assert not (folder / FOLDER).exists()
    step.undo(ctx)
    assert set(tree(folder)) == {name}


def test_undo_of_nothing_and_of_everything(hub, run, folder, workspace):
    step, ctx = Weights(), context(workspace, hub)
    step.undo(ctx)
    run(hub)
    step.undo(ctx)
    assert [path.name for path in workspace.iterdir()] == ["runbook.lock.json"]


def test_cancel_keeps_what_has_arrived(hub, folder, workspace, repository, source, run):
    from runbook.protocol import Cancelled

    class Stop(Cancelled):
        pass

    ctx = context(workspace, hub)
    hub.faults.pause = 0.005

    def progress(done, total=None, unit="", message="", items=()):
        assert (total, unit) == (sum(f.size for f in repository.files), "bytes")
        if done > 200_000:
            raise Stop

    ctx.progress = progress
    with pytest.raises(Stop):
        Weights().apply(ctx)
    sent = hub.faults.sent
    hub.faults.pause = 0
    run(hub)
    assert tree(folder) == tree(source)
    total = sum(f.size for f in repository.files)
    assert sent < total, "all workers stopped"
    assert hub.faults.sent - sent <= total - 200_000 + 3 * (16 << 10)


def test_progress_names_the_files_on_their_way(hub, workspace, repository):
    ctx = context(workspace, hub)
    hub.faults.pause = 0.02  # the smallest shard takes longer than a look
    told: list[dict] = []
    ctx.on_progress = told.append
    Weights().apply(ctx)
    hub.faults.pause = 0
    sizes = {f.path: f.size for f in repository.files}
    items = [item for message in told for item in message["items"]]
    assert {item["name"] for item in items} >= {n for n in sizes if n.endswith(".safetensors")}
    assert all(0 <= item["done"] <= item["total"] == sizes[item["name"]] for item in items)
    assert max(len(message["items"]) for message in told) > 1
    for message in told:
        assert sum(item["done"] for item in message["items"]) <= message["done"]


def test_incoherent_tensors_are_a_failure(tmp_path, run):
    broken = tmp_path / "broken"
    write_repository(broken)
    (broken / LARGEST).unlink()
    with TestHub(Repository.of(broken, "org/tiny")) as hub, pytest.raises(StepFailure) as failure:
        run(hub)
    assert failure.value.code == "bad_tensors"
    assert f"{LARGEST}, which is missing" in failure.value.cause


# What the book was made for


def digests(repository):
    """SHA-256 of a small file, which the hub does not list, and of a shard, which it does."""
    folder = repository.folder
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", LARGEST)
    }


def test_files_of_the_expected_digests_are_taken(hub, run, repository, workspace):
    run(hub, sha256=digests(repository))
    assert Weights().check(context(workspace, hub, sha256=digests(repository))).ok


@pytest.mark.parametrize(
    ("name", "told", "downloaded"),
    [
        ("config.json", "config.json has sha256", True),
        (LARGEST, f"{LARGEST} has sha256", False),
        ("gone.json", "gone.json is not among its files", False),
    ],
)
def test_files_of_other_content_than_the_book_was_made_for_are_refused(
    hub, run, repository, workspace, folder, name, told, downloaded
):
    with pytest.raises(StepFailure, match=told) as caught:
        run(hub, sha256=digests(repository) | {name: "a" * 64})
    assert caught.value.code == "other_content" and "sha256" in str(caught.value.remedy)
    assert bool(tree(folder)) == downloaded, "what the hub lists is told before a byte is fetched"
    assert not Weights().check(context(workspace, hub, sha256=digests(repository))).ok
