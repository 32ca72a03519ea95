"""What is sampled of the GPUs, with NVML itself played."""

from __future__ import annotations

import itertools
import time

import pynvml
import pytest

from runbook.steps.common import power


@pytest.fixture
def nvml(monkeypatch):
    """One GPU: 250 W and 300 W in turn, at 1,900 MHz, which does not tell its memory's clock."""
    watts = itertools.cycle([250_000, 300_000])

    def clock(handle, which):
        if which == pynvml.NVML_CLOCK_MEM:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 1900

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetPowerUsage": lambda handle: next(watts),
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 300_000,
        "nvmlDeviceGetUtilizationRates": lambda handle: pynvml.c_nvmlUtilization_t(97, 50),
        "nvmlDeviceGetClockInfo": clock,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 71,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setattr(power, "INTERVAL", 0.01)
    return monkeypatch


def test_means_over_the_time(nvml):
    with power.Sampler() as sampler:
        time.sleep(0.3)
    (gpu,) = sampler.gpus
    assert gpu["samples"] >= 4
    assert 270 <= gpu["watts"] <= 280
    assert (gpu["watts_max"], gpu["watts_limit"]) == (300.0, 300.0)
    assert (gpu["sm_mhz"], gpu["memory_mhz"]) == (1900.0, None)
    assert (gpu["celsius_max"], gpu["use"]) == (71.0, 97.0)
    assert sampler.error == ""


@pytest.mark.parametrize(
    ("devices", "seen"), [(["GPU-2", "0"], [0, 2]), (["GPU-7"], []), (None, [0, 1, 2])]
)
def test_of_the_named_devices(nvml, devices, seen):
    nvml.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    with power.Sampler(devices) as sampler:
        time.sleep(0.05)
    assert [gpu["index"] for gpu in sampler.gpus] == seen


def test_beginning_is_not_in_the_time(nvml):
    """Before the first sample is there, nothing of what is measured has begun."""
    nvml.setattr(pynvml, "nvmlInit", lambda: time.sleep(0.3))
    began = time.monotonic()
    with power.Sampler() as sampler:
        assert time.monotonic() - began >= 0.3
    assert sampler.gpus[0]["samples"] >= 1


def test_without_a_driver_there_is_nothing_but_the_reason(nvml):
    def init():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    nvml.setattr(pynvml, "nvmlInit", init)
    with power.Sampler() as sampler:
        pass
    assert sampler.gpus == []
    assert "Shared Library" in sampler.error


def test_a_driver_that_hangs_is_left(nvml):
    nvml.setattr(power, "DEADLINE", 0.2)
    nvml.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda handle: time.sleep(60))
    with power.Sampler() as sampler:
        pass
    assert "did not answer" in sampler.error
