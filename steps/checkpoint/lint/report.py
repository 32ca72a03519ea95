"""Findings for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runbook.steps.checkpoint.lint import Finding
from runbook.steps.checkpoint.targets import Target

SEVERITIES = ("error", "warning", "info")


def plain(findings: Sequence[Finding], target: Target) -> dict[str, Any]:
    """The findings as one JSON object: counts by severity, and each finding."""
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    return {
        "target": target.release,
        "series": target.series,
        **counts,
        "findings": [f.plain() for f in findings],
    }


def text(findings: Sequence[Finding]) -> str:
    """The findings as lines for a terminal without colour or a file."""
    if not findings:
        return "no findings"
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:8}{finding.id}: {finding.detail}")
        lines += [f"{'':8}  {name}" for name in finding.tensors[:3]]
        if len(finding.tensors) > 3:
            lines.append(f"{'':8}  and {len(finding.tensors) - 3} more")
        lines.append(f"{'':8}consequence: {finding.consequence}")
        lines.append(f"{'':8}remedy: {finding.remedy}")
    return "\n".join(lines)
