"""Processes are told apart, and ended with all they started."""

import os
import signal
import subprocess
import time

from runbook.process import Identity, marked, session_members, stop_session


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
