"""The profile that fits users and context, and the figures of all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from runbook.steps.common.flags.command import effective
from runbook.steps.common.flags.profiles import NoProfile, choose
from runbook.steps.serve import Serve
from runbook.steps.serve.models import Inputs

TABLE = {
    "long": {"max_model_len": 524288, "max_num_seqs": 2},
    "long-3": {"max_model_len": 524288, "max_num_seqs": 3},
    "mid": {"max_model_len": 262144, "max_num_seqs": 4},
    "many": {"max_model_len": 131072, "max_num_seqs": 8},
    "one": {"max_model_len": 131072, "max_num_seqs": 1},
}


@pytest.mark.parametrize(
    ("users", "context", "name"),
    [
        (1, 1, "one"),
        (1, 131072, "one"),
        (2, 131072, "many"),
        (8, 1000, "many"),
        (1, 131073, "mid"),
        (4, 262144, "mid"),
        (2, 524288, "long"),
        (3, 262145, "long-3"),
    ],
)
def test_the_smallest_that_holds_them(users, context, name):
    found, why = choose(TABLE, users, context)
    assert found == name
    assert f"asked are {users} users at {context:,} tokens" in why


@pytest.mark.parametrize(("users", "context"), [(9, 1), (1, 524289), (4, 262145)])
def test_what_none_holds_is_refused_with_all_there_are(users, context):
    with pytest.raises(NoProfile, match=r"long \(2 at 524,288\).*many \(8 at 131,072\)"):
        choose(TABLE, users, context)


GIVEN = {"vllm": "v", "model": "m", "served_model_name": "n", "profile": "auto", "profiles": TABLE}


def test_auto_is_served_as_the_profile_that_fits():
    inputs = Inputs(**GIVEN, users=3, context=200000).model_dump(mode="json")
    found = effective(SimpleNamespace(**inputs))
    assert (found.profile, found.max_num_seqs) == ("mid", 4)
    assert found.profile_reason.startswith("mid holds 4 users")


def test_what_no_profile_holds_is_told_before_anything_runs():
    with pytest.raises(ValidationError, match="no profile holds 9 users"):
        Inputs(**GIVEN, users=9)
    (reason,) = Serve().foresee({**GIVEN, "users": 9}, (), {"gpus": [], "gpu_links": []})
    assert (reason.code, reason.severity) == ("no_profile", "error")
    assert not list(Serve().foresee(GIVEN, ("users",), {"gpus": [], "gpu_links": []}))


def test_a_figure_says_where_it_is_from():
    figure = {"value": 85.5, "unit": "tokens/s", "kind": "reported", "cards": "2 x Max-Q"}
    with pytest.raises(ValidationError, match="source"):
        Inputs(**GIVEN | {"profiles": {"a": {**TABLE["one"], "figures": [figure]}}})
    with pytest.raises(ValidationError, match="measured"):
        wrong = {**figure, "kind": "guessed", "source": "nobody"}
        Inputs(**GIVEN | {"profiles": {"a": {**TABLE["one"], "figures": [wrong]}}})
