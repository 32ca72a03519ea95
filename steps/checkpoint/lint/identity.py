"""What a checkpoint is that cannot be examined, in true words."""

from __future__ import annotations

import re

from runbook.steps.checkpoint.checkpoint import Checkpoint

KNOWN = "known are DeepSeek-V4 (with an MTP block or DSpark) and DeepSeek-V3"
LATER_V4 = (
    "a later DeepSeek-V4: it has a layout and a reading of quantization_config of its own, which "
    "DeepSeek-V4's would misjudge"
)
LATER_V3 = "a later DeepSeek-V3: it has an indexer, which DeepSeek-V3's layout lacks"
RELATIVES = (
    (re.compile(r"deepseek_?v4_?\d", re.IGNORECASE), LATER_V4),
    (re.compile(r"deepseek_?v3_?\d", re.IGNORECASE), LATER_V3),
)
FAMILIES = (
    (re.compile(r"^(model\.)?layers\.\d+\.self_attn\.q_proj\.weight$"), "Llama-style"),
    (re.compile(r"^(model\.)?layers\.\d+\.self_attn\.qkv_proj\.weight$"), "Llama-style, fused"),
    (re.compile(r"^transformer\.h\.\d+\."), "GPT-2-style"),
)
"""How tensors are named, by one of them."""


def identity(checkpoint: Checkpoint, names: frozenset[str]) -> str:
    """The names that a config gives its architecture, and what is known of it."""
    tensors = [*checkpoint.index, *(t.name for t in checkpoint.stale)]
    style = next((words for pattern, words in FAMILIES if any(map(pattern.match, tensors))), "")
    told = [f"architecture {', '.join(sorted(names))[:120] or 'not named'}"]
    told += [words for pattern, words in RELATIVES if any(map(pattern.search, names))][:1]
    if style:
        told.append(f"{style} tensors")
    told.append(f"{len(tensors)} tensors in {len(checkpoint.headers)} files")
    return f"{'; '.join(told)}; {KNOWN}"
