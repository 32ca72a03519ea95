"""Checkpoints and their index."""

from __future__ import annotations

import json
import os

import pytest

from runbook.files import read_sealed, write_sealed
from runbook.redact import Redactor
from runbook.state import checkpoints, records
from runbook.state.checkpoints import Checkpoints
from tests.runbook.state.test_state import record

NOTHING = Redactor([])


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MANY_STEPS", 2)
    made = Checkpoints(tmp_path)
    assert made.steps() == [] and made.folder == tmp_path / "checkpoints"
    made.folder.mkdir()
    return made


def test_a_record_is_sealed_and_without_secrets(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_MINE", "hf_abcdefghij")
    made.write("a", record(outputs={"said": "hf_abcdefghij"}), Redactor(["TOKEN_OF_MINE"]))
    written = json.loads((made.folder / "a.json").read_text())
    digest = written.pop("digest")
    assert written == {
        "schema": "runbook/1", "step": "a", **record(outputs={"said": "[TOKEN_OF_MINE]"}),
    }  # fmt: skip
    assert digest == records.digest(written)
    assert made.read("a") == written
    assert made.read("b") is None


def test_the_steps_that_have_one(made):
    for name in ("b", "a", "c.json"):
        made.write(name, record(), NOTHING)
    (made.folder / ".a.json.12.tmp").touch()
    (made.folder / ".hidden.json").touch()
    (made.folder / "a.json.damaged.1").touch()
    assert made.steps() == ["a", "b", "c.json"]


def test_one_is_removed_whatever_it_is(made, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoints, "sync_folder", synced.append)
    made.remove("never there")
    made.write("a", record(), NOTHING)
    made.remove("a")
    assert made.steps() == []
    (made.folder / "a.json").mkdir()
    made.remove("a")
    assert made.steps() == []
    assert [path.name for path in made.folder.iterdir()] == ["a.json.damaged.1"]
    assert synced == [made.folder] * 3


def indexed(made, tmp_path, steps=2):
    again = Checkpoints(tmp_path)
    again.read_index(steps)
    return again._index is not None


def test_of_few_steps_there_is_no_index(made, tmp_path):
    made.write("a", record(), NOTHING)
    made.write_index(["a"])
    assert not (tmp_path / "checkpoints.index.json").exists()
    made.write_index(["a", "b"])
    assert (tmp_path / "checkpoints.index.json").exists()
    assert not indexed(made, tmp_path, 1) and indexed(made, tmp_path, 2)


def test_the_index_is_written_once(made, tmp_path, monkeypatch):
    made.write("a", record(), NOTHING)
    made.write_index(["a", "b"])
    made.read_index(2)
    written = []
    monkeypatch.setattr(checkpoints, "write_sealed", lambda *given: written.append(given))
    made.write_index(["a", "b"])
    assert written == []
    made.write("b", record(), NOTHING)
    made.write_index(["a", "b"])
    assert len(written) == 1
    made.read_index(2)
    made.remove("b")
    made.write_index(["a", "b"])
    assert len(written) == 2


def test_what_the_index_holds(made, tmp_path):
    shared = {"fingerprint": {"with": {"n": 1}}, "inputs": {"n": 1}}
    made.write("a", record(**shared), NOTHING)
    made.write("b", record(fingerprint={"with": {"n": 2}}, inputs={"n": 3}), NOTHING)
    made.write_index(["a", "b", "c"])
    index = read_sealed(tmp_path / "checkpoints.index.json")
    assert index["folder"] == os.stat(made.folder).st_mtime_ns
    assert index["records"] == {
        "a": {"step": "a", "fingerprint": {"with": {"n": 1}}},
        "b": {"step": "b", "fingerprint": {"with": {"n": 2}}, "inputs": {"n": 3}},
    }
    one = {"schema": "runbook/1", **record()}
    assert index["common"] == {k: v for k, v in one.items() if k not in shared}
    again = Checkpoints(tmp_path)
    again.read_index(2)
    (made.folder / "a.json").write_text("")
    assert again.read("a") == {"schema": "runbook/1", "step": "a", **record(**shared)}
    assert again.read("c") is None


def test_an_index_of_no_record(made, tmp_path):
    made.write_index(["a", "b"])
    assert read_sealed(tmp_path / "checkpoints.index.json")["records"] == {}
    assert indexed(made, tmp_path)


@pytest.mark.parametrize("value", [None, [], {}, {"folder": 1, "records": {}, "common": {}}])
def test_an_index_that_is_not_of_now_is_none(made, tmp_path, value):
    write_sealed(tmp_path / "checkpoints.index.json", value)
    assert not indexed(made, tmp_path)


def test_without_a_folder_there_is_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MANY_STEPS", 1)
    made = Checkpoints(tmp_path)
    made.write_index(["a"])
    assert read_sealed(tmp_path / "checkpoints.index.json")["folder"] is None
