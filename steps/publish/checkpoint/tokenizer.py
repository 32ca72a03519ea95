"""A tokenizer of bytes and of the script's words, in the formats of `tokenizers` and transformers.

The vocabulary: the special tokens, the 256 bytes in the byte-level alphabet of GPT-2, the words.
There are no merges, so a text that holds no word of the script is one token a byte.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from runbook.steps.publish.checkpoint.script import BOS, END_THINK, EOS, PAD, SPECIAL, THINK, Script
from runbook.steps.publish.checkpoint.tensors import document


def byte_alphabet() -> list[str]:
    """One printable character for each byte: itself where it is printable, else the next free
    code point from 256 on (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(c) for c in sorted([*printable, *(256 + i for i in range(len(others)))])]


def ids(script: Script) -> dict[str, int]:
    """The id of each token. A word of one character is that byte."""
    texts = dict.fromkeys((*SPECIAL, *byte_alphabet(), *script.words))
    return {text: i for i, text in enumerate(texts)}


def write(folder: Path, script: Script, chat_template: str | None) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    vocabulary = ids(script)
    added = {text: vocabulary[text] for text in (*SPECIAL, *script.words)}
    base = dict(list(vocabulary.items())[: len(SPECIAL) + 256])
    made = byte_level(added, {*SPECIAL} - {THINK, END_THINK}, base)
    document(folder / "tokenizer.json", made)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 65536,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    document(folder / "tokenizer_config.json", config)
    document(folder / "special_tokens_map.json", special)


def byte_level(
    added: Mapping[str, int], special: Collection[str], vocabulary: Mapping[str, int]
) -> dict[str, Any]:
    """A tokenizer.json that merges nothing: bytes, and the added tokens, each by its id."""
    coder = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": text in special,
            }
            for text, number in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": coder,
        "post_processor": None,
        "decoder": coder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [],
        },
    }
