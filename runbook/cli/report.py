"""`runbook report`: one page of what was done and made, for people; it needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import runbook
from runbook import units
from runbook.redact import Redactor
from runbook.state import story
from runbook.state.journal import now
from runbook.state.status import status
from runbook.state.workspace import Workspace


def page(book: Mapping[str, Any], workspace: Workspace) -> str:
    """The report of a workspace as HTML, secrets redacted."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["duration"] = units.duration
    source = files("runbook.templates").joinpath("report.html.j2").read_text()
    return environment.from_string(source).render(**facts(book, workspace))


def facts(book: Mapping[str, Any], workspace: Workspace) -> dict[str, Any]:
    """What the page shows."""
    known = status(book, workspace)
    records = {step["id"]: workspace.checkpoint(step["id"]) for step in book["steps"]}
    told = {
        "book": book["name"],
        "workspace": str(workspace.root),
        "package": runbook.__version__,
        "written": now(),
        "endpoint": known["endpoint"],
        "steps": known["steps"],
        "runs": [_with_lanes(run) for run in story.runs(workspace.runs_newest_first())],
        "made": [
            {
                "id": name,
                "time": record["time"],
                "outputs": record["outputs"],
                "fingerprint": record["fingerprint"],
            }
            for name, record in records.items()
            if record is not None
        ],
        "inputs": book["inputs"],
    }
    redacted: dict[str, Any] = Redactor(book["secrets"]).data(told)
    return redacted


def _with_lanes(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with a lane for each step: its attempts as bars, in percent of the run's length."""
    whole = max(run.get("seconds", 0.0), 0.001)
    lanes: dict[str, dict[str, Any]] = {}
    for attempt in run["attempts"]:
        end = attempt["end"] if attempt["end"] is not None else whole
        lane = lanes.setdefault(
            attempt["step"], {"step": attempt["step"], "bars": [], "seconds": 0.0, "rates": []}
        )
        lane["seconds"] += end - attempt["start"]
        lane["rates"] = _rates(attempt["rates"])
        lane["bars"].append(
            {
                "attempt": attempt["attempt"],
                "outcome": attempt["outcome"],
                "left": round(100 * attempt["start"] / whole, 2),
                "width": round(100 * (end - attempt["start"]) / whole, 2),
            }
        )
    return {"started": "", "seconds": 0.0, **run, "lanes": list(lanes.values())}


def _rates(rates: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    """How fast an attempt progressed, in words."""
    told = []
    for unit, rate in rates.items():
        seconds, done = rate["until"] - rate["since"], rate["done"] - rate["from"]
        if seconds > 0 and done > 0:
            speed = done / seconds
            told.append(f"{units.size(speed)}/s" if unit == "bytes" else f"{speed:.1f} {unit}/s")
    return told
