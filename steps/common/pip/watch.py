"""Progress of programs that say nothing about theirs, from the bytes they leave on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runbook.protocol import Context

INTERVAL = 0.5  # seconds


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


@contextmanager
def progress_of(ctx: Context, folder: Path, total: int, message: str) -> Iterator[None]:
    """Report the growth of `folder` towards `total` bytes (0: unknown) while the body runs."""
    ended = threading.Event()

    def report() -> None:
        done = bytes_in(folder)
        ctx.progress(min(done, total) if total else done, total or None, "bytes", message)

    def watch() -> None:
        while not ended.wait(INTERVAL):
            report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    report()
