"""What the checks look at, each part gathered when first asked for."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.process import session_members
from runbook.steps.common import facts
from runbook.steps.common.service import Service

if TYPE_CHECKING:
    from runbook.steps.preflight.kernel_log import Xid

PCI_DEVICES = Path("/sys/bus/pci/devices")
SCANNED_ENTRIES = 20_000
LOGIND = Path("/etc/systemd/logind.conf")
LINGER = Path("/var/lib/systemd/linger")


def _device(bus: str) -> Path:
    """The device of sysfs; NVML writes the domain with eight digits, the kernel with four."""
    domain, _, rest = bus.lower().partition(":")
    return PCI_DEVICES / f"{domain[-4:]}:{rest}"


class Machine:
    """This machine, seen from a workspace."""

    def __init__(self, workspace: Path, service: str) -> None:
        self.workspace = workspace
        self.service = service

    @cached_property
    def nvidia(self) -> dict[str, Any]:
        return facts.nvidia()

    @cached_property
    def gpu_load(self) -> list[dict[str, Any]]:
        return facts.gpu_load()

    @cached_property
    def cpu(self) -> dict[str, Any]:
        return facts.cpu()

    @cached_property
    def cores(self) -> list[int]:
        return facts.physical_cores()

    @property
    def threads(self) -> list[int]:
        return sorted(os.sched_getaffinity(0))

    @cached_property
    def memory(self) -> dict[str, int]:
        return facts.memory()

    @cached_property
    def own_server(self) -> Service | None:
        """Our own server of this workspace, if it runs."""
        running = Service.load(self.workspace / self.service)
        return running if running is not None and running.alive() else None

    @cached_property
    def own_pids(self) -> frozenset[int]:
        if self.own_server is None:
            return frozenset()
        return frozenset(session_members(self.own_server.process.pid))

    def disk_free(self) -> int:
        """Bytes this user may still write where the workspace is or will be."""
        folder = self.workspace
        while not folder.exists():
            folder = folder.parent
        state = os.statvfs(folder)
        return state.f_bavail * state.f_frsize

    def disk_taken(self) -> int:
        """Bytes the workspace takes already: a lower bound, as the scan goes breadth first and
        ends after `SCANNED_ENTRIES`. Large files lie near the top, so it misses little."""
        folders = [self.workspace]
        total = seen = 0
        for folder in folders:  # grows while we go
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    # Blocks, not length: a download under way may be a sparse file.
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
            seen += len(entries)
            if seen > SCANNED_ENTRIES:
                break
        return total

    def shm_size(self) -> int | None:
        try:
            state = os.statvfs("/dev/shm")
        except OSError:
            return None
        return state.f_blocks * state.f_frsize

    def iommu_translates(self, bus: str) -> bool:
        """Whether the device's IOMMU group remaps addresses (type `DMA...`) and does not pass
        them through (`identity`, as with iommu=pt); see the kernel's
        Documentation/ABI/testing/sysfs-kernel-iommu_groups. `bus` is as NVML writes it."""
        kind = _device(bus) / "iommu_group" / "type"
        try:
            return kind.read_text().startswith("DMA")
        except OSError:
            return False  # no IOMMU, or not for this device

    def redirecting_bridges(self, bus: str) -> list[str]:
        """The bridges above the device that send peers' requests through the host, by address."""
        from runbook.steps.preflight.bridges import redirecting

        return redirecting(_device(bus))

    def xids(self) -> list[Xid]:
        """The errors of GPUs that the driver told of since the machine was started."""
        from runbook.steps.preflight.kernel_log import xids

        return xids()

    def limit(self, kind: str) -> int | None:
        """The hard limit `nofile` or `memlock` of this process; None means unlimited. A service
        may raise its soft limit up to the hard one."""
        import resource

        number = {"nofile": resource.RLIMIT_NOFILE, "memlock": resource.RLIMIT_MEMLOCK}[kind]
        _, hard = resource.getrlimit(number)
        return None if hard == resource.RLIM_INFINITY else hard

    def program(self, name: str) -> str | None:
        """The path of a program on PATH (as shutil.which finds it, at a tenth of its import)."""
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            path = os.path.join(folder or ".", name)
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return path
        return None

    def compiler_version(self, path: str) -> int | None:
        """Major version of a gcc; None if it does not say. Runs it."""
        import subprocess

        try:
            said = subprocess.run(
                [path, "-dumpversion"], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        major = said.stdout.strip().partition(".")[0]
        return int(major) if said.returncode == 0 and major.isdigit() else None

    @property
    def python(self) -> tuple[int, int]:
        return sys.version_info[:2]

    @property
    def python_header(self) -> Path:
        """Where Python.h of this interpreter is, if its headers are installed."""
        major, minor = self.python
        include = Path(sys.base_prefix) / "include" / f"python{major}.{minor}{sys.abiflags}"
        return include / "Python.h"

    def port_holder(self, host: str, port: int) -> str | None:
        """Who keeps a port from us, in words; None if it is free or our own server's."""
        from runbook.steps.common import ports

        if self.own_server is not None and self.own_server.spec.get("port") == port:
            return None
        if not ports.in_use(host, port):
            return None
        return str(ports.holder(port) or "another process")

    def owner(self, pid: int) -> str:
        """A process in words: number, program and user, as far as they can be read."""
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            user = Path(f"/proc/{pid}").owner()
        except (OSError, KeyError):
            return str(pid)
        return f"{pid} ({name} of {user})"

    def nvidia_cards(self) -> list[str]:
        """The PCI addresses of NVIDIA's display controllers, whoever drives them."""
        found = []
        for device in sorted(PCI_DEVICES.glob("*")):
            try:
                vendor = (device / "vendor").read_text().strip()
                kind = (device / "class").read_text().strip()
            except OSError:
                continue
            if vendor == "0x10de" and kind.startswith("0x03"):
                found.append(device.name)
        return found

    def module_loaded(self, name: str) -> bool:
        try:
            lines = Path("/proc/modules").read_text().splitlines()
        except OSError:
            return False
        return any(line.partition(" ")[0] == name for line in lines)

    def module_flavour(self) -> str:
        """Which of NVIDIA's kernel modules is loaded: `open` or `proprietary`."""
        try:
            said = Path("/proc/driver/nvidia/version").read_text()
        except OSError:
            return "unknown"
        return "open" if "Open Kernel Module" in said else "proprietary"

    def secure_boot(self) -> bool:
        """Whether the firmware lets only signed kernel code run (the variable's last byte)."""
        for variable in Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"):
            try:
                return variable.read_bytes()[-1:] == b"\x01"
            except OSError:
                return False
        return False

    def wsl(self) -> bool:
        try:
            return "microsoft" in Path("/proc/version").read_text().lower()
        except OSError:
            return False

    def container(self) -> str | None:
        """The kind of container this is, by the marks that its makers leave; None outside."""
        for mark, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
            if Path(mark).exists():
                return name
        return None

    def logout_kills(self) -> bool:
        """Whether logind ends this user's processes at log-out: later files win, as in
        logind.conf(5)."""
        value = "no"
        for file in (LOGIND, *sorted(LOGIND.with_name("logind.conf.d").glob("*.conf"))):
            try:
                lines = file.read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                key, _, given = line.partition("=")
                if key.strip() == "KillUserProcesses":
                    value = given.strip().lower()
        return value in ("yes", "true", "1", "on") and not self._lingers()

    def _lingers(self) -> bool:
        import pwd

        try:
            return (LINGER / pwd.getpwuid(os.getuid()).pw_name).exists()
        except KeyError:
            return False
