"""The tensors that an architecture asks for: names, shapes and dtypes, derived from config.json.

Two families are known. DeepSeek-V4 by its own flat names (`layers.N.*`, `mtp.0.*`), DeepSeek-V3
by the names of its Hugging Face release (`model.layers.N.*`, the MTP block as layer
`num_hidden_layers`). Shapes are [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal[
    "attention", "compressor", "indexer", "indexer_weights", "expert", "shared", "dense", "joint"
]
Kind = Literal["f32", "float", "int"]
Fused = tuple[str, tuple[str, ...]]


class UnknownArchitecture(Exception):
    """config.json names no architecture that is known here."""


class MissingField(Exception):
    """config.json lacks a field without which the architecture is not defined."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight that may be stored quantised. `base` is its name without `.weight`."""

    base: str
    shape: tuple[int, int]
    role: Role
    mtp: bool


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is stored as it is; `f32` marks those whose precision matters."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    mtp: bool


@dataclass
class Layout:
    """What a complete checkpoint of one model holds.

    `mtp_prefixes` are those of the MTP blocks; `aliases` maps a block's own copies of embedding
    and head, which may be absent, to the tensors they copy. `fused` names the linears that vLLM
    joins: (fused leaf, leaves), by the role of the parts.
    """

    family: str
    layers: int = 0
    linears: dict[str, Linear] = field(default_factory=dict)
    plains: dict[str, Plain] = field(default_factory=dict)
    mtp_prefixes: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    fused: Mapping[Role, Fused] = field(default_factory=dict)

    def vllm_name(self, base: str) -> str:
        """The prefix under which vLLM builds the module of this weight."""
        if self.family == "deepseek_v3":
            return base
        block = re.match(r"mtp\.(\d+)\.", base)
        if block:
            layer = self.layers + int(block[1])
            return f"model.layers.{layer}.{base[block.end() :]}"
        return f"model.{base}"

    def layer(self, name: str) -> str:
        """The prefix of the layer that a tensor belongs to, or an empty string."""
        found = re.match(r"(model\.layers\.\d+\.|layers\.\d+\.|mtp\.\d+\.)", name)
        return found[0] if found else ""


def layout(config: Mapping[str, Any]) -> Layout:
    """The layout of the model that a config.json describes.

    Raises `UnknownArchitecture` or `MissingField`.
    """
    names = config.get("architectures") or []
    kinds = {str(config.get("model_type")), *map(str, names)}
    if kinds & {"deepseek_v4", "DeepseekV4ForCausalLM"}:
        return _v4(_Fields(config))
    if kinds & {"deepseek_v3", "DeepseekV3ForCausalLM"}:
        return _v3(_Fields(config))
    raise UnknownArchitecture(", ".join(sorted(kinds - {"None"})) or "none")


class _Fields:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def __getattr__(self, name: str) -> Any:
        value = self.config.get(name)
        if value is None:
            raise MissingField(name)
        return value


@dataclass
class _Builder:
    into: Layout
    prefix: str
    mtp: bool

    def linear(self, name: str, out: int, columns: int, role: Role) -> None:
        base = self.prefix + name
        self.into.linears[base] = Linear(base, (out, columns), role, self.mtp)

    def plain(self, name: str, *shape: int, kind: Kind = "float") -> None:
        full = self.prefix + name
        self.into.plains[full] = Plain(full, shape, kind, self.mtp)


def mtp_count(config: Mapping[str, Any]) -> int:
    """How many MTP blocks the config declares."""
    value = config.get("num_nextn_predict_layers")
    return value if isinstance(value, int) else 0


def _v4(c: _Fields) -> Layout:
    found = Layout(
        "deepseek_v4",
        layers=c.num_hidden_layers,
        fused={
            "attention": ("fused_wqa_wkv", ("wq_a", "wkv")),
            "compressor": ("fused_wkv_wgate", ("wkv", "wgate")),
            "shared": ("gate_up_proj", ("w1", "w3")),
        },
    )
    blocks = max(1, mtp_count(c.config))
    ratios = list(c.compress_ratios)
    if len(ratios) < c.num_hidden_layers:
        raise MissingField("compress_ratios (one entry a layer)")
    ratios += [0] * (c.num_hidden_layers + blocks - len(ratios))
    top = _Builder(found, "", False)
    top.plain("embed.weight", c.vocab_size, c.hidden_size)
    top.plain("head.weight", c.vocab_size, c.hidden_size)
    top.plain("norm.weight", c.hidden_size)
    _v4_hc_head(top, c)
    for i in range(c.num_hidden_layers):
        _v4_layer(_Builder(found, f"layers.{i}.", False), c, ratios[i], i < c.num_hash_layers)
    for i in range(blocks):
        block = _Builder(found, f"mtp.{i}.", True)
        found.mtp_prefixes.append(block.prefix)
        _v4_layer(block, c, ratios[c.num_hidden_layers + i], False)
        _v4_hc_head(block, c)
        for name in ("enorm", "hnorm", "norm"):
            block.plain(f"{name}.weight", c.hidden_size)
        for name in ("e_proj", "h_proj"):
            block.linear(name, c.hidden_size, c.hidden_size, "joint")
        found.aliases[f"mtp.{i}.emb.tok_emb.weight"] = "embed.weight"
        found.aliases[f"mtp.{i}.head.weight"] = "head.weight"
    return found


def _v4_hc_head(b: _Builder, c: _Fields) -> None:
    b.plain("hc_head_fn", c.hc_mult, c.hc_mult * c.hidden_size, kind="f32")
    b.plain("hc_head_base", c.hc_mult, kind="f32")
    b.plain("hc_head_scale", 1, kind="f32")


def _v4_layer(b: _Builder, c: _Fields, ratio: int, hashed: bool) -> None:
    hidden, hc = c.hidden_size, c.hc_mult
    b.plain("attn_norm.weight", hidden)
    b.plain("ffn_norm.weight", hidden)
    for part in ("attn", "ffn"):
        b.plain(f"hc_{part}_fn", (2 + hc) * hc, hc * hidden, kind="f32")
        b.plain(f"hc_{part}_base", (2 + hc) * hc, kind="f32")
        b.plain(f"hc_{part}_scale", 3, kind="f32")
    heads = c.num_attention_heads * c.head_dim
    b.linear("attn.wq_a", c.q_lora_rank, hidden, "attention")
    b.linear("attn.wq_b", heads, c.q_lora_rank, "attention")
    b.linear("attn.wkv", c.head_dim, hidden, "attention")
    b.linear("attn.wo_a", c.o_groups * c.o_lora_rank, heads // c.o_groups, "attention")
    b.linear("attn.wo_b", hidden, c.o_groups * c.o_lora_rank, "attention")
    b.plain("attn.q_norm.weight", c.q_lora_rank)
    b.plain("attn.kv_norm.weight", c.head_dim)
    b.plain("attn.attn_sink", c.num_attention_heads, kind="f32")
    if ratio > 1:
        _v4_compressor(b, "attn.compressor", c.head_dim, hidden, ratio)
    if ratio == 4:
        size = c.index_n_heads * c.index_head_dim
        b.linear("attn.indexer.wq_b", size, c.q_lora_rank, "indexer")
        b.linear("attn.indexer.weights_proj", c.index_n_heads, hidden, "indexer_weights")
        _v4_compressor(b, "attn.indexer.compressor", c.index_head_dim, hidden, ratio)
    experts, inter = c.n_routed_experts, c.moe_intermediate_size
    b.plain("ffn.gate.weight", experts, hidden)
    if hashed:
        b.plain("ffn.gate.tid2eid", c.vocab_size, c.num_experts_per_tok, kind="int")
    else:
        b.plain("ffn.gate.bias", experts, kind="f32")
    for name, role in [(f"experts.{e}", "expert") for e in range(experts)] + [
        ("shared_experts", "shared")
    ]:
        _swiglu(b, f"ffn.{name}", ("w1", "w3", "w2"), hidden, inter, role)  # type: ignore[arg-type]


def _v4_compressor(b: _Builder, name: str, head: int, hidden: int, ratio: int) -> None:
    width = head * (2 if ratio == 4 else 1)  # ratio 4 overlaps its windows: twice the columns
    b.plain(f"{name}.ape", ratio, width, kind="f32")
    b.linear(f"{name}.wkv", width, hidden, "compressor")
    b.linear(f"{name}.wgate", width, hidden, "compressor")
    b.plain(f"{name}.norm.weight", head)


def _swiglu(
    b: _Builder, name: str, leaves: tuple[str, str, str], hidden: int, inter: int, role: Role
) -> None:
    gate, up, down = leaves
    b.linear(f"{name}.{gate}", inter, hidden, role)
    b.linear(f"{name}.{up}", inter, hidden, role)
    b.linear(f"{name}.{down}", hidden, inter, role)


HF_EXPERT = ("gate_proj", "up_proj", "down_proj")


def _v3(c: _Fields) -> Layout:
    found = Layout(
        "deepseek_v3",
        layers=c.num_hidden_layers,
        fused={
            "attention": ("fused_qkv_a_proj", ("q_a_proj", "kv_a_proj_with_mqa")),
            "shared": ("gate_up_proj", ("gate_proj", "up_proj")),
            "dense": ("gate_up_proj", ("gate_proj", "up_proj")),
        },
    )
    top = _Builder(found, "", False)
    top.plain("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
    top.plain("model.norm.weight", c.hidden_size)
    if not c.config.get("tie_word_embeddings"):
        top.plain("lm_head.weight", c.vocab_size, c.hidden_size)
    frequency = c.config.get("moe_layer_freq") or 1
    for i in range(c.num_hidden_layers):
        sparse = i >= c.first_k_dense_replace and i % frequency == 0
        _v3_layer(_Builder(found, f"model.layers.{i}.", False), c, sparse)
    for i in range(max(1, mtp_count(c.config))):
        block = _Builder(found, f"model.layers.{c.num_hidden_layers + i}.", True)
        found.mtp_prefixes.append(block.prefix)
        _v3_layer(block, c, True)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            block.plain(f"{name}.weight", c.hidden_size)
        block.linear("eh_proj", c.hidden_size, 2 * c.hidden_size, "joint")
        found.aliases[block.prefix + "embed_tokens.weight"] = "model.embed_tokens.weight"
        found.aliases[block.prefix + "shared_head.head.weight"] = "lm_head.weight"
    return found


def _v3_layer(b: _Builder, c: _Fields, sparse: bool) -> None:
    hidden, heads, rope = c.hidden_size, c.num_attention_heads, c.qk_rope_head_dim
    query = heads * (c.qk_nope_head_dim + rope)
    b.plain("input_layernorm.weight", hidden)
    b.plain("post_attention_layernorm.weight", hidden)
    if c.config.get("q_lora_rank"):
        b.linear("self_attn.q_a_proj", c.q_lora_rank, hidden, "attention")
        b.plain("self_attn.q_a_layernorm.weight", c.q_lora_rank)
        b.linear("self_attn.q_b_proj", query, c.q_lora_rank, "attention")
    else:
        b.linear("self_attn.q_proj", query, hidden, "attention")
    b.linear("self_attn.kv_a_proj_with_mqa", c.kv_lora_rank + rope, hidden, "attention")
    b.plain("self_attn.kv_a_layernorm.weight", c.kv_lora_rank)
    b.linear(
        "self_attn.kv_b_proj",
        heads * (c.qk_nope_head_dim + c.v_head_dim),
        c.kv_lora_rank,
        "attention",
    )
    b.linear("self_attn.o_proj", hidden, heads * c.v_head_dim, "attention")
    if not sparse:
        _swiglu(b, "mlp", HF_EXPERT, hidden, c.intermediate_size, "dense")
        return
    b.plain("mlp.gate.weight", c.n_routed_experts, hidden)
    if c.config.get("topk_method") == "noaux_tc":
        b.plain("mlp.gate.e_score_correction_bias", c.n_routed_experts, kind="f32")
    for e in range(c.n_routed_experts):
        _swiglu(b, f"mlp.experts.{e}", HF_EXPERT, hidden, c.moe_intermediate_size, "expert")
    if c.config.get("n_shared_experts"):
        inter = c.moe_intermediate_size * c.n_shared_experts
        _swiglu(b, "mlp.shared_experts", HF_EXPERT, hidden, inter, "shared")
