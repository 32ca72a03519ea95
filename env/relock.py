"""Write the locks of this folder again: `python -m runbook.env.relock wheels|conda`.

`wheels` resolves the `*.in` files with pip, as the user's pip is configured, and writes for each
a requirements file with one SHA-256 and the size of each wheel, and no host name.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runbook.files import write_atomic
from runbook.steps.toolkit.wheels import sha256_of

HERE = Path(__file__).parent
HEADER = """\
# Wheels for Linux on x86_64, any Python 3. Written from {source} by `make lock`; do not edit.
# The sizes are for plans and progress.
"""


def pins(folder: Path) -> str:
    """A line of requirements for each wheel in a folder, by name."""
    lines = []
    for path in sorted(folder.glob("*.whl"), key=lambda wheel: wheel.name.lower()):
        name, version, *_ = path.name.split("-")
        lines.append(
            f"{name.replace('_', '-')}=={version} \\\n"
            f"    --hash=sha256:{sha256_of(path)}  # {path.stat().st_size} bytes\n"
        )
    return "".join(lines)


def lock_wheels() -> None:
    for source in sorted(HERE.glob("cuda-*.in")):
        target = source.with_suffix(".requirements.txt")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-cache-dir"),
                    *("--only-binary=:all:", "--implementation=py", "--python-version=3"),
                    *("--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_27_x86_64"),
                    *("--platform=manylinux_2_25_x86_64", "--platform=manylinux_2_17_x86_64"),
                    *("--platform=manylinux_2_12_x86_64", "--platform=manylinux_2_5_x86_64"),
                    *("--dest", folder, "--requirement", str(source)),
                ],
                check=True,
            )
            text = HEADER.format(source=source.name) + pins(Path(folder))
        write_atomic(target, text.encode())
        print(f"wrote {target}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the locks of the CUDA toolkit again.")
    parser.add_argument("lock", nargs="+", choices=["wheels"])
    parser.parse_args(argv)
    lock_wheels()


if __name__ == "__main__":
    main()
