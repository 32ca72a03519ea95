"""Which of the machines that a book is for this one is."""

from __future__ import annotations

from types import SimpleNamespace

from runbook.steps.preflight.gpus import suitable
from runbook.steps.preflight.machine import Machine

CONDITIONS = ("gpus", "gpu_name", "gpu_architecture", "gpu_memory_mib")


def fitted(machine: Machine, inputs: SimpleNamespace) -> SimpleNamespace:
    """The inputs with the conditions of the first alternative that this machine meets; of the
    first of all if it meets none. `chosen` is its name, `values` what it gives to later steps,
    `others` the alternatives besides it."""
    alternatives = inputs.hardware
    name = next(
        (n for n, told in alternatives.items() if _meets(machine, told, inputs.devices)), None
    )
    name = name or next(iter(alternatives), None)
    told = alternatives.get(name) or {}
    conditions = {key: told[key] for key in CONDITIONS if told.get(key) is not None}
    return SimpleNamespace(
        **{**vars(inputs), **conditions},
        chosen=name,
        values=told.get("values") or {},
        others=[other for other in alternatives if other != name],
    )


def _meets(machine: Machine, told: dict[str, object], devices: list[str]) -> bool:
    want = SimpleNamespace(**{key: told.get(key) for key in CONDITIONS}, devices=devices)
    return len(suitable(machine, want)) >= (want.gpus or 0)
