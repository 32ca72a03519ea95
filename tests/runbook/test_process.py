"""Processes are told apart, and ended with all they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runbook.process import (
    MARK,
    Identity,
    attempt_mark,
    marked,
    of_attempt,
    of_attempts,
    session_in,
    session_members,
    stop,
    stop_session,
)


def test_identity_knows_its_process_and_no_other():
    process = subprocess.Popen(["sleep", "60"])
    identity = Identity.of(process.pid)
    assert identity is not None
    assert identity.alive()
    assert Identity.load(identity.dump()) == identity
    for field, other in (("start_time", 1), ("boot_id", "x")):
        assert not Identity.load({**identity.dump(), field: other}).alive()
    process.kill()
    time.sleep(0.05)
    assert not identity.alive(), "a zombie is not alive"
    process.wait()
    assert not identity.signal(signal.SIGTERM)


def test_load_refuses_what_is_no_identity():
    for data in (None, {}, {"pid": "x"}, [1], {"pid": 1, "start_time": None, "boot_id": ""}):
        assert Identity.load(data) is None


def test_stop_session_ends_children_that_ignore_sigterm():
    script = "trap '' TERM; sleep 60 & sleep 60 & wait"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    while len(session_members(process.pid)) < 3:
        time.sleep(0.01)
    assert stop_session(process.pid, 0.2) == []
    process.wait()
    assert session_members(process.pid) == []


def test_marked_finds_a_descendant_that_left_the_session():
    process = subprocess.Popen(
        ["setsid", "sleep", "60"], env={**os.environ, "RUNBOOK_TEST_MARK": "here/1"}
    )
    try:
        deadline = time.monotonic() + 5
        while not marked("RUNBOOK_TEST_MARK", "here/") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.pid in marked("RUNBOOK_TEST_MARK", "here/")
        assert marked("RUNBOOK_TEST_MARK", "elsewhere/") == []
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def started():
    """Starts programs that are ended with the test."""
    processes = []

    def start(*argv, **more):
        processes.append(subprocess.Popen(argv, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_what_attempts_started_is_known_by_workspace_and_run(tmp_path, started):
    """Another workspace, of whatever run, has nothing to do with it."""
    here, there = tmp_path / "here", tmp_path / "there"
    ours = {}
    for state, run in ((here, "1"), (here, "2"), (there, "1")):
        environment = {**os.environ, MARK: attempt_mark(state, f"{run}/one.1")}
        ours[state, run] = started("setsid", "sleep", "60", env=environment).pid
    started("sleep", "60", env={**os.environ, MARK: "1/one.1"})
    assert until(lambda: len(of_attempts(here)) == 2)
    assert set(of_attempts(here)) == {ours[here, "1"], ours[here, "2"]}
    assert of_attempts(here, "2/") == [ours[here, "2"]]
    assert of_attempts(there) == [ours[there, "1"]]
    (tmp_path / "link").symlink_to(here)
    assert set(of_attempts(tmp_path / "link")) == set(of_attempts(here))


LEAVING = {
    "child": "sleep 60 & wait",
    "session": "setsid sleep 60",
    "twice forked": "(setsid sleep 60 &) & sleep 60",
    "environment": 'exec env -i PATH="$PATH" sleep 60',
    "environment and session": '(env -i PATH="$PATH" setsid sleep 60 &) & sleep 60',
    "descriptors": "exec 0<&- 1>&- 2>&- 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; sleep 60",
    "all": '(cd /; exec env -i PATH="$PATH" setsid sleep 60 0<&- 1>&- 2>&- &) & sleep 60',
}
CARRIER = """
import os, sys
from runbook.process import MARK, carry
carry(os.environ[MARK])
os.execv("/bin/sh", ["sh", "-c", sys.argv[1]])
"""


@pytest.mark.parametrize("way", LEAVING)
def test_what_an_attempt_started_is_found_however_it_left(way, tmp_path, started):
    """By a sleeping process that nothing leads to any more: its parents are killed."""
    mark = attempt_mark(tmp_path, "1/one.1")
    argv = [sys.executable, "-c", CARRIER, LEAVING[way]]
    parent = started(*argv, env={**os.environ, MARK: mark}, start_new_session=True)
    sleeping = until(lambda: [pid for pid in of_attempts(tmp_path) if name_of(pid) == "sleep"])
    assert sleeping
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    left = of_attempts(tmp_path)
    assert set(left) == set(of_attempts(tmp_path, "1")) == set(of_attempt(mark))
    if "forked" in way or "session" in way or way == "all":
        assert left, "it lives on"
    assert of_attempts(tmp_path, "2") == of_attempts(tmp_path / "other") == []
    assert of_attempt(attempt_mark(tmp_path, "1/one.2")) == []
    assert stop(lambda: of_attempts(tmp_path), 5) == []


def test_what_is_to_live_on_leaves_the_attempt(tmp_path, started):
    mark = attempt_mark(tmp_path, "1/one.1")
    script = CARRIER.replace("os.execv", "from runbook.process import leave\nleave()\nos.execv")
    told = "echo left; exec sleep 60"
    environment = {**os.environ, MARK: mark}
    child = started(
        sys.executable, "-c", script, f"exec env -u {MARK} sh -c '{told}'",
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout.readline() == b"left\n"
    assert of_attempts(tmp_path) == []


def test_a_limit_that_may_not_be_set_ends_nothing(tmp_path, started):
    script = "import resource, sys\nfrom runbook.process import LIMIT, carry, leave\n"
    script += "resource.setrlimit(LIMIT, (10**6, 10**6))\ncarry('1/one.1@x')\nleave()\n"
    script += "assert resource.getrlimit(LIMIT) == (10**6, 10**6)"
    assert started(sys.executable, "-c", script).wait() == 0


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_session_is_known_by_its_leader_and_folder(tmp_path, started):
    """Its leader's death does not hide it; a member that works elsewhere may be anyone's."""
    script = f"sleep 60 & cd / ; sleep 61 & cd {tmp_path}; echo ready; read line"
    leader = started(
        "sh", "-c", script, start_new_session=True, cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    leader.stdout.readline()
    identity = Identity.of(leader.pid)
    assert len(session_members(leader.pid)) == 3
    assert len(session_in(identity, tmp_path)) == 2
    other = Identity(identity.pid, identity.start_time + 1, identity.boot_id)
    assert session_in(other, tmp_path) == [], "another process has the leader's pid"
    assert session_in(Identity(identity.pid, 1, "another boot"), tmp_path) == []
    leader.kill()
    leader.wait()
    assert len(session_in(identity, tmp_path)) == 1
    assert stop_session(leader.pid, 1.0) == []


def test_what_is_stopped_is_woken_to_end_by_itself(started, tmp_path):
    script = f"trap 'touch {tmp_path}/ended; exit' TERM; echo ready; while :; do sleep 0.05; done"
    process = started("sh", "-c", script, start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    assert stop_session(process.pid, 10) == []
    assert (tmp_path / "ended").exists()


def test_grace_ends_when_there_is_a_hurry(started):
    process = started("sh", "-c", "trap '' TERM; echo ready; sleep 60", stdout=subprocess.PIPE)
    process.stdout.readline()
    asked = iter([False, False, True])
    alive = Identity.of(process.pid).alive
    find = lambda: [process.pid] if alive() else []  # noqa: E731
    assert stop(find, 600, lambda: next(asked)) == []
    assert process.wait(5) == -signal.SIGKILL
