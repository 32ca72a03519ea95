"""Runs mutmut over what decides, records and proves (`[tool.mutmut]` in pyproject.toml), and says
what the tests let pass.

    python -m tests.mutants [--report] [--show] [PATTERN...]

Prints a table by module: how many mutants the type checker refuses, and how many of the others the
tests kill. Exit code 1 if these are less than 95 of 100 of those that change something, or if
`unchanging.yaml`, the reviewed list of those that do not, names one that is caught or that there is
not. --report: of the results that are there, without a run. --show: the survivors as diffs.
PATTERN: of modules, as `runbook.state.*`; they alone are run anew and told of.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name

LEAST = 95
LIST = Path(__file__).parent / "unchanging.yaml"
LOG = Path("mutants/log")
# A mutant that does not end passes no more than one that fails.
CAUGHT = {"killed": "killed", "timeout": "killed", "segfault": "killed", "suspicious": "killed"}
CAUGHT |= {"caught by type check": "refused"}
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
        return name.removeprefix("x").strip("_ǁ").replace("ǁ", ".")

    def diff(self) -> list[str]:
        lines: list[str] = get_diff_for_mutant(self.name, path=self.path).split("\n")
        return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]

    def change(self) -> tuple[str, str]:
        lines = self.diff()
        was, becomes = (
            " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
        )
        return was, becomes


def run(patterns: list[str]) -> None:
    """Everything, or again what the patterns name."""
    LOG.parent.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    programs = Path(sys.executable).parent
    environment["PATH"] = f"{programs}:{environment.get('PATH', '')}"  # mypy
    argv = [programs / "mutmut", "run", *(f"{pattern}.x*" for pattern in patterns)]
    with LOG.open("wb") as log:
        done = subprocess.run(argv, env=environment, stdout=log, stderr=log)
    if done.returncode:
        sys.exit(f"mutmut ended with {done.returncode}; its output is in {LOG}")


def found(patterns: list[str]) -> Iterator[Mutant]:
    for path in sorted(walk_mutatable_files()):
        module = str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__")
        if patterns and not any(fnmatch.fnmatch(module, pattern) for pattern in patterns):
            continue
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            yield Mutant(module, name, status_by_exit_code[code], path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("patterns", nargs="*")
    options = parser.parse_args()
    if not options.report:
        run(options.patterns)
    listed = {
        (entry["module"], entry["function"], entry["was"], becomes)
        for entry in yaml.safe_load(LIST.read_text())
        for becomes in entry["becomes"]
    }
    functions = {entry[:2] for entry in listed}
    counts: dict[str, Counter[str]] = {}
    met, wrong = set(), []
    for mutant in found(options.patterns):
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
