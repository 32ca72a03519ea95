"""Finding a book, its compiled form, and the cache of that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook.document import compile as compiling
from runbook.document.compile import BOOKS, compile_book, find_book
from runbook.document.errors import DocumentInvalid
from runbook.files import read_sealed, write_sealed

WELLFORMED = Path(__file__).parent / "wellformed"
FOLDER = "<folder>"


@pytest.mark.parametrize("path", sorted(WELLFORMED.glob("*.yaml")), ids=lambda path: path.stem)
def test_compiled_form(path: Path) -> None:
    """Each well-formed document stands beside the compiled form that it has."""
    compiled = compile_book(str(path), [], None, {})
    text = json.dumps(compiled, indent=2, ensure_ascii=False).replace(str(WELLFORMED), FOLDER)
    again = json.loads(text)
    assert re.fullmatch("[0-9a-f]{64}", again.pop("digest"))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", again.pop("version"))
    assert again == json.loads(path.with_suffix(".json").read_text())


def shipped() -> list[Path]:
    return sorted(BOOKS.glob("*.yaml"))


def required(path: Path) -> list[str]:
    """A value for each input that a book has no default of."""
    inputs = yaml.safe_load(path.read_text()).get("inputs") or {}
    values = {"integer": "1", "number": "1", "boolean": "true"}
    return [
        f"{name}={values.get(told['type'], 'owner/name')}"
        for name, told in inputs.items()
        if told.get("default") is None
    ]


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_shipped_books_compile(path: Path) -> None:
    compiled = compile_book(path.stem, required(path), None, {})
    assert compiled["name"] == path.stem
    assert compiled["source"] == str(path)


# -- which document


def test_the_default_is_the_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_book(None) == BOOKS / "deepseek-v4-flash.yaml"
    (tmp_path / "runbook.yaml").touch()
    assert find_book(None) == tmp_path / "runbook.yaml"


def test_a_name_is_a_shipped_book_before_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiling, "BOOKS", tmp_path / "books")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "demo.yaml").touch()
    for name in ("demo", "other"):
        (tmp_path / name).touch()
    assert find_book("demo") == tmp_path / "books/demo.yaml"
    assert find_book("./demo") == tmp_path / "demo"
    assert find_book("other") == tmp_path / "other"
    assert find_book("sub/../x.yaml") == tmp_path / "x.yaml"


def test_an_unknown_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiling, "BOOKS", tmp_path / "books")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "rehearsal.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(DocumentInvalid) as caught:
        compile_book("rehersal", [], None, {})
    assert caught.value.errors[0]["suggestion"] == "rehearsal"
    with pytest.raises(DocumentInvalid) as caught:
        compile_book("mein.yaml", [], None, {})
    assert caught.value.errors[0]["suggestion"] == "mine.yaml"
    assert "No such file" in caught.value.errors[0]["message"]
    with pytest.raises(DocumentInvalid, match="it is a folder"):
        compile_book(f"{tmp_path}/books/", [], None, {})


# -- the cache

BOOK = """
runbook: 1
name: demo
inputs:
  jobs: {type: integer, default: 4}
  folder: {type: path, default: out}
steps:
  - id: one
    uses: own.py:Own
    with: {jobs: "{{ inputs.jobs }}", folder: "{{ inputs.folder }}"}
"""
OWN = """
from pydantic import BaseModel
class Inputs(BaseModel):
    jobs: int
    folder: str
    colour: str = "red"
class Outputs(BaseModel):
    pass
class Own:
    version = "1"
    Inputs = Inputs
    Outputs = Outputs
    def check(self, ctx): ...
    def apply(self, ctx): ...
"""


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(BOOK)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return path


class Compiler:
    """Compiles with a cache, and knows whether the document was read anew."""

    def __init__(self, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from runbook.document import build

        self.book = book
        self.cache = book.parent / "cache"
        self.built = 0
        real = build.build

        def counting(*arguments: Any, **options: Any) -> Any:
            self.built += 1
            return real(*arguments, **options)

        monkeypatch.setattr(build, "build", counting)

    def __call__(
        self, sets: Sequence[str] = (), env: Mapping[str, str] | None = None, **options: Any
    ) -> tuple[dict[str, Any], bool]:
        before = self.built
        compiled = compile_book(str(self.book), sets, self.cache, env or {}, **options)
        assert compiled == compile_book(str(self.book), sets, None, env or {}, **options)
        return compiled["steps"][0]["with"], self.built - before > 1


@pytest.fixture
def compiler(book: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(book, monkeypatch)


def test_an_unchanged_document_is_not_read_again(compiler: Compiler) -> None:
    assert compiler()[1]
    assert not compiler()[1]
    assert not compiler(env={"HOME": "/elsewhere", "RUNBOOK_OTHER": "1"})[1]


def test_what_the_result_depends_on(compiler: Compiler) -> None:
    compiler()
    values, anew = compiler(["jobs=5"])
    assert (values["jobs"], anew) == (5, True)
    assert not compiler(["jobs=5"])[1]
    assert not compiler()[1]
    values, anew = compiler(env={"RUNBOOK_JOBS": "6"})
    assert (values["jobs"], anew) == (6, True)
    assert compiler(require_inputs=False)[1]

    compiler.book.write_text(BOOK.replace("default: 4", "default: 7"))
    values, anew = compiler()
    assert (values["jobs"], anew) == (7, True)


def test_the_code_of_a_step_of_ones_own(compiler: Compiler) -> None:
    assert compiler()[0]["colour"] == "red"
    own = compiler.book.parent / "own.py"
    own.write_text(OWN.replace("red", "green"))
    # A step is loaded once in a process; another one has to see the change.
    code = (
        "import sys; from pathlib import Path; from runbook.document.compile import compile_book;"
        "print(compile_book(sys.argv[1], [], Path(sys.argv[2]), {})['steps'][0]['with']['colour'])"
    )
    arguments = [sys.executable, "-c", code, str(compiler.book), str(compiler.cache)]
    assert subprocess.check_output(arguments, text=True) == "green\n"


def test_the_code_that_compiles(compiler: Compiler) -> None:
    compiler()
    (file,) = compiler.cache.glob("*.json")
    cached = read_sealed(file)
    compiled_by = [name for name in cached["made_from"]["files"] if name.endswith("build.py")]
    cached["made_from"]["files"][compiled_by[0]][0] -= 1
    write_sealed(file, cached)
    assert compiler()[1]


def test_the_code_that_a_step_is_derived_from(tmp_path: Path) -> None:
    """A base of its inputs, in another file, decides what the document may say too."""
    book = tmp_path / "book.yaml"
    book.write_text(
        "runbook: 1\nname: derived\nsteps:\n- {id: w, uses: weights, with: {repo: a/b}}\n"
    )
    compile_book(str(book), [], tmp_path / "cache", {})
    (file,) = (tmp_path / "cache").glob("*.json")
    names = {"/".join(Path(n).parts[-3:]) for n in read_sealed(file)["made_from"]["files"]}
    assert {"steps/weights/models.py", "common/hub/models.py", "common/hub/step.py"} <= names


def test_the_version_of_the_package(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler()
    monkeypatch.setattr("runbook.__version__", "99.0.0")
    assert compiler()[1]


def test_the_current_folder_where_a_path_counts_from_it(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiler(["folder=x"])[0]["folder"] == str(tmp_path / "x")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert compiler(["folder=x"])[0]["folder"] == str(tmp_path / "sub/x")


@pytest.mark.parametrize("content", [b"", b"{", b'{"made_from": {}', b"\xff"])
def test_a_damaged_cache_is_made_again(compiler: Compiler, content: bytes) -> None:
    compiler()
    (file,) = compiler.cache.glob("*.json")
    file.write_bytes(content)
    assert compiler()[1]
    assert not compiler()[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(compiler: Compiler) -> None:
    compiler.cache.mkdir(mode=0o500)
    assert compiler()[1]
    assert compiler()[1]


def test_a_cache_that_is_no_folder(compiler: Compiler) -> None:
    compiler.cache.write_text("")
    assert compiler()[1]


def test_the_cache_stays_small(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "KEPT", 3)
    for jobs in range(5):
        compiler([f"jobs={jobs}"])
    assert len(list(compiler.cache.glob("*"))) == 3
    assert not compiler(["jobs=4"])[1]


def test_an_invalid_document_is_not_kept(compiler: Compiler) -> None:
    with pytest.raises(DocumentInvalid):
        compiler(["jobs=x"])
    assert not compiler.cache.exists()


HEAVY = {"pydantic", "pydantic_core", "yaml", "jinja2", "click", "rich", "difflib"}


def test_from_the_cache_nothing_heavy_is_imported(book: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from runbook.document.compile import "
        "compile_book; compile_book(sys.argv[1], ['jobs=3'], Path(sys.argv[2]), os.environ)"
    )

    def imported() -> set[str]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code, str(book), str(tmp_path / "cache")],
            capture_output=True,
            text=True,
            check=True,
        )
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert {"pydantic", "yaml", "jinja2"} <= imported()
    again = imported()
    assert "runbook.document.compile" in again
    assert not again & HEAVY
