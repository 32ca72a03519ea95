"""Plays `vllm` in tests: the command line, the log and the endpoints of the real one.

What it does is said by the file VLLM_STAND_IN names (JSON): which recorded log it writes and how
fast, whether and when it listens, what it answers, when it dies. Its answers are recorded from
vLLM 0.32.0. It is a program of its own, so that processes, signals and sockets are real.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ANSWERS = Path(__file__).parents[1] / "smoke" / "answers"
PLAN = json.loads(Path(os.environ["VLLM_STAND_IN"]).read_text())

EFFORTS = {"low": 0, "high": 97, "max": 101}
"""Tokens that stand before the prompt."""


def now():
    """The plan as it is by now: a test may change its mind."""
    return json.loads(Path(os.environ["VLLM_STAND_IN"]).read_text())


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Counters:
    """The speculation counters, as the metrics' text has them."""

    drafted = PLAN.get("drafted_before", 0)
    accepted = PLAN.get("accepted_before", 0)

    @classmethod
    def text(cls):
        if PLAN.get("no_speculation"):
            return "# HELP vllm:num_requests_running Running requests.\n"
        text = (ANSWERS / "metrics.txt").read_text()
        return text.replace(" 121.0\n", f" {cls.drafted}.0\n").replace(
            " 85.0\n", f" {cls.accepted}.0\n"
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self):
        """vLLM asks for its key at all paths of the API."""
        key = os.environ.get("VLLM_API_KEY")
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.reply(401, '{"error": "Unauthorized"}')
        return True

    def do_GET(self):
        if self.path.startswith("/v1/") and self.refused():
            return
        if self.path == "/health":
            time.sleep(PLAN.get("health_delay", 0))
            self.reply(now().get("health", 200), "")
        elif self.path == "/v1/models":
            listed = json.loads((ANSWERS / "models.json").read_text())
            listed["data"][0]["id"] = now().get("lists", option("--served-model-name"))
            self.reply(200, json.dumps(listed))
        elif self.path == "/metrics":
            self.reply(200, Counters.text(), "text/plain")
        else:
            self.reply(404, "{}")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        if len(request.get("prompt", ())) > PLAN.get("dies_above", 10**9):
            print(PLAN["dies_with"], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        with Path("requests.ndjson").open("a") as file:
            file.write(json.dumps(request) + "\n")
        if PLAN.get("dies_at_request"):
            print(PLAN["dies_at_request"], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if "request_status" in PLAN:
            self.reply(PLAN["request_status"], PLAN.get("request_body", "{}"))
            return
        time.sleep(PLAN.get("request_delay", 0))
        name = self.answer_name(request)
        if name == PLAN.get("dies_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        Counters.drafted += PLAN.get("drafts", {}).get(name, 10)
        Counters.accepted += PLAN.get("accepts", {}).get(name, 7)
        if request.get("stream"):
            self.stream(name)
            return
        if name in PLAN.get("statuses", {}):
            self.reply(PLAN["statuses"][name], '{"error": "EngineCore: grammar rejected tokens"}')
            return
        answer = self.recorded(name, request)
        for path, value in PLAN.get("change", {}).get(name, {}).items():
            *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
            place = answer
            for key in way:
                place = place[key]
            place[last] = value
        self.reply(200, json.dumps(answer))

    count = 0

    @classmethod
    def recorded(cls, name, request):
        """Answers that were not recorded are made of those that were."""
        base = {"one": "echo", "needle": "echo", "schema": "echo", "named": "tool"}.get(name, name)
        answer = json.loads((ANSWERS / f"{base}.json").read_text())
        choice, usage = answer["choices"][0], answer["usage"]
        if name == "one":
            choice["finish_reason"], usage["completion_tokens"] = "length", 1
            choice["message"]["content"] = "The"
        elif name == "schema":
            choice["message"]["content"] = '{"city": "Paris", "celsius": 21}'
        elif name == "needle":
            text = request["messages"][0]["content"]
            if PLAN.get("finds", True):
                choice["message"]["content"] = re.search("harbour is (\\S+)[.]", text)[1]
            usage["prompt_tokens"] = len(text) // 4
        if name == "reasoning":
            effort = request.get("reasoning_effort", PLAN.get("effort"))
            usage["prompt_tokens"] += PLAN.get("prefixes", EFFORTS).get(effort, 0)
        cls.count += 1
        if cls.count == PLAN.get("wrong_at"):
            choice["message"]["content"] = "The rehearsal model says pang"
        return answer

    @staticmethod
    def answer_name(request):
        if request["model"] not in (option("--served-model-name"), "rehearsal"):
            return "wrongmodel"
        if "prompt" in request:
            return "completion"
        if request.get("response_format"):
            return "schema"
        if "harbour" in request["messages"][0]["content"]:
            return "needle"
        if request.get("max_tokens") == 1:
            return "one"
        if isinstance(request.get("tool_choice"), dict):
            return "named"
        if request.get("tools"):
            return "tool"
        thinking = request.get("chat_template_kwargs", {}).get("thinking", PLAN.get("thinks"))
        return "reasoning" if thinking or request.get("reasoning_effort") else "echo"

    def stream(self, name):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        recorded = "tool_stream" if name == "tool" else "stream"
        text = (ANSWERS / f"{recorded}.txt").read_text()
        if name == "tool":
            text = text.replace(*PLAN.get("stream_change", ("", "")))
        if PLAN.get("stream_without_usage"):
            text = "\n\n".join(e for e in text.split("\n\n") if '"choices":[]' not in e)
        for event in text.strip().split("\n\n"):
            time.sleep(PLAN.get("token_delay", 0.002))
            self.wfile.write(event.encode() + b"\n\n")
            self.wfile.flush()
        self.close_connection = True


def write_log():
    for line in PLAN.get("log", "").splitlines():
        print(line, flush=True)
        time.sleep(PLAN.get("line_delay", 0))


def child(name, command, stop=None, after=0.0):
    """A child under a name of its own, as vLLM's ranks and compilers are; `stop` is a signal."""
    process = subprocess.Popen([name, *command[1:]], executable=command[0])
    if stop is not None:
        time.sleep(after)
        process.send_signal(getattr(signal, stop))
    return process


def main():
    helper = None
    for told in PLAN.get("children", ()):
        child(**told)
    if PLAN.get("child"):
        # A worker that, unlike vLLM's, does not end with its parent.
        helper = subprocess.Popen(["sleep", "600"])
    if PLAN.get("ignores_sigint"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    if any(option(name) is not None for name in PLAN.get("refuses", ())):
        print(PLAN["lost"], flush=True)
        sys.exit(1)
    write_log()
    if PLAN.get("exits") is not None:
        if helper is not None:
            helper.kill()
        sys.exit(PLAN["exits"])
    if PLAN.get("spins"):
        while True:
            pass
    if PLAN.get("hangs"):
        threading.Event().wait()
    time.sleep(PLAN.get("listen_delay", 0))
    server = ThreadingHTTPServer((option("--host"), int(option("--port"))), Handler)
    server.serve_forever()


main()
