"""The same answers for people: terse, plain, one line a step, the reason at the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runbook import errors, units
from runbook.cli import terminal


def ago(moment: str | None) -> str:
    if not moment:
        return ""
    from datetime import UTC, datetime

    then = datetime.fromisoformat(moment)
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h ago"
    return f"{seconds / 86400:.0f} days ago"


def number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def amount(progress: Mapping[str, Any]) -> str:
    """A progress event in words, without its items."""
    done, total, unit = progress["done"], progress["total"], progress["unit"]
    if unit == "bytes":
        text = units.size(done) + (f" of {units.size(total)}" if total else "")
    elif done or total:
        text = number(done) + (f" of {number(total)}" if total else "")
        text += f" {unit}" if unit else ""
    else:
        text = ""
    if total:
        text += f" ({100 * done / total:.0f} %)"
    return ", ".join(said for said in (text, progress["message"]) if said)


def item(one: Mapping[str, Any]) -> str:
    """One of a progress event's items."""
    return f"{one['name']} {100 * one['done'] / max(1, one['total']):.0f} %"


def progress(event: Mapping[str, Any]) -> str:
    """A progress event in words, with the first of its items."""
    items = event.get("items", [])
    more = f" and {len(items) - 1} more" if len(items) > 1 else ""
    first = [item(one) + more for one in items[:1]]
    return ", ".join(said for said in (amount(event), *first) if said)


def reason_text(reasons: Sequence[Mapping[str, Any]]) -> str:
    if len(reasons) == 1:
        return str(reasons[0]["message"])  # one of thousands of lines, mostly
    return "; ".join(reason["message"] for reason in reasons)


def error_text(error: Mapping[str, Any]) -> str:
    """The one clear error that every failure ends in."""
    step = f"step {error['step']}: " if error.get("step") else ""
    lines = [f"error: {step}{error['message']}"]
    for label, key in (
        ("where", "where"),
        ("cause", "cause"),
        ("remedy", "remedy"),
        ("log", "log"),
    ):
        if error.get(key):
            given = str(error[key]).strip().split("\n")
            value = f"\n{' ' * 10}".join(terminal.hanging(line, 10) for line in given)
            lines.append(f"  {label + ':':<7} {value}")
    if error.get("retryable"):
        lines.append("  retry:  may help")
    return "\n".join(lines)


def plan(answer: Mapping[str, Any], mending: Mapping[str, str] | None = None) -> str:
    """`mending`: of steps that will refuse as it is, what is to be done first."""
    rows = []
    for entry in answer["steps"]:
        cost = [units.size(entry["work"]["bytes"])] if entry["work"]["bytes"] else []
        cost += [f"~{units.duration(entry['work']['seconds'])}"] if entry["work"]["seconds"] else []
        if entry["unknown"]:
            cost.append("unknown")
        if entry["approve"]:
            cost.append("asks for approval")
        rows.append(
            (entry["id"], entry["decision"], ", ".join(cost), reason_text(entry["reasons"]))
        )
    lines = [heading(answer), terminal.table(rows), *_total(answer)]
    for entry in answer["steps"]:
        if entry["approve"]:
            lines.append(terminal.hanging(f"{entry['id']} asks: {entry['approve']}", 0))
    asking = [f"--approve {entry['id']}" for entry in answer["steps"] if entry["approve"]]
    if asking and answer["ok"]:
        lines.append(f"to approve: {' '.join([answer['next'][-1], *asking])}")
    for name, remedy in (mending or {}).items():
        lines.append(terminal.hanging(f"remedy for {name}: {remedy}", 0))
    if answer["unset_secrets"] and answer.get("error", {}).get("code") != "secret_unset":
        lines.append(unset(answer["unset_secrets"]))
    return "\n".join(lines)


def unset(secrets: Sequence[str]) -> str:
    names = ", ".join(secrets)
    return f"warning: {names} unset: what needs it is refused, or is done without"


def heading(answer: Mapping[str, Any]) -> str:
    """The book, its workspace, and the inputs that differ from their defaults."""
    words = [answer["book"], answer["workspace"]]
    if inputs := answer.get("inputs"):
        from runbook.document.inputs import as_given

        words += (f"{name}={as_given(value)}" for name, value in inputs.items())
    return "  ".join(words)


def _total(answer: Mapping[str, Any]) -> list[str]:
    """What a plan costs in all, and of which steps that is not known."""
    work = answer["work"]
    reasons: dict[str, list[str]] = {}
    for entry in answer["steps"]:
        if entry["unknown"]:
            reasons.setdefault(entry["unknown"], []).append(entry["id"])
    if not any(work.values()) and not reasons:
        return []
    parts = [f"{units.size(work['bytes'])} to download", f"{units.size(work['disk'])} of disk"]
    parts += [f"about {units.duration(work['seconds'])}"] if work["seconds"] else []
    total = f"in all: {'at least ' if reasons else ''}{', '.join(parts)}"
    lines = [total] if any(work.values()) else []
    unknown = (f"unknown: {', '.join(names)} ({why})" for why, names in reasons.items())
    return [*lines, *(f"  {terminal.hanging(line, 2)}" for line in unknown)]


def status(answer: Mapping[str, Any]) -> str:
    rows = []
    for entry in answer["steps"]:
        detail = ""
        if entry["error"]:
            detail = entry["error"]["message"]
        elif entry["progress"]:
            detail = progress(entry["progress"])
        elif entry["question"]:
            detail = entry["question"]
        elif entry["seconds"]:
            detail = f"took {units.duration(entry['seconds'])}"
        rows.append((entry["id"], entry["state"], ago(entry["since"]), detail))
    lines = [heading(answer), terminal.table(rows)]
    if answer["run"] is not None:
        lines.append(f"run {answer['run']['id']}: {_state(answer['run'])}")
    if answer["served"]:
        lines.append(served(answer["served"]))
    failed = [e for e in answer["steps"] if e["error"] and e["state"] != "satisfied"]
    if answer.get("error"):  # that ends on standard error, with those of the steps
        told = {error.get("step") for error in (answer["error"], *answer["errors"])}
        failed = [entry for entry in failed if entry["id"] not in told]
    lines += [error_text({**entry["error"], "step": entry["id"]}) for entry in failed]
    return "\n".join(lines)


ENDS = {
    errors.DONE: "finished",
    errors.APPROVAL: "waits for approval",
    errors.CANCELLED: "cancelled",
    errors.SIGINT: "stopped (SIGINT)",
    errors.SIGTERM: "stopped (SIGTERM)",
    129: "stopped (SIGHUP)",
}


def _state(run: Mapping[str, Any]) -> str:
    """The state of a run in words; of a finished one, how it ended."""
    if run["state"] != "finished":
        return str(run["state"])
    return ENDS.get(run["exit_code"], f"failed (exit code {run['exit_code']})")


def following(answer: Mapping[str, Any]) -> list[str]:
    """The commands to call then that no remedy names, a line each."""
    remedies = [entry["error"]["remedy"] for entry in answer["steps"] if entry["error"]]
    named = {word for remedy in remedies for word in (remedy, *remedy.split("`")[1::2])}
    return [f"next: {command}" for command in answer["next"] if command not in named]


def logs(answer: Mapping[str, Any]) -> str:
    known = [error_text(answer["diagnosis"])] if answer["diagnosis"] is not None else []
    return "\n".join([*answer["lines"], *known])


def undone(answer: Mapping[str, Any]) -> str:
    """The plan of an undoing; of one that was carried out, step by step told before, the sum."""
    steps = answer["steps"]
    if not steps:
        return "nothing to undo"
    if all(entry["state"] == "planned" for entry in steps):
        return terminal.table(
            [(e["id"], e["decision"], _made(e["paths"], planned=True)) for e in steps]
        )
    paths = [path for e in steps if e["state"] == "undone" for path in e["paths"]]
    freed = sum(path["bytes"] for path in paths if not path["stays"])
    lines = [f"undone: {units.size(freed)} that they had made"]
    if kept := [path for path in paths if path["stays"]]:
        lines.append(f"left, being outside the workspace: {_made(kept)}")
    return "\n".join(lines)


def _made(paths: Sequence[Mapping[str, Any]], planned: bool = False) -> str:
    note = ", outside the workspace: stays unless `undo` removes it" if planned else ""
    return ", ".join(
        f"{path['path']} ({units.size(path['bytes'])}{note if path['stays'] else ''})"
        for path in paths
    )


def event(item: Mapping[str, Any]) -> str:
    """One event as a line."""
    skip = {"seq", "time", "type", "step", "attempt"}
    what = f"{item['type']:<18} {item.get('step', ''):<10}"
    if item["type"] == "attempt.progress":
        rest = progress(item)
    elif item["type"] == "attempt.notice":
        rest = item["message"]
    elif item.get("error"):
        rest = item["error"]["message"]
    elif item.get("reasons"):
        rest = f"{item.get('decision', '')}: {reason_text(item['reasons'])}"
    else:
        rest = " ".join(
            f"{k}={_words(v)}" for k, v in item.items() if k not in skip and v not in ("", None)
        )
    return f"{item['seq']:>5}  {item['time']}  {what}  {rest}".rstrip()


def _words(value: Any) -> str:
    """A value of an event in words: of many named ones their states, if they have one."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        states = (v.get("state", v) if isinstance(v, Mapping) else v for v in value.values())
        named = zip(value, states, strict=True)
        return (
            ", ".join(f"{name} {_words(v)}" for name, v in named if v not in ("", None)) or "none"
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "none"
    return str(value)


def served(found: Mapping[str, Any]) -> str:
    """What one does next with what is served."""
    lines = [f"endpoint {found['endpoint']}"]
    measured = []
    if found["tokens_per_second"] is not None:
        measured.append(f"{found['tokens_per_second']:.1f} tokens/s")
    if found["acceptance"] is not None:
        measured.append(f"{100 * found['acceptance']:.0f} % of drafted tokens accepted")
    told = {
        "model": found["model"],
        "speed": ", ".join(measured),
        "ask": found["request"],
        "stop": found["stop"],
        "restart": found["restart"],
        "at boot": found["at_boot"] or f"systemd starts it, as {found['unit']}",
    }
    return "\n".join([*lines, *(f"  {name:<8} {text}" for name, text in told.items() if text)])
