"""Digests: the same as hashlib's and git's, whole, in pieces, and resumed elsewhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

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


@pytest.mark.harness
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


@pytest.mark.parametrize("position", [0, 64, 1 << 26, 1 << 29, (1 << 29) + 64, 5 << 40])
def test_the_length_in_bits_of_a_state_has_two_words(position):
    context = digests.ResumableSha256(position, "01" * 32)._context
    assert context.low + (context.high << 32) == position * 8
    assert list(context.h) == [0x01010101] * 8 and context.num == 0


@pytest.mark.parametrize(
    ("position", "state"), [(5, "00" * 32), (64, "00" * 33), (1, "00" * 32), (32, "00" * 31)]
)
def test_state_that_does_not_fit_its_position_is_refused(position, state):
    with pytest.raises(ValueError) as refused:
        digests.restore(sha256_entry(b""), position, state)
    assert str(refused.value) == f"not the state of a SHA-256 over {position} bytes: {state}"


def test_a_state_is_the_chaining_value_and_what_is_pending():
    hasher = digests.hasher(sha256_entry(b""))
    assert hasher.state() == "".join(
        ("6a09e667", "bb67ae85", "3c6ef372", "a54ff53a", "510e527f", "9b05688c", "1f83d9ab",
         "5be0cd19")
    ), "the initial hash value of FIPS 180-4, 5.3.3"  # fmt: skip
    hasher.update(b"abc")
    assert hasher.position == 3 and hasher.state().endswith(b"abc".hex())


def test_the_digest_of_git_is_never_resumed():
    entry = git_entry(b"abc")
    hasher = digests.hasher(entry)
    hasher.update(b"ab")
    hasher.update(b"c")
    assert hasher.hexdigest() == entry.digest.value and hasher.position == 3
    again = digests.restore(entry, 3, "00" * 35)
    again.update(b"abc")
    assert again.state() is None and again.hexdigest() == entry.digest.value


class Library:
    """A libcrypto that is not what is assumed."""

    def __init__(self, num=18, low=1680, high=0, final=b""):
        self.given = num, low, high
        self.final = final

    def SHA256_Init(self, context):
        pass

    def SHA256_Update(self, context, text, size):
        assert (text, size) == (b"runbook" * 30, 210)
        context._obj.num, context._obj.low, context._obj.high = self.given

    def SHA256_Final(self, digest, context):
        digest.raw = self.final


def test_a_library_is_proven_by_an_example():
    right = hashlib.sha256(b"runbook" * 30).digest()
    assert digests._proven(Library(final=right))
    assert not digests._proven(Library(final=right[::-1]))
    for wrong in ({"num": 17}, {"low": 1679}, {"high": 1}):
        assert not digests._proven(Library(final=right, **wrong))


@pytest.fixture
def fresh():
    digests._libcrypto.cache_clear()
    yield
    digests._libcrypto.cache_clear()


def test_the_library_of_hashlib_is_taken(fresh):
    import _hashlib  # noqa: F401

    if "libcrypto" not in Path("/proc/self/maps").read_text():
        pytest.skip("this Python links it statically")
    found = digests._libcrypto()
    assert found is not None and "libcrypto" in found._name
    assert isinstance(digests.hasher(sha256_entry(b"")), digests.ResumableSha256)
    assert isinstance(digests.restore(sha256_entry(b""), 0, ""), digests.ResumableSha256)


def test_a_library_that_fails_its_proof_is_none(fresh, monkeypatch):
    monkeypatch.setattr(digests, "_proven", lambda library: False)
    assert digests._libcrypto() is None
    assert isinstance(digests.hasher(sha256_entry(b"")), digests.PlainHasher)


def test_a_library_that_does_not_load_is_passed_over(fresh, monkeypatch):
    class Other:
        pass

    for refusal in (OSError("cannot open"), None):
        asked = []

        def load(path, refusal=refusal, asked=asked):
            asked.append(path)
            if refusal is not None:
                raise refusal
            return Other()  # has no such function

        monkeypatch.setattr(digests.ctypes, "CDLL", load)
        digests._libcrypto.cache_clear()
        assert digests._libcrypto() is None
        assert asked == sorted(asked)


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


def test_what_is_read_is_told_and_can_be_stopped(tmp_path):
    data = bytes(2 * digests.BLOCK + 5)
    path = tmp_path / "f"
    path.write_bytes(data)
    told = []
    assert (
        digests.digest_of(path, sha256_entry(data), told.append) == sha256_entry(data).digest.value
    )
    assert told == [digests.BLOCK, digests.BLOCK, 5]
    stop = threading.Event()
    assert digests.digest_of(path, sha256_entry(data), stop=stop)
    stop.set()
    told.clear()
    assert digests.digest_of(path, sha256_entry(data), told.append, stop) == ""
    assert told == [digests.BLOCK]


def test_a_defect_in_reading_many_is_raised(tmp_path, monkeypatch):
    def defect(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(digests, "digest_of", defect)
    with pytest.raises(ZeroDivisionError):
        list(digests.digest_many([(tmp_path, sha256_entry(b""))]))


def test_the_largest_are_read_first(tmp_path, monkeypatch):
    monkeypatch.setattr(digests.os, "cpu_count", lambda: None)
    order, told = [], []

    def read(path, entry, on_bytes, stop):
        order.append((entry.size, threading.current_thread().name))
        on_bytes(entry.size)
        assert not stop.is_set()
        return "d"

    monkeypatch.setattr(digests, "digest_of", read)
    entries = [Entry(f"{size}", size, sha256_entry(b"").digest) for size in (1, 3, 2)]
    found = list(digests.digest_many([(tmp_path, entry) for entry in entries], told.append))
    assert [size for size, _ in order] == told == [3, 2, 1]
    assert {name for _, name in order} == {"digest_0"}
    assert sorted(entry.size for entry, _ in found) == [1, 2, 3]


def test_both_digests_are_told():
    entry = sha256_entry(b"")
    assert digests.matches(entry, entry.digest.value) and not digests.matches(entry, "x")
    assert digests.wrong(entry, "beef") == f"the hub says {entry.digest}, found sha256:beef"


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


@pytest.mark.harness
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
