"""Each check against described machines, and the machine that describes itself."""

from __future__ import annotations

import copy
import os
import resource
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from runbook.steps.preflight import environment, share
from runbook.steps.preflight.checks import CHECKS, THOROUGH, examine
from runbook.steps.preflight.hardware import fitted
from runbook.steps.preflight.kernel_log import Xid, xids
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.measures import version
from runbook.steps.preflight.models import Inputs

DATA = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text())


class Described:
    """A machine as the data file describes it, with the same questions as the real one."""

    def __init__(self, parts, folder):
        self.__dict__.update(parts)
        self.workspace = folder
        self.own_pids = frozenset()
        self.own_server = SimpleNamespace() if parts.get("own_server") else None
        self.cores, self.threads = [0, 1, 2, 3], list(range(8))
        self.python = tuple(parts["python"])
        self.python_header = folder if parts["python_header"] else folder / "Python.h"

    def disk_free(self):
        return self.__dict__["disk_free"]

    def __getattribute__(self, name):
        parts = object.__getattribute__(self, "__dict__")
        if name in ("disk_free", "disk_taken", "shm_size"):
            return lambda: parts[name]
        if name in ("wsl", "container", "secure_boot", "logout_kills", "module_flavour"):
            return lambda: parts[name]
        if name == "xids":
            return lambda: [Xid(*told) for told in parts["xids"]]
        if name == "nvidia_cards":
            return lambda: parts["cards"]
        if name == "module_loaded":
            return lambda module: parts[name]
        if name == "owner":
            return str
        if name == "port_holder":
            return lambda host, port: parts[name]
        return object.__getattribute__(self, name)

    def limit(self, kind):
        return self.limits[kind]

    def program(self, name):
        return f"/usr/bin/{name}" if name in self.programs else None

    def compiler_version(self, path):
        return self.programs[Path(path).name]

    def iommu_translates(self, bus):
        return bus in self.iommu

    def redirecting_bridges(self, bus):
        return self.bridges.get(bus, [])


def configuration(control: int) -> bytes:
    """A bridge's 4 KiB: another extended capability, then ACS with this control register."""
    data = bytearray(4096)
    data[0x100:0x104] = (0x0001 | 1 << 16 | 0x140 << 20).to_bytes(4, "little")
    data[0x140:0x144] = (0x000D | 1 << 16).to_bytes(4, "little")
    data[0x146:0x148] = control.to_bytes(2, "little")
    return bytes(data)


def described(changes, folder):
    parts = copy.deepcopy(DATA["machine"])
    for path, value in (changes or {}).items():
        *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        place = parts
        for key in way:
            place = place[key]
        if value is None and isinstance(place, list):
            del place[last]
        else:
            place[last] = value
    return Described(parts, folder)


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["name"])
def test_case(case, tmp_path):
    want = case.get("replace") or DATA["want"] | (case.get("want") or {})
    machine = described(case.get("machine"), tmp_path)
    inputs = fitted(machine, SimpleNamespace(**Inputs(**want).model_dump(mode="json")))
    reasons = examine(machine, inputs, thorough=True)
    assert [reason.code for reason in reasons] == case["codes"]
    assert all(reason.message and reason.remedy for reason in reasons)
    errors = [reason for reason in reasons if reason.severity == "error"]
    assert (not errors) == case.get("ok", not case["codes"])
    if "says" in case:
        assert case["says"] in reasons[0].message
    if "remedy" in case:
        assert str(reasons[0].remedy) == case["remedy"]
    if "chosen" in case:
        assert (inputs.chosen, inputs.values) == tuple(case["chosen"])
    if "env" in case:
        assert environment(machine, inputs) == case["env"]


def test_quick_checks_start_no_program(tmp_path, monkeypatch):
    def no_program(*_, **__):
        raise AssertionError("a quick check starts a program")

    monkeypatch.setattr("subprocess.Popen", no_program)
    machine = Machine(tmp_path, "serve")
    inputs = fitted(machine, SimpleNamespace(**Inputs(**DATA["want"]).model_dump(mode="json")))
    examine(machine, inputs, thorough=False)
    with pytest.raises(AssertionError):
        examine(machine, inputs, thorough=True)


def test_every_check_has_a_line_that_says_what_it_is():
    for check in CHECKS.values():
        assert (check.__doc__ or "").strip()
    assert set(CHECKS) >= THOROUGH


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match="no check is called 'gpu'; there are driver, gpus"):
        Inputs(checks=["gpu"])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("580.126.09", (580, 126, 9)), ("570", (570,)), ("3.11", (3, 11)), ("595.45rc1", (595,))],
)
def test_version(text, numbers):
    assert version(text) == numbers


@pytest.mark.parametrize(
    ("cores", "threads", "ranks", "most", "expected"),
    [
        ([0, 1], [0, 1], 1, None, [[0, 1]]),
        ([0, 1], [0, 1], 2, None, [[0], [1]]),
        ([0, 2, 4], list(range(6)), 2, None, [[0], [2]]),
        ([0, 2, 4, 6], list(range(8)), 1, 1, [[0]]),
        ([0, 2, 4, 6], list(range(8)), 2, 9, [[0, 2], [4, 6]]),
        ([0], [0, 1], 2, None, [[0], [1]]),
        ([3], [3], 2, None, [[3], [3]]),
    ],
)
def test_share(cores, threads, ranks, most, expected):
    assert share(cores, threads, ranks, most) == expected


class TestThisMachine:
    """The real questions, against what the operating system says."""

    def test_disk(self, tmp_path):
        machine = Machine(tmp_path / "not" / "yet", "serve")
        state = os.statvfs(tmp_path)
        assert machine.disk_free() == pytest.approx(state.f_bavail * state.f_frsize, rel=0.1)

    def test_what_the_workspace_takes_counts_in_blocks(self, tmp_path):
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "a").write_bytes(b"x" * 1_000_000)
        with (tmp_path / "weights" / "sparse").open("wb") as file:
            file.truncate(10**9)
        (tmp_path / "link").symlink_to("/")
        assert 1_000_000 <= Machine(tmp_path, "serve").disk_taken() < 1_100_000

    def test_limits(self, tmp_path):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        expected = None if hard == resource.RLIM_INFINITY else hard
        assert Machine(tmp_path, "serve").limit("nofile") == expected

    def test_programs(self, tmp_path, monkeypatch):
        program = tmp_path / "gcc"
        program.write_text("#!/bin/sh\necho 12.2.0\n")
        program.chmod(0o755)
        (tmp_path / "g++").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path))
        machine = Machine(tmp_path, "serve")
        assert machine.program("gcc") == str(program)
        assert machine.program("g++") is None
        assert machine.compiler_version(str(program)) == 12

    def test_a_program_that_is_no_compiler(self, tmp_path):
        program = tmp_path / "gcc"
        program.write_text("#!/bin/sh\necho what?; exit 1\n")
        program.chmod(0o755)
        assert Machine(tmp_path, "serve").compiler_version(str(program)) is None
        assert Machine(tmp_path, "serve").compiler_version("/nonexistent/gcc") is None

    def test_headers_are_looked_for_where_this_python_has_them(self, tmp_path):
        header = Machine(tmp_path, "serve").python_header
        assert header.name == "Python.h"
        assert f"python{sys.version_info.major}.{sys.version_info.minor}" in header.parent.name

    def test_the_port_names_its_holder(self, tmp_path):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            port = server.getsockname()[1]
            said = Machine(tmp_path, "serve").port_holder("127.0.0.1", port)
        assert said is not None
        assert str(os.getpid()) in said
        assert Machine(tmp_path, "serve").port_holder("127.0.0.1", port) is None

    def test_acs(self, tmp_path, monkeypatch):
        """A root port that redirects, a switch's port that does not, and the GPU below both; what
        only root may read is missing in the last."""
        monkeypatch.setattr("runbook.steps.preflight.machine.PCI_DEVICES", tmp_path / "bus")
        root = tmp_path / "pci0000:10" / "0000:10:01.0"
        port = root / "0000:11:00.0"
        card = port / "0000:12:00.0"
        card.mkdir(parents=True)
        (root / "config").write_bytes(configuration(0x1D))
        (port / "config").write_bytes(configuration(0x01))
        (card / "config").write_bytes(bytes(64))
        (tmp_path / "bus").mkdir()
        (tmp_path / "bus" / card.name).symlink_to(card)
        machine = Machine(tmp_path, "serve")
        assert machine.redirecting_bridges("00000000:12:00.0") == [root.name]
        (root / "config").write_bytes(configuration(0x1D)[:64])
        assert machine.redirecting_bridges("00000000:12:00.0") == []
        assert machine.redirecting_bridges("00000000:13:00.0") == []

    def test_xids(self, tmp_path):
        found = xids(Path(__file__).with_name("kmsg.txt"))
        assert [(one.bus, one.number) for one in found] == [
            ("0000:21:00", 31),
            ("0000:21:00", 79),
            ("0000:21:00", 154),
            ("0000:4b:00", 119),
        ]
        assert found[1].told == "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
        assert xids(tmp_path / "none") == []

    def test_iommu(self, tmp_path, monkeypatch):
        monkeypatch.setattr("runbook.steps.preflight.machine.PCI_DEVICES", tmp_path)
        for bus, kind in {"0000:11:00.0": "DMA-FQ", "0000:21:00.0": "identity"}.items():
            (tmp_path / bus / "iommu_group").mkdir(parents=True)
            (tmp_path / bus / "iommu_group" / "type").write_text(kind + "\n")
        machine = Machine(tmp_path, "serve")
        assert machine.iommu_translates("00000000:11:00.0")
        assert not machine.iommu_translates("00000000:21:00.0")
        assert not machine.iommu_translates("00000000:31:00.0")
