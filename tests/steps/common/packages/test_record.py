"""RECORDs and wheels of any content: read, or refused in words."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.steps.common.packages.record import (
    RecordError,
    Row,
    faults,
    outside,
    parse_record,
    record_hash,
)
from runbook.steps.common.packages.wheel import Wheel, WheelError, WheelName
from tests.cpu import bounded, examples

GOOD = "sha256=" + "A" * 43

PATHS = [
    ("a.py", False),
    ("pkg/__init__.py", False),
    ("pkg-1.0.dist-info/RECORD", False),
    ("pkg/..a/b...py", False),
    ("pkg/n\u00e4me.py", False),
    ("../a.py", True),
    ("pkg/../../a.py", True),
    ("pkg/..", True),
    ("/etc/passwd", True),
    ("//etc/passwd", True),
    ("pkg//a.py", True),
    ("./a.py", True),
    ("pkg/./a.py", True),
    (".", True),
    ("..", True),
    ("", True),
    ("pkg/", True),
    ("pkg\\..\\a.py", True),
    ("C:\\a.py", True),
    ("a\0.py", True),
    ("a\n.py", True),
    ("\x1b[2Ja.py", True),
]


@pytest.mark.parametrize(("path", "leads_out"), PATHS)
def test_only_plain_paths_lie_in_the_tree(path, leads_out):
    assert outside(path) == leads_out


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b"", {}),
        (b"a,,\n", {"a": Row()}),
        (f"a,{GOOD},3\r\n".encode(), {"a": Row(GOOD, 3)}),
        (f'"a,b",{GOOD},\n'.encode(), {"a,b": Row(GOOD)}),
        (b"a,sha512=x,1\n", {"a": Row("sha512=x", 1)}),
    ],
)
def test_rows_are_read_as_they_stand(text, rows):
    assert parse_record(text) == rows


@pytest.mark.parametrize(
    "text",
    [
        b"a\n",
        b"a,b\n",
        b"a,b,c,d\n",
        b"\n",
        b"a,md5=x,1\n",
        b"a,x,1\n",
        f"a,{GOOD},-1\n".encode(),
        f"a,{GOOD},1.0\n".encode(),
        f"a,{GOOD},\xb2\n".encode(),
        f"a,{GOOD}, 1\n".encode(),
        f"a,{GOOD},".encode() + b"9" * 200_000 + b"\n",
        b'"a,,\n',
        b"\xff\xfe,,\n",
        b'"' + b"a" * 200_000 + b'",,\n',
    ],
)
def test_what_is_no_record_is_refused(text):
    with pytest.raises(RecordError):
        parse_record(text)


def test_faults_know_each_algorithm_of_the_specification():
    import hashlib

    data = b"content"
    record = {
        name: Row(record_hash(hashlib.new(name, data).digest(), name), len(data))
        for name in ("sha256", "sha384", "sha512")
    }
    assert list(faults(record, lambda _: io.BytesIO(data))) == []
    assert len(list(faults(record, lambda _: io.BytesIO(b"other")))) == 3
    assert list(faults({"a": Row(GOOD)}, lambda _: None)) == ["a is missing"]


# Cells as they are written, and as nobody should.
CELLS = st.one_of(
    st.sampled_from([path for path, _ in PATHS if "\0" not in path]),
    st.sampled_from([GOOD, "sha256=", "sha999=x", "=", "1", "-1", "9" * 40, '"', "\r", "\n", ","]),
    st.text(max_size=12),
)
RECORDS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=4).map(
        lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass")
    ),
)


@settings(max_examples=examples(500))
@given(RECORDS)
def test_any_record_is_read_or_refused(data):
    with bounded():
        try:
            rows = parse_record(data)
        except RecordError:
            return
        for path, row in rows.items():
            outside(path)
            assert row.size is None or row.size >= 0
        assert all(isinstance(fault, str) for fault in faults(rows, lambda _: None))


NAME = WheelName("pkg", "1.0", "py3-none-any")


def wheel(folder, members, record):
    path = folder / str(NAME)
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(zipfile.ZipInfo(name), b"x")
        if record is not None:
            archive.writestr("pkg-1.0.dist-info/RECORD", record)
    return path


@pytest.mark.parametrize("path", [path for path, leads_out in PATHS if leads_out])
def test_a_wheel_with_such_a_row_is_refused(tmp_path, path):
    cell = '"' + path.replace('"', '""') + '"'
    with (
        Wheel(wheel(tmp_path, ["a.py"], f"a.py,,\n{cell},,\n")) as opened,
        pytest.raises(WheelError, match=r"RECORD"),
    ):
        opened.record()


@pytest.mark.parametrize("name", ["../a.py", "/a.py", "pkg/../../a.py", "a//b.py", "./a.py"])
def test_a_wheel_with_such_a_member_is_refused(tmp_path, name):
    with pytest.raises(WheelError, match="outside its tree"):
        Wheel(wheel(tmp_path, [name], ""))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (str(NAME), b""),
        (str(NAME), b"PK\x03\x04"),
        (str(NAME), b"not a zip archive"),
        ("pkg.whl", b""),
        ("pkg-1.0-py3-none-any.zip", b""),
    ],
)
def test_a_file_that_is_no_wheel_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WheelError):
        Wheel(tmp_path / name)


def test_damaged_members_are_refused(tmp_path):
    path = tmp_path / str(NAME)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pkg-1.0.dist-info/RECORD", "a.py,,\n" * 100)
    data = bytearray(path.read_bytes())
    for at in range(58, 70):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with Wheel(path) as opened, pytest.raises(WheelError):
            opened.record()
