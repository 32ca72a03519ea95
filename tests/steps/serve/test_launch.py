"""What becomes of a server: another in its place or none, deaths, keys, long prompts."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from runbook.protocol import Cancelled, PreconditionNotMet, StepFailure
from runbook.steps.common import deaths
from runbook.steps.common.flags.command import effective
from runbook.steps.serve.api import Api, Unanswered
from runbook.steps.serve.launch import Launch
from runbook.steps.serve.models import Inputs
from runbook.steps.serve.readiness import Startup
from tests.steps.serve.conftest import READY

pytestmark = pytest.mark.harness

LOST = (
    "(EngineCore pid=1) ERROR 11-23 18:20:11 [core.py:1510] NotImplementedError: No WNA16 MoE "
    "backend supports the deployment configuration."
)


def codes(check):
    return [reason.code for reason in check.reasons]


def kill(bench):
    process = bench.service.process
    process.signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


class TestRollBack:
    @pytest.fixture
    def served(self, bench, step):
        """A server, and one in its place that cannot start."""
        step.apply(bench.context())
        first = bench.service
        bench.behave(log=READY, refuses=["--max-model-len"], lost=LOST)
        return first

    def test_the_one_of_before_serves_again(self, bench, step, served):
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(max_model_len=8192))
        assert caught.value.code == "int4_experts_unsupported"
        assert "the server that served before serves again" in caught.value.message
        assert served.process != bench.service.process
        assert step.check(bench.context()).ok
        check = step.check(bench.context(max_model_len=8192))
        assert codes(check) == ["server_changed"]
        assert Api("127.0.0.1", bench.port).models()[0]["id"] == "rehearsal"

    def test_it_can_be_left_down(self, bench, step, served):
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(max_model_len=8192, rollback=False))
        assert "before" not in caught.value.message
        assert bench.service is None

    def test_one_that_cannot_start_again_either_is_told(self, bench, step, served):
        bench.behave(log=LOST, exits=1)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(max_model_len=8192))
        assert "could not be started again either" in caught.value.cause
        assert bench.service is None

    def test_what_is_known_beforehand_stops_no_server(self, bench, step, served):
        bench.configure(num_nextn_predict_layers=0)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(max_model_len=8192))
        assert caught.value.code == "no_mtp_head"
        assert bench.service.process == served.process
        assert served.alive()

    def test_also_after_the_attempt_that_switched_was_killed(self, bench, step, served):
        """The record of the former server outlives the attempt."""
        ctx = bench.context(max_model_len=8192)
        Launch(ctx, effective(ctx.inputs), bench.workspace / "serve")._make_way(served)
        with pytest.raises(StepFailure) as caught:
            step.apply(ctx)
        assert "serves again" in caught.value.message
        assert step.check(bench.context()).ok

    def test_a_switch_that_is_cancelled_starts_the_one_of_before(
        self, bench, step, served, monkeypatch
    ):
        def cancelled(self):
            raise Cancelled

        bench.behave(log=READY)
        ctx = bench.context(max_model_len=8192)
        said = []
        ctx.on_notice = said.append
        with monkeypatch.context() as patched, pytest.raises(Cancelled):
            patched.setattr(Startup, "wait", cancelled)
            step.apply(ctx)
        assert said == ["the switch was cancelled; the server that served before starts again"]
        assert bench.service.alive() and bench.service.spec["argv"] == served.spec["argv"]
        assert codes(step.check(bench.context())) == ["server_starting"]
        process = bench.service.process
        step.apply(bench.context())
        assert bench.service.process == process, "it was waited for"
        assert step.check(bench.context()).ok
        assert not (bench.workspace / "serve" / "former.json").exists()

    def test_the_way_back_outlives_a_cancelled_switch(self, bench, step, served, monkeypatch):
        def cancelled(self):
            raise Cancelled

        with monkeypatch.context() as patched, pytest.raises(Cancelled):
            patched.setattr(Startup, "wait", cancelled)
            step.apply(bench.context(max_model_len=8192))
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(max_model_len=8192))
        assert "the server that served before serves again" in caught.value.message

    def test_a_switch_that_works_leaves_nothing_to_go_back_to(self, bench, step):
        step.apply(bench.context())
        step.apply(bench.context(max_model_len=8192))
        assert not (bench.workspace / "serve" / "former.json").exists()


class TestDeath:
    def test_it_is_named_with_its_time_and_cause_and_the_next_run_says_so(self, bench, step):
        bench.behave(log=READY)
        ctx = bench.context()
        said = []
        ctx.on_notice = said.append
        step.apply(ctx)
        with bench.service.log.open("a") as log:
            log.write(LOST + "\n")
        process = kill(bench)
        check = step.check(ctx)
        assert codes(check) == ["int4_experts_unsupported"]
        message = check.reasons[0].message
        assert f"process {process.pid} died at 20" in message
        assert "No WNA16 MoE backend supports the deployment configuration" in message
        step.apply(ctx)
        assert len(said) == 1
        assert "the server is started again" in said[0]
        assert message in said[0]
        check = step.check(ctx)
        assert check.ok
        assert codes(check) == ["server_died_before"]
        assert check.reasons[0].severity == "warning"

    def test_they_are_counted_until_another_server_is_wanted(self, bench, step):
        ctx = bench.context()
        for count in range(1, 4):
            step.apply(ctx)
            kill(bench)
            message = step.check(ctx).reasons[0].message
            assert ("so did" in message) == (count > 1)
            assert count == 1 or f"so did {count - 1} before it" in message
            assert "the log ends: " in message and "\n" not in message
        assert len(deaths.known(bench.workspace / "serve")) == 2
        other = bench.context(max_model_len=8192)
        step.apply(other)
        assert codes(step.check(other)) == []

    def test_a_service_manager_that_is_quicker_loses_none(self, bench, step):
        """As systemd does: it starts the next process by the same command."""
        from runbook.steps.common import service

        ctx = bench.context()
        step.apply(ctx)
        first = kill(bench)
        spec = bench.service.spec
        again = service.start(bench.workspace / "serve", spec)
        assert again.process != first
        check = step.check(ctx)
        assert codes(check) == ["server_starting"]
        assert f"process {first.pid} died" in check.reasons[0].message
        step.apply(ctx)
        assert bench.service.process == again.process
        assert codes(step.check(ctx)) == ["server_died_before"]

    def test_a_restarted_machine_is_no_death(self, bench, step):
        ctx = bench.context()
        step.apply(ctx)
        kill(bench)
        state = bench.workspace / "serve" / "state.json"
        record = json.loads(state.read_text())
        record["process"]["boot_id"] = "another"
        state.write_text(json.dumps(record))
        assert codes(step.check(ctx)) == ["machine_restarted"]
        step.apply(ctx)
        assert codes(step.check(ctx)) == []

    def test_what_the_service_manager_says(self, bench):
        said = "echo 'Main process exited, code=killed, status=9/KILL'; echo Stopped"
        assert deaths._journal(["sh", "-c", said]) == [
            "Main process exited, code=killed, status=9/KILL"
        ]
        assert deaths._journal(["/nonexistent"]) == []


class TestEnded:
    def test_status_tells_a_death_and_reads_it_the_next_time(self, bench, step, monkeypatch):
        bench.behave(log=READY)
        step.apply(bench.context())
        outputs = step.check(bench.context()).outputs
        assert deaths.ended("serve", outputs) is None, "it lives"
        with bench.service.log.open("a") as log:
            log.write(LOST + "\n")
        process = kill(bench)
        told = deaths.ended("serve", outputs)
        assert told["code"] == "int4_experts_unsupported"
        assert f"process {process.pid} died at 20" in told["message"]
        assert LOST in told["cause"]
        monkeypatch.setattr(deaths, "of", None)
        assert deaths.ended("serve", outputs) == told
        monkeypatch.undo()
        bench.behave(log=READY)
        step.apply(bench.context())
        told = deaths.ended("serve", outputs)
        assert f"process {bench.service.process.pid} was started in its place" in told["message"]

    def test_how_often_is_told(self, bench, step):
        for _ in range(2):
            step.apply(bench.context())
            outputs = step.check(bench.context()).outputs
            kill(bench)
        assert "so did 1 before it" in deaths.ended("serve", outputs)["message"]

    def test_what_is_no_server_of_ours_is_not_told(self, bench, step, tmp_path):
        process = {"pid": 1, "start_time": 1, "boot_id": "x"}
        assert deaths.ended("serve", {"process": process}) is None
        nowhere = {"process": process, "log": str(tmp_path / "no" / "server.log")}
        assert deaths.ended("serve", nowhere) is None


class TestForced:
    def test_a_forced_step_starts_a_healthy_server_anew(self, bench, step):
        step.apply(bench.context())
        first = bench.service.process
        ctx = bench.context()
        ctx.forced = True
        step.apply(ctx)
        assert bench.service.process != first
        assert not first.alive()
        assert codes(step.check(bench.context())) == [], "it did not die"


class TestNearLimit:
    def test_a_long_prompt_is_part_of_the_start(self, bench, step):
        step.apply(bench.context(near_limit=0.9))
        first, long = bench.requests()
        assert "messages" in first
        assert len(long["prompt"]) == int(0.9 * 4096) - 16
        assert long["max_tokens"] == 16
        assert len(set(long["prompt"])) > 100
        outputs = step.check(bench.context(near_limit=0.9)).outputs
        assert outputs["near_limit_tokens"] == len(long["prompt"])
        assert "near_limit" in outputs["phases"]

    def test_it_is_bounded(self, bench, step):
        step.apply(bench.context(near_limit=0.9, near_limit_tokens=1500))
        assert len(bench.requests()[1]["prompt"]) == 1500

    @pytest.mark.parametrize(
        ("gpus", "asked"),
        [
            ([], 1),
            ([{"index": 0, "uuid": "GPU-0", "architecture": "12.0", "memory": 96 * 2**30}], 2),
        ],
    )
    def test_by_default_on_gpus_only(self, bench, step, gpus, asked):
        ctx = bench.context()
        ctx.facts = {"gpus": gpus}
        step.apply(ctx)
        assert len(bench.requests()) == asked

    def test_a_server_that_dies_of_it_is_not_served(self, bench, step):
        bench.behave(log=READY, dies_above=2000, dies_with=LOST)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(near_limit=0.9))
        assert caught.value.code == "int4_experts_unsupported"
        bench.behave(log="", dies_above=2000, dies_with="")
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(near_limit=0.9))
        assert caught.value.code == "server_died"
        step.apply(bench.context(near_limit=0.4))


class TestKey:
    def test_other_machines_need_one_that_only_a_file_has(self, bench, step, monkeypatch):
        monkeypatch.setenv("VLLM_API_KEY", "of-another-server")
        ctx = bench.context(host="0.0.0.0")
        step.apply(ctx)
        check = step.check(ctx)
        file = Path(check.outputs["api_key_file"])
        value = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(value) >= 32
        pid = bench.service.process.pid
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"VLLM_API_KEY={value}".encode() in environment
        assert value not in Path(f"/proc/{pid}/cmdline").read_text()
        for path in (bench.workspace / "serve").iterdir():
            if path.is_file() and path != file:
                assert value not in path.read_text()
        with pytest.raises(Unanswered, match="401"):
            Api("127.0.0.1", bench.port).models()
        ctx.deep = True
        assert step.check(ctx).ok
        step.apply(bench.context(host="0.0.0.0", max_model_len=8192))
        assert file.read_text().strip() == value, "clients keep it"

    def test_this_machine_needs_none_unless_it_is_given(self, bench, step, tmp_path):
        step.apply(bench.context())
        assert step.check(bench.context()).outputs["api_key_file"] is None
        file = tmp_path / "key"
        file.write_text("secret-of-mine\n")
        file.chmod(0o600)
        given = {"api_key_file": str(file)}
        assert codes(step.check(bench.context(**given))) == ["server_changed"]
        step.apply(bench.context(**given))
        assert Api("127.0.0.1", bench.port, "secret-of-mine").models()

    @pytest.mark.parametrize(
        ("content", "mode", "code"),
        [
            (None, 0, "api_key_missing"),
            ("", 0o600, "api_key_missing"),
            ("secret", 0o644, "api_key_exposed"),
        ],
    )
    def test_files_that_cannot_be_used(self, bench, step, tmp_path, content, mode, code):
        file = tmp_path / "key"
        if content is not None:
            file.write_text(content)
            file.chmod(mode)
        with pytest.raises(PreconditionNotMet) as caught:
            step.apply(bench.context(api_key_file=str(file)))
        assert caught.value.code == code
        assert str(file) in str(caught.value.remedy)
        assert bench.service is None

    @pytest.mark.parametrize("given", [[], ["--a"], ["--hf-token"], ["--hf-token", "--seed", "1"]])
    def test_what_is_no_key_is_taken(self, given):
        inputs = Inputs(vllm="v", model="m", served_model_name="n", extra_args=given)
        assert inputs.extra_args == given

    @pytest.mark.parametrize(
        ("given", "way"),
        [
            *(({"extra_args": given}, "api_key_file") for given in (
                ["--api-key", "hunter2"], ["--api-key=hunter2"], ["--api_key=hunter2"],
                ["--api-k", "hunter2"], ["--seed", "1", "--api_ke=hunter2"],
            )),
            *(({"extra_args": given}, "hf auth login") for given in (
                ["--hf-token", "hunter2"], ["--hf_token=hunter2"], ["--hf-tok", "hunter2"],
            )),
            ({"env": [{"VLLM_API_KEY": "hunter2"}]}, "api_key_file"),
            ({"env": [{}, {"HF_TOKEN": "hunter2"}]}, "hf auth login"),
            ({"env": [{"HUGGING_FACE_HUB_TOKEN": "hunter2"}]}, "hf auth login"),
            (
                {"profile": "p", "profiles": {"p": {"extra_args": ["--api-key=hunter2"]}}},
                "api_key_file",
            ),
        ],
    )  # fmt: skip
    def test_a_key_elsewhere_is_refused_with_the_way_that_is_right(self, given, way):
        base = {"vllm": "v", "model": "m", "served_model_name": "n"}
        with pytest.raises(ValidationError) as caught:
            Inputs(**base, **given)
        (error,) = caught.value.errors()
        assert way in error["msg"]
        assert "hunter2" not in error["msg"]

    @pytest.mark.parametrize("given", [["--hf-token"], ["--hf-token", "--seed", "1"], ["-", "--"]])
    def test_what_holds_no_key_is_taken(self, given):
        inputs = Inputs(vllm="v", model="m", served_model_name="n", extra_args=given)
        assert inputs.extra_args == given


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        ("127.0.0.1", False),
        ("localhost", False),
        ("::1", False),
        ("127.0.1.1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.1", True),
        ("gpu-box", True),
    ],
)
def test_where_a_key_is_needed(tmp_path, host, needed):
    from types import SimpleNamespace

    from runbook.steps.serve import key

    inputs = SimpleNamespace(host=host, api_key_file=None)
    assert (key.path(tmp_path, inputs) is not None) == needed
    key.require(tmp_path, inputs)
    assert os.listdir(tmp_path) == (["api_key"] if needed else [])
