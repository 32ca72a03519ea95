"""What a terminal shows while steps run."""

from __future__ import annotations

import io
import sys

import pytest

from runbook.cli import human
from runbook.cli.progress import ITEMS, Live


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    shown = Live(8)
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
