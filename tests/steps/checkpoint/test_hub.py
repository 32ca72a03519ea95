"""The linter on a repository, served by the local hub: same findings, few bytes, no weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
from runbook.steps.checkpoint.hub import open_repository
from runbook.steps.checkpoint.lint import examine, subject
from runbook.steps.publish.handler import Handler
from runbook.steps.publish.repository import File, Repository
from runbook.steps.publish.server import start
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import V33, clean

NAME = "tests/tiny"


class Counting(Handler):
    sent = 0

    def send_content(self, file: File, start: int, stop: int) -> None:
        if file.path.endswith(".safetensors"):
            Counting.sent += stop - start
        super().send_content(file, start, stop)


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[str]:
    Counting.sent = 0
    servers = start(Repository.of(folder, NAME), handler=Counting, **options)
    try:
        yield servers[0].url
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_finds_the_same_by_headers_alone(tmp_path):
    made = tiny.v4()
    made.pop("mtp.0.enorm.weight")
    made.tensors["embed.weight"] = np.zeros((64, 256), tiny.BF16)
    folder = made.write(tmp_path / "c")
    with (folder / "model-00001-of-00002.safetensors").open("ab") as file:
        file.truncate(200 << 20)  # sparse: stands for weights that must not travel
    with served(folder) as url:
        remote = examine(subject(open_repository(NAME, url)), V33)
        sent = Counting.sent
    local = examine(subject(open_folder(folder)), V33)
    assert [f.plain() for f in remote] == [f.plain() for f in local]
    assert {"mtp_incomplete", "shard_length"} <= {f.id for f in remote}
    assert sent < 1 << 20


def test_a_header_longer_than_the_first_request(tmp_path, monkeypatch):
    folder = clean().write(tmp_path / "c")
    monkeypatch.setattr("runbook.steps.checkpoint.hub.FIRST", 1000)
    with served(folder) as url:
        found = open_repository(NAME, url)
    assert found.headers == open_folder(folder).headers


def test_a_small_page_of_the_listing(tmp_path):
    folder = clean().write(tmp_path / "c")
    with served(folder, page=2) as url:
        assert open_repository(NAME, url).sizes == open_folder(folder).sizes


@pytest.mark.parametrize("name", ["tests/other", "not a name", NAME + "@0123abc"])
def test_what_cannot_be_read(name, tmp_path):
    folder = clean().write(tmp_path / "c")
    with served(folder) as url, pytest.raises(CheckpointError) as error:
        open_repository(name, url)
    assert "HF_TOKEN" in error.value.remedy


def test_nobody_answers():
    with pytest.raises(CheckpointError):
        open_repository(NAME, "http://127.0.0.1:9")
