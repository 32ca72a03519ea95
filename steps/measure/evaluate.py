"""`runbook eval`: how well the served model of a book answers, beside published scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from runbook.errors import USAGE, error_dict
from runbook.files import write_json
from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common.shipped import shipped
from runbook.steps.measure import harness, scores, table
from runbook.steps.measure.measuring import surroundings
from runbook.steps.measure.served import Book, of_book

FOLDER = "eval"
OWN_MAX_TOKENS = 2048
MOSTLY = 0.5
"""Share of answers without a text above which a score says nothing of the model."""


class Published(TypedDict):
    """A score that others tell; `n` is null where they ran the whole set. `where`: which weights or
    cards."""

    score: float
    n: int | None
    source: str
    where: str


class Eval(TypedDict):
    """The answer of `eval`. `interval` holds 95 %; `empty` of the n answers had no text."""

    task: str
    title: str
    score: float
    n: int
    interval: list[float]
    empty: int
    thinking: bool
    seconds: float
    published: list[Published]
    about: dict[str, Any]
    result: str


def evaluate(
    *,
    book: Book,
    tell: Callable[[str], None],
    cache: Path,
    task: str,
    limit: int | None,
    thinking: bool,
    max_tokens: int | None,
    concurrency: int,
) -> dict[str, Any]:
    """What `VERBS` says it takes."""
    told, folders, here = _task(task)
    served = of_book(book)
    if told["tasks"] == ["runbook_humaneval"]:
        _require_sandbox()
    interpreter = harness.python(cache, tell)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    out = Path(book["workspace"]) / FOLDER / f"{stamp}-{Path(task).stem}"
    longest = told.get("thinking_max_tokens" if thinking else "max_tokens") or OWN_MAX_TOKENS
    generation = {
        "max_gen_toks": max_tokens or longest,
        "temperature": 0,
        "chat_template_kwargs": {"thinking": thinking},
    }
    tell(f"{told['title']}: ask; lm-eval says how far it is in {out}/lm-eval.log")
    began = time.monotonic()
    harness.evaluate(
        interpreter,
        served,
        told["tasks"],
        folders=folders,
        here=here,
        out=out,
        concurrency=concurrency,
        generation=generation,
        limit=limit,
        fewshot=told.get("fewshot"),
    )
    served.require_alive()
    found = scores.read(out, told.get("metric"))
    body = {
        "task": task,
        "title": told["title"],
        "score": found.score,
        "n": found.n,
        "interval": list(found.interval),
        "empty": found.empty,
        "thinking": thinking,
        "seconds": round(time.monotonic() - began, 1),
        "published": told.get("published", []),
        "about": served.about | surroundings(served) | {"generation": generation},
        "result": str(out / "result.json"),
    }
    write_json(out / "result.json", body)
    error = _says_nothing(found, out) if found.empty > MOSTLY * found.n else None
    return {"body": body, "text": words(body), "error": error}


def words(body: dict[str, Any]) -> str:
    """The score, and those of others, a line each."""
    low, high = body["interval"]
    rows = [["score", "n", "95 %", "of"]]
    rows.append(
        [
            f"{body['score']:.1%}",
            str(body["n"]),
            f"{low:.1%} to {high:.1%}",
            f"this server; {body['title']}",
        ]
    )
    for one in body["published"]:
        size = "all" if one["n"] is None else str(one["n"])
        rows.append([f"{one['score']:.1%}", size, "-", f"{one['source']} ({one['where']})"])
    empty = f"\n{body['empty']} answers have no text" if body["empty"] else ""
    return f"{table.columns(rows, left=1)}{empty}\n{body['result']}"


def known_tasks() -> dict[str, Any]:
    """The tasks that have a name, from tasks.yaml."""
    found: dict[str, Any] = shipped(_tasks() / "tasks.yaml")
    return found


def _tasks() -> Path:
    return Path(__file__).parent / "tasks"


def _task(name: str) -> tuple[dict[str, Any], list[str], Path]:
    """What is known of a task, the folders of its files, and the one its paths count from."""
    known = known_tasks()
    if name in known:
        return known[name], [known[name].get("folder") or str(_tasks())], Path.cwd()
    path = Path(name).absolute()
    try:
        named = next(
            line.partition(":")[2].strip().strip("'\"")
            for line in path.read_text().splitlines()
            if line.startswith("task:")
        )
    except (OSError, StopIteration) as problem:
        raise StepFailure(
            f"{name} is no task",
            code="unknown_task",
            exit_code=USAGE,
            cause=str(problem) or "the file has no `task:`",
            remedy=f"name one of {', '.join(known)}, or a task file of lm-eval (YAML)",
        ) from problem
    return {"title": named, "tasks": [named]}, [str(path.parent)], path.parent


def _require_sandbox() -> None:
    """Raises PreconditionNotMet if programs of the model cannot be kept in bounds here."""
    from runbook.steps.measure.tasks import sandbox

    try:
        sandbox.run("")
    except sandbox.Unavailable as problem:
        raise PreconditionNotMet(
            "programs that the model writes cannot be run safely here",
            code="no_sandbox",
            cause=str(problem),
            remedy="evaluate on a machine with Linux 5.13 or later and Landlock enabled, or ask "
            "for another task",
        ) from problem


def _says_nothing(found: scores.Score, out: Path) -> dict[str, Any]:
    return error_dict(
        "answers_empty",
        f"{found.empty} of {found.n} answers have no text: the score says nothing of the model",
        cause="the reasoning used the tokens up, or stands where the answer belongs",
        remedy="give more with --max-tokens, ask with --no-thinking, or set the reasoning parser",
        where=str(out),
    )
