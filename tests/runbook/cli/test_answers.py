"""What is said before a run, after it, and before something is removed."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import subprocess
import textwrap

from runbook.cli import human
from tests.runbook.helpers import write_book

CORPUS = """\
runbook: 1
name: corpus
steps:
  - id: fetch
    uses: command
    with: {run: "echo one > corpus", creates: corpus}
  - id: count
    uses: command
    with: {run: "wc -l < corpus > lines", creates: lines, outputs: {lines: {file: lines}}}
  - id: publish
    uses: command
    approve: "Publish {{ steps.count.outputs.lines }} lines?"
    with: {run: "touch published", creates: published}
"""

SERVER = """\
from pydantic import BaseModel

from runbook.protocol import Check, Reason


class Inputs(BaseModel):
    measured: bool = False


class Outputs(BaseModel):
    endpoint: str | None = None
    model: str
    decode_tokens_per_second: float | None = None
    acceptance: float | None = None


class Server:
    version = "1"
    Inputs, Outputs = Inputs, Outputs

    def check(self, ctx):
        made = ctx.workspace / ctx.step
        if not made.exists():
            return Check.unsatisfied(Reason("down", "no server was started"))
        if ctx.inputs.measured:
            return Check.satisfied(
                {"model": "tiny", "decode_tokens_per_second": 12.34, "acceptance": 0.851}
            )
        return Check.satisfied({"endpoint": "http://127.0.0.1:1/v1", "model": "it's tiny"})

    def apply(self, ctx):
        (ctx.workspace / ctx.step).touch()

    def undo(self, ctx):
        (ctx.workspace / ctx.step).unlink(missing_ok=True)
"""


def test_a_plan_shows_what_is_not_known_yet_as_such(cli):
    cli.book = cli.home / "corpus.yaml"
    cli.book.write_text(CORPUS)
    answer = cli.json("plan")
    assert [step["decision"] for step in answer["steps"]] == ["run", "later", "later"]
    assert "approval" in answer["steps"][2]["approve"]
    assert "publish asks: It asks for approval" in cli.run("plan").stdout
    cli.json("run", "--until", "count")
    assert cli.json("plan")["steps"][2]["approve"] == "Publish 1 lines?"
    told = cli.run("plan").stdout
    assert "publish asks: Publish 1 lines?\n" in told
    assert f"to approve: runbook run {cli.book} --approve publish\n" in told


def test_a_total_says_of_what_it_does_not_know(cli):
    content = "{{ steps.one.outputs.content }}"
    ask = (
        "{% if check.work.bytes %}Load {{ check.work.bytes }}?{% else %}Load up to 9 GB?{% endif %}"
    )
    cli.book = write_book(
        cli.home,
        {"id": "one"},
        {"id": "two", "with": {"content": content}},
        {"id": "weights", "needs": ["one"], "approve": ask},
    )
    why = {step["id"]: step["unknown"] for step in cli.json("plan")["steps"]}
    assert why["one"] is None
    assert why["two"] == "until earlier steps have run"
    assert why["weights"] == "it could not find out"
    shown = cli.run("plan").stdout
    assert "unknown: weights (it could not find out)" in shown
    assert "weights asks: Load up to 9 GB?" in shown


def test_success_says_what_one_does_next(cli):
    (cli.home / "server.py").write_text(SERVER)
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(
        textwrap.dedent(
            """\
            runbook: 1
            name: served
            steps:
              - {id: serve, uses: "server.py:Server"}
              - {id: smoke, uses: "server.py:Server", with: {measured: true}}
            """
        )
    )
    served = cli.json("run")["served"]
    assert served == cli.json("status")["served"]
    assert (served["step"], served["model"]) == ("serve", "it's tiny")
    assert (served["tokens_per_second"], served["acceptance"]) == (12.34, 0.851)
    *_, body = shlex.split(served["request"])
    assert json.loads(body)["model"] == "it's tiny", "it can be pasted into a shell"
    assert served["stop"] == f"runbook destroy {cli.book} serve --yes"
    shown = cli.run("run").stdout
    assert "12.3 tokens/s, 85 % of drafted tokens accepted" in shown
    assert served["request"] in shown and served["restart"] in shown
    assert served["unit"] is None and f"  at boot  {served['at_boot']}\n" in shown
    _, verb, *arguments = shlex.split(served["stop"])
    cli.book = None
    assert cli.json(verb, *arguments)["steps"][0]["state"] == "undone"


def test_the_line_that_starts_it_at_boot_works_as_it_is_printed(cli, tmp_path):
    """Given to a `crontab` of our own, and what that was given run as cron does."""
    (home := tmp_path / "a 100% home's").mkdir()
    cli.home, cli.workspace = home, home / "workspace"
    cli.environment |= {"HOME": str(home), "RUNBOOK_WORKSPACE": str(cli.workspace)}
    (home / "server.py").write_text(SERVER)
    cli.book = home / "book.yaml"
    cli.book.write_text(
        'runbook: 1\nname: served\nsteps: [{id: serve, uses: "server.py:Server"}]\n'
    )
    line = cli.json("run", RUNBOOK_CACHE=str(tmp_path / "cache"))["served"]["at_boot"]
    (table := tmp_path / "table").write_text("@daily true\n")
    (programs := tmp_path / "bin").mkdir()
    crontab = programs / "crontab"
    crontab.write_text(f'#!/bin/sh\n[ "$1" = - ] || exec cat {table}\ncat > {table}.new\n')
    crontab.chmod(0o755)
    path = {"PATH": f"{programs}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", line], env=path, check=True)
    daily, entry = table.with_suffix(".new").read_text().splitlines()
    assert daily == "@daily true" and entry.startswith("@reboot ")
    (cli.workspace / "serve").unlink()  # as a reboot ends a server
    command = entry.removeprefix("@reboot ").replace("\\%", "%")
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["/bin/sh", "-c", command], env=bare, cwd=tmp_path, check=True)
    assert cli.json("status")["served"]["step"] == "serve" and (cli.workspace / "serve").exists()


def test_a_unit_starts_at_boot_where_its_user_lingers(tmp_path, monkeypatch):
    from runbook.cli import served

    monkeypatch.setattr(served, "LINGER", tmp_path)
    assert served._linger() == "loginctl enable-linger"
    (tmp_path / pwd.getpwuid(os.getuid()).pw_name).touch()
    assert served._linger() is None
    found = dict.fromkeys(("model", "tokens_per_second", "acceptance", "request", "at_boot"))
    found |= {"endpoint": "e", "stop": "s", "restart": "r", "unit": "runbook-1.service"}
    assert "at boot  systemd starts it, as runbook-1.service" in human.served(found)


def test_what_is_destroyed_is_named_with_its_size(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"content": "x" * 2000}})
    cli.json("run")
    (step,) = cli.json("destroy", code=5)["steps"]
    assert step["paths"] == [{"path": str(cli.workspace / "one"), "bytes": 2000, "stays": False}]
    assert f"{cli.workspace}/one (2 kB)" in cli.run("destroy", code=5).stdout
    shown = cli.run("destroy", "--yes").stdout
    assert [line.split() for line in shown.splitlines()[:2]] == [
        ["one", "undoing"],
        ["one", "undone"],
    ]


def test_what_a_command_creates_is_named_with_its_size(cli, tmp_path):
    outside = tmp_path / "outside"
    make = f"mkdir in; printf 12345 > in/a; printf 123 > {outside}"
    given = {"run": make, "creates": ["in", str(outside)]}
    cli.book = write_book(cli.home, {"id": "one", "uses": "command", "with": given})
    cli.json("run")
    (step,) = cli.json("destroy", code=5)["steps"]
    within, without = sorted(step["paths"], key=lambda path: path["stays"])
    assert (within["path"], within["stays"]) == (str(cli.workspace / "in"), False)
    assert without == {"path": str(outside), "bytes": 3, "stays": True}
    assert f"{outside} (3 B, outside the workspace" in cli.run("destroy", code=5).stdout
    *_, freed, left = cli.run("destroy", "--yes").stdout.splitlines()[:4]
    assert freed == "undone: 5 B that they had made"
    assert left == f"left, being outside the workspace: {outside} (3 B)"
    assert outside.is_file() and not (cli.workspace / "in").exists()


def test_what_workspaces_share_is_listed_and_removed(cli, tmp_path):
    shared = tmp_path / "shared"
    (shared / "wheels" / "ab").mkdir(parents=True)
    (shared / "wheels" / "ab" / "w.whl").write_bytes(bytes(3000))
    environment = {"RUNBOOK_CACHE": str(shared)}
    answer = cli.json("cache", **environment)
    assert answer["folders"] == [{"name": "wheels", "files": 1, "bytes": 3000}]
    assert cli.json("cache", "clean", code=5, **environment)["error"]["code"] == "approval"
    assert (shared / "wheels").exists()
    assert cli.json("cache", "clean", "--yes", **environment)["removed"] is True
    assert list(shared.iterdir()) == []


def test_what_workspaces_share_is_not_taken_from_who_uses_it(cli, tmp_path):
    import fcntl

    locks = tmp_path / "shared" / "locks"
    locks.mkdir(parents=True)
    with open(locks / "key", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = cli.json("cache", "clean", "--yes", code=6, RUNBOOK_CACHE=str(locks.parent))
    assert answer["error"]["code"] == "cache_in_use"
    assert (locks / "key").exists()


def test_secrets_that_are_unset_are_told(cli):
    cli.book = write_book(cli.home, {"id": "one"}, secrets=["MY_TOKEN"])
    assert cli.json("plan", MY_TOKEN="")["unset_secrets"] == ["MY_TOKEN"]
    assert "MY_TOKEN unset" in cli.run("plan", MY_TOKEN="").stdout
    assert "warning: MY_TOKEN unset" in cli.run("run", MY_TOKEN="").stderr
    assert cli.json("run", MY_TOKEN="tok-12345678")["unset_secrets"] == []


def test_nothing_runs_without_a_secret_that_is_required(cli):
    secrets = ["MY_TOKEN", {"name": "OTHER", "required": False}]
    needed = {"name": "NEEDED_KEY", "required": True}
    cli.book = write_book(cli.home, {"id": "one"}, secrets=[*secrets, needed])
    for verb, *more in (["plan"], ["run"], ["run", "--detach"], ["run", "--yes", "--only", "one"]):
        for value in ("", None):
            given = {} if value is None else {"NEEDED_KEY": value}
            answer = cli.json(verb, *more, code=3, **given)
            assert answer["error"]["code"] == "secret_unset"
            assert "NEEDED_KEY must be set" in answer["error"]["message"]
            assert f"`runbook run {cli.book}`" in answer["error"]["remedy"]
    assert not (cli.workspace / "one").exists()
    shown = cli.run("plan", code=3)
    assert "NEEDED_KEY must be set" in shown.stderr and "unset" not in shown.stdout
    cli.json("validate")
    cli.json("status")
    assert cli.json("plan", NEEDED_KEY="key-123456")["unset_secrets"] == ["MY_TOKEN", "OTHER"]
    assert cli.json("run", NEEDED_KEY="key-123456")["ok"]
    assert cli.json("run", code=3)["error"]["code"] == "secret_unset", "also if all is done"


def test_the_old_form_is_refused_with_the_new_one(cli):
    cli.book = write_book(cli.home, {"id": "one"}, {"id": "two"})
    cli.json("run")
    book, cli.book = cli.book, None
    for verb, code in (("check", 0), ("logs", 0), ("destroy", 5)):
        error = cli.json(verb, "--book", str(book), "one", code=2)["error"]
        assert error["remedy"] == f"runbook {verb} {book} one"
        cli.json(verb, *shlex.split(error["remedy"])[2:], code=code)


def test_a_name_that_is_a_book_and_a_step_is_ambiguous(cli):
    write_book(cli.home, {"id": "rehearsal"}).rename(cli.home / "runbook.yaml")
    cli.json("run")
    answer = cli.json("logs", "rehearsal", code=2)
    assert answer["error"]["code"] == "ambiguous"
    _, verb, *arguments = shlex.split(answer["next"][0])
    assert cli.json(verb, *arguments)["step"] == "rehearsal"


def test_a_plan_names_what_mends_a_step_that_will_refuse(cli):
    remedy = "free memory; without it, `runbook run rehearsal`"
    (cli.home / "short.py").write_text(
        "from runbook.protocol import Check, Model, PreconditionNotMet, Reason\n"
        "from pydantic import BaseModel\n\n"
        "class Inputs(BaseModel):\n    pass\n\n"
        "class Short:\n    version = '1'\n    Inputs = Outputs = Inputs\n\n"
        "    def check(self, ctx):\n"
        f"        return Check.unsatisfied(Reason('memory', 'too little', {remedy!r}),\n"
        "            Reason('disk', 'too small', 'free some'))\n\n"
        "    def apply(self, ctx):\n        raise PreconditionNotMet('too little')\n"
    )
    cli.book = write_book(cli.home, {"id": "look", "uses": "short.py:Short"}, {"id": "make"})
    assert cli.json("plan")["next"] == ["runbook run rehearsal", f"runbook run {cli.book}"]
    assert f"remedy for look: {remedy}; free some\n" in cli.run("plan").stdout


def test_a_status_says_how_the_run_ended_and_what_one_calls_then(cli):
    cli.book = write_book(cli.home, {"id": "one", "approve": "Go?"})
    assert f"next: runbook run {cli.book}\n" in cli.run("status").stdout
    answer = cli.json("run", code=5)
    told = cli.run("status").stdout
    assert f"run {answer['run']}: waits for approval\n" in told
    assert f"next: {answer['next'][0]}\n" in told
    cli.json("run", "--yes")
    told = cli.run("status").stdout
    assert ": finished\n" in told and "next:" not in told
