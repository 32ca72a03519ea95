"""The brief form of an answer: what an agent needs of it, once.

The same document, of which is left out: what is empty (null, "", [], {}), what `LEFT_OUT` names,
steps of which there is nothing to tell (`states` or `decisions` counts all of them), and what it
says in another place. Numbers are rounded. So it validates against the schema of the answer with
nothing required (`relaxed`; `runbook schema VERB --brief`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from runbook.planning.planner import UPSTREAM

_STATUS = (
    "endpoint", "run.id", "run.started", "run.finished", "steps.uses", "steps.since",
    "steps.seconds", "steps.attempt", "steps.log", "steps.endpoint", "steps.progress.items",
    "served.step", "served.request", "served.at_boot",
)  # fmt: skip
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "": ("schema", "workspace"),
    "plan": ("steps.uses", "steps.reasons.code", "steps.reasons.severity"),
    "check": ("steps.uses", "steps.work", "steps.reasons.code", "steps.reasons.severity"),
    "run": ("endpoint", "outputs", "steps.decision", "steps.reasons", "steps.exit_code",
            "steps.seconds", "served.step", "served.request", "served.at_boot"),
    "status": _STATUS,
    "wait": (*_STATUS, "events.seq", "events.time", "events.attempt"),
    "logs": ("run", "attempt"),
    "events": ("run.started", "run.finished", "events.process", "events.outputs", "events.inputs",
               "events.log", "events.items", "events.package", "events.source",
               "events.workspace"),
    "bundle": ("files",),
    "patches": ("patches.files",),
    "skill": ("text",),
}  # fmt: skip
"""Fields by the kind of answer, "" for any; a dot leads into a mapping, or each one of a list."""
COUNTED = {"plan": "decisions", "check": "states", "run": "states", "status": "states"}
COUNTED["wait"] = "states"
"""Of answers with steps: the field that counts all of them."""
QUIET = frozenset({"satisfied", "inactive", "skip", "later", "pending", "never_ran", "blocked"})
"""States and decisions of steps that are only counted if nothing else is said of them."""
TOLD = {"wait": ("attempt.notice",)}
"""Of answers with events: the types that `steps` does not tell."""
DECIDED_LATER = tuple(reason.message for reason in UPSTREAM.reasons)
"""What the decision `later` says already."""
DIGITS = 3


def brief(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The brief form of a whole answer."""
    kind = str(answer["kind"])
    found: dict[str, Any] = json.loads(json.dumps(answer))
    for path in (*LEFT_OUT[""], *LEFT_OUT.get(kind, ())):
        _remove(found, path.split("."))
    if kind in TOLD:
        found["events"] = [e for e in found.get("events", ()) if e["type"] in TOLD[kind]]
    for step in found.get("steps", ()) if kind == "plan" else ():
        step["reasons"] = [r for r in step["reasons"] if r["message"] not in DECIDED_LATER]
    _say_once(found)
    shown: dict[str, Any] = _filled(found)
    if kind in COUNTED and answer.get("steps"):
        _count(shown, answer["steps"], COUNTED[kind])
    return shown


def text(answer: Mapping[str, Any]) -> str:
    """An answer in its brief form, as it is printed."""
    return json.dumps(brief(answer), ensure_ascii=False, separators=(",", ":"))


def _remove(value: Any, path: Sequence[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _remove(item, path)
    elif isinstance(value, dict):
        if len(path) == 1:
            value.pop(path[0], None)
        else:
            _remove(value.get(path[0]), path[1:])


def _say_once(found: dict[str, Any]) -> None:
    """Leave errors only where they are said first, and of one what is its next command, or said in
    another of its fields."""
    error = found.get("error")
    said = [_bare(error)] if error else []
    for step in found.get("steps", ()):
        if isinstance(step, dict) and step.get("error"):
            if _bare(step["error"]) in said:
                del step["error"]
            else:
                said.append(_bare(step["error"]))
    errors = found.get("errors", [])  # of `lint` a number
    if isinstance(errors, list) and all(isinstance(e, dict) and "code" in e for e in errors):
        found["errors"] = [e for e in errors if _bare(e) not in said]
    if found.get("diagnosis") and found["diagnosis"].get("log") == found.get("path"):
        del found["diagnosis"]["log"]
    if error and error.get("remedy") in found.get("next", [])[:1]:
        del error["remedy"]
    if error and error.get("where") == error.get("log"):
        del error["where"]


def _bare(error: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in error.items() if key != "step"}


def _filled(value: Any) -> Any:
    """The same without what is empty; costs that are nothing are so too."""
    if isinstance(value, dict):
        shown = {key: _filled(item) for key, item in value.items()}
        if value.keys() == {"bytes", "seconds", "disk"}:
            return {key: item for key, item in shown.items() if item}
        return {k: v for k, v in shown.items() if v is not None and v not in ("", [], {})}
    if isinstance(value, list):
        return [_filled(item) for item in value if item != ""]
    return round(value, DIGITS) if isinstance(value, float) else value


def _count(shown: dict[str, Any], steps: Sequence[Mapping[str, Any]], name: str) -> None:
    """Count steps by their state or decision, and leave out those of which nothing is told."""
    key = name.removesuffix("s")
    shown[name] = dict(Counter(step[key] for step in steps))
    told = [
        step
        for step in shown.pop("steps", ())
        if step[key] not in QUIET or step.keys() - {"id", key, "reasons"}
    ]
    if told:
        shown["steps"] = told
    shown["next"] = shown.pop("next", [])  # last, where one looks for it
    if not shown["next"]:
        del shown["next"]


def relaxed(schema: Any) -> Any:
    """The schema of an answer's brief form, from that of the whole one."""
    if isinstance(schema, list):
        return [relaxed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: relaxed(item) for key, item in schema.items() if key != "required"}
    properties = found.get("properties")
    if isinstance(properties, dict) and {"kind", "ok"} <= properties.keys():
        found["required"] = ["kind", "ok"]
        counts = {"type": "object", "additionalProperties": {"type": "integer"}}
        found["properties"] = {**properties, "states": counts, "decisions": counts}
    return found
