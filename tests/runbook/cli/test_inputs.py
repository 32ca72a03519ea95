"""Inputs hold from the run that sets them; approvals are of the question that was asked."""

from __future__ import annotations

import shlex
from random import Random

import pytest

from runbook.state import recorded
from tests.conftest import Cli
from tests.runbook.helpers import write_book
from tests.runbook.state import damage

INPUTS = {
    "word": {"type": "string", "default": "done"},
    "place": {"type": "path", "default": "here"},
}


@pytest.fixture
def book(cli):
    """One step, whose content is an input."""
    cli.book = write_book(
        cli.home, {"id": "one", "with": {"content": "{{ inputs.word }}"}}, inputs=INPUTS
    )
    return cli


@pytest.fixture
def needy(cli):
    """A book with an input that has no default."""
    cli.book = write_book(
        cli.home,
        {"id": "one", "with": {"content": "{{ inputs.word }}"}},
        inputs={"word": {"type": "string"}},
    )
    return cli


@pytest.fixture
def asking(cli):
    cli.book = write_book(
        cli.home,
        {"id": "send", "approve": "Send {{ inputs.word }}?"},
        inputs={"word": {"type": "string", "default": "one"}},
    )
    return cli


def obey(cli, command, code=0):
    """Run a printed command as it stands."""
    program, verb, *arguments = shlex.split(command)
    assert program == "runbook"
    book, cli.book = cli.book, None
    try:
        return cli.json(verb, *arguments, code=code)
    finally:
        cli.book = book


def content(cli):
    return (cli.workspace / "one").read_text()


def test_inputs_hold_until_they_are_set_otherwise_or_unset(book):
    assert book.json("run", "--set", "word=two")["inputs"] == {"word": "two"}
    assert content(book) == "two"
    for verb in ("status", "wait", "events", "plan", "check"):
        assert book.json(verb)["inputs"] == {"word": "two"}, verb
    assert book.json("run")["steps"][0]["decision"] == "skip", "it holds"
    book.json("run", "--set", "word=three")
    assert content(book) == "three"
    assert book.json("run", "--unset", "word")["inputs"] == {}
    assert content(book) == "done"
    assert book.json("status")["inputs"] == {}


def test_a_plan_tries_out_and_records_nothing(book):
    book.json("run")
    answer = book.json("plan", "--set", "word=two")
    assert answer["inputs"] == {"word": "two"}
    assert book.json("status")["inputs"] == {}
    obey(book, answer["next"][0])
    assert content(book) == "two", "what it says to call next is what it planned"


def test_variables_win_and_are_not_recorded(book):
    book.json("run", "--set", "word=two")
    assert book.json("plan", RUNBOOK_WORD="three")["inputs"] == {"word": "three"}
    book.json("run", RUNBOOK_WORD="three")
    assert content(book) == "three"
    assert book.json("status")["inputs"] == {"word": "two"}
    assert book.json("plan", "--set", "word=four", RUNBOOK_WORD="x")["inputs"] == {"word": "four"}


def test_a_relative_path_is_recorded_as_it_was_meant(book, tmp_path):
    answer = book.json("run", "--set", "place=there")
    assert answer["inputs"] == {"place": str(book.home / "there")}
    book.home, home = tmp_path / "elsewhere", book.home
    book.home.mkdir()
    assert book.json("status")["inputs"] == {"place": str(home / "there")}


def test_verbs_that_watch_need_no_inputs(needy):
    for verb, code in (("status", 0), ("wait", 3), ("events", 0), ("cancel", 0)):
        needy.json(verb, code=code)
    assert needy.json("logs", "one", code=2)["error"]["code"] == "no_log"
    assert needy.json("run", code=2)["error"]["code"] == "document_invalid"
    needy.json("run", "--set", "word=x")
    assert needy.json("destroy", "--yes")["steps"][0]["state"] == "undone"


def test_a_recorded_value_that_no_longer_fits_is_named_with_its_way_out(book):
    book.json("run", "--set", "word=two")
    text = book.book.read_text()
    book.book.write_text(text.replace("default: done", "enum: [done]\n    default: done"))
    answer = book.json("plan", code=2)
    assert "--unset word" in answer["errors"][0]["file"]
    book.json("status")
    assert book.json("plan", "--unset", "word")["inputs"] == {}


@pytest.mark.harness
@pytest.mark.parametrize("way", sorted(damage.ALL))
@pytest.mark.parametrize("record", [recorded.INPUTS, recorded.COPY])
def test_inputs_hold_though_a_record_of_them_is_damaged(book, record, way):
    book.json("run", "--set", "word=one")
    book.json("run", "--set", "word=two")
    damage.ALL[way](book.workspace / ".runbook" / record, Random(0))
    for verb in ("status", "plan", "run"):
        assert book.json(verb)["inputs"] == {"word": "two"}
    assert book.json("run", "--unset", "word")["inputs"] == {}
    assert book.json("status")["inputs"] == {}


def test_inputs_of_which_no_record_is_left_are_none(book):
    book.json("run", "--set", "word=two")
    for record in (recorded.INPUTS, recorded.COPY):
        (book.workspace / ".runbook" / record).write_bytes(b"{\xff")
    assert book.json("status")["inputs"] == {}


def test_a_secret_is_not_recorded(cli):
    cli.book = write_book(
        cli.home,
        {"id": "one", "with": {"content": "{{ 'long' if inputs.word else 'short' }}"}},
        inputs={"word": {"type": "string", "default": "x"}},
        secrets=["MY_TOKEN"],
    )
    answer = cli.json("run", "--set", "word=tok-12345678", MY_TOKEN="tok-12345678")
    assert answer["inputs"] == {"word": "[MY_TOKEN]"}
    for path in (cli.workspace / ".runbook").rglob("*"):
        assert path.is_dir() or b"tok-12345678" not in path.read_bytes(), path


def test_unknown_inputs_are_refused(book):
    assert book.json("plan", "--unset", "wird", code=2)["error"]["code"] == "unknown_input"


def test_an_approval_is_of_the_question_that_was_asked(asking):
    first = asking.json("run", "--set", "word=two", code=5)
    assert "Send two?" in first["error"]["message"]
    other = asking.json("run", "--set", "word=three", "--approve", "send", code=5)
    assert "Send three?" in other["error"]["message"]
    assert "something else" in other["error"]["cause"]
    wrong = asking.json("run", "--approve", "send=deadbeef", code=5)
    assert wrong["error"]["cause"].startswith("deadbeef is not the digest of the question")
    assert obey(asking, first["next"][0], code=5)["error"]["code"] == "approval", "it is outdated"
    assert other["error"]["remedy"] == other["next"][0]
    obey(asking, other["next"][0])
    assert (asking.workspace / "send").exists()


def test_an_approval_without_digest_is_of_what_was_asked_last(asking):
    asking.json("run", "--set", "word=two", code=5)
    asking.json("run", "--approve", "send")


def test_an_approval_may_be_given_beforehand(asking):
    asking.json("run", "--approve", "send")


LOADS = """\
from pydantic import BaseModel
from runbook.protocol import Check, Reason, StepFailure, Work

class Fields(BaseModel):
    pass

class Loads:
    version = "1"
    Inputs = Outputs = Fields

    def check(self, ctx):
        left, disk = map(int, (ctx.workspace / "left").read_text().split())
        return Check.unsatisfied(Reason("lacks", "bytes lack"), work=Work(bytes=left, disk=disk))

    def apply(self, ctx):
        raise StepFailure("the network went", code="network", retryable=True)
"""
# What a step that asks of 1,000 bytes, which take 500 of disk, needs when it goes on; whether the
# approval holds.
GOES_ON = {
    "as much": ("1000 500", {}, True),
    "less": ("400 200", {}, True),
    "nothing of the disk": ("400 0", {}, True),
    "more": ("1001 500", {}, False),
    "more of the disk": ("400 501", {}, False),
    "less of another": ("400 200", {"word": "other"}, False),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_an_approval_holds_for_less_of_the_same_work(cli, case):
    (cli.home / "loads.py").write_text(LOADS)
    cli.book = write_book(
        cli.home,
        {
            "id": "load",
            "uses": "loads.py:Loads",
            "approve": "Load {{ check.work.bytes }} bytes of {{ inputs.word }}?",
        },
        inputs={"word": {"type": "string", "default": "one"}},
    )
    left = cli.workspace / "left"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("1000 500")
    asked = cli.json("run", code=5)
    failed = obey(cli, asked["next"][0], code=1)
    assert failed["error"]["code"] == "network"
    now, inputs, holds = GOES_ON[case]
    left.write_text(now)
    more = "".join(f" --set {name}={value}" for name, value in inputs.items())
    again = obey(cli, failed["next"][-1] + more, code=1 if holds else 5)
    assert again["error"]["code"] == ("network" if holds else "approval")
    if not holds:
        assert obey(cli, again["next"][0], code=1)["error"]["code"] == "network"


def test_an_approval_of_no_step_is_refused(asking):
    assert asking.json("run", "--approve", "snd", code=2)["error"]["code"] == "unknown_step"


def test_what_continues_a_run_selects_what_it_did(cli):
    cli.book = write_book(
        cli.home,
        {"id": "one", "with": {"mood": "fails once"}, "needs": []},
        {"id": "two", "needs": []},
        {"id": "three", "needs": []},
    )
    answer = cli.json("run", "--only", "one", "--only", "two", code=1)
    assert answer["next"][-1] == f"runbook run {cli.book} --only one"
    assert cli.json("status")["next"][-1] == f"runbook run {cli.book} --only one"
    obey(cli, answer["next"][-1])
    assert not (cli.workspace / "three").exists()
    assert cli.json("status")["next"] == [f"runbook run {cli.book}"]


def test_until_is_kept_and_what_was_forced_and_is_done_is_not_forced_again(cli):
    cli.book = write_book(
        cli.home, {"id": "one"}, {"id": "two", "with": {"mood": "fails once"}}, {"id": "three"}
    )
    answer = cli.json("run", "--from", "one", "--until", "two", "--jobs", "1", code=1)
    again = f"runbook run {cli.book} --until two"
    assert answer["next"][-1] == f"{again} --jobs 1"
    assert cli.json("wait", code=1)["next"][-1] == again
    obey(cli, answer["next"][-1])
    assert not (cli.workspace / "three").exists()


def test_a_login_in_a_url_is_refused_and_not_repeated(tmp_path):
    """Neither in what is said, nor in what is kept."""
    book = tmp_path / "book.yaml"
    book.write_text(
        "runbook: 1\nname: t\ninputs: {hub: {type: string, default: ''}}\nsteps:\n"
        "- {id: w, uses: weights, with: {repo: a/b, endpoint: '{{ inputs.hub }}'}}\n"
    )
    cli = Cli(tmp_path, book)
    given = ("--set", "hub=http://me:verysecret@127.0.0.1:9")
    for verb in ("validate", "plan", "run"):
        for options in ((), ("--json",)):
            done = cli.run(verb, *given, *options, code=2)
            assert "verysecret" not in done.stdout + done.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path != book]
    assert not [path for path in kept if b"verysecret" in path.read_bytes()]


def test_who_watches_is_told_the_run_that_continues_with_its_approvals(cli):
    """A failure of an approved step, or of another one, asks nobody again."""
    failing = {"id": "one", "approve": "Go?", "with": {"mood": "fails once"}}
    cli.book = write_book(cli.home, failing, {"id": "two", "approve": "On?"})
    (following,) = cli.json("run", code=5)["next"]
    assert "--approve one=" in following
    given = following.split("--approve ")[1]
    cli.run("run", "--approve", given, code=1)
    for verb in ("wait", "status"):
        again = cli.json(verb, code=None)["next"][-1]
        assert again.endswith(f"--approve {given}"), verb
    assert cli.json("run", "--approve", given, code=5)["error"]["step"] == "two"
    (following,) = cli.json("status")["next"]
    assert "one=" not in following, "it is done"


def test_an_approval_given_to_a_run_that_goes_on_continues_too(cli):
    asking = {"id": "ask", "needs": [], "approve": "Go?", "with": {"mood": "fails once"}}
    cli.book = write_book(cli.home, {"id": "long", "with": {"mood": "waits"}}, asking)
    cli.json("run", "--detach")
    cli.wait_for("step.waiting", "ask")
    (given,) = [word for word in shlex.split(cli.json("status")["next"][1]) if "ask=" in word]
    cli.json("run", "--approve", given)
    assert cli.wait_for("attempt.failed", "ask")
    (cli.workspace / "go").touch()
    cli.json("wait", "--to-end", code=1)
    assert cli.json("wait", code=1)["next"][-1] == f"runbook run {cli.book} --approve {given}"
