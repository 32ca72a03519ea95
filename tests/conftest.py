"""The real program, run as a user runs it, in a home of its own."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import settings

from runbook.cli import brief
from runbook.cli.form import AGENTS
from runbook.cli.verbs import verbs
from runbook.steps.common.ports import in_use
from tests.warm import Warm

# A shell that starts the tests in the background has SIGINT ignored, which servers would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine may be busy otherwise: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

WARM = Warm()

# The tests expect what people see, whoever runs them.
for name in AGENTS:
    os.environ.pop(name, None)

SCHEMAS = Path(__file__).parents[1] / "runbook" / "schemas"


def strict(schema):
    """A schema that refuses fields which it does not name."""
    if isinstance(schema, dict):
        schema = {key: strict(value) for key, value in schema.items()}
        if "properties" in schema:
            schema["additionalProperties"] = False
        return schema
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


@functools.cache
def validator(kind: str, shortened: bool = False):
    """Made once: to check a schema takes far longer than to check an answer."""
    import jsonschema

    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    schema = strict(brief.relaxed(schema) if shortened else schema)
    made = jsonschema.validators.validator_for(schema)
    made.check_schema(schema)
    return made(schema)


def validate(kind: str, answer) -> None:
    validator(kind).validate(answer)


def validate_brief(kind: str, answer) -> None:
    """The brief form of an answer: of its schema with nothing required, shorter, nothing empty."""
    told = brief.brief(answer)
    validator(kind, shortened=True).validate(told)
    assert len(brief.text(answer)) < len(json.dumps(answer))
    found = [told]
    while found:
        value = found.pop()
        assert value is not None and value not in ("", [], {}), told
        found += value.values() if isinstance(value, dict) else ()
        found += value if isinstance(value, list) else ()


def commands(answer) -> list[str]:
    """Every command of runbook that an answer proposes: in `next`, and in remedies."""
    found = list(answer.get("next", ()))

    def search(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                search(item, name)
        elif isinstance(value, list):
            for item in value:
                search(item, key)
        elif key == "remedy" and isinstance(value, str):
            found.extend([value] if value.startswith("runbook ") else [])
            found.extend(re.findall("`(runbook [^`]+)`", value))

    search(answer)
    return list(dict.fromkeys(found))


def parse(command: str) -> str:
    """The book that a command line names; fails unless the program takes it as it stands."""
    from runbook.cli.main import cli as program

    name, *arguments = shlex.split(command)
    assert name == "runbook", command
    outer = click.Context(program, info_name="runbook")
    _, verb, rest = program.resolve_command(outer, arguments)
    try:
        given = verb.make_context(verb.name, rest, parent=outer).params
        return given.get("book") or next(iter(given.get("given") or ()), "")
    except click.exceptions.Exit:
        assert "--help" in arguments
        return "none is needed"
    except click.ClickException as problem:
        raise AssertionError(f"{command}: {problem.format_message()}") from problem


class Cli:
    """`runbook` as a process, with one book and one workspace."""

    def __init__(self, home: Path, book: Path | str | None = None) -> None:
        self.home = home
        self.book = book
        self.workspace = home / "workspace"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "XDG_"))},
            "HOME": str(home),
            "RUNBOOK_WORKSPACE": str(self.workspace),
        }

    def argv(self, verb: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "runbook", *self.arguments(verb, *arguments)]

    def arguments(self, verb: str, *arguments: str) -> list[str]:
        known = verbs().get(verb)
        takes_book = known is None or known.book
        book = [str(self.book)] if self.book is not None and takes_book else []
        return [verb, *book, *arguments]

    def run(
        self,
        verb: str,
        *arguments: str,
        code: int | None = 0,
        timeout: float = 120,
        **environment: str,
    ):
        """The finished process; `code` is what its exit code must be (None: any)."""
        process = WARM.run(
            self.arguments(verb, *arguments),
            {**self.environment, **environment},
            self.home,
            timeout,
        )
        if code is not None:
            assert process.returncode == code, (process.stdout, process.stderr)
        assert "Traceback" not in process.stdout + process.stderr, process.stderr
        return process

    def json(self, verb: str, *arguments: str, code: int | None = 0, **environment: str):
        """The last document that the verb printed, checked against its committed schema."""
        process = self.run(verb, *arguments, "--json", code=code, **environment)
        lines = process.stdout.splitlines()
        for line in lines[:-1]:
            validate("event", json.loads(line))
        assert len(lines) == 1 or verb == "run", "one document"
        answer = json.loads(lines[-1])
        validate(verb, answer)
        validate_brief(verb, answer)
        assert answer["ok"] == (process.returncode in (0, 4))
        for command in commands(answer):
            takes_book = verbs()[shlex.split(command)[1]].book
            named = parse(command)
            assert named or self.book is None or not takes_book, f"{command} names no book"
        return answer

    def start(self, verb: str, *arguments: str) -> subprocess.Popen:
        """The running process."""
        return subprocess.Popen(
            self.argv(verb, *arguments),
            env=self.environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def events(self, kind: str = "", run: str = "latest") -> list[dict]:
        """The events of a run, or of all runs (`*`), oldest first."""
        state = self.workspace / ".runbook"
        folders = sorted((state / "runs").iterdir()) if run == "*" else [state / run]
        found = []
        for folder in folders:
            for line in (folder / "journal.ndjson").read_text().splitlines():
                event = json.loads(line)
                if event["type"].startswith(kind):
                    found.append(event)
        return found

    def wait_for(self, kind: str, step: str, timeout: float = 30) -> dict:
        """The first such event of the latest run."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                for event in self.events(kind):
                    if event.get("step") == step:
                        return event
            except (FileNotFoundError, ValueError):
                pass
            time.sleep(0.01)
        raise AssertionError(f"no {kind} of {step} within {timeout} s")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def ports() -> Iterator[int]:
    """Those of this worker, again and again: below the ones that the system gives to whoever asks
    for any, and none of another worker's. So nobody takes one before a test's server does."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + worker % 10 * 2_000
    return itertools.cycle(range(first, first + 2_000, 4))


PORTS = ports()


def free_port() -> int:
    """One that nobody listens on, and that is not given again for long."""
    return next(port for port in PORTS if not in_use("127.0.0.1", port))


@pytest.fixture
def cli(tmp_path):
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory) -> str:
    """The `vllm` program of a patched build for CPUs: that of the rehearsal, made once, unless
    RUNBOOK_E2E_VLLM names one. Its environment has torch."""
    if given := os.environ.get("RUNBOOK_E2E_VLLM"):
        return given
    cli = Cli(tmp_path_factory.mktemp("vllm"), "rehearsal")
    cli.environment["HOME"] = os.environ["HOME"]  # for the caches
    if cache := os.environ.get("RUNBOOK_CACHE"):
        cli.environment["RUNBOOK_CACHE"] = cache
    cli.environment["RUNBOOK_PORT"] = str(free_port())  # the user's own rehearsal may be serving
    cli.run("run", "--until", "build", timeout=1800)
    checkpoint = cli.workspace / ".runbook" / "checkpoints" / "build.json"
    return json.loads(checkpoint.read_text())["outputs"]["vllm"]


@pytest.fixture(scope="session")
def torch_python(vllm) -> str:
    """An interpreter that has torch, safetensors and compressed-tensors."""
    return str(Path(vllm).with_name("python"))
