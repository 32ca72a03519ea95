"""Where the one package comes from that plain package indexes lack: PyTorch's build for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from runbook.protocol import PreconditionNotMet, Reason
from runbook.steps.preflight.machine import Machine


def packages(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Tells which index has the wheel for this machine, by asking; fails if none has."""
    if want.vllm_lock is None:
        return
    from runbook.steps.common.packages.offers import source_of
    from runbook.steps.common.vllm_release import load_release, lock_path

    release = load_release(lock_path("", want.vllm_lock))
    if release.own_index is None:
        return
    try:
        source = source_of(release.own_index, release.python(None))
    except PreconditionNotMet as failure:
        why = "; ".join(failure.cause.splitlines())
        yield Reason(failure.code, f"{failure.message}: {why}", failure.remedy)
    else:
        if source is not None:
            yield Reason("packages", str(source), severity="info")
