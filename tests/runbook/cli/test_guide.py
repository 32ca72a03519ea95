"""What coding agents are told is what the program is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from runbook.cli import guide
from runbook.cli.verbs import verbs
from runbook.errors import EXIT_CODES
from tests.conftest import parse
from tests.runbook.helpers import write_book

ROOT = Path(__file__).parents[3]
SPAN = re.compile(r"`(runbook [^`]+)`")
WORDS = {"BOOK": "rehearsal", "STEP": "serve", "VERB": "plan", "SEQ": "0"}


@pytest.mark.parametrize(
    ("file", "text"), [("AGENTS.md", guide.agents_md), (guide.SKILL, guide.skill)]
)
def test_what_is_committed_is_what_is_made(file, text):
    assert (ROOT / file).read_text() == text(), "run `make schema`"


def test_the_page_for_agents_is_short_and_begins_with_the_loop():
    lines = guide.agents_md().splitlines()
    assert len(lines) <= 60
    assert max(map(len, (line for line in lines if not line.lstrip().startswith("|")))) <= 100
    assert lines[4].startswith("1. `runbook plan BOOK")


def test_the_skill_is_one_of_the_public_format():
    """name and description as agentskills.io wants them; short enough to be loaded whole."""
    _, front, body = guide.skill().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["name"] == guide.SKILL.parent.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", told["name"])
    assert 1 <= len(told["description"]) <= 1024
    assert len(body.splitlines()) < 500 and len(body) < 12000
    for verb in verbs():
        assert f"- `runbook {verb}" in body
    for code in EXIT_CODES:
        assert f"| {code} |" in body


@pytest.mark.parametrize("text", [guide.agents_md(), guide.skill().split("## Verbs")[0]])
def test_commands_that_agents_are_told_are_taken(text):
    for command in SPAN.findall(" ".join(text.split())):
        words = (WORDS.get(word, word) for word in re.sub(r"[][]|\.\.\.", "", command).split())
        parse(" ".join(words))


def test_the_skill_is_installed_beside_nobody_elses(cli):
    answer = cli.json("skill", "--install")
    path = cli.home / guide.SKILL
    assert answer["path"] == str(path) and path.read_text() == guide.skill()
    path.write_text(guide.skill().replace("Verbs", "Older verbs"))
    cli.json("skill", "--install")
    assert path.read_text() == guide.skill()
    path.write_text("---\nname: runbook\ndescription: another one\n---\n")
    refused = cli.json("skill", "--install", code=3)
    assert refused["error"]["code"] == "skill_exists"
    assert "another one" in path.read_text()


def test_a_book_has_a_page_of_its_own(cli):
    cli.book = write_book(
        cli.home,
        {"id": "one"},
        {"id": "two", "approve": "Get it?"},
        inputs={"size": {"type": "integer", "default": 3}, "name": {"type": "string"}},
        secrets=["MY_TOKEN"],
    )
    text = cli.run("agents-md", AI_AGENT="1").stdout
    assert text.rstrip("\n") == cli.json("agents-md")["text"].rstrip("\n")
    assert f"`runbook plan {cli.book} --brief`" in text
    assert (
        "| `size` | integer | `3` |" in text
        and "| `name` | string | none: it must be set |" in text
    )
    assert "`one` (work.py:Work), `two` (work.py:Work, asks for approval)." in text
    assert "MY_TOKEN" in text
