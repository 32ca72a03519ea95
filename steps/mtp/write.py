"""Makes a plan true: a folder beside the source, of links where nothing changes.

The folder grows under another name and takes its own when it is complete. A killed run goes on
with the shards that are already there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from runbook.steps.checkpoint.checkpoint import CONFIG, INDEX, Checkpoint
from runbook.steps.checkpoint.headers import ITEM_BITS, Tensor, render
from runbook.steps.mtp.mend import Edit, Plan

CHUNK = 16 << 20
PLAN = ".plan"
ALIASES = "model-mtp-aliases.safetensors"

Progress = Callable[[int, int], None]
"""`progress(bytes done, bytes in all)`."""


def cost(checkpoint: Checkpoint, plan: Plan) -> int:
    """How many bytes of weights must be written; links cost nothing."""
    kept: int = sum(checkpoint.sizes[shard] for shard in plan.shards)
    grown = sum(
        checkpoint.tensors[name].nbytes for (_, name), edit in plan.edits.items() if edit.scale
    )
    return kept + grown + sum(checkpoint.tensors[o].nbytes for o in plan.copies.values())


def build(
    source: Path, checkpoint: Checkpoint, plan: Plan, partial: Path, progress: Progress
) -> None:
    """Make the mended checkpoint in the folder `partial`, or finish what was begun there."""
    _begin(partial, plan.digest(sorted(checkpoint.sizes.items())))
    total, done = cost(checkpoint, plan), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for path in entries(source):
        target = partial / path.name
        if path.is_dir():
            copy_folder(path, target)
        elif path.name in plan.shards:
            if target.exists():
                tick(target.stat().st_size)
            else:
                write_shard(source, checkpoint, plan, path.name, target, tick)
        elif path.suffix == ".safetensors":
            link(path, target)
        elif path.name not in (CONFIG, INDEX):
            copy_file(path, target)
    if plan.copies:
        write_aliases(source, checkpoint, plan, partial / ALIASES, tick)
    if plan.config == checkpoint.config:
        copy_file(source / CONFIG, partial / CONFIG)
    else:
        write_json(partial / CONFIG, plan.config)
    _write_index(source, checkpoint, plan, partial)


def _begin(partial: Path, digest: str) -> None:
    marker = partial / PLAN
    try:
        same = marker.read_text() == digest
    except OSError:
        same = False
    if not same:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_bytes(marker, digest.encode())


def entries(folder: Path) -> Iterator[Path]:
    """What of a checkpoint's folder belongs to it: files and folders that are not hidden. Links
    that lead nowhere, pipes and the like do not."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.is_file() or path.is_dir()):
            yield path


def copy_folder(path: Path, target: Path) -> None:
    def odd(folder: str, names: list[str]) -> list[str]:
        inside = [Path(folder, name) for name in names]
        return [p.name for p in inside if not (p.is_file() or p.is_dir())]

    shutil.copytree(path, target, ignore=odd, dirs_exist_ok=True)


def link(path: Path, target: Path) -> None:
    """A hard link, or a symbolic one where the file system allows no hard link."""
    real = path.resolve()
    if target.is_symlink() or target.exists():
        if target.exists() and target.samefile(real):
            return
        target.unlink()
    try:
        target.hardlink_to(real)
    except OSError:
        target.symlink_to(real)


def copy_file(path: Path, target: Path) -> None:
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(path, temporary)
    _settle(temporary, target)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent or complete."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    _settle(temporary, path)


def write_json(path: Path, data: object) -> None:
    write_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def _settle(temporary: Path, path: Path) -> None:
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def after(tensor: Tensor, edit: Edit | None) -> tuple[str, str, tuple[int, ...], int] | None:
    """Name, dtype, shape and bytes of a tensor once edited; None if it is dropped."""
    if edit is None:
        return tensor.name, tensor.dtype, tensor.shape, tensor.nbytes
    if edit.drop:
        return None
    if edit.scale:
        return tensor.name, "BF16", tensor.shape, 2 * tensor.nbytes
    return edit.name or tensor.name, edit.dtype or tensor.dtype, tensor.shape, tensor.nbytes


def write_shard(
    source: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    shard: str,
    target: Path,
    tick: Callable[[int], None],
) -> None:
    """Write one shard with its edits, holding at most `CHUNK` bytes of it."""
    header = checkpoint.headers[shard]
    kept = []
    for tensor in header.tensors:
        edit = plan.edits.get((shard, tensor.name))
        new = after(tensor, edit)
        if new is not None:
            kept.append((tensor, edit, new))
    # Wide items first keep every tensor aligned to its item, which torch asks of views.
    kept.sort(key=lambda k: -ITEM_BITS.get(k[2][1], 8))
    temporary = target.with_name(target.name + ".tmp")
    with (source / shard).open("rb") as old, temporary.open("wb") as file:
        file.write(render([new for _, _, new in kept], header.metadata))
        for tensor, edit, _ in kept:
            if edit is not None and edit.scale:
                for data in _dequantised(old.fileno(), checkpoint, tensor, edit.scale):
                    file.write(data)
                    tick(len(data))
            else:
                file.flush()
                copy_range(old.fileno(), file.fileno(), tensor.begin, tensor.nbytes, tick)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def _dequantised(
    descriptor: int, checkpoint: Checkpoint, weight: Tensor, scale: str
) -> Iterator[bytes]:
    from runbook.steps.mtp import dequantise

    found = checkpoint.tensors[scale]
    raw = checkpoint.read(found)
    assert raw is not None
    yield from dequantise.rows(
        lambda offset, length: os.pread(descriptor, length, offset),
        weight,
        dequantise.scales(raw, found),
    )


def copy_range(
    source: int, target: int, begin: int, count: int, tick: Callable[[int], None]
) -> None:
    """Append `count` bytes of a file to another inside the kernel, shared where the file system
    can share them, through memory where it can do neither."""
    while count:
        try:
            copied = os.copy_file_range(source, target, min(count, 64 * CHUNK), begin)
        except OSError:
            data = os.pread(source, min(count, CHUNK), begin)
            copied = os.write(target, data) if data else 0
        if not copied:
            raise EOFError("the source ends before its header says")
        begin, count = begin + copied, count - copied
        tick(copied)


def write_aliases(
    source: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    target: Path,
    tick: Callable[[int], None],
) -> None:
    """A shard with the MTP block's own copies of embedding and head."""
    pairs = [(alias, checkpoint.tensors[original]) for alias, original in plan.copies.items()]
    pairs.sort(key=lambda p: -ITEM_BITS.get(p[1].dtype, 8))
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(render([(a, t.dtype, t.shape, t.nbytes) for a, t in pairs], {"format": "pt"}))
        file.flush()
        for _, tensor in pairs:
            with (source / tensor.shard).open("rb") as old:
                copy_range(old.fileno(), file.fileno(), tensor.begin, tensor.nbytes, tick)
        os.fsync(file.fileno())
    temporary.replace(target)


def _write_index(source: Path, checkpoint: Checkpoint, plan: Plan, partial: Path) -> None:
    if not checkpoint.indexed and not (plan.edits or plan.copies):
        return
    weights: dict[str, str] = {}
    size = 0
    for name, shard in {**checkpoint.index, **plan.listed}.items():
        tensor = checkpoint.tensors.get(name) or next(
            t for t in checkpoint.stale if t.name == name and t.shard == shard
        )
        new = after(tensor, plan.edits.get((shard, name)))
        if new is not None:
            weights[new[0]] = shard
            size += new[3]
    for alias, original in plan.copies.items():
        weights[alias] = ALIASES
        size += checkpoint.tensors[original].nbytes
    changed = plan.edits or plan.listed or plan.copies or checkpoint.total_size not in (0, size)
    if changed:
        document = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}
        write_json(partial / INDEX, document)
    else:
        copy_file(source / INDEX, partial / INDEX)
