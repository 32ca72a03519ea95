from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runbook.steps.toolkit import cxx_runtime


@pytest.fixture
def system() -> Path:
    library = cxx_runtime.system_library()
    assert library is not None
    return library


def libgcc() -> str:
    command = ["gcc", "-print-file-name=libgcc_s.so.1"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def prefix_with(folder: Path, library: Path, release: str) -> Path:
    """A prefix with the machine's libstdc++ under another release number."""
    lib = folder / "lib"
    lib.mkdir(parents=True)
    (lib / f"libstdc++.so.6.0.{release}").write_bytes(library.read_bytes())
    (lib / "libstdc++.so.6").symlink_to(f"libstdc++.so.6.0.{release}")
    (lib / "libgcc_s.so.1").symlink_to(libgcc())
    (lib / "libssl.so.3").write_bytes(b"not an ELF file")
    return folder


@pytest.mark.parametrize("release", ["0", "same"])
def test_the_machines_library_is_kept_if_it_is_not_older(
    tmp_path: Path, system: Path, release: str
) -> None:
    number = system.name.rsplit(".", 1)[1] if release == "same" else release
    assert cxx_runtime.search_path(prefix_with(tmp_path, system, number)) == ""
    assert not (tmp_path / cxx_runtime.FOLDER).exists()


def test_a_newer_one_is_found_by_programs_and_nothing_else_of_the_prefix(
    tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/driver")
    prefix = prefix_with(tmp_path, system, "999")
    path = cxx_runtime.search_path(prefix)
    assert path == f"{prefix}/lib/cxx-runtime:/opt/driver"
    again = (
        "from runbook.steps.toolkit.cxx_runtime import Path, search_path;"
        f"print(search_path(Path({str(prefix)!r})))"
    )
    for environment in ("/opt/driver", path):
        answer = subprocess.run(
            [sys.executable, "-c", again],
            env={**os.environ, "LD_LIBRARY_PATH": environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert answer.strip() == path

    program = (
        "import ctypes, ssl; ctypes.CDLL('libstdc++.so.6'); print(open('/proc/self/maps').read())"
    )
    maps = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{prefix}/lib/libstdc++.so.6.0.999" in maps


def test_a_prefix_without_libstdcxx_needs_no_path(tmp_path: Path) -> None:
    assert cxx_runtime.search_path(tmp_path) == ""
