"""Answers that no hub should give, by kind. `change` takes what the hub would send and alters it;
`names` must be in the error, which ends the step or, where it says so, is worth another try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Json = Any
LARGE = "model-00001-of-00003.safetensors"
ODD: list[Json] = [
    None,
    True,
    -1,
    1.5,
    10**30,
    "",
    "x" * 100_000,
    "\x1b[31m",
    "\ud800",
    [],
    {},
    [[]],
]


def _set(key: str, value: Json) -> Callable[[Json], Json]:
    return lambda found: {**found, key: value}


def _each(change: Callable[[Json], Json]) -> Callable[[Json], Json]:
    """Of the first large file of a page."""
    return lambda page: [change(e) if e["path"] == LARGE else e for e in page]


def _lfs(key: str, value: Json) -> Callable[[Json], Json]:
    return _each(lambda e: {**e, "lfs": {**e["lfs"], key: value}})


def _without(key: str) -> Callable[[Json], Json]:
    return lambda found: {k: v for k, v in found.items() if k != key}


PATHS = [
    "/etc/passwd", "../up", "a/../../b", "a//b", "./a", "a/", "", ".", "nul\0", "esc\x1b[2J",
    "half\ud800", ".runbook-weights.json", "a/.runbook-parts/x", "n" * 256, "d/" * 1600 + "x",
    "line\nbreak", "turned\u202egnp.exe",
]  # fmt: skip

INFO: list[tuple[Callable[[Json], Json], str]] = [
    *((_set("sha", value), "`sha`") for value in ODD),
    (_without("sha"), "`sha`"),
    (_set("sha", "A" * 40), "`sha`"),
    (_set("sha", "0" * 39), "`sha`"),
    *((lambda _, value=value: value, "answer") for value in ODD if not isinstance(value, dict)),
]

PAGES: list[tuple[Callable[[Json], Json], str]] = [
    *((_each(_set("path", value)), "`path`") for value in ODD if value != ""),
    *((_each(_set("path", value)), "`path`") for value in PATHS),
    *((_each(_set("type", value)), "`type`") for value in ODD if not isinstance(value, str)),
    *((_each(_set("lfs", value)), "`lfs`") for value in ODD if value is not None and value != {}),
    *((_lfs("oid", value), "`lfs.oid`") for value in [*ODD, "0" * 63, "G" * 64, "0" * 65]),
    *((_lfs("size", value), "`lfs.size`") for value in [*ODD, "5", 2**63]),
    (_each(_set("lfs", {})), "`lfs.oid`"),
    (_each(lambda e: {**e, "lfs": None, "oid": "x"}), "`oid`"),
    (_each(lambda e: {**e, "lfs": None, "oid": "0" * 40, "size": -5}), "`size`"),
    (_each(_without("path")), "`path`"),
    (_each(_without("type")), "`type`"),
    (lambda page: [*page, page[-1]], "listed once"),
    (lambda page: [*page, {**page[-1], "path": f"{LARGE}/below"}], f"{LARGE} is a file"),
    *((lambda page, value=value: [*page, value], "entry") for value in ODD
      if not isinstance(value, dict)),
    *((lambda _, value=value: value, "page") for value in ODD if not isinstance(value, list)),
]  # fmt: skip

BODIES: list[tuple[bytes, str]] = [
    (b"", "answer"),
    (b"{", "answer"),
    (b"\xff\xfe\x00", "answer"),
    (b"[" * 200_000, "answer"),
    (b'{"a":' * 100_000, "answer"),
    (b"nonsense \x1b[31m", "answer"),
    (b"1" * 5000, "answer"),
]

LINKS = ["http://", "ftp://host/x", "file:///etc/passwd", "http://[::1", "javascript:x", "//"]

# Headers of `resolve` (and of small files): what is sent, the code of the failure, what it names.
RESOLVE: list[tuple[dict[str, str | None], str, str]] = [
    ({"X-Repo-Commit": "f" * 40}, "other_revision", "f" * 12),
    ({"X-Repo-Commit": "x"}, "other_revision", "'x'"),
    ({"X-Repo-Commit": None}, "other_revision", "no revision"),
    ({"X-Linked-Size": "abc"}, "bad_answer", "X-Linked-Size"),
    ({"X-Linked-Size": "-1"}, "bad_answer", "X-Linked-Size"),
    ({"X-Linked-Size": "9" * 5000}, "bad_answer", "X-Linked-Size"),
    ({"X-Linked-Size": "7"}, "changed_upstream", "7 bytes"),
    ({"X-Linked-ETag": '"' + "0" * 64 + '"'}, "changed_upstream", "0" * 40),
    ({"Location": "http://"}, "bad_answer", "Location"),
    ({"Location": "ftp://127.0.0.1/x"}, "bad_answer", "Location"),
    ({"Location": "http://[::1/x"}, "bad_answer", "Location"),
    ({"Location": "file:///etc/passwd"}, "bad_answer", "Location"),
]

# Headers of the content server: what it names in the end.
CONTENT: list[tuple[dict[str, str | None], str]] = [
    ({"Content-Range": "bytes x-y/z"}, "Content-Range"),
    ({"Content-Range": None}, "Content-Range"),
    ({"Content-Range": "bytes 0-1/2"}, "Content-Range"),
    ({"Content-Range": "b" * 10_000}, "Content-Range"),
    ({"Content-Encoding": "gzip"}, "Content-Encoding"),
    ({"Content-Length": "5, 6"}, "Content-Length"),
]

WAITS = ["nan", "inf", "-inf", "1e400", "9" * 400, "soon", "Fri, 31 Dec 9999 23:59:59 GMT", "\xff"]
