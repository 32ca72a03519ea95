"""Findings for people and for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from runbook.steps.checkpoint.lint import Finding
from runbook.steps.checkpoint.lint.scales import Sample
from runbook.steps.checkpoint.targets import Target

SEVERITIES = ("error", "warning", "info")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor, turns its text round or cannot be encoded."""


def printable(text: str) -> str:
    """A text from a file without what a terminal would obey."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def plain(findings: Sequence[Finding], target: Target, sample: Sample) -> dict[str, Any]:
    """The findings as one JSON object: counts by severity, each finding, and which share of the
    scales was looked at."""
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    return {
        "target": target.release,
        "series": target.series,
        **counts,
        "findings": [_clean(f.plain()) for f in findings],
        "scales": {
            "tensors": sample.of,
            "examined": sample.tensors,
            "share": round(sample.read / sample.bytes, 6) if sample.bytes else 1.0,
        },
    }


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return {k: _clean(v) for k, v in value.items()} if isinstance(value, dict) else value


def text(findings: Sequence[Finding], sample: Sample) -> str:
    """The findings as lines for a terminal without colour or a file."""
    lines = [] if findings else ["no findings"]
    for finding in findings:
        lines.append(f"{finding.severity:8}{finding.id}: {printable(finding.detail)}")
        lines += [f"{'':8}  {printable(name)}" for name in finding.tensors[:3]]
        if len(finding.tensors) > 3:
            lines.append(f"{'':8}  and {len(finding.tensors) - 3} more")
        lines.append(f"{'':8}consequence: {finding.consequence}")
        lines.append(f"{'':8}remedy: {finding.remedy}")
    if sample.of:
        lines.append(f"{'':8}{sample}")
    return "\n".join(lines)
