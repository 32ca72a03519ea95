"""A book as text: the choices, each with its reason, in the template `book.yaml.j2`."""

from __future__ import annotations

import json
import math
import re
from importlib import resources
from typing import Any

from runbook.steps.checkpoint.lint.report import printable
from runbook.steps.new import fit
from runbook.steps.new.choice import Choice
from runbook.steps.new.choosing import Choices
from runbook.steps.new.draft import UNEXAMINED, Examined
from runbook.steps.new.machine import GIB, Machine
from runbook.steps.new.model import Model
from runbook.steps.new.registry import NEEDS, Build

GB = 10**9
ENVIRONMENT_GB = {"gpu": 15, "cpu": 2}
"""Of the toolkit, compiled kernels and logs, besides the vLLM environment that its lock counts."""
ANSWER_TOKENS = 256
THOUGHT_TOKENS = 2048
NEEDLE_TOKENS = 8000
"""Of the long text, where the context has room for it."""
LEAST_NEEDLE_CONTEXT = 32768
GPU_ENV = (
    Choice("VLLM_USE_FLASHINFER_SAMPLER", "0", "its kernel fails to compile with an older nvcc"),
    Choice("VLLM_ENGINE_READY_TIMEOUT_S", "3600", "vLLM's own 600 s are short for a first start"),
    Choice("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "1800", "kernels may be compiled while it serves"),
)
NOT_CHECKED = "Its tensors were not checked: the linter does not know this architecture's."
PLAINEST = "avx2"
"""Of a processor; for models that want more the patched CPU build interprets Triton's kernels."""
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
RESERVED = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""Words that a reader of YAML may take for something else than a text."""


def text(
    name: str,
    model: Model,
    machine: Machine,
    build: Build,
    target_why: str,
    examined: Examined,
    choices: Choices,
) -> str:
    """The YAML of the book."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        block_start_string="<%", block_end_string="%>",
        variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=_one_line, autoescape=False,
    )  # fmt: skip
    environment.filters["yaml"] = scalar
    template = (resources.files("runbook.templates") / "book.yaml.j2").read_text()
    return environment.from_string(template).render(
        _scope(name, model, machine, build, target_why, examined, choices)
    )


def _one_line(value: Any) -> Any:
    """What stands in the text is of one line, whatever a config or a recipe says."""
    return " ".join(printable(value).split()) if isinstance(value, str) else value


def scalar(value: Any) -> str:
    """A value as YAML, which JSON is; what looks like a template of a book is made none."""
    if isinstance(value, str) and re.fullmatch(r"\{\{ steps\.[a-z_.]+ \}\}", value):
        return json.dumps(value)
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, str) and re.search(r"\{[{%#]", value):
        return "{{ " + json.dumps(value) + " }}"
    return value


def _scope(
    name: str,
    model: Model,
    machine: Machine,
    build: Build,
    target_why: str,
    examined: Examined,
    choices: Choices,
) -> dict[str, Any]:
    gpus = not build.cpu
    wish, context = choices.wish, choices.wish.context
    collectives = gpus and choices.ranks.value > 1
    parser = choices.flag("reasoning_parser")
    quiet = {choices.thinking: False} if choices.thinking else {}
    most = max(16, context // 4)  # questions and answers must fit the context
    thoughts = min(THOUGHT_TOKENS, most)
    request = choices.cache.request(context, choices.batched, choices.ranks.value)
    needs = ["preflight", *(["toolkit"] if gpus else []), "build"]
    needs += [*(["weights"] if model.repo else []), *(["collectives"] if collectives else [])]
    speculation = choices.flag("speculative_config") or {}
    return {
        "name": name,
        "source": f"{model.source}@{model.revision}" if model.repo else model.source,
        "machine": machine.words(),
        "head": list(_head(examined, choices)),
        "description": f"{model.source} for {wish.users} users at {context:,} tokens.",
        "repo": model.repo,
        "revision": model.revision,
        "folder": str(model.folder or ""),
        "digest": model.digest if model.folder else "",
        "ignored": model.ignored,
        "size": f"{math.ceil(model.files / GB)} GB",
        "preflight": list(_preflight(model, machine, build, choices)),
        "gpus": gpus,
        "architecture": machine.architecture or "12.0",
        "target": build.target,
        "target_why": target_why[:1].upper() + target_why[1:],
        "version": build.release.version,
        "series": examined.series,
        "series_why": examined.why[:1].upper() + examined.why[1:],
        "collectives": collectives,
        "needs": needs,
        "ranks": choices.ranks,
        "batched": choices.batched,
        "flags": choices.flags,
        "extra": choices.extra,
        "users": wish.users,
        "context": context,
        "cache": choices.cache.words(),
        "cache_request": _bytes(request),
        "utilization": fit.UTILIZATION,
        "cpu_cache": fit.cpu_cache(model, choices.cache, wish, choices.batched),
        "env": [*(GPU_ENV if gpus else _cpu_env(choices, examined)), *choices.env],
        "mtp": speculation.get("method") == "mtp",
        "thinking": choices.thinking,
        "quiet": quiet,
        "loud": {choices.thinking: True} if choices.thinking else {},
        "reasoning": bool(parser),
        "tools": bool(choices.flag("tool_call_parser")),
        "answer_tokens": min(ANSWER_TOKENS, most) if quiet or not parser else thoughts,
        "thought_tokens": thoughts,
        "speed_tokens": min(512, most),
        "needle": NEEDLE_TOKENS if context >= LEAST_NEEDLE_CONTEXT else 0,
    }


def _bytes(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB // 10 else f"{number / (1 << 20):.1f} MiB"


def _head(examined: Examined, choices: Choices) -> list[str]:
    """What whoever reads the book should know before."""
    lines = [
        NOT_CHECKED if f.id == UNEXAMINED else f"{f.severity}: {f.id}, {f.detail}"
        for f in examined.findings
        if f.severity != "info"
    ]
    lines += [f"Without speculative decoding: {examined.drafts}."] * (not examined.speculation)
    lines += [f"Left out of the recipe: {told}." for told in choices.left_out]
    lines += [f"Not understood in the recipe: {key}." for key in choices.unknown]
    return lines


def _cpu_env(choices: Choices, examined: Examined) -> tuple[Choice, ...]:
    if not examined.series or choices.isa != PLAINEST:
        return ()
    why = "the patched build interprets Triton kernels, which only DeepSeek-V4 needs"
    return (Choice("TRITON_INTERPRET", "0", why),)


def _preflight(model: Model, machine: Machine, build: Build, choices: Choices) -> list[Choice]:
    need, ranks = choices.need, choices.ranks.value
    wants = NEEDS["cpu" if build.cpu else "gpu"]
    more = ENVIRONMENT_GB["cpu" if build.cpu else "gpu"]
    weights = model.files if model.repo else 0
    disk = (weights + build.release.disk_bytes) / GB + more
    parts = f"{build.release.disk_bytes / GB:.0f} GB of environment, {more} of toolkit and caches"
    if weights:
        parts = f"{weights / GB:.1f} GB of weights, {parts}"
    found: list[Choice] = []
    if build.cpu:
        cache = fit.cpu_cache(model, choices.cache, choices.wish, choices.batched)
        memory = need.weights + cache + fit.PROCESSES
        words = (
            f"{_bytes(need.weights)} of weights, {_bytes(cache)} of KV cache, "
            f"{fit.PROCESSES / GIB:.0f} GiB of processes"
        )
        found += [
            Choice("cpu_isa", choices.isa, "what vLLM's kernels for this model take at least"),
            Choice("cpu_ranks", ranks, "workers among which the cores are divided"),
            Choice("memory_available_gib", math.ceil(memory / GIB), words),
            Choice("vllm_lock", build.release.path.name, "some index must offer its PyTorch"),
        ]
    else:
        least = math.ceil(need.all / fit.UTILIZATION / (1 << 20))
        largest = max(model.checkpoint.sizes[name] for name in model.shards)
        memory = math.ceil((16 * GIB + ranks * largest) / GIB)
        found += [
            Choice("gpus", ranks, "one for each rank"),
            Choice("gpu_architecture", machine.architecture, f"that of {machine.gpu_name}"),
            Choice("gpu_memory_mib", least, f"of each, at {fit.UTILIZATION}: {need.words()}"),
            Choice("driver", wants["driver"], "the least driver of the wheel's CUDA"),
            Choice("cuda", wants["cuda"], "the CUDA that the wheel was made with"),
            Choice("memory_gib", memory, "a shard for each rank while it is loaded, and 16 GiB"),
            Choice("python_headers", True, "kernels are compiled against them"),
        ]
    return [
        *found,
        Choice("disk_gb", math.ceil(disk), parts),
        Choice("compiler", wants["compiler"], "gcc and g++, for what is compiled at a start"),
        Choice("python", "3.11", "the least that vLLM is locked for"),
    ]
