"""A `conda` for conda-lock, which solves with py-rattler: no conda program is needed to lock.

`python -m runbook.env.conda_solver [--repodata CHANNEL=FOLDER]... [--sizes FILE] CALL...` answers
the calls that conda-lock 4 makes: `--version`, `info --json`, and `create --dry-run --json`
with its options. `--repodata` reads a channel's metadata from a folder instead; `--sizes` adds
the bytes of each package by SHA-256 to a JSON file, since the lock format has no place for them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rattler

from runbook.files import read_json, write_json

CONDA_VERSION = "conda 24.1.0"  # conda-lock asks, to know which options there are


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conda")
    parser.add_argument("--repodata", action="append", default=[])
    parser.add_argument("--sizes", type=Path)
    parser.add_argument("--version", action="store_true")
    calls = parser.add_subparsers(dest="call")
    calls.add_parser("info").add_argument("--json", action="store_true")
    create = calls.add_parser("create")
    create.add_argument("--channel", action="append", default=[])
    create.add_argument("--prefix")
    for flag in ("--dry-run", "--json", "--override-channels"):
        create.add_argument(flag, action="store_true", required=True)
    create.add_argument("specs", nargs="+")
    return parser.parse_args(argv)


def virtual_packages(channel: str, subdir: str) -> list[rattler.GenericVirtualPackage] | None:
    """The virtual packages of the stand-in channel in which conda-lock hands them over; None
    for any other channel."""
    if not channel.startswith("file://"):
        return None
    repodata = read_json(Path(channel.removeprefix("file://")) / subdir / "repodata.json")
    packages = (repodata or {}).get("packages") or {}
    if any(not entry["name"].startswith("__") for entry in packages.values()):
        return None
    if not packages and (repodata or {}).get("packages.conda"):
        return None
    return [
        rattler.GenericVirtualPackage(
            rattler.PackageName(entry["name"]),
            rattler.Version(entry["version"]),
            rattler.BuildString(entry.get("build_string") or entry["build"]),
        )
        for entry in packages.values()
    ]


async def solve(
    channels: Sequence[str], specs: Sequence[str], folders: Mapping[str, str], subdir: str
) -> list[rattler.RepoDataRecord]:
    real: list[str] = []
    virtual: list[rattler.GenericVirtualPackage] = []
    for channel in channels:
        found = virtual_packages(channel, subdir)
        if found is None:
            real.append(f"file://{folders[channel]}" if channel in folders else channel)
        else:
            virtual.extend(found)
    return await rattler.solve(
        [rattler.Channel(channel) for channel in real],
        list(specs),
        gateway=rattler.Gateway(),
        platforms=[rattler.Subdir(subdir), rattler.Subdir("noarch")],
        virtual_packages=virtual,
        channel_priority=rattler.ChannelPriority.Strict,
    )


def answer(records: Sequence[rattler.RepoDataRecord]) -> dict[str, Any]:
    """The records in the words of `conda create --dry-run --json`."""
    fetch, link = [], []
    for record in records:
        base, subdir, _ = record.url.rsplit("/", 2)
        common = {"name": record.name.normalized, "version": str(record.version)}
        fetch.append(
            {
                **common,
                "build": str(record.build),
                "build_number": record.build_number,
                "channel": f"{base}/{subdir}",
                "url": record.url,
                "fn": record.file_name,
                "md5": record.md5.hex() if record.md5 else "",
                "sha256": record.sha256.hex() if record.sha256 else None,
                "depends": list(record.depends),
                "constrains": list(record.constrains),
                "subdir": subdir,
                "size": record.size,
                "timestamp": 0,
            }
        )
        link.append(
            {
                **common,
                "dist_name": f"{common['name']}-{common['version']}-{record.build}",
                "channel": base,
                "base_url": base,
                "build_string": str(record.build),
                "platform": subdir,
            }
        )
    return {"actions": {"FETCH": fetch, "LINK": link, "PREFIX": ""}, "success": True}


def main(argv: Sequence[str]) -> int:
    call = parse(argv)
    if call.version:
        print(CONDA_VERSION)
        return 0
    if call.call == "info":
        print(json.dumps({"pkgs_dirs": []}))
        return 0
    folders = dict(item.split("=", 1) for item in call.repodata)
    try:
        records = asyncio.run(solve(call.channel, call.specs, folders, os.environ["CONDA_SUBDIR"]))
    except Exception as error:  # conda-lock shows the message of any failure
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 1
    if call.sizes:
        known = read_json(call.sizes) or {}
        new = {r.sha256.hex(): r.size for r in records if r.sha256 and r.size}
        write_json(call.sizes, known | new)
    print(json.dumps(answer(records)))
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # threads of py-rattler can crash the interpreter's shutdown
