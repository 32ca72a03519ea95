"""What the tiny language model and its quantised heads would do, without a server.

    VLLM_PYTHON tests/benchmarks/tiny_judge.py TASK.json

TASK: `heads`, folders of checkpoints by name; `upstream`, the folder with the exact experts;
`captures`, folders of tokens by name; `prefix` of the routed experts; `answers`, a file with a list
of {"prompt": token ids, "answer": token ids}; `texts`, a file with a list of texts. Prints a JSON
line for each measurement:

- errors: of each head's routed experts on captured tokens, against those of upstream;
- model: in how many places of the served answers, given what is before, torch says the same token;
- served: on the served answers, whether each draft of a head is the next served token;
- text: on given texts, whether each draft is what the model itself would say next; by text, the
  acceptance if both sample at temperature 1 (1 - total variation) and the divergence from the first
  head's distribution (Kullback-Leibler, nats).

The same positions for all heads: they can be compared in pairs.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from tiny_lm import BOS, Model

LAUNCH = Path(__file__).parents[2] / "steps/mtp/retrofit/launch.py"
ROWS = 32
"""Sequences that pass through the model at a time."""


def retrofit(module: str) -> Any:
    """A module of the quantiser's package, which this environment does not have installed."""
    spec = importlib.util.spec_from_file_location("mtp_launch", LAUNCH)
    assert spec is not None and spec.loader is not None
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)
    launch.package()
    return importlib.import_module(f"{launch.NAME}.{module}")


formats = retrofit("formats")


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def load(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint as FP32, dequantised, by the names they have unquantised."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    stored: dict[str, Tensor] = {}
    for shard in sorted(set(index.values())):
        stored.update(load_file(folder / shard))
    made: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        base = name.removesuffix("_packed").removesuffix(".weight")
        scale = stored.get(f"{base}.weight_scale", stored.get(f"{base}.scale"))
        if name.endswith(".weight_packed"):
            codes = formats.unpack(tensor).float()
            spread = scale.float().repeat_interleave(codes.shape[1] // scale.shape[1], 1)
            made[f"{base}.weight"] = (codes * spread).to(torch.bfloat16).float()
        elif tensor.dtype == torch.float8_e4m3fn:
            made[name] = formats.from_fp8(tensor, scale).float()
        elif tensor.dtype == torch.int8:
            made[name] = formats.from_fp4(tensor, scale).float()
        elif not name.endswith(("scale", "_shape")):
            made[name] = tensor.float()
    return made


def outputs(model: Model, prefix: str, capture: Path) -> tuple[list[Tensor], list[int], Tensor]:
    """Each expert's output on its captured tokens, how many they are, and the sum per token."""
    parts = [load_file(path) for path in sorted(capture.glob("tokens-*.safetensors"))]
    x, experts, shares = (torch.cat([p[k] for p in parts]) for k in ("x", "experts", "weights"))
    x = x.float()
    found = []
    for expert in range(model.config["n_routed_experts"]):
        rows, slots = (experts == expert).nonzero(as_tuple=True)
        only = torch.full((len(rows), 1), expert)
        block = prefix.removesuffix(".experts")
        found.append(model.routed(block, x[rows], only, shares[rows, slots].unsqueeze(1)))
    whole = model.routed(block, x, experts, shares)
    return found, [len(part) for part in found], whole


def errors(models: dict[str, Model], task: dict[str, Any]) -> None:
    exact = Model(models[next(iter(models))].config, load(Path(task["upstream"])))
    for capture, folder in task["captures"].items():
        wanted, counts, whole = outputs(exact, task["prefix"], Path(folder))
        for name, model in models.items():
            given, _, summed = outputs(model, task["prefix"], Path(folder))
            each = [float((a - b).norm() / b.norm()) for a, b in zip(given, wanted, strict=True)]
            mean = sum(e * n for e, n in zip(each, counts, strict=True)) / sum(counts)
            say(
                kind="errors",
                head=name,
                capture=capture,
                tokens=counts,
                experts=[round(e, 4) for e in each],
                mean=round(mean, 5),
                block=round(float((summed - whole).norm() / whole.norm()), 5),
            )


def check_same(models: dict[str, Model], prefix: str) -> None:
    """Exit unless the models differ in nothing but the head's routed experts."""
    first = next(iter(models.values())).weights
    for name, model in models.items():
        others = {n for n in first | model.weights if not n.startswith(f"{prefix}.")}
        if any(not torch.equal(first[n], model.weights[n]) for n in others):
            sys.exit(f"the head {name} differs in more than its routed experts")


def passes(
    models: dict[str, Model], tokens: Tensor
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Some sequences at a time of tokens [n, length], with logits: of the model for token i + 1
    [n, length, vocabulary], of each head for token i + 2 [n, length - 1, vocabulary]."""
    first = next(iter(models.values()))
    for part in tokens.split(ROWS):
        hidden = first.hidden(part)
        drafts = {name: model.draft(part, hidden) for name, model in models.items()}
        yield part, first.logits(hidden), drafts


def served(models: dict[str, Model], task: dict[str, Any]) -> None:
    answers = json.loads(Path(task["answers"]).read_text())
    first = len(answers[0]["prompt"])
    tokens = torch.tensor([a["prompt"] + a["answer"] for a in answers])
    same: list[Tensor] = []
    hits: dict[str, list[list[int]]] = {name: [] for name in models}
    for part, main, drafts in passes(models, tokens):
        same.append(main[:, first - 1 : -1].argmax(-1) == part[:, first:])
        for name, drafted in drafts.items():
            # An answer's second token is the first that is drafted, at the prompt's last place.
            right = drafted[:, first - 1 : -1].argmax(-1) == part[:, first + 1 :]
            hits[name] += right.int().tolist()
    agreed = torch.cat(same)
    say(
        kind="model",
        answers=len(answers),
        identical=int(agreed.all(1).sum()),
        tokens=agreed.numel(),
        agreed=int(agreed.sum()),
    )
    for name, rows in hits.items():
        say(kind="served", head=name, hits=rows)


def texts(models: dict[str, Model], task: dict[str, Any]) -> None:
    from tokenizers import Tokenizer

    folder = Path(next(iter(task["heads"].values())))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode_batch(json.loads(Path(task["texts"]).read_text()))
    tokens = torch.tensor([[BOS, *e.ids] for e in encoded])
    exact = next(iter(models))
    found: dict[str, dict[str, list[Any]]] = {
        name: {"hits": [], "sampled": [], "divergence": []} for name in models
    }
    for _, main, drafts in passes(models, tokens):
        wanted = main[:, 1:]
        full = drafts[exact].log_softmax(-1)
        for name, drafted in drafts.items():
            into = found[name]
            into["hits"] += (drafted.argmax(-1) == wanted.argmax(-1)).int().tolist()
            common = torch.minimum(drafted.softmax(-1), wanted.softmax(-1)).sum(-1)
            into["sampled"] += common.mean(1).tolist()
            lost = (full.exp() * (full - drafted.log_softmax(-1))).sum(-1)
            into["divergence"] += lost.mean(1).tolist()
    for name, lists in found.items():
        say(kind="text", head=name, **lists)


@torch.inference_mode()
def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    heads = {name: Path(folder) for name, folder in task["heads"].items()}
    models = {
        name: Model(json.loads((folder / "config.json").read_text()), load(folder))
        for name, folder in heads.items()
    }
    check_same(models, task["prefix"])
    errors(models, task)
    none = dict(next(iter(models.values())).weights)
    none |= {n: torch.zeros_like(w) for n, w in none.items() if n.startswith(task["prefix"])}
    models["no routed experts"] = Model(next(iter(models.values())).config, none)
    served(models, task)
    texts(models, task)


if __name__ == "__main__":
    main()
