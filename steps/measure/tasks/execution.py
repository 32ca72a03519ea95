"""HumanEval for a chat model: the function in its answer, run with the test that the problem has.

lm-eval imports this beside humaneval.yaml, in an environment without runbook.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

_spec = importlib.util.spec_from_file_location("sandbox", Path(__file__).with_name("sandbox.py"))
assert _spec is not None and _spec.loader is not None
sandbox = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sandbox)

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S)


def code_of(answer: str, entry: str) -> str:
    """The last block of code that defines the function; the whole answer if it has no block."""
    blocks = BLOCK.findall(answer) or [answer]
    defining = [block for block in blocks if f"def {entry}" in block]
    return str((defining or blocks)[-1])


def program(doc: dict[str, Any], answer: str) -> str:
    """What is run: the imports and helpers above the function of the prompt, the answer, the
    test."""
    entry = doc["entry_point"]
    code = code_of(answer, entry)
    before = doc["prompt"].split(f"def {entry}")[0]
    if f"def {entry}" not in code:
        before, code = "", doc["prompt"] + code  # only the body was written
    return f"{before}\n{code}\n\n{doc['test']}\n\ncheck({entry})\n"


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """1 if the test passes: the mean is pass@1 of one answer a problem."""
    answer = results[0]
    while isinstance(answer, list):
        answer = answer[0]
    return {"pass@1": float(not sandbox.run(program(doc, answer or "")))}
