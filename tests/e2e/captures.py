"""Compares captures: python captures.py CHECKPOINT PREFIX MOMENTS TOKENS, where torch is.

Prints for each expert the counts of both, their held-out rows, and |H - H'| / |H'| of the inputs
of the gate and up projections and of the down projection.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch

LAUNCH = Path(__file__).parents[2] / "steps/mtp/retrofit/launch.py"
spec = importlib.util.spec_from_file_location("launch", LAUNCH)
launch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)
launch.package()

from mtp_retrofit.calibration import Calibration  # noqa: E402
from mtp_retrofit.source import Experts  # noqa: E402

checkpoint, prefix, *folders = sys.argv[1:]
experts = Experts.open(Path(checkpoint), prefix)
both = [Calibration(Path(folder), torch.device("cpu")) for folder in folders]
found = []
for expert in range(experts.count):
    weights = experts.weights(expert)
    one, two = (calibration.inputs(expert, weights) for calibration in both)
    pairs = ((one.into.hessian(), two.into.hessian()), (one.out.hessian(), two.out.hessian()))
    found.append(
        {
            "count": [one.into.count, two.into.count],
            "held": [len(one.held), len(two.held)],
            "difference": [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs],
        }
    )
print(json.dumps(found))
