"""Power, clocks and use of the GPUs over a time: sampled by a process of its own, as `nvml` asks,
so that neither the driver nor Python's lock gets into what is measured."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Collection
from typing import Any

from runbook.steps.common.nvml import HUNG, visible

INTERVAL = 0.1
"""Seconds between two samples; NVML's own readings are averages over about as long."""
DEADLINE = 5.0

Sample = dict[str, float | None]


class Sampler:
    """Samples from `with` to its end; then `gpus` has, of each GPU of `devices` (`nvml.visible`):
    index, samples, watts and watts_max, watts_limit, sm_mhz and sm_mhz_min, memory_mhz,
    celsius_max, use (percent); means where nothing else is said, null what the card does not tell.
    `error` says why there is none. Enter it while the process has one thread: it forks. It
    is entered when the first sample is taken, or none will be: what it costs to begin (30 ms of a
    core) is not in what is measured."""

    def __init__(self, devices: Collection[str] | None = None) -> None:
        self.devices = devices
        self.gpus: list[dict[str, Any]] = []
        self.error = ""

    def __enter__(self) -> Sampler:
        self._reading, writing = os.pipe()
        stopped, self._stop = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(self._reading)
                os.close(self._stop)
                said = json.dumps(_sample(stopped, writing, self.devices)).encode()
                while said:
                    said = said[os.write(writing, said) :]
            finally:
                os._exit(0)
        os.close(writing)
        os.close(stopped)
        select.select([self._reading], [], [], DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        from runbook.steps.common.nvml import read_all

        os.close(self._stop)
        try:
            said = read_all(self._reading, time.monotonic() + DEADLINE)
        finally:
            os.close(self._reading)
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        if said is None:
            self.error = f"{HUNG} within {DEADLINE:.0f} seconds"
            return
        try:
            found = json.loads(said)
        except ValueError:
            self.error = "the process that asked NVML died of it"
            return
        self.error = found.get("error", "")
        self.gpus = [_told(index, samples) for index, samples in found.get("samples", {}).items()]


def _sample(stopped: int, writing: int, devices: Collection[str] | None) -> dict[str, Any]:
    """Samples until `stopped` closes. The first one is told at once: by white space, which comes
    before the JSON."""
    import pynvml as nvml  # type: ignore[import-untyped]

    samples: dict[int, list[Sample]] = {}
    told = 0
    try:
        nvml.nvmlInit()
        there = [
            {"index": n, "uuid": nvml.nvmlDeviceGetUUID(handle), "handle": handle}
            for n in range(nvml.nvmlDeviceGetCount())
            for handle in [nvml.nvmlDeviceGetHandleByIndex(n)]
        ]
        handles = {gpu["index"]: gpu["handle"] for gpu in visible(there, devices)}
        while True:
            for index, handle in handles.items():
                samples.setdefault(index, []).append(_one(nvml, handle))
            if not told:
                told = os.write(writing, b"\n")
            if select.select([stopped], [], [], INTERVAL)[0]:
                return {"samples": samples}
    except nvml.NVMLError as failure:
        return {"samples": samples, "error": str(failure)}


def _one(nvml: Any, handle: Any) -> Sample:
    def ask(function: Any, *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
            return None

    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage)
    limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
    rates = ask(nvml.nvmlDeviceGetUtilizationRates)
    return {
        "watts": None if milliwatts is None else milliwatts / 1000,
        "watts_limit": None if limit is None else limit / 1000,
        "sm_mhz": ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        "memory_mhz": ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        "celsius": ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        "use": None if rates is None else rates.gpu,
    }


def _told(index: str, samples: list[Sample]) -> dict[str, Any]:
    def over(name: str, how: Any) -> float | None:
        values = [one[name] for one in samples if one[name] is not None]
        return round(how(values), 1) if values else None

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "index": int(index),
        "samples": len(samples),
        "watts": over("watts", mean),
        "watts_max": over("watts", max),
        "watts_limit": over("watts_limit", min),
        "sm_mhz": over("sm_mhz", mean),
        "sm_mhz_min": over("sm_mhz", min),
        "memory_mhz": over("memory_mhz", mean),
        "celsius_max": over("celsius", max),
        "use": over("use", mean),
    }
