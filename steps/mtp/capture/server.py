"""The server whose block is captured: vLLM with a plugin that needs no installation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Context
from runbook.steps.mtp.capture import plugin

if TYPE_CHECKING:
    from runbook.steps.common.starting.vllm import Startup

NAME = "capture"
HOST = "127.0.0.1"
SERVER = "server"
"""The folder of the service, whose record ends a server that outlived its capture."""
ENTRY = "[vllm.general_plugins]\nrunbook_capture = runbook_capture:register\n"
STOP_GRACE = 60.0
START_DEADLINE = 3600.0


def _plugin(folder: Path) -> Path:
    """A folder that, on PYTHONPATH, makes the plugin known to vLLM without installing it, and
    what it needs to compute moments."""
    made = folder / "plugin"
    about = made / "runbook_capture-1.dist-info"
    about.mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copyfile(here / "plugin.py", made / "runbook_capture.py")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(here.parent / "retrofit", made / "mtp_retrofit", ignore=ignored)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: runbook-capture\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY)
    return made


@contextmanager
def served(ctx: Context, folder: Path, raw: Path) -> Iterator[Startup]:
    """The model served eagerly with the plugin, once it is healthy."""
    from runbook.steps.common import endpoint, service
    from runbook.steps.common.starting.vllm import Startup

    server = None
    try:
        running = service.start(folder / SERVER, _spec(ctx, raw))
        server = Startup(ctx, running, START_DEADLINE)
        ctx.log("$ " + " ".join(running.spec["argv"]))
        server.until(lambda: endpoint.health(HOST, ctx.inputs.port) == "healthy")
        yield server
    finally:
        if server is not None:
            server.close()
        stop_left(ctx, folder)


def _spec(ctx: Context, raw: Path) -> dict[str, Any]:
    """How the server is started: eagerly, drafting, with the plugin on its path."""
    from runbook.steps.common import jit

    given = ctx.inputs
    argv = [given.vllm, "serve", given.model, "--host", HOST, "--port", str(given.port)]
    argv += ["--served-model-name", NAME, "--enforce-eager"]
    argv += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": 1})]
    argv += [str(argument) for argument in given.arguments]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    for values in given.env:
        environment.update(values)
    python_path = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
    folders = [str(_plugin(raw)), *([python_path] if python_path else [])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    environment[plugin.FOLDER] = str(raw)
    kernels = jit.environment(ctx, given.build)
    return {
        "argv": argv,
        "env": environment,
        "base_env": kernels,
        "path": list(given.path),
        "trusted_code": given.trusted_code,
    }


def stop_left(ctx: Context, folder: Path) -> None:
    """End the server, also that of a capture that was killed: it holds the port, and the GPUs'
    memory."""
    from runbook.steps.common.service import Service

    left = Service.load(folder / SERVER)
    if left is not None and left.members():
        ctx.log(f"stop the server, process {left.process.pid}")
        left.stop(STOP_GRACE)
