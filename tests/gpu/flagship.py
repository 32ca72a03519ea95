"""Write a checkpoint as large as the flagship's, of random content.

    python flagship.py OUT [LAYERS] [RELEASE]

Names, shapes, dtypes and sizes are those of DeepSeek-V4-Flash with INT4 experts, FP8 attention and
a quantised MTP head: 43 layers take 156 GB, 6 layers 27 GB. The RELEASE `0731` has MXFP4 experts
and a DSpark draft of three stages: 167 GB. Answers are noise, and a draft is accepted by chance
only: good for size, memory, start and speed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runbook.steps.kernels.synthetic import Written, write
from runbook.steps.publish.checkpoint import Format
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
DSPARK = {
    # One more entry for each stage of the draft, of which the field below says nothing.
    "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0, 0, 0],
    "num_nextn_predict_layers": 1,
    "dspark_block_size": 5,
    "dspark_noise_token_id": 128799,
    "dspark_target_layer_ids": [40, 41, 42],
    "dspark_markov_rank": 256,
}
RELEASES: dict[str, tuple[Format, dict[str, Any]]] = {
    "flagship": ("seed", WIDTHS),
    "0731": ("native", WIDTHS | DSPARK),
}
"""The format of the weights, and the fields of config.json."""


def source(folder: Path, release: str = "flagship") -> None:
    """Write config, tokenizer and the other small files of a release, made from those of the
    rehearsal checkpoint: the vocabulary is filled up with words that mean nothing."""
    form, fields = RELEASES[release]
    with tempfile.TemporaryDirectory() as scratch:
        write_tiny(Path(scratch), "v4", format=form)
        folder.mkdir(parents=True, exist_ok=True)
        for path in Path(scratch).glob("*.json"):
            if not path.name.endswith(".index.json"):
                content = json.loads(path.read_text())
                _widen(path.name, content, fields)
                text = json.dumps(content, ensure_ascii=False, indent=1)
                (folder / path.name).write_text(text)


def _widen(name: str, content: dict[str, Any], fields: dict[str, Any]) -> None:
    if name == "config.json":
        content |= fields
        if groups := content["quantization_config"].get("config_groups"):
            groups["group_1"]["weights"]["actorder"] = None
    elif name == "tokenizer.json":
        vocabulary = content["model"]["vocab"]
        used = set(vocabulary.values()) | {added["id"] for added in content["added_tokens"]}
        for i in range(fields["vocab_size"]):
            if i not in used:
                vocabulary[f"\u0120w{i:06d}"] = i
    elif name == "tokenizer_config.json":
        content["model_max_length"] = fields["max_position_embeddings"]


def make(out: Path, layers: int = LAYERS, release: str = "flagship") -> Written:
    with tempfile.TemporaryDirectory() as folder:
        source(Path(folder), release)
        return write(Path(folder), out, layers)


if __name__ == "__main__":
    began = time.monotonic()
    given = dict(enumerate(sys.argv))
    made = make(Path(sys.argv[1]), int(given.get(2, LAYERS)), given.get(3, "flagship"))
    print(
        f"{made.layers} layers, {made.tensors} tensors, {made.bytes / 1e9:.1f} GB "
        f"in {time.monotonic() - began:.1f} s"
    )
