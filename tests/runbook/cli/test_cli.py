"""The verbs: documents that match their schemas, exit codes, streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runbook import errors
from runbook.cli import schemas
from tests.conftest import SCHEMAS
from tests.runbook.helpers import write_book


@pytest.fixture
def two(cli):
    cli.book = write_book(cli.home, {"id": "one"}, {"id": "two", "with": {"seconds": 0.3}})
    return cli


def test_exit_codes_are_pinned_and_in_the_help(cli):
    assert sorted(errors.EXIT_CODES) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 70, 130, 143]
    cli.book = None
    text = subprocess.run(
        [sys.executable, "-m", "runbook", "--help"], capture_output=True, text=True
    ).stdout
    for code, meaning in errors.EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in text


def test_committed_schemas_are_current():
    for name, text in schemas.schemas().items():
        assert (SCHEMAS / f"{name}.schema.json").read_text() == text, "run `make schema`"


def test_every_verb_answers_in_json(two):
    assert two.json("validate")["book"] == "test"
    assert two.json("status")["run"] is None
    assert two.json("wait", code=3)["error"]["code"] == "never_ran"
    assert two.json("events")["events"] == []
    assert two.json("cancel")["cancelled"] is False
    assert two.json("destroy")["steps"] == []
    assert two.json("plan")["would_run"] is True
    assert two.json("plan", "--exit-code", code=4)["next"]
    run = two.json("run")
    assert run["next"] == [f"runbook status {two.book}"]
    status = two.json("status")
    assert {step["state"] for step in status["steps"]} == {"satisfied"}
    events = two.json("events", "--since", "2")
    assert events["events"][0]["seq"] == 3
    assert events["seq"] == events["events"][-1]["seq"]
    assert two.json("wait", "--since", "0")["events"][0]["type"] == "run.started"
    assert two.json("logs", "two", "--tail", "1")["step"] == "two"
    assert {book["name"] for book in two.json("list")["books"]} >= {"rehearsal"}


@pytest.mark.parametrize("verb", ["validate", "plan", "run", "status", "wait", "events", "cancel"])
def test_every_verb_refuses_a_bad_document_in_json(cli, verb):
    cli.book = cli.home / "bad.yaml"
    cli.book.write_text("runbook: 1\nname: x\nstepz: []\n")
    answer = cli.json(verb, code=2)
    assert answer["error"]["code"] == "document_invalid"
    assert 3 in [problem["line"] for problem in answer["errors"]]
    assert answer["error"]["where"].startswith(f"{cli.book}:")
    assert f"`runbook validate {cli.book}`" in answer["error"]["remedy"]
    assert "\n  remedy: correct" in cli.run(verb, code=2).stderr


@pytest.mark.parametrize("verb", ["logs", "destroy"])
def test_verbs_on_steps_refuse_unknown_ones(two, verb):
    answer = two.json(verb, "tow", code=2)
    assert answer["error"]["message"] == "there is no step `tow`; did you mean `two`?"


def test_logs_of_a_step_that_never_ran(two):
    assert two.json("logs", "two", code=2)["error"]["code"] == "no_log"


def test_the_errors_in_a_log_are_told_with_what_is_known_of_them(cli):
    """A failure that no word of the log gives away is found by the catalogue of the steps."""
    run = cli.workspace / ".runbook" / "runs" / "20260101T000000Z-0000"
    run.mkdir(parents=True)
    known = "There is No available memory for the cache blocks."
    lines = [*(f"quiet {n}" for n in range(9)), known, *(f"quiet {n}" for n in range(9))]
    (run / "serve.1.log").write_text("\n".join(lines))
    cli.book = "rehearsal"
    answer = cli.json("logs", "serve", "--errors")
    assert answer["lines"] == lines[6:-6]
    assert answer["diagnosis"]["code"] == "kv_cache_too_small"
    assert "remedy: lower max_model_len" in cli.run("logs", "serve", "--errors").stdout
    (run / "smoke.1.log").write_text("\n".join(lines))
    answer = cli.json("logs", "smoke", "--errors")
    assert answer["diagnosis"] is None, "it is known of `serve` only"
    assert answer["lines"] == lines[-10:], "no error can be told: its last lines"


def test_usage_errors_are_documents_too(two):
    answer = two.json("run", "--jobs", "0", code=2)
    assert answer["error"]["code"] == "usage"


def test_human_output_is_plain_and_on_stdout(two):
    process = two.run("run")
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["one", "running"],
        ["one", "satisfied"],
        ["two", "running"],
        ["two", "satisfied"],
    ]
    assert "\033" not in process.stdout
    assert "up to date" in two.run("run").stdout
    assert "satisfied" in two.run("status").stdout


def test_warnings_are_told_and_change_no_exit_code(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "warns"}})
    assert "the ice is thin" in cli.run("run").stdout
    again = cli.json("run")
    assert again["steps"][0]["reasons"][-1]["severity"] == "warning"
    assert "the ice is thin" in cli.run("run").stdout


@pytest.mark.parametrize(
    ("count", "left_out"),
    [(1, 0), (2, 0), *(pytest.param(*c, marks=pytest.mark.harness) for c in ((10, 0), (12, 2)))],
)
def test_each_step_that_failed_is_told_once(cli, count, left_out):
    names = [f"s{n}" for n in range(count)]
    mood = {"mood": "fails and says what to do"}
    cli.book = write_book(cli.home, *({"id": n, "needs": [], "with": mood} for n in names))
    for verb in ("run", "wait"):
        process = cli.run(verb, code=1)
        said = process.stdout + process.stderr
        told = [name for name in names if f"error: step {name}: it failed" in process.stderr]
        assert len(told) == said.count("error: ") == count - left_out, said
        assert all(said.count(f"--force {name}`") == 1 for name in told), said
        assert (f"and {left_out} other steps failed" in said) == (left_out > 0)


def test_errors_are_on_stderr_with_cause_and_remedy(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "fails"}})
    process = cli.run("run", code=1)
    assert "error: step one: it failed" in process.stderr
    assert "cause:  a bad mood" in process.stderr
    assert "remedy: cheer it up" in process.stderr
    assert f"next:   runbook logs {cli.book} one --errors" in process.stderr


def test_detach_returns_at_once_and_wait_gives_the_outcome(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "waits"}})
    answer = cli.json("run", "--detach")
    assert answer["detached"], "it does not wait for the step"
    assert answer["run"] in cli.json("status")["run"]["id"]
    assert cli.json("wait", "--timeout", "0.05", code=7)["run"]["state"] == "running"
    (cli.workspace / "go").touch()
    waited = cli.json("wait", "--timeout", "60", "--since", "0")
    assert waited["run"]["exit_code"] == 0
    assert waited["events"][-1]["type"] == "run.finished"
    again = cli.json("run", "--detach")["run"]
    assert cli.json("wait")["run"]["id"] == again, "a run that finds all done is waited for too"


def test_detach_hands_on_a_refusal(cli):
    cli.book = write_book(cli.home, {"id": "one"}, {"id": "two"})
    answer = cli.json("run", "--detach", "--only", "two", code=None)
    while answer.get("detached"):
        answer = cli.json("wait", code=3)
    assert answer["error"]["code"] == "needs_unmet"


def test_destroy_plans_first_and_undoes_in_reverse(two):
    two.json("run")
    planned = two.json("destroy", code=5)
    assert [step["id"] for step in planned["steps"]] == ["two", "one"]
    assert (two.workspace / "two").exists()
    done = two.json("destroy", "--yes")
    assert [step["state"] for step in done["steps"]] == ["undone", "undone"]
    assert not (two.workspace / "one").exists()
    assert [e["step"] for e in two.events("undo.finished")] == ["two", "one"]
    assert two.json("destroy")["steps"] == []
    assert two.json("plan")["steps"][0]["reasons"][0]["code"] == "never_ran"


def test_destroy_one_step(two):
    two.json("run")
    two.json("destroy", "two", "--yes")
    assert (two.workspace / "one").exists()
    assert not (two.workspace / "two").exists()


def test_destroy_stops_at_a_failure(cli):
    cli.book = write_book(
        cli.home, {"id": "one"}, {"id": "two", "with": {"mood": "cannot be undone"}}
    )
    cli.json("run")
    answer = cli.json("destroy", "--yes", code=1)
    assert [step["state"] for step in answer["steps"]] == ["failed", "skipped"]
    assert answer["error"]["remedy"] == "remove it by hand"
    assert (cli.workspace / "one").exists()


def test_a_workspace_that_cannot_be_made(two):
    (two.home / "workspace").write_text("in the way")
    answer = two.json("run", code=3)
    assert answer["error"]["code"] == "workspace_not_writable"


def test_an_internal_error_leaves_a_crash_file_and_exits_70(two, tmp_path):
    breaking = tmp_path / "breaking.py"
    breaking.write_text(
        "import runbook.state.status, sys\n"
        "runbook.state.status.status = None\n"
        "from runbook.cli.main import invoke\n"
        "sys.exit(invoke(sys.argv[1:]))\n"
    )
    process = subprocess.run(
        [sys.executable, str(breaking), "status", str(two.book), "--json"],
        env={**two.environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 70
    error = json.loads(process.stdout)["error"]
    assert error["code"] == "internal"
    assert "Traceback" in Path(error["log"]).read_text()
    assert process.stderr == ""


def test_events_follow_until_the_end(two):
    run = two.start("run", "--json")
    two.wait_for("attempt.started", "one")
    process = two.run("events", "--follow", "--json")
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert found[-1]["type"] == "run.finished"
    run.communicate()


def test_a_closed_pipe_is_no_error(two):
    two.json("run")
    command = " ".join(two.argv("events"))
    process = subprocess.run(
        ["sh", "-c", f"{command} | head -n 1"], env=two.environment, capture_output=True, text=True
    )
    assert process.stderr == ""


def test_a_reader_that_leaves_does_not_end_the_run(two):
    command = " ".join(two.argv("run"))
    process = subprocess.run(
        ["sh", "-c", f"{command} | head -n 1"], env=two.environment, capture_output=True, text=True
    )
    assert process.stderr == ""
    assert two.json("wait")["run"]["exit_code"] == 0
    assert (two.workspace / "two").exists()


def test_completion_scripts(cli):
    for shell in ("bash", "zsh", "fish"):
        assert "_RUNBOOK_COMPLETE" in cli.run("completion", shell).stdout


HEAVY = ("pydantic", "jinja2", "rich", "requests", "huggingface_hub", "yaml", "httpx", "numpy")


@pytest.mark.parametrize("verb", ["status", "run"])
def test_nothing_heavy_is_imported_when_nothing_is_to_be_done(cli, verb):
    touch = {"uses": "command", "with": {"run": ["touch", "made"], "creates": "made"}}
    cli.book = write_book(cli.home, {"id": "one", **touch})
    cli.json("run")
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *cli.argv(verb)[1:]],
        env=cli.environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0
    imported = {
        line.split("|")[-1].strip().partition(".")[0] for line in process.stderr.splitlines()
    }
    assert imported.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["patches", "nosuch"], 2, "there is no patch series"),
        (["patches", "--lock", "nosuch"], 2, "with --lock"),
        (["events", "--since", "-1"], 2, "--since"),
        (["wait", "--since", "-1"], 2, "--since"),
        (["completion"], 2, "Missing argument 'SHELL'. Choose from: bash, zsh, fish\n"),
        (["plann"], 2, "Did you mean"),
        ([], 2, "Usage: runbook"),
    ],
)
def test_a_command_that_is_no_command_is_refused_in_one_clear_error(arguments, code, said):
    command = [sys.executable, "-m", "runbook", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr
    assert bool(arguments) == done.stderr.startswith("error: ")


def test_what_waits_for_a_yes_is_no_error(two):
    two.json("run")
    done = two.run("destroy", code=5)
    command = f"runbook destroy {two.book} --yes"
    assert done.stderr == f"would undo two, one; to do it: {command}\n"
