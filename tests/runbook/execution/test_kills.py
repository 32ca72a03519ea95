"""Nobody writes beside a writer, whatever is killed, and nothing half made is taken for done.

Commands of one to four seconds write a file in two halves, the second by a process that has left
the one that started it. A writer holds a lock which everything that it starts inherits: who cannot
take it writes beside another. Supervisors, pumps and workers are killed at random, and what is
left behind is met by `run`, `cancel` and `wait`. RUNBOOK_TEST_KILLS says how many are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from runbook.process import of_attempts, session_members, stop
from tests.conftest import Cli
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.harness

KILLS = int(os.environ.get("RUNBOOK_TEST_KILLS", "40"))
LANES = 4

WRITER = """\
exec 9>>{id}.lock
flock -n 9 || echo "{id}" >> second-writers
printf first > {id}
second="sleep {seconds}; printf second >> {id}; touch {id}.whole"
there="sleep {seconds}; cd $PWD; printf second >> {id}; touch {id}.whole"
rm -f {id}.whole
{detach}
while [ ! -e {id}.whole ]; do sleep 0.05; done
"""
DETACH = {
    "child": 'sh -c "$second"',
    "setsid": 'setsid sh -c "$second" &',
    "nohup": 'nohup sh -c "$second" >/dev/null 2>&1 &',
    "daemon": '(setsid sh -c "$second" </dev/null >/dev/null 2>&1 &)',
    # Nothing leads to it: other session, environment and folder; only the harness's lock is open.
    "bare": '(cd /; exec env -i PATH="$PATH" setsid sh -c "$there" 0<&- 1>&- 2>&- &)',
}


def command(name: str, how: str, seconds: float) -> dict:
    run = WRITER.format(id=name, seconds=seconds, detach=DETACH[how])
    return {"id": name, "uses": "command", "needs": [], "with": {"run": run, "creates": name}}


class Lane:
    """A workspace of its own in which runs are killed until its share of kills is used up."""

    def __init__(self, cli: Cli, chance: random.Random, kills: int) -> None:
        self.cli, self.chance, self.kills = cli, chance, kills
        self.whole: list[str] = []
        self.half: list[str] = []
        self.rounds = 0

    def work(self) -> Lane:
        while self.kills > 0:
            self.rounds += 1
            seconds = [round(self.chance.uniform(1, 4), 2) for _ in DETACH]
            steps = map(command, (f"{how}{self.rounds}" for how in DETACH), DETACH, seconds)
            self.cli.book = write_book(self.cli.home, *steps)
            while self.kills > 0 and not self.finished():
                self.once()
            self.finish()
            self.judge()
        return self

    def once(self) -> None:
        """Start a run, kill something of it, and do what a user might do then."""
        process = self.cli.start("run", "--json", "--jobs", "5")
        try:
            process.communicate(timeout=self.chance.uniform(0.5, 3.5))
        except subprocess.TimeoutExpired:
            self.kill(process)
        if process.poll() is None:
            process.communicate(timeout=60)
        self.chance.choice([lambda: None, self.cancel, self.look, lambda: time.sleep(0.5)])()

    def kill(self, process: subprocess.Popen) -> None:
        pumps = [pid for pid in self.pumps() if session_members(pid)]
        victims = self.chance.choice(["supervisor", "pump", "worker", "both", "all", "stop"])
        self.kills -= 1
        if victims == "stop":
            process.send_signal(signal.SIGSTOP)
            self.cancel()
            process.send_signal(signal.SIGCONT)  # it may have been stopped before it took the lock
            return
        if victims in ("supervisor", "both", "all"):
            process.kill()
        for pump in pumps if victims != "supervisor" else ():
            members = session_members(pump)
            if victims == "worker":
                members = [pid for pid in members if parent(pid) == pump]
            elif victims != "all":
                members = [pump]
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def pumps(self) -> list[int]:
        try:
            events = self.cli.events("attempt.started")
        except (FileNotFoundError, ValueError):
            return []
        return [event["process"]["pid"] for event in events if event["process"]]

    def cancel(self) -> None:
        self.cli.json("cancel")
        assert of_attempts(self.cli.workspace / ".runbook") == []

    def look(self) -> None:
        """While anything of an attempt lives, nobody says that it is over."""
        left = of_attempts(self.cli.workspace / ".runbook")
        answer = self.cli.json("status")
        if left and of_attempts(self.cli.workspace / ".runbook") == left:
            assert answer["run"]["state"] in ("orphaned", "running"), answer
        for step in answer["steps"]:
            path = self.cli.workspace / step["id"]
            if step["state"] == "satisfied" and path.read_text() != "firstsecond":
                self.half.append(step["id"])

    def finished(self) -> bool:
        steps = self.cli.json("status")["steps"]
        return all(step["state"] == "satisfied" for step in steps)

    def finish(self) -> None:
        deadline = time.monotonic() + 120
        while (process := self.cli.run("run", "--json", code=None)).returncode == 6:
            assert time.monotonic() < deadline, "an orphan never ends"
            self.cli.json("wait", "--timeout", "30", code=None)
        assert process.returncode == 0, process.stdout

    def judge(self) -> None:
        for how in DETACH:
            name = f"{how}{self.rounds}"
            found = (self.cli.workspace / name).read_text()
            (self.whole if found == "firstsecond" else self.half).append(name)

    def second_writers(self) -> list[str]:
        path = self.cli.workspace / "second-writers"
        return path.read_text().split() if path.exists() else []

    def begun_again(self) -> list[str]:
        """Steps that were begun after they had succeeded."""
        done: set[str] = set()
        again = []
        for event in self.cli.events(run="*"):
            if event["type"] == "attempt.succeeded":
                done.add(event["step"])
            elif event["type"] == "attempt.started" and event["step"] in done:
                again.append(event["step"])
        return again


def parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_random_kills_of_commands_that_outlive_their_parents(tmp_path):
    share = [KILLS // LANES + (lane < KILLS % LANES) for lane in range(LANES)]
    lanes = []
    for number, kills in enumerate(share):
        (home := tmp_path / f"lane{number}").mkdir()
        lanes.append(Lane(Cli(home), random.Random(number), kills))
    with ThreadPoolExecutor(LANES) as pool:
        lanes = list(pool.map(Lane.work, lanes))
    assert [lane.second_writers() for lane in lanes] == [[]] * LANES
    assert [lane.half for lane in lanes] == [[]] * LANES
    assert [lane.begun_again() for lane in lanes] == [[]] * LANES
    assert all(lane.whole for lane in lanes)


@pytest.fixture
def how():
    return "daemon"


@pytest.fixture
def left(cli, how):
    """A command whose supervisor, pump and worker were killed: its shells live on."""
    cli.book = write_book(cli.home, command("daemon", how, 60))
    process = cli.start("run", "--json")
    pump = cli.wait_for("attempt.started", "daemon")["process"]["pid"]
    deadline = time.monotonic() + 20
    while set(shells(cli)) <= set(session_members(pump)) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    for pid in session_members(pump) if how == "bare" else [pump]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    while cli.json("status")["steps"][0]["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    yield cli
    assert stop(lambda: shells(cli), 0) == []


def shells(cli: Cli) -> list[int]:
    return of_attempts(cli.workspace / ".runbook")


each_way = pytest.mark.parametrize("how", ["daemon", "bare"])


@each_way
def test_status_and_wait_say_orphaned_while_a_shell_lives(left):
    assert shells(left)
    answer = left.json("status")
    assert answer["run"]["state"] == answer["steps"][0]["state"] == "orphaned"
    assert left.json("wait", "--timeout", "0.2", code=7)["run"]["state"] == "orphaned"
    assert stop(lambda: shells(left), 0) == []
    assert left.json("wait", code=1)["run"]["state"] == "interrupted"


@each_way
def test_cancel_ends_what_a_killed_worker_left(left):
    assert left.json("cancel")["cancelled"]
    assert shells(left) == []
    assert left.json("cancel")["cancelled"] is False


@each_way
def test_a_run_ends_what_a_killed_worker_left_before_it_begins(left):
    before = set(shells(left))
    left.book = write_book(left.home, command("daemon", "daemon", 0.1))
    assert left.json("run")["ok"]
    assert not before & set(shells(left))
    assert (left.workspace / "daemon").read_text() == "firstsecond"
    assert not (left.workspace / "second-writers").exists()


@each_way
def test_destroy_ends_what_a_killed_worker_left_before_it_undoes(left):
    assert left.json("destroy", "--yes")["ok"]
    assert shells(left) == []
    assert not (left.workspace / "daemon").exists()


def test_what_a_killed_destroy_left_is_ended_before_the_next_verb_acts(cli):
    undo = "exec 9>>undo.lock; flock -n 9 || echo undo >> second-writers; sleep 60"
    step = {"id": "one", "uses": "command", "with": {"run": "touch one", "creates": "one"}}
    step["with"]["undo"] = undo
    cli.book = write_book(cli.home, step)
    cli.json("run")
    process = cli.start("destroy", "--yes", "--json")
    deadline = time.monotonic() + 20
    while not (cli.workspace / "undo.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (worker,) = {pid for pid in shells(cli) if parent(parent(pid)) == process.pid}
    process.kill()
    os.kill(parent(worker), signal.SIGKILL)
    process.communicate()
    assert shells(cli), "the shell of undo lives on"
    assert cli.json("status")["run"]["state"] == "orphaned"
    assert cli.json("run")["ok"]
    assert shells(cli) == []


def test_a_stopped_run_can_be_cancelled(cli):
    cli.book = write_book(cli.home, command("daemon", "daemon", 60))
    process = cli.start("run", "--json")
    cli.wait_for("attempt.started", "daemon")
    process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert cli.json("cancel")["cancelled"]
    assert time.monotonic() - begun < 20, "it is woken, not waited for"
    process.communicate(timeout=20)
    assert process.returncode == 8
    assert shells(cli) == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_moments_ends_the_run_with_its_code(cli, number):
    """From when the lock says who holds it; before that there is nothing to cancel."""
    cli.book = write_book(cli.home, {"id": "one", "with": {"seconds": 20}})
    process = cli.start("run", "--json")
    lock = cli.workspace / ".runbook" / "lock"
    while True:
        try:
            if json.loads(lock.read_text())["pid"] == process.pid:
                break
        except (FileNotFoundError, ValueError):
            time.sleep(0.0005)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    code = {signal.SIGUSR1: 8, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert process.returncode == code
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "cancelled"
