"""Stands before the real `vllm serve` of a book whose step names this folder in PYTHONPATH.

The file STARTS_TO_COME holds a JSON list; each start takes the first entry of it: `log`, a file of
lines that it prints, `pause` seconds after each, and `then`, what it does after them: `exits`,
`hangs`, or goes on as the real server. That one dies with the lines of the file `last_words` once
the file DIES_NOW is there.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path


def start(entry):
    text = Path(entry["log"]).read_text() if "log" in entry else ""
    for line in text.splitlines():
        print(line, flush=True)
        until = time.monotonic() + entry.get("pause", 0)
        while time.monotonic() < until:
            pass  # it computes, as a compilation does
    if entry.get("then") == "exits":
        os._exit(1)
    if entry.get("then") == "hangs":
        threading.Event().wait()
    if "last_words" in entry:
        threading.Thread(target=die, args=(entry["last_words"],), daemon=True).start()


def die(log):
    trigger = Path(os.environ["DIES_NOW"])
    while not trigger.exists():
        time.sleep(0.05)
    trigger.unlink()
    print(Path(log).read_text(), flush=True)
    os._exit(1)


if "STARTS_TO_COME" in os.environ and "serve" in sys.orig_argv:
    coming = Path(os.environ["STARTS_TO_COME"])
    entries = json.loads(coming.read_text())
    if entries:
        coming.write_text(json.dumps(entries[1:]))
        start(entries[0])
