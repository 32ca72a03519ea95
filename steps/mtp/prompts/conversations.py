"""Conversations drawn from files: Parquet, JSON, or a line each."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

COLUMNS = ("messages", "prompt")
"""Where a conversation is if nobody says."""
PARQUET = ".parquet"
Messages = list[dict[str, str]]


class PromptError(Exception):
    """No conversations can be had from a file; says which and why."""


class ParquetMissing(Exception):
    """A Parquet file is to be read and pyarrow is not installed."""


class Table(Protocol):
    """A file of rows, of which few are wanted."""

    path: Path

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], column: str) -> Iterator[Any]:
        """What the rows, given in ascending order, have in the column; the first of `COLUMNS`
        that they have if it is empty."""
        ...


class Lines:
    """Text or JSON objects, one a line; or one JSON list of them, in a file that is named so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text()
        self.rows: list[Any] = (
            json.loads(text)
            if path.suffix == ".json" and text.lstrip().startswith("[")
            else [line for line in text.splitlines() if line.strip()]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Sequence[int], column: str) -> Iterator[Any]:
        for row in rows:
            value = self.rows[row]
            if isinstance(value, str) and value.lstrip().startswith("{"):
                value = json.loads(value)
            if isinstance(value, dict):
                value = value[_column(value, column)]
            yield value


class Parquet:
    """Only the groups of rows that hold a wanted one are read, and of them one column."""

    def __init__(self, path: Path) -> None:
        parquet = _pyarrow()
        self.path = path
        self.file = parquet.ParquetFile(path)

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def take(self, rows: Sequence[int], column: str) -> Iterator[Any]:
        name = _column(self.file.schema_arrow.names, column)
        begin = 0
        for group in range(self.file.num_row_groups):
            end = begin + self.file.metadata.row_group(group).num_rows
            wanted = [row - begin for row in rows if begin <= row < end]
            if wanted:
                values = self.file.read_row_group(group, columns=[name]).column(0)
                yield from values.take(wanted).to_pylist()
            begin = end


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ParquetMissing from error
    return parquet


def _column(names: Any, wanted: str) -> str:
    for name in (wanted,) if wanted else COLUMNS:
        if name in names:
            return name
    have = ", ".join(names) or "nothing"
    raise PromptError(f"there is no {wanted or ' or '.join(COLUMNS)}, only {have}")


def draw(files: Sequence[Path], count: int, seed: int, column: str = "") -> list[Messages]:
    """At most `count` conversations, drawn with `seed` from the rows of all files, in the files'
    order. Raises `PromptError` and `ParquetMissing`."""
    tables: list[Table] = []
    for path in files:
        try:
            tables.append(Parquet(path) if path.suffix == PARQUET else Lines(path))
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds too
            raise PromptError(f"{path} cannot be read: {error}") from error
    total = sum(map(len, tables))
    if not total:
        raise PromptError(f"{', '.join(map(str, files)) or 'no file'} holds no prompts")
    chosen = sorted(random.Random(seed).sample(range(total), min(count, total)))
    found: list[Messages] = []
    begin = 0
    for table in tables:
        end = begin + len(table)
        rows = [row - begin for row in chosen if begin <= row < end]
        begin = end
        try:
            for row, value in zip(rows, table.take(rows, column), strict=True):
                found.append(conversation(value, f"row {row + 1}"))
        except (PromptError, OSError, ValueError) as error:
            raise PromptError(f"{table.path}: {error}") from error
    return found


def conversation(value: Any, where: str) -> Messages:
    """The messages up to the last one that is not the model's: that is what it will be asked.

    `value` is a text, which its user says, or a list of messages."""
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    messages = list(value) if isinstance(value, list) else []
    if not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        messages = []
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise PromptError(f"{where} is neither a text nor messages with role and content")
    return messages
