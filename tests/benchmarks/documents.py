"""How long documents take: read and checked, and from the cache. Prints JSON lines.

Run by hand: `python tests/benchmarks/documents.py`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TIMED = """
import os, sys, time
began = time.perf_counter()
from pathlib import Path
from runbook.document.compile import compile_book
imported = time.perf_counter()
compile_book(sys.argv[1], [], Path(sys.argv[2]), os.environ)
print(imported - began, time.perf_counter() - imported)
"""


def document(steps: int) -> str:
    head = "runbook: 1\nname: bench\ninputs:\n  n: {type: integer, default: 4}\nsteps:\n"
    return head + "".join(
        f"  - id: s{i}\n    uses: command\n"
        f"    with: {{run: [echo, '{{{{ inputs.n }}}}'], creates: out/{i}}}\n"
        for i in range(steps)
    )


def timed(book: Path, cache: Path) -> float:
    output = subprocess.check_output([sys.executable, "-c", TIMED, str(book), str(cache)])
    return float(output.split()[1])


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        for steps in (7, 5000):
            book, cache = Path(folder, f"{steps}.yaml"), Path(folder, f"cache-{steps}")
            book.write_text(document(steps))
            first = timed(book, cache)
            cached = statistics.median(timed(book, cache) for _ in range(9))
            line = {"steps": steps, "read_s": round(first, 4), "cached_s": round(cached, 5)}
            print(json.dumps({**line, "ratio": round(first / cached, 1)}))


if __name__ == "__main__":
    main()
