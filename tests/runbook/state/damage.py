"""Ways in which a record can be lost or wrong. Each takes the record's path and a random source."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def removed(path: Path, random: Random) -> None:
    clear(path)


def emptied(path: Path, random: Random) -> None:
    replaced(path, b"")


def truncated(path: Path, random: Random) -> None:
    if path.is_file():
        os.truncate(path, random.randrange(path.stat().st_size or 1))
    else:
        clear(path)


def flipped(path: Path, random: Random) -> None:
    """One bit; in a folder, one bit of each file."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        data = bytearray(file.read_bytes())
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            file.write_bytes(data)


def noise(path: Path, random: Random) -> None:
    replaced(path, random.randbytes(4096))


def folder(path: Path, random: Random) -> None:
    clear(path)
    path.mkdir()


def full_folder(path: Path, random: Random) -> None:
    folder(path, random)
    (path / "inside").write_text("{}")


def fifo(path: Path, random: Random) -> None:
    clear(path)
    os.mkfifo(path)


def dangling(path: Path, random: Random) -> None:
    clear(path)
    path.symlink_to("nowhere/at/all")


def looping(path: Path, random: Random) -> None:
    clear(path)
    path.symlink_to(path.name)


def device(path: Path, random: Random) -> None:
    clear(path)
    path.symlink_to("/dev/zero")


def huge(path: Path, random: Random) -> None:
    replaced(path, b"")
    os.truncate(path, 1 << 40)


def forbidden(path: Path, random: Random) -> None:
    path.chmod(0)


def foreign_list(path: Path, random: Random) -> None:
    replaced(path, b"[1, 2, 3]\n")


def foreign_mapping(path: Path, random: Random) -> None:
    replaced(path, b'{"schema": "runbook/1", "made": "elsewhere"}\n')


def deep(path: Path, random: Random) -> None:
    replaced(path, b"[" * 100_000 + b"\n")


def wrong_types(path: Path, random: Random) -> None:
    """Every value of every object becomes one of another type."""
    if not path.is_file():
        return
    strange = [None, True, -1, 1e999, 10**40, "", "text", "\ud800", [], {}, [None], {"a": []}]

    def mixed(value: object) -> object:
        if isinstance(value, dict) and random.random() < 0.7:
            return {key: mixed(item) for key, item in value.items()}
        return random.choice(strange)

    lines = []
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            lines.append(line)
            continue
        pairs = value.items() if isinstance(value, dict) else ()
        kept = {
            key: item if key in ("seq", "type", "schema") else mixed(item) for key, item in pairs
        }
        lines.append(json.dumps(kept).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")


def replaced(path: Path, data: bytes) -> None:
    clear(path)
    path.write_bytes(data)


ALL = {
    way.__name__: way
    for way in (
        removed,
        emptied,
        truncated,
        flipped,
        noise,
        folder,
        full_folder,
        fifo,
        dangling,
        looping,
        device,
        huge,
        forbidden,
        foreign_list,
        foreign_mapping,
        deep,
        wrong_types,
    )
}
