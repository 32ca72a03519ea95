"""Each refusal of the operating system, provoked where that is possible, in words."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from runbook.errors import PRECONDITION
from runbook.steps.common.disk import FULL_WORDS, disk_failure, disk_full, shortage


def _full(folder: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def _too_large(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with (folder / "large").open("wb", buffering=0) as file:
            file.seek(8192)
            file.write(b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _too_many(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 4,
                                                limits[1]))  # fmt: skip
    try:
        while True:
            held.append(os.open(folder, os.O_RDONLY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)


def _file_in_the_way(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "file" / "below").write_bytes(b"")


def _folder_needed(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "file").mkdir(exist_ok=True)


def _folder_in_the_way(folder: Path) -> None:
    folder.write_bytes(b"")


def _long_name(folder: Path) -> None:
    (folder / ("n" * 300)).touch()


def _read_only(folder: Path) -> None:
    Path("/sys/kernel/runbook-cannot-write-here").mkdir()


PROVOKED: list[tuple[Callable[[Path], None], set[str]]] = [
    (_full, {"disk_full"}),
    (_too_large, {"file_too_large"}),
    (_too_many, {"too_many_open_files"}),
    (_file_in_the_way, {"not_a_folder"}),
    (_folder_needed, {"not_a_folder"}),
    (_folder_in_the_way, {"not_a_file"}),
    (_long_name, {"name_too_long"}),
    (_read_only, {"read_only_disk", "permission_denied"}),  # depends on how sysfs is mounted
]


@pytest.mark.parametrize(("provoke", "codes"), PROVOKED)
def test_what_is_provoked_is_said(
    provoke: Callable[[Path], None], codes: set[str], tmp_path: Path
) -> None:
    with pytest.raises(OSError) as raised:
        provoke(tmp_path)
    failure = disk_failure(raised.value, tmp_path)
    assert failure.code in codes, failure.message
    assert failure.exit_code == PRECONDITION
    assert failure.cause == os.strerror(raised.value.errno or 0)
    assert "`runbook run`" in str(failure.remedy)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EFBIG, "file_too_large"),
        (errno.EROFS, "read_only_disk"),
        (errno.EACCES, "permission_denied"),
        (errno.EPERM, "permission_denied"),
        (errno.EMFILE, "too_many_open_files"),
        (errno.ENFILE, "too_many_open_files"),
        (errno.EIO, "disk_error"),
        (errno.ESTALE, "disk_error"),
        (errno.EXDEV, "other_file_system"),
        (errno.ENODEV, "cannot_write"),
    ],
)
def test_a_path_is_the_error_s_own_or_the_folder(number: int, code: str) -> None:
    for named, place in (
        (None, "/some"),
        ("/some/file", "/some/file"),
        (b"/b", "/b"),
        (7, "/some"),
    ):
        failure = disk_failure(OSError(number, os.strerror(number), named), "/some")
        assert (failure.code, failure.where) == (code, place)
        assert "{" not in failure.message


def test_an_error_without_a_number_keeps_its_words() -> None:
    failure = disk_failure(OSError("became shorter than 5 bytes"), "/some")
    assert (failure.code, failure.cause) == ("cannot_write", "became shorter than 5 bytes")


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 28] No space left on device: '/x'",
        "fatal error: error writing to /tmp/cc.s: Disk quota exceeded",
        "error: failed to write: No space left on device (os error 28)",
        "failed to copy (os error 122)",
    ],
)
def test_a_program_that_says_it(line: str) -> None:
    assert re.search(FULL_WORDS, line)
    failure = disk_full("/some", line)
    assert (failure.code, failure.cause, failure.where) == ("disk_full", line, "/some")


def test_room(tmp_path: Path) -> None:
    missing = tmp_path / "not" / "there"
    assert shortage(missing, 0) is None
    assert shortage(missing, 1, reserve=0) is None
    failure = shortage(missing, 1 << 60)
    assert failure is not None
    assert failure.code == "not_enough_disk"
    assert str(missing) in failure.message
    assert shortage(missing, 1, reserve=1 << 60) is not None
