"""Every remedy that the catalogue of known failures and the code of steps and engine can give is in
each shipped book, a command that the program takes, or words for a person. Those of the rehearsal,
which has a step of nearly every kind, are carried out too (dry)."""

from __future__ import annotations

import ast
import functools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import runbook
from runbook.cli.target import Given, Target
from runbook.cli.verbs import verbs
from runbook.document.compile import BOOKS
from runbook.remedy import COMMAND, Remedy
from runbook.steps import STEPS
from runbook.steps.common.diagnoses import catalogue
from tests.conftest import Cli, parse

PACKAGE = Path(runbook.__file__).parent
SHIPPED = sorted(path.stem for path in BOOKS.glob("*.yaml"))
ACTING = {"--approve", "--jobs"}
"""Options of `run` that `plan` does not take; each has a value."""


SHARES = 8
"""Tests among which the commands that are carried out are divided: they take a minute."""


def literal(node: ast.expr) -> str | None:
    """The text of an expression, as far as it is in the code; what is computed stands as `1`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) or "1" for part in node.values)
    return None


def written() -> Iterator[tuple[str, Remedy]]:
    """The remedies that stand in the code, with the kind of step in whose folder."""
    for folder in (PACKAGE, PACKAGE / "steps"):
        for path in sorted(folder.rglob("*.py")):
            place = path.relative_to(PACKAGE)
            code = path.read_text()
            if "Remedy(" not in code:
                continue
            for node in ast.walk(ast.parse(code)):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) != "Remedy":
                    continue
                given = dict(zip(("verb", "arguments", "kind", "text"), node.args, strict=False))
                given |= {word.arg: word.value for word in node.keywords if word.arg}
                arguments = given.get("arguments", ast.Tuple([]))
                verb = literal(given["verb"])
                if verb is None or not isinstance(arguments, ast.Tuple):
                    continue
                words = [literal(word) for word in arguments.elts]
                if None in words:
                    continue
                kind = literal(given["kind"]) if "kind" in given else ""
                text = (literal(given["text"]) if "text" in given else "") or COMMAND
                uses = place.parts[1] if place.parts[0] == "steps" else ""
                yield uses, Remedy(verb, tuple(map(str, words)), kind or "", text)


def known() -> Iterator[tuple[str, Remedy]]:
    """Those of the catalogue, with each kind of step whose failures they are."""
    for diagnosis in catalogue():
        if isinstance(diagnosis.remedy, Remedy):
            for uses in diagnosis.steps:
                yield uses, diagnosis.remedy


@functools.cache
def everywhere() -> list[tuple[str, Remedy]]:
    return [*known(), *written()]


def test_they_are_found():
    assert len([*known()]) > 100
    assert len([*written()]) > 60
    assert {"run", "logs", "check", "wait", "status"} <= {remedy.verb for _, remedy in everywhere()}


def printed(book: str, workspace: Path) -> list[str]:
    """All commands that the remedies are in a book."""
    target = Target("status", Given(book, workspace))
    there = {step["uses"]: step["id"] for step in target.book["steps"]}
    found: dict[str, None] = {}
    for uses, remedy in everywhere():
        if uses in STEPS and uses not in there:
            continue  # of no step of this book
        step = there.get(uses, "")
        said = target.renderer.text(remedy, step)
        assert said and "{step}" not in said, remedy
        found |= dict.fromkeys(target.renderer.commands(remedy, step))
    return list(found)


@pytest.mark.parametrize("book", SHIPPED)
def test_the_program_takes_every_command(book, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNBOOK_BASE", "owner/name")
    found = printed(book, tmp_path)
    assert any(f"runbook run {book} --from " in command for command in found)
    for command in found:
        parse(command)


@pytest.mark.harness
@pytest.mark.parametrize("share", range(SHARES))
def test_every_command_can_be_carried_out(tmp_path, share):
    cli = Cli(tmp_path)
    for command in printed("rehearsal", tmp_path / "workspace")[share::SHARES]:
        _, verb, *arguments = shlex.split(command)
        done = cli.run(*dry(verb, arguments), "--json", code=None)
        answer = json.loads(done.stdout.splitlines()[-1])
        code = (answer.get("error") or {}).get("code")
        assert done.returncode not in (2, 70) or code == "no_log", (command, answer)


def dry(verb: str, arguments: list[str]) -> list[str]:
    """The same without doing it: `run` is planned, `destroy` shown, `wait` ends at once."""
    if verb != "run":
        return [verb, *(word for word in arguments if word != "--yes")]
    words = iter(arguments)
    kept: list[str] = []
    for word in words:
        if word in ACTING:
            next(words)
        elif word not in ("--yes", "--detach", "--adopt-workspace"):
            kept.append(word)
    return ["plan", *kept]


def test_verbs_of_remedies_are_verbs():
    assert {remedy.verb for _, remedy in everywhere()} <= verbs().keys()
