"""The lines of servers' logs, and the error among them; most recorded from vLLM 0.32.0."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbook.steps.common.server_log import Tail, root_cause, split

LOGS = Path(__file__).parents[1] / "serve" / "logs"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("(EngineCore pid=812) ERROR 11-23 18:01:02 [core.py:1510] boom", "boom"),
        ("(Worker_TP1 pid=9) INFO 11-23 18:01:02 [a.py:1] x: y", "x: y"),
        (
            "(EngineCore_DP0 pid=9) Traceback (most recent call last):",
            "Traceback (most recent call last):",
        ),
        ("\x1b[0;36m(APIServer pid=1)\x1b[0;0m INFO 11-23 18:01:02 [a.py:1] up", "up"),
        ("WARNING 05-20 10:00:40 [a.py:746] older form", "older form"),
        (
            '(EngineCore pid=8) ERROR 11-23 18:01:02 [core.py:1510]   File "x", line 1',
            '  File "x", line 1',
        ),
        ("INFO:     Application startup complete.", "INFO:     Application startup complete."),
        ("plain", "plain"),
    ],
)
def test_split(line, text):
    assert split(line)[1] == text


@pytest.mark.parametrize(
    ("log", "start"),
    [
        ("mtp_weights_missing", "ValueError: MTP speculative decoding layer 3 weights missing"),
        ("kv_cache_too_small", "ValueError: To serve at least one request with the model's max"),
        ("numa_nodes", "AssertionError: Not enough allowed NUMA nodes to bind threads of 2 local"),
        ("cpu_without_bf16", "AttributeError: '_OpNamespace' '_C' object has no attribute"),
        ("bad_flag", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_root_cause_of_recorded_failures(log, start):
    cause = root_cause((LOGS / f"{log}.log").read_text())
    assert cause is not None
    assert cause.startswith(start)


def test_the_process_of_a_line():
    assert split("(Worker_TP1 pid=9) INFO 11-23 18:01:02 [a.py:1] x")[0] == "Worker_TP1"
    assert split("x")[0] == ""


def test_root_cause_without_any():
    assert root_cause((LOGS / "ready.log").read_text()) is None
    assert root_cause("") is None


def test_root_cause_takes_an_error_over_several_lines_whole():
    text = (
        "(APIServer pid=1) Traceback (most recent call last):\n"
        '(APIServer pid=1)   File "x.py", line 1, in <module>\n'
        "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for "
        "ModelConfig\n"
        "(APIServer pid=1)   Value error, the tokenizer is missing\n"
        "INFO:     Shutting down\n"
    )
    assert root_cause(text) == (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
        "Value error, the tokenizer is missing"
    )


def test_root_cause_keeps_interleaved_processes_apart():
    text = (
        "(Worker_TP0 pid=1) Traceback (most recent call last):\n"
        "(Worker_TP1 pid=2) INFO 05-20 10:00:05 [x.py:1] ValueError: only told in passing\n"
        "(Worker_TP0 pid=1) RuntimeError: the cause\n"
        "(EngineCore pid=3) Traceback (most recent call last):\n"
        "(EngineCore pid=3) Exception: WorkerProc initialization failed due to an exception in a "
        "background process. See stack trace for root cause.\n"
        "(APIServer pid=4) Traceback (most recent call last):\n"
        "(APIServer pid=4) RuntimeError: Engine core initialization failed. See root cause above. "
        "Failed core proc(s): {}\n"
    )
    assert root_cause(text) == "RuntimeError: the cause"


class TestTail:
    def test_only_whole_lines_each_once(self, tmp_path):
        log = tmp_path / "log"
        tail = Tail(log)
        assert list(tail.lines()) == []
        with log.open("wb") as file:
            file.write(b"one\ntw")
            file.flush()
            assert list(tail.lines()) == ["one"]
            file.write("o\n\nthrée\n".encode()[:-3])
            file.flush()
            assert list(tail.lines()) == ["two"]
            file.write("thrée\n".encode()[-3:])
            file.flush()
            assert list(tail.lines()) == ["thrée"]
        assert list(tail.lines()) == []

    def test_bars_that_overwrite_themselves(self, tmp_path):
        log = tmp_path / "log"
        log.write_bytes(b"a:  0%\ra: 50%\ra: 100%\r\nb\n")
        assert list(Tail(log).lines()) == ["a:  0%", "a: 50%", "a: 100%", "b"]

    def test_bytes_that_are_no_text(self, tmp_path):
        log = tmp_path / "log"
        log.write_bytes(b"\xff\xfe ok\n")
        assert list(Tail(log).lines()) == ["\ufffd\ufffd ok"]
