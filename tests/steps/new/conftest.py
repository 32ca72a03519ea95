"""`runbook new` on machines that there are not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from runbook.cli.main import invoke
from runbook.steps.new import verb
from runbook.steps.new.machine import GIB, Machine
from tests.conftest import validate


def machine(told: dict | None) -> Machine:
    if told is None:
        return Machine(memory=64 * GIB, isa="avx2", free=10**12)
    return Machine(
        gpus=told["gpus"],
        gpu_name=told["name"],
        architecture=told["architecture"],
        gpu_memory=told["gib"] * GIB,
        nvlink=told["nvlink"],
        memory=512 * GIB,
        isa="amx",
        free=10**13,
    )


@pytest.fixture
def new(tmp_path, monkeypatch, capsys):
    """`runbook new NAME` in a folder of its own: (exit code, answer, the book's text or None)."""

    def call(name, *words, on=None, **options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(verb, "here", lambda: machine(on))
        told = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", str(v))]
        code = invoke(["new", name, *map(str, words), *told, "--json"])
        answer = json.loads(capsys.readouterr().out)
        validate("new", answer)
        book = tmp_path / f"{name}.yaml"
        return SimpleNamespace(code=code, answer=answer, error=answer.get("error"), book=book)

    return call


def refused(made: SimpleNamespace, case: dict) -> None:
    """No book, and the error that a case of the table names, in its words."""
    assert made.error and made.error["code"] == case["refused"], made.answer
    text = " ".join((made.error["message"], made.error["cause"], made.error["remedy"]))
    for said in case["says"]:
        assert said in text
    assert not made.book.exists()
