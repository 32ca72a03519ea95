"""The step `mtp-capture`: serves a model, asks it calibration prompts and records the inputs of
its MTP block's experts.

The model must have an MTP block already, for instance one rounded to nearest: the block's inputs
come from the model below it, not from its own experts.
"""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from runbook.protocol import Check, Context, Model, PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.mtp import artifact
from runbook.steps.mtp.capture import plugin
from runbook.steps.mtp.capture.server import HOST, served, stop_left
from runbook.units import size

WAITING_BYTES = 2048 * 2
"""Memory of an expert's rows, of 2 bytes a value, that wait to be added."""


class Capture:
    """Makes a folder of captures. An interrupted capture begins anew."""

    version = "2"
    Inputs = Model("runbook.steps.mtp.capture.models:Inputs")
    Outputs = Model("runbook.steps.mtp.capture.models:Outputs")

    def check(self, ctx: Context) -> Check:
        return artifact.check(
            ctx,
            "mtp-capture",
            self.version,
            _sources(ctx),
            lambda made: {"path": str(artifact.place(ctx)), "tokens": made["tokens"]},
        )

    def apply(self, ctx: Context) -> None:
        from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
        from runbook.steps.checkpoint.lint import subject
        from runbook.steps.common import ports
        from runbook.steps.mtp.capture.asking import ask_all, finish
        from runbook.steps.mtp.capture.results import CaptureError, collect

        folder = artifact.place(ctx)
        model = Path(ctx.inputs.model)
        try:
            about = subject(open_folder(model))
        except CheckpointError as error:
            raise StepFailure(error.message, code="no_checkpoint", remedy=error.remedy) from error
        if about.layout is None or about.layout.draft != "mtp" or not about.mtp_blocks():
            raise StepFailure(
                f"{model} has no MTP block whose inputs could be recorded",
                code="mtp_stripped",
                remedy="serve a model with a block, such as one rounded to nearest",
            )
        prompts = _prompts(Path(ctx.inputs.prompts), ctx.inputs.count, ctx.inputs.seed)
        config = about.checkpoint.config
        raw = folder / "raw"
        stop_left(ctx, folder)
        ports.require_free(HOST, ctx.inputs.port, ctx.step)
        shutil.rmtree(folder, ignore_errors=True)
        raw.mkdir(parents=True)
        if ctx.inputs.record == "moments":
            _require_room(ctx, folder, config)
        settings = {
            "layer": f"model.layers.{about.layout.layers}.",
            "record": ctx.inputs.record,
            "checkpoint": ctx.inputs.checkpoint,
            "prefix": ctx.inputs.prefix,
            "limit": config.get("swiglu_limit"),
        }
        (raw / plugin.SETTINGS).write_text(json.dumps(settings))
        with served(ctx, folder, raw) as server:
            (raw / plugin.ON).touch()
            ask_all(ctx, server, prompts, raw)
            (raw / plugin.ON).unlink()
            if ctx.inputs.record == "moments":
                finish(ctx, server, raw, config["n_routed_experts"])
        described = {
            "id": secrets.token_hex(8),
            "experts": config["n_routed_experts"],
            "limit": settings["limit"],
            "prompts": len(prompts),
            "max_tokens": ctx.inputs.max_tokens,
            "seed": ctx.inputs.seed,
        }
        try:
            tokens, empty = collect(raw, folder, ctx.inputs.record, described)
        except CaptureError as error:
            raise StepFailure(
                "nothing useful was captured",
                code="capture_empty",
                cause=str(error),
                remedy=Remedy(
                    "logs",
                    ("{step}",),
                    text="see {command}: speculation must be on and the server eager",
                ),
            ) from error
        shutil.rmtree(raw)
        ctx.log(f"{tokens} tokens; {empty} experts got none of them")
        artifact.record(ctx, "mtp-capture", self.version, folder, _sources(ctx), tokens=tokens)

    def undo(self, ctx: Context) -> None:
        stop_left(ctx, artifact.place(ctx))
        artifact.remove(artifact.place(ctx))


def _sources(ctx: Context) -> dict[str, Path]:
    """The files that the captures depend on."""
    found = {"model": Path(ctx.inputs.model), "prompts": Path(ctx.inputs.prompts)}
    if ctx.inputs.record == "moments":
        found["checkpoint"] = Path(ctx.inputs.checkpoint)
    return found


def _require_room(ctx: Context, folder: Path, config: dict[str, Any]) -> None:
    """Raise unless the moments fit: stream.py has the arithmetic."""
    experts, width = config["n_routed_experts"], config["hidden_size"]
    moments = experts * (width**2 + config["moe_intermediate_size"] ** 2) * 9 // 4
    memory = moments + experts * width * WAITING_BYTES
    free = {
        "memory": (memory, ctx.facts.get("memory", {}).get("available", memory)),
        "disk": (moments, shutil.disk_usage(folder).free),
    }
    for what, (needed, available) in free.items():
        if needed > available:
            raise PreconditionNotMet(
                f"the moments of {experts} experts need {size(needed)} of {what}, "
                f"{size(available)} are free",
                code=f"not_enough_{what}",
                remedy="make room, or set `record: tokens`",
            )


def _prompts(path: Path, count: int, seed: int) -> list[list[dict[str, str]]]:
    from runbook.steps.mtp.prompts import no_pyarrow
    from runbook.steps.mtp.prompts.conversations import ParquetMissing, PromptError, draw

    try:
        return draw([path], count, seed)
    except ParquetMissing as error:
        raise no_pyarrow() from error
    except PromptError as error:
        raise StepFailure(
            f"no prompts can be drawn from {path}",
            code="bad_prompts",
            cause=str(error),
            remedy="give a file with a prompt, or a JSON object with prompt or messages, a line",
        ) from error
