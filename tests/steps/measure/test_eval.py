"""Scores and their uncertainty, and what a program that a model wrote may not do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runbook.protocol import StepFailure
from runbook.steps.measure import evaluate, scores
from runbook.steps.measure.tasks import execution, sandbox


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Wilson's interval without continuity correction; the cases of Newcombe, Statistics in
    # Medicine 17 (1998) 857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
     (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_the_interval_of_right_and_wrong(right, n, low, high):
    values = [1.0] * right + [0.0] * (n - right)
    assert scores.interval(values) == pytest.approx((low, high), abs=2e-4)


def test_the_interval_of_other_values_is_normal():
    low, high = scores.interval([0.2, 0.4, 0.6, 0.8] * 25)
    assert (low + high) / 2 == pytest.approx(0.5, abs=1e-4)
    assert high - 0.5 == pytest.approx(1.96 * 0.2247 / 10, abs=1e-3)


def sample(value, text, kept="none", **more):
    given = {"exact_match": value, "metrics": ["exact_match"], "filter": kept}
    return {"doc_id": 0, "resps": [[text]], **given, **more}


def test_scores_are_read_of_all_subjects(tmp_path):
    """As lm-eval 0.4.13 leaves them: a file for each subject, a line for each filter."""
    folder = tmp_path / "little"
    folder.mkdir()
    for subject, values in {"law": (1.0, 0.0), "logic": (1.0,)}.items():
        lines = [sample(v, "x", kept="strict") for v in values]
        lines += [sample(v, None if v == 0 else "x", kept="loose") for v in values]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"samples_{subject}_2026.jsonl").write_text(text)
    found = scores.read(tmp_path, "exact_match,loose")
    assert (found.score, found.n, found.empty) == (0.6667, 3, 1)
    with pytest.raises(StepFailure, match="no score") as caught:
        scores.read(tmp_path, "exact_match,other")
    assert "loose, strict" in caught.value.cause


def test_the_form_of_the_report():
    body = {
        "score": 0.93,
        "n": 100,
        "interval": [0.8625, 0.9657],
        "title": "GSM8K",
        "empty": 0,
        "published": [{"score": 0.9507, "n": 1319, "source": "who", "where": "cards"}],
        "result": "/w/eval/result.json",
    }
    lines = evaluate.words(body).splitlines()
    assert lines[0].split() == ["score", "n", "95", "%", "of"]
    assert lines[1].split()[:5] == ["93.0%", "100", "86.2%", "to", "96.6%"]
    assert lines[2].split()[:2] == ["95.1%", "1319"]


def test_every_named_task_says_what_it_needs():
    for told in evaluate.known_tasks().values():
        assert {"title", "tasks", "metric", "max_tokens", "published"} <= set(told)
        assert all(set(one) == {"score", "n", "source", "where"} for one in told["published"])


PROGRAMS = {
    "print(1 + 1)": "",
    "open('own', 'w').write('x')": "",
    "import threading; t = threading.Thread(target=print); t.start(); t.join()": "",
    "assert 1 == 2": "AssertionError",
    "import socket; socket.socket()": "not permitted",
    "open('{outside}', 'w')": "Permission denied",
    "import os; os.unlink('{there}')": "Permission denied",
    "import os; os.rename('{there}', '{there}2')": "Permission denied",
    "import os; os.kill({pid}, 0)": "not permitted",
    "import os; os.fork()": "not permitted",
    "import subprocess; subprocess.run(['true'])": "not permitted",
    "open('big', 'wb').write(bytes(1 << 26))": "File too large",
    "held = bytearray(1 << 31)": "MemoryError",
    "while True: pass": "timed out",
    "import time; time.sleep(60)": "timed out",
    "import sys; sys.exit(0)": "ended early",
    "import os; print(os.environ['RUNBOOK_TEST_SECRET'])": "KeyError",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_sandbox(program, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNBOOK_TEST_SECRET", "x")
    there = tmp_path / "there"
    there.write_text("kept")
    filled = (
        program.replace("{outside}", str(tmp_path / "outside"))
        .replace("{there}", str(there))
        .replace("{pid}", str(os.getpid()))
    )
    how = sandbox.run(filled, seconds=2)
    assert PROGRAMS[program] in how if PROGRAMS[program] else how == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]
    assert there.read_text() == "kept"


def test_what_cannot_be_bounded_is_not_run(monkeypatch, tmp_path):
    """A machine of another kind: nothing of the program runs."""
    script = Path(sandbox.__file__).read_text().replace('"x86_64"', '"z80"')
    other = tmp_path / "sandbox.py"
    other.write_text(script.replace('"aarch64"', '"6502"'))
    monkeypatch.setattr(sandbox, "__file__", str(other))
    with pytest.raises(sandbox.Unavailable, match="not known"):
        sandbox.run("print(1)")


DOC = {
    "prompt": "import math\n\n\ndef area(r):\n    '''The area.'''\n",
    "entry_point": "area",
    "test": "def check(f):\n    assert abs(f(2) - 12.566) < 0.01\n",
}
RIGHT = "def area(r):\n    return math.pi * r * r\n"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (f"Here it is:\n```python\n{RIGHT}```\nIt uses pi.", 1.0),
        (RIGHT, 1.0),
        (f"```\nprint('example')\n```\nand\n```py\n{RIGHT}```", 1.0),
        ("    return math.pi * r * r\n", 1.0),
        (f"```python\n{RIGHT}", 1.0),
        ("```python\ndef area(r):\n    return 3 * r\n```", 0.0),
        ("I cannot.", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_humaneval_is_judged_by_its_test(answer, passes):
    assert execution.process_results(DOC, [[answer]]) == {"pass@1": passes}


@pytest.mark.parametrize(
    ("task", "code"), [("poetry", "unknown_task"), ("no-task.yaml", "unknown_task")]
)
def test_what_is_no_task(little, task, code):
    (little.home / "no-task.yaml").write_text("runbook: 1\n")
    error = little.json("eval", "--task", task, code=2)["error"]
    assert error["code"] == "unknown_task"
    assert "gsm8k" in error["remedy"]
