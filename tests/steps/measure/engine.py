"""Plays `vllm serve` for what is measured: streams at a known pace, counters of drafts, tokens.

The file ENGINE_PLAN names says how, and may change while it runs: `first` and `gap`, seconds to
the first event and between two; `gaps`, {depth: gap} by the depth of drafts it was started with;
`tokens` in each event; `fails`, a status for every request; `broken`, what a stream ends with.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def plan() -> dict:
    return json.loads(Path(os.environ["ENGINE_PLAN"]).read_text())


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


DEPTH = json.loads(option("--speculative-config", "{}")).get("num_speculative_tokens", 0)
COUNTS = {"drafts": 0, "drafted": 0, "accepted": 0}
LOCK = threading.Lock()


def metrics() -> str:
    lines = [f"vllm:num_requests_running {plan().get('running', 0)}"]
    if DEPTH:
        names = {"drafts": "drafts", "drafted": "draft_tokens", "accepted": "accepted_tokens"}
        lines += [f"vllm:spec_decode_num_{names[k]}_total {v}.0" for k, v in COUNTS.items()]
    return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json"):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/metrics":
            self.reply(200, metrics(), "text/plain")
        elif self.path == "/version":
            self.reply(200, {"version": "0.32.0"})
        else:
            name = option("--served-model-name")
            self.reply(200, {"data": [{"id": name, "max_model_len": 4096}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.reply(200, {"count": len(request["messages"][0]["content"]) // 3 + 5})
            return
        with Path(os.environ["ENGINE_PLAN"]).with_name("requests.ndjson").open("a") as file:
            file.write(json.dumps([self.path, request]) + "\n")
        if status := plan().get("fails"):
            self.reply(status, {"error": "out of memory"})
        elif request.get("stream"):
            self.stream(request, plan())
        else:
            self.reply(200, self.whole(request))

    def whole(self, request):
        """The answer `it` to anything: the warm-up, or a question of a task."""
        said = plan().get("answers", {})
        text = request.get("prompt") or request["messages"][-1]["content"]
        text = text if isinstance(text, str) else str(text)
        answer = next((a for q, a in said.items() if q in text), "it")
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        COUNTS["drafts"] += 2
        COUNTS["drafted"] += 2 * DEPTH
        COUNTS["accepted"] += 2
        choice = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": answer, "reasoning": "I think it is so."}
        given = {"message": message} if "messages" in request else {"text": answer}
        return {"id": "x", "model": "m", "choices": [choice | given], "usage": usage}

    def chunk(self, data: bytes):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def stream(self, request, told):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tokens = told.get("tokens", 1)
        events = request["max_tokens"] // tokens
        gap = told.get("gaps", {}).get(str(DEPTH), told.get("gap", 0.002))
        time.sleep(told.get("first", 0.01))
        chat = "messages" in request
        for number in range(events):
            if number:
                time.sleep(gap)
            choice = {"delta": {"content": "x"}} if chat else {"text": "x"}
            event = {"choices": [choice | {"index": 0}]}
            self.chunk(f"data: {json.dumps(event)}\n\n".encode())
        with LOCK:
            COUNTS["drafts"] += events
            COUNTS["drafted"] += events * DEPTH
            COUNTS["accepted"] += events * (tokens - 1)
        length = len(request["prompt"]) if "prompt" in request else 7
        usage = {"prompt_tokens": length, "completion_tokens": events * tokens}
        if "broken" in told:
            self.chunk(told["broken"].encode())
        self.chunk(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")


def main():
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    time.sleep(plan().get("start", 0))
    if option("--max-num-seqs") in plan().get("refuses", ()):
        print("ValueError: no available memory for the cache blocks", flush=True)
        sys.exit(1)
    server = ThreadingHTTPServer((option("--host"), int(option("--port"))), Handler)
    server.request_queue_size = 128
    server.serve_forever()


main()
