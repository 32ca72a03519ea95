"""The verb `new`: a book for a model, written beside the user."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

import runbook
from runbook.errors import PRECONDITION, USAGE, RunbookError
from runbook.files import write_atomic
from runbook.remedy import Remedy
from runbook.steps.new.asking import Asking
from runbook.steps.new.choice import Choice
from runbook.steps.new.choosing import Choices, Options, choose
from runbook.steps.new.draft import Examined, examined
from runbook.steps.new.importing import interpret
from runbook.steps.new.machine import here
from runbook.steps.new.model import Model, open_model
from runbook.steps.new.recipe import Recipe
from runbook.steps.new.registry import Build, build

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
SHIPPED = Path(runbook.__file__).parent / "books"


class Reason(TypedDict):
    """A choice of the book: `key` as the book writes it."""

    key: str
    value: Any
    why: str


class New(TypedDict):
    """The answer of `new`. `weights_bytes` are those of the checkpoint's shards; `left_out` is what
    of a recipe was not taken, with the reason, `unknown` what of it nothing here knows; `findings`
    are the linter's, by id."""

    book: str
    path: str
    source: str
    revision: str
    target: str
    weights_bytes: int
    tensor_parallel_size: int
    choices: list[Reason]
    left_out: list[str]
    unknown: list[str]
    findings: list[str]


def new(*, name: str, cache: Path, **given: Any) -> dict[str, Any]:
    """Write NAME.yaml for the checkpoint `from`, or for that of the recipe `recipe`."""
    path = Path(given["output"] or f"{name}.yaml")
    _require(name, path)
    machine = here()
    recipe = None
    if given["recipe"] is not None:
        recipe = interpret(given["recipe"], machine, given["variant"], given["feature"])
    source = given["from"] or (recipe.repo if recipe else "")
    if not source:
        asking = Asking()
        asking.ask("--from", "a repository org/name of the hub, or a folder")
        asking.end(recipe.file if recipe else "the model")
    chosen, why = build(given["target"], machine.gpus)
    if chosen.cpu != (not machine.gpus):
        raise RunbookError(
            f"vLLM {chosen.target} is not for this machine: {machine.words()}",
            code="other_machine",
            exit_code=PRECONDITION,
            remedy="leave --target out, or write the book on the machine that is to serve",
        )
    _new_enough(recipe, chosen)
    model = open_model(source)
    _known(model, chosen)
    seen = examined(model, chosen)
    choices = choose(model, machine, chosen, seen, _options(given), recipe)
    from runbook.steps.new.composing import text

    written = text(name, model, machine, chosen, why, seen, choices)
    _write(path, written)
    return _answer(name, path, model, chosen, seen, choices)


def _require(name: str, path: Path) -> None:
    """Raises `RunbookError` for a name that cannot be a book's, or a file that is there."""
    if not NAME.fullmatch(name) or (SHIPPED / f"{name}.yaml").exists():
        shipped = (SHIPPED / f"{name}.yaml").exists()
        raise RunbookError(
            f"{name!r} cannot be the name of a book",
            code="book_name",
            exit_code=USAGE,
            cause="a shipped book has it" if shipped else "a-z, 0-9, dot, dash and underscore",
            remedy="choose another name",
        )
    if os.path.lexists(path):
        raise _there(path)


def _there(path: Path) -> RunbookError:
    return RunbookError(
        f"{path} is there already",
        code="book_exists",
        exit_code=USAGE,
        remedy="choose another name, name a file with --output, or move it away",
        where=str(path),
    )


def _new_enough(recipe: Recipe | None, chosen: Build) -> None:
    from packaging.version import InvalidVersion, Version

    try:
        wanted = Version(recipe.minimum) if recipe and recipe.minimum else None
    except InvalidVersion:
        wanted = None
    if wanted and Version(chosen.release.version) < wanted:
        raise RunbookError(
            f"the recipe wants vLLM {wanted} or later; {chosen.target} is locked",
            code="release_too_old",
            exit_code=PRECONDITION,
            remedy="name a later one with --target, or take another variant with --variant",
        )


def _known(model: Model, chosen: Build) -> None:
    if not chosen.serves(model.architectures):
        raise RunbookError(
            f"vLLM {chosen.target} has no model for "
            f"{', '.join(model.architectures) or 'a config.json without architectures'}",
            code="architecture_unknown",
            exit_code=PRECONDITION,
            cause=f"of the {len(chosen.known['architectures'])} architectures in its registry that "
            "answer in text this is none",
            remedy="name a later release with --target, once it is locked (env/README.md)",
            where=model.source,
        )


def _options(given: dict[str, Any]) -> Options:
    names = set(Options.__dataclass_fields__) - {"env"}
    for name in names:
        if isinstance(given[name], int) and given[name] < 1:
            raise _usage(f"--{name.replace('_', '-')} {given[name]}", "a whole number from 1")
    pairs = dict(pair.partition("=")[::2] for pair in given["env"])
    for key in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise _usage(f"--env {key}", "NAME=VALUE")
        if SECRET.search(key):
            raise _usage(f"--env {key}", "no secret: a book is read by others; export it instead")
    return Options(**{name: given[name] for name in names}, env=pairs)


def _usage(said: str, wanted: str) -> RunbookError:
    return RunbookError(
        f"{said}: expected is {wanted}", code="usage", exit_code=USAGE, remedy=f"give {wanted}"
    )


def _write(path: Path, text: str) -> None:
    from runbook.steps.common.disk import disk_failure

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):  # since it was looked at
            raise _there(path)
        write_atomic(path, text.encode())
    except OSError as problem:
        raise disk_failure(problem, path) from problem


def _answer(
    name: str, path: Path, model: Model, chosen: Build, seen: Examined, choices: Choices
) -> dict[str, Any]:
    every = [
        choices.ranks,
        Choice("target", chosen.target, ""),
        Choice("series", seen.series, seen.why),
        *choices.flags,
        *choices.env,
    ]
    body: New = {
        "book": name,
        "path": str(path),
        "source": model.source,
        "revision": model.revision,
        "target": chosen.target,
        "weights_bytes": model.weights,
        "tensor_parallel_size": choices.ranks.value,
        "choices": [{"key": c.key, "value": c.value, "why": c.why} for c in every],
        "left_out": choices.left_out,
        "unknown": choices.unknown,
        "findings": [f.id for f in seen.findings],
    }
    lines = [f"wrote {path}", *(f"  {c.key}: {c.value} ({c.why})" for c in every if c.why)]
    lines += [f"left out: {told}" for told in choices.left_out]
    lines += [f"not understood: {key}" for key in choices.unknown]
    file = str(path) if path.parent != Path() else f"./{path}"
    return {"body": body, "text": "\n".join(lines), "next": [Remedy("plan", (file,))]}
