"""What a record must be to be believed: looked at by hand, for a validator would cost more than a
run that does nothing. One that is not so is as if it were not there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = "runbook/1"

_NUMBER = (int, float)
_TEXTS = ("cause", "where", "log")
_TIME = re.compile(r"[12]\d{3}-(?:0[1-9]|1[0-2])-([0-3]\d)T[0-2]\d:[0-5]\d:[0-5]\d(?:\.\d{1,6})?Z")
_LARGEST = 1e300
"""Beyond every quantity, and whole numbers of that size are still numbers to format."""
_CHECKPOINT = {
    "step": str,
    "time": str,
    "run": str,
    "attempt": int,
    "seconds": _NUMBER,
    "package": str,
    "fingerprint": dict,
    "uses": str,
    "folder": str,
    "inputs": dict,
    "outputs": dict,
    "outputs_digest": str,
}
_BEGUN = {"attempt": str, "fingerprint": str, "uses": str, "folder": str, "inputs": dict}


def digest(value: Any) -> str:
    """SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the digest of what else is in it."""
    return {**record, "digest": digest(record)}


def checkpoint(record: Any, step: str) -> dict[str, Any] | None:
    """The checkpoint of a step if it is whole, without its digest."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return None
    if record.get("step") != step or not _has(record, _CHECKPOINT):
        return None
    return _unsealed(record)


def begun(record: Any) -> dict[str, Any] | None:
    """The record of an attempt that began, if it is whole, without its digest."""
    if not isinstance(record, dict) or not _has(record, _BEGUN):
        return None
    return _unsealed(record)


def owner(record: Any) -> dict[str, Any] | None:
    """The record of the document that a workspace belongs to, without its digest."""
    if not isinstance(record, dict) or not _has(record, {"name": str, "source": str}):
        return None
    return _unsealed(record)


def _unsealed(record: Mapping[str, Any]) -> dict[str, Any] | None:
    rest = {key: value for key, value in record.items() if key != "digest"}
    try:
        return rest if record.get("digest") == digest(rest) else None
    except RecursionError:
        return None


def is_time(text: str) -> bool:
    """Whether a text is a time as the journal has it."""
    match = _TIME.fullmatch(text)
    if match is None:
        return False
    if "01" <= match[1] <= "28" and text[11:13] < "24":
        return True
    from datetime import datetime

    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _has(record: Mapping[str, Any], types: Mapping[str, Any]) -> bool:
    return all(isinstance(record.get(key), kind) for key, kind in types.items())


def _is_error(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("code"), str)
        and isinstance(value.get("message"), str)
        and all(isinstance(value.get(key, ""), str) for key in _TEXTS)
    )


def _is_error_or_none(value: Any) -> bool:
    return value is None or _is_error(value)


def _is_errors(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_error, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBER) and -_LARGEST < value < _LARGEST


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_items(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and _is_number(item.get("done"))
        and _is_number(item.get("total"))
        for item in value
    )


def _is_reasons(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("message"), str) for item in value
    )


def _is_carried(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(state, dict)
        and state.get("state") in ("interrupted", "failed")
        and isinstance(state.get("since"), str)
        and (not state["since"] or is_time(state["since"]))
        and _is_error_or_none(state.get("error"))
        and isinstance(state.get("log", ""), str)
        for state in value.values()
    )


# Of each type of event: what must be there, and what may be but must then be so.
_MUST: Mapping[str, Mapping[str, Any]] = {
    "run.carried": {"steps": dict},
    "run.finished": {"exit_code": int},
    "step.satisfied": {"step": str},
    "step.decided": {"step": str},
    "step.waiting": {"step": str, "state": str},
    "step.approved": {"step": str},
    "step.blocked": {"step": str},
    "attempt.started": {"step": str, "attempt": int, "log": str},
    "attempt.progress": {"step": str, "done": _NUMBER, "unit": str, "message": str},
    "attempt.notice": {"step": str, "message": str},
    "attempt.failed": {"step": str, "error": dict},
    "attempt.succeeded": {"step": str},
    "undo.started": {"step": str},
    "undo.finished": {"step": str},
    "undo.failed": {"step": str, "error": dict},
}
_MAY: Mapping[str, Callable[[Any], bool]] = {
    "done": _is_number,
    "error": _is_error_or_none,
    "errors": _is_errors,
    "exit_code": lambda value: value is None or 0 <= value <= 255,
    "items": _is_items,
    "question": _is_text,
    "reasons": _is_reasons,
    "state": lambda value: value in ("waiting", "retrying"),
    "step": _is_text,
    "steps": _is_carried,
    "total": _is_number_or_none,
}
_MAY_BE = frozenset(_MAY)


def is_event(event: Any) -> bool:
    """Whether a line of a journal is an event that can be read. Types that are not known need
    only their `seq`, `time` and `type`."""
    if not isinstance(event, dict) or type(event.get("seq")) is not int:
        return False
    kind = event.get("type")
    time = event.get("time")
    if not isinstance(kind, str) or not isinstance(time, str) or not is_time(time):
        return False
    must = _MUST.get(kind)
    if must is not None and not _has(event, must):
        return False
    return all(_MAY[key](event[key]) for key in _MAY_BE.intersection(event))
