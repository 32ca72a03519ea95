"""The linter on a repository, served by the local hub: same findings, few bytes, no weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runbook.cli.main import invoke
from runbook.protocol import StepFailure
from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
from runbook.steps.checkpoint.hub import open_repository, small_files
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
def served(
    source: Path | Repository, handler: type[Handler] = Counting, **more: Any
) -> Iterator[str]:
    Counting.sent = 0
    repository = source if isinstance(source, Repository) else Repository.of(source, NAME)
    servers = start(repository, handler=handler, **more)
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


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("tests/other", "repository_not_found"),
        (NAME + "@0123abc", "revision_not_found"),
    ],
)
def test_what_cannot_be_read(name, code, tmp_path):
    folder = clean().write(tmp_path / "c")
    with served(folder) as url, pytest.raises(StepFailure) as failure:
        open_repository(name, url)
    assert failure.value.code == code
    assert "runbook run" not in str(failure.value.remedy)


@pytest.mark.parametrize("name", ["not a name", "/no/such/folder", "./x", "a/b/c", ""])
def test_neither_folder_nor_repository(name):
    with pytest.raises(CheckpointError, match="neither a folder"):
        open_repository(name, "http://127.0.0.1:9")


def test_no_checkpoint(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x.gguf").write_bytes(b"GGUF")
    with served(tmp_path / "c") as url, pytest.raises(CheckpointError, match="GGUF"):
        open_repository(NAME, url)


class Echoing(Counting):
    """Sends back who asks, where a commit belongs or as the words of a config."""

    def _info(self) -> dict[str, Any]:
        return {**super()._info(), "sha": f"for {self.headers.get('Authorization')}"}


@pytest.mark.parametrize("form", [["--json"], ["--brief"], []])
@pytest.mark.parametrize("known", ["variable", "login"])
def test_the_token_is_in_no_answer(form, known, tmp_path, monkeypatch, capsys):
    token = f"hf_aToken{known}OfTests"
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    if known == "variable":
        (tmp_path / "token").unlink()
        monkeypatch.setenv("HF_TOKEN", token)
    with served(clean().write(tmp_path / "c"), Echoing) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert invoke(["lint", NAME, *form]) == 3
    said = "".join(capsys.readouterr())
    assert "Bearer [HF_TOKEN]" in said
    assert token not in said


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "http://", "http://name:passw0rd1@", "ftp://host", "file:///etc", "//host"),
        *(
            "http://name:passw0rd1@[::1",
            "http://host:99999",
            "http://host:x",
            "name:passw0rd1@host",
        ),
        *("http://[", "https://:443", " "),
    ],
)
def test_an_endpoint_that_is_no_address(url, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert invoke(["lint", NAME, "--json"]) == 3
    said = "".join(capsys.readouterr())
    assert json.loads(said)["error"]["code"] == "bad_endpoint"
    assert "passw0rd1" not in said


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("HF_ENDPOINT", "http://name:passw0rd1@[::1", "bad_endpoint"),
        ("HF_ENDPOINT", "http://host:99999", "bad_endpoint"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "bad_environment"),
    ],
)
def test_settings_that_the_library_of_the_hub_does_not_take(variable, value, code):
    """It reads them when it is imported, once in a process."""
    told = subprocess.run(
        [sys.executable, "-m", "runbook", "lint", NAME, "--json"],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 3, told.stderr
    assert json.loads(told.stdout)["error"]["code"] == code
    assert "passw0rd1" not in told.stdout + told.stderr


def answering(status: int) -> type[Handler]:
    class Content(Counting):
        """A store of content that answers so; the hub itself is well."""

        def _content(self, path: str) -> None:
            self._send(HTTPStatus(status), {"Content-Length": "0"})

    return Content


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        (401, "repository_not_found", False),
        (403, "hub_refused", False),
        (404, "hub_refused", False),
        (429, "hub_busy", True),
        (500, "hub_busy", True),
        (503, "hub_busy", True),
    ],
)
def test_a_store_that_gives_nothing(status, code, again, tmp_path, monkeypatch):
    monkeypatch.setattr("runbook.steps.checkpoint.hub.LONGEST_WAIT", 0.0)
    folder = clean().write(tmp_path / "c")
    with served(folder, answering(status)) as url, pytest.raises(StepFailure) as failure:
        open_repository(NAME, url)
    assert (failure.value.code, failure.value.retryable) == (code, again)


class Whole(Counting):
    """Sends whole files, whatever part is asked for."""

    def _send_file(self, file: File, headers: dict[str, str]) -> None:
        del self.headers["Range"]
        super()._send_file(file, headers)


def test_a_store_that_knows_no_ranges(tmp_path, monkeypatch):
    folder = clean().write(tmp_path / "c")
    with served(folder, Whole) as url:
        assert open_repository(NAME, url).headers == open_folder(folder).headers
    monkeypatch.setattr("runbook.steps.checkpoint.hub.FIRST", 1000)
    with served(folder, Whole) as url, pytest.raises(StepFailure) as failure:
        open_repository(NAME, url)
    assert failure.value.code == "no_ranges"


class Elsewhere(Counting):
    """Says that the content is of another commit."""

    def _send(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        if "X-Repo-Commit" in headers:
            headers = {**headers, "X-Repo-Commit": "b" * 40}
        super()._send(status, headers)


def test_content_of_another_commit(tmp_path):
    folder = clean().write(tmp_path / "c")
    with served(folder, Elsewhere) as url, pytest.raises(StepFailure) as failure:
        open_repository(NAME, url)
    assert failure.value.code == "other_revision"


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr("runbook.steps.checkpoint.hub.LONGEST_WAIT", 0.0)
    with pytest.raises(StepFailure) as failure:
        open_repository(NAME, "http://127.0.0.1:9")
    assert failure.value.code == "hub_busy" and failure.value.retryable


def test_shards_are_read_side_by_side(tmp_path):
    """Each answer waits until as many are asked for as there are shards."""
    folder = clean().write(tmp_path / "c")
    shards = len(list(folder.glob("*.safetensors")))
    together = threading.Barrier(shards)

    class Meeting(Counting):
        def send_content(self, file: File, start: int, stop: int) -> None:
            if file.path.endswith(".safetensors"):
                together.wait(30)
            super().send_content(file, start, stop)

    with served(folder, Meeting) as url:
        assert len(open_repository(NAME, url).headers) == shards > 1


def test_the_small_files_alone_are_fetched(tmp_path):
    folder = clean().write(tmp_path / "c")
    (folder / "tokenizer.json").write_text("{}")
    with served(folder) as url:
        small_files(NAME, tmp_path / "small", url)
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert names == {"config.json", "tokenizer.json"}
    assert (tmp_path / "small/config.json").read_bytes() == (folder / "config.json").read_bytes()
