"""Quantises all routed experts of one MTP block: resumable, with a manifest.

One file for each expert, written whole, holds its nine tensors as compressed-tensors stores them;
its metadata records how it was made. Experts are taken in fixed batches, so that a run that was
interrupted gives the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import formats
from .calibration import Calibration, Inputs
from .gptq import GROUP, Options, Quantised, nearest, quantise
from .hessian import NotDefinite, loose_products, shrink
from .source import Experts, Problem

SCHEMA = "mtp-retrofit/1"
MANIFEST = "manifest.json"
DTYPES = {torch.int64: "I64", torch.int32: "I32", torch.bfloat16: "BF16"}
Parts = dict[str, tuple[Tensor, Tensor]]
"""Codes and scales by the name of the weight."""
ABSMAX = Options(scale="absmax")
"""What errors are compared with: round to nearest with absmax scales."""


@dataclass(frozen=True)
class Job:
    """`threshold`: experts with fewer tokens are rounded to nearest. `batch`: experts at once.
    `unrouted`: what experts without any token are to the calibration: an `error`, or rounded to
    `nearest` like those with too few."""

    options: Options
    threshold: int
    batch: int
    unrouted: str = "error"


class Timer:
    """Seconds by stage; on a GPU the device is waited for at each stage's end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def warm_up(device: torch.device, options: Options) -> None:
    """Compile the kernels and load the libraries that the first batch will need: on a GPU that
    takes seconds, which may pass beside the reading of captures. Not beside other products in
    FP32: it changes torch's precision, a setting of the whole process, and sets it back."""
    if device.type != "cuda":
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        quantise(torch.randn(1, GROUP, 2 * GROUP, device=device),
                 torch.eye(2 * GROUP, device=device)[None], options)  # fmt: skip
    stream.synchronize()


def run(
    experts: Experts,
    calibration: Calibration,
    out: Path,
    job: Job,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Quantise what is not yet in `out`; writes and returns the manifest. Raises `Problem`."""
    empty = _unrouted(experts, calibration, job)
    out.mkdir(parents=True, exist_ok=True)
    digest = _digest(experts, calibration, job)
    timer = Timer(calibration.device)
    batches = [
        range(i, min(i + job.batch, experts.count)) for i in range(0, experts.count, job.batch)
    ]
    todo = [b for b in batches if not all(done(out, e, digest) for e in b)]
    finished = experts.count - sum(len(b) for b in todo)
    report(finished, experts.count)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(4) as writer:
        written: list[Future[None]] = []
        for batch, weights in _ahead(reader, experts, todo):
            timer.stage("read")
            for expert, parts, records in _batch(weights, batch, calibration, job, timer):
                _raise_failed(written)
                ready = _event(calibration.device)
                written.append(writer.submit(_write, out, expert, parts, records, digest, ready))
            timer.stage("errors")
            finished += len(batch)
            report(finished, experts.count)
        for future in written:
            future.result()
        timer.stage("write")
    manifest = _manifest(experts, calibration, out, job, digest, empty)
    _replace(out / MANIFEST, [(json.dumps(manifest, indent=1) + "\n").encode()])
    timer.stage("manifest")
    return {**manifest, "seconds": timer.seconds}


def _unrouted(experts: Experts, calibration: Calibration, job: Job) -> list[str]:
    """The experts that no token was routed to. Raises `Problem` if there may be none."""
    counts = calibration.counts()
    if counts is None:
        return []
    if len(counts) != experts.count:
        raise Problem(
            f"the captures are of {len(counts)} experts, {experts.prefix} has {experts.count}"
        )
    empty = [e for e, count in enumerate(counts) if not count]
    if empty and job.unrouted == "error":
        others = f" (nor to {len(empty) - 1} others of {experts.count})" if empty[1:] else ""
        raise Problem(
            f"no captured token was routed to the expert of {experts.names(empty[0])[0]}{others}: "
            "capture more prompts, or set `unrouted: nearest` to round such experts to nearest"
        )
    return [f"{experts.prefix}.{e}" for e in empty]


def _digest(experts: Experts, calibration: Calibration, job: Job) -> str:
    parts = [SCHEMA, asdict(job), experts.digest(), calibration.digest(), experts.prefix]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def path_of(out: Path, expert: int) -> Path:
    return out / f"expert-{expert:05}.safetensors"


def done(out: Path, expert: int, digest: str) -> bool:
    """Whether an expert's file is there and made from the same inputs."""
    try:
        with safe_open(path_of(out, expert), "pt") as file:
            return (file.metadata() or {}).get(digest) is not None
    except (OSError, SafetensorError):
        return False


def _ahead(
    reader: ThreadPoolExecutor, experts: Experts, batches: list[range]
) -> Iterator[tuple[range, list[dict[str, Tensor]]]]:
    """Each batch with its weights, the next one being read and decoded meanwhile."""
    side = torch.cuda.Stream() if experts.device.type == "cuda" else None

    def load(batch: range) -> list[dict[str, Tensor]]:
        if side is None:
            return [experts.weights(e) for e in batch]
        with torch.cuda.stream(side):
            made = [experts.weights(e) for e in batch]
        side.synchronize()
        return made

    pending = reader.submit(load, batches[0]) if batches else None
    for position, batch in enumerate(batches):
        assert pending is not None
        weights = pending.result()
        if side is not None:
            for tensor in (t for w in weights for t in w.values()):
                tensor.record_stream(torch.cuda.current_stream())
        if position + 1 < len(batches):
            pending = reader.submit(load, batches[position + 1])
        yield batch, weights


def _event(device: torch.device) -> torch.cuda.Event | None:
    """What other streams can wait for to see all that was asked of this one."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def _raise_failed(futures: list[Future[None]]) -> None:
    for future in futures:
        if future.done():
            future.result()


def _batch(
    weights: list[dict[str, Tensor]],
    batch: range,
    calibration: Calibration,
    job: Job,
    timer: Timer,
) -> Iterator[tuple[int, Parts, dict[str, Any]]]:
    """Results and records of each expert of a batch."""
    inputs = [calibration.inputs(e, w) for e, w in zip(batch, weights, strict=True)]
    for taken, named in zip(inputs, weights, strict=True):
        taken.check(next(iter(named)))
    timer.stage("moments")
    joint = torch.stack([torch.cat(list(w.values())[:2]) for w in weights])
    down = torch.stack([list(w.values())[2] for w in weights])
    first, first_methods = _side(joint, inputs, "into", job, timer)
    second, second_methods = _side(down, inputs, "out", job, timer)
    first_errors = _errors(joint, first, [x.held for x in inputs], 2)
    second_errors = _errors(down, second, [x.held_out for x in inputs], 1)
    half = joint.shape[1] // 2
    for i, expert in enumerate(batch):
        gate, up, last = weights[i]
        codes, scales = first.codes[i].split(half), first.scales[i].split(half)
        results = (
            (gate, codes[0], scales[0], first_methods[i], first_errors[i][0]),
            (up, codes[1], scales[1], first_methods[i], first_errors[i][1]),
            (last, second.codes[i], second.scales[i], second_methods[i], second_errors[i][0]),
        )
        tokens = inputs[i].into.count
        parts = {name: (codes, scales) for name, codes, scales, *_ in results}
        records = {
            name: {"tokens": tokens, "method": method, "errors": errors}
            for name, *_, method, errors in results
        }
        yield expert, parts, records


def _side(
    weights: Tensor, inputs: list[Inputs], side: str, job: Job, timer: Timer
) -> tuple[Quantised, list[str]]:
    """Quantise one kind of linear [batch, rows, columns] for a batch of experts."""
    moments = [getattr(x, side) for x in inputs]
    options = job.options
    h = torch.stack([m.hessian() for m in moments])
    methods = ["gptq" if m.count >= max(1, job.threshold) else "rtn" for m in moments]
    if options.shrink:
        for part, m in zip(h, moments, strict=True):
            shrink(part, m)
    timer.stage("shrink")
    enough = [i for i, m in enumerate(methods) if m == "gptq"]
    diagonals = h.diagonal(dim1=1, dim2=2).clone()
    diagonals[diagonals.sum(1) == 0] = 1.0  # an expert without tokens: all columns alike
    try:
        if len(enough) == len(moments):
            result = quantise(weights, h, options)
        else:
            result = nearest(weights, diagonals, options)
            if enough:
                part = quantise(weights[enough], h[enough], options)
                result.codes[enough] = part.codes
                result.scales[enough] = part.scales
    except NotDefinite:
        result, methods = _one_by_one(weights, h, diagonals, options, methods)
    timer.stage("gptq")
    return result, methods


def _one_by_one(
    weights: Tensor, h: Tensor, diagonals: Tensor, options: Options, methods: list[str]
) -> tuple[Quantised, list[str]]:
    """Like `_side`, with rounding to nearest for those whose moments cannot be factored."""
    result = nearest(weights, diagonals, options)
    for i, method in enumerate(methods):
        if method == "gptq":
            try:
                part = quantise(weights[i : i + 1], h[i : i + 1], options)
            except NotDefinite:
                methods[i] = "rtn"
                continue
            result.codes[i], result.scales[i] = part.codes[0], part.scales[0]
    return result, methods


def _errors(
    weights: Tensor, made: Quantised, held: list[Tensor], count: int
) -> list[list[Tensor | None]]:
    """|x (W - Q)| / |x W| on held-out rows x: of the result, and of absmax rounding to nearest.

    For each expert and each of `count` equal parts of its weights [batch, rows, columns] a tensor
    [2] on the device, or None if no rows were held out.
    """
    batch, rows, columns = weights.shape
    most = max(len(x) for x in held)
    if not most:
        return [[None] * count for _ in held]
    x = weights.new_zeros(batch, most, columns, dtype=torch.float32)  # such rows add nothing
    for into, part in zip(x, held, strict=True):
        into[: len(part)] = part
    w = weights.float()
    plain = nearest(weights, w.new_ones(batch, columns), ABSMAX)
    norms = []
    with loose_products(w.device):
        for part in (w - made.weights(), w - plain.weights(), w):
            lost = (x @ part.mT).view(batch, most, count, rows // count)
            norms.append(torch.linalg.vector_norm(lost, dim=(1, 3)))
    errors = torch.stack(norms[:2], -1) / norms[2].unsqueeze(-1)
    return [
        list(error) if len(x) else [None] * count for error, x in zip(errors, held, strict=True)
    ]


def _write(
    out: Path,
    expert: int,
    parts: Parts,
    records: dict[str, Any],
    digest: str,
    ready: torch.cuda.Event | None,
) -> None:
    """Pack and store one expert; on a GPU once `ready`, on a stream of its own."""
    stream = None if ready is None else torch.cuda.Stream()
    with torch.cuda.stream(stream):  # does nothing without a stream
        if stream is not None and ready is not None:
            stream.wait_event(ready)
        tensors = _stored(parts)
        if stream is not None:
            stream.synchronize()
        for record in records.values():
            errors = record.pop("errors")
            pair = (None, None) if errors is None else [round(e, 6) for e in errors.tolist()]
            record["error"], record["error_rtn"] = pair
    for name, record in records.items():
        seen = hashlib.sha256()
        for suffix in ("weight_packed", "weight_scale"):
            seen.update(_bytes(tensors[f"{name}.{suffix}"]))
        record["sha256"] = seen.hexdigest()
    _replace(path_of(out, expert), _encoded(tensors, {digest: json.dumps(records, sort_keys=True)}))


def _encoded(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[Any]:
    """A safetensors file in pieces, without a copy of the data: copying would keep the thread
    that feeds the GPU from running. Wide items come first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in ordered:
        end = at + tensor.nbytes
        kind = DTYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return [struct.pack("<Q", len(raw)), raw, *(_bytes(tensor) for _, tensor in ordered)]


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.flatten().view(torch.uint8).numpy().data
    return data


def _stored(parts: Parts) -> dict[str, Tensor]:
    """The tensors of a file, on their way to the CPU: packed words, scales, shape. From a GPU
    they come to pinned memory, which is several times quicker."""
    tensors: dict[str, Tensor] = {}
    for name, (codes, scales) in parts.items():
        words, scales = formats.pack(codes), scales.to(torch.bfloat16).contiguous()
        tensors[f"{name}.weight_packed"] = words.to("cpu", non_blocking=True)
        tensors[f"{name}.weight_scale"] = scales.to("cpu", non_blocking=True)
        tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape, dtype=torch.int64)
    return tensors


def _replace(path: Path, pieces: list[Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _manifest(
    experts: Experts,
    calibration: Calibration,
    out: Path,
    job: Job,
    digest: str,
    unrouted: list[str],
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for expert in range(experts.count):
        with safe_open(path_of(out, expert), "pt") as file:
            tensors.update(json.loads(file.metadata()[digest]))
    counted = [t for t in tensors.values() if t["error"] is not None]
    tokens = sum(t["tokens"] for t in counted)

    def mean(key: str) -> float | None:
        """Weighted with tokens: the experts that are used most decide."""
        return round(sum(t[key] * t["tokens"] for t in counted) / tokens, 6) if tokens else None

    return {
        "schema": SCHEMA,
        "digest": digest,
        "options": asdict(job.options),
        "threshold": job.threshold,
        "unrouted": job.unrouted,
        "group_size": GROUP,
        "source": experts.digest(),
        "calibration": {**calibration.about, "digest": calibration.digest()},
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
        "device": torch.cuda.get_device_name() if calibration.device.type == "cuda" else "cpu",
        "summary": {
            "tensors": len(tensors),
            "rounded_to_nearest": sorted(n for n, t in tensors.items() if t["method"] == "rtn"),
            "unrouted": unrouted,
            "error": mean("error"),
            "error_rtn": mean("error_rtn"),
            "tokens_least": min((t["tokens"] for t in tensors.values()), default=0),
            "tokens_most": max((t["tokens"] for t in tensors.values()), default=0),
        },
        "tensors": tensors,
    }


__all__ = ["Job", "Problem", "run", "warm_up"]
