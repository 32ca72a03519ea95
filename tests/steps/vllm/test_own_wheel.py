"""A requirement that only its publisher's own index has, as PyTorch's build for CPUs is."""

from __future__ import annotations

import os

import pytest

from runbook.protocol import PreconditionNotMet
from runbook.steps.common.store import sha256_file
from runbook.steps.vllm import Vllm

from ..common.packages.index import Index
from .conftest import PYTHON, write_wheel

pytestmark = pytest.mark.harness

STEP = Vllm()
ABI = f"cp{PYTHON.replace('.', '')}"
TAG = f"{ABI}-{ABI}-manylinux_2_17_{os.uname().machine}"


@pytest.fixture
def publisher(world, tmp_path, monkeypatch):
    """The world, whose lock wants a torch that only the index `publisher` may have."""
    folder = tmp_path / "publisher"
    folder.mkdir()
    wheel = write_wheel(folder, "torch", "2.0+cpu", TAG, {"torch/__init__.py": "x = 1\n"})
    digest = sha256_file(wheel)
    with (world.root / "l.txt").open("a") as requirements:
        requirements.write(f"torch==2.0+cpu --hash=sha256:{digest}\n")
    configured, own = Index(world.index), Index(folder)
    world.edit_lock(own_index={"url": own.url, "wheels": {wheel.name: digest}})
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", configured.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    own.wheel = wheel
    yield own
    for server in (configured, own):
        server.shutdown()
        server.server_close()


def test_it_is_fetched_there_once_and_kept(world, publisher):
    context = world.context()
    STEP.apply(context)
    assert STEP.check(context).ok
    assert f"torch 2.0+cpu comes from {publisher.url}" in context.out.getvalue()
    fetched = [path for path in publisher.asked if path.endswith(".whl")]
    assert len(fetched) == 1
    publisher.asked.clear()
    STEP.apply(world.context("other"))
    assert publisher.asked == [], "the cache has it"


def test_nobody_else_is_asked_where_the_users_folder_has_it(world, publisher, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(publisher.folder))
    STEP.apply(world.context())
    assert publisher.asked == []


def test_where_nobody_has_it_nothing_is_built(world, publisher):
    publisher.wheel.unlink()
    context = world.context()
    with pytest.raises(PreconditionNotMet) as caught:
        STEP.apply(context)
    assert caught.value.code == "wheel_not_offered"
    assert "PIP_FIND_LINKS" in str(caught.value.remedy)
    assert not (world.cache / "built").exists()
    assert not list(context.workspace.iterdir())
