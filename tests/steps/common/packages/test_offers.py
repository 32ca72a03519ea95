"""The wheel that plain indexes lack: who offers it, and in what order they are asked."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from runbook.protocol import PreconditionNotMet
from runbook.steps.common.packages.offers import source_of
from runbook.steps.common.store import sha256_file
from runbook.steps.common.vllm_release import ENV, OwnIndex, load_release

from ...vllm.conftest import write_wheel
from .index import Index

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ABI = f"cp{PYTHON.replace('.', '')}"
TAG = f"{ABI}-{ABI}-manylinux_2_17_{os.uname().machine}"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two folders of wheels, `configured` and `own`, each served as an index; pip and uv know
    neither yet."""
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    servers = {}
    for name in ("configured", "own"):
        (tmp_path / name).mkdir()
        servers[name] = Index(tmp_path / name)
    yield tmp_path, servers
    for server in servers.values():
        server.shutdown()
        server.server_close()


def put(folder, content="x = 1\n"):
    return write_wheel(folder, "torch", "2.0+cpu", TAG, {"torch/__init__.py": content})


# Who has the wheel (503: does not answer; `other`: another file under its name, which only the
# installation finds out, by its hash), and who gives it.
CASES = [
    ("yes", "yes", "configured"),
    ("yes", "503", "configured"),
    ("no", "yes", "own"),
    ("other", "yes", "configured"),
    ("503", "yes", "unknown"),
    ("no", "no", None),
    ("no", "503", None),
]


@pytest.mark.harness
@pytest.mark.parametrize(("configured", "own", "given"), CASES)
@pytest.mark.parametrize("how", ["pip's index", "pip's extra index", "uv's index"])
def test_the_own_index_is_asked_only_if_the_configured_lack_it(
    world, monkeypatch, how, configured, own, given
):
    folder, servers = world
    wheel = put(folder)
    for name, has in (("configured", configured), ("own", own)):
        if has == "yes":
            put(folder / name)
        elif has == "other":
            put(folder / name, "other = 1\n")
        elif has == "503":
            servers[name].status = 503
    address = servers["configured"].url
    monkeypatch.setenv("PIP_INDEX_URL", address)
    if how == "pip's extra index":
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/nothing")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", address)
    elif how == "uv's index":
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/wrong")
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
    own_index = OwnIndex(servers["own"].url, {wheel.name: sha256_file(wheel)})
    if given is None:
        with pytest.raises(PreconditionNotMet) as caught:
            source_of(own_index, PYTHON)
        assert caught.value.code == "wheel_not_offered"
        assert servers["own"].url in caught.value.cause
        assert caught.value.retryable == (own == "503")
        assert wheel.name in str(caught.value.remedy)
        return
    source = source_of(own_index, PYTHON)
    assert source.known == (given != "unknown")
    assert source.index == (servers["own"].url if given == "own" else "")
    assert bool(servers["own"].asked) == (given == "own")
    assert not [path for path in servers["own"].asked if path.endswith(".zip")]


def test_a_folder_of_wheels_counts_and_no_index_is_respected(world, monkeypatch):
    folder, servers = world
    wheel = put(folder / "own")
    own_index = OwnIndex(servers["own"].url, {wheel.name: sha256_file(wheel)})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PreconditionNotMet):
        source_of(own_index, PYTHON)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder / "own"))
    assert source_of(own_index, PYTHON).index == ""
    assert servers["own"].asked == []


@pytest.mark.parametrize("variable", ["UV_NO_INDEX", "UV_OFFLINE"])
def test_uv_told_to_ask_nobody_asks_nobody(world, monkeypatch, variable):
    folder, servers = world
    wheel = put(folder / "own")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("PIP_INDEX_URL", servers["configured"].url)
    with pytest.raises(PreconditionNotMet):
        source_of(OwnIndex(servers["own"].url, {wheel.name: sha256_file(wheel)}), PYTHON)
    assert servers["own"].asked == []


def test_passwords_of_indexes_stay_out_of_the_words(world, monkeypatch):
    folder, servers = world
    wheel = put(folder)
    address = servers["configured"].url.replace("//", "//user:hunter2@")
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(PreconditionNotMet) as caught:
        source_of(OwnIndex(servers["own"].url, {wheel.name: sha256_file(wheel)}), PYTHON)
    assert "hunter2" not in f"{caught.value.cause} {caught.value.remedy}"


def test_every_python_of_the_cpu_lock_has_its_wheel_and_hash(monkeypatch):
    release = load_release(ENV / "vllm-0.32.0-cpu.lock.json")
    requirements = release.requirements.read_text()
    assert release.pythons == ("3.11", "3.12", "3.13", "3.14")
    for machine in ("x86_64", "aarch64"):
        told = SimpleNamespace(machine=machine)
        monkeypatch.setattr(os, "uname", lambda told=told: told)
        for python in release.pythons:
            wheel = release.own_index.wheel(python)
            assert wheel.version == "2.13.0+cpu"
            assert f"cp{python.replace('.', '')}-manylinux_2_28_{machine}" in wheel.file
            assert f"--hash=sha256:{wheel.sha256}" in requirements
    assert release.own_index.wheel("3.10") is None
