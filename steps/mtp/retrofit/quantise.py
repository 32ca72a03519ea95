"""Quantises all routed experts of one MTP block: resumable, with a manifest.

Experts are taken in fixed batches, so that a run that was interrupted gives the same bytes as one
that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files, loss
from .calibration import Calibration, Inputs
from .files import Parts, done
from .gptq import GROUP, Options, Quantised, nearest, quantise
from .hessian import NotDefinite, shrink
from .manifest import MANIFEST, SCHEMA, manifest
from .settings import Settings
from .source import Experts, InputError
from .timer import Timer


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
    settings: Settings,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Quantise what is not yet in `out`; writes and returns the manifest. Raises `InputError`."""
    empty = _unrouted(experts, calibration, settings)
    out.mkdir(parents=True, exist_ok=True)
    digest = _digest(experts, calibration, settings)
    timer = Timer(calibration.device)
    batches = [
        range(i, min(i + settings.batch, experts.count))
        for i in range(0, experts.count, settings.batch)
    ]
    todo = [b for b in batches if not all(done(out, e, digest) for e in b)]
    finished = experts.count - sum(len(b) for b in todo)
    report(finished, experts.count)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(4) as writer:
        written: list[Future[None]] = []
        for batch, weights in _ahead(reader, experts, todo):
            timer.stage("read")
            for expert, parts, records in _batch(weights, batch, calibration, settings, timer):
                _raise_failed(written)
                ready = files.event(calibration.device)
                written.append(
                    writer.submit(files.write, out, expert, parts, records, digest, ready)
                )
            timer.stage("errors")
            finished += len(batch)
            report(finished, experts.count)
        for future in written:
            future.result()
        timer.stage("write")
    made = manifest(experts, calibration, out, settings, digest, empty)
    files.replace(out / MANIFEST, [(json.dumps(made, indent=1) + "\n").encode()])
    timer.stage("manifest")
    return {**made, "seconds": timer.seconds}


def _unrouted(experts: Experts, calibration: Calibration, settings: Settings) -> list[str]:
    """The experts that no token was routed to. Raises `InputError` if there may be none."""
    counts = calibration.counts()
    if counts is None:
        return []
    if len(counts) != experts.count:
        raise InputError(
            f"the captures are of {len(counts)} experts, {experts.prefix} has {experts.count}"
        )
    empty = [e for e, count in enumerate(counts) if not count]
    if empty and settings.unrouted == "error":
        others = f" (nor to {len(empty) - 1} others of {experts.count})" if empty[1:] else ""
        raise InputError(
            f"no captured token was routed to the expert of {experts.names(empty[0])[0]}{others}: "
            "capture more prompts, or set `unrouted: nearest` to round such experts to nearest"
        )
    return [f"{experts.prefix}.{e}" for e in empty]


def _digest(experts: Experts, calibration: Calibration, settings: Settings) -> str:
    parts = [SCHEMA, asdict(settings), experts.digest(), calibration.digest(), experts.prefix]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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


def _raise_failed(futures: list[Future[None]]) -> None:
    for future in futures:
        if future.done():
            future.result()


def _batch(
    weights: list[dict[str, Tensor]],
    batch: range,
    calibration: Calibration,
    settings: Settings,
    timer: Timer,
) -> Iterator[tuple[int, Parts, dict[str, Any]]]:
    """Results and records of each expert of a batch."""
    inputs = [calibration.inputs(e, w) for e, w in zip(batch, weights, strict=True)]
    for taken, named in zip(inputs, weights, strict=True):
        taken.check(next(iter(named)))
    timer.stage("moments")
    joint = torch.stack([torch.cat(list(w.values())[:2]) for w in weights])
    down = torch.stack([list(w.values())[2] for w in weights])
    first, first_methods = _side(joint, inputs, "into", settings, timer)
    second, second_methods = _side(down, inputs, "out", settings, timer)
    first_errors = loss.errors(joint, first, [x.held for x in inputs], 2)
    second_errors = loss.errors(down, second, [x.held_out for x in inputs], 1)
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
    weights: Tensor, inputs: list[Inputs], side: str, settings: Settings, timer: Timer
) -> tuple[Quantised, list[str]]:
    """Quantise one kind of linear [batch, rows, columns] for a batch of experts."""
    moments = [getattr(x, side) for x in inputs]
    options = settings.options
    h = torch.stack([m.hessian() for m in moments])
    methods = ["gptq" if m.count >= max(1, settings.threshold) else "rtn" for m in moments]
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
