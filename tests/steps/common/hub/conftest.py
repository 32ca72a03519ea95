"""Fixtures: a small repository, a hub that serves it, and no trace of this user's own hub."""

from __future__ import annotations

import pytest

from runbook.steps.common.network import CERTIFICATES
from runbook.steps.publish.repository import Repository
from tests.steps.common.hub import hub as support


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No token, cache, endpoint or network setting of the environment takes part."""
    network = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for name in (
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
        *(*CERTIFICATES, *network, *map(str.lower, network)),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    support.write_repository(folder)
    return folder


@pytest.fixture(scope="session")
def repository(source):
    return Repository.of(source, "org/tiny")


@pytest.fixture
def hub(repository):
    with support.TestHub(repository) as started:
        yield started


@pytest.fixture
def folder(tmp_path):
    """Where the step puts the files."""
    return tmp_path / "workspace" / "weights" / "tiny"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Apply the step with small segments and quick retries; returns what it logged."""
    from runbook.steps.common.hub import acquire
    from runbook.steps.weights import Weights

    def apply(hub, **values) -> list[str]:
        lines: list[str] = []
        ctx = support.context(tmp_path / "workspace", hub, lines=lines, **values)
        step = Weights()
        try:
            step.apply(ctx)
        finally:
            apply.lines = lines
        assert step.check(ctx).ok
        return lines

    monkeypatch.setattr(acquire, "DEFAULT_TUNING", support.TUNING)
    return apply
