"""The real program without its start: a process that has all of it imported forks one for each
call, which goes on as `python -m runbook` would. A start takes longer than most of what is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path


class Warm:
    """Runs calls one after another; the process behind it begins with the first and ends with
    this one's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with its output captured. Calls of other threads meanwhile start
        programs of their own."""
        if not self._lock.acquire(blocking=False):
            argv = [sys.executable, "-m", "runbook", *arguments]
            return subprocess.run(
                argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout
            )
        try:
            return self._run(arguments, env, cwd, timeout)
        finally:
            self._lock.release()

    def _run(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        if self._connection is None:
            self._connection = _begin()
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            self._connection.send((list(arguments), dict(env), str(cwd), str(out), str(err)))
            pid = self._connection.recv()
            if not self._connection.poll(timeout):
                os.kill(pid, 9)
                self._connection.recv()
                raise subprocess.TimeoutExpired(list(arguments), timeout, out.read_bytes())
            code = self._connection.recv()
            return subprocess.CompletedProcess(
                list(arguments), code, out.read_text(), err.read_text()
            )


def _begin() -> Connection:
    ours, theirs = Pipe()
    # -P: beside this file there is a folder `runbook`, of tests.
    subprocess.Popen(
        [sys.executable, "-P", __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return ours


def _serve(connection: Connection) -> None:
    _import()
    while True:
        try:
            arguments, env, cwd, out, err = connection.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            os._exit(_become(arguments, env, cwd, out, err))
        connection.send(pid)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _import() -> None:
    """What verbs import on their way, but for steps: these may look at the environment then."""
    import gc
    import importlib
    import pkgutil

    import runbook

    for name in ("pydantic", "yaml", "jinja2", "click", "json", "subprocess", "difflib", "typing"):
        importlib.import_module(name)
    for layer in ("document", "state", "planning", "execution", "cli"):
        package = importlib.import_module(f"runbook.{layer}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name != "runbook.cli.mcp":  # an extra
                importlib.import_module(module.name)
    assert runbook.__version__
    gc.freeze()


def _become(arguments: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> int:
    import atexit
    import traceback

    for path, descriptor in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["runbook", *arguments]
    try:
        from runbook.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
