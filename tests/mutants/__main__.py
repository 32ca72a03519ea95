"""Runs mutants, made by mutmut, of what decides, records and proves (`[tool.mutmut]` in
pyproject.toml), and says what the tests let pass.

    python -m tests.mutants [--report] [--show] [PATTERN...]

Prints a table by module: how many mutants the type checker refuses, and how many of the others the
tests kill. Exit code 1 if these are less than 95 of 100 of those that change something, or if
`unchanging.yaml`, the reviewed list of those that do not, names one that is caught or that there is
not. --report: of the results that are there, without a run. --show: the survivors as diffs.
PATTERN: of modules, as `runbook.state.*`; they alone are run anew and told of.

A mutant is judged by the listed tests in the folder that mirrors its module's: they run once to
learn which of them reach which function, then those alone for each of its mutants (`forks.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from mutmut.__main__ import create_mutants_for_file
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import filter_mutants_with_type_checker
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, walk_all_files, walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name

LEAST = 95
LIST = Path(__file__).parent / "unchanging.yaml"
LOG = Path("mutants/log")
# A mutant that does not end passes no more than one that fails.
CAUGHT = {"killed": "killed", "timeout": "killed", "segfault": "killed", "suspicious": "killed"}
CAUGHT |= {"caught by type check": "refused"}
REFUSED = 37
COLUMNS = ("mutants", "refused", "unchanging", "killed", "survive")


@dataclass(frozen=True)
class Mutant:
    """`was` and `becomes`: the lines that the mutation takes out and puts in, stripped."""

    module: str
    name: str
    status: str
    path: Path

    @property
    def function(self) -> str:
        name = mangled_name_from_mutant_name(self.name).rpartition(".")[2]
        return name[2:].replace("ǁ", ".")  # after `x_`, of a method `xǁ`

    def diff(self) -> list[str]:
        lines: list[str] = get_diff_for_mutant(self.name, path=self.path).split("\n")
        return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]

    def change(self) -> tuple[str, str]:
        lines = self.diff()
        was, becomes = (
            " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
        )
        return was, becomes


def run(paths: list[Path]) -> None:
    """Makes the mutants of these modules, checks their types, and runs what is left of them."""
    Path("mutants").mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    make(paths)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # mypy
    config().type_check_command += [word for path in paths for word in ("-m", module(path))]
    refused = filter_mutants_with_type_checker()
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        groups.setdefault(mirrored(path), []).append(path)
    for tests, group in groups.items():
        data = {path: SourceFileMutationData(path=path) for path in group}
        for one in data.values():
            one.load()
        names = [name for one in data.values() for name in one.exit_code_by_key]
        codes = judged([name for name in names if name not in refused], tests)
        for one in data.values():
            for name in one.exit_code_by_key:
                one.exit_code_by_key[name] = REFUSED if name in refused else codes.get(name)
            one.save()


def make(paths: list[Path]) -> None:
    """`mutants/`: the tree as it is, but for these modules and those that had been made before,
    which hold all their mutants."""
    shutil.rmtree("mutants/tests", ignore_errors=True)
    with contextlib.redirect_stdout(None):
        copy_also_copy_files()
    for folder, name in walk_all_files():
        path = Path(folder, name)
        made = "mutants" / path
        if "__pycache__" in path.parts:
            continue
        made.parent.mkdir(parents=True, exist_ok=True)
        mutated = path in paths or Path(f"{made}.spans").exists()
        if mutated and config().should_mutate(path) and path.suffix == ".py":
            # Half of it, if this is interrupted, would be taken for all of it by the next run.
            making = made.with_suffix(".making")
            making.unlink(missing_ok=True)
            if made.exists():
                made.rename(making)
            result = create_mutants_for_file(path, making)
            if result.error:
                raise result.error
            making.rename(made)
        else:
            shutil.copy2(path, made)


def mirrored(path: Path) -> tuple[str, ...]:
    """The tests of a module: those listed that lie in the folder which mirrors its own, or the
    nearest above."""
    listed = config().pytest_add_cli_args_test_selection
    # `runbook/steps` is a link to `steps`.
    folder = Path("tests", str(path.parent).replace("runbook/steps", "steps"))
    while True:
        files = tuple(t for t in listed if t.endswith(".py") and Path(t).parent == folder)
        if files or str(folder) in listed:
            return files or (str(folder),)
        folder = folder.parent


def judged(names: list[str], tests: tuple[str, ...]) -> dict[str, int]:
    """The exit codes of mutants under these tests."""
    argv = [sys.executable, "-m", "tests.mutants.forks", "results", *tests]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with LOG.open("ab") as log:
        done = subprocess.run(
            argv, cwd="mutants", env=environment, input=json.dumps(names).encode(), stdout=log,
            stderr=log,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"pytest ended with {done.returncode}; its output is in {LOG}")
    lines = Path("mutants/results").read_text().splitlines()
    return {name: int(code) for code, name in map(str.split, lines)}


def module(path: Path) -> str:
    return str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__")


def chosen(patterns: list[str]) -> list[Path]:
    return [
        path
        for path in sorted(walk_mutatable_files())
        if not patterns or any(fnmatch.fnmatch(module(path), pattern) for pattern in patterns)
    ]


def found(paths: list[Path]) -> Iterator[Mutant]:
    for path in paths:
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            yield Mutant(module(path), name, status_by_exit_code[code], path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("patterns", nargs="*")
    options = parser.parse_args()
    paths = chosen(options.patterns)
    if not paths:
        parser.error("no module of [tool.mutmut] is named so")
    if not options.report:
        run(paths)
    listed = {
        (entry["module"], entry["function"], entry["was"], becomes)
        for entry in yaml.safe_load(LIST.read_text())
        for becomes in entry["becomes"]
    }
    functions = {entry[:2] for entry in listed}
    counts: dict[str, Counter[str]] = {}
    met, wrong = set(), []
    for mutant in found(paths):
        count = counts.setdefault(mutant.module, Counter())
        count["mutants"] += 1
        where = (mutant.module, mutant.function)
        key = (*where, *(mutant.change() if where in functions else ("", "")))
        if key in listed:
            met.add(key)
        if mutant.status in CAUGHT:
            count[CAUGHT[mutant.status]] += 1
            if key in listed:
                wrong.append(f"listed, but caught: {' '.join(key)}")
        elif key in listed:
            count["unchanging"] += 1
        else:
            count["survive"] += 1
            if options.show:
                print(f"# {mutant.name}: {mutant.status}", *mutant.diff(), sep="\n")
    if not options.patterns:
        wrong += [f"listed, but not there: {' '.join(key)}" for key in listed - met]
    rate = table(counts)
    print(*wrong, sep="\n")
    return int(rate < LEAST or bool(wrong))


def table(counts: dict[str, Counter[str]]) -> float:
    """Prints a row a module and one of all; the percentage that is killed of what can be."""
    counts["all"] = sum(counts.values(), Counter())
    width = max(map(len, counts))
    print(f"{'module':<{width}}", *(f"{name:>10}" for name in COLUMNS), f"{'rate':>8}")
    rate = 0.0
    for name, count in counts.items():
        real = count["killed"] + count["survive"]
        rate = 100 * count["killed"] / real if real else 100.0
        row = (f"{count[column]:>10}" for column in COLUMNS)
        print(f"{name:<{width}}", *row, f"{rate:>6.1f} %")
    return rate


if __name__ == "__main__":
    sys.exit(main())
