"""The steps of the book `mtp-head`: quantise the experts of an MTP block, put the block back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure
from runbook.steps.common.pacing import time_left
from runbook.steps.mtp import stamp as stamping

STAMP = ".made.json"
MANIFEST = "manifest.json"


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


def remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


class Quantise:
    """GPTQ of all routed experts of an MTP block, in an environment with torch. Experts that are
    done stay done when it is interrupted."""

    version = "2"
    Inputs = Model("runbook.steps.mtp.models:QuantiseInputs")
    Outputs = Model("runbook.steps.mtp.models:QuantiseOutputs")

    def check(self, ctx: Context) -> Check:
        return check(
            ctx,
            self.version,
            self._sources(ctx),
            lambda made: {"path": str(place(ctx)), **made["summary"]},
        )

    def apply(self, ctx: Context) -> None:
        folder = place(ctx)
        given = ctx.inputs
        launch = Path(__file__).parent / "retrofit/launch.py"
        command: list[str | Path] = [given.python, launch, "quantise"]
        command += ["--checkpoint", given.checkpoint]
        command += ["--calibration", given.calibration] if given.calibration else []
        command += ["--prefix", given.prefix, "--out", folder, "--device", given.device]
        command += ["--order", given.order, "--damping", str(given.damping)]
        command += ["--scale", given.scale, "--threshold", str(given.threshold)]
        command += ["--batch", str(given.batch), "--unrouted", given.unrouted]
        command += ["--signed"] if given.signed else []
        command += [] if given.shrink else ["--no-shrink"]

        def follow(line: str) -> None:
            if line.startswith('{"done"'):
                report = json.loads(line)
                left = report["seconds_left"]
                message = "quantising" if left is None else f"quantising, {time_left(left)}"
                ctx.progress(report["done"], report["total"], "experts", message)

        ctx.run(
            command,
            on_line=follow,
            failure=StepFailure(
                "the experts could not be quantised",
                code="quantise_failed",
                remedy="correct what the last line names, then run again: finished experts stay",
                where=str(folder),
            ),
        )
        summary = json.loads((folder / MANIFEST).read_text())["summary"]
        summary = {
            "tensors": summary["tensors"],
            "error": summary["error"],
            "error_rtn": summary["error_rtn"],
            "rounded_to_nearest": len(summary["rounded_to_nearest"]),
        }
        record(ctx, self.version, folder, self._sources(ctx), summary=summary)

    def undo(self, ctx: Context) -> None:
        remove(place(ctx))

    def _sources(self, ctx: Context) -> dict[str, Path]:
        found = {"checkpoint": Path(ctx.inputs.checkpoint)}
        if ctx.inputs.calibration:
            found["calibration"] = Path(ctx.inputs.calibration)
        return found


class Assemble:
    """A checkpoint with its MTP block: base, upstream's block, quantised experts."""

    version = "1"
    Inputs = Model("runbook.steps.mtp.models:AssembleInputs")
    Outputs = Model("runbook.steps.mtp.models:AssembleOutputs")

    def check(self, ctx: Context) -> Check:
        return check(
            ctx,
            self.version,
            self._sources(ctx),
            lambda made: {"path": str(place(ctx)), "findings": made["findings"]},
        )

    def apply(self, ctx: Context) -> None:
        from runbook.steps.checkpoint.checkpoint import CheckpointError
        from runbook.steps.checkpoint.targets import TARGETS
        from runbook.steps.mtp.assemble import AssemblyError, assemble

        folder = place(ctx)
        given = ctx.inputs
        if given.target not in TARGETS:
            raise StepFailure(
                f"no vLLM target {given.target!r} is known",
                code="unknown_target",
                remedy=f"set target to one of {', '.join(TARGETS)}",
            )
        (folder / STAMP).unlink(missing_ok=True)
        sources = self._sources(ctx)
        try:
            left = assemble(
                sources["base"],
                sources["upstream"],
                sources["quantised"],
                folder,
                given.target,
                lambda done, total: ctx.progress(done, total, "bytes", "writing the block"),
            )
        except (AssemblyError, CheckpointError) as error:
            raise StepFailure(
                "the checkpoint cannot be assembled",
                code="assembly_failed",
                cause=str(error),
                remedy="give a base without the MTP block, the upstream checkpoint with it, and "
                "a finished quantisation of the same model",
                where=str(folder),
            ) from error
        for finding in left:
            ctx.log(f"{finding.severity}: {finding.id}: {finding.detail}")
        count = sum(f.severity != "info" for f in left)
        record(ctx, self.version, folder, sources, findings=count)

    def undo(self, ctx: Context) -> None:
        remove(place(ctx))

    def _sources(self, ctx: Context) -> dict[str, Path]:
        return {name: Path(getattr(ctx.inputs, name)) for name in ("base", "upstream", "quantised")}
