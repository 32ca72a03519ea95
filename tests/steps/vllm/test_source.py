"""`mode: source` with a small project: its own build backend, real ninja, real compiler."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import threading
import time

import pytest

from runbook.protocol import StepFailure
from runbook.steps.vllm import Vllm
from runbook.steps.vllm.compile import build_environment, default_jobs

from .test_kills import start

pytestmark = [
    pytest.mark.harness,
    pytest.mark.skipif(
        not (shutil.which("ninja") and shutil.which("gcc")), reason="needs ninja and gcc"
    ),
]
STEP = Vllm()
COMMIT = "ab" * 20
OBJECTS = 6
BACKEND = '''
"""A build backend (PEP 517) that compiles with ninja, in place, as vLLM's does."""
import base64, hashlib, json, os, subprocess, zipfile
from pathlib import Path

NAMES = [path.stem for path in sorted(Path("csrc").glob("*.c"))]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    build = Path("build")
    build.mkdir(exist_ok=True)
    objects = [f"build/{name}.o" for name in NAMES]
    rules = ["rule cc", "  command = gcc -fPIC -O1 -c $in -o $out",
             "rule ld", "  command = gcc -shared $in -o $out"]
    rules += [f"build build/{name}.o: cc csrc/{name}.c" for name in NAMES]
    rules += ["build build/_C.abi3.so: ld " + " ".join(objects), ""]
    Path("build.ninja").write_text("\\n".join(rules))
    subprocess.check_call(["ninja", "-j", os.environ["MAX_JOBS"]])
    version = os.environ["VLLM_VERSION_OVERRIDE"]
    info = f"vllm-{version}.dist-info"
    files = {str(p): p.read_bytes() for p in sorted(Path("vllm").glob("*.py"))}
    files["vllm/_version.py"] = (
        f"__version__ = version = {version!r}\\n__version_tuple__ = version_tuple = (1,)\\n"
    ).encode()
    files["vllm/_C.abi3.so"] = Path("build/_C.abi3.so").read_bytes()
    keep = ("MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "FLAVOUR")
    files["vllm/environ.json"] = json.dumps(
        {key: os.environ.get(key) for key in keep}).encode()
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.4\\nName: vllm\\nVersion: {version}\\nRequires-Dist: tiny-dep\\n"
    ).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n")
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\\nvllm = vllm.cli:main\\n"
    name = f"vllm-{version}-py3-none-any.whl"
    record = ""
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            record += f"{path},sha256={digest.decode()},{len(data)}\\n"
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\\n")
    return name
'''
CSRC = """diff --git a/csrc/f0.c b/csrc/f0.c
--- a/csrc/f0.c
+++ b/csrc/f0.c
@@ -1,2 +1,2 @@
-int f0(void) {{ return 0; }}
+int f0(void) {{ return {value}; }}
 int g0[1];
"""


def pack(members, commit=COMMIT) -> bytes:
    out = io.BytesIO()
    headers = {"comment": commit} if commit else {}
    with tarfile.open(
        fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers=headers
    ) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"vllm-{COMMIT[:7]}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return out.getvalue()


def members(world):
    from .conftest import CLI

    return {
        "pyproject.toml": '[build-system]\nrequires = ["tiny-dep"]\nbuild-backend = "backend"\n'
        'backend-path = ["."]\n[project]\nname = "vllm"\ndynamic = ["version"]\n',
        "backend.py": BACKEND,
        "vllm/__init__.py": "from vllm._version import __version__\n",
        "vllm/cli.py": CLI,
        "vllm/model.py": "LIMIT = 1\nOTHER = 2\n",
        "vllm/gpu.py": 'DEVICE = "gpu"\nNAME = __name__\n',
        **{
            f"csrc/f{i}.c": f"int f{i}(void) {{ return {i}; }}\nint g{i}[1];\n"
            for i in range(OBJECTS)
        },
    }


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive; `cut` bytes into an answer it hangs up, once."""

    def __init__(self, data: bytes, cut: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.cut = data, cut
        self.asked: list[str | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{commit}}.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        if COMMIT not in self.path:
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        data = self.server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(data[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def project(world):
    (world.target / "3.patch").write_text(patch_of_csrc(10))
    with (world.target / "series.yaml").open("a") as listing:
        listing.write("  - {file: 3.patch}\n")
    dependency = (world.root / "l.txt").read_text()
    (world.root / "b.txt").write_text(dependency)
    world.edit_lock(build_requirements="b.txt", wheels={}, local="mtp")
    world.archive = pack(members(world))
    return world


def patch_of_csrc(value):
    from .conftest import PATCH

    header = PATCH.format(id="csrc").replace("vllm/model.py", "csrc/f0.c").replace("LIMIT", "f0")
    return header + CSRC.format(value=value)


def context(world, location, workspace="ws", data=None, **more):
    source = {
        "repository": "https://git.example/vllm",
        "commit": COMMIT,
        "archive": str(location),
        "archive_sha256": hashlib.sha256(data or world.archive).hexdigest(),
        "version": "1.2.0",
        **more,
    }
    return world.context(workspace, mode="source", source=source)


def local(world):
    path = world.root / "source.tar.gz"
    path.write_bytes(world.archive)
    return path


def call(outputs, function):
    code = f"import ctypes, vllm; print(ctypes.CDLL(vllm.__path__[0]+'/_C.abi3.so').{function}())"
    return subprocess.check_output([outputs["python"], "-c", code], text=True).strip()


def test_a_pinned_source_is_compiled_and_installed(project):
    server = Server(project.archive)
    ctx = context(
        project, server.address, jobs=2, arch_list="12.0", cuda_home="/cuda", env={"FLAVOUR": "x"}
    )
    STEP.apply(ctx)
    check = STEP.check(ctx)
    assert check.ok, check.reasons
    outputs = Vllm.Outputs(**check.outputs).model_dump()
    assert outputs["vllm_version"] == f"1.2.0+mtp.{outputs['patch_digest'][:8]}"
    assert call(outputs, "f0") == "10", "patched C"
    assert call(outputs, "f5") == "5"
    code = "import vllm, vllm.model as m; print(vllm.__version__, m.LIMIT)"
    said = subprocess.check_output([outputs["python"], "-c", code], text=True)
    assert said.split() == [outputs["vllm_version"], "10"]
    site = next((ctx.workspace / "venv" / "lib").glob("*/site-packages"))
    assert json.loads((site / "vllm" / "environ.json").read_text()) == {
        "MAX_JOBS": "2",
        "TORCH_CUDA_ARCH_LIST": "12.0",
        "CUDA_HOME": "/cuda",
        "FLAVOUR": "x",
    }
    compiled = [(done, total) for done, total, unit, _ in project.progress if unit == "objects"]
    assert compiled[-1] == (OBJECTS + 1, OBJECTS + 1)
    assert not list(ctx.workspace.glob("build.*"))
    ctx.deep = True
    assert STEP.check(ctx).ok


def test_same_source_in_another_workspace_compiles_nothing(project):
    archive = local(project)
    STEP.apply(context(project, archive))
    archive.unlink()
    ctx = context(project, archive, "other")
    STEP.apply(ctx)
    assert "was built before" in ctx.out.getvalue()
    assert STEP.check(ctx).ok


def test_broken_download_goes_on(project):
    half = len(project.archive) // 2
    server = Server(project.archive, cut=half)
    with pytest.raises(StepFailure) as caught:
        STEP.apply(context(project, server.address))
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)
    STEP.apply(context(project, server.address))
    assert server.asked == [None, f"bytes={half}-"]


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda w: {"data": b"other"}, "archive_mismatch"),
        (lambda w: {"location": "/nowhere.tar.gz"}, "archive_missing"),
        (lambda w: setattr(w, "archive", b"no archive"), "archive_malformed"),
        (lambda w: setattr(w, "archive", pack(members(w), "cd" * 20)), "commit_mismatch"),
        (lambda w: setattr(w, "archive", pack({**members(w), "csrc/f0.c": "int f0;\n"})),
         "patch_conflict"),
        (lambda w: setattr(w, "archive", pack({**members(w), "csrc/f1.c": "int f1(\n"})),
         "compile_failed"),
        (lambda w: w.edit_lock(build_requirements=None), "build_not_locked"),
    ],
)  # fmt: skip
def test_failures_say_what_to_do(project, break_it, code):
    more = break_it(project) or {}
    location = more.pop("location", None) or local(project)
    ctx = context(project, location, **more)
    with pytest.raises(StepFailure) as caught:
        STEP.apply(ctx)
    assert caught.value.code == code
    assert caught.value.remedy
    if code == "compile_failed":
        assert "f1.c" in caught.value.cause


def test_refused_address(project):
    server = Server(project.archive)
    with pytest.raises(StepFailure) as caught:
        STEP.apply(context(project, server.address.replace("{commit}", "other")))
    assert caught.value.code == "not_found"
    assert not caught.value.retryable


def test_without_memory_fewer_jobs_are_named(project):
    shim = project.root / "shim"
    shim.mkdir()
    (shim / "gcc").write_text("#!/bin/sh\nkill -9 $$\n")
    (shim / "gcc").chmod(0o755)
    (shim / "sh").write_text("")
    ctx = context(project, local(project), jobs=4, path=[str(shim)])
    with pytest.raises(StepFailure) as caught:
        STEP.apply(ctx)
    assert caught.value.code == "out_of_memory"
    assert "`source.jobs` to 2" in str(caught.value.remedy)


def test_killed_compile_goes_on(project):
    """Kill it when some objects are there: those are not compiled again."""
    slow = members(project)
    for i in range(OBJECTS):
        table = ",".join(str(n) for n in range(150_000))
        slow[f"csrc/f{i}.c"] += f"const int t{i}[] = {{{table}}};\n"
    project.archive = pack(slow)
    ctx = context(project, local(project), jobs=1)
    seed = random.SystemRandom().randrange(2**32)
    wanted = random.Random(seed).randint(1, 3)
    process = start(ctx, project.root / "log")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        objects = list(ctx.workspace.glob("build.*/src/build/*.o"))
        if len(objects) > wanted:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    # ninja takes the one that was being written as not done.
    before = {path.name: path.stat().st_mtime_ns for path in objects[:wanted]}
    done = sorted(before, key=lambda name: before[name])[:wanted]
    STEP.apply(ctx)
    assert STEP.check(ctx).ok
    totals = [total for _, total, unit, _ in project.progress if unit == "objects"]
    assert totals[-1] <= OBJECTS + 1 - len(done), seed


@pytest.mark.parametrize(
    ("gib", "cores", "jobs"), [(3, 16, 1), (20, 16, 2), (32, 16, 3), (64, 64, 7), (512, 8, 8)]
)
def test_jobs_come_from_memory(gib, cores, jobs):
    assert default_jobs(gib << 30, cores) == jobs


def test_build_environment(tmp_path):
    source = {
        "env": {"PATH": "/given", "NVCC_THREADS": "2"},
        "cuda_home": "/cuda",
        "path": ["/gcc/bin"],
        "arch_list": None,
        "version": "1.2.3",
    }
    env = build_environment(source, tmp_path, 3, {"PATH": "/usr/bin"})
    assert env["PATH"] == f"{tmp_path}/venv/bin:/cuda/bin:/gcc/bin:/given"
    assert (env["MAX_JOBS"], env["NVCC_THREADS"]) == ("3", "2")
    assert "TORCH_CUDA_ARCH_LIST" not in env
