"""What attempts were asked that have begun."""

from __future__ import annotations

import json

import pytest

from runbook.state import records
from runbook.state.begun import Begun

ORIGIN = {"uses": "command", "folder": "/", "inputs": {"a": 1}}


@pytest.fixture
def begun(tmp_path):
    return Begun(tmp_path / "state")


def test_what_is_written_is_read(begun, tmp_path):
    assert begun.folder == tmp_path / "state" / "begun"
    assert begun.steps() == frozenset()
    assert begun.origin("one") is None
    assert begun.read("one") == {"attempt": "", "fingerprint": ""}
    begun.write("one", "r/one.1", "f", ORIGIN)
    begun.write("two.json", "r/two.1", "f", ORIGIN)
    (begun.folder / "three").touch()
    assert begun.steps() == {"one", "two.json"}
    assert begun.read("one") == {"attempt": "r/one.1", "fingerprint": "f"}
    whole = {"attempt": "r/one.1", "fingerprint": "f", **ORIGIN}
    assert begun.origin("one") == whole
    assert json.loads((begun.folder / "one.json").read_text()) == records.sealed(whole)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"attempt": 1}'])
def test_one_that_cannot_be_read_is_of_another(begun, text):
    begun.write("one", "r/one.1", "f", ORIGIN)
    (begun.folder / "one.json").write_text(text)
    assert begun.steps() == {"one"}
    assert begun.read("one") == {"attempt": "1" if "1" in text else "", "fingerprint": ""}
    assert begun.origin("one") is None


def test_it_is_removed_whatever_it_is(begun):
    begun.remove("never there")
    begun.write("one", "r/one.1", "f", ORIGIN)
    begun.remove("one")
    assert begun.steps() == frozenset()
    (begun.folder / "one.json").mkdir()
    begun.remove("one")
    assert begun.steps() == frozenset()
    assert [path.name for path in begun.folder.iterdir()] == ["one.json.damaged.1"]
    (begun.folder / "one.json.damaged.1").rmdir()
    begun.folder.rmdir()
    begun.folder.touch()
    begun.remove("one")
    assert begun.folder.is_file()
    begun.write("one", "r/one.1", "f", ORIGIN)
    assert begun.steps() == {"one"}
