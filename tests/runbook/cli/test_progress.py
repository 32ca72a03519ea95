"""What a terminal shows while steps run."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest

from runbook.cli import human
from runbook.cli.live import ITEMS, Live, clock, rate
from tests.runbook.helpers import write_book


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    shown = Live(8)
    shown._progress._out.width = 120
    yield shown
    shown.close()


def lines(live: Live) -> list[str]:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(live._progress.get_renderable())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def message(done: float, total: float | None, items: dict[str, int] | None = None, **more) -> dict:
    listed = [{"name": n, "done": d, "total": 100} for n, d in (items or {}).items()]
    return {"done": done, "total": total, "unit": "bytes", "message": "", "items": listed, **more}


def test_items_follow_their_attempt_and_come_and_go(live):
    live.begin("weights")
    live.begin("build")
    live.progress("weights", message(3e9, 6e9, {"one": 10, "two": 20}, message="1.0 MB/s"))
    live.progress("build", message(1, 4, unit="objects"))
    first, one, two, build = lines(live)
    assert "weights" in first and first.endswith("3 GB of 6 GB (50 %), 1.0 MB/s")
    assert one.endswith("one 10 %") and two.endswith("two 20 %")
    assert "build" in build and build.endswith("1 of 4 objects (25 %)")
    live.progress("weights", message(4e9, 6e9, {"two": 60, "three": 0}))
    _, two, three, build = lines(live)
    assert two.endswith("two 60 %") and three.endswith("three 0 %") and "build" in build
    live.end("weights")
    (build,) = lines(live)
    assert "build" in build
    live.progress("weights", message(5e9, 6e9, {"two": 80}))  # late: its attempt has ended
    assert len(lines(live)) == 1


def test_a_terminal_is_not_flooded_with_items(live):
    live.begin("weights")
    live.progress("weights", message(1, 2, {str(n): n for n in range(3 * ITEMS)}))
    assert len(lines(live)) == 1 + ITEMS


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (message(0, None, unit="", message="waiting for the server"), "waiting for the server"),
        (message(3, None, unit="objects", message="compile"), "3 objects, compile"),
        (message(1e9, 4e9, {"a": 7, "b": 8}), "1 GB of 4 GB (25 %), a 7 % and 1 more"),
        (message(1e9, 4e9, {"a": 7}, message="9 B/s"), "1 GB of 4 GB (25 %), 9 B/s, a 7 %"),
    ],
)
def test_progress_in_words(told, text):
    assert human.progress(told) == text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_line_a_step_never_wraps(live, tmp_path, width):
    """Bar, time, what is left, amount and rate stand before the log's last line, which is cut."""
    live._progress._out.width = width
    log = tmp_path / "log"
    log.write_bytes(b"first\n\x1b[31mcompiling\rlinks " + b"x" * 200 + b" \x1b[0m\n\n")
    live.begin("build", str(log))
    live.progress("build", message(1, 4, unit="objects"))
    (row,) = live._progress.get_renderables()
    assert row.cell_len <= width - 1
    assert re.match(r"\S build +━━━─+ 00:00 --+:", row.plain)
    if width > 80:
        assert "1 of 4 objects (25 %)  links xxx" in row.plain
        assert "dim" in str(row.spans[-1].style)
    with log.open("a") as file:
        file.write("next\n")
    (row,) = live._progress.get_renderables()
    assert width == 40 or "next" in row.plain


def test_a_terminal_that_became_narrower_has_more_lines_to_remove(live, tmp_path):
    log = tmp_path / "log"
    log.write_text("x" * 200)
    live.begin("build", str(log))
    live.begin("weights")
    shown = live._progress
    list(shown.get_renderables())
    shown._out.width = 50
    shown.resized()
    assert shown.live._live_render._shape == (50, 3 + 1), "the long one stands in three rows now"
    shown._out.width = 200
    shown.resized()
    assert shown.live._live_render._shape == (50, 4), "nothing wraps where there is more room"


@pytest.mark.parametrize(
    ("speed", "unit", "text"),
    [
        (None, "bytes", ""),
        (5e6, "bytes", "5 MB/s"),
        (2.5, "objects", "2.5 objects/s"),
        (0.05, "shards", "3.0 shards/min"),
        (1.0, "seconds", ""),
    ],
)
def test_how_fast(speed, unit, text):
    assert rate(speed, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "--:--"), (9.9, "00:09"), (5999, "99:59"), (7200, "  2 h")]
)
def test_clock_has_five_columns(seconds, text):
    assert clock(seconds) == text and len(text) == 5


def test_no_bar_is_left_behind_after_an_interrupt(cli):
    """On a real terminal, resized while a step works."""
    cli.book = write_book(cli.home, {"id": "one", "with": {"seconds": 60}})
    outer, inner = pty.openpty()

    def resize(columns):
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    resize(120)
    environment = {**cli.environment, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        cli.argv("run"), env=environment, cwd=cli.home, stdin=inner, stdout=inner, stderr=inner
    )
    said = b""
    while b"seconds (" not in said:
        said += os.read(outer, 65536)
    resize(80)
    drawn = len(said)
    while said.count(b"seconds (", drawn) < 5:
        said += os.read(outer, 65536)
    process.send_signal(signal.SIGINT)
    os.close(inner)
    try:
        while block := os.read(outer, 65536):
            said += block
    except OSError:  # its other end is closed
        pass
    os.close(outer)
    assert process.wait(60) == 130
    ending = said[said.rindex(b"\x1b[2K") :].decode()
    assert "\u2500" not in ending and "cancelled" in said.decode()
    assert b"\x1b[?25h" in said[drawn:], "the cursor is shown again"


def test_piped_there_is_none(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"seconds": 0.2}})
    assert not re.search("[\x1b\u2500\u2501]", cli.run("run").stdout)
