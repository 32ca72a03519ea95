"""Checks of the draft head: an MTP block, or the stages of DSpark."""

from __future__ import annotations

from collections.abc import Iterator

from runbook.steps.checkpoint.layout import Layout, dspark, mtp_count
from runbook.steps.checkpoint.lint.subject import Fault, Subject, fault


def check(about: Subject, layout: Layout) -> Iterator[Fault]:
    names = about.checkpoint.index
    unlisted = any(layout.layer(t.name) in layout.mtp_prefixes for t in about.checkpoint.stale)
    if not about.mtp_blocks() and not unlisted:
        declared = mtp_count(about.checkpoint.config)
        detail = f"no tensor {layout.mtp_prefixes[0]}*; num_nextn_predict_layers is {declared}"
        if layout.draft == "dspark":
            detail = f"config.json describes a DSpark draft; no tensor {layout.mtp_prefixes[0]}*"
        yield Fault("mtp_stripped", detail)
    elif layout.draft == "dspark":
        yield from _dspark(about, layout)
    else:
        yield from _blocks(about, layout)
    blocks = tuple(about.mtp_blocks())
    absent = [a for a in layout.aliases if layout.layer(a) in blocks and a not in names]
    yield from fault("mtp_aliases", "{n} copies of embedding and head are not there", absent)


def _blocks(about: Subject, layout: Layout) -> Iterator[Fault]:
    declared = mtp_count(about.checkpoint.config)
    found = about.mtp_blocks()
    if not declared:
        yield Fault(
            "mtp_undeclared",
            f"the block {layout.mtp_prefixes[0]}* is there and num_nextn_predict_layers is 0",
        )
    elif found and declared > len(found):
        yield Fault(
            "mtp_overdeclared",
            f"num_nextn_predict_layers is {declared}, there are tensors of {len(found)}",
        )


def _dspark(about: Subject, layout: Layout) -> Iterator[Fault]:
    config = about.checkpoint.config
    wanted = len(layout.mtp_prefixes)
    stored = dspark.stages_stored(about.checkpoint.index)
    yield Fault("dspark_draft", f"the draft is DSpark, of {wanted} stages")
    yield Fault("dspark_unserved", "the draft is DSpark")
    if stored and stored != set(range(wanted)):
        there = ", ".join(map(str, sorted(stored)[:8]))
        yield Fault(
            "dspark_stages",
            f"there are tensors of stage {there}; vLLM builds {wanted} stages, from 0 "
            "(n_mtp_layers, else 3)",
        )
    yield from _layer_ids(config[dspark.LAYER_IDS], layout.layers)
    noise = config.get(dspark.NOISE)
    words = config["vocab_size"]
    if type(noise) is not int or not 0 <= noise < words:
        yield Fault("dspark_noise_id", f"{dspark.NOISE} is {noise!r:.40}, of {words} tokens")
    size = config.get(dspark.BLOCK)
    if type(size) is not int or size < 1:
        yield Fault("dspark_field", f"{dspark.BLOCK} is {size!r:.40}")
    ratios = config["compress_ratios"]
    if len(ratios) != layout.layers + wanted or any(ratios[layout.layers :]):
        yield Fault(
            "dspark_field",
            f"compress_ratios has {len(ratios)} entries; the {layout.layers} layers and {wanted} "
            "stages need one each, 0 for a stage",
        )
    confidence = [n for n in layout.optional if n not in about.checkpoint.index]
    yield from fault("dspark_confidence", "no confidence head", confidence)


def _layer_ids(ids: list[int], layers: int) -> Iterator[Fault]:
    """The layers of the target whose hidden states the draft takes in, counted from 0."""
    if not ids or any(i >= layers for i in ids) or sorted(set(ids)) != ids:
        yield Fault(
            "dspark_layer_ids",
            f"{dspark.LAYER_IDS} is {ids!r:.60}, of the layers 0 to {layers - 1}",
        )
    elif ids != list(range(layers - len(ids), layers)):
        yield Fault("dspark_layers_other", f"{dspark.LAYER_IDS} is {ids!r:.60} of {layers} layers")
