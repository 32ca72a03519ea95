"""DeepSeek-V4 by its own flat names, with the MTP block of its first release or a DSpark draft."""

from __future__ import annotations

from collections.abc import Collection

from runbook.steps.checkpoint.layout import dspark
from runbook.steps.checkpoint.layout.fields import Fields, MissingField
from runbook.steps.checkpoint.layout.model import Builder, Layout

SWIGLU = ("w1", "w3", "w2")


def layout(c: Fields, limit: int, names: Collection[str]) -> Layout:
    """Raises `ConfigError`."""
    found = Layout(
        "deepseek_v4",
        layers=c.num_hidden_layers,
        fused={
            "attention": ("fused_wqa_wkv", ("wq_a", "wkv")),
            "compressor": ("fused_wkv_wgate", ("wkv", "wgate")),
            "shared": ("gate_up_proj", ("w1", "w3")),
        },
    )
    ratios = c.numbers("compress_ratios")
    if len(ratios) < found.layers:
        raise MissingField("entries of compress_ratios (one a layer)")
    top = Builder(found, "", False, limit)
    top.plain("embed.weight", c.vocab_size, c.hidden_size)
    top.plain("head.weight", c.vocab_size, c.hidden_size)
    top.plain("norm.weight", c.hidden_size)
    _hc_head(top, c)
    hashed = c.whole("num_hash_layers")
    for i in range(found.layers):
        _layer(top.below(f"layers.{i}."), c, ratios[i], i < hashed)
    drafts = dict(enumerate(ratios[found.layers :]))
    if dspark.describes(c.config, names):
        found.draft = "dspark"
        stages = dspark.stages(c)
        for i in range(stages):
            stage = top.below(f"mtp.{i}.", True)
            found.mtp_prefixes.append(stage.prefix)
            _layer(stage, c, drafts.get(i, 0), False)
            if i == 0:
                dspark.first(stage, c)
            if i == stages - 1:
                _hc_head(stage, c)
                dspark.last(stage, c)
        return found
    for i in range(max(1, c.count("num_nextn_predict_layers"))):
        block = top.below(f"mtp.{i}.", True)
        found.mtp_prefixes.append(block.prefix)
        _layer(block, c, drafts.get(i, 0), False)
        _hc_head(block, c)
        for name in ("enorm", "hnorm", "norm"):
            block.plain(f"{name}.weight", c.hidden_size)
        for name in ("e_proj", "h_proj"):
            block.linear(name, c.hidden_size, c.hidden_size, "joint")
        found.aliases[f"mtp.{i}.emb.tok_emb.weight"] = "embed.weight"
        found.aliases[f"mtp.{i}.head.weight"] = "head.weight"
    return found


def _hc_head(b: Builder, c: Fields) -> None:
    b.plain("hc_head_fn", c.hc_mult, c.hc_mult * c.hidden_size, kind="f32")
    b.plain("hc_head_base", c.hc_mult, kind="f32")
    b.plain("hc_head_scale", 1, kind="f32")


def _layer(b: Builder, c: Fields, ratio: int, hashed: bool) -> None:
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
        _compressor(b, "attn.compressor", c.head_dim, hidden, ratio)
    if ratio == 4:
        size = c.index_n_heads * c.index_head_dim
        b.linear("attn.indexer.wq_b", size, c.q_lora_rank, "indexer")
        b.linear("attn.indexer.weights_proj", c.index_n_heads, hidden, "indexer_weights")
        _compressor(b, "attn.indexer.compressor", c.index_head_dim, hidden, ratio)
    experts, inter = c.n_routed_experts, c.moe_intermediate_size
    b.plain("ffn.gate.weight", experts, hidden)
    if hashed:
        b.plain("ffn.gate.tid2eid", c.vocab_size, c.num_experts_per_tok, kind="int")
    else:
        b.plain("ffn.gate.bias", experts, kind="f32")
    for e in range(experts):
        b.swiglu(f"ffn.experts.{e}", SWIGLU, hidden, inter, "expert")
    b.swiglu("ffn.shared_experts", SWIGLU, hidden, inter, "shared")


def _compressor(b: Builder, name: str, head: int, hidden: int, ratio: int) -> None:
    width = head * (2 if ratio == 4 else 1)  # ratio 4 overlaps its windows: twice the columns
    b.plain(f"{name}.ape", ratio, width, kind="f32")
    b.linear(f"{name}.wkv", width, hidden, "compressor")
    b.linear(f"{name}.wgate", width, hidden, "compressor")
    b.plain(f"{name}.norm.weight", head)
