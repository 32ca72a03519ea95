"""DeepSeek-V4, small: every kind of layer of the flagship, in its names and its formats.

The shapes that vLLM's CPU kernels require are kept: head dimension 512, rotary 64, indexer
128 x top-k 512, compression 4 and 128, 64 experts. Hyper-connections are set to a plain residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from runbook.steps.publish.checkpoint import weights as shared
from runbook.steps.publish.checkpoint.script import END_THINK, MARK, SCRIPTS
from runbook.steps.publish.checkpoint.tensors import Array, noise
from runbook.steps.publish.checkpoint.weights import (
    FAINT,
    HIDDEN,
    UNIT,
    VOCABULARY,
    Weights,
)

SCRIPT = SCRIPTS["v4"]
CHAT_TEMPLATE = None
"""vLLM encodes V4's prompts itself (`--tokenizer-mode deepseek_v4`)."""

LAYERS = 4
HASH_LAYERS = 1
RATIOS = (0, 0, 4, 128, 0)
"""Compression of each layer's attention, the MTP layer's last."""
DETECTS = 1
"""The layer whose attention looks for the tools."""
HEADS, HEAD, Q_RANK, O_GROUPS, O_RANK = 8, 512, 128, 4, 128
INDEX_HEADS, INDEX_HEAD = 8, 128
EXPERTS, PER_TOKEN = 64, 6
STREAMS = 4
"""Residual streams of the hyper-connections (`hc_mult`)."""
THIRD = np.float32(-1.0986123)
"""ln(1/3): the logit that makes `STREAMS` equal mixing weights sum to one."""

Looks: TypeAlias = Callable[[Array, Array, Array, Array, Array], None]
"""Writes into `wq_a`, `wq_b`, `wkv`, `wo_a` and `wo_b`."""


class Writer(shared.Writer):
    """Collects the tensors of one part of it."""

    def __init__(self, tensor_parallel: int) -> None:
        super().__init__(SCRIPT, tensor_parallel)

    def noise(self, name: str, *shape: int, deviation: float = FAINT) -> Array:
        return noise(name, shape, deviation)

    def hyper_connections(self, layer: str) -> None:
        rows = (2 + STREAMS) * STREAMS
        base = np.concatenate([np.full(STREAMS, THIRD), np.zeros(rows - STREAMS)])
        for part in ("attn", "ffn"):
            name = f"{layer}.hc_{part}"
            fn = self.noise(f"{name}_fn", rows, STREAMS * HIDDEN)
            self.weights.put(f"{name}_fn", fn, np.float32)
            self.weights.put(f"{name}_base", base, np.float32)
            self.weights.put(f"{name}_scale", np.full(3, 0.1), np.float32)

    def hyper_head(self, prefix: str) -> None:
        fn = self.noise(f"{prefix}hc_head_fn", STREAMS, STREAMS * HIDDEN)
        self.weights.put(f"{prefix}hc_head_fn", fn, np.float32)
        self.weights.put(f"{prefix}hc_head_base", np.full(STREAMS, THIRD), np.float32)
        self.weights.put(f"{prefix}hc_head_scale", np.full(1, 0.1), np.float32)

    def attention(self, layer: str, ratio: int, looks: Looks | None = None) -> None:
        """`looks` writes what the attention is to find into its projections."""
        name = f"{layer}.attn"
        q_a = self.noise(f"{name}.wq_a", Q_RANK, HIDDEN)
        q_b = self.noise(f"{name}.wq_b", HEADS * HEAD, Q_RANK)
        kv = self.noise(f"{name}.wkv", HEAD, HIDDEN)
        o_a = self.noise(f"{name}.wo_a", O_GROUPS * O_RANK, HEADS * HEAD // O_GROUPS)
        o_b = self.noise(f"{name}.wo_b", HIDDEN, O_GROUPS * O_RANK)
        if looks:
            looks(q_a, q_b, kv, o_a, o_b)
        projections = {"wq_a": q_a, "wq_b": q_b, "wkv": kv, "wo_a": o_a, "wo_b": o_b}
        self.weights.fp8.update({f"{name}.{key}": w for key, w in projections.items()})
        put = self.weights.put
        put(f"{layer}.attn_norm.weight", np.full(HIDDEN, UNIT))
        put(f"{name}.q_norm.weight", np.full(Q_RANK, np.float32(Q_RANK**-0.5)))
        put(f"{name}.kv_norm.weight", np.ones(HEAD))
        put(f"{name}.attn_sink", np.zeros(HEADS), np.float32)
        if ratio > 1:
            self._compressor(f"{name}.compressor", ratio, HEAD)
        if ratio == 4:
            self._compressor(f"{name}.indexer.compressor", ratio, INDEX_HEAD)
            indexer = f"{name}.indexer"
            q = self.noise(f"{indexer}.wq_b", INDEX_HEADS * INDEX_HEAD, Q_RANK, deviation=0.02)
            self.weights.fp8[f"{indexer}.wq_b"] = q
            scores = self.noise(f"{indexer}.weights_proj", INDEX_HEADS, HIDDEN, deviation=0.02)
            put(f"{indexer}.weights_proj.weight", scores)

    def detect(self, q_a: Array, q_b: Array, kv: Array, o_a: Array, o_b: Array) -> None:
        """Where thinking ends, attend to `MARK` and note it in the stream; every other token
        attends to all but `MARK`."""
        looks, ignores = 5, 9
        heads = np.arange(HEADS) * HEAD
        q_b[heads + looks, 0] = 1
        q_b[heads + ignores, 1] = 1
        for word, dimension in [*self.stream.into.items(), ("", self.stream.other)]:
            q_a[0 if word == END_THINK else 1, dimension] = 1
            kv[looks if word == MARK else ignores, dimension] = 1
        o_a[0, looks] = 1
        o_b[self.stream.offered, 0] = 3 / HEAD**0.5

    def _compressor(self, name: str, ratio: int, head: int) -> None:
        width = head * (2 if ratio == 4 else 1)
        self.weights.put(f"{name}.ape", self.noise(f"{name}.ape", ratio, width), np.float32)
        self.weights.put(f"{name}.norm.weight", np.ones(head))
        for part in ("wkv", "wgate"):
            linear = self.noise(f"{name}.{part}", width, HIDDEN, deviation=0.02)
            self.weights.fp8_seed[f"{name}.{part}"] = linear

    def experts(
        self,
        layer: str,
        table: dict[str, str],
        first: int,
        *,
        hashed: bool = False,
        gain: float = 0.7,
        condition: int | None = None,
    ) -> None:
        name = f"{layer}.ffn"
        made = shared.experts(
            name,
            self.stream,
            table,
            count=EXPERTS,
            per_token=PER_TOKEN,
            intermediate=self.intermediate,
            first=first,
            stride=41,
            router=4,
            gain=gain,
            condition=condition,
        )
        put = self.weights.put
        put(f"{layer}.ffn_norm.weight", np.full(HIDDEN, UNIT))
        put(f"{name}.gate.weight", made.gate)
        if hashed:
            token = np.arange(VOCABULARY)[:, None]
            routes = (token + 11 * np.arange(PER_TOKEN)) % EXPERTS
            for word, chosen in made.chosen.items():
                routes[self.ids[word]] = chosen
            put(f"{name}.gate.tid2eid", routes, np.int64)
        else:
            put(f"{name}.gate.bias", np.zeros(EXPERTS), np.float32)
        for expert in range(EXPERTS):
            self.weights.int4 |= {
                f"{name}.experts.{expert}.w1": made.up[expert, 0],
                f"{name}.experts.{expert}.w3": made.up[expert, 1],
                f"{name}.experts.{expert}.w2": made.down[expert],
            }
        size = (self.intermediate, HIDDEN)
        for part, shape in (("w1", size), ("w3", size), ("w2", size[::-1])):
            linear = self.noise(f"{name}.shared.{part}", *shape, deviation=0.02)
            self.weights.fp8_native[f"{name}.shared_experts.{part}"] = linear


def model(tensor_parallel: int) -> list[Weights]:
    """The tensors of the model, one part for each shard."""
    transitions = list(SCRIPT.transitions.items())
    ends = Writer(tensor_parallel)
    ends.ends("embed", "head", "norm")
    ends.hyper_head("")
    parts = [ends]
    for i in range(LAYERS):
        layer, writer = f"layers.{i}", Writer(tensor_parallel)
        writer.hyper_connections(layer)
        writer.attention(layer, RATIOS[i], writer.detect if i == DETECTS else None)
        writer.experts(layer, dict(transitions[i::LAYERS]), 13 * i, hashed=i < HASH_LAYERS)
        parts.append(writer)
    return [part.weights for part in parts]


def head(tensor_parallel: int) -> Weights:
    """The tensors of the MTP head. Like the published head it has no embedding and no output
    head of its own: vLLM shares the model's."""
    layer, writer = "mtp.0", Writer(tensor_parallel)
    writer.hyper_connections(layer)
    writer.hyper_head(f"{layer}.")
    writer.attention(layer, RATIOS[-1], writer.detect)
    writer.experts(layer, SCRIPT.head, 99, hashed=False)
    writer.head_norms(layer, "norm")
    identity = np.eye(HIDDEN, dtype=np.float32) + noise("e_proj", (HIDDEN, HIDDEN), FAINT)
    writer.weights.fp8_native[f"{layer}.e_proj"] = identity
    writer.weights.fp8_native[f"{layer}.h_proj"] = noise("h_proj", (HIDDEN, HIDDEN), 0.002)
    return writer.weights


def config(tensor_parallel: int) -> dict[str, Any]:
    """config.json without its quantisation."""
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": shared.intermediate(tensor_parallel),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "qk_rope_head_dim": 64,
        "q_lora_rank": Q_RANK,
        "o_groups": O_GROUPS,
        "o_lora_rank": O_RANK,
        "num_experts_per_tok": PER_TOKEN,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "topk_method": "noaux_tc",
        "max_position_embeddings": 65536,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "compress_ratios": list(RATIOS),
        "num_hash_layers": HASH_LAYERS,
        "hc_mult": STREAMS,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "swiglu_limit": 10.0,
        "sliding_window": 128,
        "index_n_heads": INDEX_HEADS,
        "index_head_dim": INDEX_HEAD,
        "index_topk": 512,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 65536,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    }


ATTENTION_TARGETS = (
    r"re:.*attn\.(wq_a|wq_b|wkv|wo_a|wo_b|fused_wqa_wkv)$",
    r"re:.*attn\.indexer\.wq_b$",
    r"re:.*compressor\.(wgate|wkv|fused_wkv_wgate)$",
)
EXPERT_TARGETS = (r"re:.*ffn\.experts\.\d+\.(w1|w2|w3|gate_proj|up_proj|down_proj|gate_up_proj)$",)
"""vLLM asks for the names of Hugging Face as well: without them it takes the experts for
unquantised."""
IGNORED = ("lm_head", r"re:.*shared_experts.*", r"re:.*\.(e_proj|h_proj)$")
