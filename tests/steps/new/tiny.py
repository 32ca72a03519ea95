"""Tiny checkpoints of other families than the rehearsal's, with tokenizers of their own.

Weights are random. With a script the output head is written so that each word of it follows the one
before: what the model answers then depends on the last token of the prompt alone, which the chat
template chooses by what is asked (an answer, a tool call, thoughts).
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np

from runbook.steps.publish.checkpoint.tensors import document, noise, save
from runbook.steps.publish.checkpoint.tokenizer import byte_alphabet, byte_level

ANSWER = ("Par", "is")
HIDDEN, INTER, HEADS, KV_HEADS, HEAD, LAYERS = 128, 256, 4, 2, 32, 2
CONTEXT = 4096

QWEN_TEMPLATE = """{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Return a json object with name and arguments:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if tools %}<|call|>{% elif enable_thinking is defined and not enable_thinking %}<think>

</think>

<|plain|>{% else %}<|thoughts|>{% endif %}{% endif %}"""
LLAMA_TEMPLATE = """{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>

Respond in the format {"name": function name, "parameters": dictionary of argument name and its \
value}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|eot_id|>{% endif %}{% for message in messages %}<|start_header_id|>\
{{ message.role }}<|end_header_id|>

{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>\
assistant<|end_header_id|>

{% if tools %}<|call|>{% else %}<|plain|>{% endif %}{% endif %}"""

STYLES = {
    "qwen": {
        "end": "<|im_end|>",
        "special": ("<|im_start|>", "<|im_end|>", "<|plain|>", "<|call|>", "<|thoughts|>"),
        "chains": (
            ("<|plain|>", *ANSWER, "<|im_end|>"),
            ("<|call|>", "<tool_call>", '\n{"name": "get_weather"',
             ', "arguments": {"city": "Paris"}}\n', "</tool_call>", "<|im_end|>"),
            ("<|thoughts|>", "<think>", "seven times eight", "</think>", "56", "<|im_end|>"),
        ),
        "template": QWEN_TEMPLATE,
        "config": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": LAYERS,
        },
    },
    "llama": {
        "end": "<|eot_id|>",
        "special": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
                    "<|python_tag|>", "<|plain|>", "<|call|>"),
        "chains": (
            ("<|plain|>", *ANSWER, "<|eot_id|>"),
            ("<|call|>", '{"name": "get_weather"', ', "parameters": {"city": "Paris"}}',
             "<|eot_id|>"),
        ),
        "template": LLAMA_TEMPLATE,
        "config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
        },
    },
}  # fmt: skip


def config(style: str) -> dict:
    """config.json, with the fields of transformers' class."""
    ids = vocabulary(style)
    told = STYLES[style]
    return {
        **told["config"],
        "vocab_size": -(-len(ids) // 64) * 64,
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": ids[told["end"]],
    }


def vocabulary(style: str) -> dict[str, int]:
    told = STYLES[style]
    words = [word for chain in told["chains"] for word in chain]
    return {t: i for i, t in enumerate(dict.fromkeys((*told["special"], *byte_alphabet(), *words)))}


def write(folder: Path, style: str, scripted: bool = True) -> Path:
    """Write a checkpoint into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    told, ids = config(style), vocabulary(style)
    document(folder / "config.json", told)
    document(
        folder / "generation_config.json", {"eos_token_id": told["eos_token_id"], "bos_token_id": 0}
    )
    save(folder / "model.safetensors", tensors(style, told, ids, scripted))
    _tokenizer(folder, style, ids)
    return folder


def tensors(style: str, told: dict, ids: dict[str, int], scripted: bool) -> dict:
    vocab = told["vocab_size"]
    embedding = noise("embedding", (vocab, HIDDEN), 1.0)
    head = noise("head", (vocab, HIDDEN), 0.02)
    end = STYLES[style]["end"]
    if scripted:
        for chain in (*STYLES[style]["chains"], (end, ANSWER[0])):
            for word, following in pairwise(chain):
                head[ids[following]] += embedding[ids[word]]
    found = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(HIDDEN),
    }
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": (INTER, HIDDEN),
        "mlp.up_proj": (INTER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTER),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for name, shape in shapes.items():
            found[f"{start}{name}.weight"] = noise(start + name, shape, 0.02)
        norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN}
        if style == "qwen":
            norms |= {"self_attn.q_norm": HEAD, "self_attn.k_norm": HEAD}
        for name, size in norms.items():
            found[f"{start}{name}.weight"] = np.ones(size)
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in found.items()}


def _tokenizer(folder: Path, style: str, ids: dict[str, int]) -> None:
    special = STYLES[style]["special"]
    known = {*byte_alphabet()}
    added = {text: i for text, i in ids.items() if text not in known}
    base = {t: i for t, i in ids.items() if t in known or t in special}
    made = byte_level(added, {*special} - {"<|python_tag|>"}, base)
    document(folder / "tokenizer.json", made)
    document(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "bos_token": special[0],
            "eos_token": STYLES[style]["end"],
            "chat_template": STYLES[style]["template"],
        },
    )


def hollow(folder: Path, told: dict, weights: int, template: str = "") -> Path:
    """A checkpoint of so many bytes whose file has no blocks on the disk: a header, and a hole."""
    from runbook.steps.checkpoint.headers import render

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    head = render([("model.embed_tokens.weight", "BF16", (weights // 2,), weights // 2 * 2)], {})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + weights // 2 * 2)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder
