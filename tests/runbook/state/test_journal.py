"""The journal on disk: its bytes, what must survive a power cut, a disk that refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from runbook.redact import Redactor
from runbook.state import journal
from runbook.state.journal import Journal
from runbook.state.records import is_time

EVENTS = yaml.safe_load((Path(__file__).parent / "events.yaml").read_text())["events"]
DURABLE = {
    "run.started", "run.finished", "step.satisfied", "attempt.started", "attempt.failed",
    "attempt.succeeded", "undo.started", "undo.finished", "undo.failed",
}  # fmt: skip


@pytest.fixture
def heard():
    return []


@pytest.fixture
def events(tmp_path, heard):
    made = Journal(Redactor([]), heard.append)
    made.open(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("kind", EVENTS)
def test_what_tells_of_a_change_of_state_is_on_the_disk_at_once(
    events, tmp_path, monkeypatch, kind
):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    fields = {key: value for key, value in EVENTS[kind].items() if key != "type"}
    events.append(kind, **fields)
    inode = (tmp_path / journal.FILE).stat().st_ino
    assert synced == [inode] * (kind in DURABLE)


def test_an_event_is_a_line_of_json(events, heard, tmp_path):
    events.append("run.started", book="b\n", url="http://u:p@h/")
    data = (tmp_path / "journal.ndjson").read_bytes()
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    assert b": " not in data and b", " not in data, "`read` looks for it as it is written"
    assert json.loads(data) == heard[0]
    assert heard[0] == {
        "seq": 1, "time": heard[0]["time"], "type": "run.started", "book": "b\n",
        "url": "http://***@h/",
    }  # fmt: skip


def test_what_is_known_to_be_secret_is_hidden_in_our_own_words_too(monkeypatch, heard):
    monkeypatch.setenv("A_TOKEN", "step-of-a-kind")
    Journal(Redactor(["A_TOKEN"]), heard.append).append(
        "step.satisfied", True, step="step-of-a-kind"
    )
    assert heard[0]["step"] == "[A_TOKEN]"


def test_a_journal_goes_on_where_it_was(tmp_path, heard):
    for _ in range(2):
        made = Journal(Redactor([]), heard.append)
        made.append("run.started")
        made.open(tmp_path)
        made.append("step.blocked", step="a")
        made.close()
        made.close()
    assert [event["seq"] for event in journal.read(tmp_path)] == [1, 2, 1, 2]
    assert [event["type"] for event in heard] == ["run.started", "step.blocked"] * 2


def test_what_waited_is_written_once(tmp_path, heard):
    made = Journal(Redactor([]), heard.append)
    made.append("run.started")
    made.open(tmp_path)
    made.close()
    made.open(tmp_path)
    made.close()
    assert len(list(journal.read(tmp_path))) == 1


def test_a_disk_that_refuses_is_an_error_once(events, heard, tmp_path, monkeypatch):
    class Full:
        name = "/the/journal"

        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    events._file.close()
    events._file = Full()
    with pytest.raises(OSError) as refused:
        events.append("run.started")
    assert refused.value.filename == "/the/journal"
    events.append("run.finished", exit_code=1)
    assert [event["seq"] for event in heard] == [2], "the listener is told what ends the run"


def test_an_error_that_names_a_file_keeps_it(events):
    class Full:
        name = "/the/journal"

        def write(self, data):
            raise OSError(28, "No space left on device", "/its/own")

        def close(self):
            pass

    events._file.close()
    events._file = Full()
    with pytest.raises(OSError) as refused:
        events.append("run.started")
    assert refused.value.filename == "/its/own"


def test_a_write_that_is_cut_short_goes_on(events, tmp_path):
    written = bytearray()

    class Slow:
        def write(self, data):
            written.extend(data[:5])
            return min(5, len(data))

        def close(self):
            pass

    events._file.close()
    events._file = Slow()
    events.append("step.blocked", step="a", needs=["b"])
    assert json.loads(written)["needs"] == ["b"]


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1.25, "1970-01-01T00:00:01.250Z"),
        (1767323045.0078125, "2026-01-02T03:04:05.007Z"),
        (1767323045.9999, "2026-01-02T03:04:05.999Z"),
    ],
)
def test_the_time_is_utc_to_the_millisecond(monkeypatch, moment, text):
    monkeypatch.setattr("time.time", lambda: moment)
    assert journal.now() == text
    assert is_time(text) and re.fullmatch(r".*\.\d{3}Z", text)


def line(seq, kind="run.finished", **fields):
    event = {"seq": seq, "time": "2026-01-02T03:04:05Z", "type": kind, **fields}
    return json.dumps(event, separators=(",", ":")) + "\n"


@pytest.mark.parametrize(
    ("text", "exit_code"),
    [
        (line(1, exit_code=3), 3),
        ("torn\n" + line(9, exit_code=0), 0),
        (line(1, "step.blocked", step="a") + line(2, exit_code=8), 8),
        (line(1, exit_code=3) + line(2, "step.blocked", step="a"), None),
        (line(1, exit_code=3) + '{"seq":2', 3),
        (line(1, exit_code=3).rstrip("\n"), None),
        (line(1), None),
        ("null\n", None),
        ("", None),
        ("\n", None),
    ],
)
def test_the_end_of_a_run_is_its_last_line(tmp_path, text, exit_code):
    (tmp_path / journal.FILE).write_text(text)
    end = journal.end(tmp_path)
    assert (end["exit_code"] if end is not None else None) == exit_code


def test_a_run_without_a_journal_has_no_end_and_no_events(tmp_path):
    assert journal.end(tmp_path) is None
    assert list(journal.read(tmp_path)) == []


def test_the_end_is_read_from_the_end_alone(tmp_path):
    first = line(1, "attempt.notice", step="a", message="x" * journal.LARGEST_EVENT)
    (tmp_path / journal.FILE).write_text(first + line(2, exit_code=0))
    assert journal.end(tmp_path)["seq"] == 2


def test_of_a_long_journal_the_last_part_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LARGEST", 200)
    (tmp_path / journal.FILE).write_text("".join(line(n, exit_code=0) for n in range(20)))
    found = [event["seq"] for event in journal.read(tmp_path)]
    assert found == [18, 19]


def test_events_since_one(tmp_path):
    text = "no event\n" + "".join(line(n, exit_code=0) for n in (1, 2, 3)) + '{"torn'
    (tmp_path / journal.FILE).write_text(text)
    assert [event["seq"] for event in journal.read(tmp_path, since=2)] == [3]
    assert [event["seq"] for event in journal.read(tmp_path, 1)] == [2, 3]


def test_a_thin_journal_has_no_progress_but_the_last(tmp_path):
    fields = {"step": "a", "done": 1, "unit": "", "message": ""}
    progress = [line(n, "attempt.progress", **fields) for n in range(1, 71)]
    other = [line(71, exit_code=0)]
    (tmp_path / journal.FILE).write_text("".join(progress[:5] + other + progress[5:]))
    assert len(list(journal.read(tmp_path))) == 71
    thin = [event["seq"] for event in journal.read(tmp_path, thin=True)]
    assert thin == [71, *range(7, 71)]
    (tmp_path / journal.FILE).write_text("".join(progress[:3]))
    assert len(list(journal.read(tmp_path, thin=True))) == 3
