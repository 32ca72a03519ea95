"""End a start that hangs, with what was seen as its cause; wait for one that compiles."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.service import Service
from runbook.steps.common.starting import sampler
from runbook.steps.common.starting.log import Reader
from runbook.steps.common.starting.watch import Sample, Verdict, evidence, judge

SAMPLE_SECONDS = 5.0
KEPT_SAMPLES = 720
"""An hour of them."""

CAUSES = {
    "rank_stopped": "A process of the server was stopped by a signal (SIGSTOP: a debugger, a job "
    "control, a frozen container), and the others wait for it.",
    "rank_dead": "A rank has ended without the server's noticing.",
    "autotune_deadlock": "The ranks wait for each other while kernels are autotuned: nothing "
    "compiles and no GPU computes (vllm-project/vllm#52291, #57423).",
    "ranks_deadlocked": "All processes wait: nothing computes, compiles, reads or writes.",
    "collective_hang": "The GPUs spin in a collective that never ends: the custom all-reduce, or "
    "NCCL's peer-to-peer transport, does not work between these GPUs.",
}

REMEDIES = {
    "rank_stopped": "find what stops it (`kill -CONT` lets a process go on), then {command}",
    "rank_dead": "see the kernel's log for it (`dmesg`: out of memory?), then {command}",
    "ranks_deadlocked": "{command}; if it comes back, the log's last lines say where they wait",
}
SET_ALREADY = {
    "autotune_deadlock": "autotuning is off as far as flags go: {command}; if it comes back, the "
    "log's last lines say what is tuned",
    "collective_hang": "the custom all-reduce and peer-to-peer are off already: look at the host's "
    "IOMMU and ACS (`iommu=pt` on the kernel's command line) and the driver, then {command}",
}
"""What is left where the settings that help are set."""


def remedy(code: str, spec: Mapping[str, Any]) -> Remedy:
    """What helps against a hang and is not set yet."""
    argv, env = " ".join(spec["argv"]), spec["env"]
    settings: dict[str, tuple[tuple[str, bool], ...]] = {
        "autotune_deadlock": (
            (
                "--no-enable-flashinfer-autotune in the step's `extra_args`",
                "--no-enable-flashinfer-autotune" in argv
                or '"enable_flashinfer_autotune":false' in argv.replace(" ", ""),
            ),
        ),
        "collective_hang": (
            ("`disable_custom_all_reduce: true`", "--disable-custom-all-reduce" in argv),
            ("NCCL_P2P_DISABLE=1 in the step's `env`", env.get("NCCL_P2P_DISABLE") == "1"),
        ),
    }
    if code not in settings:
        return Remedy("run", text=REMEDIES[code])
    untried = [words for words, is_set in settings[code] if not is_set]
    if not untried:
        return Remedy("run", text=SET_ALREADY[code])
    return Remedy("run", text=f"set {' and '.join(untried)}, then {{command}}")


class Watchdog:
    """Takes samples of one start and judges them."""

    def __init__(self, running: Service, caches: Iterable[Path]) -> None:
        self.running = running
        self.gpus = sampler.open_gpus()
        self.sampler = sampler.Sampler(running.process, caches, self.gpus)
        self.samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)

    def close(self) -> None:
        if self.gpus is not None:
            self.gpus.close()

    def due(self) -> bool:
        return not self.samples or time.monotonic() - self.samples[-1].at >= SAMPLE_SECONDS

    def look(self, reader: Reader, steps: int) -> Verdict | None:
        """Take a sample. The compilation that goes on, if one does. Raises StepFailure on a
        hang, with the evidence as its cause."""
        at = reader.at
        bar = f"{at.words} {at.done:g}/{at.total:g}" if at.total else ""
        sample = self.sampler.take(phase=at.phase, bar=bar, spoken=reader.spoken, steps=steps)
        self.samples.append(sample)
        verdict = judge(list(self.samples))
        if verdict is None or verdict.code == "compilation":
            return verdict
        raise StepFailure(
            f"the server hangs while it is about to {at.words}",
            code=verdict.code,
            cause=f"{CAUSES[verdict.code]}\n{verdict.evidence}",
            remedy=remedy(verdict.code, self.running.spec),
            retryable=verdict.code in ("rank_stopped", "rank_dead", "ranks_deadlocked"),
            where=str(self.running.log),
        )

    def evidence(self) -> str:
        return evidence(list(self.samples)) if self.samples else ""
