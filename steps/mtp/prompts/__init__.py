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
from runbook.steps.common.hub.stamp import Stamp
from runbook.steps.weights import Weights


class Prompts(Weights):
    """Makes `<step>.jsonl` in the workspace, and `<step>.json`, which says what it was made of."""

    version = "1"
    repo_type = "dataset"
    Inputs = Model("runbook.steps.mtp.prompts.models:Inputs")
    Outputs = Model("runbook.steps.mtp.prompts.models:Outputs")

    def check(self, ctx: Context) -> Check:
        dataset = super().check(ctx)
        if not dataset.ok:
            return Check.unsatisfied(*dataset.reasons, *_lacking(ctx), work=dataset.work)
        file, record = _files(ctx)
        try:
            made = json.loads(record.read_text())
        except (OSError, ValueError):
            return Check.unsatisfied(Reason("not_drawn", f"{file} is not made"), *_lacking(ctx))
        if made.get("of") != _identity(ctx, dataset.outputs["revision"]):
            return Check.unsatisfied(Reason("inputs_changed", f"{file} is of others"))
        if made.get("file") != _stat(file):
            return Check.unsatisfied(Reason("result_changed", f"{file} was changed"))
        return Check.satisfied(
            {"path": str(file), "count": made["count"], "revision": dataset.outputs["revision"]}
        )

    def apply(self, ctx: Context) -> None:
        from runbook.files import write_atomic, write_json
        from runbook.steps.mtp.prompts.conversations import ParquetMissing, PromptError, draw

        if list(_lacking(ctx)):
            raise no_pyarrow()
        super().apply(ctx)
        folder = self.folder(ctx)
        stamp = Stamp.load(folder)
        assert stamp is not None
        given = ctx.inputs
        files = [folder / entry.path for entry in stamp.listing.entries]
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
        write_atomic(file, "".join(lines).encode())
        made: dict[str, Json] = {"of": _identity(ctx, stamp.listing.revision), "count": len(found)}
        write_json(record, {**made, "file": _stat(file)})

    def undo(self, ctx: Context) -> None:
        super().undo(ctx)
        for path in _files(ctx):
            path.unlink(missing_ok=True)


def _files(ctx: Context) -> tuple[Path, Path]:
    return ctx.workspace / f"{ctx.step}.jsonl", ctx.workspace / f"{ctx.step}.json"


def _identity(ctx: Context, revision: Json) -> list[Json]:
    given = ctx.inputs
    return [given.repo, revision, given.files, given.column, given.count, given.seed]


def _stat(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


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
