"""Write the locks of this folder again: `python -m runbook.env.relock [wheels] [conda]`.

`wheels` resolves the `*.in` files with pip, as the user's pip is configured, and writes for each
a requirements file with one SHA-256 and the size of each wheel, and no host name.

`conda` resolves `cuda.yml` with conda-lock, whose solver is py-rattler (`conda_solver`), for the
machine that `virtual-packages.yml` describes, and writes `cuda.conda-lock.yml` and, beside it, the
sizes of the packages. Where no channel can be reached, `--records` solves among given records.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runbook.env import conda_solver
from runbook.files import write_atomic, write_json
from runbook.steps.common.store import sha256_file
from runbook.steps.toolkit.conda import sizes_beside

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
            f"    --hash=sha256:{sha256_file(path)}  # {path.stat().st_size} bytes\n"
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


def write_repodata(records: Path, folder: Path) -> dict[str, str]:
    """Channel metadata from a JSON list of package records; the folder of each channel's name.

    A record has the fields of repodata.json and `url`, from which channel and subdir follow.
    """
    channels: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    bases: dict[tuple[str, str], str] = {}
    for record in json.loads(records.read_text()):
        base, channel, subdir, name = record["url"].rsplit("/", 3)
        fields = {key: value for key, value in record.items() if key not in ("url", "seen_in")}
        channels.setdefault(channel, {}).setdefault(subdir, {})[name] = fields
        bases[channel, subdir] = f"{base}/{channel}/{subdir}/"
    for channel, subdirs in channels.items():
        for subdir in {"noarch", *subdirs}:
            path = folder / channel / subdir / "repodata.json"
            path.parent.mkdir(parents=True)
            info = {"subdir": subdir, "base_url": bases.get((channel, subdir), "")}
            packages = subdirs.get(subdir, {})
            document = {"info": info, "packages": {}, "packages.conda": packages}
            path.write_text(json.dumps({**document, "repodata_version": 2}))
    return {channel: str(folder / channel) for channel in channels}


def lock_conda(folder: Path = HERE, records: Path | None = None) -> Path:
    """Lock `cuda.yml` of a folder and give the path of the lock."""
    target = folder / "cuda.conda-lock.yml"
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        sizes = temporary / "sizes.json"
        solver = [sys.executable, "-m", conda_solver.__name__, "--sizes", str(sizes)]
        if records is not None:
            for channel, repodata in write_repodata(records, temporary / "channels").items():
                solver += ["--repodata", f"{channel}={repodata}"]
        conda = temporary / "conda"
        conda.write_text(f'#!/bin/sh\nexec {shlex.join(solver)} "$@"\n')
        conda.chmod(0o755)
        # The lock names its source relative to itself, so they must lie side by side.
        lock, source = temporary / target.name, temporary / "cuda.yml"
        shutil.copy(folder / source.name, source)
        subprocess.run(
            [
                *(sys.executable, "-m", "conda_lock", "lock", "--conda", str(conda)),
                *("--file", str(source), "--lockfile", str(lock)),
                *("--virtual-package-spec", str(folder / "virtual-packages.yml")),
            ],
            check=True,
        )
        text = lock.read_text()
        write_json(sizes_beside(target), dict(sorted(json.loads(sizes.read_text()).items())))
    write_atomic(target, text.encode())
    print(f"wrote {target}")
    return target


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the locks of the CUDA toolkit again.")
    parser.add_argument(
        "locks", nargs="*", choices=["wheels", "conda"], default=["wheels", "conda"]
    )
    parser.add_argument("--records", type=Path, help="a JSON list of conda package records")
    options = parser.parse_args(argv)
    try:
        if "wheels" in options.locks:
            lock_wheels()
        if "conda" in options.locks:
            lock_conda(records=options.records)
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"{error.cmd[2]} failed (above is why): the lock stays as it was\n")


if __name__ == "__main__":
    main()
