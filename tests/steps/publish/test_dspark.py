"""The DSpark draft of the rehearsal's checkpoint: what it counts, and what the book expects."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from runbook.document.template import compile_value, render
from runbook.steps.checkpoint.lint import lint
from runbook.steps.checkpoint.targets import Target
from runbook.steps.publish import checkpoint
from runbook.steps.publish.checkpoint.script import (
    ANSWER,
    DEPTH,
    END_THINK,
    REASONING,
    SCRIPTS,
    Part,
)

LINES = SCRIPTS["v4"]
BLOCKS = [
    (ANSWER, None, (20, 13)),
    ((*REASONING, END_THINK, *ANSWER), None, (35, 23)),
    (LINES.call, None, (15, 10)),
    (ANSWER, "stage 1", (25, 12)),
    (ANSWER, "context", (25, 12)),
    (LINES.call, "stage 2", (15, 8)),
]


@pytest.mark.parametrize(("words", "lost", "counts"), BLOCKS)
def test_blocks_are_counted_as_the_server_counts_them(words, lost, counts) -> None:
    """The counts are those of a running vLLM 0.32.0, of whole drafts and of damaged ones."""
    assert LINES.blocks(words, lost) == counts


def test_each_part_of_a_dspark_draft_is_needed_for_the_answer() -> None:
    whole, _ = LINES.blocks(ANSWER)
    for part in get_args(Part):
        assert LINES.blocks(ANSWER, part)[0] > whole, part
    assert set(LINES.known("markov")) < set(LINES.transitions)


def test_the_linter_takes_the_dspark_draft_for_complete(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, "v4", draft="dspark")
    found = lint(tmp_path, Target("0.32.0-cpu", "0.32.0-cpu"))
    assert [finding.id for finding in found] == ["dspark_draft"]


@pytest.mark.parametrize(
    ("draft", "counts"),
    [
        ("mtp", SCRIPTS["v3"].drafts(ANSWER)),
        ("mtp", SCRIPTS["v4"].drafts(ANSWER)),
        ("dspark", SCRIPTS["v4"].blocks(ANSWER)),
    ],
)
def test_the_book_expects_the_counts_of_its_draft(draft: str, counts: tuple[int, int]) -> None:
    book = yaml.safe_load((files("runbook") / "books" / "rehearsal.yaml").read_text())
    step = {entry["id"]: entry["with"] for entry in book["steps"]}
    scope = {"inputs": {"profile_file": None, "draft": draft}}

    def rendered(value: Any) -> Any:
        return render(compile_value(value), scope)

    expected = rendered(step["smoke"]["speculation"]["expect"])
    assert (expected["drafted"], expected["accepted"]) == counts
    speculation = rendered(step["serve"]["speculative_config"])
    depth = {"mtp": 1, "dspark": DEPTH}[draft]
    assert speculation == {"method": draft, "num_speculative_tokens": depth}
