"""Digests: the same as hashlib's and git's, whole, in pieces, and resumed elsewhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.steps.common.hub import digests
from runbook.steps.common.hub.listing import Digest, Entry


def sha256_entry(data: bytes) -> Entry:
    return Entry("f", len(data), Digest("sha256", hashlib.sha256(data).hexdigest()))


def git_entry(data: bytes) -> Entry:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return Entry("f", len(data), Digest("git-sha1", blob))


@given(pieces=st.lists(st.binary(max_size=300), max_size=12), cut=st.integers(0, 12))
def test_resumed_sha256_is_hashlibs(pieces, cut):
    data = b"".join(pieces)
    entry = sha256_entry(data)
    first = digests.hasher(entry)
    for piece in pieces[:cut]:
        first.update(piece)
    second = digests.restore(entry, first.position, first.state())
    for piece in pieces[cut:]:
        second.update(piece)
    assert second.position == len(data)
    assert second.hexdigest() == second.hexdigest() == entry.digest.value


def test_position_beyond_512_mib_keeps_both_words_of_the_length():
    """The length in bits does not fit one word from 2^29 bytes on."""
    block = bytes(1 << 20)
    entry = Entry("f", 0, Digest("sha256", ""))
    hasher, expected = digests.hasher(entry), hashlib.sha256()
    for _ in range(513):
        hasher.update(block)
        expected.update(block)
    resumed = digests.restore(entry, hasher.position, hasher.state())
    resumed.update(b"end")
    expected.update(b"end")
    assert resumed.hexdigest() == expected.hexdigest()


def test_state_that_does_not_fit_its_position_is_refused():
    entry = sha256_entry(b"")
    with pytest.raises(ValueError, match="not the state"):
        digests.restore(entry, 5, "00" * 32)


def test_without_libcrypto_the_digest_starts_again(monkeypatch):
    monkeypatch.setattr(digests, "_libcrypto", lambda: None)
    entry = sha256_entry(b"abc")
    plain = digests.hasher(entry)
    plain.update(b"ab")
    assert plain.state() is None
    again = digests.restore(entry, 2, "00" * 34)
    assert again.position == 0
    again.update(b"abc")
    assert again.hexdigest() == entry.digest.value


@given(data=st.binary(max_size=5000))
def test_blob_id(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("blob") / "f"
    path.write_bytes(data)
    assert digests.digest_of(path, git_entry(data)) == git_entry(data).digest.value


def test_blob_id_is_gits(tmp_path):
    (tmp_path / "f").write_text("hello\n")
    assert digests.digest_of(tmp_path / "f", git_entry(b"hello\n")) == (
        "ce013625030ba8dba906f756967f9e9ca394464a"
    )


def test_many_files_at_once(tmp_path):
    files = {}
    for n in range(20):
        data = os.urandom(n * 1000)
        (tmp_path / str(n)).write_bytes(data)
        files[tmp_path / str(n)] = Entry(str(n), len(data), sha256_entry(data).digest)
    missing = Entry("missing", 1, Digest("sha256", ""))
    found = dict(digests.digest_many([*files.items(), (tmp_path / "missing", missing)]))
    assert isinstance(found.pop(missing), FileNotFoundError)
    assert {entry: entry.digest.value for entry in files.values()} == found


def test_reading_many_stops_when_its_caller_does(tmp_path):
    """An interrupted check must not go on for the rest of 146 GB."""
    script = """
import sys, time
from contextlib import closing
from pathlib import Path
from runbook.steps.common.hub.digests import digest_many
from runbook.steps.common.hub.listing import Digest, Entry
folder = Path(sys.argv[1])
files = []
for n in range(8):
    path = folder / str(n)
    size = 1 << 20 if n == 0 else 1 << 36
    with path.open("wb") as file:
        file.truncate(size)
    files.append((path, Entry(str(n), -size, Digest("sha256", ""))))
with closing(digest_many(files)) as results:
    for entry, _ in results:
        print(entry.path)
        break
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert time.monotonic() - began < 20
