"""The kind of step that every book has: run a command, unless what it makes is there.

What it leaves in the workspace, under `.runbook/stamps`: `<step>.began` from before the command
starts until it has succeeded, so that what a killed command left half made is not taken for done;
`<step>.json` for a step that has neither `creates` nor `check`, with the digest of its inputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.files import lies_inside, write_json
from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure

STAMPS = ".runbook/stamps"
LARGEST_OUTPUT = 1 << 20


class Command:
    version = "1"
    Inputs = Model("runbook.execution.command_models:Inputs")
    Outputs = Model("runbook.execution.command_models:Outputs")

    def output_names(self, given: Mapping[str, Any]) -> frozenset[str]:
        """The outputs that a step with these inputs has."""
        outputs = given.get("outputs")
        return frozenset(outputs) if isinstance(outputs, dict) else frozenset()

    def creates(self, inputs: SimpleNamespace) -> Sequence[str]:
        return _created(inputs)

    def check_limit(self, inputs: SimpleNamespace) -> float | None:
        """`check:` has a limit of its own."""
        if inputs.check is None:
            return None
        from runbook.document.durations import seconds

        return seconds(inputs.check_timeout) + 10

    def check(self, ctx: Context) -> Check:
        if os.access(_stamp(ctx, "began"), os.F_OK):  # mostly not there: raises nothing
            return Check.unsatisfied(
                Reason("unfinished", "the command was started and did not succeed")
            )
        root = str(ctx.workspace)
        for name in _created(ctx.inputs):
            if not os.path.lexists(name if name.startswith("/") else f"{root}/{name}"):
                return Check.unsatisfied(Reason("not_created", f"{name} is not there"))
        if ctx.inputs.check is not None:
            if reason := _probe(ctx):
                return Check.unsatisfied(reason)
        elif ctx.inputs.creates is None and (reason := _recorded(ctx)):
            return Check.unsatisfied(reason)
        return _with_outputs(ctx)

    def apply(self, ctx: Context) -> None:
        folder = _folder(ctx)
        stamps = ctx.workspace / STAMPS
        stamps.mkdir(parents=True, exist_ok=True)
        write_json(Path(_stamp(ctx, "began")), {"digest": _digest(ctx)})
        try:
            ctx.run(_argv(ctx.inputs.run), env=_environment(ctx), cwd=folder)
        except StepFailure as failure:
            # Whether trying again can help, only who wrote `retry:` knows.
            failure.retryable = failure.code != "command_not_started"
            raise
        if ctx.inputs.creates is None and ctx.inputs.check is None:
            write_json(Path(_stamp(ctx, "json")), {"digest": _digest(ctx)})
        os.unlink(_stamp(ctx, "began"))

    def undo(self, ctx: Context) -> None:
        if ctx.inputs.undo is not None and _was_made(ctx):
            ctx.run(_argv(ctx.inputs.undo), env=_environment(ctx), cwd=_folder(ctx))
        for name in _created(ctx.inputs):
            _remove(ctx, name)
        for kind in ("began", "json"):
            Path(_stamp(ctx, kind)).unlink(missing_ok=True)


def _stamp(ctx: Context, kind: str) -> str:
    return f"{ctx.workspace}/{STAMPS}/{ctx.step}.{kind}"


def _created(inputs: SimpleNamespace) -> Sequence[str]:
    creates = inputs.creates
    if creates is None:
        return ()
    return [creates] if isinstance(creates, str) else creates


def _argv(command: str | Sequence[Json]) -> list[str]:
    if isinstance(command, str):
        return ["/bin/sh", "-ec", command]
    from runbook.document.words import as_text

    return [as_text(argument) for argument in command]


def _environment(ctx: Context) -> dict[str, str]:
    from runbook.document.words import as_text

    return {name: as_text(value) for name, value in ctx.inputs.env.items()}


def _folder(ctx: Context) -> Path:
    folder = Path(ctx.workspace, ctx.inputs.cwd)
    if ctx.inputs.cwd == ".":
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise StepFailure(
            f"the folder to run in is not there: {folder}",
            code="no_folder",
            cause="`cwd` counts from the workspace and must exist",
            remedy="correct `cwd`, or make the folder in an earlier step",
        )
    return folder


def _digest(ctx: Context) -> str:
    """Of the inputs. Secrets are not among them: commands get those from the environment."""
    import hashlib
    import json

    text = json.dumps(vars(ctx.inputs), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _recorded(ctx: Context) -> Reason | None:
    """Why the record does not say that this very command has succeeded; None if it does."""
    try:
        with open(_stamp(ctx, "json"), "rb") as file:
            record = file.read()
    except FileNotFoundError:
        return Reason("not_recorded", "no success of the command is recorded")
    if _digest(ctx).encode() not in record:
        return Reason("inputs_changed", "the command has changed since it succeeded")
    return None


def _was_made(ctx: Context) -> bool:
    """Whether there is anything to undo."""
    return (
        any(os.path.lexists(_stamp(ctx, kind)) for kind in ("began", "json"))
        or any(os.path.lexists(ctx.workspace / name) for name in _created(ctx.inputs))
        or (ctx.inputs.check is not None and _probe(ctx) is None)
    )


def _probe(ctx: Context) -> Reason | None:
    """Why `check:` does not hold; None if it does."""
    import signal
    import subprocess

    from runbook.document.durations import seconds

    folder = ctx.workspace / ctx.inputs.cwd
    limit = ctx.inputs.check_timeout
    try:
        process = subprocess.Popen(
            _argv(ctx.inputs.check),
            cwd=folder,
            env={**os.environ, **_environment(ctx)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return Reason("check_not_started", f"`check` cannot be started: {error.strerror}")
    try:
        status = process.wait(seconds(limit))
    except subprocess.TimeoutExpired:
        return Reason("check_timeout", f"`check` took longer than {limit}")
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return None if status == 0 else Reason("check_failed", f"`check` exits with {status}")


def _with_outputs(ctx: Context) -> Check:
    outputs: dict[str, Json] = {}
    for name, value in ctx.inputs.outputs.items():
        if not (isinstance(value, dict) and value.keys() == {"file"}):
            outputs[name] = value
            continue
        try:
            outputs[name] = _read(ctx.workspace / value["file"])
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            message = f"the output {name} cannot be read from {value['file']}: {cause}"
            return Check.unsatisfied(Reason("no_output", message))
    return Check.satisfied(outputs)


def _read(path: Path) -> Json:
    if path.stat().st_size > LARGEST_OUTPUT:
        raise ValueError(f"larger than {LARGEST_OUTPUT} bytes")
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        import json

        value: Json = json.loads(text)
        return value
    return text.removesuffix("\n")


def _remove(ctx: Context, name: str) -> None:
    """Remove what the command made, links not followed, and nothing outside the workspace."""
    import shutil

    workspace = os.path.realpath(ctx.workspace)
    path = os.path.normpath(os.path.join(workspace, name))
    if not lies_inside(workspace, path):
        ctx.log(f"{name} is outside the workspace and stays; `undo:` can remove it")
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
