"""lm-evaluation-harness (lm-eval), in an environment of its own, by hashes, in the folder that
workspaces share: 0.6 GB that only evaluations need."""

from __future__ import annotations

import json
import os
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from runbook.protocol import StepFailure
from runbook.steps.common import tether
from runbook.steps.common.packages.indexes import (
    UNSEEDED,
    pip_settings,
    uv_environment,
    uv_index_options,
)
from runbook.steps.common.packages.uv_command import explain
from runbook.steps.common.store import sha256_file
from runbook.steps.measure.served import Served

FOLDER = "eval"
COMPLETE = ".complete"
TAIL = 15
RETRIES = 3
REQUEST_SECONDS = 3600


def python(cache: Path, tell: Callable[[str], None]) -> Path:
    """The Python of the environment; it is made if it is not there. Raises StepFailure."""
    requirements = Path(str(files("runbook.env") / "eval.requirements.txt"))
    folder = cache / FOLDER / sha256_file(requirements)[:12]
    found = folder / "bin" / "python"
    if (folder / COMPLETE).exists():
        return found
    tell("install lm-eval into an environment of its own: 0.6 GB")
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = pip_settings()
    env = {**os.environ, **uv_environment(settings, os.environ), **UNSEEDED}
    _uv(["venv", "--quiet", "--clear", str(folder)], env)
    _uv(
        [
            *("pip", "install", "--quiet", "--python", str(found), "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:", "--requirement", str(requirements)),
            *uv_index_options(settings),
        ],
        env,
    )
    (folder / COMPLETE).touch()
    return found


def _uv(arguments: Sequence[str], env: dict[str, str]) -> None:
    done = subprocess.run(
        tether.command("uv", *arguments), env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        failure = StepFailure(
            "lm-eval cannot be installed", code="eval_not_installed", cause=done.stderr[-2000:]
        )
        raise explain(failure, done.stderr.splitlines(), "lm-eval") from None


def evaluate(
    interpreter: Path,
    served: Served,
    tasks: Sequence[str],
    *,
    folders: Sequence[str],
    here: Path,
    out: Path,
    concurrency: int,
    generation: dict[str, Any],
    limit: int | None,
    fewshot: int | None,
) -> None:
    """Ask the served model the tasks over its chat API, at temperature 0; samples and results are
    left in the folder `out`. `folders` have the files of the tasks, in lm-eval's own unless they
    are absolute; paths of a task count from `here`. Raises StepFailure."""
    model = {
        "base_url": f"{served.endpoint}/chat/completions",
        "model": served.model,
        "num_concurrent": concurrency,
        "max_retries": RETRIES,
        "timeout": REQUEST_SECONDS,
    }
    asked = {
        "model": model,
        "tasks": list(tasks),
        "folders": list(folders),
        "out": str(out),
        "generation": generation,
        "limit": limit,
        "fewshot": fewshot,
    }
    driver = Path(__file__).parent / "tasks" / "driver.py"
    out.mkdir(parents=True, exist_ok=True)
    log = out / "lm-eval.log"
    with log.open("w") as said:
        done = subprocess.run(
            [str(interpreter), "-I", str(driver), json.dumps(asked)],
            cwd=here,
            env=_environment(served),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise _failed(log, done.returncode)


def _environment(served: Served) -> dict[str, str]:
    """The server is on this machine, past any proxy; the key is in no argument."""
    env = dict(os.environ)
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, (env.get(name), "127.0.0.1,localhost,::1")))
    env["OPENAI_API_KEY"] = served.key or "none"
    env["TOKENIZERS_PARALLELISM"] = "false"
    return env


def _failed(log: Path, code: int) -> StepFailure:
    with log.open(errors="replace") as said:
        tail = [line.strip() for line in deque(said, TAIL) if line.strip()]
    text = "\n".join(tail)
    offline = "ConnectionError" in text or "LocalEntryNotFound" in text or "Couldn't reach" in text
    remedy = (
        "let it reach the hub of the data set (HF_ENDPOINT, HTTPS_PROXY), or name your own task"
        if offline
        else "read the log of lm-eval"
    )
    return StepFailure(
        f"lm-eval ended with {code}",
        code="data_set_unreachable" if offline else "eval_failed",
        cause=text[-2000:],
        remedy=remedy,
        retryable=offline,
        where=str(log),
        log=str(log),
    )
