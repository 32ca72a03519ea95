"""Attempts and their ends: limits, retries, signals, side by side, verification."""

from __future__ import annotations

import base64
import json
import re
import shlex
import signal
import subprocess
import time

import pytest

from runbook.process import marked, session_members
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.harness


def book(cli, *steps, **document):
    cli.book = write_book(cli.home, *steps, **document)
    return cli


def step_of(answer, name="one"):
    return next(step for step in answer["steps"] if step["id"] == name)


def test_a_run_and_a_second_that_does_nothing(cli):
    book(cli, {"id": "one"}, {"id": "two"})
    first = cli.json("run")
    assert [s["decision"] for s in first["steps"]] == ["run", "run"]
    assert first["outputs"]["two"]["content"] == "done"
    second = cli.json("run")
    assert [s["decision"] for s in second["steps"]] == ["skip", "skip"]
    assert second["run"] is None, "a run that finds nothing to do leaves no trace"
    assert len(list((cli.workspace / ".runbook" / "runs").iterdir())) == 1
    assert cli.json("plan", "--exit-code")["would_run"] is False


def test_intent_comes_before_work_and_the_checkpoint_after_verification(cli):
    book(cli, {"id": "one"})
    cli.json("run")
    kinds = [event["type"] for event in cli.events()]
    assert kinds == [
        "run.started",
        "step.decided",
        "attempt.started",
        "attempt.succeeded",
        "run.finished",
    ]
    assert [event["seq"] for event in cli.events()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("mood", "code", "error"),
    [
        ("fails", 1, "step_failed"),
        ("crashes", 1, "step_crashed"),
        ("segfaults", 1, "worker_died"),
        ("does nothing", 1, "not_verified"),
        ("precondition", 3, "step_failed"),
    ],
)
def test_failures(cli, mood, code, error):
    book(cli, {"id": "one", "with": {"mood": mood}}, {"id": "two"})
    answer = cli.json("run", code=code)
    assert answer["error"]["code"] == error
    assert answer["error"]["step"] == "one"
    assert step_of(answer, "two")["state"] == "blocked"
    assert not (cli.workspace / ".runbook" / "checkpoints" / "one.json").exists()
    again = cli.json("plan")
    assert step_of(again)["reasons"][0]["code"] == "failed_before"


def test_a_native_crash_leaves_its_stack_in_the_log(cli):
    book(cli, {"id": "one", "with": {"mood": "segfaults"}})
    answer = cli.json("run", code=1)
    assert "signal 11" in answer["error"]["message"]
    assert "Segmentation fault" in "\n".join(cli.json("logs", "one")["lines"])


def test_a_check_that_crashes_ends_as_a_failure_with_its_traceback_in_a_file(cli):
    book(cli, {"id": "one", "with": {"mood": "check crashes"}})
    answer = cli.json("run", code=1)
    assert "ZeroDivisionError" in str(answer["steps"][0])
    assert list((cli.workspace / ".runbook").glob("crash-*.txt"))


@pytest.mark.parametrize("mood", ["hangs", "ignores SIGTERM", "chatters"])
def test_a_timeout_ends_an_attempt_and_all_it_started(cli, mood):
    book(cli, {"id": "one", "timeout": "1s", "with": {"mood": mood, "leave": True}})
    answer = cli.json("run", code=1)
    assert answer["error"]["code"] == "timeout"
    assert answer["error"]["retryable"]
    started = cli.events("attempt.started")[0]
    assert session_members(started["process"]["pid"]) == []
    assert marked("RUNBOOK_ATTEMPT", f"{answer['run']}/") == []


def test_a_stall_is_silence_and_no_progress(cli):
    book(
        cli,
        {"id": "one", "needs": [], "stall": "2.5s", "with": {"mood": "hangs"}},
        {"id": "two", "needs": [], "stall": "2.5s", "with": {"seconds": 4}},
    )
    answer = cli.json("run", code=1)
    assert step_of(answer)["error"]["code"] == "stalled"
    assert step_of(answer, "two")["state"] == "satisfied", "progress is a sign of life"


def test_a_notice_is_an_event_and_a_line_of_the_log(cli):
    book(cli, {"id": "one", "with": {"mood": "notices"}})
    cli.json("run")
    assert [e["message"] for e in cli.events("attempt.notice")] == ["the wind has turned"]
    assert "the wind has turned" in cli.json("logs", "one")["lines"]
    assert "the wind has turned" in cli.run("events").stdout


def test_retries_are_events_with_growing_delays(cli):
    retry = {"attempts": 3, "backoff": "0.1s"}
    book(cli, {"id": "one", "retry": retry, "with": {"mood": "fails for now"}})
    cli.json("run", code=1)
    failed = cli.events("attempt.failed")
    assert [event["retry_in"] for event in failed] == [0.1, 0.2, None]
    assert [event["state"] for event in cli.events("step.waiting")] == ["retrying"] * 2
    assert cli.json("logs", "one", "--attempt", "2")["attempt"] == 2


def test_a_retry_can_succeed(cli):
    retry = {"attempts": 2, "backoff": "0.1s"}
    book(cli, {"id": "one", "retry": retry, "with": {"mood": "fails once"}})
    assert cli.json("run")["ok"]


def test_a_precondition_is_not_retried(cli):
    retry = {"attempts": 3, "backoff": "0.1s"}
    book(cli, {"id": "one", "retry": retry, "with": {"mood": "precondition"}})
    cli.json("run", code=3)
    assert len(cli.events("attempt.started")) == 1


def test_independent_steps_run_side_by_side(cli):
    book(
        cli,
        {"id": "one", "needs": [], "with": {"seconds": 1.0}},
        {"id": "two", "needs": [], "with": {"seconds": 1.0}},
        {"id": "three", "needs": [], "with": {"seconds": 0.1}},
    )
    cli.json("run")
    order = [(e["type"], e["step"]) for e in cli.events("attempt.") if "progress" not in e["type"]]
    assert order[:2] == [("attempt.started", "one"), ("attempt.started", "two")]
    assert order[2][0] == "attempt.succeeded", "no more than --jobs at once"


def test_one_job_is_one_after_the_other(cli):
    book(cli, {"id": "one", "needs": []}, {"id": "two", "needs": []})
    cli.json("run", "--jobs", "1")
    kinds = [e["type"] for e in cli.events("attempt.") if "progress" not in e["type"]]
    assert kinds == ["attempt.started", "attempt.succeeded"] * 2


def test_a_failure_leaves_independent_steps_to_their_work(cli):
    book(
        cli,
        {"id": "one", "needs": [], "with": {"mood": "fails"}},
        {"id": "two", "needs": [], "with": {"seconds": 0.5}},
        {"id": "three", "needs": ["two"]},
        {"id": "four", "needs": ["one"]},
    )
    answer = cli.json("run", code=1)
    states = {step["id"]: step["state"] for step in answer["steps"]}
    assert states == {
        "one": "failed",
        "two": "satisfied",
        "three": "satisfied",
        "four": "blocked",
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_everything_and_the_next_run_continues(cli, number, code):
    book(cli, {"id": "one"}, {"id": "two", "with": {"seconds": 30}})
    process = cli.start("run", "--json")
    started = cli.wait_for("attempt.started", "two")
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert session_members(started["process"]["pid"]) == []
    assert cli.events("run.finished")[0]["exit_code"] == code
    answer = cli.json("status")
    assert step_of(answer, "two")["state"] == "cancelled"
    assert step_of(cli.json("plan"), "two")["reasons"][0]["code"] == "interrupted"


def test_cancel_stops_a_run_with_exit_8(cli):
    book(cli, {"id": "one", "with": {"mood": "ignores SIGTERM"}})
    process = cli.start("run", "--json")
    started = cli.wait_for("attempt.started", "one")
    time.sleep(0.5)
    answer = cli.json("cancel")
    assert answer["cancelled"]
    process.communicate(timeout=20)
    assert process.returncode == 8
    assert session_members(started["process"]["pid"]) == []
    ended = cli.json("wait", code=8)
    assert ended["error"]["code"] == "cancelled"
    for error in (ended["error"], step_of(ended, "one")["error"]):
        assert error["cause"] == "cancelled by the verb `cancel`"
    assert f"run {answer['run']}: cancelled\n" in cli.run("status").stdout
    assert cli.json("cancel")["cancelled"] is False


def test_what_a_step_tells_while_it_is_cancelled_is_heard(cli):
    book(cli, {"id": "one", "with": {"mood": "tells how it is cancelled"}})
    process = cli.start("run", "--json")
    cli.wait_for("attempt.started", "one")
    while not (cli.workspace / "diary").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    cli.json("cancel")
    process.communicate(timeout=20)
    assert [e["message"] for e in cli.events("attempt.notice")] == ["the wind may turn back"]
    cause = step_of(cli.json("wait", code=8), "one")["error"]["cause"]
    assert cause == "cancelled by the verb `cancel`; the wind may turn back"


def test_secrets_never_reach_a_file(cli):
    value = "s3cr3t-value-of-a-token"
    book(cli, {"id": "one", "with": {"mood": "tells"}}, secrets=["MY_TOKEN"])
    process = cli.run("run", "--json", code=1, MY_TOKEN=value)
    assert value not in process.stdout + process.stderr
    assert "[MY_TOKEN]" in process.stdout
    assert "[MY_TOKEN]" in "\n".join(cli.json("logs", "one")["lines"])
    for path in cli.workspace.rglob("*"):
        if path.is_file():
            assert value not in path.read_text(errors="replace"), path


URLS = {
    "https": "https://robot:{}@example.com/x.git",
    "a database": "postgresql+psycopg://u:{}@localhost/db",
    "a token": "https://{}@example.com/",
    "a token as name": "https://{}:x-oauth-basic@example.com",
    "without a name": "redis://:{}@localhost:6379/0",
    "with an @": "ftp://u:p@{}@example.com",
}


@pytest.mark.parametrize("name", URLS)
def test_a_login_in_a_url_of_the_book_reaches_no_file_and_nobody(cli, name):
    """The command itself is given it, and so is its undo; a second run finds the same."""
    password = "s3cr3t-of-the-url-of-a-book"
    url = URLS[name].format(password)
    step = {
        "id": "one",
        "uses": "command",
        "with": {
            "run": 'echo "from $URL as {{ inputs.mirror }}"; printf %s "$URL" | wc -c > made; '
            'cut -c1-20 made; echo "$URL" | base64 -w0; exit $CODE',
            "env": {"URL": "{{ inputs.url }}", "CODE": 1, "STATIC": url},
            "creates": "made",
            "outputs": {"url": "{{ inputs.url }}", "list": [{"at": url}]},
            "undo": 'printf %s "{{ inputs.url }}" | wc -c > ../undone',
        },
    }
    declared = {
        "url": {"type": "string", "default": url},
        "mirror": {"type": "string", "default": "none"},
    }
    book(cli, step, inputs=declared)
    said = []

    def run(*arguments, code=0):
        process = cli.run(*arguments, code=code)
        said.append(process.stdout + process.stderr)
        return process

    run("plan", "--json")
    run("run", "--json", "--set", f"mirror={url}", code=1)
    (cli.workspace / "made").unlink(missing_ok=True)
    step["with"]["env"]["CODE"] = 0
    book(cli, step, inputs=declared)
    run("run", "--json")
    run("run")
    again = json.loads(run("run", "--json").stdout.splitlines()[-1])
    assert [one["decision"] for one in again["steps"]] == ["skip"]
    assert int((cli.workspace / "made").read_text()) == len(url)
    for verb in ("status", "check", "plan"):
        run(verb, "--json")
        run(verb)
    run("logs", "one")
    run("events")
    run("report", "--output", str(cli.workspace.parent / "report.html"))
    kept = [p for p in cli.workspace.parent.rglob("*") if p.is_file() and p.name != "book.yaml"]
    run("destroy", "--yes", "--json")
    assert int((cli.workspace.parent / "undone").read_text()) == len(url)
    assert len(kept) > 8
    kept += [p for p in cli.workspace.parent.rglob("*") if p.is_file() and p.name != "book.yaml"]
    for text in (*said, *(p.read_text(errors="replace") for p in kept if p.exists())):
        assert password not in text
        for word in re.findall("[A-Za-z0-9+/]{16,}", text):
            assert password.encode() not in base64.b64decode(word[: len(word) // 4 * 4])
    assert any("***@" in text for text in said)


def test_an_undeclared_secret_is_refused(cli):
    book(cli, {"id": "one", "with": {"mood": "tells"}})
    assert cli.json("run", code=1, MY_TOKEN="x" * 9)["error"]["code"] == "undeclared_secret"


def test_approval_is_asked_once_and_given_by_name(cli):
    book(
        cli,
        {"id": "one", "approve": "Make {{ check.work.bytes | filesize }}?"},
        {"id": "two"},
        {"id": "three", "needs": []},
    )
    answer = cli.json("run", code=5)
    assert answer["error"]["code"] == "approval"
    assert step_of(answer)["question"].startswith("Make 0")
    assert step_of(answer, "two")["state"] == "blocked"
    assert step_of(answer, "three")["state"] == "satisfied"
    (command,) = answer["next"]
    assert re.fullmatch(rf"runbook run {cli.book} --approve one=[0-9a-f]{{12}}", command)
    assert answer["error"]["remedy"] == command
    assert step_of(cli.json("status"))["state"] == "waiting"
    assert step_of(cli.json("plan"))["approve"].startswith("Make 0")
    assert cli.json("run", "--approve", "one")["ok"]


def test_a_plan_tells_beforehand_what_later_steps_will_ask(cli):
    book(
        cli,
        {"id": "one"},
        {"id": "two", "approve": "Make {{ check.work.bytes | filesize }}?"},
        {"id": "three", "approve": "?", "with": {"content": "{{ steps.one.outputs.content }}"}},
    )
    plan = cli.json("plan")
    assert [s["decision"] for s in plan["steps"]] == ["run", "later", "later"]
    assert [s["approve"] for s in plan["steps"]] == [None, "Make 0 B?", "?"]


def test_yes_approves_everything(cli):
    book(cli, {"id": "one", "approve": "Really?"}, {"id": "two", "approve": "And this?"})
    assert cli.json("run", "--yes")["ok"]


def test_when_is_false(cli):
    book(
        cli,
        {"id": "one", "when": "inputs.wanted"},
        {"id": "two"},
        inputs={"wanted": {"type": "boolean", "default": False}},
    )
    answer = cli.json("run")
    assert step_of(answer)["state"] == "inactive"
    assert step_of(answer, "two")["state"] == "satisfied"
    assert step_of(cli.json("run", "--set", "wanted=true"))["decision"] == "run"


def test_from_forces_and_later_steps_decide_for_themselves(cli):
    book(
        cli,
        {"id": "one"},
        {"id": "two", "with": {"content": "{{ steps.one.outputs.content }}"}},
        {"id": "three"},
    )
    cli.json("run")
    answer = cli.json("run", "--from", "two")
    assert [s["decision"] for s in answer["steps"]] == ["skip", "run", "run"]
    assert step_of(answer, "three")["reasons"][0]["message"] == "changed: two (made anew)"
    assert step_of(answer, "two")["reasons"][0]["code"] == "forced"
    diary = (cli.workspace / "diary").read_text().splitlines()
    trusting = ["two trusts nothing", "three trusts nothing"]
    assert [line for line in diary if "nothing" in line] == trusting


def test_changed_outputs_reach_later_steps(cli):
    book(
        cli,
        {"id": "one", "with": {"content": "{{ inputs.word }}"}},
        {"id": "two", "with": {"content": "{{ steps.one.outputs.content }}"}},
        {"id": "three"},
        inputs={"word": {"type": "string", "default": "old"}},
    )
    cli.json("run")
    plan = cli.json("plan", "--set", "word=new")
    assert [s["decision"] for s in plan["steps"]] == ["run", "later", "later"]
    answer = cli.json("run", "--set", "word=new")
    reasons = [step["reasons"][0]["message"] for step in answer["steps"]]
    assert reasons == ["changed: with", "changed: with, needs", "changed: needs"]


def test_until_stops_there(cli):
    book(cli, {"id": "one"}, {"id": "two"}, {"id": "three"})
    answer = cli.json("run", "--until", "two")
    assert [s["id"] for s in answer["steps"]] == ["one", "two"]
    assert not (cli.workspace / "three").exists()


def test_the_command_that_mends_unmet_needs_is_complete(cli):
    """With the book and the workspace; then what was asked for, again."""
    said = {"run": ["true"], "creates": "made"}
    book(
        cli,
        {"id": "zero", "uses": "command", "with": said},
        {"id": "one"},
        {"id": "two"},
        inputs={"word": {"type": "string", "default": "a"}},
    )
    selection = ["--only", "two", "--force", "two"]
    where = ["--workspace", str(cli.home / "else where")]
    answer = cli.json("run", *selection, *where, "--set", "word=b c", code=3)
    assert answer["inputs"] == {"word": "b c"}, "kept: the commands need not repeat it"
    assert answer["error"]["step"] == "zero"
    assert answer["error"]["remedy"] == answer["next"][0]
    assert [shlex.split(command) for command in answer["next"]] == [
        ["runbook", "run", str(cli.book), "--until", "one", *where],
        ["runbook", "run", str(cli.book), *selection, *where],
    ]


def test_only_needs_its_needs_done(cli):
    book(cli, {"id": "one"}, {"id": "two"}, {"id": "three"})
    refused = cli.json("run", "--only", "two", code=3)
    assert refused["error"]["code"] == "needs_unmet"
    assert refused["error"]["step"] == "one"
    assert refused["error"]["remedy"]
    assert not (cli.workspace / "two").exists()
    cli.json("run", "--until", "two")
    answer = cli.json("run", "--only", "two")
    assert [s["decision"] for s in answer["steps"]] == ["skip", "run"]


def test_always_is_part_of_every_selection(cli):
    book(cli, {"id": "one", "always": True}, {"id": "two"}, {"id": "three"})
    cli.json("run")
    (cli.workspace / "one").unlink()
    answer = cli.json("run", "--only", "three")
    assert [(s["id"], s["decision"]) for s in answer["steps"]] == [
        ("one", "run"),
        ("two", "skip"),
        ("three", "run"),
    ]


def test_drift_is_repaired(cli):
    book(cli, {"id": "one"}, {"id": "two"})
    cli.json("run")
    (cli.workspace / "one").unlink()
    answer = cli.json("run")
    assert step_of(answer)["reasons"][0]["code"] == "drifted"
    assert step_of(answer, "two")["reasons"][0]["message"] == "changed: one (made anew)"
    assert [s["decision"] for s in cli.json("run")["steps"]] == ["skip", "skip"]


def test_what_was_done_by_hand_is_adopted(cli):
    book(cli, {"id": "one"})
    cli.workspace.mkdir()
    (cli.workspace / "one").write_text("done")
    assert step_of(cli.json("run"))["decision"] == "adopt"
    assert step_of(cli.json("run"))["decision"] == "skip"


def test_inputs_are_validated_when_their_values_are_known(cli):
    said = {"run": ["true"], "outputs": {"word": "long"}}
    book(
        cli,
        {"id": "zero", "uses": "command", "with": said},
        {"id": "one", "with": {"seconds": "{{ steps.zero.outputs.word }}"}},
    )
    answer = cli.json("run", code=1)
    assert answer["error"]["code"] == "invalid_inputs"
    assert "with.seconds" in answer["error"]["message"]
    assert answer["error"]["where"].startswith(str(cli.book))


def test_what_a_step_starts_heeds_sigint(cli):
    """Whatever runbook itself was told to ignore: servers are asked to end by it."""
    run = "grep SigIgn /proc/self/status > ignored"
    step = {"id": "one", "uses": "command", "with": {"run": run, "creates": "ignored"}}
    cli.book = write_book(cli.home, step)
    background = ["sh", "-c", "trap '' INT TERM; exec \"$@\"", "-", *cli.argv("run")]
    subprocess.run(background, env=cli.environment, cwd=cli.home, check=True)
    ignored = int((cli.workspace / "ignored").read_text().split()[1], 16)
    assert not ignored & (1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1)


def test_a_remedy_that_a_step_gives_as_data_is_a_complete_command(cli):
    book(cli, {"id": "one", "with": {"mood": "fails and says what to do"}})
    for answer in (cli.json("run", code=1), cli.json("wait", code=1)):
        remedy = answer["error"]["remedy"]
        assert remedy == f"rest a while, then `runbook run {cli.book} --force one`"
    (entry,) = cli.json("status")["steps"]
    assert entry["error"]["remedy"] == remedy


def test_what_was_made_anew_is_taken_up_by_commands(cli):
    """As in the book of the README: another `url`, and the old count would be published."""
    steps = [
        {"id": "fetch", "with": {"run": "cp {{ inputs.url }} corpus", "creates": "corpus"}},
        {
            "id": "count",
            "with": {
                "run": "wc -l < corpus > lines",
                "creates": "lines",
                "outputs": {"lines": {"file": "lines"}},
            },
        },
        {"id": "publish", "with": {"run": "echo {{ steps.count.outputs.lines }} >> published"}},
    ]
    declared = {"url": {"type": "string"}}
    cli.book = write_book(cli.home, *({"uses": "command", **s} for s in steps), inputs=declared)
    for lines in (1, 2):
        (cli.home / f"{lines}").write_text("line\n" * lines)
        assert cli.json("run", "--set", f"url={cli.home}/{lines}")["ok"]
    assert (cli.workspace / "published").read_text().split() == ["1", "2"]
    assert {s["decision"] for s in cli.json("run")["steps"]} == {"skip"}


def test_a_mended_failure_is_not_told_for_ever(cli):
    """What an agent does: run detached, wait, mend what the error says, run detached, wait."""
    book(cli, {"id": "one"}, {"id": "two", "with": {"mood": "does nothing"}})
    cli.json("run", "--detach")
    assert cli.json("wait", code=1)["error"]["code"] == "not_verified"
    (cli.workspace / "two").write_text("done")
    cli.json("run")
    assert cli.json("wait")["run"]["exit_code"] == 0
    assert {s["state"] for s in cli.json("status")["steps"]} == {"satisfied"}
    answer = cli.json("run")
    assert answer["run"] is None
    cli.json("run", "--detach")
    assert cli.json("wait")["ok"]
    assert cli.events("run.finished")[0]["unsettled"] == []


def test_a_second_signal_ends_a_run_without_grace(cli):
    book(cli, {"id": "one", "with": {"mood": "ignores SIGTERM"}})
    process = cli.start("run", "--json")
    started = cli.wait_for("attempt.started", "one")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - begun < 9, "not the ten seconds that one signal gives"
    assert session_members(started["process"]["pid"]) == []


def test_a_command_that_failed_may_be_tried_again_and_says_so(cli):
    retry = {"attempts": 2, "backoff": "0.1s"}
    step = {"id": "one", "uses": "command", "retry": retry, "with": {"run": "exit 3"}}
    cli.book = write_book(cli.home, step)
    answer = cli.json("run", code=1)
    assert len(cli.events("attempt.started")) == 2
    assert answer["errors"] == [answer["error"]]
    assert any(" run " in command for command in answer["next"])


def test_who_waits_is_told_of_every_step_that_failed(cli):
    fails = {"mood": "fails"}
    book(cli, {"id": "one", "with": fails}, {"id": "two", "needs": [], "with": fails})
    assert cli.json("run", "--detach")["detached"]
    waited = cli.json("wait", code=1)
    assert [error["step"] for error in waited["errors"]] == ["one", "two"]
    assert waited["errors"][0] == waited["error"]
    assert cli.json("status")["errors"] == waited["errors"]
    assert cli.json("run", code=1)["errors"][0]["message"] == waited["errors"][0]["message"]
    book(cli, {"id": "one"}, {"id": "two", "needs": []})
    assert cli.json("run")["errors"] == cli.json("wait")["errors"] == []


def test_an_error_that_trying_again_cannot_help_names_the_log_and_not_run(cli):
    book(cli, {"id": "one", "with": {"mood": "fails"}})
    answer = cli.json("run", code=1)
    assert [command.split()[1] for command in answer["next"]] == ["logs"]
