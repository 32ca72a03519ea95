"""The linter: reads config, index and headers of a checkpoint and names what would go wrong.

Nothing is loaded and torch is not imported. A folder is read directly, and a share of its scales
with it; a repository on a hub by ranged requests for its headers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runbook.steps.checkpoint.checkpoint import Checkpoint, open_folder
from runbook.steps.checkpoint.headers import uncollected
from runbook.steps.checkpoint.layout import ConfigError, Layout, UnknownArchitecture, layout
from runbook.steps.checkpoint.lint import config, draft, files, linears, scales, tensors
from runbook.steps.checkpoint.lint.identity import identity
from runbook.steps.checkpoint.lint.rules import RULES, Severity
from runbook.steps.checkpoint.lint.scales import Sample
from runbook.steps.checkpoint.lint.subject import Fault, Subject
from runbook.steps.checkpoint.quantization import Quantization
from runbook.steps.checkpoint.targets import Target

SHOWN = 5
"""How many tensor names a finding shows in its plain form."""


@dataclass(frozen=True)
class Finding:
    """One fault of a checkpoint. `severity` is that for the target asked for, `severities` that
    for each vLLM build known."""

    id: str
    severity: Severity
    detail: str
    tensors: tuple[str, ...]
    consequence: str
    remedy: str
    severities: dict[str, Severity]

    def plain(self, shown: int | None = SHOWN) -> dict[str, object]:
        """As JSON data, with at most `shown` tensor names and their count."""
        return {
            "id": self.id,
            "severity": self.severity,
            "detail": self.detail,
            "tensors": list(self.tensors[:shown]),
            "tensor_count": len(self.tensors),
            "consequence": self.consequence,
            "remedy": self.remedy,
            "severities": dict(self.severities),
        }


def lint(source: Path | str, target: Target, sample: Sample | None = None) -> list[Finding]:
    """The findings for a checkpoint in a folder, or of a repository on a hub (`org/name`,
    `org/name@revision`), gravest first. `sample` is told which share of its scales was looked at.

    Raises `CheckpointError` if there is no checkpoint.
    """
    with uncollected():
        folder = Path(source)
        if isinstance(source, Path) or folder.exists():
            return examine(subject(open_folder(folder)), target, sample)
        from runbook.steps.checkpoint.hub import open_repository

        return examine(subject(open_repository(str(source))), target, sample)


def subject(checkpoint: Checkpoint) -> Subject:
    """A checkpoint with what its config means."""
    expected: Layout | None = None
    problem: Fault | None = None
    names = set(checkpoint.index) | {t.name for t in checkpoint.stale}
    try:
        expected = layout(checkpoint.config, names)
    except UnknownArchitecture as error:
        problem = Fault("architecture_unknown", identity(checkpoint, error.names))
    except ConfigError as error:
        problem = Fault("config_field", f"config.json: {error}", ("config.json",))
    return Subject(checkpoint, expected, Quantization(checkpoint.quantization), problem)


def examine(about: Subject, target: Target, sample: Sample | None = None) -> list[Finding]:
    """All findings of a severity other than `none` for this target, gravest first."""
    rank = {"error": 0, "warning": 1, "info": 2}
    found = []
    for fault in faults(about, Sample() if sample is None else sample):
        rule = RULES[fault.id]
        severity = rule.severity_for(target)
        if severity != "none":
            found.append(
                Finding(
                    fault.id,
                    severity,
                    fault.detail,
                    fault.tensors,
                    rule.consequence,
                    rule.remedy,
                    rule.by_target(),
                )
            )
    return sorted(found, key=lambda f: rank[f.severity])


def faults(about: Subject, sample: Sample) -> Iterator[Fault]:
    """Every fault, whatever the target."""
    yield from files.check(about)
    if about.problem is not None:
        yield about.problem
    if about.layout is None or any(files.weights(about.checkpoint)):
        return
    yield from draft.check(about, about.layout)
    yield from tensors.check(about, about.layout)
    yield from linears.check(about, about.layout)
    yield from scales.check(about, about.layout, sample)
    yield from config.check(about, about.layout)
