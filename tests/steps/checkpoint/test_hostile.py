"""Config, index and files of any content: findings or one error in words, within seconds."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbook.steps.checkpoint.checkpoint import CONFIG, INDEX, CheckpointError, load
from runbook.steps.checkpoint.headers import ITEM_BITS, render
from runbook.steps.checkpoint.layout import layout
from runbook.steps.checkpoint.lint import examine, report, subject
from runbook.steps.checkpoint.lint.scales import Sample
from tests.cpu import bounded, examples
from tests.steps.checkpoint import full_size
from tests.steps.checkpoint.cases import PATCHED
from tests.steps.mtp import tiny

pytestmark = pytest.mark.harness

SECONDS = 5
SHARD = "model.safetensors"
SMALL: dict[str, Any] = {
    **full_size.CONFIG,
    "vocab_size": 8,
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_hash_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 64,
    "q_lora_rank": 128,
    "o_groups": 2,
    "o_lora_rank": 64,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "index_n_heads": 2,
    "index_head_dim": 64,
    "compress_ratios": [0, 4, 128, 0, 0, 0],
    "dspark_noise_token_id": 7,
    "dspark_target_layer_ids": [0, 1, 2],
    "dspark_markov_rank": 8,
}
GROUPS: dict[str, Any] = tiny.compressed_tensors(
    [r"re:.*attn\.(wq_a|wq_b|wkv|wo_a|wo_b|fused_wqa_wkv)$"],
    [r"re:.*experts\.\d+\.(w1|w2|w3|gate_proj|up_proj|down_proj)$"],
    ["lm_head", "re:.*shared_experts.*"],
)


def shard() -> bytes:
    made = full_size.entries(layout(SMALL)).values()
    return render([(n, d, s, math.prod(s) * ITEM_BITS[d] // 8) for n, d, s in made], {})


HEAD = shard()
NAMES = list(full_size.entries(layout(SMALL)))
WHOLE_MAP = dict.fromkeys(NAMES, SHARD)
WHOLE = {"metadata": {"total_size": 0}, "weight_map": WHOLE_MAP}


def text_of(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def linted(config: bytes, index: bytes | None = None, head: bytes = HEAD) -> list[str]:
    """The ids of what is found, having printed it as both forms."""
    files = {CONFIG: config, SHARD: head}
    if index is not None:
        files[INDEX] = index

    def fetch(name: str, offset: int, length: int) -> bytes:
        held = files[name]
        data = held[offset : offset + length]
        return data + b"\1" * (length - len(data)) if name == SHARD else data

    try:
        found = load("here", {n: len(d) for n, d in files.items()}, fetch)
    except CheckpointError as error:
        assert error.message and error.remedy
        return [error.message]
    found.local = True
    sample = Sample()
    findings = examine(subject(found), PATCHED, sample)
    printed = report.text(findings, sample)
    assert not report.CONTROL.search(printed.replace("\n", ""))
    json.dumps(report.plain(findings, PATCHED, sample), ensure_ascii=False).encode()
    return [f.id for f in findings]


def changed(**values: Any) -> bytes:
    return text_of({**SMALL, **values})


def quantised(**values: Any) -> bytes:
    return changed(quantization_config={**GROUPS, **values})


HUGE = 100_000_000
CATASTROPHIC = ["re:(a+)+$", "re:(.*)*(.*)*(.*)*z$", "re:(x+x+)+y", "re:^(([a-z.0-9_])+.)+[A-Z]$"]
FIELDS = sorted(k for k in SMALL if k not in ("architectures", "model_type"))
# By name: config, and index or None. No traceback, and none takes long.
CASES: dict[str, tuple[bytes, bytes | None]] = {
    **{f"{field} of {value!r:.20}": (changed(**{field: value}), None)
       for field in FIELDS
       for value in (HUGE, 0, -1, 1.5, True, "x", [], {}, None, [[]], float("nan"), 1 << 70)},
    "layers without end": (changed(num_hidden_layers=HUGE, compress_ratios=[0] * 1000), None),
    "MTP blocks without end": (
        text_of({k: v for k, v in SMALL.items() if "dspark" not in k}
                | {"num_nextn_predict_layers": HUGE}),
        None,
    ),
    "stages without end": (changed(n_mtp_layers=HUGE), None),
    "every count without end": (
        changed(num_hidden_layers=HUGE, n_routed_experts=HUGE, num_nextn_predict_layers=HUGE), None
    ),
    "architectures a number": (changed(architectures=3), None),
    "architectures of lists": (changed(architectures=[["x"], None, {}]), None),
    "no architecture": (b"{}", None),
    "nested without end": (b'{"a":' * 100_000, None),
    "nested 50,000 deep": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, None),
    "lists 900 deep in targets": (
        quantised(ignore=json.loads("[" * 900 + "]" * 900)), None
    ),
    "a byte order mark": (b"\xef\xbb\xbf" + text_of(SMALL), None),
    "no UTF-8": (b'{"\xff": 1}', None),
    "a list": (b"[]", None),
    "an integer of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", None),
    **{f"groups of {value!r:.20}": (quantised(config_groups=value), None)
       for value in (3, "x", [], {"g": 3}, {"g": {"targets": 3, "weights": 4}},
                     {"g": {"targets": [3, None, {}], "weights": {"num_bits": [], "type": {}}}})},
    **{f"ignore of {value!r:.20}": (quantised(ignore=value), None)
       for value in (3, "x", {}, [3], [None], [[]], {"a": 1})},
    "catastrophic targets": (quantised(ignore=CATASTROPHIC), None),
    "catastrophic groups": (
        quantised(config_groups={"g": {"targets": CATASTROPHIC, "weights": {}}}), None
    ),
    "100,000 targets": (quantised(ignore=[f"layers.{i}.x" for i in range(100_000)]), None),
    "20,000 expressions": (quantised(ignore=[f"re:.*{i}.*" for i in range(20_000)]), None),
    "an expression of a megabyte": (quantised(ignore=["re:" + "(a|b)*" * 170_000]), None),
    "a repetition of repetitions": (quantised(ignore=["re:((a{1000}){1000}){1000}"]), None),
    "half a surrogate pair in a target": (quantised(ignore=["re:\ud800", "\ud800"]), None),
    "10,000 globs": (
        changed(quantization_config={
            **SMALL["quantization_config"],
            "quantized_layers": {f"*a*{i}*": {"quant_algo": "NVFP4"} for i in range(10_000)},
        }),
        None,
    ),
    "an index of numbers": (text_of(SMALL), text_of({"weight_map": {"a": 1}})),
    "an index without a map": (text_of(SMALL), text_of({"weight_map": []})),
    "an empty index": (text_of(SMALL), text_of({"weight_map": {}})),
    **{f"a total size of {value!r:.20}": (
        text_of(SMALL), text_of({**WHOLE, "metadata": {"total_size": value}}))
       for value in (float("inf"), float("nan"), "x", [], -1, 1 << 70, True)},
    "braces and control characters": (
        text_of(SMALL),
        text_of({"weight_map": {"{x}{0}\x1b[2J\x9b\u202e\ud800": "{y}\x07", **WHOLE_MAP}}),
    ),
    "100,000 blocks in the index": (
        text_of(SMALL),
        text_of({"weight_map": {f"mtp.{i}.{i}.x": SHARD for i in range(100_000)}}),
    ),
    "a block number of 5,000 digits": (
        text_of(SMALL), text_of({"weight_map": {f"mtp.{'9' * 5000}.x": SHARD}})
    ),
}  # fmt: skip


@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.parametrize("name", CASES)
def test_ends_in_words(name):
    assert linted(*CASES[name])


def test_the_small_checkpoint_is_sound():
    # Zeros of data read as ones here, and no file has that length.
    assert set(linted(text_of(SMALL))) - {"shard_length"} == {"dspark_draft"}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, HUGE)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([*CATASTROPHIC, "re:(", "re:(?=a)b", "Linear", "mtp.*"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)
replaced = st.dictionaries(st.sampled_from([*FIELDS, "n_mtp_layers", "auto_map"]), anything)
sections = st.sampled_from([GROUPS, SMALL["quantization_config"]])
parts = st.dictionaries(
    st.sampled_from(
        [
            "quant_method",
            "config_groups",
            "ignore",
            "moe_quant_algo",
            "quantized_layers",
            "scale_fmt",
        ]
    ),
    anything,
    max_size=3,
)


@settings(max_examples=examples(2000), suppress_health_check=list(HealthCheck))
@given(replaced, sections, parts, st.none() | st.dictionaries(st.text(max_size=8), st.text()))
def test_any_config_and_index(values, section, part, index):
    config = {**copy.deepcopy(SMALL), "quantization_config": {**section, **part}, **values}
    document = None if index is None else text_of({"weight_map": {**WHOLE_MAP, **index}})
    with bounded():
        linted(text_of(config), document)


@settings(max_examples=examples(1000), suppress_health_check=list(HealthCheck))
@given(anything | st.dictionaries(st.text(max_size=8), anything), st.binary(max_size=60))
def test_any_document_and_shard(config, head):
    with bounded():
        linted(text_of(config), head=head)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("as_json", [True, False])
def test_the_verb(as_json, tmp_path):
    """What a person or a program is given of a folder full of traps."""
    folder = tiny.v4().write(tmp_path / "a{b}\x1b[31m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] += [*CATASTROPHIC, "\x1b]0;title\x07"]
    (folder / "config.json").write_text(json.dumps(config))
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "modeling_{x}\x1b[2J.py").write_text("pass")
    shard = next(folder.glob("model-0*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])
    command = [sys.executable, "-m", "runbook", "lint", str(folder), *(["--json"] * as_json)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=50)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout
    if as_json:
        answer = json.loads(done.stdout)
        ids = {finding["id"] for finding in answer["findings"]}
        assert {"shard_length", "file_odd", "custom_code"} <= ids
        assert 0 < answer["scales"]["examined"] <= answer["scales"]["tensors"]
