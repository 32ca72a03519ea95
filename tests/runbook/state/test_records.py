"""What a record must be to be believed: each event and record of the table, and each with a part
that is missing or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from runbook.state import records
from runbook.state.records import is_event, is_time

TABLE = yaml.safe_load((Path(__file__).parent / "events.yaml").read_text())
TIME = "2026-01-02T03:04:05.678Z"
EVENTS = {name: {"seq": 1, "time": TIME, **event} for name, event in TABLE["events"].items()}


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_of_each_type_is_one(name):
    event = EVENTS[name]
    assert is_event(event)
    for key in ("seq", "time", "type", *TABLE["needs"].get(event["type"], ())):
        assert not is_event({k: v for k, v in event.items() if k != key}), key
        assert not is_event({**event, key: [event[key]]}), key
    for key in set(event) - {"seq", "time", "type", *TABLE["needs"].get(event["type"], ())}:
        assert is_event({k: v for k, v in event.items() if k != key}), key


@pytest.mark.parametrize("row", TABLE["fields"], ids=json.dumps)
def test_a_field_that_is_there_must_be_right(row):
    (key, value), good = next(iter(row["field"].items())), row["good"]
    assert is_event({"seq": 1, "time": TIME, "type": "of a later version", key: value}) is good


@pytest.mark.parametrize("event", [None, [], "run.started", {}, {"seq": True}])
def test_what_is_no_event(event):
    assert not is_event(event)


@pytest.mark.parametrize("seq", [1.0, "1", True, None])
def test_an_event_has_a_whole_number(seq):
    assert not is_event({"seq": seq, "time": TIME, "type": "run.started"})


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (TIME, True),
        ("2026-01-02T03:04:05Z", True),
        ("2024-02-29T23:59:59.1Z", True),
        ("2026-02-29T00:00:00Z", False),
        ("2026-04-30T00:00:00Z", True),
        ("2026-04-31T00:00:00Z", False),
        ("2026-01-00T00:00:00Z", False),
        ("2026-01-01T24:00:00Z", False),
        ("2026-01-28T24:00:00Z", False),
        ("2026-01-01T29:00:00Z", False),
        ("2026-13-01T00:00:00Z", False),
        ("0026-01-01T00:00:00Z", False),
        ("2026-01-02T03:04:05.678", False),
        ("2026-01-02 03:04:05Z", False),
        ("x" + TIME, False),
        (TIME + "x", False),
        ("", False),
    ],
)
def test_a_time(text, good):
    assert is_time(text) is good


CHECKPOINT = {
    "schema": "runbook/1", "step": "one", "time": TIME, "run": "r", "attempt": 1, "seconds": 0.5,
    "package": "1", "fingerprint": {}, "uses": "command", "folder": "/", "inputs": {"é": 1},
    "outputs": {}, "outputs_digest": "d",
}  # fmt: skip
BEGUN = {"attempt": "r/one.1", "fingerprint": "f", "uses": "u", "folder": "/", "inputs": {}}
OWNER = {"name": "n", "source": "/b.yaml"}
KINDS = {
    "checkpoint": (CHECKPOINT, lambda record: records.checkpoint(record, "one")),
    "begun": (BEGUN, records.begun),
    "owner": (OWNER, records.owner),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_is_whole_comes_back_without_its_digest(kind):
    record, read = KINDS[kind]
    assert read(records.sealed(record)) == record
    assert read(record) is None, "not sealed"
    assert read({**records.sealed(record), "more": 1}) is None, "changed since"
    assert read(None) is read([record]) is None
    for key in record:
        without = {k: v for k, v in record.items() if k != key}
        assert read(records.sealed(without)) is None, key
        assert read(records.sealed({**record, key: None})) is None, key


def test_a_checkpoint_is_of_its_step():
    assert records.checkpoint(records.sealed(CHECKPOINT), "two") is None
    whole = records.sealed({**CHECKPOINT, "seconds": 1})
    assert records.checkpoint(whole, "one") == {**CHECKPOINT, "seconds": 1}


def test_a_record_too_deep_to_be_ours_is_none():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert records.owner({**OWNER, "deep": deep, "digest": ""}) is None


def test_a_digest_is_of_the_value_not_of_its_form():
    # printf '{"a":[1,"\\u00e9"],"b":null}' | sha256sum
    known = "e6ad993c7a569e941cdd65aa57c817cb74d20d9877b15dfc8cc0ac151c74785d"
    assert records.digest({"b": None, "a": [1, "é"]}) == known
