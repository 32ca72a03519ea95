"""The environment of lm-eval: what its lock names and nothing else, none of it built here."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

from runbook.protocol import StepFailure
from runbook.steps.measure import harness
from tests.steps.toolkit.wheelhouse import write_wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index that pip and uv see, and the folder of the lock; uv is set to seed environments."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setattr(harness, "files", lambda _: tmp_path)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_VENV_SEED": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return folder


def lock(folder, file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    requirement = f"tiny==1.0 --hash=sha256:{digest}\n"
    (folder / "eval.requirements.txt").write_text(requirement)


def test_a_locked_wheel_is_all_that_is_installed(index, tmp_path):
    lock(tmp_path, write_wheel(index, "tiny", "1.0", {"tiny.py": b"x = 1\n"}))
    python = harness.python(tmp_path / "cache", lambda _: None)
    (site,) = python.parents[1].glob("lib/*/site-packages")
    assert {path.name for path in site.glob("*.dist-info")} == {"tiny-1.0.dist-info"}


def test_a_source_distribution_is_refused_and_none_of_it_runs(index, tmp_path):
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')\n".encode()
    with tarfile.open(index / "tiny-1.0.tar.gz", "w:gz") as archive:
        for name, data in {"setup.py": setup, "PKG-INFO": b"Name: tiny\nVersion: 1.0\n"}.items():
            entry = tarfile.TarInfo(f"tiny-1.0/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    lock(tmp_path, index / "tiny-1.0.tar.gz")
    with pytest.raises(StepFailure) as caught:
        harness.python(tmp_path / "cache", lambda _: None)
    assert caught.value.code == "wheel_not_offered"
    assert not ran.exists()
