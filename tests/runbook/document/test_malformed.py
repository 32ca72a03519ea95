"""Each malformed document names, in the comments that it starts with, all its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbook.document.compile import compile_book
from runbook.document.errors import DocumentInvalid

FOLDER = Path(__file__).parent / "malformed"
DOCUMENTS = sorted(FOLDER.glob("*.yaml"))


def expected(path: Path) -> list[str]:
    lines = path.read_bytes().decode("latin-1").splitlines()
    head = []
    for line in lines:
        if not line.startswith("# "):
            break
        head.append(line.removeprefix("# "))
    return head


def test_there_are_enough() -> None:
    assert len(DOCUMENTS) >= 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_all_errors_are_found(path: Path) -> None:
    with pytest.raises(DocumentInvalid) as caught:
        compile_book(str(path), [], None, {})
    found = [
        f"{p.line}:{p.column} {p.breadcrumb + ': ' if p.breadcrumb else ''}{p.text}".replace(
            str(FOLDER), "."
        )
        for p in caught.value.problems
    ]
    assert found == expected(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_errors_are_data(path: Path) -> None:
    with pytest.raises(DocumentInvalid) as caught:
        compile_book(str(path), [], None, {})
    error = caught.value
    assert error.exit_code == 2
    for data in error.errors:
        assert data["file"] == str(path)
        assert data["line"] >= 1 and data["column"] >= 1
        assert data["code"].replace("_", "").isalnum() and data["message"]
    assert error.message and error.cause and error.remedy and error.where
