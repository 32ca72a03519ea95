"""DeepSeek-V3 by the names of its Hugging Face release."""

from __future__ import annotations

from runbook.steps.checkpoint.layout.fields import Fields
from runbook.steps.checkpoint.layout.model import Builder, Layout

HF_EXPERT = ("gate_proj", "up_proj", "down_proj")


def layout(c: Fields, limit: int) -> Layout:
    """Raises `ConfigError`."""
    found = Layout(
        "deepseek_v3",
        layers=c.num_hidden_layers,
        fused={
            "attention": ("fused_qkv_a_proj", ("q_a_proj", "kv_a_proj_with_mqa")),
            "shared": ("gate_up_proj", ("gate_proj", "up_proj")),
            "dense": ("gate_up_proj", ("gate_proj", "up_proj")),
        },
    )
    top = Builder(found, "", False, limit)
    top.plain("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
    top.plain("model.norm.weight", c.hidden_size)
    if not c.config.get("tie_word_embeddings"):
        top.plain("lm_head.weight", c.vocab_size, c.hidden_size)
    frequency = c.count("moe_layer_freq") or 1
    dense = c.whole("first_k_dense_replace")
    for i in range(found.layers):
        sparse = i >= dense and i % frequency == 0
        _layer(top.below(f"model.layers.{i}."), c, sparse)
    for i in range(max(1, c.count("num_nextn_predict_layers"))):
        block = top.below(f"model.layers.{found.layers + i}.", True)
        found.mtp_prefixes.append(block.prefix)
        _layer(block, c, True)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            block.plain(f"{name}.weight", c.hidden_size)
        block.linear("eh_proj", c.hidden_size, 2 * c.hidden_size, "joint")
        found.aliases[block.prefix + "embed_tokens.weight"] = "model.embed_tokens.weight"
        found.aliases[block.prefix + "shared_head.head.weight"] = "lm_head.weight"
    return found


def _layer(b: Builder, c: Fields, sparse: bool) -> None:
    hidden, heads, rope = c.hidden_size, c.num_attention_heads, c.qk_rope_head_dim
    query = heads * (c.qk_nope_head_dim + rope)
    b.plain("input_layernorm.weight", hidden)
    b.plain("post_attention_layernorm.weight", hidden)
    if c.count("q_lora_rank"):
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
        b.swiglu("mlp", HF_EXPERT, hidden, c.intermediate_size, "dense")
        return
    b.plain("mlp.gate.weight", c.n_routed_experts, hidden)
    if c.config.get("topk_method") == "noaux_tc":
        b.plain("mlp.gate.e_score_correction_bias", c.n_routed_experts, kind="f32")
    for e in range(c.n_routed_experts):
        b.swiglu(f"mlp.experts.{e}", HF_EXPERT, hidden, c.moe_intermediate_size, "expert")
    if c.count("n_shared_experts"):
        inter = c.moe_intermediate_size * c.n_shared_experts
        b.swiglu("mlp.shared_experts", HF_EXPERT, hidden, inter, "shared")
