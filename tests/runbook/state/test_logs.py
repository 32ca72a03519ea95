"""Which log is meant, and which of its lines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module

import pytest

from runbook.errors import RunbookError
from runbook.state import logs
from runbook.state.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "w")
    made.create()
    return made


@pytest.fixture
def two_runs(workspace):
    older, newer = workspace.new_run(), workspace.new_run()
    for run, names in (
        (older, ["a.1.log", "a.2.log", "b.1.log", "a+b.1.log"]),
        (newer, ["a.1.log", "a.undo.2.log", "a.10.log", "aa.11.log", "a.12.logs", "xa.13.log"]),
    ):
        for name in names:
            (run / name).write_text(name)
    (newer / "a.14.log").mkdir()
    return older, newer


@pytest.mark.parametrize(
    ("step", "attempt", "run", "name"),
    [
        ("a", None, 1, "a.10.log"),
        ("a", 1, 1, "a.1.log"),
        ("a", 2, 1, "a.undo.2.log"),
        ("aa", None, 1, "aa.11.log"),
        ("b", None, 0, "b.1.log"),
        ("a+b", None, 0, "a+b.1.log"),
    ],
)
def test_the_log_of_the_newest_run_that_has_one(workspace, two_runs, step, attempt, run, name):
    found = logs.find(workspace, step, attempt)
    number = int(name.split(".")[-2])
    assert found == logs.Log(two_runs[run] / name, two_runs[run].name, number)


@pytest.mark.parametrize(
    ("step", "attempt", "message"),
    [
        ("a", 14, "step a has no log of attempt 14"),
        ("c", None, "step c has no log"),
        ("", None, "step  has no log"),
    ],
)
def test_a_log_that_there_is_not(workspace, two_runs, step, attempt, message):
    with pytest.raises(RunbookError) as refused:
        logs.find(workspace, step, attempt)
    error = refused.value
    assert str(error) == message
    assert (error.code, error.exit_code) == ("no_log", 2)
    assert error.cause == "it was not attempted in this workspace"
    (remedy,) = [error.remedy] if not isinstance(error.remedy, tuple) else error.remedy
    assert (remedy.verb, remedy.text) == ("status", "{command} shows what was")


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(None, ["a", "b\ufffd", "c"]), (9, ["a", "b\ufffd", "c"]), (2, ["b\ufffd", "c"]), (0, [])],
)
def test_lines(tmp_path, tail, expected):
    (tmp_path / "log").write_bytes(b"a\nb\xff\nc\n")
    assert logs.lines(tmp_path / "log", tail) == expected


def test_of_a_long_log_its_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "LARGEST", 4)
    (tmp_path / "log").write_text("first\nlast\n")
    assert logs.lines(tmp_path / "log") == ["ast"]
    assert logs.lines(tmp_path / "none") == []


@dataclass
class Known:
    line: str


NUMBERS = [f"line {n}" for n in range(40)]


def changed(**lines):
    """Forty lines, some of them others."""
    return "\n".join(lines.get(f"n{n}", text) for n, text in enumerate(NUMBERS)) + "\n"


@pytest.mark.parametrize(
    ("text", "known", "excerpt", "expected"),
    [
        (changed(), None, (), NUMBERS[30:]),
        ("only\n", None, (), ["only"]),
        ("", None, (), []),
        (changed(n20="an Error here"), None, (),
         [*NUMBERS[17:20], "an Error here", *NUMBERS[21:24]]),
        (changed(n1="it FAILED"), None, (), ["line 0", "it FAILED", *NUMBERS[2:5]]),
        (changed(n39="fatal"), None, (), [*NUMBERS[36:39], "fatal"]),
        (changed(n5="error", n30="error"), None, (),
         [*NUMBERS[2:5], "error", *NUMBERS[6:9], "--", *NUMBERS[27:30], "error", *NUMBERS[31:34]]),
        (changed(n5="error", n12="error"), None, (),
         [*NUMBERS[2:5], "error", *NUMBERS[6:12], "error", *NUMBERS[13:16]]),
        (changed(n5="terrors"), None, (), NUMBERS[30:]),
        (changed(n5="(Api pid=1) WARNING 11-27 [a.py:1] may end in an error"), None, (),
         NUMBERS[30:]),
        (changed(n5="[a]: INFO error", n6="DEBUG failed", n7="WARN: killed"), None, (),
         NUMBERS[30:]),
        (changed(n5="error"), None, range(9, 12), NUMBERS[9:12]),
        (changed(n5="shown", n6="so"), "shown\nso", (),
         [*NUMBERS[2:5], "shown", "so", *NUMBERS[7:10]]),
        (changed(n5="shown"), "shown", range(20, 22),
         [*NUMBERS[2:5], "shown", *NUMBERS[6:9], "--", *NUMBERS[20:22]]),
    ],
)  # fmt: skip
def test_the_lines_that_show_an_error(tmp_path, monkeypatch, text, known, excerpt, expected):
    (tmp_path / "log").write_text(text)
    asked = []
    monkeypatch.setattr(
        logs, "_hook", lambda name: lambda given: asked.append((name, given)) or excerpt
    )
    assert logs.errors(tmp_path / "log", Known(known) if known else None) == expected
    assert asked == [("EXCERPT", text)]


def test_what_is_no_utf8_is_looked_at_too(tmp_path):
    (tmp_path / "log").write_bytes(b"\xff error\n")
    assert logs.errors(tmp_path / "log", None) == ["\ufffd error"]
    assert logs.diagnose("serve", tmp_path / "log", {}) is None


def test_a_known_failure_is_asked_of_the_steps(tmp_path, monkeypatch):
    (tmp_path / "log").write_bytes(b"what \xff\n")
    asked = []

    def hook(name):
        return lambda *given: asked.append((name, *given)) or "known"

    monkeypatch.setattr(logs, "_hook", hook)
    assert logs.diagnose("serve", tmp_path / "log", {"cpu": 1}) == "known"
    text = "what \ufffd\n"
    assert asked == [("ROOT", text), ("DIAGNOSE", "serve", text, {"cpu": 1})]


@pytest.mark.parametrize(("root", "error"), [(None, ""), ("so it was", "so it was"), (7, "7")])
def test_what_the_words_of_a_program_tell(monkeypatch, root, error):
    asked = []

    def hook(name):
        answer = {"ROOT": root, "DIAGNOSE": "known"}[name]
        return lambda *given: asked.append((name, *given)) or answer

    monkeypatch.setattr(logs, "_hook", hook)
    assert logs.told("serve", "words", {"cpu": 1}) == ("known", error)
    assert asked == [("ROOT", "words"), ("DIAGNOSE", "serve", "words", {"cpu": 1})]


def test_how_a_service_ended_is_asked_of_the_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(
        logs, "_hook", lambda name: lambda *given: asked.append((name, *given)) or {"code": "c"}
    )
    assert logs.ended("serve", {"log": "/l"}) == {"code": "c"}
    assert asked == [("ENDED", "serve", {"log": "/l"})]


def test_a_hook_is_a_function_of_the_steps():
    from runbook import steps

    for name in ("DIAGNOSE", "EXCERPT"):
        module, _, function = getattr(steps, name).partition(":")
        assert logs._hook(name) is getattr(import_module(module), function)


def test_a_log_is_followed_to_the_end_of_the_run(workspace, tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("before\n")
    lock = workspace.acquire()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        with path.open("a") as log:
            log.write(["one more\ntw", "o\nthree", "\n" + "x" * 70_000, ""][len(slept) - 1])
        if len(slept) == 4:
            os.close(lock)

    monkeypatch.setattr("time.sleep", sleep)
    assert list(logs.follow(path, workspace)) == ["one more", "two", "three", "x" * 70_000]
    assert slept == [0.2] * 4


def test_a_very_long_line_is_followed_in_pieces(workspace, tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(b"")
    lock = workspace.acquire()

    def sleep(seconds):
        path.write_bytes(b"x" * (2 * logs.CHUNK + 5) + b"\xff\nend")
        os.close(lock)

    monkeypatch.setattr("time.sleep", sleep)
    found = list(logs.follow(path, workspace))
    assert found == ["x" * logs.CHUNK, "x" * logs.CHUNK, "x" * 5 + "\ufffd", "end"]
