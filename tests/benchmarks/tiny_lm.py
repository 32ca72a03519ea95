"""A DeepSeek-V3 language model with an MTP block, small enough to train on a CPU in minutes.

    VLLM_PYTHON tests/benchmarks/tiny_lm.py MODEL.json TEXT TOKENIZER.json OUT.npz

`Model` computes in FP32 what vLLM serves (`deepseek_v2.py`, `deepseek_mtp.py`): latent attention
with interleaved rotary positions, experts chosen by sigmoid scores and a correction bias, and an
MTP block that predicts the token after next from the normed hidden state of a position and the
embedding of the token after it. Names are those of the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from gptq_data import snap

BOS = 0
LENGTH, BATCH = 160, 12
"""Tokens of a training sample, `BOS` included, and samples of a step."""
RATE, WARM, DECAY, CLIP = 3e-3, 40, 0.1, 1.0
BALANCE = 2e-3
"""Step of the correction bias towards an even use of experts (DeepSeek-V3, section 2.1.2)."""
GRID_FROM = 0.6
"""From this share of the training on, experts are trained as the FP4 values they are stored as."""


class Model:
    """`weights` [out, in] by their names in the checkpoint, dequantised. Tokens are [batch,
    length]; every sequence starts at position 0."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.config = config
        self.weights = weights
        self.layers: int = config["num_hidden_layers"]
        self.counts: dict[str, Tensor] = {}
        """Tokens of each expert in the last pass, by the name of the block."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the output head and the MTP block read, [batch, length, hidden]."""
        x = self._embed(tokens)
        for i in range(self.layers):
            x = self._layer(f"model.layers.{i}", x)
        return self._norm("model.norm", x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._linear("lm_head", hidden)

    def draft(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Logits [batch, length - 1, vocabulary]: row i is the MTP block's for token i + 2."""
        block = f"model.layers.{self.layers}"
        following = self._embed(tokens[:, 1:])
        following = torch.cat([torch.zeros_like(following[:, :1]), following[:, 1:]], 1)
        parts = (
            self._norm(f"{block}.enorm", following),
            self._norm(f"{block}.hnorm", hidden[:, :-1]),
        )
        x = self._layer(block, self._linear(f"{block}.eh_proj", torch.cat(parts, -1)))
        return self.logits(self._norm(f"{block}.shared_head.norm", x))

    def routed(self, name: str, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Output of a block's routed experts: x [n, hidden], experts and weights [n, k]."""
        result = torch.zeros_like(x)
        for expert in range(self.config["n_routed_experts"]):
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            made = self._swiglu(f"{name}.experts.{expert}", x[rows])
            result = result.index_add(0, rows, made * shares[rows, slots].unsqueeze(1))
        return result

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weights["model.embed_tokens.weight"])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, self.config["rms_norm_eps"])

    def _layer(self, name: str, x: Tensor) -> Tensor:
        x = x + self._attention(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x))
        normed = self._norm(f"{name}.post_attention_layernorm", x)
        if f"{name}.mlp.gate.weight" in self.weights:
            return x + self._experts(f"{name}.mlp", normed)
        return x + self._swiglu(f"{name}.mlp", normed)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        c = self.config
        batch, length, _ = x.shape
        heads, plain, rotary = (
            c["num_attention_heads"],
            c["qk_nope_head_dim"],
            c["qk_rope_head_dim"],
        )
        q = self._norm(f"{name}.q_a_layernorm", self._linear(f"{name}.q_a_proj", x))
        q = self._linear(f"{name}.q_b_proj", q).view(batch, length, heads, plain + rotary)
        latent = self._linear(f"{name}.kv_a_proj_with_mqa", x)
        kv, k_rotary = latent.split([c["kv_lora_rank"], rotary], -1)
        kv = self._linear(f"{name}.kv_b_proj", self._norm(f"{name}.kv_a_layernorm", kv))
        k, v = kv.view(batch, length, heads, -1).split([plain, c["v_head_dim"]], -1)
        q = torch.cat([q[..., :plain], self._rotated(q[..., plain:])], -1)
        k_rotary = self._rotated(k_rotary.unsqueeze(2)).expand(-1, -1, heads, -1)
        k = torch.cat([k, k_rotary], -1)
        parts = (part.transpose(1, 2) for part in (q, k, v))
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self._linear(f"{name}.o_proj", seen.transpose(1, 2).reshape(batch, length, -1))

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary positions of x [batch, length, heads, d]: pairs are neighbours."""
        half = x.shape[-1] // 2
        steps = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angles = torch.outer(torch.arange(x.shape[1]), steps).unsqueeze(1)
        cosine, sine = angles.cos(), angles.sin()
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1).flatten(-2)

    def _experts(self, name: str, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        scores = self._linear(f"{name}.gate", flat).sigmoid()
        biased = scores + self.weights[f"{name}.gate.e_score_correction_bias"]
        chosen = biased.topk(self.config["num_experts_per_tok"]).indices
        shares = scores.gather(1, chosen)
        shares = shares / shares.sum(1, keepdim=True)
        self.counts[name] = torch.bincount(chosen.flatten(), minlength=scores.shape[1])
        made = self.routed(name, flat, chosen, shares)
        return (made + self._swiglu(f"{name}.shared_experts", flat)).view_as(x)

    def _swiglu(self, name: str, x: Tensor) -> Tensor:
        gate, up = self._linear(f"{name}.gate_proj", x), self._linear(f"{name}.up_proj", x)
        return self._linear(f"{name}.down_proj", F.silu(gate) * up)


def initial(config: dict[str, Any], shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Weights to begin with. The MTP block's shared expert is zero, and stays so: what the block's
    experts add to its drafts comes from those that are quantised."""
    generator = torch.Generator().manual_seed(seed)
    block = f"model.layers.{config['num_hidden_layers']}.mlp.shared_experts."
    made = {}
    for name, shape in shapes.items():
        if name.startswith(block) or name.endswith("correction_bias"):
            made[name] = torch.zeros(shape)
        elif len(shape) == 1:
            made[name] = torch.ones(shape)
        else:
            deviation = (
                0.02 if name.endswith(("tokens.weight", "head.weight")) else shape[1] ** -0.5
            )
            made[name] = torch.randn(shape, generator=generator) * deviation
    return made


def on_grid(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those of routed experts rounded to FP4; gradients pass as if they were not
    (straight-through)."""
    return {
        name: w + (snap(w) - w).detach() if ".mlp.experts." in name else w
        for name, w in weights.items()
    }


def losses(model: Model, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of the next token, and of the MTP block's token after next."""
    hidden = model.hidden(tokens)
    main = F.cross_entropy(model.logits(hidden)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    drafts = model.draft(tokens, hidden)[:, :-1].flatten(0, 1)
    return main, F.cross_entropy(drafts, tokens[:, 2:].flatten())


def train(
    config: dict[str, Any], shapes: dict[str, list[int]], text: Tensor, steps: int, seed: int
) -> dict[str, Tensor]:
    """Train model and MTP block together on windows of `text` (token ids); returns weights."""
    weights = initial(config, shapes, seed)
    biases = {n: w for n, w in weights.items() if n.endswith("correction_bias")}
    learned = [w.requires_grad_() for n, w in weights.items() if n not in biases]
    matrices = [w for w in learned if w.dim() == 2]
    rest = [w for w in learned if w.dim() == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.95),
    )
    chosen = torch.Generator().manual_seed(seed + 1)
    began = time.perf_counter()
    for step in range(steps):
        share = max(0.0, (step - WARM) / max(1, steps - WARM))
        rate = RATE * min((step + 1) / WARM, 0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=chosen)
        tokens = text[starts + torch.arange(LENGTH)]
        tokens[:, 0] = BOS
        model = Model(config, on_grid(weights) if step >= GRID_FROM * steps else weights)
        main, drafted = losses(model, tokens)
        optimiser.zero_grad()
        (main + drafted).backward()
        torch.nn.utils.clip_grad_norm_(learned, CLIP)
        optimiser.step()
        for name, counts in model.counts.items():
            few = counts.sum() / len(counts) - counts
            biases[f"{name}.gate.e_score_correction_bias"] += BALANCE * few.sign()
        if step % 50 == 49 or step == steps - 1:
            seconds = round(time.perf_counter() - began, 1)
            line = {"step": step + 1, "loss": round(main.item(), 4)}
            line |= {"loss_mtp": round(drafted.item(), 4), "seconds": seconds}
            print(json.dumps({"kind": "training", **line}), flush=True)
    # Not `on_grid`, whose sums may miss the FP4 values by a rounding.
    detached = {name: w.detach() for name, w in weights.items()}
    return {name: snap(w) if ".mlp.experts." in name else w for name, w in detached.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="JSON with the config and the shapes of weights")
    parser.add_argument("text", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    from tokenizers import Tokenizer

    described = json.loads(given.model.read_text())
    lines = given.text.read_text().splitlines(keepends=True)
    encoded = Tokenizer.from_file(str(given.tokenizer)).encode_batch(lines)
    text = torch.tensor([token for line in encoded for token in line.ids])
    trained = train(described["config"], described["shapes"], text, given.steps, given.seed)
    partial = given.out.with_suffix(".partial.npz")
    np.savez(partial, **{name: w.numpy() for name, w in trained.items()})
    partial.replace(given.out)


if __name__ == "__main__":
    main()
