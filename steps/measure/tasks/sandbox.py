"""Run a Python program that a model wrote: without network, in bounded time and memory, with one
folder that it can write to. Standard library only: it runs in whichever Python evaluates.

Linux keeps the bounds, no privilege is needed: Landlock lets nothing be written outside the folder,
a seccomp filter refuses sockets, signals to others and leaving the process group, resource limits
bound time, memory and files. What cannot be set up is an error, never a run without it.

Landlock: https://docs.kernel.org/userspace-api/landlock.html; seccomp:
https://docs.kernel.org/userspace-api/seccomp_filter.html; numbers of system calls: the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time

SECONDS = 10.0
MEMORY = 1 << 30
FILES = 16 << 20
"""Bytes that one file may come to."""

LANDLOCK = {"create_ruleset": 444, "add_rule": 445, "restrict_self": 446}
# By machine: AUDIT_ARCH, the numbers of what is refused (sockets, processes and their life and
# memory, and what would undo the rest) and that of clone, which makes threads and processes.
MACHINES = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "socketpair": 53, "fork": 57, "vfork": 58, "kill": 62, "ptrace": 101,
         "setpgid": 109, "setsid": 112, "mount": 165, "tkill": 200, "tgkill": 234,
         "unshare": 272, "setns": 308,
         "process_vm_writev": 311, "bpf": 321, "io_uring_setup": 425, "pidfd_send_signal": 424},
        56,
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "socketpair": 199, "kill": 129, "ptrace": 117, "setpgid": 154,
         "setsid": 157, "mount": 40, "tkill": 130, "tgkill": 131, "unshare": 97, "setns": 268,
         "process_vm_writev": 271, "bpf": 280, "io_uring_setup": 425, "pidfd_send_signal": 424},
        220,
    ),
}  # fmt: skip
WRITING = {1: 0b1111111110010, 2: 1 << 13, 3: 1 << 14}
"""Rights of Landlock that change something, by the version of its interface that brought them."""
X32 = 0x40000000
CLONE3, CLONE_THREAD = 435, 0x10000
EPERM, ENOSYS = 1, 38
NOT_KEPT = 97
"""Exit status of a program that was not begun, since the bounds cannot be kept."""


class Unavailable(Exception):
    """This machine cannot keep the bounds."""


def run(program: str, seconds: float = SECONDS) -> str:
    """ "" if the program comes to its end; else how it failed, in words. One that exits before its
    last line has failed. Raises Unavailable."""
    with tempfile.TemporaryDirectory(prefix="runbook-eval-") as folder:
        path = os.path.join(folder, "program.py")
        with open(path, "w") as file:
            file.write(program)
        began = time.monotonic()
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(__file__), folder, str(seconds), str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
            pass_fds=(writing,),
        )
        os.close(writing)
        try:
            _, said = process.communicate(timeout=2 * seconds)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            ended = os.read(reading, 2)
            os.close(reading)
    text = said.decode(errors="replace").strip()
    if process.returncode == NOT_KEPT and text.startswith("sandbox: "):
        raise Unavailable(text.removeprefix("sandbox: "))
    if process.returncode == 0 and ended == b"ok":
        return ""
    if process.returncode == -signal.SIGXCPU or time.monotonic() - began >= seconds:
        return f"timed out after {seconds:g} s"
    return text.splitlines()[-1][:300] if text else f"ended early, with {process.returncode}"


def _limit(seconds: float) -> None:
    whole = max(1, round(seconds))
    for what, most in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))


def _write_only_below(libc: ctypes.CDLL, folder: str) -> None:
    version = libc.syscall(LANDLOCK["create_ruleset"], None, 0, 1)
    if version < 1:
        raise Unavailable("the kernel has no Landlock (Linux 5.13 or later, and enabled)")
    rights = 0
    for since, bits in WRITING.items():
        rights |= bits if version >= since else 0
    held = ctypes.create_string_buffer(struct.pack("=Q", rights))
    rules = libc.syscall(LANDLOCK["create_ruleset"], held, 8, 0)
    if rules < 0:
        raise Unavailable(f"Landlock refuses its rules: {os.strerror(ctypes.get_errno())}")
    for path, allowed in ((folder, rights), ("/dev/null", 2)):
        where = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, where))
        if libc.syscall(LANDLOCK["add_rule"], rules, 1, rule, 0) != 0:
            raise Unavailable(f"Landlock refuses {path}: {os.strerror(ctypes.get_errno())}")
        os.close(where)
    if libc.syscall(LANDLOCK["restrict_self"], rules, 0) != 0:
        raise Unavailable(f"Landlock does not hold: {os.strerror(ctypes.get_errno())}")
    os.close(rules)


def _refuse_calls(libc: ctypes.CDLL) -> None:
    machine = platform.machine()
    if machine not in MACHINES:
        raise Unavailable(f"what to refuse is not known for {machine}")
    arch, numbers, clone = MACHINES[machine]
    load, equal, above, has, give = 0x20, 0x15, 0x35, 0x45, 0x06
    errno, allow, kill = 0x00050000, 0x7FFF0000, 0x80000000
    refuse = errno | EPERM
    names = sorted(numbers.values())
    code = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, arch),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (equal, 0, 4, clone),
        (load, 0, 0, 16),  # its flags: a thread is allowed
        (has, 0, 1, CLONE_THREAD),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
        (equal, 0, 1, CLONE3),
        (give, 0, 0, errno | ENOSYS),  # its flags are in memory; libraries then take clone
        (above, len(names) + 1, 0, X32),
    ]
    for n, number in enumerate(names):
        code.append((equal, len(names) - n, 0, number))
    code += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(len(code), ctypes.addressof(filters))
    if libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:  # PR_SET_SECCOMP, MODE_FILTER
        raise Unavailable(f"no seccomp filter: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    folder, seconds = sys.argv[1], float(sys.argv[2])
    libc = ctypes.CDLL(None, use_errno=True)
    with open(os.path.join(folder, "program.py")) as file:
        text = file.read()
    try:
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        _write_only_below(libc, folder)
        _refuse_calls(libc)
        _limit(seconds)
    except (Unavailable, OSError, ValueError) as problem:
        print(f"sandbox: {problem}", file=sys.stderr)
        sys.exit(NOT_KEPT)
    told = int(sys.argv[3])
    sys.argv = ["program.py"]
    exec(compile(text, "program.py", "exec"), {"__name__": "__main__"})
    os.write(told, b"ok")


if __name__ == "__main__":
    main()
