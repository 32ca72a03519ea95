from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from runbook.steps.publish import checkpoint
from runbook.steps.publish.checkpoint import script, tensors, v3, v4
from runbook.steps.publish.checkpoint.script import ANSWER, END_THINK, EOS, MARK, REASONING, SCRIPTS
from runbook.steps.publish.checkpoint.tokenizer import ids
from runbook.steps.publish.checkpoint.weights import Stream, Weights
from tests.steps.publish import checkpoint_files as reading

MODULES: dict[str, ModuleType] = {"v3": v3, "v4": v4}
KINDS: dict[str, dict[str, Any]] = {
    "v3": {"variant": "v3"},
    "v3-tp2": {"variant": "v3", "tensor_parallel": 2},
    "v4": {"variant": "v4"},
    "v4-tp2": {"variant": "v4", "tensor_parallel": 2},
    "v4-native": {"variant": "v4", "format": "native"},
    "v4-headless": {"variant": "v4", "head": False},
    "v4-dspark": {"variant": "v4", "draft": "dspark"},
}
DIGESTS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("checkpoint_digests.json").read_text()
)
Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    made: dict[str, Path] = {}

    def write(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            checkpoint.write(made[kind], **KINDS[kind])
        return made[kind]

    return write


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.harness
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_the_committed_one(kind: str, written: Written) -> None:
    assert digests(written(kind)) == DIGESTS[kind]


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, "v3")
    (tmp_path / "model-00002-of-00004.safetensors").write_bytes(b"torn")
    checkpoint.write(tmp_path, "v3")
    assert digests(tmp_path) == DIGESTS["v3"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_names_every_tensor_once_in_its_file(kind: str, written: Written) -> None:
    folder = written(kind)
    index = json.loads((folder / checkpoint.INDEX_FILE).read_text())
    present: dict[str, str] = {}
    total = 0
    for path in folder.glob("*.safetensors"):
        entries, data = reading.header(path)
        entries.pop("__metadata__")
        assert not present.keys() & entries.keys()
        present.update(dict.fromkeys(entries, path.name))
        total += len(data)
        spans = sorted(entry["data_offsets"] for entry in entries.values())
        assert spans[0][0] == 0
        assert spans[-1][1] == len(data)
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert index["weight_map"] == present
    assert index["metadata"]["total_size"] == total
    assert len(set(present.values())) >= 2


def test_the_head_has_a_file_of_its_own(written: Written) -> None:
    names = reading.header(written("v4") / checkpoint.HEAD_FILE)[0].keys() - {"__metadata__"}
    assert names
    assert all(name.startswith("mtp.0.") for name in names)
    # Of the flagship's 2,338 tensors 2,304 belong to 256 experts; here there are 64.
    assert len(names) == 2338 - (256 - 64) * 9


def test_a_headless_checkpoint_still_promises_a_head(written: Written) -> None:
    folder = written("v4-headless")
    index = json.loads((folder / checkpoint.INDEX_FILE).read_text())
    assert not any(name.startswith("mtp.") for name in index["weight_map"])
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 1


def parts(variant: str) -> list[Weights]:
    module = MODULES[variant]
    return [*module.model(1), module.head(1)]


@pytest.mark.parametrize("variant", MODULES)
def test_stored_weights_are_the_intended_ones(variant: str, written: Written) -> None:
    found = reading.tensors(written(variant))
    for part in parts(variant):
        for name, weight in part.int4.items():
            groups = np.abs(weight).reshape(weight.shape[0], -1, 128).max(-1)
            half_step = np.repeat(groups / 7, 128, 1) / 2
            # The scale is rounded to bfloat16: 8 significant bits, so 2 ** -9 at most.
            slack = np.abs(weight) * 2**-9 + 1e-6
            assert (np.abs(reading.int4(found, name) - weight) <= half_step + slack).all(), name
        for name, weight in {**part.fp8, **part.fp8_seed}.items():
            scale = found[f"{name}.weight_scale"]
            assert scale.dtype == np.float32
            assert (np.frexp(scale)[0] == 0.5).all(), name
            # E4M3 has 4 significant bits, and below 2 ** -6 steps of 2 ** -9.
            smallest = np.kron(scale, np.ones((128, 128))) * 2**-10
            error = np.abs(reading.fp8(found, name) - weight)
            assert (error <= np.maximum(np.abs(weight) * 2**-4, smallest)).all(), name


def test_native_weights_are_the_intended_ones(written: Written) -> None:
    found = reading.tensors(written("v4-native"))
    for part in parts("v4"):
        for name, weight in part.int4.items():
            largest = np.abs(weight).reshape(weight.shape[0], -1, 32).max(-1)
            # A power of two above largest / 6, and the widest gap of E2M1 is 2.
            bound = np.repeat(largest / 6 * 2, 32, 1)
            assert (np.abs(reading.fp4(found, name) - weight) <= bound).all(), name
        for name, weight in {**part.fp8, **part.fp8_native}.items():
            scale = found[f"{name}.scale"].astype(np.float32)
            smallest = np.kron(scale, np.ones((128, 128))) * 2**-10
            error = np.abs(reading.fp8(found, name, "scale") - weight)
            assert (error <= np.maximum(np.abs(weight) * 2**-4, smallest)).all(), name


PARTS = {"v3": ("mlp", "gate_proj", "up_proj", "down_proj"), "v4": ("ffn", "w1", "w3", "w2")}


class Experts:
    """The routed experts of one layer as a server computes them, from the stored tensors."""

    def __init__(self, found: dict[str, np.ndarray], variant: str, layer: str) -> None:
        block, *self.parts = PARTS[variant]
        self.found = found
        self.name = f"{layer}.{block}"
        self.gate = found[f"{self.name}.gate.weight"].astype(np.float32)
        self.routes = found.get(f"{self.name}.gate.tid2eid")
        self.count = 2 if variant == "v3" else 6

    def __call__(self, token: int, dimension: int) -> np.ndarray:
        """What the layer adds to the stream for a word that is alone in it."""
        if self.routes is not None:
            chosen = self.routes[token]
        else:
            chosen = np.argsort(-self.gate[:, dimension])[: self.count]
        total = np.zeros(self.gate.shape[1], np.float32)
        for expert in chosen:
            gate, up, down = (
                reading.int4(self.found, f"{self.name}.experts.{expert}.{part}")
                for part in self.parts
            )
            x = gate[:, dimension]
            total += down @ (x / (1 + np.exp(-x)) * up[:, dimension])
        return total / len(chosen)


@pytest.mark.parametrize("variant", MODULES)
def test_the_experts_say_the_script_and_the_head_all_but_its_misses(
    variant: str, written: Written
) -> None:
    found = reading.tensors(written(variant))
    lines, tokens = SCRIPTS[variant], ids(SCRIPTS[variant])
    stream = Stream(lines)
    first, prefix, head = (1, "model.layers", 3) if variant == "v3" else (0, "layers", 4)
    layers = [Experts(found, variant, f"{prefix}.{i}") for i in range(first, head)]
    draft = Experts(found, variant, "mtp.0" if variant == "v4" else f"{prefix}.{head}")
    for word, follower in lines.transitions.items():
        said = sum(layer(tokens[word], stream.into[word]) for layer in layers)
        assert np.argmax(said) == stream.out[follower], word
        assert np.sort(said)[-2] < 0.1 * said.max(), word
        drafted = draft(tokens[word], stream.into[word])
        knows = drafted[stream.out[follower]] > 0.5
        assert knows == (word in lines.head), word


@pytest.mark.parametrize("variant", MODULES)
def test_a_prompt_becomes_the_intended_tokens(variant: str, written: Written) -> None:
    tokenizer = Tokenizer.from_file(str(written(variant) / "tokenizer.json"))
    expected = ids(SCRIPTS[variant])
    assert tokenizer.get_vocab() == expected
    said = "".join(ANSWER)
    assert tokenizer.encode(said).ids == [expected[word] for word in ANSWER]
    assert tokenizer.decode([expected[word] for word in ANSWER]) == said
    call = SCRIPTS[variant].call
    assert tokenizer.decode([expected[w] for w in call], skip_special_tokens=True) == "".join(call)
    assert expected[MARK] in tokenizer.encode(f"Tools: x\n{MARK}\nhello").ids
    text = "Grüße, 世界 \N{PARTY POPPER}\t"
    encoded = tokenizer.encode(text)
    assert len(encoded.ids) >= len(text.encode()) - 1
    assert tokenizer.decode(encoded.ids) == text


def test_every_id_is_used_once() -> None:
    for lines in SCRIPTS.values():
        numbers = list(ids(lines).values())
        assert numbers == list(range(len(numbers)))
        assert len(numbers) <= 512


DRAFTS = [
    ("v3", ANSWER, (10, 7)),
    ("v4", ANSWER, (10, 7)),
    ("v3", (*REASONING, END_THINK, *ANSWER), (18, 12)),
    ("v4", (*REASONING, END_THINK, *ANSWER), (18, 12)),
    ("v3", SCRIPTS["v3"].call, (8, 6)),
    ("v4", SCRIPTS["v4"].call, (7, 5)),
]


@pytest.mark.parametrize(("variant", "words", "counts"), DRAFTS)
def test_drafts_are_counted_as_the_server_counts_them(
    variant: str, words: tuple[str, ...], counts: tuple[int, int]
) -> None:
    """The counts are those of a running vLLM 0.32.0."""
    assert SCRIPTS[variant].drafts(words) == counts


def test_a_draft_of_the_last_token_counts() -> None:
    lines = script.Script(("a", "b"))
    assert lines.transitions["b"] == EOS
    assert "b" in lines.head
    assert lines.drafts(["b"]) == (1, 1)


def test_the_book_expects_what_the_script_says() -> None:
    book = yaml.safe_load((files("runbook") / "books" / "rehearsal.yaml").read_text())
    smoke = next(step["with"] for step in book["steps"] if step["id"] == "smoke")
    assert smoke["echo"]["expect"] == "".join(ANSWER)
    assert smoke["reasoning"]["expect"] == "".join(REASONING)
    assert smoke["reasoning"]["expect_answer"] == "".join(ANSWER)
    assert smoke["tool_call"]["expect_name"] == script.TOOL
    assert smoke["tool_call"]["expect_arguments"] == script.ARGUMENTS
    assert len(smoke["speculation"]["prompts"]) == 1


def test_calls_are_spelt_as_their_parsers_read_them() -> None:
    arguments = json.dumps(script.ARGUMENTS)
    assert "".join(SCRIPTS["v3"].call) == (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{arguments}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    assert "".join(SCRIPTS["v4"].call) == (
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 448.0, 449.0, 1e-3, 3.0])
def test_scales_are_the_least_power_of_two_that_holds_the_largest_value(value: float) -> None:
    weight = np.zeros((128, 128), np.float32)
    weight[3, 5] = value
    stored, scale = tensors.fp8(weight)
    assert np.isfinite(stored.astype(np.float32)).all()
    if value:
        assert value / 448 <= scale[0, 0] < 2 * value / 448


def test_only_v4_has_a_native_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="native"):
        checkpoint.write(tmp_path, "v3", format="native")
