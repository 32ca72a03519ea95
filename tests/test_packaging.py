"""Wheel, sdist and editable install hold the same files, and each works."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.harness

ROOT = Path(__file__).parents[1]
FOLDERS = {"runbook": "runbook", "env": "runbook/env", "steps": "runbook/steps"}
FOLDERS["templates"] = "runbook/templates"


def tracked() -> dict[str, Path]:
    """What belongs into the package, by its path in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    found = {}
    for name in listed:
        folder, _, rest = name.partition("/")
        if not rest.startswith(".") and (ROOT / name).is_file():
            found[f"{FOLDERS[folder]}/{rest}"] = ROOT / name
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built from a copy: a build leaves things behind."""
    folder = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("source")
    names = [*FOLDERS, "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-r", *names, str(copy)], cwd=ROOT, check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)],
        check=True,
        capture_output=True,
    )
    return folder


def try_out(python: str, path: Path | None = None) -> None:
    """The installed program lists its books and validates one."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    for verb in (["list"], ["validate", "rehearsal"], ["schema"]):
        process = subprocess.run(
            [python, "-m", "runbook", *verb],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert process.stdout


def test_the_wheel_holds_what_is_tracked_and_works(built, tmp_path):
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    missing = set(tracked()) - names
    assert not missing
    assert not [name for name in names if "__pycache__" in name]
    where = subprocess.run(
        [sys.executable, "-c", "import runbook.steps; print(runbook.steps.__file__)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(tmp_path)), "this copy is the one that is tried"
    try_out(sys.executable, tmp_path)


def test_the_sdist_makes_the_same_wheel(built, tmp_path):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)],
        check=True,
        capture_output=True,
    )
    [again] = (source / "dist").glob("*.whl")
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_editable_install_finds_the_linked_folders():
    script = "import runbook.env, runbook.steps, runbook.templates as t; print(t.__file__)"
    process = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=True
    )
    assert Path(process.stdout.strip()).samefile(ROOT / "templates" / "__init__.py")
    try_out(sys.executable)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["rehearse"], ".venv/bin/runbook run rehearsal"),
        (["rehearse", "PORT=8211"], ".venv/bin/runbook run rehearsal --set port=8211"),
    ],
)
def test_make_rehearse_runs_the_book(words, command):
    """With `-n` make only prints, here as if the program were installed."""
    said = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", *words],
        cwd=ROOT,
        # A make that runs this test is not to be heard.
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == command


def test_make_installs_wheels_only_and_by_hash():
    said = subprocess.run(
        ["make", "-n", "-B", ".venv/.dev"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    installs = [line for line in said.stdout.splitlines() if "-m pip install" in line]
    assert len(installs) == 3
    for line in installs:
        assert "--only-binary :all:" in line and "--no-deps" in line
        assert ("--require-hashes" in line) != ("--editable ." in line)


@pytest.mark.network
def test_the_program_is_installed_without_make(tmp_path):
    """As README says for uv; pipx does the same with pip."""
    copy = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    bin_folder = tmp_path / "bin"
    environment = {**os.environ, "UV_TOOL_DIR": str(tmp_path / "tools")}
    environment["UV_TOOL_BIN_DIR"] = str(bin_folder)
    subprocess.run(
        [sys.executable, "-m", "uv", "tool", "install", "--quiet", "."],
        cwd=copy,
        env=environment,
        check=True,
    )
    said = subprocess.run(
        [bin_folder / "runbook", "list"], cwd="/", capture_output=True, text=True, check=True
    )
    assert "rehearsal" in said.stdout
