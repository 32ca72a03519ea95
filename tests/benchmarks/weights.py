"""The weights step against what people use: `hf download`, curl, sha256sum. One JSON line each.

    python tests/benchmarks/weights.py --gib 4 [--rounds 3] [--folder DIR]
    python tests/benchmarks/weights.py --only small --files 10000 [--rounds 3]

All tools fetch the same repository from one local server (sendfile, loopback), each in a process
of its own, timed from its start to its end; the rounds take turns, the medians are compared.
`curl` proves nothing and makes nothing durable, so it is also timed with what it would take to do
the same: sync and sha256sum. Xet's own client, hf_xet, is given its best case: the chunks lie in
its own local store on this disk and no network is in between. Times in seconds, rates in bytes per
second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runbook.process import Identity
from runbook.steps.common.stamp import Stamp
from runbook.steps.publish.repository import KIND, Repository

NAME = "runbook/benchmark"
FILES = 4
HF = Path(sys.executable).with_name("hf")


class Bench:
    def __init__(self, folder: Path, gib: float, small: int) -> None:
        """`small`: so many files of 1 kB instead of the tensors."""
        self.small = small
        self.folder = folder
        self.source = folder / "source"
        self.target = folder / "target"
        self.size = int(gib * 2**30) // FILES
        self.total = 0
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "RUNBOOK_"))},
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def prepare(self) -> None:
        """Random tensors, or small files, the manifest, the server."""
        self.source.mkdir(parents=True)
        for n in range(self.small):
            folder = self.source / f"{n // 500:03}"
            folder.mkdir(exist_ok=True)
            (folder / f"{n:05}.json").write_bytes(os.urandom(512).hex().encode())
        for n in range(0 if self.small else FILES):
            header = {"t": {"dtype": "U8", "shape": [self.size], "data_offsets": [0, self.size]}}
            raw = json.dumps(header).encode()
            with (self.source / f"model-{n + 1:05}-of-{FILES:05}.safetensors").open("wb") as file:
                file.write(struct.pack("<Q", len(raw)) + raw)
                left = self.size
                while left:
                    left -= file.write(os.urandom(min(left, 16 << 20)))
        repository = Repository.of(self.source, NAME)
        self.total = sum(f.size for f in repository.files)
        self.names = [f.path for f in repository.files]
        manifest, state = self.folder / "manifest.json", self.folder / "server.json"
        Stamp(KIND, made=repository.dump()).write(manifest)
        argv = [sys.executable, "-m", "runbook.steps.publish.server"]
        argv += ["--manifest", str(manifest), "--state", str(state)]
        self.log = (self.folder / "server.log").open("w")
        self.server = subprocess.Popen(argv, stderr=self.log)
        while not state.exists():
            time.sleep(0.05)
        told = json.loads(state.read_text())
        self.endpoint = f"http://127.0.0.1:{told['port']}"
        self.process = Identity.load(told["process"])

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        self.log.close()

    # What is compared

    def ours(self) -> list[str]:
        code = (
            "import sys, json; from pathlib import Path\n"
            "from runbook.planning.context import StepContext, namespace\n"
            "from runbook.steps.weights import Weights\n"
            "inputs = Weights.Inputs(repo=sys.argv[1], endpoint=sys.argv[2], link='none',\n"
            "                        destination=sys.argv[3]).model_dump(mode='json')\n"
            "Weights().apply(StepContext('weights', namespace(inputs), Path(sys.argv[3]).parent))\n"
        )
        return [sys.executable, "-c", code, NAME, self.endpoint, str(self.target)]

    def hf(self) -> list[str]:
        return [str(HF), "download", NAME, "--local-dir", str(self.target), "--quiet"]

    def curl(self) -> list[str]:
        argv = ["curl", "-sfL"]
        for name in self.names:
            url = f"{self.endpoint}/{NAME}/resolve/main/{name}"
            argv += ["--create-dirs", "-o", str(self.target / name), url]
        return argv

    def curl_and_prove(self) -> list[str]:
        script = '"$@" && sync -f "$0" && cd "$0" && sha256sum * > /dev/null'
        return ["sh", "-c", script, str(self.target), *self.curl()]

    def store(self) -> None:
        """Put the files into a local Xet store."""
        self.chunks = f"local://{self.folder / 'xet'}"
        paths = [str(self.source / name) for name in self.names]
        code = (
            "import sys, json, hf_xet\n"
            "made = hf_xet.upload_files(sys.argv[2:], sys.argv[1], None, None, None, None)\n"
            "print(json.dumps([[one.hash, one.file_size] for one in made]))\n"
        )
        (self.folder / "xet").mkdir()
        argv = [sys.executable, "-W", "ignore", "-c", code, self.chunks, *paths]
        done = subprocess.run(argv, env=self.environment, stdout=subprocess.PIPE, check=True)
        self.stored = json.loads(done.stdout)

    def xet(self) -> list[str]:
        code = (
            "import sys, json, hf_xet\n"
            "wanted = [hf_xet.PyXetDownloadInfo(*one) for one in json.loads(sys.argv[2])]\n"
            "hf_xet.download_files(wanted, sys.argv[1], None, None, None)\n"
        )
        paths = [str(self.target / name) for name in self.names]
        wanted = [[path, *one] for path, one in zip(paths, self.stored, strict=True)]
        return [sys.executable, "-W", "ignore", "-c", code, self.chunks, json.dumps(wanted)]

    def start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        environment = {**self.environment, "HF_ENDPOINT": self.endpoint}
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)

    def timed(self, argv: list[str]) -> float:
        began = time.perf_counter()
        process = self.start(argv)
        if process.wait():
            sys.exit(f"{argv[0]} failed")
        return time.perf_counter() - began

    def clean(self) -> None:
        shutil.rmtree(self.target, ignore_errors=True)
        shutil.rmtree(self.folder / "hf", ignore_errors=True)
        os.sync()

    def on_disk(self) -> int:
        """Bytes that were written under the target, finished or not."""
        return sum(path.stat().st_blocks * 512 for path in self.target.rglob("*") if path.is_file())

    def killed_at_half(self, argv: list[str]) -> tuple[float, float]:
        """Seconds until the kill, and of the run after it."""
        self.clean()
        began = time.perf_counter()
        process = self.start(argv)
        while process.poll() is None and self.on_disk() < self.total / 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return time.perf_counter() - began, self.timed(argv)


def say(**fields: object) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()}),
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parts = [transfers, kills, xet, verification, check, small]
    parser.add_argument("--only", choices=[part.__name__ for part in parts])
    parser.add_argument("--files", type=int, default=10_000, help="of 1 kB, for --only small")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="weights-", dir=options.folder))
    alone = options.only == small.__name__
    bench = Bench(folder, options.gib, options.files if alone else 0)
    try:
        bench.prepare()
        for part in parts:
            if options.only == part.__name__ or (options.only is None and part is not small):
                part(bench, options.rounds)
    finally:
        bench.close()
        shutil.rmtree(folder)


def transfers(bench: Bench, rounds: int) -> None:
    tools: dict[str, Callable[[], list[str]]] = {
        "runbook": bench.ours,
        "curl": bench.curl,
        "curl, sync, sha256sum": bench.curl_and_prove,
        "hf download": bench.hf,
    }
    compare_transfers(bench, rounds, tools)


def small(bench: Bench, rounds: int) -> None:
    """Many files of 1 kB, as datasets have them."""
    compare_transfers(bench, rounds, {"runbook": bench.ours, "hf download": bench.hf})


def compare_transfers(bench: Bench, rounds: int, tools: dict[str, Callable[[], list[str]]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, argv in tools.items():
            bench.clean()
            times[name].append(bench.timed(argv()))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        say(
            benchmark="throughput",
            tool=name,
            bytes=bench.total,
            seconds=[round(v, 3) for v in values],
            rate=bench.total / median[name],
            runbook_over_this=median[name] / median["runbook"],
        )


def kills(bench: Bench, rounds: int) -> None:
    compare_kills(bench, rounds, {"runbook": bench.ours(), "hf download": bench.hf()})


def xet(bench: Bench, rounds: int) -> None:
    """hf_xet from its local store against ranged HTTP from the server."""
    bench.store()
    tools = {"runbook": bench.ours, "hf_xet, local store": bench.xet}
    compare_transfers(bench, rounds, tools)
    compare_kills(bench, rounds, {"hf_xet, local store": bench.xet()})


def compare_kills(bench: Bench, rounds: int, tools: dict[str, list[str]]) -> None:
    for name, argv in tools.items():
        lost, share = [], []
        for _ in range(rounds):
            bench.clean()
            whole = bench.timed(argv)
            before, after = bench.killed_at_half(argv)
            lost.append(before + after - whole)
            share.append(lost[-1] / whole)
        say(
            benchmark="killed at 50 %",
            tool=name,
            lost_seconds=[round(v, 3) for v in lost],
            lost_share_of_a_whole_run=[round(v, 3) for v in share],
        )


def verification(bench: Bench, rounds: int) -> None:
    """The deep check against sha256sum on one core, and one sha256sum per core."""
    bench.clean()
    bench.timed(bench.ours())
    deep = bench.ours()
    deep[2] = deep[2].replace(
        "Weights().apply(StepContext('weights', namespace(inputs), Path(sys.argv[3]).parent))",
        "ctx = StepContext('weights', namespace(inputs), Path(sys.argv[3]).parent, deep=True)\n"
        "import time; began, cpu = time.perf_counter(), time.process_time()\n"
        "assert Weights().check(ctx).ok\n"
        "print(time.perf_counter() - began, time.process_time() - cpu)",
    )
    files = [str(bench.target / name) for name in bench.names]
    cores = os.cpu_count() or 1
    tools = {
        "runbook check --deep": deep,
        "sha256sum": ["sha256sum", *files],
        "sha256sum, one per core": ["sh", "-c",
            f'printf "%s\\0" "$@" | xargs -0 -n1 -P{cores} sha256sum', "-", *files],
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in tools}
    single = single_worked = 0.0
    worked = float("inf")
    for _ in range(rounds):
        rate, per_cpu = hashlib_rate(bench)
        single, single_worked = max(single, rate), max(single_worked, per_cpu)
        for name, argv in tools.items():
            if argv is deep:  # the check alone: an engine that runs it has started long ago
                told = subprocess.run(argv, env=bench.environment, capture_output=True, check=True)
                wall, cpu = map(float, told.stdout.split())
                times[name].append(wall)
                worked = min(worked, cpu)
            else:
                times[name].append(bench.timed(argv))
    # The best of the rounds: other programs on the machine only ever make it slower.
    best = {name: min(values) for name, values in times.items()}
    for name, values in times.items():
        say(
            benchmark="verify",
            tool=name,
            seconds=[round(v, 3) for v in values],
            rate=bench.total / best[name],
            runbook_over_this=best[name] / best["runbook check --deep"],
            share_of_cores_times_one_core=bench.total / best[name] / (cores * single),
        )
    # Free of what else runs on the machine: the same work per second of processor time.
    say(
        benchmark="verify, per second of processor time",
        rate=bench.total / worked,
        share_of_one_thread=bench.total / worked / single_worked,
    )


def check(bench: Bench, rounds: int) -> None:
    """The quick check of 146 GB in 300 (sparse) shards against as many stat(2)."""
    from types import SimpleNamespace

    from runbook.planning.context import StepContext
    from runbook.steps.common.hub.inventory import Inventory, Record
    from runbook.steps.common.hub.listing import Digest, Entry, Listing
    from runbook.steps.common.hub.step import wanted
    from runbook.steps.weights import Weights

    workspace = bench.folder / "sparse"
    folder = workspace / "weights" / "big"
    folder.mkdir(parents=True)
    digest = Digest("sha256", "0" * 64)
    entries = [
        Entry(f"model-{n:05}-of-00300.safetensors", 146 * 10**9 // 300, digest) for n in range(300)
    ]
    for entry in entries:
        with (folder / entry.path).open("wb") as file:
            file.truncate(entry.size)
    inputs = SimpleNamespace(
        repo="org/big",
        revision="main",
        files={"allow": [], "ignore": []},
        destination=None,
        verify="sha256",
        link="none",
    )
    context = StepContext("weights", inputs, workspace)
    records = {entry.path: Record.of(folder / entry.path, "downloaded", True) for entry in entries}
    Inventory(wanted(context), Listing("org/big", "0" * 40, tuple(entries)), records, True).save(
        folder
    )
    times: dict[str, list[float]] = {"runbook": [], "stat": []}
    for _ in range(10 * rounds):
        began = time.perf_counter()
        assert Weights().check(context).ok
        times["runbook"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for entry in entries:
            os.stat(folder / entry.path)
        times["stat"].append(time.perf_counter() - began)
    ours, stat = (statistics.median(values) for values in times.values())
    say(benchmark="quick check", files=len(entries), seconds=ours, over_stat=ours / stat)


def hashlib_rate(bench: Bench) -> tuple[float, float]:
    """Bytes per second, and per second of its processor time, that one thread hashes of a file
    in the page cache."""
    from runbook.steps.common.hub.digests import digest_of
    from runbook.steps.common.hub.listing import Digest, Entry

    path = bench.target / bench.names[0]
    size = path.stat().st_size
    entry = Entry(path.name, size, Digest("sha256", ""))
    began, cpu = time.perf_counter(), time.process_time()
    digest_of(path, entry)
    return size / (time.perf_counter() - began), size / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
