"""The step against real processes and sockets, `vllm` played by a program of ours."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runbook.process import Identity, session_members
from runbook.protocol import Cancelled, PreconditionNotMet, StepFailure
from runbook.steps.common import become, endpoint, jit, service
from runbook.steps.serve import readiness
from runbook.steps.serve.api import Api
from runbook.steps.serve.models import Outputs

pytestmark = pytest.mark.harness

LOGS = Path(__file__).parent / "logs"
RECORDED = Path(__file__).parents[1] / "common" / "diagnoses" / "logs"


def codes(check):
    return [reason.code for reason in check.reasons]


class TestReady:
    def test_apply_serves_and_check_holds_then(self, bench, step, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        ctx = bench.context()
        assert codes(step.check(ctx)) == ["not_started"]
        step.apply(ctx)
        check = step.check(ctx)
        assert check.ok
        outputs = Outputs.model_validate(check.outputs)
        assert outputs.endpoint == f"http://127.0.0.1:{bench.port}/v1"
        assert (outputs.model, outputs.supervisor) == ("rehearsal", "session")
        # What the recorded log says.
        assert outputs.kv_cache_tokens == 58_240
        assert outputs.max_concurrency == 14.22
        assert outputs.draft_head_shared is True
        assert Api("127.0.0.1", bench.port).models()[0]["id"] == "rehearsal"

    def test_it_outlives_its_attempt_in_a_session_of_its_own(self, bench, step):
        step.apply(bench.context())
        pid = bench.service.process.pid
        assert os.getsid(pid) == pid != os.getsid(0)

    def test_nothing_of_the_attempt_is_inherited(self, bench, step, monkeypatch, tmp_path):
        monkeypatch.setenv("RUNBOOK_ATTEMPT", "1")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
        os.set_inheritable(lock, True)
        step.apply(bench.context())
        os.close(lock)
        pid = bench.service.process.pid
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {entry.partition(b"=")[0] for entry in environment}
        assert not names & {b"RUNBOOK_ATTEMPT", b"HF_TOKEN"}
        assert b"HF_HUB_OFFLINE=1" in environment
        files = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
        assert str(tmp_path / "lock") not in files
        assert "hf_secret" not in bench.service.folder.joinpath("state.json").read_text()

    def test_the_first_completion_is_part_of_the_start(self, bench, step):
        warm_up = {"prompt": "ping", "max_tokens": 5, "chat_template_kwargs": {"thinking": False}}
        step.apply(bench.context(warm_up=warm_up))
        assert bench.requests() == [
            {
                "model": "rehearsal",
                "messages": [{"role": "user", "content": "ping"}],
                "max_tokens": 5,
                "temperature": 0,
                "chat_template_kwargs": {"thinking": False},
            }
        ]

    def test_compiled_kernels_stay_for_later_starts_whatever_the_profile(self, bench, step):
        """In a folder of the wheel and the architecture, which the server is told of."""
        digests = {"build": "w" * 64}
        for length in (1024, 2048):
            ctx = bench.context(digests=digests, max_model_len=length)
            step.apply(ctx)
            place = ctx.cache / "jit" / ("w" * 64) / "cpu"
            environment = Path(f"/proc/{bench.service.process.pid}/environ").read_bytes()
            for name, folder in jit.VARIABLES.items():
                assert f"{name}={place / folder}".encode() in environment.split(b"\0")
            (place / "triton").mkdir(exist_ok=True)
            (place / "triton/kernel.so").touch()
            outputs = step.check(ctx).outputs
            assert outputs["start_seconds"] == pytest.approx(sum(outputs["phases"].values()))
            key = "first_start_seconds" if length == 1024 else "later_start_seconds"
            assert outputs[key] == outputs["start_seconds"]
        assert outputs["first_start_seconds"] is not None

    def test_a_cache_that_the_book_names_is_left_to_it(self, bench, step, tmp_path):
        own = {"VLLM_STAND_IN": str(bench.plan), "TRITON_CACHE_DIR": str(tmp_path)}
        step.apply(bench.context(digests={"build": "w"}, env=[own]))
        environment = Path(f"/proc/{bench.service.process.pid}/environ").read_bytes()
        assert f"TRITON_CACHE_DIR={tmp_path}".encode() in environment.split(b"\0")

    def test_the_seconds_of_each_phase_are_kept(self, bench, step):
        recorded = "one-h200-six-layers-served.log"
        bench.behave(log=(RECORDED / recorded).read_text(), line_delay=0.002)
        step.apply(bench.context())
        phases = step.check(bench.context()).outputs["phases"]
        assert list(phases)[:4] == ["processes", "load", "prepare", "load_draft"]
        assert list(phases)[-3:] == ["engine", "server", "first_request"]
        assert sum(phases.values()) > 0

    def test_progress_is_what_the_log_tells(self, bench, step):
        step.apply(bench.context())
        assert (5, 5, "shards", "load the draft's weights") in bench.progress
        assert bench.progress[-1][3] == "answer the first request"

    def test_a_second_apply_leaves_the_server_alone(self, bench, step):
        step.apply(bench.context())
        first = bench.service.process
        step.apply(bench.context())
        assert bench.service.process == first

    def test_a_quick_check_asks_once_and_starts_nothing(self, bench, step, audit):
        ctx = bench.context()
        step.apply(ctx)
        before = bench.requests()
        with audit() as seen:
            assert step.check(ctx).ok
        assert seen.connected == [("127.0.0.1", bench.port)]
        assert not seen.started
        assert bench.requests() == before

    def test_the_thorough_form_asks_the_api(self, bench, step):
        step.apply(bench.context())
        ctx = bench.context()
        ctx.deep = True
        assert step.check(ctx).ok
        bench.behave(lists="llama")
        assert codes(step.check(ctx)) == ["wrong_model"]

    def test_a_kv_cache_for_fewer_sequences_is_told(self, bench, step):
        ctx = bench.context(max_num_seqs=15)
        step.apply(ctx)
        check = step.check(ctx)
        assert check.ok
        assert codes(check) == ["kv_cache_below_max_num_seqs"]
        assert check.reasons[0].severity == "warning"

    def test_a_server_for_all_addresses_is_asked_here(self, bench, step):
        step.apply(bench.context(host="0.0.0.0"))
        check = step.check(bench.context(host="0.0.0.0"))
        assert check.outputs["endpoint"] == f"http://127.0.0.1:{bench.port}/v1"

    def test_logs_are_rotated(self, bench, step):
        for n in range(become.KEPT_LOGS + 2):
            step.apply(bench.context(max_num_seqs=n + 1))
        folder = bench.workspace / "serve"
        kept = sorted(p.name for p in folder.glob("server.log*"))
        assert kept == ["server.log", *(f"server.log.{n}" for n in range(1, become.KEPT_LOGS))]


class TestChange:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"max_model_len": 8192}, "--max-model-len"),
            ({"digests": {"weights": "b"}}, "weights"),
        ],
    )
    def test_another_server_takes_its_place(self, bench, step, change, named):
        step.apply(bench.context())
        first = bench.service.process
        check = step.check(bench.context(**change))
        assert codes(check) == ["server_changed"]
        assert named in check.reasons[0].message
        step.apply(bench.context(**change))
        assert not first.alive()
        assert bench.service.process != first
        assert step.check(bench.context(**change)).ok

    def test_a_profile_is_laid_over_the_flags(self, bench, step):
        profiles = {
            "long": {"max_model_len": 524288, "env": [{"A": "2"}]},
            "short": {"max_model_len": 131072, "max_num_seqs": 8},
        }
        flags = {"max_model_len": 1, "max_num_seqs": 2, "profiles": profiles}
        flags["env"] = [{"VLLM_STAND_IN": str(bench.plan), "A": "1"}]
        step.apply(bench.context(**flags, profile="long"))
        argv = bench.service.spec["argv"]
        assert argv[argv.index("--max-model-len") + 1] == "524288"
        assert argv[argv.index("--max-num-seqs") + 1] == "2"
        assert bench.service.spec["env"]["A"] == "2"
        check = step.check(bench.context(**flags, profile="short"))
        assert "--max-model-len, --max-num-seqs, A" in check.reasons[0].message

    def test_an_unknown_profile_is_refused(self, bench):
        with pytest.raises(ValueError, match="no profile is called 'fast'; there are: none"):
            bench.inputs(profile="fast")

    def test_a_dead_server_is_started_anew(self, bench, step):
        step.apply(bench.context())
        bench.service.process.signal(signal.SIGKILL)
        wait_until(lambda: not bench.service.alive())
        assert codes(step.check(bench.context())) == ["server_dead"]
        step.apply(bench.context())
        assert step.check(bench.context()).ok

    def test_leftovers_of_a_dead_server_are_ended_first(self, bench, step):
        bench.behave(child=True)
        step.apply(bench.context())
        first = bench.service.process
        first.signal(signal.SIGKILL)
        wait_until(lambda: not first.alive())
        assert len(session_members(first.pid)) == 1
        step.apply(bench.context())
        assert session_members(first.pid) == []
        assert step.check(bench.context()).ok

    def test_a_server_that_hangs_is_seen(self, bench, step, monkeypatch):
        monkeypatch.setattr(endpoint.health, "__defaults__", (0.3, "/health"))
        step.apply(bench.context())
        os.kill(bench.service.process.pid, signal.SIGSTOP)
        began = time.perf_counter()
        check = step.check(bench.context())
        assert time.perf_counter() - began < 10
        os.kill(bench.service.process.pid, signal.SIGCONT)
        assert codes(check) == ["server_slow"]

    def test_a_server_that_hangs_is_replaced(self, bench, step, monkeypatch):
        monkeypatch.setattr(endpoint.health, "__defaults__", (0.3, "/health"))
        monkeypatch.setattr("runbook.steps.serve.launch.RECOVERY_SECONDS", 0.5)
        ctx = bench.context(stop_grace=0.5)
        step.apply(ctx)
        first = bench.service.process
        os.kill(first.pid, signal.SIGSTOP)
        step.apply(ctx)
        assert not first.alive()
        assert bench.service.process != first
        assert step.check(ctx).ok

    def test_a_server_that_was_busy_is_left_alone(self, bench, step, monkeypatch):
        monkeypatch.setattr(endpoint.health, "__defaults__", (0.2, "/health"))
        ctx = bench.context()
        step.apply(ctx)
        first = bench.service.process
        os.kill(first.pid, signal.SIGSTOP)
        timer = threading.Timer(0.6, os.kill, (first.pid, signal.SIGCONT))
        timer.start()
        assert codes(step.check(ctx)) == ["server_slow"]
        step.apply(ctx)
        timer.join()
        assert bench.service.process == first

    def test_a_server_that_is_ill_is_seen(self, bench, step):
        step.apply(bench.context())
        bench.behave(health=503)
        assert codes(step.check(bench.context())) == ["server_unhealthy"]


class TestFailure:
    @pytest.mark.parametrize(
        ("log", "cause"),
        [
            ("mtp_weights_missing", "MTP speculative decoding layer 3 weights missing"),
            ("kv_cache_too_small", "the estimated maximum model length is 192"),
            ("numa_nodes", "Not enough allowed NUMA nodes to bind threads of 2"),
            ("cpu_without_bf16", "no attribute 'convert_weight_packed'"),
        ],
    )
    def test_known_failures_have_their_remedy(self, bench, step, log, cause):
        bench.behave(log=(LOGS / f"{log}.log").read_text(), exits=1)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == log
        assert cause in caught.value.cause
        assert caught.value.remedy
        assert caught.value.where.endswith("server.log")
        assert bench.service is None

    def test_a_known_fatal_line_ends_the_wait_while_the_process_lives(self, bench, step):
        line = "(EngineCore pid=1) ERROR 11-23 18:20:11 [core.py:1510] NotImplementedError: No "
        line += "WNA16 MoE backend supports the deployment configuration."
        bench.behave(log=line, hangs=True, child=True)
        began = time.monotonic()
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "int4_experts_unsupported"
        assert time.monotonic() - began < 30
        assert bench.service is None

    def test_an_unknown_failure_gives_the_root_cause_of_the_log(self, bench, step):
        text = (LOGS / "numa_nodes.log").read_text().replace("Not enough allowed NUMA", "No XYZ")
        bench.behave(log=text, exits=1)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "server_died"
        assert caught.value.cause.startswith("AssertionError: No XYZ nodes to bind threads")

    def test_a_wrong_flag_is_told_in_the_parsers_words(self, bench, step):
        bench.behave(log=(LOGS / "bad_flag.log").read_text(), exits=2)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.cause.endswith("unrecognized arguments: --no-such-flag")

    def test_a_program_that_cannot_be_executed(self, bench, step):
        bench.vllm.write_text("#!/nonexistent/python\n")
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert "cannot start" in caught.value.cause

    def test_time_out_names_the_phase(self, bench, step):
        bench.behave(log="INFO 11-23 18:20:11 [x.py:1] Starting to load model m...", hangs=True)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(start_timeout=1))
        assert caught.value.code == "start_timeout"
        assert "start_timeout" in str(caught.value.remedy)
        assert "load weights" in caught.value.cause
        assert bench.service is None

    def test_health_alone_proves_nothing(self, bench, step):
        trace = (
            "(EngineCore pid=7) ERROR 11-23 18:20:11 [core.py:1512] "
            "Traceback (most recent call last):\n"
            "(EngineCore pid=7) ERROR 11-23 18:20:11 [core.py:1512] "
            "TypeError: 'function' object is not subscriptable"
        )
        bench.behave(log="", dies_at_request=trace)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert "'function' object is not subscriptable" in caught.value.cause

    def test_an_error_at_the_first_request(self, bench, step, monkeypatch):
        monkeypatch.setattr(readiness, "SETTLE_SECONDS", 0.5)
        bench.behave(request_status=500, request_body='{"error": "out of cheese"}')
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "first_completion_failed"
        assert "out of cheese" in caught.value.cause

    def test_a_first_request_that_hangs_does_not_hide_the_log(self, bench, step):
        bench.behave(request_delay=600, log="")
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(start_timeout=2))
        assert caught.value.code == "start_timeout"

    def test_no_drafts(self, bench, step):
        bench.behave(log="", no_speculation=True)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "no_drafts"
        bench.behave(log="", drafts={"echo": 0}, accepts={"echo": 0})
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "no_drafts"

    def test_a_head_is_judged_by_what_is_accepted_of_enough_drafts(self, bench, step):
        """Not by what the log does not say."""
        drafts = {"min_acceptance": 0.3, "least_tokens": 40}
        bench.behave(log="", accepts={"echo": 0})
        step.apply(bench.context())
        assert step.check(bench.context()).outputs["accepted"] == 0
        step.undo(bench.context())
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context(drafts=drafts))
        assert caught.value.code == "drafts_rejected"
        assert caught.value.message.startswith("0 of 40 drafted tokens")
        step.apply(bench.context(drafts=drafts | {"chance": True}))
        assert len(bench.requests()) == 4 + 1
        step.undo(bench.context())
        bench.behave(log="", accepts={"echo": 3})
        step.apply(bench.context(drafts=drafts))

    def test_without_speculation_no_drafts_are_asked_for(self, bench, step):
        bench.behave(log="", no_speculation=True)
        step.apply(bench.context(speculative_config=None))
        assert (
            step.check(bench.context(speculative_config=None)).outputs["draft_head_shared"] is None
        )

    def test_another_server_answers(self, bench, step):
        bench.behave(log="", lists="llama")
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "wrong_model"
        assert "llama" in caught.value.message


class TestBeforehand:
    def test_a_stranger_on_the_port_is_named(self, bench, step):
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", bench.port))
            stranger.listen()
            with pytest.raises(PreconditionNotMet) as caught:
                step.apply(bench.context())
        assert str(os.getpid()) in caught.value.message
        assert f"kill {os.getpid()}" in str(caught.value.remedy)
        assert bench.service is None

    @pytest.mark.parametrize(
        ("config", "code"),
        [
            (None, "model_missing"),
            ("{", "model_damaged"),
            ('{"num_nextn_predict_layers": 0}', "no_mtp_head"),
            ("{}", "no_mtp_head"),
        ],
    )
    def test_a_model_that_vllm_would_misunderstand(self, bench, step, config, code):
        path = bench.model / "config.json"
        path.unlink() if config is None else path.write_text(config)
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == code

    def test_no_program(self, bench, step):
        bench.vllm.unlink()
        with pytest.raises(StepFailure) as caught:
            step.apply(bench.context())
        assert caught.value.code == "vllm_missing"


class TestStop:
    def test_undo_leaves_nothing(self, bench, step):
        bench.behave(child=True, ignores_sigint=True)
        ctx = bench.context(stop_grace=0.3)
        step.apply(ctx)
        pid = bench.service.process.pid
        assert len(session_members(pid)) == 2
        step.undo(ctx)
        assert session_members(pid) == []
        assert not (bench.workspace / "serve").exists()
        step.undo(ctx)

    def test_a_cancelled_start_leaves_nothing(self, bench, step):
        bench.behave(hangs=True, log="")

        def cancel(*_):
            raise Cancelled

        before = signal.signal(signal.SIGALRM, cancel)
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        try:
            with pytest.raises(Cancelled):
                step.apply(bench.context())
        finally:
            signal.signal(signal.SIGALRM, before)
        assert bench.service is None

    def test_a_recycled_pid_is_not_touched(self, bench, step):
        folder = bench.workspace / "serve"
        folder.mkdir()
        innocent = subprocess.Popen(["sleep", "60"], start_new_session=True)
        try:
            identity = Identity.of(innocent.pid)
            assert identity is not None
            past = Identity(identity.pid, identity.start_time - 1, identity.boot_id)
            service.Service(folder, past, {"keeper": "session"}, ready=True, found={}).save()
            step.undo(bench.context())
            assert innocent.poll() is None
        finally:
            innocent.kill()
            innocent.wait()


ATTEMPT = """
import json, sys
from pathlib import Path
from runbook.planning.context import console
from runbook.steps.serve import Serve
Serve().apply(console("serve", Path(sys.argv[1]), json.loads(sys.argv[2])))
"""


class TestKilledAttempt:
    def attempt(self, bench):
        argv = [sys.executable, "-c", ATTEMPT, str(bench.workspace), json.dumps(bench.inputs())]
        return subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    @pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.5])
    def test_the_next_one_goes_on(self, bench, step, delay):
        """Wherever the first attempt dies, there is one server in the end, and if it had been
        recorded it is the one that the first attempt started."""
        bench.behave(log=(LOGS / "ready.log").read_text(), line_delay=0.005, listen_delay=0.3)
        first = self.attempt(bench)
        record = bench.workspace / "serve" / "spec.json"
        wait_until(record.exists)
        time.sleep(delay)
        first.kill()
        first.wait()
        started = bench.service
        step.apply(bench.context())
        assert step.check(bench.context()).ok
        if started is not None:
            assert bench.service.process == started.process
        assert len(servers(bench)) == 1


def servers(bench):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(bench.port).encode() in words and b"serve" in words:
                found.append(int(entry.name))
    return found


def wait_until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


class TestRemoteCode:
    """With trust_remote_code on, a server is started only of code that the book names."""

    def test_asks_for_approval_by_digest_and_serves_once_it_is_given(self, bench, step):
        code = bench.model / "modeling_x.py"
        code.write_text("x = 1\n")
        digest = hashlib.sha256(b"x = 1\n").hexdigest()
        ctx = bench.context(trust_remote_code=True)
        [reason] = step.check(ctx).reasons
        assert reason.code == "code_not_approved"
        assert "modeling_x.py" in reason.message and digest in reason.remedy
        with pytest.raises(PreconditionNotMet, match="not approved"):
            step.apply(ctx)
        assert bench.service is None
        approved = bench.context(trust_remote_code=True, trusted_code=[digest])
        step.apply(approved)
        assert step.check(approved).ok
        pid = bench.service.process.pid
        code.write_text("x = 2\n")
        assert codes(step.check(approved)) == ["code_not_approved"]
        with pytest.raises(PreconditionNotMet, match="not approved"):
            step.apply(bench.context(trust_remote_code=True, trusted_code=[digest], seed=1))
        assert bench.service.process.pid == pid and bench.service.alive()

    def test_a_profile_may_turn_it_on(self, bench, step):
        (bench.model / "modeling_x.py").write_text("x = 1\n")
        ctx = bench.context(profile="p", profiles={"p": {"trust_remote_code": True}})
        assert codes(step.check(ctx)) == ["code_not_approved"]
