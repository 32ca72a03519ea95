"""DeepSeek-V3, small: the reduced rehearsal, for processors without AVX512_BF16.

Multi-head latent attention, routed experts and an MTP head in the same formats as V4's, without
its hyper-connections, compressors and kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runbook.steps.publish.checkpoint import weights as shared
from runbook.steps.publish.checkpoint.script import (
    ASSISTANT,
    END_THINK,
    EOS,
    MARK,
    SCRIPTS,
    THINK,
    USER,
)
from runbook.steps.publish.checkpoint.tensors import Array, noise
from runbook.steps.publish.checkpoint.weights import (
    FAINT,
    HIDDEN,
    UNIT,
    VOCABULARY,
    Weights,
)

SCRIPT = SCRIPTS["v3"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}## Tools\n\n"
    "{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}\n" + MARK + "\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}" + USER + "{{ message.content }}"
    "{% elif message.role == 'assistant' %}"
    + ASSISTANT
    + END_THINK
    + "{{ message.content }}"
    + EOS
    + "{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    + ASSISTANT
    + "{% if thinking %}"
    + THINK
    + "{% else %}"
    + END_THINK
    + "{% endif %}{% endif %}"
)

LAYERS = 3
DENSE_LAYERS = 1
DETECTS = 1
"""The layer whose attention looks for the tools."""
HEADS, Q_RANK, KV_RANK, PLAIN, ROTARY, VALUE = 4, 128, 512, 128, 64, 128
"""Attention: heads, ranks of the latents, and per head the query's dimensions without and with
rotary position and the value's."""
EXPERTS, PER_TOKEN = 8, 2
DENSE = 256


class Writer(shared.Writer):
    """Collects the tensors of one part of it."""

    def __init__(self, tensor_parallel: int) -> None:
        super().__init__(SCRIPT, tensor_parallel)

    def attention(self, layer: str, *, detects: bool) -> None:
        name = f"{layer}.self_attn"
        q_a = noise(f"{name}.q_a", (Q_RANK, HIDDEN), FAINT)
        q_b = noise(f"{name}.q_b", (HEADS, PLAIN + ROTARY, Q_RANK), FAINT)
        kv_a = noise(f"{name}.kv_a", (KV_RANK + ROTARY, HIDDEN), FAINT)
        kv_b = noise(f"{name}.kv_b", (HEADS, PLAIN + VALUE, KV_RANK), FAINT)
        o = noise(f"{name}.o", (HIDDEN, HEADS * VALUE), FAINT)
        if detects:
            self._detect(q_a, q_b, kv_a, kv_b, o)
        put = self.weights.put
        # vLLM fuses these two, and the rows of the second are no multiple of an FP8 block.
        put(f"{name}.q_a_proj.weight", q_a)
        put(f"{name}.kv_a_proj_with_mqa.weight", kv_a)
        self.weights.fp8 |= {
            f"{name}.q_b_proj": q_b.reshape(-1, Q_RANK),
            f"{name}.kv_b_proj": kv_b.reshape(-1, KV_RANK),
            f"{name}.o_proj": o,
        }
        put(f"{name}.q_a_layernorm.weight", np.ones(Q_RANK))
        put(f"{name}.kv_a_layernorm.weight", np.ones(KV_RANK))
        put(f"{layer}.input_layernorm.weight", np.ones(HIDDEN))

    def _detect(self, q_a: Array, q_b: Array, kv_a: Array, kv_b: Array, o: Array) -> None:
        """Where thinking ends, attend to `MARK` and note it in the stream; every other token
        attends to all but `MARK`."""
        looks, ignores = 5, 9
        q_b[:, looks, 0] = 1
        q_b[:, ignores, 1] = 1
        kv_b[:, looks, 0] = 1
        kv_b[:, ignores, 1] = 1
        for word, dimension in [*self.stream.into.items(), ("", self.stream.other)]:
            q_a[0 if word == END_THINK else 1, dimension] = 1
            kv_a[0 if word == MARK else 1, dimension] = 1
        kv_b[:, PLAIN + looks, 0] = 1
        # The norm leaves the latent of MARK one dimension of size KV_RANK ** 0.5.
        o[self.stream.offered, looks] = 3 / KV_RANK**0.5

    def dense(self, layer: str) -> None:
        put = self.weights.put
        put(f"{layer}.post_attention_layernorm.weight", np.full(HIDDEN, UNIT))
        self._linears(f"{layer}.mlp", DENSE)

    def experts(self, layer: str, table: dict[str, str]) -> None:
        name = f"{layer}.mlp"
        made = shared.experts(
            name,
            self.stream,
            table,
            count=EXPERTS,
            per_token=PER_TOKEN,
            intermediate=self.intermediate,
            first=0,
            stride=3,
            router=8,
            gain=1,
        )
        put = self.weights.put
        put(f"{layer}.post_attention_layernorm.weight", np.full(HIDDEN, UNIT))
        put(f"{name}.gate.weight", made.gate)
        put(f"{name}.gate.e_score_correction_bias", np.zeros(EXPERTS), np.float32)
        for expert in range(EXPERTS):
            self.weights.int4 |= {
                f"{name}.experts.{expert}.gate_proj": made.up[expert, 0],
                f"{name}.experts.{expert}.up_proj": made.up[expert, 1],
                f"{name}.experts.{expert}.down_proj": made.down[expert],
            }
        self._linears(f"{name}.shared_experts", self.intermediate)

    def _linears(self, name: str, width: int) -> None:
        size = (width, HIDDEN)
        for part, shape in (("gate_proj", size), ("up_proj", size), ("down_proj", size[::-1])):
            self.weights.put(f"{name}.{part}.weight", noise(f"{name}.{part}", shape, 0.02))


def model(tensor_parallel: int) -> list[Weights]:
    """The tensors of the model, one part for each shard."""
    transitions = list(SCRIPT.transitions.items())
    ends = Writer(tensor_parallel)
    ends.ends("model.embed_tokens", "lm_head", "model.norm")
    parts = [ends]
    for i in range(LAYERS):
        layer, writer = f"model.layers.{i}", Writer(tensor_parallel)
        writer.attention(layer, detects=i == DETECTS)
        if i < DENSE_LAYERS:
            writer.dense(layer)
        else:
            known = transitions[i - DENSE_LAYERS :: LAYERS - DENSE_LAYERS]
            writer.experts(layer, dict(known))
        parts.append(writer)
    return [part.weights for part in parts]


def head(tensor_parallel: int) -> Weights:
    """The tensors of the MTP head; vLLM shares the model's embedding and output head with it."""
    layer, writer = f"model.layers.{LAYERS}", Writer(tensor_parallel)
    writer.attention(layer, detects=True)
    writer.experts(layer, SCRIPT.head)
    writer.head_norms(layer, "shared_head.norm")
    identity = np.eye(HIDDEN, 2 * HIDDEN, dtype=np.float32)
    writer.weights.put(
        f"{layer}.eh_proj.weight", identity + noise("eh_proj", (HIDDEN, 2 * HIDDEN), 0.002)
    )
    return writer.weights


def config(tensor_parallel: int) -> dict[str, Any]:
    """config.json without its quantisation."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": DENSE,
        "moe_intermediate_size": shared.intermediate(tensor_parallel),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": PER_TOKEN,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "first_k_dense_replace": DENSE_LAYERS,
        "moe_layer_freq": 1,
        "q_lora_rank": Q_RANK,
        "kv_lora_rank": KV_RANK,
        "qk_nope_head_dim": PLAIN,
        "qk_rope_head_dim": ROTARY,
        "v_head_dim": VALUE,
        "max_position_embeddings": 8192,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "num_nextn_predict_layers": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


ATTENTION_TARGETS = (r"re:.*self_attn\.(q_b_proj|kv_b_proj|o_proj)$",)
EXPERT_TARGETS = (r"re:.*mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)$",)
IGNORED = ("lm_head", r"re:.*shared_experts.*", r"re:.*\.eh_proj$")
