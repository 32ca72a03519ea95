"""Results for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runbook.steps.measure.against import Compared

HEAD = ["streams", "tokens/s", "+-", "TTFT ms", "p99", "TPOT ms", "ITL ms", "accepted",
        "tokens/pass", "watts"]  # fmt: skip


def of_points(points: Sequence[dict[str, Any]]) -> str:
    """A line for each point."""
    return columns(rows(points))


def rows(points: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The head, and a row for each point: times in milliseconds, the median but where p99 is
    said."""
    found = [HEAD]
    for point in points:
        found.append(
            [
                str(point["asked"]["concurrency"]),
                f"{point['output_tokens_per_second']:.1f}",
                _number(point["deviation"], 1, 1),
                _ms(point["ttft_seconds"], "median"),
                _ms(point["ttft_seconds"], "p99"),
                _ms(point["tpot_seconds"], "median"),
                _ms(point["itl_seconds"], "median"),
                _number(point["acceptance"], 100, 1, "%"),
                _number(point["tokens_per_pass"], 1, 2),
                _number(point["watts"], 1, 0),
            ]
        )
    return found


def of_comparison(compared: Sequence[Compared], differs: Sequence[str], before: Path) -> str:
    told = [["streams", "figure", "before", "now", "change", "p", ""]]
    told += [
        [
            str(one.concurrency),
            one.figure,
            f"{one.before:.4g}",
            f"{one.now:.4g}",
            f"{one.change:+.1%}",
            _number(one.probability, 1, 3),
            one.outcome,
        ]
        for one in compared
    ]
    other = f"; other: {', '.join(differs)}" if differs else ""
    return f"against {before}{other}\n{columns(told)}"


def columns(cells: Sequence[Sequence[str]], left: int = 0) -> str:
    """Columns, right-aligned but for the last `left` ones, two spaces between."""
    count = len(cells[0])
    widths = [max(len(row[n]) for row in cells) for n in range(count)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n >= count - left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _ms(spread: dict[str, float] | None, key: str) -> str:
    return "-" if spread is None else f"{spread[key] * 1000:.1f}"


def _number(value: float | None, times: float, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value * times:.{digits}f}{unit}"
