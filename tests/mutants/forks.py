"""Runs mutants, each in a fork of one pytest that has collected the tests once. A fork runs the
tests that reach the mutated function until one fails: first those that failed of late, which is
often for the mutant next to it, then the quickest.

    python -m tests.mutants.forks RESULTS TEST... < mutants

In the folder of the mutated tree. Standard input is a JSON list of the names of mutants; RESULTS
gets a line for each, its exit code as mutmut has them and its name. mutmut's own runner would
collect anew for each mutant, after it has run every test twice.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings
from mutmut.configuration import config
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import run_in_fork, run_in_fork_with_result

FAILED, NO_TESTS = 1, 33


class Forks:
    def __init__(self, mutants: list[str], results: Path) -> None:
        self.mutants = mutants
        self.results = results

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        # A process of the real program has the code as it is.
        here: list[Any] = [i for i in session.items if "cli" not in getattr(i, "fixturenames", ())]
        items = {item.nodeid: item for item in here}
        reached = run_in_fork_with_result(self.reached, here)
        late: dict[str, int] = {}
        with self.results.open("w") as results:
            for number, mutant in enumerate(self.mutants):
                function = mangled_name_from_mutant_name(mutant)
                tests = reached.get(function, {})
                code = NO_TESTS
                if tests:
                    order = sorted(
                        (-late.get(name, -1), took, name) for name, took in tests.items()
                    )
                    found = [items[name] for *_, name in order]
                    # What a fork leaves, nobody else removes: gigabytes for a thousand of them.
                    with TemporaryDirectory(ignore_cleanup_errors=True) as place:
                        code = run_in_fork(self.judge, place, mutant, found, sum(tests.values()))
                        if (failed := Path(place, "failed")).exists():
                            late[failed.read_text()] = number
                print(code, mutant, file=results, flush=True)
        return True

    def reached(self, items: list[Any]) -> dict[str, dict[str, float]]:
        """By function, the tests that call it, with the seconds of processor time of each."""
        set_mutant_under_test("stats")
        config()  # by the folder, which tests may leave
        found: dict[str, dict[str, float]] = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            state()._stats.clear()
            began = time.process_time()
            reports = runtestprotocol(item, nextitem=following, log=False)
            if any(report.failed for report in reports):
                print("fails without a mutant:", item.nodeid, file=sys.stderr)
                continue
            for function in state()._stats:
                found.setdefault(function, {})[item.nodeid] = time.process_time() - began
        return found

    def judge(self, place: str, mutant: str, items: list[Any], seconds: float) -> int:
        """1 if a test fails, else 0. Ends by a signal after many times the `seconds` that the
        tests take. Temporary files go to `place`."""
        tempfile.tempdir = os.environ["TMPDIR"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = place
        most = int(time.process_time() + 10 * seconds + 5)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
        signal.alarm(int(100 * seconds) + 100)
        set_mutant_under_test(mutant)
        for item in items:
            if any(report.failed for report in runtestprotocol(item, nextitem=None, log=False)):
                Path(place, "failed").write_text(item.nodeid)
                return FAILED
        return 0


if __name__ == "__main__":
    results, *tests = sys.argv[1:]
    plugin = Forks(json.load(sys.stdin), Path(results))
    # A failure is enough: it need not be made small, nor kept for another run.
    settings.register_profile(
        "mutants",
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    options = ["-p", "no:cacheprovider", "--rootdir=.", "--hypothesis-profile=mutants"]
    options += ["-m", "not harness and not e2e and not network"]
    sys.exit(pytest.main([*options, *tests], plugins=[plugin]))
