from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runbook.protocol import PreconditionNotMet
from runbook.steps.toolkit import host_compiler

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a compiler that answers with a version on a PATH of its own."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(name: str, answer: str) -> None:
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\n[ "$1" = -dumpfullversion ] && echo "{answer}"\n')
        program.chmod(0o755)

    return install


def test_gcc_on_path_is_taken_if_in_range(install: Install) -> None:
    for name in ("gcc", "g++"):
        install(name, "14.2.0")
    for name in ("gcc-15", "g++-15"):
        install(name, "15.1.0")
    found = host_compiler.find(9, 15)
    assert (Path(found.cc).name, Path(found.cxx).name) == ("gcc", "g++")
    assert (found.version, found.major) == ("14.2.0", 14)


def test_else_the_newest_numbered_one_in_range(install: Install) -> None:
    for name, version in (("", "16.1.0"), ("-13", "13.3.0"), ("-14", "14.2.0"), ("-16", "16.1.0")):
        install(f"gcc{name}", version)
        install(f"g++{name}", version)
    assert Path(host_compiler.find(9, 15).cxx).name == "g++-14"


@pytest.mark.parametrize(
    ("compilers", "cause"),
    [
        ({}, "neither"),
        ({"gcc": "8.5.0", "g++": "8.5.0"}, "gcc is 8.5.0"),
        ({"gcc": "16.1.0", "g++": "16.1.0"}, "gcc is 16.1.0"),
        ({"gcc": "14.2.0"}, "there is no g++"),
        ({"gcc": "Apple clang", "g++": "Apple clang"}, "is not gcc"),
    ],
)
def test_none_in_range_is_a_precondition(
    install: Install, compilers: dict[str, str], cause: str
) -> None:
    for name, version in compilers.items():
        install(name, version)
    with pytest.raises(PreconditionNotMet) as failure:
        host_compiler.find(9, 15)
    assert cause in failure.value.cause
    assert "9 to 15" in failure.value.message
    assert "gcc-13 g++-13" in failure.value.remedy


def test_the_newest_gcc_that_nvcc_accepts_is_read_from_its_header(tmp_path: Path) -> None:
    header = tmp_path / "include/crt/host_config.h"
    header.parent.mkdir(parents=True)
    header.write_text("#if defined(__GNUC__)\n#if __GNUC__ > 15\n#error\n#endif\n#endif\n")
    assert host_compiler.newest_gcc(tmp_path) == 15
