"""Streamed completions, timed. While they come, their bytes are stamped and kept and nothing is
read out of them, so that the client costs little where many streams come from one process."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SILENCE = 900.0
"""Seconds that a stream may be silent for: a long prompt is read, or a kernel is compiled."""
PIECE = 1 << 16


@dataclass(slots=True)
class Stream:
    """One request. Times are of time.perf_counter, in seconds; `pieces` are bytes as they came."""

    sent: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stream said. `times` are those of its events that carry a choice, in seconds since
    it was sent: as vllm/benchmarks/lib/endpoint_request_func.py counts them, with the first,
    which may have no text yet."""

    times: list[float]
    prompt_tokens: int
    completion_tokens: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds from the first request to the end of the last, and of the processor which this
    process (nothing but it) used meanwhile."""

    seconds: float
    processor: float


def run(
    endpoint: str, requests: Sequence[tuple[str, bytes]], streams: int, headers: dict[str, str]
) -> tuple[list[Stream], Took]:
    """Send (path, body) requests, `streams` at a time, each as soon as another has ended; the
    streams in the order of the requests, and what all took."""
    done = [Stream() for _ in requests]
    following = iter(range(len(requests)))
    lock, begun = threading.Lock(), [0.0, 0.0]

    def begin() -> None:  # before any of them goes on
        begun[:] = time.perf_counter(), time.process_time()

    ready = threading.Barrier(streams + 1, action=begin)
    address = urlsplit(endpoint)

    def work() -> None:
        line = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SILENCE)
        try:
            line.connect()
        except OSError:
            line.close()  # the first request connects, and tells why it cannot
        ready.wait()
        while True:
            with lock:
                number = next(following, None)
            if number is None:
                line.close()
                return
            path, body = requests[number]
            _one(line, address.path + path, body, headers, done[number])

    threads = [threading.Thread(target=work, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()
    return done, Took(time.perf_counter() - begun[0], time.process_time() - begun[1])


def _one(
    line: http.client.HTTPConnection,
    path: str,
    body: bytes,
    headers: dict[str, str],
    into: Stream,
) -> None:
    clock, pieces = time.perf_counter, into.pieces
    into.sent = clock()
    try:
        line.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = line.getresponse()
        while piece := response.read1(PIECE):
            pieces.append((clock(), piece))
        if response.status != 200:
            said = b"".join(piece for _, piece in pieces)[:500].decode(errors="replace")
            into.error = f"HTTP {response.status}: {said}"
    except (OSError, http.client.HTTPException) as error:
        into.error = f"{type(error).__name__}: {error}"
        line.close()


def read(stream: Stream) -> Answer:
    """What a stream said; with `error` if it failed, is malformed, or said nothing."""
    times: list[float] = []
    usage: dict[str, Any] = {}
    error = stream.error
    if not error:
        try:
            for when, event in _events(stream):
                if event.get("choices"):
                    times.append(when - stream.sent)
                usage = event.get("usage") or usage
                if told := event.get("error"):
                    error = str(told)[:500]
        except (ValueError, AttributeError) as problem:
            error = f"the stream is malformed: {problem}"
    if not error and (not times or not usage.get("completion_tokens")):
        error = "the stream told no usage" if times else "the stream carried no text"
    return Answer(
        times, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), error
    )


def _events(stream: Stream) -> Iterator[tuple[float, dict[str, Any]]]:
    """Server-sent events, each with the time at which its end came."""
    rest = b""
    for when, piece in stream.pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield when, json.loads(data)
