"""What README and AGENTS.md tell people to type. Each command is run as it stands, in a copy of a
home in which README's own book has run; one that takes a GPU, a hub or an hour is taken by the
program's own parser. `make` and the installers are asked for what they would do."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from runbook.cli.main import cli as program
from runbook.cli.verbs import verbs
from runbook.document.compile import BOOKS
from runbook.errors import EXIT_CODES
from tests.conftest import Cli, parse
from tests.steps.mtp.tiny import v4

ROOT = Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "AGENTS.md")}
README = TEXTS["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
ROW = re.compile(r"^\| ((?:`[^`|]+`(?:, )?)+) \| (.+) \|$", re.M)

# What stands for the words in capitals.
WORDS = {
    "BOOK": "runbook.yaml", "STEP": "count", "S": "count", "STEP=DIGEST": "count", "SEQ": "0",
    "N": "2", "k=v": "url=corpus.txt", "key=value": "url=corpus.txt", "key": "url", "KEY": "url",
    "FILE": "failed.log", "CHECKPOINT": "checkpoint", "TARGET": "0.33.0", "VERB": "plan",
    "SHELL": "bash", "TASK": "gsm8k",
}  # fmt: skip
VALUES = {  # of options that take a value, where the text has none
    "--target": "0.33.0", "--series": "0.33.0", "--lock": "0.33.0", "--set": "url=corpus.txt",
}  # fmt: skip

# Exit codes other than 0, in that home.
CODES = {
    "destroy BOOK STEP": 5,  # shows its plan
    "cache clean": 5,
    "client BOOK": 3,  # nothing is served there
    "run --unset key": 2,  # it has no default
    "new NAME": 2,  # asks of which model
    # The book serves nothing.
    **dict.fromkeys(
        (
            "bench",
            "bench BOOK",
            "bench BOOK --json",
            "tune",
            "tune BOOK",
            "eval --task TASK",
            "eval BOOK --task TASK",
        ),
        3,
    ),
    "eval BOOK --task gsm8k --limit 100": 3,
}
# What is only parsed, and why.
PARSED = {
    "run rehearsal": "the end-to-end test runs it: a build of vLLM",
    "run rehearsal --set draft=dspark": "as above",
    "plan rehearsal": "asks the configured package indexes",
    "mcp": "its own test talks to it",
    "new my-model --from OWNER/NAME --users 4 --context 32768": "asks the hub",
    "new NAME --from CHECKPOINT": "asks for more",
    "run ./my-model.yaml": "a book that the hub has the model of",
}


def spans(text: str) -> list[str]:
    """What stands in single backticks outside fenced blocks, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]


def blocks(text: str) -> list[str]:
    """The lines of fenced blocks, without prompt and comment."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for line in lines]


def table() -> dict[str, tuple[str, list[str]]]:
    """README's table of verbs: how each is called, and the options that are told of it."""
    found = {}
    for forms, told in ROW.findall(README):
        for form in SPAN.findall(forms):
            options = [span for span in SPAN.findall(told) if span.startswith("--")]
            if (verb := form.split()[0]) in verbs():
                found[verb] = (form, options)
    return found


def written() -> list[str]:
    """Every command of runbook in both texts, without the program's name: whole ones, verbs with
    their options, and the forms of the table."""
    found = []
    for text in TEXTS.values():
        for command in [*spans(text), *blocks(text)]:
            words = command.split()
            if words and words[0] in ("runbook", ".venv/bin/runbook"):
                words = words[1:]
            elif len(words) < 2 or words[0] not in verbs() or not words[1].startswith("--"):
                continue
            found += [" ".join(words)] if words else []
    forms = [form for form, _ in table().values()]
    return list(dict.fromkeys(re.sub(r"[][]|\.\.\.", "", c) for c in [*found, *forms]))


def filled(command: str) -> list[str]:
    words = command.replace("--timeout S", "--timeout 60").split()
    return [*(WORDS.get(word, word) for word in words), *filter(None, [VALUES.get(words[-1])])]


def example(language: str) -> str:
    (found,) = (block for name, block in FENCE.findall(README) if name == language)
    return found


def program_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh -e\n{script}")
    path.chmod(0o755)


@pytest.fixture(scope="session")
def example_home(tmp_path_factory):
    """A home in which README's book has run: `curl` takes a file, `rsync` copies to a folder."""
    home = tmp_path_factory.mktemp("documents")
    programs = home / "programs"
    programs.mkdir()
    program_in(programs, "curl", '[ "$1 $2" = "--fail -o" ]\ncp "$HOME/$4" "$3"\n')
    program_in(programs, "rsync", '[ "$2" = archive:/corpora/ ]\ncp "$1" "$HOME/archive"\n')
    (home / "runbook.yaml").write_text(example("yaml"))
    (home / "corpus.txt").write_text("one\ntwo\nthree\n")
    (home / "failed.log").write_text("ERROR: Could not find a version of torch\nKilled\n")
    return home


def at(home: Path) -> Cli:
    cli = Cli(home)
    cli.environment["PATH"] = f"{home / 'programs'}:{os.environ['PATH']}"
    return cli


@pytest.fixture(scope="session")
def ran(example_home):
    """A copy of it, after the two runs that the approval takes. It is put back for each command,
    for a workspace belongs to the document that made it, by its path."""
    snapshot = example_home.with_name(f"{example_home.name}-as-ran")
    cli = at(example_home)
    waits = cli.json("run", "--set", "url=corpus.txt", code=5)
    assert waits["steps"][-1]["question"] == "Publish 3 lines?"
    assert not (example_home / "archive").exists()
    assert cli.json("run", "--approve", "publish")["ok"]
    assert (example_home / "archive").read_text() == "one\ntwo\nthree\n"
    shutil.copytree(example_home, snapshot, symlinks=True)
    return snapshot


def test_the_texts_have_commands():
    assert len(written()) > 40
    assert set(PARSED) <= set(written())
    assert set(CODES) <= set(written())


@pytest.mark.parametrize("command", written())
def test_a_command_is_one_and_works(command, ran, example_home):
    words = filled(command)
    parse(shlex.join(["runbook", *words]))
    if command in PARSED:
        return
    home = example_home
    shutil.rmtree(home)
    shutil.copytree(ran, home, symlinks=True)
    if "checkpoint" in words:
        v4().write(home / "checkpoint")
    if words[0] == "profiles":
        words = ["deepseek-v4-flash" if word == "runbook.yaml" else word for word in words]
    cli = at(home)
    cli.run(*words, code=CODES.get(command, 0))
    if "--detach" in words:
        cli.run("wait", "--timeout", "60")


OPTIONS = [(verb, option) for verb, (_, options) in table().items() for option in options]


@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_an_option_of_the_table_is_one_of_its_verb(verb, option):
    form = table()[verb][0]
    words = [*filled(re.sub(r"[][]|\.\.\.", "", form)), *filled(option)]
    parse(shlex.join(["runbook", *words]))


def test_the_table_has_every_verb():
    assert set(table()) == set(verbs())


def test_every_option_that_is_told_is_one():
    """Also those that stand alone; an input that is set is one of a shipped book."""
    commands = {name: program.get_command(None, name) for name in verbs()}
    known = {flag for command in commands.values() for p in command.params for flag in p.opts}
    books = [yaml.safe_load(path.read_text()) for path in BOOKS.glob("*.yaml")]
    inputs = {name for book in books for name in book["inputs"]} | {"k", "key", "python"}
    for text in TEXTS.values():
        for span in spans(text):
            if not span.startswith("--"):
                continue
            words = span.split()
            assert {word for word in words if word.startswith("--")} <= known, span
            for flag, value in itertools.pairwise(words):
                assert flag != "--set" or value.partition("=")[0] in inputs, span


@pytest.mark.parametrize("name", TEXTS)
def test_every_target_of_make_is_one(name):
    """With what it would do said by make itself, nothing done."""
    found = [c for c in [*spans(TEXTS[name]), *blocks(TEXTS[name])] if c.startswith("make ")]
    assert found
    for command in dict.fromkeys(found):
        argv = ["make", "--dry-run", *command.split()[1:]]
        process = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 0, (command, process.stderr)


@pytest.mark.parametrize("name", TEXTS)
def test_the_exit_codes_are_those_of_the_program(name):
    (head,) = re.findall(r"^ *\| (?:exit )?code \|.*\n(?: *\|.*\n)+", TEXTS[name], re.M)
    found = [
        int(n) for row in re.findall(r"^ *\| ([\d, ]+) \|", head, re.M) for n in row.split(",")
    ]
    assert sorted(found) == sorted(EXIT_CODES)


def test_the_example_step_works(cli):
    (cli.home / "steps.py").write_text(example("python"))
    (cli.home / "target").write_text("here")
    step = {"id": "link", "uses": "steps.py:Link", "with": {"target": str(cli.home / "target")}}
    step["with"]["name"] = "name"
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(yaml.safe_dump({"runbook": 1, "name": "links", "steps": [step]}))
    link = cli.workspace / "name"
    for decision in ("run", "skip"):
        assert cli.json("run")["steps"][0]["decision"] == decision
        assert link.read_text() == "here"
    link.unlink()
    assert "does not lead to" in cli.json("check", code=3)["steps"][0]["reasons"][0]["message"]
    assert cli.json("run")["steps"][0]["decision"] == "run"
    cli.json("destroy", "--yes")
    assert not link.is_symlink()
