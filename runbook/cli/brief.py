"""The brief form of an answer: what an agent needs of it, once.

The same document, of which is left out: what is empty (null, "", [], {}), what `LEFT_OUT` names,
steps of which there is nothing to tell (`states` or `decisions` counts all of them), and what it
says in another place. Numbers are rounded. So it validates against the schema of the answer with
nothing required (`relaxed`; `runbook schema VERB --brief`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runbook.planning.planner import LATER, UPSTREAM

_ERRORS = ("error.log", "errors.log", "steps.error.log")
"""`runbook logs` finds the log by the name of the step."""
_STATUS = (
    *_ERRORS, "endpoint", "run.id", "run.started", "run.finished", "steps.uses", "steps.since",
    "steps.seconds", "steps.attempt", "steps.log", "steps.endpoint", "steps.progress.items",
    "served.step", "served.request", "served.at_boot",
)  # fmt: skip
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "": ("schema", "workspace"),
    "plan": ("steps.uses", "steps.reasons.code", "steps.reasons.severity"),
    "check": ("steps.uses", "steps.work", "steps.seconds", "steps.reasons.code",
              "steps.reasons.severity"),
    "run": (*_ERRORS, "book", "inputs", "run", "endpoint", "outputs", "steps.decision",
            "steps.reasons", "steps.exit_code", "steps.seconds", "served.step", "served.request",
            "served.at_boot"),
    "status": _STATUS,
    "wait": (*_STATUS, "book", "inputs", "since", "events.seq", "events.time", "events.attempt"),
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
GOES_ON = {
    "locked": ("remedy", "retryable"),
    "orphaned": ("remedy", "retryable"),
    "still_running": ("message", "retryable"),
}
"""Fields of errors that tell of a run that goes on, which `run.state` and `next` say as well."""
OVER = ("failed", "interrupted")
"""States of steps on which nothing works."""
MOST_NOTICES = 3
"""The latest ones, each once; `runbook events` has all."""
DIGITS = 3


def brief(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The brief form of a whole answer."""
    kind = str(answer["kind"])
    found: dict[str, Any] = json.loads(json.dumps(answer))
    if kind == "wait" and "steps" in found:
        _name_what_was_told(found)
    place = found.get("workspace")
    for path in (*LEFT_OUT[""], *LEFT_OUT.get(kind, ())):
        _remove(found, path.split("."))
    if kind in TOLD:
        found["events"] = _notices(found, TOLD[kind])
    if kind == "plan" and "steps" in found:
        _foresee_once(found)
    _say_once(found, place)
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


def _name_what_was_told(found: dict[str, Any]) -> None:
    """Of errors of attempts that are older than what was asked for, leave the code, and of the
    first one what to do: whoever says since when to tell has read them. While the run goes on,
    only count their steps."""
    if found.get("since") is None:
        return
    new = {event.get("step") for event in found["events"] if event["type"] == "attempt.failed"}
    for step in found["steps"]:
        if step["error"] and step["id"] not in new and step["state"] != "stopped":
            step["error"] = {"code": step["error"]["code"]}
        top = found.get("error") or {}
        if step["id"] == top.get("step") and step["error"] == {"code": top["code"]}:
            top["cause"] = ""
    found["errors"] = [e for e in found["errors"] if e.get("step") in (None, *new)]
    if (found.get("run") or {}).get("state") in ("running", "orphaned"):
        over = [s for s in found["steps"] if s["state"] in OVER and s["id"] not in new]
        found["steps"] = [step for step in found["steps"] if step not in over]


def _notices(found: Mapping[str, Any], types: Collection[str]) -> list[dict[str, Any]]:
    """Events of these types, the latest, each once; of a step that failed its error is told."""
    failed = {step["id"] for step in found.get("steps", ()) if step["state"] == "failed"}
    told: dict[str, dict[str, Any]] = {}
    for event in found.get("events", ()):
        if event["type"] in types and event["step"] not in failed:
            told[f"{event['step']}: {event.get('message')}"] = event
    return list(told.values())[-MOST_NOTICES:]


def _foresee_once(found: dict[str, Any]) -> None:
    """Name together the steps whose cost is not known before earlier ones have run."""
    later = []
    for step in found["steps"]:
        step["reasons"] = [r for r in step["reasons"] if r["message"] not in DECIDED_LATER]
        if step["unknown"] == LATER:
            step["unknown"] = None
            later.append(step["id"])
    found["unknown"] = later


def _say_once(found: dict[str, Any], place: str | None) -> None:
    """Leave errors only where they are said first, and of one what is its next command, or said in
    another of its fields. What lies in the workspace, `place`, is found by name."""
    error = found.get("error")
    said = [_bare(error)] if error else []
    for step in found.get("steps", ()):
        if not isinstance(step, dict):
            continue
        if error and step.get("id") == error.get("step"):
            if (step.get("error") or {}).keys() <= {"code"}:
                step["error"] = None
            if (step.get("question") or "") in error["message"]:
                step["question"] = None
        if step.get("error"):
            if _bare(step["error"]) in said:
                del step["error"]
            else:
                said.append(_bare(step["error"]))
    errors = found.get("errors", [])  # of `lint` a number
    if isinstance(errors, list) and all(isinstance(e, dict) and "code" in e for e in errors):
        found["errors"] = [e for e in errors if _bare(e) not in said]
    if found.get("diagnosis") and found["diagnosis"].get("log") == found.get("path"):
        del found["diagnosis"]["log"]
    if error:
        for name in GOES_ON.get(error["code"], ()):
            error.pop(name, None)
    if error and error.get("remedy") in found.get("next", [])[:1]:
        del error["remedy"]
    for one in (found, *found.get("steps", ())):
        if isinstance(one, dict) and one.get("error"):
            where = one["error"].get("where") or ""
            if where in one["error"].get("message", "") or where.startswith(f"{place}/"):
                one["error"]["where"] = None


def _bare(error: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in error.items() if key != "step"}


def _filled(value: Any) -> Any:
    """The same without what is empty; costs that are nothing are so too, and progress that is not
    measured."""
    if isinstance(value, dict):
        shown = {key: _filled(item) for key, item in value.items()}
        if "total" in value and not (value["total"] or value.get("done")):
            shown.pop("done", None)
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
    said = (shown.get("error") or {}).get("step")
    warned = {step["id"] for step in steps if any(map(_warns, step.get("reasons") or ()))}
    told = [
        step
        for step in shown.pop("steps", ())
        if (step[key] not in QUIET and step["id"] != said)
        or step["id"] in warned
        or step.keys() - {"id", key, "reasons"}
    ]
    if told:
        shown["steps"] = told
    shown["next"] = shown.pop("next", [])  # last, where one looks for it
    if not shown["next"]:
        del shown["next"]


def _warns(reason: Mapping[str, Any]) -> bool:
    return reason.get("severity") == "warning"


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
        names = {"type": "array", "items": {"type": "string"}}
        added = {"states": counts, "decisions": counts, "unknown": names}
        found["properties"] = {**properties, **added}
    return found
