"""Servers under the user's systemd: the unit as text, and its life under a real manager."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runbook.protocol import StepFailure
from runbook.steps.serve.supervisor import (
    Session,
    SystemdUser,
    quote,
    render_unit,
    supervisor,
    unit_path,
)

HERE = Path(__file__).parent
SPEC = {"argv": ["/venv/bin/vllm", "serve", "/models/100% tiny"], "stop_grace": 45}


def can_unshare() -> bool:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def test_unit(tmp_path):
    unit = render_unit(tmp_path, SPEC)
    assert "Description=vLLM serving /models/100%% tiny\n" in unit
    assert "KillSignal=SIGINT\n" in unit
    assert "TimeoutStopSec=45\n" in unit
    assert f'"-m" "runbook.steps.common.become" "{tmp_path}"\n' in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_accepts_the_unit(tmp_path):
    folder = tmp_path / 'odd $dir "q"'
    folder.mkdir()
    unit = tmp_path / "runbook-x.service"
    unit.write_text(render_unit(folder, SPEC))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("/plain", '"/plain"'),
        ("50%", '"50%%"'),
        ("$HOME", '"$$HOME"'),
        ('a "b" \\', '"a \\"b\\" \\\\"'),
    ],
)
def test_quote(word, quoted):
    assert quote(word) == quoted


def test_one_unit_per_workspace(tmp_path):
    assert unit_path(tmp_path / "a") == unit_path(tmp_path / "a")
    assert unit_path(tmp_path / "a") != unit_path(tmp_path / "b")


def test_services_that_end_at_log_out_are_not_chosen_by_themselves(monkeypatch, tmp_path):
    monkeypatch.setattr(SystemdUser, "reachable", staticmethod(lambda: True))
    monkeypatch.setattr("runbook.steps.serve.supervisor.LINGER", tmp_path)
    assert isinstance(supervisor("auto"), Session)
    assert isinstance(supervisor("systemd-user"), SystemdUser)
    (tmp_path / pwd.getpwuid(os.getuid()).pw_name).touch()
    assert isinstance(supervisor("auto"), SystemdUser)


def test_without_a_manager_a_session_does(monkeypatch):
    monkeypatch.setattr(SystemdUser, "reachable", staticmethod(lambda: False))
    assert isinstance(supervisor("auto"), Session)
    with pytest.raises(StepFailure) as caught:
        supervisor("systemd-user")
    assert caught.value.code == "no_user_manager"


@pytest.mark.skipif(
    not Path("/lib/systemd/systemd").exists() or not can_unshare(),
    reason="needs systemd and a mount namespace",
)
def test_the_life_of_a_server(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    command = ["unshare", "-m", "bash", str(HERE / "user_manager.sh"), str(home)]
    command += [sys.executable, "-m", "tests.steps.serve.drive_systemd", str(tmp_path)]
    done = subprocess.run(command, cwd=HERE.parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
