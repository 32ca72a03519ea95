"""The draft that a checkpoint brings, if it is whole, and what the linter says of the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runbook.errors import PRECONDITION, RunbookError
from runbook.remedy import Remedy
from runbook.steps.checkpoint.layout import mtp_count
from runbook.steps.checkpoint.lint import Finding, examine, subject
from runbook.steps.checkpoint.lint.subject import Subject
from runbook.steps.checkpoint.targets import Target
from runbook.steps.new.model import Model
from runbook.steps.new.registry import Build

UNEXAMINED = "architecture_unknown"
"""The finding that the tensors of another architecture are not known here: vLLM may know them."""
DRAFTS = ("mtp_", "dspark_")
"""How findings begin that are about the draft alone: a model serves without it."""


@dataclass(frozen=True)
class Examined:
    """`series` is the patch series that the checkpoint needs, `why` so; `speculation` what
    `--speculative-config` says, None without a draft that is known and whole."""

    series: str
    why: str
    speculation: dict[str, Any] | None = None
    drafts: str = ""
    findings: list[Finding] = field(default_factory=list)


def examined(model: Model, build: Build) -> Examined:
    """Raises `RunbookError` for a checkpoint that this vLLM cannot serve."""
    about = subject(model.checkpoint)
    series, why = "", "the release as it is published: nothing in the checkpoint needs a patch"
    if build.cpu and build.own_series:
        series, why = build.own_series, "what the CPU build lacks of its own"
    target = build.checks(series)
    if target is None:
        return Examined(series, why, drafts="this release is not known to the linter")
    found = _errors(about, target)
    if found and not series and (patched := build.checks(build.own_series)) is not None:
        left = _errors(about, patched)
        if len(left) < len(found):
            lifted = ", ".join(sorted({f.id for f in found} - {f.id for f in left}))
            series, why, target, found = build.own_series, f"for {lifted}", patched, left
    if found:
        worst = found[0]
        raise RunbookError(
            f"vLLM {target} cannot serve {model.source}: {worst.id}, {worst.detail}",
            code="findings",
            exit_code=PRECONDITION,
            cause="; ".join(f"{f.id}: {f.consequence}" for f in found[:5]),
            remedy=Remedy(
                "lint",
                (model.source, "--target", target.release),
                text=f"{worst.remedy}; {{command}} has all",
            ),
            where=model.source,
        )
    every = examine(about, target)
    speculation, drafts = _speculation(about, every, target)
    return Examined(series, why, speculation, drafts, every)


def _errors(about: Subject, target: Target) -> list[Finding]:
    return [
        f
        for f in examine(about, target)
        if f.severity == "error" and f.id != UNEXAMINED and not f.id.startswith(DRAFTS)
    ]


def _speculation(
    about: Subject, found: list[Finding], target: Target
) -> tuple[dict[str, Any] | None, str]:
    """What to draft with, and why."""
    config = about.checkpoint.config
    if about.layout is None:
        return None, "no draft of its own is known of this architecture"
    faults = [f.id for f in found if f.id.startswith(DRAFTS) and f.severity != "info"]
    if faults:
        return None, f"its draft is not whole or not served ({', '.join(faults)})"
    if about.layout.draft == "dspark":
        size = config.get("dspark_block_size")
        return {
            "method": "dspark",
            "num_speculative_tokens": size if type(size) is int else 5,
            "draft_sample_method": "probabilistic",
        }, "its own DSpark draft, in blocks of the size that it was trained for"
    if not mtp_count(config) or not about.mtp_blocks():
        return None, "it has no draft of its own"
    return {"method": "mtp", "num_speculative_tokens": 1}, "its own MTP head, whole"
