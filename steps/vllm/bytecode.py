"""Byte-compile an environment's packages, run with that environment's own Python:

    python -I bytecode.py SITE_PACKAGES PARENT_PID

Prints `[done/total]` as it goes. Files compiled before are skipped and each is written by a rename,
so a killed run goes on where it stopped. Files that are not of this Python's grammar are left out,
as installers do. PYTHONDONTWRITEBYTECODE has no effect on it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from compileall import compile_file
from concurrent.futures import ProcessPoolExecutor

CHUNK = 100


def sources(root: str) -> list[str]:
    found = []
    for folder, folders, names in os.walk(root):
        # One file in nine is a test of some package; nothing imports those.
        folders[:] = [name for name in folders if name != "tests"]
        found += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def die_with(parent: int) -> None:
    """Let the kernel end this process with its parent (PR_SET_PDEATHSIG, see prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def compile_chunk(paths: list[str]) -> int:
    for path in paths:
        compile_file(path, quiet=2)
    return len(paths)


def main(root: str, parent: int) -> None:
    die_with(parent)
    paths = sources(root)
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    done = 0
    with ProcessPoolExecutor(initializer=die_with, initargs=(os.getpid(),)) as pool:
        for count in pool.map(compile_chunk, chunks):
            done += count
            print(f"[{done}/{len(paths)}]", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
