"""Series, patches and archives of any form: read, or one failure in words."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.vllm import Vllm
from runbook.steps.vllm.archive import unpack
from runbook.steps.vllm.patching.parser import DiffError, parse
from runbook.steps.vllm.report import patches
from tests.cpu import bounded

from .test_series import listing

STEP = Vllm()

# Names in a diff, and what is said of them.
NAMES = [
    ("../x", "leads out of the tree"),
    ("a/../../x", "leads out of the tree"),
    ("a/..", "leads out of the tree"),
    ("/etc/passwd", "leads out of the tree"),
    ("./x", "not the plain path"),
    ("a/./x", "not the plain path"),
    (".", "not the plain path"),
    ("a//x", "not the plain path"),
    ("a/", "not the plain path"),
    ("a\0b", "not printable UTF-8"),
    ("a\x1b[2Jb", "not printable UTF-8"),
    ("a\udcffb", "not printable UTF-8"),
]


@pytest.mark.parametrize(("name", "told"), NAMES)
def test_a_name_in_a_diff_is_a_plain_path(name, told):
    text = f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-a\n+b\n"
    with pytest.raises(DiffError, match=told):
        parse(text.encode("utf-8", "surrogateescape"))


def test_a_diff_of_many_files_is_read_in_its_time():
    one = (
        "diff --git a/{0} b/{0}\nnew file mode 100644\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+\n"
    )
    text = "".join(one.format(number) for number in range(20_000))
    with bounded():
        assert len(parse(text.encode())) == 20_000
    with pytest.raises(DiffError, match="17 is written more than once"):
        parse((text + one.format(17)).encode())


@pytest.mark.parametrize(("name", "told"), NAMES)
def test_so_is_the_file_of_an_anchor(world, name, told):
    patch = world.target / "1.patch"
    quoted = name.encode("unicode_escape").decode().replace("\\udc", "\\ud800\\udc")
    patch.write_text(patch.read_text().replace("file: vllm/model.py", f'file: "{quoted}"', 1))
    with pytest.raises(StepFailure) as caught:
        patches(str(world.target))
    assert caught.value.code == "series_malformed"
    assert "1.patch" in caught.value.message


# `series.yaml`, and what is said of it; the folder has 1.patch and 2.patch.
LISTINGS = [
    ("", "a series: expected keys and values"),
    ("- a", "a series: expected keys and values"),
    ("{", "line 1"),
    ("\0", "unacceptable character"),
    (b"\xff\xfe\xff", "series.yaml"),
    ("[" * 1000, "series.yaml"),
    ("releases: [1.2.0]", "missing patches"),
    ("releases: [1.2.0]\npatches: []", "at least one entry"),
    ("releases: [1.2.0]\npatches: {file: 1.patch}", "expected a list"),
    ("releases: []\npatches: [{file: 1.patch}]", "releases: at least one"),
    ("releases: 1.2.0\npatches: [{file: 1.patch}]", "releases: expected a list of texts"),
    ("releases: [1.2]\npatches: [{file: 1.patch}]", "releases: expected a list of texts"),
    ("releases: [newest]\npatches: [{file: 1.patch}]", "releases: Invalid version"),
    ("releases: [1.2.0]\nmore: 1\npatches: [{file: 1.patch}]", "unknown more"),
    ("releases: [1.2.0]\npatches: [1.patch]", "patches: expected keys and values"),
    ("releases: [1.2.0]\npatches: [{lifts: []}]", "patches: missing file"),
    ("releases: [1.2.0]\npatches: [{file: 3}]", "3 is not the name of a patch file"),
    ("releases: [1.2.0]\npatches: [{file: ../1.patch}]", "is not the name of a patch file"),
    ("releases: [1.2.0]\npatches: [{file: ./1.patch}]", "is not the name of a patch file"),
    ("releases: [1.2.0]\npatches: [{file: /1.patch}]", "is not the name of a patch file"),
    ('releases: [1.2.0]\npatches: [{file: "1\\0.patch"}]', "is not the name of a patch file"),
    ("releases: [1.2.0]\npatches: [{file: 1.patch, lifts: a}]", "expected a list of texts"),
    ("releases: [1.2.0]\npatches: [{file: 1.patch, lifts: [A b]}]", "not the name of a quirk"),
    (listing("1.patch", "2.patch", "3.patch"), "names 3.patch, which is absent"),
    (listing("1.patch", "1.patch"), "names 1.patch more than once"),
    (listing("1.patch"), "does not name 2.patch, which is there"),
    (listing("1.patch", "2.patch", releases=("9.9.9",)), "none of the releases"),
]


@pytest.mark.parametrize(("text", "told"), LISTINGS)
def test_a_series_of_wrong_form_is_one_failure(world, text, told):
    (world.target / "series.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for use in (
        lambda: patches(str(world.target), lock=str(world.lock), cache=world.cache),
        lambda: STEP.apply(world.context()),
    ):
        with pytest.raises(StepFailure) as caught:
            use()
        assert caught.value.code == "series_malformed"
        assert told in caught.value.message
        assert caught.value.remedy
    assert not (world.cache / "built").exists()


def test_a_patch_that_is_not_needed_somewhere_names_the_upstream_change(world):
    patch = world.target / "1.patch"
    unless = "  unless:\n    - {file: vllm/model.py, text: RAISED}\n---\ndiff"
    patch.write_text(patch.read_text().replace("---\ndiff", unless, 1))
    with pytest.raises(StepFailure, match="`upstream` must name the change"):
        patches(str(world.target))
    patch.write_text(patch.read_text().replace("not reported", "vllm#1", 1))
    assert len(patches(str(world.target))) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path.name),
        os.mkfifo,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(1000)),
    ],
)
@pytest.mark.parametrize("name", ["series.yaml", "1.patch"])
def test_a_file_of_a_series_that_is_none(world, name, make):
    context = world.context()
    (world.target / name).unlink()
    make(world.target / name)
    for use in (
        lambda: patches(str(world.target)),
        lambda: STEP.apply(context),
    ):
        with pytest.raises(StepFailure) as caught:
            use()
        assert caught.value.code in ("series_missing", "series_malformed")
    if caught.value.code == "series_malformed":
        assert not STEP.check(context).ok


@pytest.mark.parametrize(
    "target", ["", ".", "..", "/", "/etc/passwd", "no-such", "a\0b", "x" * 300, "~", "a/b", "\n"]
)
def test_what_is_no_series_is_refused(target):
    with pytest.raises(StepFailure) as caught:
        patches(target)
    assert caught.value.code == "series_missing"
    assert isinstance(caught.value.remedy, Remedy)


def test_the_remedy_of_drift_examines_the_lock_at_hand(world):
    drifted = """diff --git a/vllm/model.py b/vllm/model.py
--- a/vllm/model.py
+++ b/vllm/model.py
@@ -1,2 +1,2 @@
-LIMIT = 7
+LIMIT = 10
 OTHER = 2
"""
    world.write_series(drifted)
    with pytest.raises(StepFailure) as caught:
        STEP.apply(world.context())
    failure = caught.value
    assert failure.code == "patch_conflict"
    assert "wanted 'LIMIT = 7', found 'LIMIT = 1'" in failure.cause
    again, examine = failure.remedy
    assert again.verb == "run"
    verb, (target, option, lock) = examine.verb, examine.arguments
    assert (verb, option) == ("patches", "--lock")
    table = patches(target, lock=lock, cache=world.cache)
    assert [row["state"] for row in table] == ["conflicting", "absent"]
    assert table[0]["conflict"] == failure.cause


def member(name, kind=tarfile.REGTYPE, link="", mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, link, mode
    entry.size = 1 if kind == tarfile.REGTYPE else 0
    return entry


def tar(*entries, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x") if entry.isreg() else None)
    return out.getvalue()


GOOD = member("top/a.py")
ARCHIVES = {
    "empty": b"",
    "no archive": b"no archive",
    "no members": tar(),
    "cut": tar(GOOD)[:60],
    "flipped": bytes(b ^ (0xFF if i == 30 else 0) for i, b in enumerate(tar(GOOD))),
    "xz cut": tar(GOOD, mode="w:xz")[:80],
    "bz2 cut": tar(GOOD, mode="w:bz2")[:60],
    "gzip of noise": b"\x1f\x8b\x08\x00" + b"\xff" * 100,
    "two folders": tar(GOOD, member("other/a.py")),
    "a file on top": tar(member("top")),
    "a link on top": tar(member("top", tarfile.SYMTYPE, ".")),
    "out by name": tar(GOOD, member("../a.py")),
    "out by a folder": tar(GOOD, member("top/../../a.py")),
    "out by a link": tar(GOOD, member("top/l", tarfile.SYMTYPE, "../../..")),
    "out by an absolute link": tar(GOOD, member("top/l", tarfile.SYMTYPE, "/etc/passwd")),
    "out by a hard link": tar(GOOD, member("top/l", tarfile.LNKTYPE, "../../x")),
    "through a link": tar(GOOD, member("top/l", tarfile.SYMTYPE, "../.."), member("top/l/a.py")),
    "FIFO": tar(GOOD, member("top/f", tarfile.FIFOTYPE)),
    "device": tar(GOOD, member("top/d", tarfile.CHRTYPE)),
    "a file and a folder of one name": tar(member("top/a"), member("top/a/b")),
    "a folder and a file of one name": tar(member("top/a/b"), member("top/a")),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_wrong_form_is_one_failure(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "x").write_text("stays")
    archive = tmp_path / "in" / "source.tar.gz"
    archive.write_bytes(ARCHIVES[name])
    with pytest.raises(StepFailure) as caught:
        unpack(archive, "ab" * 20, tmp_path / "in" / "src")
    assert caught.value.code == "archive_malformed"
    assert not (tmp_path / "in" / "src").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x"]
    assert (tmp_path / "x").read_text() == "stays"


def test_an_archive_with_a_dot_before_its_names_is_fine(tmp_path):
    archive = tmp_path / "source.tar.gz"
    archive.write_bytes(tar(member("./top", tarfile.DIRTYPE, mode=0o755), member("./top/a.py")))
    unpack(archive, "ab" * 20, tmp_path / "src")
    assert (tmp_path / "src" / "a.py").read_bytes() == b"x"
