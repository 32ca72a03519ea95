"""Combinations of flags, environment, GPUs, checkpoint and vLLM that do not work, as data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from runbook.protocol import Reason
from runbook.steps.common import nvml
from runbook.steps.common.flags import profiles
from runbook.steps.common.shipped import shipped

World = dict[str, Any]

FAR = ("PHB", "NODE", "SYS")
"""Links between GPUs that go through the host, in the words of `nvidia-smi topo -m`."""


@dataclass(frozen=True)
class Rule:
    """`when` and `consequence` are Jinja; `remedy` has one of set, env and else."""

    id: str
    when: str
    severity: str
    consequence: str
    remedy: Mapping[str, Any]
    source: str


class Known(dict[str, Any]):
    """Values by name. A name without a value is None, unless it is not known yet: then reading it
    is an error, by which a rule that needs it does not fire."""

    def __init__(self, values: Mapping[str, Any], unknown: Collection[str] = ()) -> None:
        super().__init__(values)
        self.unknown = unknown

    def __missing__(self, name: str) -> Any:
        if name in self.unknown or "*" in self.unknown:
            raise KeyError(name)
        return None


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    from importlib import resources

    entries = shipped(resources.files("runbook.steps.serve") / "rules.yaml")
    return tuple(Rule(**entry) for entry in entries)


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined)


@cache
def _expression(source: str) -> Any:
    """A condition of the rules, compiled; they are looked at for each profile."""
    return _environment().compile_expression(source, undefined_to_none=False)


@cache
def _template(source: str) -> Any:
    return _environment().from_string(source)


def findings(world: World, override: Collection[str]) -> Iterator[Reason]:
    """What the rules say, as reasons whose code is the rule's id; those in `override` only warn."""
    from jinja2 import UndefinedError

    for rule in rules():
        try:
            if not _expression(rule.when)(**world):
                continue
            told = _template(rule.consequence).render(world)
        except UndefinedError:
            continue  # something that it needs is not known
        refuses = rule.severity == "refuse" and rule.id not in override
        remedy = _remedy(rule, world)
        if refuses:
            remedy += f"; `override: [{rule.id}]` of the step tries it all the same"
        yield Reason(
            rule.id,
            f"{told} (rule {rule.id}; {rule.source})",
            remedy,
            "error" if refuses else "warning",
        )


def _remedy(rule: Rule, world: World) -> str:
    def words(values: Mapping[str, Any], what: str) -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from words({f"{name}.{key}": one for key, one in value.items()}, what)
            elif value is None:
                yield f"drop {name}"
            else:
                shown = (
                    _template(value).render(world) if isinstance(value, str) else json.dumps(value)
                )
                yield f"set {what}{name}: {shown}"

    if "else" in rule.remedy:
        return str(rule.remedy["else"])
    if "set" in rule.remedy:
        return ", ".join(words(rule.remedy["set"], ""))
    here = {n: v for n, v in rule.remedy["env"].items() if v is not None or world["env"][n]}
    return ", ".join(words(here or rule.remedy["env"], "env."))


def world(given: Mapping[str, Any], unknown: Collection[str], facts: Mapping[str, Any]) -> World:
    """What the rules speak of. `given` are the inputs of the step, `unknown` the dotted paths of
    those that are not known."""
    given, unknown = _with_profile(given, unknown)
    release = given.get("release") or {}
    tops = {path.partition(".")[0] for path in unknown}
    # Any flag may be among further arguments that are not known.
    unset = {"*"} if "extra_args" in tops else tops
    flags = Known({**given, **_extra(given.get("extra_args") or [])}, unset)
    if "*" in unset:
        flags = Known({name: value for name, value in flags.items() if value is not None}, unset)
    env: dict[str, str] = {}
    for layer in given.get("env") or []:
        env.update(layer)
    speculation = Known(flags.get("speculative_config") or {})
    tp, pp, dp = (
        flags.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline", "data")
    )
    found: World = {
        "flags": flags,
        "env": Known(env, ("*",) if "env" in tops else ()),
        "speculation": speculation,
        "method": speculation["method"],
        "k": (speculation["num_speculative_tokens"] or 1) if speculation else 0,
        "tp": tp,
        "ranks": tp * pp * dp,
        "hosts": flags.get("nnodes") or 1,
        "gpu": _gpu(facts, tp * pp * dp, nvml.devices(env)),
        "memlock": _memlock(),
    }
    if facts.get("cpu"):
        found["cores"] = facts["cpu"]["cores"]
    if release.get("version"):
        numbers = str(release["version"]).split("+")[0].split(".")[:2]
        found["release"] = [int(part) for part in numbers if part.isdigit()]
        found |= _quirks(str(release["version"]), str(release.get("series") or ""))
    if release.get("variables") is not None:
        known = set(release["variables"])
        names = (n for n in env if n.startswith("VLLM_"))
        found["unknown_variables"] = sorted(n for n in names if n not in known)
    if isinstance(given.get("model"), str):
        found |= _checkpoint(Path(given["model"]))
        found |= _request(found.get("config") or {}, flags)
    return found


def _request(config: Mapping[str, Any], flags: Mapping[str, Any]) -> World:
    """What a request of full length takes of the KV cache, where that is known."""
    from runbook.steps.checkpoint.kv_cache import request_bytes
    from runbook.steps.checkpoint.layout import ConfigError

    length, step = flags.get("max_model_len"), flags.get("max_num_batched_tokens")
    if config.get("model_type") != "deepseek_v4" or not (length and step):
        return {}
    try:
        return {"request_gib": request_bytes(config, length, step) / 2**30}
    except ConfigError:
        return {}


def _quirks(version: str, series: str) -> World:
    """What a checkpoint must heed of this vLLM, if it is one of those known."""
    from runbook.steps.checkpoint.targets import Target, UnknownTarget

    try:
        return {"quirks": sorted(Target(version.partition("+")[0], series).quirks)}
    except UnknownTarget:
        return {}


def _with_profile(
    given: Mapping[str, Any], unknown: Collection[str]
) -> tuple[dict[str, Any], set[str]]:
    """The inputs with those of the chosen profile laid over them, and what then is not known."""
    values, missing = profiles.spread(given, unknown)
    told = given.get("profiles") or {}
    if "profile" in missing:  # any may be chosen, and give its own value
        open_names = {key for profile in told.values() for key in profile}
        return {k: v for k, v in values.items() if k not in open_names}, missing | open_names
    try:
        name, _ = profiles.chosen(given)
    except profiles.NoProfile:
        name = None  # refused by the inputs themselves
    layers = [told.get(name) or {}]
    if isinstance(file := given.get("profile_file"), str):
        from runbook.steps.common.flags import profile_file

        layers.append(profile_file.flags(file))
    for layer in layers:
        profiles.lay(values, layer)
        fixed = {key for key, value in layer.items() if value is not None}
        missing -= fixed - {*profiles.LAYERED}
    start = f"profiles.{name}."
    missing |= {path.removeprefix(start) for path in unknown if path.startswith(start)}
    return values, missing


def _extra(arguments: list[str]) -> dict[str, Any]:
    """Flags given as arguments: `--kernel-config {...}` as kernel_config, `--no-x` as x = False."""
    found: dict[str, Any] = {}
    for number, word in enumerate(arguments):
        if not word.startswith("--"):
            continue
        name, given, value = word[2:].partition("=")
        after = arguments[number + 1] if number + 1 < len(arguments) else "--"
        if not given and after.startswith("--"):
            negative = name.startswith("no-")
            found[name.removeprefix("no-").replace("-", "_")] = not negative
            continue
        found[name.replace("-", "_")] = _value(value if given else after)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _gpu(facts: Mapping[str, Any], ranks: int, visible: Collection[str] | None) -> Known:
    """{count, architecture, major, memory_gib, nvlink, links, far}; only a count of 0 on a machine
    without. Of the visible ones (by UUID or number) the largest are taken, one a rank; where
    these differ the smallest of them counts."""
    gpus = nvml.visible(facts.get("gpus", ()), visible)
    if not gpus:
        return Known({"count": 0})
    taken = nvml.taken(gpus, ranks)
    least = taken[-1]
    links = nvml.between(facts.get("gpu_links", ()), taken)
    kinds = sorted({link["kind"] for link in links if link["kind"]})
    return Known(
        {
            "count": len(gpus),
            "architecture": least["architecture"],
            "major": int(least["architecture"].partition(".")[0]),
            "memory_gib": least["memory"] / 2**30,
            "nvlink": all(link["nvlinks"] for link in links) if links else None,
            "links": kinds,
            "far": any(kind in FAR for kind in kinds),
        }
    )


def _memlock() -> int | None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _checkpoint(folder: Path) -> World:
    """`config` and `checkpoint`, where the model is in its folder already."""
    try:
        config = json.loads((folder / "config.json").read_text())
        index = json.loads((folder / "model.safetensors.index.json").read_text())
    except (OSError, ValueError):
        return {}
    quantization = Known(config.get("quantization_config") or {})
    weights = [
        group.get("weights") or {} for group in (quantization["config_groups"] or {}).values()
    ]
    int4 = next((w for w in weights if w.get("num_bits") == 4 and w.get("type") == "int"), None)
    total = (index.get("metadata") or {}).get("total_size")
    known = {
        "v4": config.get("model_type") == "deepseek_v4",
        "dspark": config.get("dspark_block_size") is not None,
        "int4": int4 is not None,
        "group": (int4 or {}).get("group_size"),
        "actorder": (int4 or {}).get("actorder"),
        "nvfp4": quantization["moe_quant_algo"] == "NVFP4",
        "draft_ignored": any(str(n).startswith("mtp.") for n in quantization["ignore"] or ()),
        "draft_embedding": any(n.endswith("emb.tok_emb.weight") for n in index["weight_map"]),
        "weights_gib": total / 2**30 if total else None,
    }
    unknown = ("weights_gib",) if not total else ()
    return {
        "config": Known(config),
        "checkpoint": Known({k: v for k, v in known.items() if k not in unknown}, unknown),
    }
