"""The step `mtp-quantise`: GPTQ of the routed experts of an MTP block."""

from __future__ import annotations

import json
from pathlib import Path

from runbook.protocol import Check, Context, Model, StepFailure
from runbook.steps.common.pacing import time_left
from runbook.steps.mtp import artifact

LAUNCH = Path(__file__).parents[1] / "retrofit/launch.py"
MANIFEST = "manifest.json"


class Quantise:
    """GPTQ of all routed experts of an MTP block, in an environment with torch. Experts that are
    done stay done when it is interrupted."""

    version = "2"
    Inputs = Model("runbook.steps.mtp.quantise.models:Inputs")
    Outputs = Model("runbook.steps.mtp.quantise.models:Outputs")

    def check(self, ctx: Context) -> Check:
        return artifact.check(
            ctx,
            "mtp-quantise",
            self.version,
            self._sources(ctx),
            lambda made: {"path": str(artifact.place(ctx)), **made["summary"]},
        )

    def apply(self, ctx: Context) -> None:
        folder = artifact.place(ctx)
        given = ctx.inputs
        command: list[str | Path] = [given.python, LAUNCH, "quantise"]
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
        sources = self._sources(ctx)
        artifact.record(ctx, "mtp-quantise", self.version, folder, sources, summary=summary)

    def undo(self, ctx: Context) -> None:
        artifact.remove(artifact.place(ctx))

    def _sources(self, ctx: Context) -> dict[str, Path]:
        found = {"checkpoint": Path(ctx.inputs.checkpoint)}
        if ctx.inputs.calibration:
            found["calibration"] = Path(ctx.inputs.calibration)
        return found
