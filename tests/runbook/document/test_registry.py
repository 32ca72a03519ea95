"""Kinds of step, by name and by file."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from runbook.document.registry import StepUnavailable, known_facts, known_steps, load_step

MALFORMED = Path(__file__).parent / "malformed"


def test_known_names() -> None:
    assert known_steps() == sorted(known_steps())
    assert {"command", "preflight", "serve"} <= set(known_steps())
    assert {"cpu", "gpus"} <= set(known_facts())


@pytest.mark.parametrize("name", known_steps())
def test_each_kind_is_a_step(name: str) -> None:
    step = load_step(name, "")
    assert isinstance(step.version, str) and step.version
    assert step.Inputs.model_config.get("extra") == "forbid"
    assert list(inspect.signature(step.check).parameters) == ["ctx"]
    assert list(inspect.signature(step.apply).parameters) == ["ctx"]


def test_one_instance_for_all_uses() -> None:
    assert load_step("command", "/a") is load_step("command", "/a")


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(text)
    return folder


OWN = """
import dataclasses
@dataclasses.dataclass
class Note:
    text: str = "{text}"
class Own:
    version = "1"
    Inputs = Outputs = object
    note = Note()
    def check(self, ctx): ...
    def apply(self, ctx): ...
"""


def test_files_of_the_same_name_do_not_meet(tmp_path: Path) -> None:
    one = write(tmp_path / "one", OWN.format(text="one"))
    two = write(tmp_path / "two", OWN.format(text="two"))
    assert load_step("own.py:Own", one).note.text == "one"
    assert load_step("own.py:Own", two).note.text == "two"
    assert load_step("../two/own.py:Own", one).note.text == "two"
    assert load_step(f"{two}/own.py:Own", "/").note.text == "two"


BAD = [
    ("nothing", "", "unknown_step_kind"),
    ("own.py", OWN, "unknown_step_kind"),
    ("own.py:", OWN, "unknown_step_kind"),
    ("own.py:a b", OWN, "unknown_step_kind"),
    ("other.py:Own", OWN, "step_file_missing"),
    ("own.py:Onw", OWN, "step_class_missing"),
    ("own.py:dataclasses", OWN, "step_class_missing"),
    ("own.py:Note", OWN, "not_a_step"),
    ("own.py:Own", "x = = 1", "step_broken"),
    ("own.py:Own", "import nothing_of_that_name", "step_broken"),
    ("own.py:Own", "raise SystemError('no')", "step_broken"),
    ("own.py:Own", "class Own:\n  def __init__(self, x): ...", "step_broken"),
]


@pytest.mark.parametrize(("uses", "text", "code"), BAD)
def test_what_cannot_be_loaded(tmp_path: Path, uses: str, text: str, code: str) -> None:
    write(tmp_path, text)
    with pytest.raises(StepUnavailable) as caught:
        load_step(uses, tmp_path)
    assert caught.value.code == code
    assert caught.value.message and caught.value.remedy
    assert caught.value.exit_code == 1 and not caught.value.retryable
