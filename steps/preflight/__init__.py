"""Look at the machine before anything is made: what is missing is said at once, and all of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.files import read_json
from runbook.protocol import Check, Context, Model, PreconditionNotMet, Reason, Work
from runbook.remedy import joined
from runbook.steps.preflight.checks import examine, names
from runbook.steps.preflight.gpus import ACROSS_HOST, chosen_links, suitable
from runbook.steps.preflight.hardware import fitted
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.measures import REHEARSE
from runbook.steps.preflight.packages import packages

RECORD = "preflight/examined.json"


class Preflight:
    """`check` makes the quick checks at each run; `apply` makes all of them, once per machine
    and inputs, and keeps a record that it did."""

    version = "1"
    makes_nothing = True
    Inputs = Model("runbook.steps.preflight.models:Inputs")
    Outputs = Model("runbook.steps.preflight.models:Outputs")

    def check(self, ctx: Context) -> Check:
        machine = Machine(ctx.workspace, ctx.inputs.service)
        inputs = fitted(machine, ctx.inputs)
        reasons = examine(machine, inputs, thorough=ctx.deep)
        failed = any(reason.severity == "error" for reason in reasons)
        if not failed and read_json(ctx.workspace / RECORD) != _identity(machine, inputs):
            # What a first plan should say already, though it means asking the package indexes.
            told = list(packages(machine, inputs)) if "packages" in names(inputs) else []
            remarks = [reason.message for reason in told if reason.severity == "info"]
            message = "; ".join(["this machine was not examined yet", *remarks])
            unmet = [reason for reason in told if reason.severity == "error"]
            reasons += unmet or [Reason("not_examined", message)]
            failed = True
        if failed:
            return Check.unsatisfied(*reasons, work=Work(seconds=1.0))
        return Check.satisfied(_outputs(machine, inputs), *reasons)

    def apply(self, ctx: Context) -> None:
        from runbook.files import write_json

        machine = Machine(ctx.workspace, ctx.inputs.service)
        inputs = fitted(machine, ctx.inputs)
        reasons = examine(machine, inputs, thorough=True)
        made = names(inputs)
        ctx.log(f"{len(made)} checks: {', '.join(made)}")
        for reason in reasons:
            ctx.log(f"{reason.severity}: {reason.message}")
        unmet = [reason for reason in reasons if reason.severity == "error"]
        if unmet:
            raise _precondition(unmet, without_gpu=_needs_gpu(machine, inputs))
        record = ctx.workspace / RECORD
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, _identity(machine, inputs))

    def undo(self, ctx: Context) -> None:
        record: Path = ctx.workspace / RECORD
        record.unlink(missing_ok=True)
        if record.parent.is_dir() and not any(record.parent.iterdir()):
            record.parent.rmdir()


def _identity(machine: Machine, inputs: SimpleNamespace) -> dict[str, Any]:
    """What an examination was of: other inputs, GPUs or processors must be examined anew."""
    return {
        "inputs": vars(inputs),
        "cpu": machine.cpu["model"],
        "gpus": [gpu["uuid"] for gpu in machine.nvidia["gpus"]] if inputs.gpus else [],
        "driver": machine.nvidia["driver"] if inputs.gpus else None,
    }


def _needs_gpu(machine: Machine, inputs: SimpleNamespace) -> bool:
    return inputs.gpus is not None and not machine.nvidia["gpus"]


def _precondition(unmet: list[Reason], without_gpu: bool) -> PreconditionNotMet:
    if len(unmet) == 1:
        message, code, remedy = unmet[0].message, unmet[0].code, unmet[0].remedy
        cause = ""
    else:
        cause = "\n".join(reason.message for reason in unmet)
        message, code = f"{len(unmet)} preconditions are not met", "preconditions_not_met"
        remedy = joined(reason.remedy for reason in unmet)
    return PreconditionNotMet(
        message,
        code=code,
        cause=cause,
        remedy=REHEARSE if without_gpu else remedy,
        reasons=unmet,
    )


def _outputs(machine: Machine, inputs: SimpleNamespace) -> dict[str, Any]:
    variant = inputs.variant
    if variant == "auto":
        variant = "v4" if machine.cpu["avx512_bf16"] else "v3"
    return {
        "variant": variant,
        "reduced": variant == "v3",
        "cpu_isa": machine.cpu["isa"],
        "hardware": inputs.chosen,
        "values": inputs.values,
        "gpus": suitable(machine, inputs)[: inputs.gpus] if inputs.gpus else [],
        "env": environment(machine, inputs),
    }


def environment(machine: Machine, inputs: SimpleNamespace) -> dict[str, str]:
    """What the server's environment must say about this machine."""
    env = {}
    if inputs.gpus:
        chosen = suitable(machine, inputs)[: inputs.gpus]
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        if len(chosen) < len(machine.nvidia["gpus"]):
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu["uuid"] for gpu in chosen)
            if inputs.devices:
                # vLLM divides all cores among its own ranks. Where another server on the other
                # cards loaded too, 156 GB took 118 s; with a share for each card 49 s.
                cores = len(machine.cores) // len(machine.nvidia["gpus"])
                env["OMP_NUM_THREADS"] = str(max(1, cores))
        if any(
            link["nvlinks"] == 0 and link["kind"] in ACROSS_HOST
            for link in chosen_links(machine, inputs)
        ):
            env["NCCL_P2P_DISABLE"] = "1"
    if inputs.cpu_ranks:
        shares = share(machine.cores, machine.threads, inputs.cpu_ranks, inputs.cores_per_rank)
        env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, own)) for own in shares)
        env["OMP_NUM_THREADS"] = str(len(shares[0]))
    return env


def share(cores: list[int], threads: list[int], ranks: int, most: int | None) -> list[list[int]]:
    """The processors of each of vLLM's CPU workers, as many for each, `most` at most. By itself
    vLLM refuses several workers on one NUMA node. Hardware threads are shared out only where
    cores do not suffice."""
    numbers = cores if len(cores) >= ranks else threads
    size = max(1, len(numbers) // ranks)
    size = min(size, most or size)
    return [numbers[(rank * size) % len(numbers) :][:size] for rank in range(ranks)]
