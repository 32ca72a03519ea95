"""Try the collectives that a server will make, over the very devices and environment: a path that
hangs or adds up wrongly is found in a minute, and not after the weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import geometric_mean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from runbook.files import read_json, write_json
from runbook.protocol import Check, Context, Model, Reason, StepFailure, Work
from runbook.remedy import Remedy
from runbook.steps.common import nvml

if TYPE_CHECKING:
    from runbook.steps.collectives.ranks import Result, Variant

RECORD = "collectives/found.json"
VARIANT_SECONDS = 25.0
"""What one variant takes, most of it imports."""
PATIENCE = 3.0
"""FlashInfer compiles its PCIe all-reduce, and tunes it for each size."""
NEARLY_AS_FAST = 1.1
WITH_MULTICAST = ("10",)
"""Compute capabilities, by major, on which vLLM's custom all-reduce may use NVLink multicast."""


class Collectives:
    """`check` reads the record of what was found; it holds while build, devices, driver and
    environment are the same. What cannot be probed on this machine is said, and holds."""

    version = "1"
    Inputs = Model("runbook.steps.collectives.models:Inputs")
    Outputs = Model("runbook.steps.collectives.models:Outputs")

    def check(self, ctx: Context) -> Check:
        if (why := _nothing_to_probe(ctx)) is not None:
            return Check.satisfied(
                {"env": {}, "fastest": None, **dict.fromkeys(VERDICTS.values()), "table": []},
                Reason("not_probed", why, "", "info"),
            )
        record = read_json(ctx.workspace / RECORD)
        if not isinstance(record, dict) or record.get("identity") != _identity(ctx):
            work = Work(seconds=VARIANT_SECONDS * len(_variants(ctx)))
            reason = Reason("not_probed", "the collectives of these devices were not tried yet")
            return Check.unsatisfied(reason, work=work)
        return Check.satisfied(record["outputs"], *_remarks(record["outputs"]["table"]))

    def apply(self, ctx: Context) -> None:
        if _nothing_to_probe(ctx) is not None:
            return
        results = _probe(ctx)
        usable = _usable(results)
        if not usable:
            raise _broken(results)
        fastest = choose(usable)
        chosen = next(v for v in _variants(ctx) if v.name == fastest.variant)
        ctx.log(f"the fastest that is right: {fastest.variant}")
        verdicts = {result.variant: result.verdict for result in results}
        outputs = {
            "env": {**chosen.env, **OPTED.get(fastest.variant, {})},
            "fastest": fastest.variant,
            **{name: verdicts.get(variant) for variant, name in VERDICTS.items()},
            "table": [result.dump() for result in results],
        }
        record = ctx.workspace / RECORD
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"identity": _identity(ctx), "outputs": outputs})

    def undo(self, ctx: Context) -> None:
        record = ctx.workspace / RECORD
        record.unlink(missing_ok=True)
        if record.parent.is_dir() and not any(record.parent.iterdir()):
            record.parent.rmdir()


WITH_PEERS, WITHOUT_PEERS = "NCCL with peer access", "NCCL without peer access"
CUSTOM = "vLLM's custom all-reduce"
PCIE_IPC = "FlashInfer's PCIe all-reduce"
VERDICTS = {CUSTOM: "custom_all_reduce", PCIE_IPC: "pcie_ipc_all_reduce"}
OPTED = {PCIE_IPC: {"VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC": "1"}}
"""The environment of the server that takes it; the probe asks vLLM's class itself."""
PCIE_IPC_RANKS = (2, 4, 8)


def _usable(results: list[Result]) -> list[Result]:
    """What a server may be given: right, and by environment alone. FlashInfer's all-reduce leaves
    what is too large for it to NCCL with peer access, which then must be right too."""
    right = {result.variant for result in results if result.verdict == "right"} - {CUSTOM}
    if WITH_PEERS not in right:
        right -= {PCIE_IPC}
    return [result for result in results if result.variant in right]


def _nothing_to_probe(ctx: Context) -> str | None:
    given = ctx.inputs
    if given.ranks < 2:
        return "one rank alone reduces nothing"
    if given.backend == "nccl" and len(gpus := _gpus(ctx)) < given.ranks:
        return f"there are {len(gpus)} GPUs, and {given.ranks} ranks would reduce"
    return None


def _gpus(ctx: Context) -> list[dict[str, Any]]:
    """Those that the server will see."""
    return nvml.visible(ctx.facts["gpus"], nvml.devices(_environment(ctx.inputs)))


def _links(ctx: Context) -> list[dict[str, Any]]:
    """Those between them."""
    return nvml.between(ctx.facts["gpu_links"], _gpus(ctx))


def _identity(ctx: Context) -> dict[str, Any]:
    """What was tried: with other devices, driver, build or environment it is tried anew."""
    given = vars(ctx.inputs)
    gpus = _gpus(ctx) if ctx.inputs.backend == "nccl" else []
    links = _links(ctx) if ctx.inputs.backend == "nccl" else []
    devices = [[gpu["uuid"], gpu["driver"]] for gpu in gpus]
    return {"inputs": given, "devices": devices, "links": links}


def _environment(inputs: SimpleNamespace) -> dict[str, str]:
    merged: dict[str, str] = {}
    for layer in inputs.env:
        merged.update(layer)
    return merged


def _variants(ctx: Context) -> list[Variant]:
    from runbook.steps.collectives.ranks import Variant

    if ctx.inputs.backend == "gloo":
        return [Variant("gloo", {})]
    found = [
        Variant(WITH_PEERS, {"NCCL_P2P_DISABLE": "0"}),
        Variant(WITHOUT_PEERS, {"NCCL_P2P_DISABLE": "1"}),
    ]
    majors = {str(gpu["architecture"]).partition(".")[0] for gpu in _gpus(ctx)}
    if not majors & set(WITH_MULTICAST):
        found.append(Variant(CUSTOM, {"NCCL_P2P_DISABLE": "0"}, "custom"))
    links = _links(ctx)
    over_pcie = links and not any(link["nvlinks"] for link in links)
    if ctx.inputs.pcie_ipc and over_pcie and ctx.inputs.ranks in PCIE_IPC_RANKS:
        found.append(Variant(PCIE_IPC, {"NCCL_P2P_DISABLE": "0"}, "pcie_ipc", PATIENCE))
    return found


def _probe(ctx: Context) -> list[Result]:
    from runbook.steps.collectives.ranks import Ranks, run
    from runbook.steps.common import jit

    given, results = ctx.inputs, []
    variants = _variants(ctx)
    env = jit.environment(ctx, given.build) | _environment(given)
    ranks = Ranks(
        given.python, given.ranks, given.backend, env, given.sizes, given.deadline, given.path
    )
    for number, variant in enumerate(variants):
        ctx.progress(number, len(variants), "variants", variant.name)
        told = partial(ctx.progress, number, len(variants), "variants", variant.name)
        result = run(variant, ranks, told)
        ctx.log(_line(result))
        results.append(result)
    ctx.progress(len(variants), len(variants), "variants")
    return results


def _line(result: Result) -> str:
    told = ", ".join(
        f"{size['bytes']:,} B {size['seconds'] * 1e6:,.0f} us {size['gb_per_second']:.2f} GB/s"
        for size in result.sizes
    )
    return f"{result.variant}: {result.verdict}. {result.detail or told}"


def choose(usable: Sequence[Result]) -> Result:
    """The fastest over all sizes, by the geometric mean of their seconds: small ones are what a
    decode step waits for, large ones a prompt. The first that is nearly as fast is taken, so that
    noise neither leaves what NCCL chooses by itself nor changes the server's environment."""
    means = [geometric_mean(size["seconds"] for size in result.sizes) for result in usable]
    least = min(means)
    return next(
        result for result, mean in zip(usable, means, strict=True) if mean <= least * NEARLY_AS_FAST
    )


def _remarks(table: list[dict[str, Any]]) -> list[Reason]:
    """What is not used and why, for the reader of a plan."""
    return [
        Reason(
            "collective_not_used",
            f"{entry['variant']} is not used: {entry['detail']}",
            "look at the IOMMU (`iommu=pt`), at ACS, and at the driver's version",
            "warning",
        )
        for entry in table
        if entry["verdict"] in ("wrong", "hung", "failed")
    ]


def _broken(results: list[Result]) -> StepFailure:
    return StepFailure(
        "no collective of these devices works: a server over them would hang or answer wrongly",
        code="collectives_broken",
        cause="\n".join(f"{r.variant}: {r.verdict}. {r.detail}" for r in results),
        remedy=Remedy(
            "run",
            ("--force", "{step}"),
            text="pass the IOMMU through (`iommu=pt`), switch ACS off, update the driver; "
            "then {command}",
        ),
    )
