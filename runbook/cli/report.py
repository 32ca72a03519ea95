"""`runbook report`: one page of what was done and made, for people; it needs no network."""

from __future__ import annotations

import importlib
import re
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
        "measured": [told for name, r in records.items() if r and (told := _measured(name, r))],
        "provenance": [
            (name, *told) for name, r in records.items() if r for told in _provenance(r)
        ],
        "by_hand": _by_hand(workspace),
        "inputs": book["inputs"],
    }
    redacted: dict[str, Any] = Redactor(book["secrets"]).data(told)
    return redacted


PROVENANCE = re.compile(r"(?:^|_)(?:wheel|revision|version|digest|lock)$|sha256$")
"""Names of outputs that say where something comes from, or what it is."""


def _measured(name: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The numbers that a step gives, those of a whole as bars, rows as tables, and what its profile
    promises."""
    outputs, inputs = record["outputs"], record["inputs"]
    numbers = {key: value for key, value in outputs.items() if _is_number(value)}
    wholes = {
        key: _parts(value)
        for key, value in outputs.items()
        if isinstance(value, Mapping) and len(value) > 1 and all(map(_is_number, value.values()))
    }
    tables = {key: table for key, value in outputs.items() if (table := _table(value))}
    profiles = inputs.get("profiles")
    profile = profiles.get(outputs.get("profile")) if isinstance(profiles, Mapping) else None
    figures = profile.get("figures") if isinstance(profile, Mapping) else None
    if not (numbers or wholes or tables or figures):
        return None
    return {
        "id": name,
        "numbers": numbers,
        "wholes": wholes,
        "tables": tables,
        "profile": outputs.get("profile"),
        "figures": [
            " ".join(f"{k} {v}" if k not in ("value", "unit") else str(v) for k, v in f.items())
            for f in figures or ()
            if isinstance(f, Mapping)
        ],
    }


def _parts(whole: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parts of a whole one after another, in percent of it."""
    total, at, found = max(sum(whole.values()), 1e-9), 0.0, []
    for key, value in whole.items():
        width = round(100 * value / total, 2)
        found.append({"name": key, "value": value, "left": round(at, 2), "width": width})
        at += width
    return found


def _table(value: Any) -> dict[str, list[Any]] | None:
    """Rows that have measures as a table, columns named as their fields; what a row holds rows of
    itself stands in lines below each other. None of anything else."""
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        return None
    lines: list[dict[str, Any]] = []
    for row in value:
        inner = [v for v in row.values() if _is_rows(v)]
        own = {k: v for k, v in row.items() if not isinstance(v, (list, Mapping))}
        first, *others = inner[0] if inner else [{}]
        lines += [{**own, **first}, *map(dict, others)]
    if not any(isinstance(cell, float) for line in lines for cell in line.values()):
        return None
    names = dict.fromkeys(name for line in lines for name in line)
    shown = [name for name in names if any(line.get(name) not in (None, "") for line in lines)]
    rows = [[_cell(name, line.get(name)) for name in shown] for line in lines]
    return {"columns": shown, "rows": rows}


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not _is_number(value):
        return str(value)
    if name == "seconds":
        return units.moment(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where what a step gives comes from: releases, revisions and digests, and the digest of the
    files (locks, patches) that it was made of."""
    outputs = record["outputs"]
    found = [(k, v) for k, v in outputs.items() if isinstance(v, str) and PROVENANCE.search(k)]
    files = record["fingerprint"].get("files")
    return [*found, *([("files it is made of", files)] if isinstance(files, str) else [])]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_hand(workspace: Workspace) -> list[dict[str, Any]]:
    """What was measured by hand, as tables."""
    module, _, function = importlib.import_module("runbook.steps").MEASURED.partition(":")
    tables: list[dict[str, Any]] = getattr(importlib.import_module(module), function)(
        workspace.root
    )
    return tables


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
            amount = units.size(done) if unit == "bytes" else f"{done:g} {unit}"
            pace = f"{units.size(speed)}/s" if unit == "bytes" else f"{speed:.1f}/s"
            told.append(f"{amount} at {pace}")
    return told
