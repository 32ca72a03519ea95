"""Every choice of a book that can be made from what is known, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runbook.errors import PRECONDITION, USAGE, RunbookError
from runbook.steps.new import arguments, families, fit, kv
from runbook.steps.new.asking import NONE, Asking
from runbook.steps.new.choice import STATED, Choice
from runbook.steps.new.draft import Examined
from runbook.steps.new.importing import PLACEHOLDER
from runbook.steps.new.machine import Machine
from runbook.steps.new.model import Model
from runbook.steps.new.ranks import ranks_for
from runbook.steps.new.recipe import Recipe
from runbook.steps.new.registry import Build

PARSERS = {"tool_call_parser": "tool_call_parsers", "reasoning_parser": "reasoning_parsers"}
"""Flags that name a parser, and the registry that has their names."""
OURS = {
    # Flags of recipes that a book sets its own way.
    "tensor_parallel_size": "by arithmetic",
    "data_parallel_size": "a book serves one replica",
    "max_model_len": "what --context says",
    "max_num_seqs": "what --users says",
    "max_num_batched_tokens": "",
    "gpu_memory_utilization": "by arithmetic",
    "kv_cache_memory_bytes": "by arithmetic",
    "trust_remote_code": "vLLM has the model's classes; the repository's own code is not run",
    **dict.fromkeys(PARSERS, ""),
    "tokenizer_mode": "",
}
SERVERS = {"served-model-name", "host", "port", "api-key", "download-dir", "model", "config"}
"""Arguments that are the book's own."""


@dataclass
class Options:
    """What was said on the command line; None where nothing was."""

    users: int | None = None
    context: int | None = None
    tensor_parallel_size: int | None = None
    kv_bytes_per_token: int | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    tokenizer_mode: str | None = None
    chat_template: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Choices:
    """Of a book: flags of the server, its environment, and what they rest on."""

    ranks: Choice
    need: fit.Need
    batched: int
    cache: kv.Cache
    wish: fit.Wish
    flags: list[Choice] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    env: list[Choice] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    thinking: str = ""
    isa: str = ""

    def flag(self, key: str) -> Any:
        return next((c.value for c in self.flags if c.key == key), None)


def choose(
    model: Model,
    machine: Machine,
    build: Build,
    examined: Examined,
    options: Options,
    recipe: Recipe | None,
) -> Choices:
    """Raises `RunbookError` for what cannot be, and one that lists all that is to be asked."""
    asking = Asking()
    found = families.of(model)
    cpu = next((f.cpu for f in found if f.cpu != "avx2"), "avx2")
    if build.cpu and cpu is False:
        raise RunbookError(
            f"vLLM's CPU build has no code for {', '.join(model.architectures)}",
            code="not_on_cpu",
            exit_code=PRECONDITION,
            cause=next(f.source for f in found if f.cpu is False),
            remedy="write the book on the machine with the GPUs that are to serve it",
        )
    for option, value, what in (
        ("--users", options.users, "requests side by side"),
        ("--context", options.context, f"tokens of each at most ({_longest(model)})"),
    ):
        if value is None:
            asking.ask(option, what)
    flags = [*_parsers(model, build, found, options, recipe, asking)]
    template = _template(model, found, options, recipe, asking)
    cache = _cache(model, options, asking)
    env = list(_environment(recipe, options, asking))
    asking.end(model.source)
    assert options.users and options.context and cache
    wish = fit.Wish(options.users, options.context)
    if model.longest and wish.context > model.longest:
        raise RunbookError(
            f"{model.source} was made for {model.longest:,} tokens; asked are {wish.context:,}",
            code="context_too_long",
            exit_code=USAGE,
            remedy=f"ask for --context {model.longest} at most",
        )
    batched = fit.batched(machine)
    if recipe and type(recipe.flags.get("max_num_batched_tokens")) is int:
        batched = recipe.flags["max_num_batched_tokens"]
    told = options.tensor_parallel_size
    ranks, need = ranks_for(model, machine, cache, wish, batched, told, recipe)
    choices = Choices(ranks, need, batched, cache, wish, flags, env=env)
    choices.extra = template
    choices.flags += _family(found, build, machine, recipe)
    choices.thinking, choices.isa = families.thinking(found, model), str(cpu)
    if recipe is not None:
        _recipe(choices, recipe, build)
    if examined.speculation and choices.flag("speculative_config") is None:
        choices.flags.append(Choice("speculative_config", examined.speculation, examined.drafts))
    choices.flags.sort(key=lambda choice: choice.key)
    return choices


def _longest(model: Model) -> str:
    return f"the model has {model.longest:,}" if model.longest else "its config does not say"


def _parsers(
    model: Model,
    build: Build,
    found: Sequence[families.Family],
    options: Options,
    recipe: Recipe | None,
    asking: Asking,
) -> Iterator[Choice]:
    names = {**PARSERS, "tokenizer_mode": "tokenizer_modes"}
    absent = {
        "tool_call_parser": None if families.offers_tools(model) else "its template has no tools",
        "reasoning_parser": None if families.reasons(model) else "its template marks no thoughts",
        "tokenizer_mode": "vLLM takes the tokenizer's own",
    }
    for name, registry in names.items():
        option = f"--{name.replace('_', '-')}"
        known = build.known[registry]
        told = getattr(options, name)
        by_recipe = recipe.flags.get(name) if recipe else None
        family = families.given(list(found), name)
        if told is not None:
            value, why = told, STATED.format(option=option)
        elif by_recipe is not None:
            value, why = str(by_recipe), "by the recipe"
        elif family is not None:
            value, why = family
        elif absent[name] is not None:
            continue
        else:
            what = {"tool_call_parser": "which parser finds its tool calls",
                    "reasoning_parser": "which parser splits off its reasoning"}[name]  # fmt: skip
            asking.ask(option, f"{what}, or {NONE}", known)
            continue
        if value == NONE:
            continue
        if value not in known:
            if told is None:
                asking.ask(option, f"vLLM {build.target} has no {value!r} ({why})", known)
                continue
            raise RunbookError(
                f"vLLM {build.target} has no {name.replace('_', ' ')} {value!r}",
                code="unknown_parser",
                exit_code=USAGE,
                remedy=f"name one of {', '.join(known)}, or {NONE}, with {option}",
            )
        yield Choice(name, value, why)
        if name == "tool_call_parser":
            yield Choice("enable_auto_tool_choice", True, "the model decides whether to call")


def _template(
    model: Model,
    found: Sequence[families.Family],
    options: Options,
    recipe: Recipe | None,
    asking: Asking,
) -> list[str]:
    """The argument that names a chat template, if there must be one."""
    from pathlib import Path

    told = options.chat_template
    if told == NONE:
        return []
    if told is not None:
        path = Path(told).expanduser().resolve()
        if not path.is_file():
            raise RunbookError(
                f"there is no chat template {told}",
                code="no_chat_template",
                exit_code=USAGE,
                remedy=f"name a file with --chat-template, or {NONE}",
            )
        return ["--chat-template", str(path)]
    by_recipe = recipe.extra.get("--chat-template") if recipe else None
    if by_recipe and not model.template:
        asking.ask("--chat-template", f"a copy of {by_recipe} of vLLM's sources")
    elif by_recipe:
        what = f"a copy of {by_recipe} of vLLM's sources, or {NONE} for the checkpoint's own"
        asking.ask("--chat-template", what)
    elif not model.template and not families.encodes(list(found)):
        asking.ask("--chat-template", "the checkpoint has none: a file that writes its prompts")
    return []


def _cache(model: Model, options: Options, asking: Asking) -> kv.Cache | None:
    if options.kv_bytes_per_token is not None:
        return kv.stated(options.kv_bytes_per_token)
    try:
        return kv.cache(model)
    except kv.NotKnown as problem:
        asking.ask("--kv-bytes-per-token", f"KV cache of a rank; {problem}")
        return None


def _environment(recipe: Recipe | None, options: Options, asking: Asking) -> Iterator[Choice]:
    given = dict(recipe.env) if recipe else {}
    for name, value in given.items():
        if name in options.env:
            continue
        if PLACEHOLDER.search(value):
            asking.ask(f"--env {name}=", f"the recipe leaves it to this machine ({value})")
        else:
            yield Choice(name, value, "by the recipe")
    for name, value in options.env.items():
        yield Choice(name, value, "stated with --env")


def _family(
    found: Sequence[families.Family], build: Build, machine: Machine, recipe: Recipe | None
) -> Iterator[Choice]:
    for key, value in families.flags(list(found)).items():
        if not recipe or key not in recipe.flags:
            source = next(f.source for f in found if key in f.flags)
            yield Choice(key, value, source)
    if build.cpu:
        yield Choice("enforce_eager", True, "a CPU captures no graphs; it compiles for minutes")
    elif machine.nvlink is False:
        why = "over PCIe the custom all-reduce of two ranks hangs (vllm-project/vllm#51513)"
        yield Choice("disable_custom_all_reduce", True, why)


def _recipe(choices: Choices, recipe: Recipe, build: Build) -> None:
    """Lay what a recipe says over the choices; note what is not taken."""
    choices.left_out += recipe.left_out
    choices.unknown += recipe.unknown
    for name, value in recipe.flags.items():
        if name in OURS:
            if OURS[name]:
                choices.left_out.append(f"--{name.replace('_', '-')} {value}: {OURS[name]}")
            continue
        choices.flags = [c for c in choices.flags if c.key != name]
        why = "by the recipe"
        if isinstance(value, dict) and name == "speculative_config" and value.get("model"):
            why = f"by the recipe; vLLM itself fetches {value['model']}, at no pinned commit"
        choices.flags.append(Choice(name, value, why))
    for flag, text in recipe.extra.items():
        if flag == "--chat-template":
            continue
        if flag.removeprefix("--") in SERVERS:
            choices.left_out.append(f"{flag}: the book's own")
        elif not arguments.known(flag, build.known["flags"]):
            choices.unknown.append(f"{flag} (vLLM {build.target} has no such flag)")
        else:
            choices.extra += [flag] if text is None else [flag, text]
