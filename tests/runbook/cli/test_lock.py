"""`runbook lock`, and what a step of the user's own may do in it."""

from __future__ import annotations

import pytest

RESOLVING = """\
from pydantic import BaseModel
from runbook.protocol import Check


class Inputs(BaseModel):
    pass


class Named:
    version = "1"
    Inputs = Outputs = Inputs

    def check(self, ctx):
        return Check.satisfied()

    def apply(self, ctx):
        pass

    def resolve(self, ctx, anew):
        print("noise")
        {body}
"""
ODD = {
    "raise SystemExit(0)": "check_crashed",
    "import os; os.abort()": "check_crashed",
    "return {'n': 'main'}": "lock_value",
    "return {'n': 7}": "lock_value",
    "return [1, 2]": "check_crashed",
    "return None": "check_crashed",
    "return {'n': object()}": "check_crashed",
}


@pytest.mark.parametrize("body", ODD)
def test_a_step_that_resolves_oddly_is_named(body, cli):
    (cli.home / "named.py").write_text(RESOLVING.format(body=body))
    cli.book = cli.home / "book.yaml"
    cli.book.write_text('runbook: 1\nname: b\nsteps: [{id: one, uses: "named.py:Named"}]\n')
    answer = cli.json("lock", code=1)
    assert answer["error"]["code"] == ODD[body] and "step one" in answer["error"]["message"]
    assert not cli.book.with_name("book.lock.json").exists()
