"""Where the kinds of step are found: shipped ones by name, the user's own by file and class."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from runbook.protocol import StepFailure

ENGINE_STEPS = {"command": "runbook.execution.command:Command"}


class StepUnavailable(StepFailure):
    """`uses:` names nothing that can be loaded."""


@functools.cache
def _steps() -> dict[str, str]:
    # By name: type checkers do not see how packaging maps `steps/` to it.
    shipped: dict[str, str] = importlib.import_module("runbook.steps").STEPS
    return {**ENGINE_STEPS, **shipped}


@functools.cache
def known_facts() -> list[str]:
    """The names below `facts` that templates may read, in alphabetical order."""
    return sorted(importlib.import_module("runbook.steps").FACTS)


def known_steps() -> list[str]:
    """The names that `uses:` accepts without a path, in alphabetical order."""
    return sorted(_steps())


def is_file(uses: str) -> bool:
    """Whether `uses` names a class in a file: `path/to/file.py:Class`."""
    return ":" in uses or "/" in uses or uses.endswith(".py")


@functools.cache
def load_step(uses: str, folder: str | Path) -> Any:
    """The step that `uses` names, one instance for all its uses; a relative file is taken from
    `folder`. Raises StepUnavailable."""
    step = _load_file(uses, Path(folder)) if is_file(uses) else _load_shipped(uses)
    missing = [
        name for name in ("version", "Inputs", "Outputs", "check", "apply") if not _has(step, name)
    ]
    if missing:
        raise StepUnavailable(
            f"the class that `uses: {uses}` names is not a step",
            code="not_a_step",
            cause="it has no " + ", ".join(missing),
            remedy="see runbook.protocol.Step for what a step has",
        )
    return step


def _has(step: Any, name: str) -> bool:
    # Not hasattr: reading Inputs would import pydantic.
    return any(name in vars(kind) for kind in type(step).__mro__)


def _load_shipped(uses: str) -> Any:
    target = _steps().get(uses)
    if target is None:
        raise StepUnavailable(
            f"there is no kind of step named `{uses}`",
            code="unknown_step_kind",
            cause="the kinds are " + ", ".join(known_steps()),
            remedy="name one of these, or a class of your own as path/to/file.py:Class",
        )
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise _broken(uses, error) from error


def _load_file(uses: str, folder: Path) -> Any:
    name, colon, class_name = uses.rpartition(":")
    if not (colon and name.endswith(".py") and class_name.isidentifier()):
        raise StepUnavailable(
            f"`uses: {uses}` names neither a kind of step nor a class in a file",
            code="unknown_step_kind",
            remedy="write path/to/file.py:Class",
        )
    path = (folder / Path(name).expanduser()).absolute()
    try:
        module = _import_file(path)
    except FileNotFoundError as error:
        raise StepUnavailable(
            f"there is no file {path}",
            code="step_file_missing",
            cause=str(error),
            remedy="correct the path; it counts from the document's folder",
        ) from error
    except (Exception, SystemExit) as error:  # code of any kind runs on import
        raise _broken(uses, error) from error
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type):
        classes = sorted(
            n
            for n, v in vars(module).items()
            if isinstance(v, type) and v.__module__ == module.__name__
        )
        raise StepUnavailable(
            f"{path} has no class `{class_name}`",
            code="step_class_missing",
            cause="its classes are " + (", ".join(classes) or "none"),
            remedy="correct the name after the colon",
        )
    try:
        return kind()
    except (Exception, SystemExit) as error:
        raise _broken(uses, error) from error


def _import_file(path: Path) -> Any:
    import hashlib

    # The name holds the content, so that an edited file is another module.
    digest = hashlib.sha256(bytes(path) + b"\0" + path.read_bytes()).hexdigest()[:16]
    name = f"runbook_own_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pydantic look it up
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what is printed is for people
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _broken(uses: str, error: BaseException) -> StepUnavailable:
    return StepUnavailable(
        f"the step `{uses}` cannot be loaded",
        code="step_broken",
        cause=f"{type(error).__name__}: {error}",
        remedy="correct its code",
    )
