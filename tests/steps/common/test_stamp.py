"""The record of a step: what it tells apart, and what is no record."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.steps.common.stamp import RESULT, Change, Stamp, marks, marks_of_all

GOOD = {
    "format": "runbook-stamp/1",
    "kind": "tool",
    "complete": True,
    "inputs": {"n": 1},
    "versions": {"step": "1"},
    "files": {"result": {"a": [1, 2]}},
    "made": {"home": "/x"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "b").write_text("bb")
    (folder / "sub" / "c").write_text("ccc")
    (folder / ".hidden").touch()
    return folder


def stamp(folder: Path) -> Stamp:
    found = marks(folder, ["a", "sub/c", "missing"])
    assert found.keys() == {"a", "sub/c"}
    return Stamp("tool", {"n": 1, "of": ["x", None]}, {"step": "1"}, {RESULT: found}, {"out": 1})


def test_what_is_written_is_read(folder: Path) -> None:
    written = stamp(folder)
    written.write(folder / ".stamp")
    read = Stamp.read(folder / ".stamp", "tool")
    assert read is not None
    assert read.dump() == json.loads(json.dumps(written.dump()))
    assert Stamp.read(folder / ".stamp", "other") is None
    assert Stamp.read(folder / "nothing", "tool") is None
    assert read.changed() is None
    now = marks(folder, read.files[RESULT])
    same = {"n": 1, "of": ("x", None)}
    assert read.changed(inputs=same, versions={"step": "1"}, files={RESULT: now}) is None


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"inputs": {"n": 2, "of": ["x", None]}}, ("inputs", "n", "is another", "")),
        ({"inputs": {"n": 1}}, ("inputs", "of", "is another", "")),
        ({"inputs": {"n": 1, "of": ["x", None], "new": 0}}, ("inputs", "new", "is another", "")),
        ({"inputs": {"n": 1, "of": ["x", None], "no": None}}, ("inputs", "no", "is another", "")),
        ({"versions": {"step": "2"}}, ("versions", "step", "is another", "")),
        ({"versions": {}}, ("versions", "step", "is another", "")),
        ({"files": {"source": {"z": [1, 1]}}}, ("files", "z", "is new", "source")),
    ],
)
def test_changes(folder: Path, given: dict, change: tuple) -> None:
    assert stamp(folder).changed(**given) == Change(*change)


def test_a_key_that_is_null_is_a_key(folder: Path) -> None:
    made = dataclasses.replace(stamp(folder), inputs={"n": None})
    assert made.changed(inputs={}) == Change("inputs", "n", "is another")
    assert made.changed(inputs={"n": None}) is None


def test_an_unfinished_one_is_a_change(folder: Path) -> None:
    unfinished = dataclasses.replace(stamp(folder), complete=False)
    assert unfinished.changed() == Change("complete", "it", "was not completed")


@pytest.mark.parametrize(
    ("alter", "name", "what"),
    [
        (lambda f: (f / "a").unlink(), "a", "is gone"),
        (lambda f: (f / "a").write_text("longer"), "a", "was changed"),
        (lambda f: os.utime(f / "sub" / "c", ns=(0, 0)), "sub/c", "was changed"),
    ],
)
def test_changed_files(folder: Path, alter, name: str, what: str) -> None:
    made = stamp(folder)
    alter(folder)
    change = made.changed(files={RESULT: marks(folder, made.files[RESULT])})
    assert change == Change("files", name, what, RESULT)
    assert str(change) == f"{name} {what}"


def test_all_files_of_a_folder_find_a_new_one(folder: Path) -> None:
    before = Stamp("tool", files={"source": marks_of_all(folder)})
    assert before.files["source"].keys() == {"a", "b"}
    assert before.changed(files={"source": marks_of_all(folder)}) is None
    (folder / "new").touch()
    change = before.changed(files={"source": marks_of_all(folder)})
    assert change == Change("files", "new", "is new", "source")
    assert marks_of_all(folder / "a").keys() == {"a"}
    assert marks_of_all(folder / "none") == {}


WRONG = [
    *({**GOOD, key: value} for key in GOOD for value in (None, 0, 1.5, "x", [], [1], {"x": 1})
      if GOOD[key] != value and not (key in ("inputs", "versions", "made") and value == {"x": 1})),
    *({k: v for k, v in GOOD.items() if k != key} for key in GOOD),
    *({**GOOD, "files": {"result": files}} for files in (
        None, [], 3, {"a": None}, {"a": []}, {"a": [1]}, {"a": [1, 2, 3]}, {"a": [1, "2"]},
        {"a": [1, 2.5]}, {"a": [True, 2]}, {"a": {"size": 1}})),
    [], None, 7, "text", [GOOD],
]  # fmt: skip


@pytest.mark.parametrize("data", WRONG, ids=lambda data: json.dumps(data)[:60])
def test_what_has_another_form_is_no_record(tmp_path: Path, data: object) -> None:
    path = tmp_path / "stamp"
    path.write_text(json.dumps(data))
    assert Stamp.read(path, "tool") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"\0" * 100, b"[" * 100_000, b'{"a":' * 50_000]
)
def test_what_is_no_json_is_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stamp"
    path.write_bytes(content)
    assert Stamp.read(path, "tool") is None


def test_what_is_no_file_is_no_record(tmp_path: Path) -> None:
    assert Stamp.read(tmp_path, "tool") is None
    (tmp_path / "file").touch()
    assert Stamp.read(tmp_path / "file" / "below", "tool") is None
    (tmp_path / "loop").symlink_to("loop")
    assert Stamp.read(tmp_path / "loop", "tool") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional={key: JSON | st.just(GOOD[key]) for key in GOOD}))
def test_any_json_is_a_record_or_none(data: dict) -> None:
    found = Stamp.load(data, "tool")
    if found is not None:
        found.changed(inputs={"n": 1}, versions={"step": "1"}, files={RESULT: {"a": [1, 2]}})
