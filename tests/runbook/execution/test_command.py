"""The command step, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from runbook.document.compile import compile_book
from runbook.execution.command import Command
from runbook.execution.command_models import Inputs
from runbook.planning.context import StepContext, console
from runbook.protocol import Check, StepFailure
from runbook.remedy import Remedy

COMMAND = Command()
PROGRAMS = yaml.safe_load(Path(__file__).with_name("programs.yaml").read_text())


def context(workspace: Path, step: str = "one", **inputs: Any) -> StepContext:
    values = Inputs.model_validate(inputs, strict=True).model_dump(mode="json")
    return console(step, workspace, values)


def code(check: Check) -> str:
    return "" if check.ok else check.reasons[0].code


def done(ctx: StepContext) -> Check:
    """Not done; made so; done."""
    assert not COMMAND.check(ctx).ok
    COMMAND.apply(ctx)
    check = COMMAND.check(ctx)
    assert check.ok, check.reasons
    return check


def test_creates(tmp_path: Path) -> None:
    ctx = context(tmp_path, run=["touch", "a", "b"], creates=["a", "b"])
    assert code(COMMAND.check(ctx)) == "not_created"
    done(ctx)
    (tmp_path / "b").unlink()
    assert COMMAND.check(ctx).reasons[0].message == "b is not there"
    done(ctx)


def test_a_dangling_link_is_there(tmp_path: Path) -> None:
    done(context(tmp_path, run="ln -s nowhere link", creates="link"))


def test_shell_text_stops_at_the_first_failure(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="touch first\nfalse\ntouch second", creates="second")
    with pytest.raises(StepFailure) as caught:
        COMMAND.apply(ctx)
    assert caught.value.code == "command_failed"
    assert caught.value.remedy == Remedy("logs", ("{step}", "--errors"))
    assert (tmp_path / "first").exists() and not (tmp_path / "second").exists()


@pytest.mark.parametrize("case", PROGRAMS, ids=lambda case: case["case"])
def test_the_cause_is_the_first_error_of_the_program(tmp_path: Path, case: dict[str, Any]) -> None:
    (tmp_path / "words").write_text(case["prints"] + "then\n" * case.get("then", 0))
    ctx = context(tmp_path, run="cat words; exit 3", creates="never")
    ctx.uses = "command"
    with pytest.raises(StepFailure) as caught:
        COMMAND.apply(ctx)
    failure = caught.value
    assert (failure.code, failure.message) == (case["code"], "sh failed with exit status 3")
    assert failure.cause.startswith(case["cause"])
    assert failure.retryable
    assert failure.remedy


def test_check(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="echo 1 > value", check=["grep", "-q", "1", "value"])
    assert code(COMMAND.check(ctx)) == "check_failed"
    done(ctx)
    (tmp_path / "value").write_text("2\n")
    assert code(COMMAND.check(ctx)) == "check_failed"


def test_check_and_creates_must_both_hold(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="touch a; echo 1 > b", creates="a", check="grep -q 1 b")
    done(ctx)
    (tmp_path / "b").unlink()
    assert code(COMMAND.check(ctx)) == "check_failed"
    (tmp_path / "a").unlink()
    assert code(COMMAND.check(ctx)) == "not_created"


def test_check_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    COMMAND.check(context(tmp_path, run="true", check="echo out; echo err >&2; cat; exit 1"))
    assert capfd.readouterr() == ("", "")


def test_check_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="true", check="sleep 77 & echo $! > pid; wait", check_timeout="1s")
    began = time.monotonic()
    assert code(COMMAND.check(ctx)) == "check_timeout"
    assert time.monotonic() - began < 10
    pid = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.01)
    assert not alive(pid)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_check_that_cannot_be_started(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="true", check=["./not-there"])
    assert code(COMMAND.check(ctx)) == "check_not_started"
    ctx = context(tmp_path, run="true", cwd="not-there", check="true")
    assert code(COMMAND.check(ctx)) == "check_not_started"


def test_record(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="echo x >> log")
    assert code(COMMAND.check(ctx)) == "not_recorded"
    done(ctx)
    assert (tmp_path / "log").read_text() == "x\n"
    changed = context(tmp_path, run="echo y >> log")
    assert code(COMMAND.check(changed)) == "inputs_changed"
    done(changed)
    assert code(COMMAND.check(context(tmp_path, step="two", run="echo y >> log"))) == "not_recorded"


def test_a_failed_command_is_not_done(tmp_path: Path) -> None:
    ctx = context(tmp_path, run="touch half; exit 3", creates="half")
    with pytest.raises(StepFailure, match="exit status 3"):
        COMMAND.apply(ctx)
    assert code(COMMAND.check(ctx)) == "unfinished"
    good = context(tmp_path, run="touch half", creates="half")
    done(good)


def test_a_killed_command_is_not_done(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from tests.runbook.execution.test_command import COMMAND, context;"
        "COMMAND.apply(context(Path(sys.argv[2]), run='touch half; sleep 60', creates='half'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parents[3]), str(tmp_path)],
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "half").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ctx = context(tmp_path, run="touch half whole", creates="half")
    assert code(COMMAND.check(ctx)) == "unfinished"
    done(ctx)
    assert (tmp_path / "whole").exists()


def test_environment_and_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    ctx = context(
        tmp_path,
        run='echo "$A $B $C $PWD" > out',
        cwd="sub",
        env={"A": "x y", "B": 3, "C": True},
        creates="sub/out",
        outputs={"line": {"file": "sub/out"}},
    )
    assert done(ctx).outputs == {"line": f"x y 3 true {tmp_path}/sub"}


def test_numbers_as_arguments(tmp_path: Path) -> None:
    ctx = context(
        tmp_path,
        run=["sh", "-c", "echo $0 $1 $2 > out", 1, 2.5, True],
        outputs={"line": {"file": "out"}},
    )
    assert done(ctx).outputs == {"line": "1 2.5 true"}


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StepFailure) as caught:
        COMMAND.apply(context(tmp_path, run="true", cwd="not-there"))
    assert (caught.value.code, str(tmp_path / "not-there") in caught.value.message) == (
        "no_folder",
        True,
    )


def test_the_workspace_is_made(tmp_path: Path) -> None:
    done(context(tmp_path / "new" / "workspace", run="touch a", creates="a"))


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StepFailure) as caught:
        COMMAND.apply(context(tmp_path, run=["not-a-program"]))
    assert caught.value.code == "command_not_started"


def test_outputs(tmp_path: Path) -> None:
    ctx = context(
        tmp_path,
        run="printf 'one\\ntwo\\n' > text; echo '{\"a\": [1]}' > data.json",
        outputs={
            "text": {"file": "text"},
            "data": {"file": "data.json"},
            "number": 3,
            "list": [1, "a"],
            "nothing": None,
        },
    )
    assert done(ctx).outputs == {
        "text": "one\ntwo",
        "data": {"a": [1]},
        "number": 3,
        "list": [1, "a"],
        "nothing": None,
    }
    (tmp_path / "data.json").write_text("{")
    check = COMMAND.check(ctx)
    assert code(check) == "no_output" and "data.json" in check.reasons[0].message
    (tmp_path / "text").write_bytes(b"\xff")
    assert "text" in COMMAND.check(ctx).reasons[0].message
    (tmp_path / "text").unlink()
    assert "No such file" in COMMAND.check(ctx).reasons[0].message
    with open(tmp_path / "text", "wb") as file:
        file.truncate(1 << 21)
    assert "larger" in COMMAND.check(ctx).reasons[0].message


def test_undo(tmp_path: Path) -> None:
    ctx = context(
        tmp_path,
        run="mkdir -p out/deep; touch out/deep/a; ln -s /etc link; echo made >> log",
        creates=["out", "link"],
        undo="echo undone >> log",
    )
    done(ctx)
    COMMAND.undo(ctx)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".runbook", "log"]
    assert Path("/etc").is_dir()
    assert not list((tmp_path / ".runbook/stamps").iterdir())
    COMMAND.undo(ctx)
    assert (tmp_path / "log").read_text() == "made\nundone\n"
    done(ctx)


def test_undo_of_a_record_and_of_a_check(tmp_path: Path) -> None:
    recorded = context(tmp_path, run="touch a", undo=["rm", "a"])
    done(recorded)
    COMMAND.undo(recorded)
    assert not (tmp_path / "a").exists() and not COMMAND.check(recorded).ok
    COMMAND.undo(recorded)

    checked = context(tmp_path, run="touch b", check="test -e b", undo="rm b")
    done(checked)
    COMMAND.undo(checked)
    assert not COMMAND.check(checked).ok
    COMMAND.undo(checked)


@pytest.mark.parametrize(
    "name", ["{outside}", "../outside", "sub/../../outside", "link/inner", "."]
)
def test_undo_removes_nothing_outside_the_workspace(tmp_path: Path, name: str) -> None:
    workspace, outside = tmp_path / "workspace", tmp_path / "outside"
    (workspace / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "inner").touch()
    (workspace / "link").symlink_to(outside)
    COMMAND.undo(context(workspace, run="true", creates=name.format(outside=outside)))
    assert (outside / "inner").exists() and (workspace / "sub").exists()


def test_a_quick_check_is_quick_and_imports_little(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from runbook.execution.command import Command\n"
        "inputs = SimpleNamespace(run='touch a', cwd='.', env={}, creates='a', check=None,"
        " check_timeout='10s', outputs={'x': 1}, undo=None)\n"
        "ctx = SimpleNamespace(step='one', inputs=inputs, workspace=Path(sys.argv[1]))\n"
        "assert Command().check(ctx).ok\n"
        "heavy = {'subprocess', 'pydantic', 'yaml', 'jinja2', 'shutil'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


WRONG = [
    {},
    {"run": ""},
    {"run": []},
    {"run": [None]},
    {"run": "x", "creates": []},
    {"run": "x", "check": []},
    {"run": "x", "check_timeout": "10"},
    {"run": "x", "env": {"A": []}},
    {"run": "x", "outputs": {"a": {"path": "x"}}},
    {"run": "x", "shell": True},
]


@pytest.mark.parametrize("inputs", WRONG, ids=json.dumps)
def test_inputs_that_are_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Inputs.model_validate(inputs, strict=True)


def test_in_a_document(tmp_path: Path) -> None:
    book = tmp_path / "runbook.yaml"
    book.write_text(
        "runbook: 1\nname: demo\ninputs:\n  text: {type: string, default: hello}\nsteps:\n"
        "  - id: one\n    uses: command\n"
        "    with:\n      run: echo {{ inputs.text }} > a\n      creates: a\n"
        "      outputs: {said: {file: a}}\n"
    )
    step = compile_book(str(book), ["text=bye"], None, {})["steps"][0]
    ctx = console("one", tmp_path / "w", step["with"])
    assert done(ctx).outputs == {"said": "bye"}
