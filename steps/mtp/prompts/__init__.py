"""The step `mtp-prompts`: calibration prompts drawn from a dataset of the hub.

The dataset's files are downloaded and proven as the step `weights` does it; a branch is resolved
once and then kept.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from runbook.protocol import Check, Context, Json, Model, PreconditionNotMet, Reason, StepFailure
from runbook.steps.common.hub.inventory import Inventory
from runbook.steps.common.hub.step import HubFiles
from runbook.steps.common.stamp import RESULT, Stamp, marks

KIND = "mtp-prompts"
CHANGES = {"inputs": "inputs_changed", "versions": "inputs_changed", "files": "result_changed"}


class Prompts(HubFiles):
    """Makes `<step>.jsonl` in the workspace, and `<step>.json`, which says what it was made of."""

    version = "1"
    repo_type = "dataset"
    parent = "datasets"
    Inputs = Model("runbook.steps.mtp.prompts.models:Inputs")
    Outputs = Model("runbook.steps.mtp.prompts.models:Outputs")

    def check(self, ctx: Context) -> Check:
        dataset = super().check(ctx)
        if not dataset.ok:
            return Check.unsatisfied(*dataset.reasons, *_lacking(ctx), work=dataset.work)
        file, record = _files(ctx)
        made = Stamp.read(record, KIND)
        if made is None or type(made.made.get("count")) is not int:
            return Check.unsatisfied(Reason("not_drawn", f"{file} is not made"), *_lacking(ctx))
        revision = dataset.outputs["revision"]
        if change := made.changed(
            inputs=_identity(ctx, revision),
            versions={"step": self.version},
            files={RESULT: marks(file.parent, [file.name])},
        ):
            where = (
                f"{file}: {change}" if change.part == "files" else f"{file}: other {change.name}"
            )
            return Check.unsatisfied(Reason(CHANGES.get(change.part, "result_changed"), where))
        return Check.satisfied(
            {"path": str(file), "count": made.made["count"], "revision": revision}
        )

    def apply(self, ctx: Context) -> None:
        from runbook.files import write_atomic
        from runbook.steps.common.disk import disk_failure
        from runbook.steps.mtp.prompts.conversations import ParquetMissing, PromptError, draw

        if list(_lacking(ctx)):
            raise no_pyarrow()
        super().apply(ctx)
        folder = self.folder(ctx)
        dataset = Inventory.load(folder)
        assert dataset is not None
        given = ctx.inputs
        files = [folder / entry.path for entry in dataset.listing.entries]
        try:
            found = draw(files, given.count, given.seed, given.column)
        except ParquetMissing as error:
            raise no_pyarrow() from error
        except PromptError as error:
            raise StepFailure(
                f"no prompts can be drawn from {given.repo}",
                code="bad_prompts",
                cause=str(error),
                remedy="set `column` and `files` to where the conversations are",
            ) from error
        file, record = _files(ctx)
        lines = (json.dumps({"messages": messages}) + "\n" for messages in found)
        identity = _identity(ctx, dataset.listing.revision)
        try:
            write_atomic(file, "".join(lines).encode())
            made = {RESULT: marks(file.parent, [file.name])}
            versions = {"step": self.version}
            Stamp(KIND, identity, versions, made, {"count": len(found)}).write(record)
        except OSError as error:
            raise disk_failure(error, file.parent) from error

    def undo(self, ctx: Context) -> None:
        super().undo(ctx)
        for path in _files(ctx):
            path.unlink(missing_ok=True)


def _files(ctx: Context) -> tuple[Path, Path]:
    return ctx.workspace / f"{ctx.step}.jsonl", ctx.workspace / f"{ctx.step}.json"


def _identity(ctx: Context, revision: Json) -> dict[str, Json]:
    given = ctx.inputs
    return {
        "repo": given.repo,
        "revision": revision,
        "files": given.files,
        "column": given.column,
        "count": given.count,
        "seed": given.seed,
    }


def _lacking(ctx: Context) -> Iterator[Reason]:
    """Known from the patterns alone, so that nothing is downloaded in vain."""
    names: list[str] = ctx.inputs.files["allow"]
    if any(name.endswith(".parquet") for name in names) and not importlib.util.find_spec("pyarrow"):
        failure = no_pyarrow()
        yield Reason(failure.code, failure.message, failure.remedy)


def no_pyarrow() -> PreconditionNotMet:
    return PreconditionNotMet(
        "reading Parquet files needs pyarrow, which is not installed",
        code="no_pyarrow",
        remedy=f"install it, `{sys.executable} -m pip install pyarrow`, or runbook with its extra "
        "`parquet`; or choose a dataset with JSON files",
    )
