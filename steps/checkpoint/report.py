"""Findings for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runbook.steps.checkpoint.lint import Finding

MARKS = {"error": "red", "warning": "yellow", "info": "cyan"}


def plain(findings: Sequence[Finding], target: str) -> dict[str, Any]:
    """The findings as one JSON object: counts by severity, and each finding."""
    counts = {s: sum(f.severity == s for f in findings) for s in MARKS}
    return {"target": target, **counts, "findings": [f.plain() for f in findings]}


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


def table(findings: Sequence[Finding]) -> Any:
    """The findings as a `rich.table.Table`."""
    from rich.markup import escape
    from rich.table import Table

    made = Table("severity", "finding", "tensors", "consequence", "remedy", expand=False)
    for finding in findings:
        names = "\n".join(finding.tensors[:3])
        if len(finding.tensors) > 3:
            names += f"\nand {len(finding.tensors) - 3} more"
        colour = MARKS[finding.severity]
        made.add_row(
            f"[{colour}]{finding.severity}[/]",
            f"{finding.id}\n{escape(finding.detail)}",
            escape(names),
            escape(finding.consequence),
            escape(finding.remedy),
        )
    return made
