from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook.protocol import StepFailure
from tests.steps.toolkit.channel import Package
from tests.steps.toolkit.conftest import CondaBench, enlarge, fake_nvcc


def test_installs_what_the_lock_names(conda: CondaBench) -> None:
    before = conda.check()
    assert not before.ok
    assert [reason.code for reason in before.reasons] == ["toolkit_missing"]

    conda.apply()

    assert conda.check().ok
    assert conda.check(deep=True).ok
    outputs = conda.check().outputs
    assert outputs["cuda_home"] == str(conda.prefix)
    assert outputs["nvcc_version"] == "13.2.78"
    assert outputs["gcc_version"] == "14.3.0"
    assert outputs["path"] == [str(conda.prefix / "bin")]
    assert (conda.prefix / "bin/ccache").read_text() == f"#!{conda.prefix}/bin/sh\n"
    assert os.readlink(conda.prefix / "lib/libcublas.so") == "libcublas.so.13"
    assert set(conda.server.completed.values()) == {1}
    assert len(conda.server.completed) == len(conda.packages)


def test_progress_counts_the_bytes_of_the_archives(conda: CondaBench) -> None:
    sizes = {
        hashlib.sha256(data).hexdigest(): len(data)
        for path in conda.channel.rglob("*.conda")
        if (data := path.read_bytes())
    }
    (conda.root / "cuda.conda-lock.sizes.json").write_text(json.dumps(sizes))
    assert conda.check().work.bytes == sum(sizes.values())

    conda.apply()

    assert conda.progress[-1] == (sum(sizes.values()), sum(sizes.values()))


def test_an_applied_toolkit_is_not_touched_again(conda: CondaBench) -> None:
    conda.apply()
    conda.server.requests.clear()
    before = {path: path.lstat().st_ino for path in conda.prefix.rglob("*") if path.is_file()}
    conda.log.truncate(0)

    conda.apply()

    stamp = conda.prefix / ".runbook-toolkit.json"
    after = {path: path.lstat().st_ino for path in conda.prefix.rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after.get(path)} <= {stamp}
    assert not conda.server.requests
    assert "conda_install" not in conda.log.getvalue()


@pytest.mark.harness
@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    [
        ("other", "hash_mismatch", True),
        ("flip", "package_corrupt", True),
        ("truncate", "channel_unreachable", True),
        ("html", "package_corrupt", True),
        ("status 500", "channel_unreachable", True),
        ("status 403", "access_denied", False),
        ("status 404", "package_not_found", False),
    ],
)
def test_a_fault_is_named_and_the_next_run_fetches_only_the_rest(
    conda: CondaBench, fault: str, code: str, retryable: bool
) -> None:
    archive = conda.archive("libcublas")
    other = Package("libcublas", "13.4.0.1", {"lib/evil.so": b"evil"})
    other.write(conda.root / "elsewhere")
    shutil.copy(
        conda.root / "elsewhere/linux-64" / archive, conda.channel / f"linux-64/{archive}.other"
    )
    conda.server.faults[archive] = fault

    with pytest.raises(StepFailure) as failure:
        conda.apply()

    assert (failure.value.code, failure.value.retryable) == (code, retryable)
    assert failure.value.message and failure.value.remedy
    assert archive in failure.value.cause
    assert "Traceback" not in conda.log.getvalue()
    assert not conda.check().ok

    conda.server.faults.clear()
    kept = {f"{folder.name}.conda" for folder in (conda.cache / "conda").glob("*-h0_0")}
    # A fault that is tried again leaves the others the time to come whole.
    assert kept or fault not in ("truncate", "status 500")
    conda.server.requests.clear()
    conda.apply()
    assert conda.check(deep=True).ok
    # What was still under way when the fault ended the run has to be fetched, no more.
    assert archive in conda.server.requests
    assert not (conda.prefix / "lib/evil.so").exists()
    assert not kept & conda.server.requests.keys()


def test_a_wrong_hash_in_the_lock_is_refused(conda: CondaBench) -> None:
    def forge(document: dict[str, Any]) -> None:
        document["package"][3]["hash"]["sha256"] = "0" * 64

    conda.write_lock(forge)
    with pytest.raises(StepFailure) as failure:
        conda.apply()
    assert failure.value.code == "hash_mismatch"
    assert "0" * 64 in failure.value.cause


def test_a_closed_port_is_a_channel_that_cannot_be_reached(conda: CondaBench) -> None:
    with pytest.raises(StepFailure) as failure:
        conda.apply(channel_alias="http://127.0.0.1:9")
    assert failure.value.code == "channel_unreachable"
    assert failure.value.retryable


def test_a_mirror_replaces_the_channel(conda: CondaBench) -> None:
    mirror = conda.server.base

    def elsewhere(document: dict[str, Any]) -> None:
        for entry in document["package"]:
            entry["url"] = entry["url"].replace(mirror, "http://channel.invalid/conda")

    conda.write_lock(elsewhere)
    conda.apply(channel_alias=mirror)
    assert conda.check(channel_alias=mirror).ok


def test_a_folder_as_mirror_is_hashed_before_it_is_believed(conda: CondaBench) -> None:
    mirror = f"file://{conda.channel.parent}"
    archive = conda.channel / "linux-64" / conda.archive("libcublas")
    original = archive.read_bytes()
    archive.unlink()
    Package("libcublas", "13.4.0.1", {"lib/evil.so": b"evil"}).write(conda.channel)

    with pytest.raises(StepFailure) as failure:
        conda.apply(channel_alias=mirror)
    assert failure.value.code == "hash_mismatch"
    assert not (conda.prefix / "lib/evil.so").exists()

    archive.unlink()
    with pytest.raises(StepFailure) as failure:
        conda.apply(channel_alias=mirror)
    assert failure.value.code == "package_not_found"

    archive.write_bytes(original)
    conda.apply(channel_alias=mirror)
    assert conda.check(deep=True).ok
    assert not conda.server.requests


@pytest.mark.harness
@pytest.mark.parametrize(
    "damage",
    [
        lambda prefix: (prefix / "bin/nvcc").unlink(),
        lambda prefix: (prefix / "bin/nvcc").write_bytes(fake_nvcc("13.2.79")),
        lambda prefix: (prefix / "bin/ptxas").write_bytes(b""),
        lambda prefix: (prefix / "conda-meta/cuda-nvcc-tools-13.2.78-h0_0.json").unlink(),
        lambda prefix: (prefix / "conda-meta/cuda-nvcc-tools-13.2.78-h0_0.json").write_text("{"),
    ],
    ids=["file gone", "file changed", "file emptied", "record gone", "record torn"],
)
def test_damage_is_noticed_and_only_its_package_repaired(conda: CondaBench, damage: Any) -> None:
    conda.apply()
    conda.server.requests.clear()
    conda.log.truncate(0)
    damage(conda.prefix)

    check = conda.check(deep="record" in str(damage))
    assert not check.ok or conda.prefix.joinpath("bin/nvcc").exists()
    conda.apply()

    assert conda.check(deep=True).ok
    assert "to install: cuda-nvcc-tools 13.2.78\n" in conda.log.getvalue()
    assert set(conda.server.requests) <= {conda.archive("cuda-nvcc-tools")}


def test_hidden_damage_is_noticed_by_the_deep_check(conda: CondaBench) -> None:
    conda.apply()
    header = conda.prefix / "targets/x86_64-linux/include/cuda_runtime.h"
    header.write_text("#error\n")
    assert conda.check().ok
    assert [reason.code for reason in conda.check(deep=True).reasons] == ["toolkit_damaged"]
    conda.apply()
    assert header.read_text() == "// cudart\n"


def test_a_file_edited_in_the_cache_is_not_installed(conda: CondaBench) -> None:
    conda.apply()
    (cached,) = conda.cache.glob("conda/libcublas-*/lib/libcublas.so.13")
    cached.write_bytes(b"evil")
    conda.undo()
    conda.server.requests.clear()

    conda.apply()

    assert (conda.prefix / "lib/libcublas.so.13").stat().st_size == 1_000_000
    assert set(conda.server.requests) == {conda.archive("libcublas")}


def test_another_lock_replaces_what_differs(conda: CondaBench) -> None:
    conda.apply()
    conda.packages = [p for p in conda.packages if p.name not in ("ccache", "cuda-version")]
    newer = Package("cuda-version", "13.3", {"share/cuda": b"13.3"}, subdir="noarch")
    newer.write(conda.channel)
    conda.packages.append(newer)
    conda.write_lock()
    conda.server.requests.clear()
    assert [reason.code for reason in conda.check().reasons] == ["lock_changed"]

    conda.apply()

    assert conda.check(deep=True).ok
    assert set(conda.server.requests) == {newer.file_name}
    assert not (conda.prefix / "bin/ccache").exists()
    assert (conda.prefix / "share/cuda").exists()


def test_a_toolkit_without_nvcc_or_compiler_is_refused(conda: CondaBench) -> None:
    everything = conda.packages
    for name, code in (
        ("gcc_linux-64", "host_compiler_missing"),
        ("cuda-nvcc-tools", "nvcc_does_not_run"),
    ):
        conda.packages = [package for package in everything if package.name != name]
        conda.write_lock()
        with pytest.raises(StepFailure) as failure:
            conda.apply()
        assert failure.value.code == code


def test_undo_removes_the_toolkit_and_nothing_else(conda: CondaBench) -> None:
    conda.apply()
    (conda.workspace / "model").write_text("mine")
    conda.undo()
    conda.undo()
    assert [path.name for path in conda.workspace.iterdir()] == ["model"]


@pytest.mark.parametrize("place", ["cache", "workspace"])
def test_a_full_disk_is_named_and_the_next_run_goes_on(
    conda: CondaBench, small_disk: Path, place: str
) -> None:
    (conda.root / place).symlink_to(small_disk)
    with pytest.raises(StepFailure) as failure:
        conda.apply()
    assert failure.value.code == "disk_full", failure.value.cause
    assert not conda.check().ok

    enlarge(small_disk)
    conda.apply()
    assert conda.check(deep=True).ok


def test_the_quick_check_reads_its_stamp_and_imports_little(conda: CondaBench) -> None:
    conda.apply()
    inputs = vars(conda.context().inputs)
    program = f"""
import sys
from pathlib import Path
from runbook.planning.context import console
from runbook.steps.toolkit import Toolkit
ctx = console("toolkit", Path({str(conda.workspace)!r}), {inputs!r})
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
assert Toolkit().check(ctx).ok
inside = [path for path in opened if path.startswith({str(conda.workspace)!r})]
assert inside == [{str(conda.prefix / ".runbook-toolkit.json")!r}], inside
print(*sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"pydantic", "yaml", "rattler", "httpx", "subprocess", "tempfile", "zipfile"}
    assert not heavy & set(process.stdout.split())
