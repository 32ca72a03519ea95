"""A series applies whole or not at all, twice is a no-op, and it comes off without a trace."""

from __future__ import annotations

import hashlib
import json

import pytest

from runbook.steps.vllm.patching import series as reading
from runbook.steps.vllm.patching.examine import SeriesConflict, examine, patched, unpatched
from runbook.steps.vllm.patching.series import STOCK, load, load_or_stock, public_version, short
from runbook.steps.vllm.target import PATCHES, SeriesError, folder_of

VERSION = "1.2.0"
SOURCE = {
    "pkg/model.py": b"import os\n\n\ndef limit():\n    return 1\n\n\ndef other():\n    return 2\n",
    "pkg/gpu.py": b"HEAD = 1\nBODY = 2\nTAIL = 3\n",
    "pkg/old.py": b"gone = True\n",
}
HEADER = """---
id: {id}
title: Title
why: Why
symptom: Symptom
upstream: {upstream}
applies:
  version: "{version}"
  anchors: {anchors}
  unless: {unless}
---
"""
RAISE_LIMIT = """diff --git a/pkg/model.py b/pkg/model.py
--- a/pkg/model.py
+++ b/pkg/model.py
@@ -2,5 +2,5 @@


 def limit():
-    return 1
+    return 10

"""
COPY_GPU = """diff --git a/pkg/gpu.py b/pkg/cpu.py
similarity index 80%
copy from pkg/gpu.py
copy to pkg/cpu.py
--- a/pkg/gpu.py
+++ b/pkg/cpu.py
@@ -1,3 +1,3 @@
 HEAD = 1
-BODY = 2
+BODY = 20
 TAIL = 3
diff --git a/pkg/gpu.py b/pkg/gpu.py
--- a/pkg/gpu.py
+++ b/pkg/gpu.py
@@ -1,3 +1,4 @@
 HEAD = 1
 BODY = 2
 TAIL = 3
+CPU = True
"""
TOUCH_COPY = """diff --git a/pkg/cpu.py b/pkg/cpu.py
--- a/pkg/cpu.py
+++ b/pkg/cpu.py
@@ -1,3 +1,3 @@
 HEAD = 1
-BODY = 20
+BODY = 200
 TAIL = 3
diff --git a/pkg/new.py b/pkg/new.py
new file mode 100644
--- /dev/null
+++ b/pkg/new.py
@@ -0,0 +1 @@
+new = True
diff --git a/pkg/old.py b/pkg/old.py
deleted file mode 100644
--- a/pkg/old.py
+++ /dev/null
@@ -1 +0,0 @@
-gone = True
diff --git a/pkg/model.py b/pkg/renamed.py
similarity index 100%
rename from pkg/model.py
rename to pkg/renamed.py
"""


def anchor(file, text):
    return f"[{{file: {file}, text: {text!r}}}]"


VALUES = {"version": ">=1.2,<1.3", "unless": "[]", "upstream": "vllm#1"}


def listing(*names, releases=(VERSION,)):
    """A `series.yaml`."""
    return json.dumps({"releases": list(releases), "patches": [{"file": name} for name in names]})


def write(folder, *patches, **header):
    """A series of (id, diff) or (id, diff, header overrides)."""
    folder.mkdir(exist_ok=True)
    names = []
    for id, diff, *more in patches:
        values = {**VALUES, "anchors": anchor("pkg/gpu.py", "HEAD"), **header}
        values.update(more[0] if more else {})
        (folder / f"{id}.patch").write_text(HEADER.format(id=id, **values) + diff)
        names.append(f"{id}.patch")
    (folder / "series.yaml").write_text(listing(*names))
    return load(str(folder))


@pytest.fixture
def series(tmp_path):
    return write(
        tmp_path / "t", ("limit", RAISE_LIMIT), ("copy", COPY_GPU), ("touch-copy", TOUCH_COPY)
    )


@pytest.mark.parametrize("target", [".", "./", "../t"])
def test_a_folder_may_be_named_from_where_one_stands(series, monkeypatch, target):
    monkeypatch.chdir(series.folder)
    assert load(target).patches == series.patches


def laid_over(changes, source=SOURCE):
    return {k: v for k, v in {**source, **changes}.items() if v is not None}


def states(series, source, version=VERSION):
    return [finding.state for finding in examine(series, source.get, version).findings]


def test_whole_series_applies_and_comes_off(series):
    assert states(series, SOURCE) == ["absent"] * 3
    done = laid_over(patched(series, SOURCE.get, VERSION))
    assert done == {
        "pkg/renamed.py": SOURCE["pkg/model.py"].replace(b"return 1\n", b"return 10\n"),
        "pkg/gpu.py": SOURCE["pkg/gpu.py"] + b"CPU = True\n",
        "pkg/cpu.py": b"HEAD = 1\nBODY = 200\nTAIL = 3\n",
        "pkg/new.py": b"new = True\n",
    }
    assert states(series, done) == ["applied"] * 3
    assert patched(series, done.get, VERSION) == {}
    assert laid_over(unpatched(series, done.get, VERSION), done) == SOURCE


def test_digests_of_touched_files(series):
    def sha(data):
        return hashlib.sha256(data).hexdigest()

    before = examine(series, SOURCE.get, VERSION).findings[0].files[0]
    after = SOURCE["pkg/model.py"].replace(b"return 1\n", b"return 10\n")
    assert (before.path, before.before, before.after) == (
        "pkg/model.py",
        sha(SOURCE["pkg/model.py"]),
        sha(after),
    )
    done = laid_over(patched(series, SOURCE.get, VERSION))
    there = examine(series, done.get, VERSION).findings
    assert [f.files for f in there] == [
        f.files for f in examine(series, SOURCE.get, VERSION).findings
    ]


def test_partly_applied_series_is_completed(tmp_path, series):
    first = write(tmp_path / "first", ("limit", RAISE_LIMIT))
    part = laid_over(patched(first, SOURCE.get, VERSION))
    assert states(series, part) == ["applied", "absent", "absent"]
    assert laid_over(patched(series, part.get, VERSION), part) == laid_over(
        patched(series, SOURCE.get, VERSION)
    )


def test_later_patch_alone_is_recognised(tmp_path, series):
    copied = write(tmp_path / "second", ("copy", COPY_GPU))
    part = laid_over(patched(copied, SOURCE.get, VERSION))
    assert states(series, part) == ["absent", "applied", "absent"]
    whole = laid_over(patched(series, part.get, VERSION), part)
    assert whole == laid_over(patched(series, SOURCE.get, VERSION))


def test_drifted_source_is_refused_whole_and_named(series):
    source = {**SOURCE, "pkg/gpu.py": b"HEAD = 1\nBODY = 7\nTAIL = 3\n"}
    with pytest.raises(SeriesConflict) as caught:
        patched(series, source.get, VERSION)
    # The third patch changes what the second would have made.
    (copy, touch) = caught.value.conflicts
    assert (copy.patch, copy.file, copy.hunk, copy.line) == ("copy", "pkg/gpu.py", 1, 2)
    assert "wanted 'BODY = 2', found 'BODY = 7'" in copy.message
    assert (touch.patch, touch.file) == ("touch-copy", "pkg/cpu.py")
    assert [f.state for f in caught.value.findings] == ["absent", "conflicting", "conflicting"]


def test_missing_anchor_is_a_conflict(tmp_path):
    series = write(
        tmp_path / "t", ("limit", RAISE_LIMIT, {"anchors": anchor("pkg/gpu.py", "WAIST")})
    )
    (conflict,) = examine(series, SOURCE.get, VERSION).conflicts
    assert conflict.file == "pkg/gpu.py"
    assert "'WAIST'" in conflict.message


@pytest.mark.parametrize("version", ["1.3.0", "1.1.9", "2.0+cpu", "1.2.1", "1.2.0rc1"])
def test_other_releases_are_refused(series, version):
    with pytest.raises(SeriesError, match=r"is for vLLM 1\.2\.0, not") as caught:
        patched(series, SOURCE.get, version)
    assert caught.value.code == "release_not_supported"


@pytest.mark.parametrize("version", ["1.2.0", "1.2", "1.2.0+cpu.mtp.0a"])
def test_the_local_part_of_a_release_does_not_count(series, version):
    assert patched(series, SOURCE.get, version)


def test_a_patch_for_another_release_of_the_series_names_the_upstream_change(tmp_path):
    series = write(
        tmp_path, ("limit", RAISE_LIMIT), ("copy", COPY_GPU, {"version": "<1.3,!=1.2.1"})
    )
    (tmp_path / "series.yaml").write_text(
        listing("limit.patch", "copy.patch", releases=(VERSION, "1.2.1"))
    )
    series = load(str(tmp_path))
    limit, copy = examine(series, SOURCE.get, "1.2.1").findings
    assert (limit.state, copy.state) == ("absent", "not_needed")
    assert copy.reason == "it is for vLLM <1.3,!=1.2.1; upstream: vllm#1"


def test_a_series_without_effect_is_refused(tmp_path):
    own = {**SOURCE, "pkg/model.py": b"def limit():\n    return 100\n"}
    unless = {"unless": anchor("pkg/model.py", "return 10")}
    series = write(tmp_path, ("limit", RAISE_LIMIT, unless))
    with pytest.raises(SeriesError, match=r"no patch of the series .* is needed") as caught:
        patched(series, own.get, VERSION)
    assert caught.value.code == "series_without_effect"


@pytest.mark.parametrize("version", ["1.2.0+cpu.mtp.0a", "1.2.9", "1.2.0rc1.post1", "1.2.1.dev3"])
def test_local_and_pre_releases_count_as_their_public_version(tmp_path, version):
    series = write(tmp_path / "t", ("limit", RAISE_LIMIT), version=">=1.2.0rc0,<1.3")
    assert states(series, SOURCE, version) == ["absent"]


def test_superseded_patch_is_not_needed_but_recognised_when_applied(tmp_path):
    unless = {"unless": anchor("pkg/model.py", "return 10")}
    series = write(tmp_path / "t", ("limit", RAISE_LIMIT, unless), ("copy", COPY_GPU))
    own = {**SOURCE, "pkg/model.py": b"def limit():\n    return 100\n"}
    assert states(series, own) == ["not_needed", "absent"]
    assert examine(series, own.get, VERSION).findings[0].reason == (
        "the source has its own form of it: pkg/model.py has 'return 10'; upstream: vllm#1"
    )
    done = laid_over(patched(series, SOURCE.get, VERSION))
    assert states(series, done) == ["applied", "applied"]
    assert laid_over(unpatched(series, done.get, VERSION), done) == SOURCE


def test_a_match_elsewhere_is_not_taken_for_the_patch(tmp_path):
    """Lines as the patch leaves them stand in the unpatched file too, at another place."""
    removes = """diff --git a/m.py b/m.py
--- a/m.py
+++ b/m.py
@@ -1,3 +1,2 @@
 a
-x
 b
"""
    series = write(tmp_path / "t", ("r", removes, {"anchors": anchor("m.py", "a")}))
    source = {"m.py": b"a\nx\nb\n---\na\nb\n"}
    assert states(series, source) == ["absent"]
    done = laid_over(patched(series, source.get, VERSION), source)
    assert done == {"m.py": b"a\nb\n---\na\nb\n"}
    assert states(series, done) == ["applied"]
    assert laid_over(unpatched(series, done.get, VERSION), done) == source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pkg/cpu.py": b"mine\n"}, "pkg/cpu.py: the file exists already"),
        ({"pkg/new.py": b"mine\n"}, "pkg/new.py: the file exists already"),
        ({"pkg/gpu.py": None}, "which this patch relies on, is not there"),
        ({"pkg/old.py": b"gone = True\nmore = 1\n"}, "the file holds more than is deleted"),
        ({"pkg/renamed.py": b"mine\n"}, "pkg/renamed.py: the file exists already"),
    ],
)
def test_files_in_the_way(series, change, message):
    source = laid_over(change)
    with pytest.raises(SeriesConflict, match=message):
        patched(series, source.get, VERSION)


def test_an_edited_copy_is_neither_there_nor_absent(tmp_path):
    series = write(tmp_path / "t", ("copy", COPY_GPU))
    done = laid_over(patched(series, SOURCE.get, VERSION))
    done["pkg/cpu.py"] += b"# edited\n"
    assert states(series, done) == ["conflicting"]


def test_digest_covers_order_predicates_and_diffs_but_not_prose(tmp_path):
    two = [("limit", RAISE_LIMIT), ("copy", COPY_GPU)]
    digest = write(tmp_path / "a", *two).digest
    assert write(tmp_path / "b", *reversed(two)).digest != digest
    assert write(tmp_path / "c", *two, version=">=1").digest != digest
    other = [("limit", RAISE_LIMIT.replace("10", "11")), two[1]]
    assert write(tmp_path / "d", *other).digest != digest
    reworded = tmp_path / "a" / "limit.patch"
    reworded.write_text(reworded.read_text().replace("why: Why", "why: Because"))
    assert load(str(tmp_path / "a")).digest == digest


def test_short_digest_is_never_a_number():
    assert short("0123456a" + "0" * 56) == "0123456a"
    assert short("01234567" + "89ab" * 14) == "0123456789a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("diff --git a/x b/x\n", "expected front matter"),
        ("---\nid: [\n---\n" + RAISE_LIMIT, "front matter"),
        ("---\n- a\n---\n" + RAISE_LIMIT, "expected keys and values"),
        ("---\nid: x\n---\n" + RAISE_LIMIT, "missing applies, symptom, title, upstream, why"),
        (HEADER.replace("title", "titel"), "missing title"),
        (HEADER + RAISE_LIMIT.replace("@@ -2,5", "@@ -2,6"), "line 22: the hunk"),
        (HEADER.replace("Why", '""') + RAISE_LIMIT, "`why` must be a text"),
        (HEADER.replace(">=1.2,<1.3", "1.2") + RAISE_LIMIT, "applies.version"),
    ],
)
def test_malformed_patch_is_named(tmp_path, text, message):
    values = {"id": "x", "anchors": anchor("x", "y"), **VALUES}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    if ">=1.2,<1.3" in text and "applies.version" in message:
        text = text.replace(">=1.2,<1.3", "newest")
    (tmp_path / "x.patch").write_text(text)
    (tmp_path / "series.yaml").write_text(listing("x.patch"))
    with pytest.raises(SeriesError, match=message) as caught:
        load(str(tmp_path))
    assert str(tmp_path / "x.patch") in str(caught.value)


def test_missing_series(tmp_path):
    for target in (tmp_path / "nowhere", tmp_path, tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(SeriesError, match="there is no patch series") as caught:
            load(str(target))
        assert caught.value.code == "series_missing"


# What a `series.yaml` may be instead, and what is said of it.
LISTINGS = [
    ("- a\n", "a series: expected keys and values"),
    ("{releases: [1.2.0]}", "a series: missing patches"),
    ("{patches: [{file: limit.patch}]}", "a series: missing releases"),
    ("{releases: [1.2.0], patches: [], more: 1}", "a series: unknown more"),
    ("{releases: 1.2.0, patches: []}", "releases: expected a list of texts"),
    ("{releases: [1.2], patches: []}", "releases: expected a list of texts"),
    ("{releases: [], patches: []}", "releases: at least one is needed"),
    ("{releases: [x-cpu], patches: []}", "releases: Invalid version: 'x'"),
    ("{releases: [1.2.0], patches: []}", "patches: expected a list with at least one entry"),
    ("{releases: [1.2.0], patches: {}}", "patches: expected a list with at least one entry"),
    ("{releases: [1.2.0], patches: [a.patch]}", "patches: expected keys and values"),
    ("{releases: [1.2.0], patches: [{file: 1}]}",
     "patches: 1 is not the name of a patch file in this folder"),
    ("{releases: [1.2.0], patches: [{file: a/b.patch}]}",
     "patches: 'a/b.patch' is not the name of a patch file in this folder"),
    ("{releases: [1.2.0], patches: [{file: a.patch, lift: []}]}", "patches: unknown lift"),
    ("{releases: [1.2.0], patches: [{file: a.patch, lifts: quirk}]}",
     "patches: a.patch: lifts: expected a list of texts"),
    ("{releases: [1.2.0], patches: [{file: a.patch, lifts: [Nope]}]}",
     "patches: a.patch: 'Nope' is not the name of a quirk"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), LISTINGS)
def test_a_malformed_listing_is_named(tmp_path, text, message):
    (tmp_path / "series.yaml").write_text(text)
    with pytest.raises(SeriesError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == f"{tmp_path / 'series.yaml'}: {message}"
    assert caught.value.code == "series_malformed"


@pytest.mark.parametrize("text", ["{", "[" * 1000])
def test_a_listing_that_is_no_yaml_is_named(tmp_path, text):
    (tmp_path / "series.yaml").write_text(text)
    with pytest.raises(SeriesError) as caught:
        load(str(tmp_path))
    said = str(caught.value).removeprefix(f"{tmp_path / 'series.yaml'}: ")
    assert said not in ("", "None") and said != str(caught.value)


@pytest.mark.parametrize(
    ("names", "present", "message"),
    [
        (["a", "b", "a"], ["a", "b"], "the series t names a more than once"),
        (["a", "b"], ["a"], "the series t names b, which is absent"),
        (["a"], ["a", "b", "c"], "the series t does not name b, c, which is there"),
    ],
)
def test_what_is_named_is_what_is_there(names, present, message):
    with pytest.raises(SeriesError) as caught:
        reading._compare("t", names, present)
    assert str(caught.value) == message
    reading._compare("t", ["a", "b"], ["b", "a"])


def test_what_a_series_is(tmp_path):
    write(tmp_path / "t", ("limit", RAISE_LIMIT), ("copy", COPY_GPU))
    text = "{releases: [1.2.0-cpu, 1.2.1], patches: [{file: limit.patch, lifts: [a_quirk]}, "
    (tmp_path / "t" / "series.yaml").write_text(text + "{file: copy.patch}]}")
    series = load(str(tmp_path / "t"))
    assert (series.target, series.folder) == ("t", tmp_path / "t")
    assert series.releases == ("1.2.0-cpu", "1.2.1")
    assert [patch.id for patch in series.patches] == ["limit", "copy"]
    assert series.lifts == {"limit": ("a_quirk",), "copy": ()}
    digests = "".join(patch.digest for patch in series.patches)
    assert series.digest == hashlib.sha256(digests.encode()).hexdigest()
    assert series.short_digest == short(series.digest)
    for release in ("1.2.0", "1.2.1", "1.2.1+x"):
        series.require_release(release)
    with pytest.raises(SeriesError) as caught:
        series.require_release("1.2.2")
    assert str(caught.value) == "the series t is for vLLM 1.2.0-cpu, 1.2.1, not 1.2.2"
    assert caught.value.code == "release_not_supported"
    with pytest.raises(SeriesError) as caught:
        series.require_release("newest")
    assert str(caught.value) == "'newest' is no version: Invalid version: 'newest'"


def test_a_stock_release_has_a_series_without_patches():
    assert load_or_stock("") is STOCK
    assert (STOCK.target, STOCK.folder, STOCK.patches, STOCK.lifts) == ("", PATCHES, (), {})
    assert STOCK.digest == hashlib.sha256(b"").hexdigest()
    STOCK.require_release("whatever it is")
    assert load_or_stock("0.33.0").patches


def test_the_version_of_a_release():
    assert public_version("0.32.0-cpu") == "0.32.0" == public_version("0.32.0")


@pytest.mark.parametrize(
    ("digest", "expected"),
    [
        ("0123456789abcdef", "0123456789a"),
        ("a123456789abcdef", "a1234567"),
        ("01234567a", "01234567a"),
        ("1" * 12, "1" * 12),
        ("12345678", "12345678"),
    ],
)
def test_short_digests(digest, expected):
    assert short(digest) == expected


NEEDS_UPSTREAM = (
    "limit.patch says where it is not needed, so `upstream` must name the change that made it so"
)


@pytest.mark.parametrize(
    ("header", "releases", "message"),
    [
        ({"version": ">=2"}, (VERSION,),
         "limit.patch is for >=2, which is none of the releases in series.yaml"),
        ({"unless": anchor("pkg/gpu.py", "HEAD"), "upstream": "not reported"}, (VERSION,),
         NEEDS_UPSTREAM),
        ({"upstream": "not reported"}, (VERSION, "1.3.0"),
         NEEDS_UPSTREAM),
    ],
)  # fmt: skip
def test_what_a_series_says_of_releases_is_held_against_them(tmp_path, header, releases, message):
    write(tmp_path, ("limit", RAISE_LIMIT))
    values = {**VALUES, "anchors": anchor("pkg/gpu.py", "HEAD"), "id": "limit", **header}
    (tmp_path / "limit.patch").write_text(HEADER.format(**values) + RAISE_LIMIT)
    (tmp_path / "series.yaml").write_text(listing("limit.patch", releases=releases))
    with pytest.raises(SeriesError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == message


def test_an_unknown_change_is_enough_where_the_patch_is_needed_everywhere(tmp_path):
    assert write(tmp_path, ("limit", RAISE_LIMIT), upstream="not reported").patches


def test_an_id_is_used_once(tmp_path):
    write(tmp_path, ("limit", RAISE_LIMIT), ("copy", COPY_GPU))
    copy = tmp_path / "copy.patch"
    copy.write_text(copy.read_text().replace("id: copy", "id: limit"))
    with pytest.raises(SeriesError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == f"{folder_of(str(tmp_path))}: the id limit is used more than once"
