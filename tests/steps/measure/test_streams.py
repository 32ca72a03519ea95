"""What is timed of streams, and what is not."""

from __future__ import annotations

import itertools
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from runbook.steps.measure import streams

GAP = 0.05
EVENT = b'data: {"choices": [{"text": "x"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
END = b"data: [DONE]\n\n"


class Server(ThreadingHTTPServer):
    """Each stream: two events, the usage, the end; `pause` is called before each but the first.
    `gather` is called as a stream begins; `most` is the most that were under way at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.lines = set()
        self.gather = lambda: None
        self.pause = lambda: None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as vLLM: else the first event waits for an acknowledgement

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.lines.add(self.client_address)
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.gather()
        for number, data in enumerate((EVENT, EVENT, USAGE, END)):
            if number:
                self.server.pause()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        with self.server.lock:
            self.server.running -= 1
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def server():
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_so_many_are_under_way_until_the_last_has_ended(server, count):
    """A request takes three pauses, to its end; of its events only those with text count."""
    server.gather = threading.Barrier(count, timeout=60).wait
    server.pause = partial(time.sleep, GAP)
    done, took = streams.run(server.endpoint, [("/completions", b"{}")] * 2 * count, count, {})
    answers = [streams.read(stream) for stream in done]
    assert [answer.error for answer in answers] == [""] * 2 * count
    assert {(a.prompt_tokens, a.completion_tokens, len(a.times)) for a in answers} == {(3, 2, 2)}
    assert server.most == count
    assert len(server.lines) == count, "a stream keeps its connection"
    assert took.seconds >= 6 * GAP


def test_an_event_is_stamped_as_it_comes(server, monkeypatch):
    """Not when the next comes, nor at the end: the server waits until it has been stamped."""
    ticks, stamped = itertools.count(), threading.Semaphore(0)

    def clock():
        stamped.release()
        return float(next(ticks))

    def pause():
        assert stamped.acquire(timeout=60)

    clocks = SimpleNamespace(perf_counter=clock, process_time=time.process_time)
    monkeypatch.setattr(streams, "time", clocks)
    server.gather = lambda: (pause(), pause())  # of the begin, and of the sending
    server.pause = pause
    (stream,), took = streams.run(server.endpoint, [("/completions", b"{}")], 1, {})
    assert streams.read(stream).times == [1, 2]
    assert took.seconds == 6


def test_the_processor_time_is_that_of_the_time_measured(server, monkeypatch):
    """Not what came before, nor the reading of what was kept; what the streams use is in it."""
    used = time.process_time
    burn = 0.2

    def spin():
        end = time.thread_time() + burn
        while time.thread_time() < end:
            pass

    spin()
    _, took = streams.run(server.endpoint, [("/completions", b"{}")], 1, {})
    spin()
    assert 0 < took.processor < burn
    one = streams._one
    monkeypatch.setattr(streams, "_one", lambda *given: (spin(), one(*given)))
    before = used()
    _, took = streams.run(server.endpoint, [("/completions", b"{}")] * 2, 2, {})
    assert 2 * burn <= took.processor <= used() - before
