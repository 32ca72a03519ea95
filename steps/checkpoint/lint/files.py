"""Checks of the files themselves: headers, lengths, offsets, index."""

from __future__ import annotations

from collections.abc import Iterator

from runbook.steps.checkpoint.checkpoint import (
    INDEX,
    Checkpoint,
    CheckpointError,
    foreign,
    read_document,
)
from runbook.steps.checkpoint.code import brought
from runbook.steps.checkpoint.lint.subject import Fault, Subject, fault

TOKENIZER = "tokenizer_config.json"


def check(about: Subject) -> Iterator[Fault]:
    found = about.checkpoint
    yield from weights(found)
    yield from fault("file_odd", "{n} entries that are no files", found.odd)
    yield from _code(found)
    yield from _tokenizer(found)
    for file in found.unreadable:
        yield Fault("header_invalid", f"{file.file}: {file.message}", (file.file,))
    for shard, header in found.headers.items():
        size = found.sizes[shard]
        if size != header.end:
            yield Fault(
                "shard_length",
                f"{shard} has {size} bytes, its header asks for {header.end}",
                (shard,),
            )
        yield from fault("shard_layout", f"{shard}: {{n}} tensors", header.contradictions())
    broken = {p.file for p in found.unreadable}
    files = set(found.index.values())
    yield from fault(
        "shard_missing", "{n} files of the index are not there", sorted(files - set(found.sizes))
    )
    if not found.indexed and len(found.headers) > 1:
        yield Fault("index_missing", f"{len(found.headers)} shards and no {INDEX}", (INDEX,))
    present = files & set(found.sizes) - broken
    yield from fault(
        "index_stale",
        "{n} tensors of the index are not in their shard",
        sorted(n for n, s in found.index.items() if s in present and n not in found.tensors),
    )
    yield from fault(
        "tensor_duplicate",
        "{n} tensors lie in more than one listed shard",
        sorted({t.name for t in found.stale if t.shard in files and t.name in found.index}),
    )
    if about.layout is not None:
        yield from fault(
            "index_lacks", "{n} tensors of the model are in no entry of the index", lacking(about)
        )
    total = sum(t.nbytes for t in found.tensors.values())
    if found.total_size not in (None, 0, total) and not broken:
        yield Fault("index_size", f"total_size is {found.total_size}, the tensors have {total}")


def weights(found: Checkpoint) -> Iterator[Fault]:
    """Whether there are weights in the one format that is read here."""
    if any(name.endswith(".safetensors") for name in found.sizes):
        return
    others = foreign(found.sizes)
    if others:
        kinds = ", ".join(dict.fromkeys(others.values()))
        yield from fault("weights_foreign", f"{{n}} files are {kinds}; no safetensors", others)
    elif not found.index:
        yield Fault("weights_absent", "there is no safetensors file")


def _code(found: Checkpoint) -> Iterator[Fault]:
    code = brought(found)
    named = f"; auto_map names {', '.join(code.classes)[:200]}" if code.classes else ""
    if code.files or code.classes:
        files = [f"{name} sha256:{digest or 'unread'}" for name, digest in code.files.items()]
        yield Fault("custom_code", f"{len(files)} files of Python{named}", tuple(files))


def _tokenizer(found: Checkpoint) -> Iterator[Fault]:
    if TOKENIZER in found.sizes:
        try:
            read_document(TOKENIZER, found.sizes, found.fetch)
        except CheckpointError as error:
            yield Fault("tokenizer_invalid", error.message, (TOKENIZER,))


def lacking(about: Subject) -> list[str]:
    """Tensors that belong to the model, lie in a shard, and are not in the index."""
    assert about.layout is not None
    known = about.layout
    bases = known.linears
    return sorted(
        {
            t.name
            for t in about.checkpoint.stale
            if t.name not in about.checkpoint.index
            and (t.name in known.plains or t.name.rpartition(".")[0] in bases)
        }
    )
