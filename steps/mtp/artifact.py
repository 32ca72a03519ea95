"""The folder that a step of the book `mtp-head` makes: its place, its stamp, its check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Check, Context, Json, Reason, StepFailure
from runbook.steps.mtp import stamp as stamping

if TYPE_CHECKING:
    from runbook.steps.checkpoint.targets import Target

STAMP = ".made.json"


def place(ctx: Context) -> Path:
    """The folder a step makes. Raises `StepFailure` if it is not inside the workspace."""
    folder = (ctx.workspace / str(ctx.inputs.destination)).resolve()
    if ctx.workspace.resolve() not in folder.parents:
        raise StepFailure(
            f"destination {ctx.inputs.destination} is not a folder inside the workspace",
            code="bad_destination",
            remedy="give a folder inside the workspace",
        )
    return folder


def check(
    ctx: Context, version: str, sources: Mapping[str, Path], outputs: Callable[[Any], Any]
) -> Check:
    """Whether the folder is there, made from these inputs and sources, and unchanged."""
    folder = place(ctx)
    try:
        made = json.loads((folder / STAMP).read_text())
    except FileNotFoundError:
        return Check.unsatisfied(Reason("not_made", f"{folder} is not made"))
    except ValueError:
        return Check.unsatisfied(Reason("stamp_damaged", f"{folder / STAMP} is damaged"))
    if made.get("inputs") != stamping.digest(ctx.inputs, version):
        return Check.unsatisfied(Reason("inputs_changed", "made from other inputs"))
    for name, source in {**sources, "files": folder}.items():
        if changed := stamping.difference(made[name], stamping.stats(source)):
            code = "result_changed" if name == "files" else "source_changed"
            return Check.unsatisfied(Reason(code, f"{source}: {changed}"))
    return Check.satisfied(outputs(made))


def record(
    ctx: Context, version: str, folder: Path, sources: Mapping[str, Path], **more: Json
) -> None:
    from runbook.files import write_json

    write_json(
        folder / STAMP,
        {
            "inputs": stamping.digest(ctx.inputs, version),
            **{name: stamping.stats(source) for name, source in sources.items()},
            "files": stamping.stats(folder),
            **more,
        },
    )


def target(ctx: Context) -> Target:
    """The vLLM build that the inputs name. Raises `StepFailure` for one that is not known."""
    from runbook.steps.checkpoint.targets import Target, UnknownTarget

    try:
        return Target(ctx.inputs.target, ctx.inputs.series)
    except UnknownTarget as error:
        raise StepFailure(
            str(error),
            code="unknown_target",
            remedy="correct `target` and `series` in the book: those that the vLLM was built from",
        ) from error


def remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
