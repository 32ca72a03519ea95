"""Of which cards a figure of a profile tells something."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runbook.steps.common.flags.models import Figure
from runbook.steps.common.flags.reference import reference
from runbook.steps.common.models import Reference

DATA = yaml.safe_load(Path(__file__).with_name("reference.yaml").read_text())


def cards(text):
    count, _, rest = text.partition(" ")
    name, _, watts = rest.partition(" at ")
    return [{"name": name, "power_limit": float(watts) if watts else None}] * int(count)


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["name"])
def test_what_is_expected_of_one_stream(case):
    figures = [Figure.model_validate(f).model_dump() for f in case.get("figures", DATA["figures"])]
    found = reference(figures, cards(case["cards"]))
    assert found == case["expected"]
    if found is not None:
        Reference.model_validate(found)
