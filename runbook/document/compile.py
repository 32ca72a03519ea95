"""From a book's name to its compiled form, by way of a cache that needs none of the parsers.

This module imports only the standard library: an unchanged document is not read again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runbook
from runbook import logins
from runbook.errors import Failure
from runbook.files import read_sealed, write_sealed
from runbook.remedy import Remedy

if TYPE_CHECKING:
    from runbook.document.compiled import Book
    from runbook.document.errors import DocumentInvalid

BOOKS = Path(__file__).parent.parent / "books"
DEFAULT_FILE = "runbook.yaml"
DEFAULT_BOOK = "deepseek-v4-flash"
KEPT = 64
FORM = "2"
"""Of what is kept compiled; another one is compiled anew."""
LARGEST = 16 << 20
"""Bytes of a document."""
_NAME = re.compile(rb"^name:[ \t]+([A-Za-z0-9._-]+)[ \t]*(?:#.*)?$", re.MULTILINE)


def compile_book(
    book: str | None,
    sets: Sequence[str],
    cache_dir: Path | None,
    env: Mapping[str, str],
    *,
    recorded: Mapping[str, str] | None = None,
    require_inputs: bool = True,
) -> Book:
    """The compiled form of a document: plain JSON.

    `sets` are `NAME=VALUE`; `recorded` are values of an earlier command, which they go over.
    Templates that read nothing but inputs are evaluated already. Without `require_inputs`, inputs
    may lack values: the document is compiled to be checked, not run.
    Raises DocumentInvalid with all errors.
    """
    path = find_book(book)
    data = _read(book, path)
    digest = hashlib.sha256(data).hexdigest()
    given = [*sets, *(["recorded", *map("=".join, recorded.items())] if recorded else [])]
    file = cache_dir / _key(digest, path, given, require_inputs) if cache_dir else None
    if cache_dir is not None:
        # What was compiled with all inputs serves who needs none as well.
        for strict in (True,) if require_inputs else (True, False):
            cached = _load(cache_dir / _key(digest, path, given, strict))
            if cached is not None and _fresh(cached["made_from"], env):
                return _unpack(cached)

    from runbook.document.build import build

    built = build(data, path, sets, env, recorded=recorded, require_inputs=require_inputs)
    compiled: Any = {**built.book, "digest": digest, "version": runbook.__version__}
    if file is not None:
        made_from = {
            "environment": built.environment,
            "folder": built.folder,
            "files": {name: _signature(name) for name in built.files},
        }
        stored = {"made_from": made_from, **_pack(compiled)}
        if next(logins.passwords(stored), None) is None:
            _store(file, stored)
    done: Book = compiled
    return done


def _read(book: str | None, path: Path) -> bytes:
    """The content of a document. What is no file is not read: it may never end."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise _not_readable(book, path, f"it is {_kind(about.st_mode)}, not a file")
        if about.st_size > LARGEST:
            raise _not_readable(book, path, f"it is larger than {LARGEST >> 20} MiB")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise _not_readable(book, path, why) from error


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"


def find_book(book: str | None) -> Path:
    """The absolute path of a document: of a path, of a shipped book's name, or the default."""
    if book is None:
        own = Path.cwd() / DEFAULT_FILE
        return own if own.is_file() else BOOKS / f"{DEFAULT_BOOK}.yaml"
    if "/" not in book and not book.endswith((".yaml", ".yml")):
        shipped = BOOKS / f"{book}.yaml"
        if shipped.is_file():
            return shipped
        if not Path(book).is_file():
            raise _unknown(book)
    return Path(os.path.abspath(Path(book).expanduser()))


def name_of(book: str | None) -> str:
    """The name that a document gives itself, as far as one line of its text tells; "" if not."""
    try:
        found = _NAME.findall(_read(book, find_book(book)))
    except Failure:
        return ""
    return found[0].decode() if len(found) == 1 else ""


def shipped_books() -> list[str]:
    """The names of the books that are part of this package, in alphabetical order."""
    return sorted(path.stem for path in BOOKS.glob("*.yaml"))


def _key(digest: str, path: Path, sets: Sequence[str], require_inputs: bool) -> str:
    parts = [digest, str(path), runbook.__version__, FORM, str(require_inputs), *sets]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest() + ".json"


def _fresh(made_from: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    """Whether what the document was compiled from, besides its text, is as it was."""
    return (
        all(env.get(name) == value for name, value in made_from["environment"].items())
        and made_from["folder"] in (None, os.getcwd())
        and all(_signature(name) == value for name, value in made_from["files"].items())
    )


def _signature(file: str) -> list[int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def _pack(book: Mapping[str, Any]) -> dict[str, Any]:
    """A compiled book for storing: what its first step shares with others stands once."""
    common = {k: v for k, v in book["steps"][0].items() if k not in ("id", "with", "line")}
    steps = [
        {k: v for k, v in step.items() if k not in common or common[k] != v}
        for step in book["steps"]
    ]
    return {"book": {**book, "steps": steps}, "common": common}


def _unpack(stored: Mapping[str, Any]) -> Book:
    book: Book = stored["book"]
    common = stored["common"]
    book["steps"] = [{**common, **step} for step in book["steps"]]
    return book


def _load(file: Path) -> Any:
    # Thousands of new objects would set off the collector again and again, for nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return read_sealed(file)
    finally:
        if collecting:
            gc.enable()


def _store(file: Path, content: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(file, content)
        kept = sorted(file.parent.glob("*.json"), key=lambda f: f.stat().st_mtime_ns)
        for old in kept[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        # A cache that cannot be written (read-only, full) costs time, not the command.
        return


def _unknown(book: str) -> DocumentInvalid:
    from runbook.document.errors import DocumentInvalid, Problem, alternatives, nearest

    books = shipped_books()
    message = f"there is neither a book nor a file named `{book}`"
    expected = (alternatives(books) + ", or a path") if books else "a path"
    near = nearest(book, books)
    return DocumentInvalid(
        [Problem(book, 0, 0, "", "unknown_book", message, expected, near)],
        Remedy("list", text="name a book that {command} shows, or the path of a document"),
    )


def _not_readable(book: str | None, path: Path, why: str) -> DocumentInvalid:
    from runbook.document.errors import DocumentInvalid, Problem, nearest

    near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
    near = str(Path(book or "").parent / near) if near else ""
    message = f"the document cannot be read: {why}"
    return DocumentInvalid(
        [Problem(str(path), 0, 0, "", "not_readable", message, "a YAML file", near)],
        "name a document that can be read",
    )
