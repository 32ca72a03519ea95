"""The lock of a book: where it lies, what it keeps, and what is no lock."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from runbook.planning import lockfile
from runbook.planning.lockfile import Lockfile, places
from runbook.protocol import StepFailure

A, B = "a" * 40, "b" * 64

WRONG = {
    "nothing": b"",
    "no JSON": b"{",
    "a conflict of git": b'{\n<<<<<<< HEAD\n "runbook": 1,\n=======\n "runbook": 1,\n>>>>>>> x\n',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "other keys": b'{"runbook": 1, "lock": {}, "more": 1}',
    "no names": b'{"runbook": 1}',
    "a newer form": b'{"runbook": 2, "lock": {}}',
    "a form that is true": b'{"runbook": true, "lock": {}}',
    "names in a list": b'{"runbook": 1, "lock": [["n", "' + A.encode() + b'"]]}',
    "a branch": b'{"runbook": 1, "lock": {"n": "main"}}',
    "a number": b'{"runbook": 1, "lock": {"n": 1}}',
    "a short commit": b'{"runbook": 1, "lock": {"n": "abcdef0"}}',
    "capitals": b'{"runbook": 1, "lock": {"n": "' + b"A" * 40 + b'"}}',
    "a line more": b'{"runbook": 1, "lock": {"n": "' + A.encode() + b'\\n"}}',
    "a name twice": (f'{{"runbook": 1, "lock": {{"n": "{A}", "n": "{B}"}}}}').encode(),
    "depth": b"[" * 200_000,
    "2 MiB": b" " * (2 << 20),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_lock_is_refused_and_stays(name, tmp_path):
    file = tmp_path / "lock.json"
    file.write_bytes(WRONG[name])
    lock = Lockfile(file)
    for use in (lock.verify, lambda: lock.get("n"), lambda: lock.put({"n": A})):
        with pytest.raises(StepFailure) as failure:
            use()
        assert failure.value.code == "lock_invalid" and failure.value.exit_code == 2
        assert str(file) in failure.value.where and failure.value.cause
    assert file.read_bytes() == WRONG[name]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/nowhere", path)])
def test_what_is_no_file_is_refused_without_waiting(make, tmp_path):
    make(tmp_path / "lock.json")
    with pytest.raises(StepFailure) as failure:
        Lockfile(tmp_path / "lock.json").verify()
    assert failure.value.code == "lock_invalid"


def test_a_name_is_kept_until_it_is_put_anew(tmp_path):
    lock = Lockfile(tmp_path / "lock.json")
    assert lock.get("one") is None and lock.where("one") == tmp_path / "lock.json"
    lock.keep("one", A)
    lock.keep("one", B)
    lock.keep("zero\n\u2028 \udcff", B)
    assert lock.get("one") == A and lock.get("zero\n\u2028 \udcff") == B
    lock.put({"one": B})
    assert lock.get("one") == B
    assert next(iter(json.loads(lock.places[0].read_bytes())["lock"])) == "one"


def test_it_lies_beside_the_document_else_in_the_workspace(tmp_path):
    document, workspace = tmp_path / "corpus.yaml", tmp_path / "workspace"
    inside = workspace / lockfile.IN_WORKSPACE
    assert places(str(document), False, workspace) == (inside,), "a pipe, say"
    document.touch()
    assert places(str(document), False, workspace) == (tmp_path / "corpus.lock.json", inside)
    assert places(str(document), True, workspace) == (inside,)


@pytest.fixture
def refused(monkeypatch):
    """Writes beside the document are refused, as where it is another user's."""

    def write(path, value):
        if path.name == "corpus.lock.json":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, value)

    real = lockfile.write_json
    monkeypatch.setattr(lockfile, "write_json", write)


def test_what_cannot_stand_beside_the_document_stands_in_the_workspace(refused, tmp_path):
    lock = Lockfile(tmp_path / "corpus.lock.json", tmp_path / "new" / "lock.json")
    lock.keep("one", A)
    assert lock.get("one") == A and lock.where("one") == tmp_path / "new" / "lock.json"


def test_what_stands_there_is_not_put_where_it_would_not_be_read(refused, tmp_path):
    beside = tmp_path / "corpus.lock.json"
    beside.write_text(json.dumps({"runbook": 1, "lock": {"one": A}}))
    lock = Lockfile(beside, tmp_path / "lock.json")
    with pytest.raises(StepFailure) as failure:
        lock.put({"one": B})
    assert failure.value.code == "lock_not_written" and failure.value.exit_code == 3
    assert lock.get("one") == A


def test_writers_side_by_side_lose_nothing(tmp_path):
    file = tmp_path / "lock.json"
    names = [f"name {number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: Lockfile(file).keep(name, A), names))
    assert all(Lockfile(file).get(name) == A for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
    assert stat.S_IMODE(file.stat().st_mode) & 0o444


def test_one_that_comes_while_it_is_looked_for_is_not_taken_for_a_wrong_one(tmp_path, monkeypatch):
    file = tmp_path / "lock.json"
    read = lockfile.read_regular

    def late(*arguments):
        monkeypatch.undo()
        data = read(*arguments)
        Lockfile(file).put({"other": A})
        return data

    monkeypatch.setattr(lockfile, "read_regular", late)
    assert Lockfile(file).get("name") is None
    assert Lockfile(file).get("other") == A
