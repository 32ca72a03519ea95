"""Output of any size and form goes into the log whole, in bounded memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc

import pytest

from runbook.execution import worker
from runbook.planning.context import LONGEST_CAUSE, LONGEST_LINE, console
from runbook.protocol import StepFailure
from tests.runbook.helpers import write_book

HUGE = 200_000_000
SAYS = r"""
from pathlib import Path

from pydantic import BaseModel

from runbook.protocol import Check, Reason


class Says:
    version = "1"

    class Inputs(BaseModel):
        pass

    class Outputs(BaseModel):
        pass

    def check(self, ctx):
        print("na\u00efve check")
        made = Path(ctx.workspace, "two").exists()
        return Check(ok=made, reasons=[] if made else [Reason("missing", "not there")])

    def apply(self, ctx):
        print("na\u00efve \udcff")
        Path(ctx.workspace, "two").write_text("")
"""


class Count(io.StringIO):
    """Counts what it is given and keeps its last lines."""

    def __init__(self):
        super().__init__()
        self.given = 0
        self.last = ""

    def write(self, text):
        self.given += len(text)
        self.last = (self.last + text)[-200:]
        return len(text)


def run(tmp_path, code, **more):
    out = Count()
    context = console("one", tmp_path, {}, out=out)
    lines = []
    context.run([sys.executable, "-c", code], on_line=lines.append, **more)
    return out, lines


@pytest.mark.parametrize(
    ("code", "given", "lengths"),
    [
        ("print('x' * 3)", 4, [3]),
        ("print('x' * 65536)", 65537, [65536]),
        ("print('x' * 200_000); print('y')", 200_003, [LONGEST_LINE, 1]),
        ("import sys; sys.stdout.write('x' * 200_000)", 200_001, [LONGEST_LINE]),
        ("print('a\\rb\\r\\nc')", 6, [1, 1, 1]),
        ("import os; os.write(1, b'\\xff\\xfe\\n')", 3, [2]),
        ("print('\\n' * 9)", 10, [0] * 10),
        ("pass", 0, []),
    ],
)
def test_lines_of_every_length(tmp_path, code, given, lengths):
    out, lines = run(tmp_path, code)
    assert [len(line) for line in lines] == lengths
    assert out.given - len(f"$ {sys.executable} -c {code}\n") == given
    assert out.last.endswith("\n")


def test_a_line_without_end_needs_no_memory(tmp_path):
    code = "import sys\nfor _ in range(40): sys.stdout.write('x' * 1_000_000)"
    tracemalloc.start()
    try:
        out, lines = run(tmp_path, code)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert out.given > 40_000_000
    assert len(lines) == 1
    assert peak < 4_000_000


def test_the_cause_of_a_failure_is_bounded(tmp_path):
    with pytest.raises(StepFailure) as caught:
        run(tmp_path, "print('x' * 1_000_000); raise SystemExit(3)")
    assert caught.value.cause == "x" * LONGEST_CAUSE


@pytest.mark.parametrize(
    ("message", "most"),
    [
        ({"type": "notice", "message": "x" * 10**7}, worker.LONGEST_TEXT),
        ({"type": "failure", "message": "m", "cause": "x" * 10**7}, worker.LONGEST_CAUSE),
        ({"type": "progress", "items": [{"name": "x" * 10**6, "done": 1}] * 999}, 300_000),
    ],
)
def test_what_is_told_is_bounded(message, most):
    assert len(json.dumps(worker._bounded(message))) < most + 1000


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
               {"PYTHONIOENCODING": "latin-1"}, {}],
)  # fmt: skip
def test_what_is_printed_reaches_the_log_in_any_locale(cli, locale):
    odd = cli.home / "odd.py"
    odd.write_text(SAYS)
    steps = [{"id": "one", "uses": "command", "with": {"run": "printf 'caf\\303\\251 \\377\\n'"}},
             {"id": "two", "uses": f"{odd}:Says"}]  # fmt: skip
    cli.book = write_book(cli.home, *steps)
    cli.environment |= locale
    cli.json("run")
    logs = cli.workspace / ".runbook" / "latest"
    assert "café" in (logs / "one.1.log").read_bytes().decode(errors="replace")
    assert "naïve" in (logs / "two.1.log").read_text("utf-8")


def test_a_huge_line_passes_through_all_processes_in_bounded_memory(cli):
    run = f"head -c {HUGE} /dev/zero | tr '\\0' x; echo; echo done > one"
    cli.book = write_book(
        cli.home, {"id": "one", "uses": "command", "with": {"run": run, "creates": "one"}}
    )
    # By way of a small process: what is started begins with the largest size of what starts it.
    code = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    between = subprocess.run(
        [sys.executable, "-c", code, *cli.argv("run", "--json")],
        env=cli.environment,
        cwd=cli.home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert between.returncode == 0, between.stderr[-2000:]
    (log,) = (cli.workspace / ".runbook" / "latest").glob("one.1.log")
    assert log.stat().st_size > HUGE
    log.unlink()
    assert int(between.stdout) < 140_000, "kB, of the program and all that it started"


def test_notices_without_end_are_lines_of_the_log(cli, monkeypatch):
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "notices without end"}})
    cli.json("run")
    events = cli.events("attempt.notice")
    assert len(events) == worker.MOST_NOTICES
    assert all(len(event["message"]) <= worker.LONGEST_TEXT for event in events)
    assert len(cli.json("logs", "one", "--tail", "9999")["lines"]) >= 1500
