"""The step mtp-capture against a stand-in for `vllm serve` that writes what the plugin would.
The plugin's own arithmetic: tests/steps/mtp/retrofit. Real vLLM: tests/e2e/test_mtp_head.py."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runbook.process import session_members
from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.checkpoint.checkpoint import CONFIG
from runbook.steps.checkpoint.headers import parse
from runbook.steps.common import ports, service
from runbook.steps.mtp.capture import Capture, asking
from runbook.steps.mtp.capture.results import CaptureError, collect
from tests.conftest import free_port
from tests.steps.mtp import tiny
from tests.steps.mtp.test_kinds import context

pytestmark = pytest.mark.harness

HIDDEN, TOP = tiny.HIDDEN, 2

SERVER = """#!{python}
import importlib.metadata, importlib.util, json, os, struct, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
mode = os.environ.get("MODE", "")
if mode == "knows":
    print("No WNA16 MoE backend supports the deployment configuration", flush=True)
    time.sleep(600)
if mode == "hangs":
    time.sleep(600)
if mode == "dies":
    sys.exit("no such device")
assert "--enforce-eager" in sys.argv
assert not {{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RUNBOOK_ATTEMPT"}} & set(os.environ)
entries = importlib.metadata.entry_points(group="vllm.general_plugins")
assert [e.value for e in entries] == ["runbook_capture:register"]
import runbook_capture
assert importlib.util.find_spec("mtp_retrofit.stream").origin.startswith(sys.path[1])
folder = Path(os.environ[runbook_capture.FOLDER])
settings = json.loads((folder / runbook_capture.SETTINGS).read_text())
assert settings["layer"] == "model.layers.4." and settings["limit"] == 10.0
seen = 0
lock = threading.Lock()
def put(name, text):
    (folder / "part").write_text(text)
    (folder / "part").replace(folder / name)
def finish():
    while (folder / "on").exists():
        time.sleep(0.01)
    if mode == "stuck":
        return
    if mode == "vanishes":
        print("out of memory", flush=True)
        os._exit(9)
    if mode == "fails":
        return put(runbook_capture.FAILED, "the inputs of mtp.0.ffn.experts.3.w1 hold NaN")
    experts = {experts} + (mode == "foreign")
    for e in range(experts):
        put(f"moments-{{e}}.safetensors", str(seen))
    counts = [seen] + [0] * (experts - 1)
    put(runbook_capture.DONE, json.dumps(dict(tokens=seen, counts=counts)))
class Handler(BaseHTTPRequestHandler):
    def answer(self, code):
        self.send_response(code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")
    def do_GET(self):
        self.answer(200)
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = int(body["messages"][0]["content"].split()[-1])
        with lock:
            self.record(number)
        self.answer(500 if mode == "refuses" else 200)
    def record(self, number):
        global seen
        if (folder / "on").exists() and mode != "silent" and settings["record"] == "moments":
            if mode == "breaks":
                put(runbook_capture.FAILED, "no memory")
            if not seen:
                (folder / "recording-1").touch()
                if mode == "parallel":
                    (folder / "recording-2").touch()
                threading.Thread(target=finish).start()
            seen += 3
        elif (folder / "on").exists() and mode != "silent":
            (folder / "rows-1.json").write_text(json.dumps(dict(hidden={hidden}, top={top})))
            with (folder / "rows-1.bin").open("ab") as file:
                for i in range(3):
                    file.write(struct.pack("<{hidden}H", *[number] * {hidden}))
                    file.write(struct.pack("<2i2f", 1, 9 if mode == "foreign" else 3, 0.5, 0.25))
    def log_message(self, *a): pass
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def capture(tmp_path: Path, mode: str = "", **values):
    program = tmp_path / "vllm"
    program.write_text(
        SERVER.format(python=sys.executable, hidden=HIDDEN, top=TOP, experts=tiny.EXPERTS)
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    model = tiny.v4().write(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    lines = [f"text {i}" for i in range(4)]
    lines += [json.dumps({"prompt": f"text {i}"}) for i in range(4, 7)]
    lines.append(json.dumps({"messages": [{"role": "user", "content": "text 7"}]}))
    prompts.write_text("\n".join(lines))
    given = {
        "vllm": str(program),
        "model": str(model),
        "prompts": str(prompts),
        "port": free_port(),
    }
    given["checkpoint"] = str(tmp_path / "upstream")
    (tmp_path / "upstream").mkdir(exist_ok=True)
    (tmp_path / "upstream" / CONFIG).write_text("{}")
    return context(Capture(), tmp_path / "w", **{**given, "env": [{"MODE": mode}], **values})


def test_captures_what_the_server_recorded(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RUNBOOK_ATTEMPT"):
        monkeypatch.setenv(name, "secret")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ctx = capture(tmp_path, count=5, record="tokens")
    Capture().apply(ctx)
    check = Capture().check(ctx)
    made = Capture.Outputs(**check.outputs)
    assert made.tokens == 15
    folder = Path(made.path)
    about = json.loads((folder / "calibration.json").read_text())
    assert about["kind"] == "tokens" and about["experts"] == tiny.EXPERTS
    assert about["limit"] == 10.0 and about["seed"] == 0
    raw = (folder / "tokens-0000.safetensors").read_bytes()
    tensors = {t.name: t for t in parse(lambda o, n: raw[o : o + n], "t").tensors}
    assert tensors["x"].dtype == "BF16" and tensors["x"].shape == (15, HIDDEN)
    experts = np.frombuffer(raw[tensors["experts"].begin : tensors["experts"].end], "<i4")
    assert experts.reshape(15, 2).tolist() == [[1, 3]] * 15
    numbers = np.frombuffer(raw[tensors["x"].begin : tensors["x"].end], "<u2")
    assert len(set(numbers.tolist())) == 5
    assert not (folder / "raw").exists()
    assert ctx.seen[-1][:2] == (5, 5)
    # Others in this session may have servers of their own.
    ours = str(tmp_path / "vllm")
    assert not [p for p in session_members(os.getsid(0)) if ours in _name(p)]
    (tmp_path / "model" / CONFIG).write_text((tmp_path / "model" / CONFIG).read_text() + " ")
    assert Capture().check(ctx).reasons[0].code == "source_changed"
    Capture().undo(ctx)
    assert not folder.exists()


def test_the_server_of_a_killed_capture_is_ended(tmp_path):
    ctx = capture(tmp_path)
    port = str(ctx.inputs.port)
    command = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"]
    stranger = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        listening(ctx)
        with pytest.raises(PreconditionNotMet, match=f"process {stranger.pid}") as failure:
            Capture().apply(ctx)
        assert failure.value.code == "port_in_use"
    finally:
        stranger.kill()
        stranger.wait()
    spec = {"argv": command, "env": {}, "path": []}
    left = service.start(tmp_path / "w/captures/server", spec)
    listening(ctx)
    Capture().apply(ctx)
    assert left.members() == []
    assert Capture().check(ctx).ok


def listening(ctx):
    while not ports.in_use("127.0.0.1", ctx.inputs.port):
        time.sleep(0.01)


def test_a_server_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("runbook.steps.common.starting.watch.QUIET_SECONDS", 2.0)
    monkeypatch.setattr("runbook.steps.common.starting.hang.SAMPLE_SECONDS", 0.2)
    monkeypatch.setattr("runbook.steps.common.starting.sampler.open_gpus", lambda: None)
    with pytest.raises(StepFailure) as failure:
        Capture().apply(capture(tmp_path, "hangs"))
    assert failure.value.code == "ranks_deadlocked"


def test_a_known_failure_of_the_server_is_named(tmp_path):
    ctx = capture(tmp_path, "knows")
    with pytest.raises(StepFailure) as failure:
        Capture().apply(ctx)
    assert failure.value.code == "int4_experts_unsupported"
    assert not Capture().check(ctx).ok


def test_waits_for_the_moments(tmp_path):
    ctx = capture(tmp_path, count=5)
    Capture().apply(ctx)
    check = Capture().check(ctx)
    made = Capture.Outputs(**check.outputs)
    assert made.tokens == 15
    folder = Path(made.path)
    about = json.loads((folder / "calibration.json").read_text())
    assert about["kind"] == "moments" and about["experts"] == tiny.EXPERTS and about["id"]
    stored = {p.name: p.read_text() for p in folder.glob("*.safetensors")}
    assert stored == {f"moments-{e}.safetensors": "15" for e in range(tiny.EXPERTS)}
    assert not (folder / "raw").exists()
    assert (5, 5, "prompts", "capturing") in ctx.seen
    assert ctx.seen[-1][:3] == (tiny.EXPERTS, tiny.EXPERTS, "experts")
    for path in (tmp_path / "prompts.jsonl", tmp_path / "upstream" / CONFIG):
        text = path.read_text()
        path.write_text(text + " ")
        assert Capture().check(ctx).reasons[0].code == "source_changed"
        Capture().apply(ctx)
        assert Capture().check(ctx).ok
    (tmp_path / "prompts.jsonl").unlink()
    assert Capture().check(ctx).reasons[0].code == "source_changed"


def test_moments_need_the_experts_weights(tmp_path):
    with pytest.raises(ValueError, match="needs a checkpoint"):
        capture(tmp_path, checkpoint="")
    capture(tmp_path, checkpoint="", record="tokens")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_the_same_seed_draws_the_same_prompts(tmp_path):
    asked = []
    for seed in (1, 1, 2):
        ctx = capture(tmp_path, count=3, concurrency=1, seed=seed, record="tokens")
        Capture().apply(ctx)
        raw = (tmp_path / "w/captures/tokens-0000.safetensors").read_bytes()
        tensor = next(t for t in parse(lambda o, n: raw[o : o + n], "t").tensors if t.name == "x")  # noqa: B023
        asked.append(raw[tensor.begin : tensor.end])
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize(
    ("record", "mode", "code", "cause"),
    [
        ("tokens", "dies", "server_died", "no such device"),
        ("tokens", "silent", "capture_empty", "no token"),
        ("tokens", "foreign", "capture_empty", "experts"),
        ("tokens", "refuses", "prompt_failed", "500"),
        ("moments", "silent", "capture_empty", "no token"),
        ("moments", "foreign", "capture_empty", "the served model"),
        ("moments", "parallel", "capture_empty", "2 processes"),
        ("moments", "refuses", "prompt_failed", "500"),
        ("moments", "breaks", "capture_failed", "no memory"),
        ("moments", "fails", "capture_failed", "experts.3.w1 hold NaN"),
        ("moments", "vanishes", "server_died", "out of memory"),
        ("moments", "stuck", "capture_stuck", ""),
    ],
)
def test_failures_say_what_and_leave_no_server(record, mode, code, cause, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "FINISH_SECONDS", 0.3)
    ctx = capture(tmp_path, mode, record=record)
    with pytest.raises(StepFailure) as failure:
        Capture().apply(ctx)
    assert failure.value.code == code
    assert cause in failure.value.cause and failure.value.remedy
    assert not Capture().check(ctx).ok
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", ctx.inputs.port)) != 0


def test_moments_that_do_not_fit_are_not_begun(tmp_path, monkeypatch):
    ctx = capture(tmp_path)
    ctx.facts = {"memory": {"available": 10_000}}
    with pytest.raises(StepFailure) as failure:
        Capture().apply(ctx)
    assert failure.value.code == "not_enough_memory" and failure.value.exit_code == 3
    ctx.facts = {}
    full = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(StepFailure) as failure:
        Capture().apply(ctx)
    assert failure.value.code == "not_enough_disk"
    assert not (tmp_path / "w/captures/server.log").exists()
    ctx.inputs.record = "tokens"
    Capture().apply(ctx)


def test_a_model_without_a_block_is_not_served(tmp_path):
    ctx = capture(tmp_path)
    tiny.v4(mtp=False).write(tmp_path / "stripped")
    ctx.inputs.model = str(tmp_path / "stripped")
    with pytest.raises(StepFailure) as failure:
        Capture().apply(ctx)
    assert failure.value.code == "mtp_stripped"


@pytest.mark.parametrize("text", [None, "", '{"no": "prompt"}', "{broken"])
def test_bad_prompts(text, tmp_path):
    ctx = capture(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.unlink() if text is None else prompts.write_text(text)
    with pytest.raises(StepFailure) as failure:
        Capture().apply(ctx)
    assert failure.value.code == "bad_prompts"


def test_half_a_row_is_left_out(tmp_path):
    (tmp_path / "rows-7.json").write_text('{"hidden": 4, "top": 1}')
    row = np.zeros(4, "<u2").tobytes() + np.array([2], "<i4").tobytes() + b"\0\0\0\0"
    (tmp_path / "rows-7.bin").write_bytes(row * 3 + row[:5])
    assert collect(tmp_path, tmp_path, "tokens", {"experts": 4}) == (3, 3)
    with pytest.raises(CaptureError, match="experts"):
        collect(tmp_path, tmp_path, "tokens", {"experts": 2})
