"""Repacked wheels: complete, deterministic, under their new name."""

from __future__ import annotations

import io
import zipfile

import pytest

from runbook.steps.common.packages.record import Row, faults
from runbook.steps.common.packages.wheel import Wheel, WheelError, WheelName
from runbook.steps.vllm.metadata import edit_metadata, edit_version, edit_wheel
from runbook.steps.vllm.repack import repack

NAME = WheelName("vllm", "1.2.0+cpu.mtp.0a", "cp38-abi3-manylinux_2_28_x86_64")


def pack(source, changes=(), drop=("torchaudio",)):
    out = io.BytesIO()
    with Wheel(source) as wheel:
        repack(wheel, out, name=NAME, changes=dict(changes), drop_requirements=drop)
    return out.getvalue()


@pytest.fixture
def packed(world, tmp_path):
    changes = {
        "vllm/model.py": b"LIMIT = 10\n",
        "vllm/new.py": b"new = True\n",
        "vllm/gpu.py": None,
    }
    path = tmp_path / str(NAME)
    path.write_bytes(pack(world.wheel, changes))
    with Wheel(path) as wheel:
        yield wheel


def test_record_holds_and_names_every_member(packed):
    record = packed.record()
    assert list(faults(record, packed.open)) == []
    assert set(record) == set(packed.members)
    assert record[f"{packed.dist_info}/RECORD"] == Row()
    assert all(row.digest and row.size for path, row in record.items() if "RECORD" not in path)


def test_members_are_changed_added_left_out_and_kept(packed, world):
    assert packed.read("vllm/model.py") == b"LIMIT = 10\n"
    assert packed.read("vllm/new.py") == b"new = True\n"
    assert packed.read("vllm/gpu.py") is None
    with Wheel(world.wheel) as source:
        kept = source.members["vllm/_C.abi3.so"]
        assert packed.read("vllm/_C.abi3.so") == source.read("vllm/_C.abi3.so")
    copied = packed.members["vllm/_C.abi3.so"]
    assert copied.compress_size == kept.compress_size
    assert copied.external_attr == kept.external_attr == 0o100755 << 16


def test_metadata_follow_the_name(packed):
    assert packed.dist_info == "vllm-1.2.0+cpu.mtp.0a.dist-info"
    metadata = packed.need(f"{packed.dist_info}/METADATA").decode()
    assert "\nName: vllm\nVersion: 1.2.0+cpu.mtp.0a\n" in metadata
    assert "Requires-Dist: tiny-dep" in metadata
    headers, _, description = metadata.partition("\n\n")
    assert "torchaudio" not in headers
    assert description == "Name: stays\nVersion: stays\nRequires-Dist: torchaudio\n"
    # The source says cp312-cp312-linux_x86_64 here, which would not install.
    assert packed.need(f"{packed.dist_info}/WHEEL").decode().splitlines()[-1] == f"Tag: {NAME.tag}"
    assert packed.read("vllm/_version.py") is not None


def test_same_input_gives_the_same_bytes(world):
    changes = {"vllm/model.py": b"LIMIT = 10\n", "vllm/new.py": b"new = True\n"}
    first = pack(world.wheel, changes)
    assert pack(world.wheel, dict(reversed(changes.items()))) == first
    assert pack(world.wheel, {"vllm/model.py": b"LIMIT = 11\n"}) != first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_faults_name_what_differs_and_what_is_missing(packed):
    record = {**packed.record(), "vllm/gone.py": Row("sha256=x", 1)}
    record["vllm/model.py"] = Row("sha256=x", 1)
    assert sorted(faults(record, packed.open)) == [
        "vllm/gone.py is missing",
        "vllm/model.py differs from its hash in RECORD",
    ]


def test_member_that_record_does_not_know_is_refused(world, tmp_path):
    path = tmp_path / world.wheel.name
    path.write_bytes(world.wheel.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("vllm/stranger.py", "x = 1\n")
    with pytest.raises(WheelError, match=r"vllm/stranger\.py is not in RECORD"):
        pack(path)


def test_damaged_archive_is_refused(world, tmp_path):
    path = tmp_path / world.wheel.name
    path.write_bytes(world.wheel.read_bytes()[:-30])
    with pytest.raises(WheelError):
        Wheel(path)


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("vllm-1.0-cp38-abi3-linux_x86_64.whl", ("vllm", "1.0", "cp38-abi3-linux_x86_64")),
        ("a_b-1.0+cpu-2-py3-none-any.whl", ("a_b", "1.0+cpu", "py3-none-any")),
        ("vllm-1.0.tar.gz", None),
        ("vllm.whl", None),
    ],
)
def test_file_names(file, parts):
    if parts is None:
        with pytest.raises(WheelError):
            WheelName.parse(file)
    else:
        assert WheelName.parse(file) == WheelName(*parts)


def test_compressed_tags_are_expanded():
    data = edit_wheel(b"Wheel-Version: 1.0\nTag: x\n\n", "py2.py3-none-any")
    assert data == b"Wheel-Version: 1.0\nTag: py2-none-any\nTag: py3-none-any\n"


def test_requirements_are_dropped_by_normalised_name():
    data = b"Name: x\nVersion: 1\nRequires-Dist: Torch_Audio>=1 ; python_version>'3'\n\n"
    assert edit_metadata(data, NAME, ["torch-audio"]) == (
        b"Name: vllm\nVersion: 1.2.0+cpu.mtp.0a\n\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "__version__ = version = '1.2.0'\n__version_tuple__ = version_tuple = (1, 2, 0)\n",
        "version = __version__ = '1'\nversion_tuple = __version_tuple__ = (1,)\n",
    ],
)
def test_version_file(text):
    names: dict = {}
    exec(edit_version(text.encode(), "1.2.0rc1+cpu.mtp.0a"), names)
    assert names["version"] == names["__version__"] == "1.2.0rc1+cpu.mtp.0a"
    assert names["version_tuple"] == (1, 2, "0rc1", "cpu.mtp.0a")


def test_version_file_of_another_form_is_refused():
    with pytest.raises(WheelError, match="0 lines that assign"):
        edit_version(b"VERSION = '1'\n", "2")
