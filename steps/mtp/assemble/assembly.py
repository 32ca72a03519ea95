"""Puts a quantised MTP block into a checkpoint that lost its own.

Three sources: the base, a compressed-tensors checkpoint without the block; the upstream
checkpoint, which has it in its native form; the quantiser's files. The result links the base's
shards and adds one shard, written tensor by tensor:

- routed experts as the quantiser packed them,
- FP8 attention bit for bit, its scales renamed and as FP32 with the same values,
- other FP8 linears (shared experts, e_proj, h_proj) dequantised to BF16,
- everything else as it is, FP32 staying FP32.

Memory does not depend on the sizes: with the flagship's block, a shard of 3.55 GB, the process
peaks at 75 MiB resident, 20 of them its own work (tests/benchmarks/assemble.py).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runbook.steps.checkpoint.checkpoint import CONFIG, INDEX, Checkpoint, open_folder
from runbook.steps.checkpoint.headers import ITEM_BITS, Tensor, parse, render
from runbook.steps.checkpoint.layout import Linear
from runbook.steps.checkpoint.lint import Finding, examine, subject
from runbook.steps.checkpoint.lint.subject import PACKED, SCALES, Subject
from runbook.steps.checkpoint.targets import Target
from runbook.steps.mtp import mend, write

SHARD = "model-mtp-w4a16.safetensors"
EXPERT_FILES = "expert-*.safetensors"
CONFIG_MENDS = frozenset(
    {"mtp_undeclared", "quant_overmatched", "expert_probe", "fused_targets", "actorder_static"}
    | {"scale_fmt", "expert_dtype"}
)
"""What is mended here: the rest belongs to the step `mtp`, which knows the target."""


class AssemblyError(Exception):
    """The sources do not fit together; names the tensor or file."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the new shard: what it becomes, and from where."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    folder: Path
    source: Tensor
    scale: Tensor | None = None
    """With a scale: dequantise. Without: copy, or as FP32 if `dtype` says so."""


def pieces(upstream: Subject, folder: Path, quantised: Path) -> list[Piece]:
    """The tensors of the new shard in the order of writing, checked against the architecture.

    Raises `AssemblyError` for what is missing or does not fit.
    """
    assert upstream.layout is not None
    layout = upstream.layout
    packed = _packed(quantised)
    made: list[Piece] = []
    for linear in (x for x in layout.linears.values() if x.mtp):
        made += _linear(upstream, folder, linear, packed, quantised)
    for plain in (x for x in layout.plains.values() if x.mtp):
        tensor = upstream.tensor(plain.name)
        if tensor is None:
            raise AssemblyError(f"{folder} has no tensor {plain.name}")
        if tensor.shape != plain.shape:
            raise AssemblyError(f"{plain.name} has shape {tensor.shape}, not {plain.shape}")
        made.append(_copied(tensor.name, tensor, folder))
    # Wide items first keep every tensor aligned to its item.
    return sorted(made, key=lambda p: (-ITEM_BITS[p.dtype], p.name))


def _packed(quantised: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(quantised.glob(EXPERT_FILES)):
        with path.open("rb") as file:
            descriptor = file.fileno()
            header = parse(partial(_pread, descriptor), path.name)
        if header.end != path.stat().st_size:
            raise AssemblyError(f"{path} is cut off")
        found.update({t.name: t for t in header.tensors})
    if not found:
        raise AssemblyError(f"{quantised} holds no {EXPERT_FILES}")
    return found


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    return os.pread(descriptor, length, offset)


def _linear(
    upstream: Subject, folder: Path, linear: Linear, packed: dict[str, Tensor], quantised: Path
) -> Iterator[Piece]:
    out, columns = linear.shape
    if linear.role == "expert":
        for suffix in PACKED:
            tensor = packed.get(linear.base + suffix)
            if tensor is None:
                raise AssemblyError(f"{quantised} has no tensor {linear.base}{suffix}")
            if suffix == ".weight_packed" and tensor.shape != (out, columns // 8):
                raise AssemblyError(f"{tensor.name} has shape {tensor.shape}")
            yield _copied(tensor.name, tensor, quantised)
        return
    weight = upstream.tensor(f"{linear.base}.weight")
    if weight is None:
        raise AssemblyError(f"{folder} has no tensor {linear.base}.weight")
    if weight.shape != linear.shape:
        raise AssemblyError(f"{weight.name} has shape {weight.shape}, not {linear.shape}")
    if weight.dtype != "F8_E4M3":
        yield _copied(weight.name, weight, folder)
        return
    scale = upstream.scale(linear)
    if scale is None:
        raise AssemblyError(f"{weight.name} has no scale ({', '.join(SCALES)})")
    if linear.role == "attention":
        yield _copied(weight.name, weight, folder)
        nbytes = 4 * scale.shape[0] * scale.shape[1]
        yield Piece(f"{linear.base}.weight_scale", "F32", scale.shape, nbytes, folder, scale)
    else:
        yield Piece(weight.name, "BF16", weight.shape, 2 * weight.nbytes, folder, weight, scale)


def _copied(name: str, tensor: Tensor, folder: Path) -> Piece:
    return Piece(name, tensor.dtype, tensor.shape, tensor.nbytes, folder, tensor)


def assemble(
    base: Path,
    upstream: Path,
    quantised: Path,
    into: Path,
    target: Target,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Make the checkpoint in `into`, or finish what was begun there; returns the findings left
    for `target`. Raises `AssemblyError`, `CheckpointError`."""
    given, native = subject(open_folder(base)), subject(open_folder(upstream))
    for about, folder in ((given, base), (native, upstream)):
        if about.layout is None:
            assert about.problem is not None
            raise AssemblyError(f"{folder}: {about.problem.detail}")
        if about.layout.draft != "mtp":
            raise AssemblyError(f"{folder}: its draft is DSpark, not an MTP block")
        _whole(about.checkpoint, folder)
    if given.mtp_blocks():
        raise AssemblyError(f"{base} has an MTP block already")
    if not given.quantization.compressed_tensors:
        raise AssemblyError(f"{base} is not quantised with compressed-tensors")
    made = pieces(native, upstream, quantised)
    into.mkdir(parents=True, exist_ok=True)
    for path in write.entries(base):
        if path.name in (CONFIG, INDEX):
            continue
        if path.is_dir():
            write.copy_folder(path, into / path.name)
        elif path.suffix == ".safetensors":
            write.link(path, into / path.name)
        else:
            write.copy_file(path, into / path.name)
    _write_shard(made, into / SHARD, progress)
    _write_index(given.checkpoint, made, into)
    return _write_config(given, into, target)


def _whole(checkpoint: Checkpoint, folder: Path) -> None:
    for problem in checkpoint.unreadable:
        raise AssemblyError(f"{folder / problem.file}: {problem.message}")
    for shard, header in checkpoint.headers.items():
        if checkpoint.sizes[shard] != header.end:
            raise AssemblyError(f"{folder / shard} is cut off or too long")


def _write_shard(made: list[Piece], path: Path, progress: Callable[[int, int], None]) -> None:
    header = render([(p.name, p.dtype, p.shape, p.nbytes) for p in made], {"format": "pt"})
    total = sum(p.nbytes for p in made)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(header)
        for piece in made:
            with (piece.folder / piece.source.shard).open("rb") as source:
                _write_piece(piece, source.fileno(), file, tick)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_piece(piece: Piece, source: int, file: Any, tick: Callable[[int], None]) -> None:
    tensor = piece.source
    if piece.scale is None and piece.dtype == tensor.dtype:
        file.flush()
        write.copy_range(source, file.fileno(), tensor.begin, tensor.nbytes, tick)
        return
    from runbook.steps.mtp import dequantise

    if piece.scale is None:
        data = dequantise.scales(os.pread(source, tensor.nbytes, tensor.begin), tensor).tobytes()
        file.write(data)
        tick(len(data))
        return
    with (piece.folder / piece.scale.shard).open("rb") as other:
        raw = os.pread(other.fileno(), piece.scale.nbytes, piece.scale.begin)
    scale = dequantise.scales(raw, piece.scale)
    for data in dequantise.rows(partial(_pread, source), tensor, scale):
        file.write(data)
        tick(len(data))


def _write_index(base: Checkpoint, made: list[Piece], into: Path) -> None:
    weights = {**base.index, **{p.name: SHARD for p in made}}
    size = sum(t.nbytes for t in base.tensors.values()) + sum(p.nbytes for p in made)
    document = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}
    write.write_json(into / INDEX, document)


def _write_config(base: Subject, into: Path, target: Target) -> list[Finding]:
    config = copy.deepcopy(base.checkpoint.config)
    assert base.layout is not None
    config["num_nextn_predict_layers"] = len(base.layout.mtp_prefixes)
    groups = config["quantization_config"]["config_groups"].values()
    for group in groups:
        if (group.get("weights") or {}).get("actorder") in ("static", "weight"):
            group["weights"]["actorder"] = None
    write.write_json(into / CONFIG, config)
    about = subject(open_folder(into))
    ours = [f for f in examine(about, target) if f.id in CONFIG_MENDS]
    write.write_json(into / CONFIG, mend.plan(about, ours).config)
    return examine(subject(open_folder(into)), target)
