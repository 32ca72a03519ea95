"""Write a checkpoint as large as the flagship's, of random content.

    python flagship.py OUT [LAYERS]

Names, shapes, dtypes and sizes are those of DeepSeek-V4-Flash with INT4 experts, FP8 attention and
a quantised MTP head: 43 layers take 156 GB, 6 layers 27 GB. Answers are noise, and a draft is
accepted by chance only: good for size, memory, start and speed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runbook.steps.kernels.synthetic import Written, write
from runbook.steps.publish.checkpoint import write as write_tiny

LAYERS = 43
WIDTHS = {
    "vocab_size": 129280,
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "n_routed_experts": 256,
    "num_hash_layers": 3,
    "index_n_heads": 64,
    "max_position_embeddings": 1048576,
    # Two layers of plain windows, then compression by 4 and 128 in turn; the head has a window.
    "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0],
}
"""What the flagship's config.json has in place of the rehearsal checkpoint's small numbers."""


def source(folder: Path) -> None:
    """Write config, tokenizer and the other small files of the flagship, made from those of the
    rehearsal checkpoint: the vocabulary is filled up with words that mean nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tiny(Path(scratch), "v4")
        folder.mkdir(parents=True, exist_ok=True)
        for path in Path(scratch).glob("*.json"):
            if not path.name.endswith(".index.json"):
                content = json.loads(path.read_text())
                _widen(path.name, content)
                text = json.dumps(content, ensure_ascii=False, indent=1)
                (folder / path.name).write_text(text)


def _widen(name: str, content: dict[str, Any]) -> None:
    if name == "config.json":
        content |= WIDTHS
        weights = content["quantization_config"]["config_groups"]["group_1"]["weights"]
        weights["actorder"] = None
    elif name == "tokenizer.json":
        vocabulary = content["model"]["vocab"]
        used = set(vocabulary.values()) | {added["id"] for added in content["added_tokens"]}
        for i in range(WIDTHS["vocab_size"]):  # type: ignore[call-overload]
            if i not in used:
                vocabulary[f"\u0120w{i:06d}"] = i
    elif name == "tokenizer_config.json":
        content["model_max_length"] = WIDTHS["max_position_embeddings"]


def make(out: Path, layers: int = LAYERS) -> Written:
    with tempfile.TemporaryDirectory() as folder:
        source(Path(folder))
        return write(Path(folder), out, layers)


if __name__ == "__main__":
    began = time.monotonic()
    made = make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else LAYERS)
    print(
        f"{made.layers} layers, {made.tensors} tensors, {made.bytes / 1e9:.1f} GB "
        f"in {time.monotonic() - began:.1f} s"
    )
