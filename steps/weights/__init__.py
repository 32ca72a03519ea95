"""`uses: weights`: a model repository on this disk, every byte proven, its tensors whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from runbook.protocol import Model, Reason
from runbook.steps.common.hub.step import HubFiles


class Weights(HubFiles):
    """Makes `<workspace>/weights/<name>/`, or `destination`."""

    version = "1"
    repo_type = "model"
    parent = "weights"
    Inputs = Model("runbook.steps.weights.models:Inputs")
    Outputs = Model("runbook.steps.weights.models:Outputs")

    def problems(self, folder: Path, names: Sequence[str]) -> Iterator[Reason]:
        from runbook.steps.weights import tensors

        return tensors.problems(folder, names)
