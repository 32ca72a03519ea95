"""The faults that the linter knows, from rules.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from runbook.steps.checkpoint.targets import Quirk, Target, targets
from runbook.steps.common.shipped import shipped

Severity = Literal["error", "warning", "info", "none"]


@dataclass(frozen=True)
class Rule:
    """One kind of fault. `quirks` gives the severity for targets with a quirk, `severity` for the
    others; `none` means that it is no fault there."""

    consequence: str
    remedy: str
    severity: Severity = "error"
    quirks: Mapping[Quirk, Severity] = field(default_factory=dict)

    def severity_for(self, target: Target) -> Severity:
        return next((s for q, s in self.quirks.items() if q in target.quirks), self.severity)

    def by_target(self) -> dict[str, Severity]:
        return {str(target): self.severity_for(target) for target in targets()}


DOWNLOAD: Final = "download the file again"
"""The remedy that a step has a command for."""


def _rules() -> dict[str, Rule]:
    entries = shipped(Path(__file__).with_name("rules.yaml"))
    return {name: Rule(**values) for name, values in entries.items()}


RULES: Final[Mapping[str, Rule]] = _rules()
