"""The publish step with the real checkpoint writer and a real server process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from runbook.planning.context import StepContext, namespace
from runbook.process import Identity, session_members
from runbook.protocol import StepFailure
from runbook.steps.common import service
from runbook.steps.publish import Publish
from runbook.steps.publish.local_hub import SERVING, LocalHub, answers, listens
from runbook.steps.weights import Weights

pytestmark = pytest.mark.harness


@pytest.fixture
def publish(tmp_path):
    made = []

    def context(**values):
        inputs = Publish.Inputs(**{"variant": "v3", **values}).model_dump(mode="json")
        ctx = StepContext("publish", namespace(inputs), tmp_path)
        made.append(ctx)
        return ctx

    yield context
    for ctx in made:
        Publish().undo(ctx)


def code(ctx):
    check = Publish().check(ctx)
    return "" if check.ok else check.reasons[0].code


def test_apply_check_undo(publish, tmp_path):
    ctx = publish()
    step = Publish()
    assert code(ctx) == "not_published"
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok
    Publish.Outputs.model_validate(check.outputs)
    process = Identity.load(check.outputs["process"])
    assert process.alive()
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    before = check.outputs
    step.apply(ctx)
    assert step.check(ctx).outputs == before, "the second time nothing is done"
    step.undo(ctx)
    assert not process.alive()
    assert session_members(process.pid) == []
    assert not (tmp_path / "hub").exists()
    step.undo(ctx)


def test_same_inputs_give_the_same_revision_everywhere(publish, tmp_path):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    first = step.check(ctx).outputs["revision"]
    step.undo(ctx)
    step.apply(ctx)
    assert step.check(ctx).outputs["revision"] == first
    other = publish(variant="v4")
    step.apply(other)
    assert step.check(other).outputs["revision"] != first
    assert code(ctx) == "not_published", "one checkpoint at a time"


def test_killed_server_comes_back_on_the_same_port(publish):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    before = step.check(ctx).outputs
    os.kill(before["process"]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 5
    while code(ctx) != "server_not_running" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert code(ctx) == "server_not_running"
    step.apply(ctx)
    after = step.check(ctx).outputs
    assert after["hub_endpoint"] == before["hub_endpoint"]
    assert after["process"] != before["process"]


def test_stopped_server_is_found_silent_and_replaced(publish, monkeypatch):
    monkeypatch.setattr("runbook.steps.publish.local_hub.PROBE_SECONDS", 0.2)
    step, ctx = Publish(), publish()
    step.apply(ctx)
    before = step.check(ctx).outputs
    os.kill(before["process"]["pid"], signal.SIGSTOP)
    assert code(ctx) == "", "its socket still accepts"
    ctx.deep = True
    assert code(ctx) == "server_silent"
    step.apply(ctx)
    after = step.check(ctx).outputs
    assert after["process"] != before["process"]
    assert not Identity.load(before["process"]).alive()


def test_remembered_port_that_someone_took(publish):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    before = step.check(ctx).outputs
    LocalHub.of(ctx).stop()
    port = int(before["hub_endpoint"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        step.apply(ctx)
        after = step.check(ctx).outputs
        assert after["hub_endpoint"] != before["hub_endpoint"]
        fixed = publish(port=port)
        with pytest.raises(StepFailure) as failure:
            step.apply(fixed)
    assert failure.value.code == "port_taken"


def test_changed_checkpoint_is_written_again(publish):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    revision = step.check(ctx).outputs["revision"]
    folder = LocalHub.of(ctx).checkpoint
    (folder / "config.json").write_text("{}")
    assert code(ctx) == "checkpoint_changed"
    step.apply(ctx)
    assert step.check(ctx).outputs["revision"] == revision
    (folder / "config.json").unlink()
    assert code(ctx) == "checkpoint_changed"


def test_writing_that_was_interrupted_starts_again(publish, monkeypatch):
    from runbook.steps.publish import checkpoint

    step, ctx = Publish(), publish()
    with monkeypatch.context() as patch:

        def torn(folder: Path, *args: object, **options: object) -> None:
            (folder / "config.json").write_text("{")
            raise KeyboardInterrupt

        patch.setattr(checkpoint, "write", torn)
        with pytest.raises(KeyboardInterrupt):
            step.apply(ctx)
    assert code(ctx) == "not_published"
    step.apply(ctx)
    assert code(ctx) == ""


def test_server_inherits_no_descriptor_and_no_mark_of_the_attempt(publish, monkeypatch, tmp_path):
    monkeypatch.setenv("RUNBOOK_ATTEMPT", "publish.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(lock, True)
    step, ctx = Publish(), publish()
    step.apply(ctx)
    pid = step.check(ctx).outputs["process"]["pid"]
    links = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # a connection that ended meanwhile
            links.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    assert links
    assert str(tmp_path / "lock") not in links
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"RUNBOOK_ATTEMPT" not in environment
    assert b"hf_secret" not in environment
    os.close(lock)


def test_probe_of_a_port_where_no_one_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not listens(bound.getsockname()[1])
        assert not answers(bound.getsockname()[1], "a/b", "0" * 40)


def test_weights_are_downloaded_from_it(publish, tmp_path):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    published = step.check(ctx).outputs
    chosen = {k: published[k] for k in ("repo", "revision")}
    inputs = Weights.Inputs(**chosen, endpoint=published["hub_endpoint"], link="none").model_dump(
        mode="json"
    )
    weights = StepContext("weights", namespace(inputs), tmp_path)
    Weights().apply(weights)
    check = Weights().check(weights)
    assert check.outputs["revision"] == published["revision"]
    weights.deep = True
    assert Weights().check(weights).ok


def servers_of(folder: Path) -> list[int]:
    """All processes that serve from this folder."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        if b"runbook.steps.publish.server" in command and str(folder).encode() in command:
            found.append(int(entry))
    return found


def test_server_of_a_killed_attempt_is_no_second_one(publish, tmp_path):
    """The attempt was killed after it had started the server, before the server said so."""
    step, ctx = Publish(), publish()
    step.apply(ctx)
    hub = LocalHub.of(ctx)
    hub.stop()
    (hub.server / SERVING).unlink()
    service.start(hub.server, hub.spec(0))
    step.apply(ctx)
    assert servers_of(tmp_path) == [step.check(ctx).outputs["process"]["pid"]]


def test_server_of_a_killed_attempt_with_other_inputs_is_replaced(publish, tmp_path):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    hub = LocalHub.of(ctx)
    hub.stop()
    (hub.server / SERVING).unlink()
    orphan = service.start(hub.server, hub.spec(0))
    other = publish(repo="runbook/other")
    step.apply(other)
    assert orphan.members() == []
    assert servers_of(tmp_path) == [step.check(other).outputs["process"]["pid"]]


def test_a_server_that_cannot_start_is_told_in_its_own_words(publish, monkeypatch):
    step, ctx = Publish(), publish()
    step.apply(ctx)
    hub = LocalHub.of(ctx)
    hub.stop()
    monkeypatch.setattr(LocalHub, "spec", lambda self, port: broken)
    broken = {"argv": [sys.executable, "-c", "raise OSError('no hub')"], "env": {}, "path": []}
    with pytest.raises(StepFailure) as failure:
        step.apply(ctx)
    assert failure.value.code == "server_died"
    assert "OSError: no hub" in failure.value.cause
