"""The `runbook` program: from arguments to exit code, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from typing import Any

CANNOT_SAY = 3
"""The exit code (precondition not met) if all went well but for the answer, which found no room."""


class Output(io.FileIO):
    """Standard output or error. A device that refuses (a full disk) ends no work: what is written
    from then on goes nowhere, and `refusal` says why. A reader that has gone is told of, for it is
    a reason to end, unless `deaf`."""

    def __init__(self, descriptor: int, deaf: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.deaf = deaf
        self.refusal = ""
        self.unread = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            self.unread = self.unread or error.errno == errno.EPIPE
            if error.errno in (errno.EAGAIN, errno.EPIPE) and not self.deaf:
                raise
            self.refusal = self.refusal or error.strerror or str(error)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def stream(output: Output) -> io.TextIOWrapper:
    """Text for a terminal in its encoding, else in UTF-8; what cannot be encoded is escaped, as
    JSON has it."""
    terminal = output.isatty()
    encoding = None if terminal else "utf-8"
    buffered = io.BufferedWriter(output)
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=terminal)


def open_standard_streams() -> tuple[Output, Output]:
    """Give each of the three descriptors a file, so that no other file, such as the lock, becomes
    one of them, and the two for output streams that can be refused."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
    out, err = Output(1, deaf=False), Output(2, deaf=True)
    sys.stdout, sys.stderr = stream(out), stream(err)
    sys.stderr.reconfigure(line_buffering=True)
    return out, err


def main() -> None:
    gc.disable()  # until attempts run: answers are made before there is garbage to collect
    out, _ = open_standard_streams()
    try:
        code = run(sys.argv[1:])
    except (BrokenPipeError, SystemExit):  # click makes the one the other
        if not out.unread:
            raise
        code = 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`runbook logs | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    if out.refusal:
        print(
            f"error: standard output cannot be written: {out.refusal}\n"
            "  remedy: make room, or send it elsewhere; what was done is recorded",
            file=sys.stderr,
        )
        code = code or CANNOT_SAY
    gc.freeze()  # what is left ends with the process: Python would look through all of it once more
    sys.exit(code)


def run(arguments: list[str]) -> int:
    from runbook.cli.main import invoke

    return invoke(arguments)


if __name__ == "__main__":
    main()
