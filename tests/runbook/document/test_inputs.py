"""Where the values of inputs come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runbook.document.compile import compile_book
from runbook.document.errors import DocumentInvalid
from runbook.document.inputs import as_given

BOOK = """
runbook: 1
name: demo
inputs:
  name: {type: string, default: deep}
  mode: {type: string, default: fast, enum: [fast, slow]}
  jobs: {type: integer, default: 4}
  share: {type: number, default: 0.5}
  thinking: {type: boolean, default: false}
  build.dir: {type: path, default: out}
  build.flags: {type: list, default: []}
  port: {type: integer, default: null}
secrets: [HF_TOKEN]
steps:
  - {id: one, uses: command, with: {run: make}}
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "runbook.yaml"
    path.write_text(BOOK)
    return path


def inputs(book: Path, sets: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Any:
    return compile_book(str(book), sets, None, env or {})["inputs"]


def problems(book: Path, sets: Sequence[str], env: Mapping[str, str]) -> list[str]:
    with pytest.raises(DocumentInvalid) as caught:
        inputs(book, sets, env)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("name", "a b", "a b"),
        ("jobs", 7, "7"),
        ("share", 0.25, "0.25"),
        ("thinking", True, "true"),
        ("build.flags", ["2", "3"], "2,3"),
        ("build.flags", ["-O2 -g"], "-O2 -g"),
        ("build.flags", [], "[]"),
        ("build.flags", ["a,b", "c"], '["a,b", "c"]'),
        ("build.flags", [" a"], '[" a"]'),
        ("build.flags", [""], '[""]'),
        ("build.flags", ["[x]"], '["[x]"]'),
    ],
)
def test_a_value_is_shown_as_it_is_set(book: Path, name: str, value: Any, text: str) -> None:
    assert as_given(value) == text
    found = inputs(book, [f"{name}={text}"])
    for part in name.split("."):
        found = found[part]
    assert found == value


def test_defaults(book: Path) -> None:
    assert inputs(book) == {
        "name": "deep",
        "mode": "fast",
        "jobs": 4,
        "share": 0.5,
        "thinking": False,
        "build": {"dir": "out", "flags": []},
        "port": None,
    }


GIVEN = [
    ("name", "", ""),
    ("name", "a=b=c", "a=b=c"),
    ("name", "{{ inputs.jobs }}", "{{ inputs.jobs }}"),
    ("mode", "slow", "slow"),
    ("jobs", "12", 12),
    ("jobs", "-1", -1),
    ("share", "1e-3", 0.001),
    ("share", "2", 2),
    ("thinking", "true", True),
    ("build.dir", "/srv/x", "/srv/x"),
    ("build.dir", "~/x", "/home/me/x"),
    ("build.flags", "a, b", ["a", "b"]),
    ("build.flags", '["a,b", "c"]', ["a,b", "c"]),
    ("build.flags", "", []),
    ("port", "8000", 8000),
]


def leaf(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize(("name", "text", "value"), GIVEN)
def test_given_by_set(book: Path, name: str, text: str, value: Any) -> None:
    assert leaf(inputs(book, [f"{name}={text}"], {"HOME": "/home/me"}), name) == value


@pytest.mark.parametrize(("name", "text", "value"), [g for g in GIVEN if g[1]])
def test_given_by_environment(book: Path, name: str, text: str, value: Any) -> None:
    variable = "RUNBOOK_" + name.upper().replace(".", "_")
    assert leaf(inputs(book, [], {"HOME": "/home/me", variable: text}), name) == value


def test_set_wins_and_the_last_one_does(book: Path) -> None:
    env = {"RUNBOOK_JOBS": "3"}
    assert inputs(book, [], env)["jobs"] == 3
    assert inputs(book, ["jobs=5", "jobs=6"], env)["jobs"] == 6
    assert inputs(book, [], {"RUNBOOK_JOBS": ""})["jobs"] == 4


def test_a_relative_path_counts_from_the_current_folder(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inputs(book, ["build.dir=x/y"])["build"]["dir"] == str(tmp_path / "x/y")


WRONG = """
--set jbos: there is no input `jbos`; expected `name`, `mode`, `jobs`, `share`, `thinking`, \
`build.dir`, `build.flags` or `port`; did you mean `jobs`?
--set jobs: inputs.jobs: got `four`; expected a whole number
--set mode: inputs.mode: `fats` is not one of the choices; expected `fast` or `slow`; \
did you mean `fast`?
--set thinking: there is no `=`; expected --set NAME=VALUE
--set thinking: inputs.thinking: got `yes`; expected `true` or `false`
--set share: inputs.share: got `nan`; expected a number
environment variable RUNBOOK_BUILD_FLAGS: inputs.build.flags: got `[1]`; \
expected a list of texts: a,b,c or a JSON list
"""


def test_all_errors_at_once(book: Path) -> None:
    found = problems(
        book,
        ["jbos=3", "jobs=four", "mode=fats", "thinking", "thinking=yes", "share=nan"],
        {"RUNBOOK_BUILD_FLAGS": "[1]"},
    )
    assert sorted(found) == sorted(WRONG.strip().split("\n"))


@pytest.mark.parametrize("text", ["HF_TOKEN=hf_abc", "hf_token=hf_abc", " HF_TOKEN = hf_abc"])
def test_a_secret_is_not_taken_and_not_shown(book: Path, text: str) -> None:
    (found,) = problems(book, [text], {})
    assert found == (
        "--set HF_TOKEN: HF_TOKEN is a secret and is only read from the environment; "
        "expected HF_TOKEN in the environment"
    )


def test_an_unknown_name_shows_no_value(book: Path) -> None:
    (found,) = problems(book, ["HF_TOKN=hf_abc"], {})
    assert "hf_abc" not in found


def test_secrets_are_names_only(book: Path) -> None:
    compiled = compile_book(str(book), [], None, {"HF_TOKEN": "hf_abc"})
    assert compiled["secrets"] == ["HF_TOKEN"]
    assert "hf_abc" not in str(compiled)


def test_an_input_without_value(tmp_path: Path) -> None:
    book = tmp_path / "b.yaml"
    book.write_text(
        "runbook: 1\nname: demo\ninputs:\n  repo: {type: string}\n  jobs: {type: integer}\n"
        "steps:\n  - id: one\n    uses: command\n    with: {run: ['{{ inputs.repo }}']}\n"
    )
    found = problems(book, ["jobs=x"], {})
    missing = "`repo` has no value; expected --set repo=STRING or RUNBOOK_REPO in the environment"
    assert found == [
        "--set jobs: inputs.jobs: got `x`; expected a whole number",
        f"{book}:4:3: inputs.repo: the input {missing}",
    ]
    compiled = compile_book(str(book), [], None, {}, require_inputs=False)
    assert compiled["steps"][0]["with"]["run"] == [{"$ref": ["inputs", "repo"]}]
    compiled = compile_book(str(book), ["repo=a/b", "jobs=1"], None, {})
    assert compiled["steps"][0]["with"]["run"] == ["a/b"]
