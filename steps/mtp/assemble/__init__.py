"""The step `mtp-assemble`: puts a quantised MTP block into a checkpoint that lost its own."""

from __future__ import annotations

from pathlib import Path

from runbook.protocol import Check, Context, Model, StepFailure
from runbook.steps.mtp import artifact


class Assemble:
    """A checkpoint with its MTP block: base, upstream's block, quantised experts."""

    version = "1"
    Inputs = Model("runbook.steps.mtp.assemble.models:Inputs")
    Outputs = Model("runbook.steps.mtp.assemble.models:Outputs")

    def check(self, ctx: Context) -> Check:
        return artifact.check(
            ctx,
            "mtp-assemble",
            self.version,
            self._sources(ctx),
            lambda made: {"path": str(artifact.place(ctx)), "findings": made["findings"]},
        )

    def apply(self, ctx: Context) -> None:
        from runbook.steps.checkpoint.checkpoint import CheckpointError
        from runbook.steps.common.disk import disk_failure
        from runbook.steps.mtp.assemble.assembly import AssemblyError, assemble

        folder = artifact.place(ctx)
        target = artifact.target(ctx)
        (folder / artifact.STAMP).unlink(missing_ok=True)
        sources = self._sources(ctx)
        try:
            left = assemble(
                sources["base"],
                sources["upstream"],
                sources["quantised"],
                folder,
                target,
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
        except OSError as error:
            raise disk_failure(error, folder) from error
        for finding in left:
            ctx.log(f"{finding.severity}: {finding.id}: {finding.detail}")
        count = sum(f.severity != "info" for f in left)
        artifact.record(ctx, "mtp-assemble", self.version, folder, sources, findings=count)

    def undo(self, ctx: Context) -> None:
        artifact.remove(artifact.place(ctx))

    def _sources(self, ctx: Context) -> dict[str, Path]:
        return {name: Path(getattr(ctx.inputs, name)) for name in ("base", "upstream", "quantised")}
