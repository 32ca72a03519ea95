"""What was measured in a workspace, as tables for `runbook report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runbook.files import read_json
from runbook.protocol import StepFailure
from runbook.steps.measure import results, table

MOST = 20
"""Results of each kind that are shown, the newest first."""


def measured(workspace: Path) -> list[dict[str, Any]]:
    """{title, about, rows} of each result, the first row its head; a damaged file is left out."""
    return [*_benches(workspace), *_scores(workspace)]


def _benches(workspace: Path) -> list[dict[str, Any]]:
    found = []
    for path in reversed(results.stored(workspace / results.FOLDER)[-MOST:]):
        try:
            result = results.load(path)
            rows = table.rows(result.points)
        except (StepFailure, KeyError, TypeError):
            continue
        title = f"Speed, prompts {result.about.get('prompts')}"
        found.append({"title": title, "about": _about(result.about, path), "rows": rows})
    return found


def _scores(workspace: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((workspace / "eval").glob("*/result.json"), reverse=True)[:MOST]:
        body = read_json(path)
        try:
            low, high = body["interval"]
            own = [
                f"{body['score']:.1%}",
                str(body["n"]),
                f"{low:.1%} to {high:.1%}",
                "this server",
            ]
            others = [
                [f"{one['score']:.1%}", str(one["n"] or "all"), "-", one["source"]]
                for one in body["published"]
            ]
            title, about = f"Answers, {body['title']}", _about(body["about"], path)
        except (KeyError, TypeError, ValueError):
            continue
        rows = [["score", "n", "95 %", "of"], own, *others]
        found.append({"title": title, "about": about, "rows": rows})
    return found


def _about(about: dict[str, Any], path: Path) -> dict[str, Any]:
    kept = ("time", "vllm", "profile", "digests", "driver", "gpus")
    return {name: about.get(name) for name in kept} | {"file": str(path)}
