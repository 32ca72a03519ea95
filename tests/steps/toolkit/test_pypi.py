"""Fetching, unpacking, finishing and repairing, with small wheels from a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common.stamp import Stamp
from runbook.steps.toolkit import Toolkit, provider_of, stamp
from runbook.steps.toolkit.provider import Toolchain
from tests.steps.toolkit.conftest import Bench, enlarge
from tests.steps.toolkit.wheelhouse import CONTENTS, pin, write_wheel


@dataclass
class PypiBench(Bench):
    wheels: dict[str, Path] = field(default_factory=dict)

    @property
    def house(self) -> Path:
        return self.root / "index"

    def add(self, name: str, version: str = "13.0.1") -> None:
        self.wheels[name] = write_wheel(self.house, name, version, CONTENTS[name])

    def write_lock(self) -> None:
        text = "# pins\n\n" + "".join(pin(wheel) for wheel in self.wheels.values())
        (self.root / "pins.txt").write_text(text)

    def install(self) -> Toolchain:
        self.log.truncate(0)
        self.log.seek(0)
        return provider_of(self.context()).install(self.context())

    def damage(self) -> list[str]:
        return provider_of(self.context()).damage()

    @property
    def downloaded(self) -> set[str]:
        """The wheels that pip was seen to take from the index since `install` was called."""
        return set(re.findall(r"^Saved .*/(\w+)-[^/]*\.whl$", self.log.getvalue(), re.MULTILINE))


@pytest.fixture
def pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PypiBench:
    bench = PypiBench(tmp_path)
    for name in CONTENTS:
        bench.add(name)
    bench.write_lock()
    bench.defaults = {"provider": "pypi", "lock": str(tmp_path / "pins.txt")}
    # The user's configuration names the index: here a folder.
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {bench.house}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return bench


def test_a_tree_of_wheels_is_finished_into_a_cuda_home(pypi: PypiBench) -> None:
    toolchain = pypi.install()
    home = pypi.prefix / "nvidia/cu13"

    assert toolchain.home == home
    assert pypi.damage() == []
    assert os.readlink(home / "lib64") == "lib"
    assert (home / "targets/x86_64-linux/include/cuda.h").samefile(home / "include/cuda.h")
    assert os.readlink(home / "lib/libcudart.so") == "libcudart.so.13"
    assert os.readlink(home / "lib/libnvrtc-builtins.alt.so") == "libnvrtc-builtins.alt.so.13.0"
    assert not pypi.prefix.with_name("toolkit.partial").exists()
    assert not list(pypi.cache.glob("wheels/partial-*"))
    assert set(toolchain.env) >= {"CUDA_HOME", "CUDACXX", "CUDAHOSTCXX", "TRITON_PTXAS_PATH"}


def test_stubs_of_the_driver_have_the_functions_that_its_header_declares(pypi: PypiBench) -> None:
    stub = pypi.install().home / "lib/stubs/libcuda.so"
    symbols = subprocess.run(["nm", "-D", stub], capture_output=True, text=True).stdout
    assert re.findall(r" T (\w+)", symbols) == ["cuInit", "cuMemAlloc_v2"]
    dynamic = subprocess.run(["readelf", "-d", stub], capture_output=True, text=True).stdout
    assert "[libcuda.so.1]" in dynamic
    assert not stub.with_name("libnvidia-ml.so").exists()  # no nvml.h among these wheels


def test_installing_again_does_nothing(pypi: PypiBench) -> None:
    pypi.install()
    pypi.install()
    assert " pip " not in pypi.log.getvalue()


BREAKS: dict[str, Callable[[Path], None]] = {
    "file gone": lambda prefix: (prefix / "nvidia/cu13/bin/ptxas").unlink(),
    "other bytes": lambda prefix: (prefix / "nvidia/cu13/bin/ptxas").write_bytes(b"x" * 200_000),
    "metadata gone": lambda prefix: shutil.rmtree(prefix / "nvidia_cuda_nvcc-13.0.1.dist-info"),
}


@pytest.mark.harness
def test_only_the_damaged_wheel_is_unpacked_again(pypi: PypiBench) -> None:
    pypi.install()
    kept = (pypi.prefix / "nvidia/cu13/lib/libcudart.so.13").stat().st_ino
    for name, break_it in BREAKS.items():
        break_it(pypi.prefix)
        assert len(pypi.damage()) == 1, name

        pypi.install()

        assert pypi.damage() == [], name
        assert (pypi.prefix / "nvidia/cu13/lib/libcudart.so.13").stat().st_ino == kept, name
        assert pypi.downloaded == set(), name
        assert "to install: nvidia-cuda-nvcc 13.0.1\n" in pypi.log.getvalue(), name


@pytest.mark.harness
def test_a_cached_wheel_that_lost_its_digest_is_fetched_again(pypi: PypiBench) -> None:
    pypi.install()
    (cached,) = pypi.cache.glob("wheels/*/nvidia_cuda_nvcc-*.whl")
    cached.write_bytes(b"rot")
    Toolkit().undo(pypi.context())
    shutil.rmtree(pypi.prefix)

    pypi.install()

    assert pypi.damage() == []
    assert pypi.downloaded == {"nvidia_cuda_nvcc"}


def test_complete_wheels_of_a_killed_download_are_kept(pypi: PypiBench) -> None:
    provider = provider_of(pypi.context())
    left = provider.downloads / "tmp" / "pip-unpack-abc"  # type: ignore[attr-defined]
    left.mkdir(parents=True)
    shutil.copy(pypi.wheels["nvidia-cuda-nvcc"], left)
    torn = pypi.wheels["nvidia-cuda-runtime"]
    (left / torn.name).write_bytes(torn.read_bytes()[:1000])

    pypi.install()

    assert pypi.downloaded == {"nvidia_cuda_runtime", "nvidia_cuda_crt"}


def test_a_wheel_with_another_hash_is_refused(pypi: PypiBench) -> None:
    other = {"nvidia/cu13/bin/nvcc": b"#!/bin/sh\necho evil\n"}
    write_wheel(pypi.house, "nvidia-cuda-nvcc", "13.0.1", other)
    with pytest.raises(StepFailure) as failure:
        pypi.install()
    assert (failure.value.code, failure.value.retryable) == ("hash_mismatch", True)
    assert "nvidia-cuda-nvcc" in failure.value.cause
    assert not (pypi.prefix / "nvidia/cu13/bin/nvcc").exists()


def test_a_truncated_wheel_is_refused(pypi: PypiBench) -> None:
    wheel = pypi.wheels["nvidia-cuda-runtime"]
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(StepFailure) as failure:
        pypi.install()
    assert failure.value.code == "hash_mismatch"


def test_a_wheel_that_the_index_lacks_is_named(pypi: PypiBench) -> None:
    pypi.wheels["nvidia-cuda-crt"].unlink()
    with pytest.raises(StepFailure) as failure:
        pypi.install()
    assert (failure.value.code, failure.value.retryable) == ("package_not_found", False)
    assert "nvidia-cuda-crt" in failure.value.cause


def test_an_index_that_cannot_be_reached_is_named(pypi: PypiBench) -> None:
    config = pypi.root / "pip.conf"
    config.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\nretries = 1\n")
    with pytest.raises(StepFailure) as failure:
        pypi.install()
    assert (failure.value.code, failure.value.retryable) == ("index_unreachable", True)


@pytest.mark.harness
@pytest.mark.parametrize("place", ["cache", "workspace"])
def test_a_full_disk_is_named_and_the_next_run_goes_on(
    pypi: PypiBench, small_disk: Path, place: str
) -> None:
    (pypi.root / place).symlink_to(small_disk)
    (small_disk / "ballast").write_bytes(bytes(700_000))
    with pytest.raises(StepFailure) as failure:
        pypi.apply()
    assert failure.value.code == "disk_full", failure.value.cause
    assert not pypi.check().ok

    enlarge(small_disk)
    pypi.install()
    assert pypi.damage() == []


@pytest.mark.harness
def test_another_lock_removes_what_it_does_not_name(pypi: PypiBench) -> None:
    pypi.install()
    gone = pypi.prefix / "nvidia/cu13/lib/libcudart.so.13"
    del pypi.wheels["nvidia-cuda-runtime"]
    pypi.add("nvidia-cuda-crt", "13.0.2")
    pypi.write_lock()

    pypi.install()

    assert pypi.damage() == []
    assert not gone.exists()
    names = {path.name for path in pypi.prefix.glob("*.dist-info")}
    assert names == {"nvidia_cuda_crt-13.0.2.dist-info", "nvidia_cuda_nvcc-13.0.1.dist-info"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nvidia-cuda-nvcc==13.0.1\n", "lock_malformed"),
        ("nvidia-cuda-nvcc>=13 --hash=sha256:" + "0" * 64 + "\n", "lock_malformed"),
        (None, "lock_unreadable"),
    ],
)
def test_a_lock_without_hashes_is_refused(pypi: PypiBench, text: str | None, code: str) -> None:
    pins = pypi.root / "pins.txt"
    pins.unlink() if text is None else pins.write_text(text)
    with pytest.raises(StepFailure) as failure:
        pypi.install()
    assert failure.value.code == code


def test_no_compiler_is_told_before_anything_is_downloaded(
    pypi: PypiBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(pypi.root / "nothing"))
    with pytest.raises(PreconditionNotMet) as failure:
        pypi.apply()
    assert failure.value.code == "host_compiler_missing"
    assert "apt-get install gcc" in failure.value.remedy
    assert not (pypi.cache / "wheels").exists()


def test_a_folder_of_somebody_else_is_left_alone(pypi: PypiBench) -> None:
    pypi.prefix.mkdir(parents=True)
    (pypi.prefix / "thesis.tex").write_text("mine")
    with pytest.raises(StepFailure) as failure:
        pypi.apply()
    assert failure.value.code == "prefix_taken"
    pypi.undo()
    assert (pypi.prefix / "thesis.tex").exists()


def test_what_a_kill_left_of_the_stamp_makes_no_stranger(pypi: PypiBench) -> None:
    pypi.prefix.mkdir(parents=True)
    (pypi.prefix / f".{stamp.NAME}.123.tmp").write_text("{")
    Toolkit()._claim(pypi.prefix, "pypi")
    assert stamp.read(pypi.prefix) == Stamp("toolkit", {"provider": "pypi"}, complete=False)


@pytest.mark.harness
def test_a_toolkit_whose_record_was_lost_is_repaired_not_taken_for_a_strangers(
    pypi: PypiBench,
) -> None:
    pypi.install()
    for text in ("", "{", "[]", '{"format": 1, "provider": "pypi"}', "\0" * 40):
        (pypi.prefix / stamp.NAME).write_text(text)
        assert [reason.code for reason in pypi.check().reasons] == ["toolkit_missing"], text
        Toolkit()._claim(pypi.prefix, "pypi")
        pypi.install()
        assert pypi.downloaded == set(), "what is there is kept"
        assert pypi.damage() == [], text
        (pypi.prefix / stamp.NAME).write_text(text)
        shutil.copytree(pypi.prefix, pypi.root / "aside", symlinks=True)
        pypi.undo()
        assert not pypi.prefix.exists(), text
        (pypi.root / "aside").rename(pypi.prefix)


OUTPUTS = {
    **dict.fromkeys(("provider", "cuda_home", "nvcc", "nvcc_version", "ptxas"), "x"),
    "cc": "/bin/sh",
    "cxx": "/bin/sh",
    "gcc_version": "14.3.0",
    "env": {"A": "b"},
    "path": ["/"],
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("value", [None, 1, {"a": 1}, [1]], ids=repr)
def test_a_record_of_wrong_form_is_no_record(pypi: PypiBench, name: str, value: object) -> None:
    pypi.prefix.mkdir(parents=True)
    whole = Stamp("toolkit", {"provider": "pypi"}, made=OUTPUTS)
    whole.write(pypi.prefix / stamp.NAME)
    assert stamp.read(pypi.prefix) == whole
    for made in ({**OUTPUTS, name: value}, {k: v for k, v in OUTPUTS.items() if k != name}):
        Stamp("toolkit", {"provider": "pypi"}, made=made).write(pypi.prefix / stamp.NAME)
        assert stamp.read(pypi.prefix) is None
    assert [reason.code for reason in pypi.check().reasons] == ["toolkit_missing"]
