"""Nothing that logs or documents say moves the cursor of who reads them."""

from __future__ import annotations

import io
import json
import subprocess

import pytest

from runbook.cli import terminal
from tests.runbook.helpers import write_book

CASES = {
    "\033[2J\033[H": r"\x1b[2J\x1b[H",
    "a\033]0;title\007b": r"a\x1b]0;title\x07b",
    "\x9b31m": r"\x9b31m",
    "one\rtwo": "one\ntwo",
    "one\r\ntwo": "one\ntwo",
    "a\tb\nc": "a\tb\nc",
    "\u202eexe.txt": r"\u202eexe.txt",
    "\udc80": r"\udc80",
    "\x01": r"\x01",
    "plain é 漢": "plain é 漢",
}


@pytest.mark.parametrize(("text", "shown"), CASES.items())
def test_control_sequences_are_shown_not_obeyed(text, shown):
    assert terminal.rendered(text) == shown
    stream = io.StringIO()
    terminal.say(text, stream)
    assert stream.getvalue() == shown + "\n"


@pytest.mark.parametrize("text", CASES)
def test_json_holds_them_escaped(text):
    shown = terminal.safe_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(shown) == text
    assert "\x9b" not in shown and "\u202e" not in shown and "\033" not in shown


def test_our_colours_are_made_and_cannot_be_forged(monkeypatch):
    monkeypatch.setattr(terminal, "_in_colour", lambda stream: True)
    assert terminal.rendered(terminal.paint("failed", "failed")) == "\033[31mfailed\033[0m"
    assert "\033" not in terminal.rendered("\x0131;failed")


def test_a_log_and_an_error_reach_the_terminal_as_text(cli):
    run = {"run": "printf 'clear \\033[2J end\\n'; exit 3", "creates": "made"}
    cli.book = write_book(cli.home, {"id": "one", "uses": "command", "with": run})
    shown = cli.run("run", code=1)
    assert "\033" not in shown.stdout + shown.stderr
    assert r"\x1b[2J" in shown.stderr
    for arguments in ([], ["--errors"], ["--follow"]):
        shown = subprocess.run(
            cli.argv("logs", "one", *arguments), env=cli.environment, capture_output=True
        )
        assert b"\033" not in shown.stdout
    assert rb"clear \x1b[2J end" in shown.stdout


def test_a_long_cell_stands_below_its_row_where_its_column_is_narrow(monkeypatch):
    path = "/home/user/.local/share/runbook/deepseek-v4-flash"
    rows = [
        [
            "preflight",
            "run",
            "12.3 GB, ~1 min 35.8 s, approval",
            f"{'one reason; ' * 9}{path} last",
        ],
        ["toolkit", "later", "", "decided after an earlier step ran"],
    ]
    monkeypatch.setattr(terminal, "_width", lambda: 80)
    first, *below, later, more = terminal.table(rows).splitlines()
    assert first == "  preflight  run    12.3 GB, ~1 min 35.8 s, approval"
    assert all(line.startswith(" " * 6) and len(line) <= 80 for line in below)
    assert " ".join(map(str.strip, below)) == rows[0][3]
    assert later.startswith("  toolkit    later    ") and more.strip() == "step ran"
    monkeypatch.setattr(terminal, "_width", lambda: 0)
    assert len(terminal.table(rows).splitlines()) == 2
