"""Where things are on the machine with the GPUs, and how programs are called there."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
STAGE = Path(os.environ.get("RUNBOOK_GPU_STAGE", "/tmp/runbook-gpu"))
MEMORY = Path(os.environ.get("RUNBOOK_GPU_MEMORY", "/dev/shm"))
ENVIRONMENT = STAGE / "env"
HOME = STAGE / "home"
"""The home folder of all that runs: what is compiled and cached lands in here."""
COMPILED = (
    *(Path("/tmp") / getpass.getuser() / name for name in ("cutlass_python_cache", "quack_cache")),
    Path(f"/tmp/torchinductor_{getpass.getuser()}"),
)
"""Where libraries put what they compile if nothing tells them otherwise, outside a home folder."""


SCRIPTS = {
    "vllm": "from vllm.entrypoints.cli.main import main",
    "runbook": "from runbook.__main__ import main",
}


ROOM, LAYER = 50 * 10**9, 37 * 10**8
"""Bytes that a workspace in memory must have free, and of one layer of a checkpoint."""


class Overdue(Exception):
    """A stage took longer than it may."""


def call(
    argv: list[Any],
    limit: float,
    *,
    check: bool = False,
    env: dict[str, str] | None = None,
    expected: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a program; end it and its children when it takes longer. What it says is shown if it
    fails, unless with the code `expected`."""
    words = [str(word) for word in argv]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said, _ = process.communicate()
        say(f"  {words[0]} was ended after {limit:.0f} s; it said: {said[-1500:]}")
        if check:
            raise Overdue(words[0]) from None
        return subprocess.CompletedProcess(words, -9, said)
    if process.returncode not in (0, expected) and (check or env is not None):
        say(f"  {' '.join(words[:3])} exits {process.returncode}: {said[-3000:]}")
    if check and process.returncode:
        raise SystemExit(f"{words[0]} failed")
    return subprocess.CompletedProcess(words, process.returncode, said)


def environment() -> dict[str, str]:
    """That of this machine, with a home of its own, and NVLink multicast off in every library:
    it can put the GPUs of a shared host out of service."""
    return os.environ | {
        "HOME": str(HOME),
        "XDG_CACHE_HOME": str(HOME / ".cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(HOME / ".cache/torchinductor"),
        "PATH": f"{ENVIRONMENT}/bin:{os.environ['PATH']}",
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
    }


def unpack(parts: Path, call: Callable[..., Any]) -> None:
    """A virtual environment with the staged packages before those of this machine's PyTorch."""
    done = ENVIRONMENT / ".ready"
    if done.exists():
        return
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    call([sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT], 60, check=True)
    (site,) = (ENVIRONMENT / "lib").glob("python3.*/site-packages")
    pieces = sorted(parts.glob("part.*"))
    if not pieces:
        raise SystemExit(f"there are no parts in {parts}")
    command = f"cat {' '.join(map(str, pieces))} | xz -dc -T0 | tar -C {site} -xf -"
    call(["bash", "-o", "pipefail", "-c", command], 180, check=True)
    parent = site_packages(sys.executable)
    # After the staged packages in the order of import, its own .pth files included.
    (site / "zz-parent.pth").write_text(f"import site; site.addsitedir({str(parent)!r})\n")
    (site / "runbook.pth").write_text(f"{PROJECT}\n")
    for name, line in SCRIPTS.items():
        script = ENVIRONMENT / "bin" / name
        # Guarded, since the engine's processes are spawned: they import this file again.
        guarded = 'if __name__ == "__main__":\n    sys.exit(main())\n'
        text = f"#!{ENVIRONMENT}/bin/python\nimport sys\n\n{line}\n\n{guarded}"
        script.write_text(text)
        script.chmod(0o755)
    compile_all = [ENVIRONMENT / "bin/python", "-m", "compileall", "-q", "-j", "0"]
    compile_all += ["-x", "flashinfer/data/", site]
    call(compile_all, 90)
    done.touch()


def workspace(size: str, checkpoint: Path, layers: int) -> Path:
    """Where it is: in memory if that has room for the kernels' own checkpoint, 27 GB, too."""
    places = [folder / f"runbook-workspace-{size}" for folder in (MEMORY, STAGE)]
    wanted = ROOM + (0 if checkpoint.exists() else layers * LAYER)
    enough = shutil.disk_usage(MEMORY).free > wanted
    return next((place for place in places if place.exists()), places[0 if enough else 1])


def site_packages(python: str) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", code], text=True).strip())


def last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")[:200]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
