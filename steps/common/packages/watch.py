"""Progress of programs that say nothing about theirs, from what they leave in the system."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runbook.protocol import Context

INTERVAL = 0.5  # seconds


@contextmanager
def every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` again and again, in a thread of its own, while the body runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(seconds):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def progress_of(ctx: Context, folder: Path, total: int, message: str) -> Iterator[None]:
    """Report the growth of `folder` towards `total` bytes (0: unknown) while the body runs."""

    def report() -> None:
        done = bytes_in(folder)
        ctx.progress(min(done, total) if total else done, total or None, "bytes", message)

    with every(INTERVAL, report):
        yield
    report()


@contextmanager
def while_writing(report: Callable[[], None], interval: float = 5.0) -> Iterator[None]:
    """Call `report` every `interval` seconds in which a child of this process wrote something."""
    seen = written_by_children()

    def look() -> None:
        nonlocal seen
        now = written_by_children()
        if now != seen:
            seen = now
            report()

    with every(interval, look):
        yield


def bytes_in(folder: Path) -> int:
    """The bytes of all regular files below a folder, which may change meanwhile."""
    total, folders = 0, [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def written_by_children() -> int:
    """Bytes that the living children of this process have written (`wchar` of proc(5))."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            for child in (task / "children").read_text().split():
                for line in Path(f"/proc/{child}/io").read_text().splitlines():
                    name, _, value = line.partition(": ")
                    total += int(value) if name == "wchar" else 0
        except OSError:  # it ended meanwhile
            continue
    return total
