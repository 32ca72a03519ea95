"""The shipped locks, and the way to write them again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import runbook.env
from runbook.env import relock
from runbook.protocol import StepFailure
from runbook.steps.common.packages.pins import read_pins
from runbook.steps.toolkit import Toolkit, lock_of
from runbook.steps.toolkit.conda import sizes_beside
from runbook.steps.toolkit.conda_lock import CondaPackage, read_lock
from tests.steps.toolkit.conftest import CondaBench

ENV = Path(str(runbook.env.__file__)).parent
SHIPPED = ENV / "cuda.conda-lock.yml"


def inputs(**values: object) -> SimpleNamespace:
    return SimpleNamespace(**Toolkit.Inputs(**values).model_dump())


def test_the_shipped_conda_lock_has_what_a_build_needs() -> None:
    packages = read_lock(lock_of(inputs()))
    names = {package.name for package in packages}
    assert len(packages) == len(names) == 76
    assert names >= {
        *("cuda-nvcc-impl", "cuda-nvcc-tools", "cuda-cccl_linux-64", "cuda-profiler-api"),
        *("cuda-cudart-dev", "cuda-cudart-static", "cuda-driver-dev", "cuda-nvrtc-dev"),
        *("libcublas-dev", "libcusparse-dev", "libcusolver-dev", "libcurand-dev"),
        *("gcc_linux-64", "gxx_linux-64", "sysroot_linux-64", "cmake", "ninja", "ccache"),
    }
    assert {package.channel for package in packages} == {"https://conda.anaconda.org/conda-forge"}


def test_the_shipped_conda_lock_is_what_conda_lock_reads() -> None:
    from conda_lock.lockfile import parse_conda_lock_file

    theirs = parse_conda_lock_file(SHIPPED).package
    ours = {package.name: package for package in read_lock(SHIPPED)}
    assert {package.name: (package.url, package.hash.sha256) for package in theirs} == {
        name: (package.url, package.sha256) for name, package in ours.items()
    }


def test_the_shipped_conda_lock_is_what_the_shipped_specs_solve_to(tmp_path: Path) -> None:
    sizes = json.loads(sizes_beside(SHIPPED).read_text())
    records = [
        {
            **{key: getattr(package, key) for key in ("name", "version", "build", "subdir")},
            **{key: getattr(package, key) for key in ("depends", "sha256", "md5", "url")},
            "build_number": 0,
            "size": sizes[package.sha256],
        }
        for package in read_lock(SHIPPED)
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    for name in ("cuda.yml", "virtual-packages.yml"):
        shutil.copy(ENV / name, tmp_path)

    lock = relock.lock_conda(tmp_path, tmp_path / "records.json")

    again, shipped = (yaml.safe_load(path.read_text()) for path in (lock, SHIPPED))
    assert again["metadata"] == shipped["metadata"]
    assert [(entry["url"], entry["hash"]) for entry in again["package"]] == [
        (entry["url"], entry["hash"]) for entry in shipped["package"]
    ]
    assert sizes_beside(lock).read_text() == sizes_beside(SHIPPED).read_text()


def test_the_size_of_every_package_is_known() -> None:
    sizes = json.loads(sizes_beside(SHIPPED).read_text())
    assert {package.sha256 for package in read_lock(SHIPPED)} == set(sizes)
    assert 1_200_000_000 < sum(sizes.values()) < 1_400_000_000


@pytest.mark.parametrize("components", ["compiler", "build"])
def test_the_shipped_wheels_are_pinned_and_sized(components: str) -> None:
    lock = lock_of(inputs(provider="pypi", components=components))
    wheels = read_pins(lock)
    assert all(wheel.bytes for wheel in wheels)
    assert len({wheel.name for wheel in wheels}) == len(wheels)
    assert not re.search(r"https?://|index-url", lock.read_text())


def test_the_compiler_is_part_of_the_build_set() -> None:
    compiler, build = (
        set(read_pins(ENV / f"cuda-{components}.requirements.txt"))
        for components in ("compiler", "build")
    )
    assert compiler < build


ENTRY = {
    "name": "a",
    "version": "1",
    "manager": "conda",
    "platform": "linux-64",
    "dependencies": {"b": ">=1"},
    "url": "https://conda.anaconda.org/conda-forge/linux-64/a-1-h0.conda",
    "hash": {"md5": "0" * 32, "sha256": "1" * 64},
}


def lock_text(entry: object) -> str:
    """A lock whose second package, from line 6 on, is `entry`."""
    first = f"  - {json.dumps(ENTRY)}\n"
    return f"version: 1\nmetadata: {{}}\npackage:\n{first}\n  - {json.dumps(entry)}\n"


def refusal(folder: Path, text: str | bytes) -> StepFailure:
    lock = folder / "lock.yml"
    lock.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StepFailure) as failure:
        read_lock(lock)
    return failure.value


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "line 1, column 1: the document must be keys and values, not nothing"),
        ("- 1\n", "line 1, column 1: the document must be keys and values, not a list"),
        ("{", "line 2, column 1:"),
        ("a: b\nc: [1\n", "line 3, column 1:"),
        ("a: \x07", "line 1, column 1:"),
        *(
            (deep * 100_000, "line 1, column 1: nested more than")
            for deep in ("[", "{a: ", "- ", "? ")
        ),
        ("version: 1\npackage: " + "[" * 30_000 + "]" * 30_000, "line 1, column 1: nested more"),
        ("package: &a [*a]\nversion: 1\n", "line 1, column 10: package.0 must be"),
        ("version: 2024-99-99\n", "line 1, column 1: month must be"),
        ("version: " + "9" * 5000, "line 1, column 1: Exceeds the limit"),
        ("version: 2\npackage: []\n", "line 1, column 10: version 2 instead of 1"),
        ("version: true\npackage: []\n", "line 1, column 10: `version` must be a whole number"),
        ("version: 1\n", "line 1, column 1: the document has no `package`"),
        ("version: 1\npackage: []\n", "line 2, column 10: no conda packages for linux-64"),
        ("version: 1\npackage: [{name: a}]\n", "line 2, column 11: package.0 has no `manager`"),
        ("version: 1\npackage: [3]\n", "line 2, column 11: package.0 must be keys and values"),
    ],
)
def test_what_is_no_conda_lock_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    failure = refusal(tmp_path, text)
    assert failure.code == "lock_malformed"
    assert failure.cause.startswith(cause)


def test_bytes_that_are_no_text_and_things_that_are_no_files_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"\xff\xfe").code == "lock_unreadable"
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "nowhere", "."):
        with pytest.raises(StepFailure) as failure:
            read_lock(tmp_path / name)
        assert failure.value.code == "lock_unreadable"


FIELDS = [*((name,) for name in ENTRY if name != "version"), ("hash", "md5"), ("hash", "sha256")]
VALUES = [None, True, 0, 1.5, [], [1], {}, {"a": 1}, "", "x", "x/y/linux-64/a-1-h0.conda\n"]


@pytest.mark.parametrize("field", FIELDS, ids=".".join)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_field_of_a_wrong_type_is_named_with_its_place(
    tmp_path: Path, field: tuple[str, ...], value: object
) -> None:
    entry = json.loads(json.dumps(ENTRY))
    holder = entry if len(field) == 1 else entry[field[0]]
    holder[field[-1]] = value
    if field in (("manager",), ("platform",)) and isinstance(value, str):
        return  # another manager or platform: no package of ours
    if field == ("dependencies",) and value == {}:
        return
    failure = refusal(tmp_path, lock_text(entry))
    assert failure.code == "lock_malformed"
    assert re.match(r"line 6, column \d+: ", failure.cause), failure.cause
    assert len(failure.cause) < 400
    del holder[field[-1]]
    assert refusal(tmp_path, lock_text(entry)).cause.startswith("line 6, column")


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("https://x/y/linux-64/z-1-0.conda", "archive of"),
        ("https://x/y/linux-64/a-1.conda", "archive of"),
        ("a-1-h0.conda", "archive of"),
        ("https://x/y/win-64/a-1-h0.conda", "none of linux-64, noarch"),
        ("https://x/y/../a-1-h0.conda", "none of linux-64, noarch"),
    ],
)
def test_an_address_that_is_not_of_the_package_is_refused(
    tmp_path: Path, url: str, cause: str
) -> None:
    assert cause in refusal(tmp_path, lock_text({**ENTRY, "url": url})).cause


def write_specs(folder: Path, channel: str, *specs: str) -> None:
    document = {"channels": [channel], "platforms": ["linux-64"], "dependencies": list(specs)}
    (folder / "cuda.yml").write_text(yaml.safe_dump(document))
    (folder / "virtual-packages.yml").write_text((ENV / "virtual-packages.yml").read_text())


def test_locking_a_channel_over_http_gives_a_lock_that_installs(conda: CondaBench) -> None:
    folder = conda.root / "env"
    folder.mkdir()
    write_specs(
        folder, f"{conda.server.base}/conda-forge", "cuda-nvcc-tools 13.2.*", "libcublas", "ccache"
    )

    lock = relock.lock_conda(folder)

    packages = {package.name: package for package in read_lock(lock)}
    # Two were asked for through a dependency only.
    assert set(packages) == {
        *("cuda-nvcc-tools", "libcublas", "ccache", "gcc_linux-64", "cuda-version")
    }
    assert str(folder) not in lock.read_text() and "/tmp" not in lock.read_text()
    sizes = json.loads(sizes_beside(lock).read_text())
    assert {package.sha256 for package in packages.values()} == set(sizes)
    conda.apply(lock=str(lock))
    assert conda.check(deep=True, lock=str(lock)).ok


CUDA_VERSION = {
    "name": "cuda-version",
    "version": "13.2",
    "build": "0",
    "build_number": 0,
    "subdir": "noarch",
    "noarch": "generic",
    "depends": ["__cuda >=13"],
    "sha256": "1" * 64,
    "md5": "2" * 32,
    "size": 123,
    "url": "https://mirror.invalid/conda-forge/noarch/cuda-version-13.2-0.conda",
}


def test_locking_given_records_needs_no_channel(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps([CUDA_VERSION]))
    write_specs(tmp_path, "conda-forge", "cuda-version")

    (package,) = read_lock(relock.lock_conda(tmp_path, records))

    assert package == CondaPackage(
        *("cuda-version", "13.2", "0", "noarch", "cuda-version-13.2-0.conda"),
        *("https://mirror.invalid/conda-forge", "1" * 64, "2" * 32, ("__cuda >=13",)),
    )


def test_specs_that_cannot_be_met_leave_the_lock_and_say_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records, lock = tmp_path / "records.json", tmp_path / "cuda.conda-lock.yml"
    records.write_text(json.dumps([CUDA_VERSION]))
    lock.write_text("as it was")
    write_specs(tmp_path, "conda-forge", "cuda-version 14.*")
    with pytest.raises(subprocess.CalledProcessError):
        relock.lock_conda(tmp_path, records)
    assert lock.read_text() == "as it was"
    printed = "".join(capfd.readouterr())
    assert "No candidates were found for cuda-version 14.*" in printed


@pytest.mark.parametrize(
    ("call", "answer"),
    [(["--version"], "conda 24"), (["info", "--json"], '"pkgs_dirs"')],
)
def test_the_solver_answers_what_conda_lock_asks(call: list[str], answer: str) -> None:
    command = [sys.executable, "-m", "runbook.env.conda_solver", *call]
    assert answer in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_wheels_of_a_lock_are_written_as_they_are_read(tmp_path: Path) -> None:
    from tests.steps.toolkit.wheelhouse import write_wheel

    wheel = write_wheel(tmp_path, "nvidia-cuda-crt", "13.0.88", {"a": b"b"})
    (tmp_path / "pins.txt").write_text(relock.HEADER.format(source="x") + relock.pins(tmp_path))
    (read,) = read_pins(tmp_path / "pins.txt")
    assert (read.name, read.version, read.bytes) == (
        *("nvidia-cuda-crt", "13.0.88"),
        wheel.stat().st_size,
    )
