"""The book mtp-head's way on a tiny model served by real vLLM: a stripped base gets its head back.

The upstream head is stored as DeepSeek-V4 is released (FP4 experts, FP8 attention). The model is a
DeepSeek-V4 where the processor can serve one, else a DeepSeek-V3, as in the rehearsal.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from runbook.planning.context import StepContext
from runbook.process import stop_session
from runbook.protocol import StepFailure
from runbook.steps.checkpoint.lint import lint
from runbook.steps.checkpoint.targets import Target
from runbook.steps.common import http
from runbook.steps.mtp import Mtp
from runbook.steps.mtp.assemble import Assemble
from runbook.steps.mtp.capture import Capture
from runbook.steps.mtp.quantise import Quantise
from runbook.steps.publish import checkpoint as published
from runbook.steps.publish.checkpoint import v3, v4
from runbook.steps.publish.checkpoint.script import ANSWER
from tests.conftest import free_port
from tests.e2e.conftest import SERVES_V4

PORT = free_port()
CPU = "0.32.0-cpu"
RELEASE = os.environ.get("RUNBOOK_E2E_TARGET", CPU)
BUILD = {"target": RELEASE, "series": RELEASE}  # each release here has a series of its name
TARGET = Target(RELEASE, BUILD["series"])
"""What RUNBOOK_E2E_VLLM is, if it is another build, such as one for GPUs."""
ARGUMENTS = ["--max-model-len", "2048", "--max-num-seqs", "4"]
ARGUMENTS += ["--kv-cache-memory-bytes", "268435456"]
ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Variant:
    """`left`: what the linter says of the best that can be made for the CPU."""

    name: str
    module: Any
    prefix: str
    arguments: tuple[str, ...]
    env: dict[str, str]
    left: tuple[str, ...] = ()


V3 = Variant("v3", v3, "model.layers.3.mlp.experts", (), {"TRITON_INTERPRET": "0"})
V4 = Variant(
    "v4",
    v4,
    "mtp.0.ffn.experts",
    ("--tokenizer-mode", "deepseek_v4", "--kv-cache-dtype", "fp8", "--block-size", "256"),
    {},
    ("swiglu_clamp",),
)
VARIANT = V4 if SERVES_V4 else V3

pytestmark = pytest.mark.e2e


def upstream(folder: Path) -> Path:
    """The model with its head, as released."""
    if VARIANT is V4:
        published.write(folder, "v4", format="native")
        return folder
    folder.mkdir()
    published._save_shards(folder, v3.model(1), v3.head(1), "native")
    (folder / "config.json").write_text(json.dumps(v3.config(1)))
    return folder


def run(step, workspace: Path, **values) -> dict:
    ctx = StepContext(
        "s", SimpleNamespace(**step.Inputs(**values).model_dump()), workspace, out=None
    )
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok, check.reasons
    step.Outputs(**check.outputs)
    return dict(check.outputs)


@contextmanager
def served(vllm: str, model: str, log: Path) -> Iterator[str]:
    command = [vllm, "serve", model, "--host", "127.0.0.1", "--port", str(PORT)]
    command += ["--served-model-name", "m", "--enforce-eager", *ARGUMENTS, *VARIANT.arguments]
    command += ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}']
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, **ENV, **VARIANT.env},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if http.session(local=True).get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                pass
            time.sleep(1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            pass
        stop_session(process.pid, 10)


def accepted(url: str) -> tuple[str, int, int]:
    """The answer to one prompt, and the drafts it took: drafted, accepted."""

    def counters() -> list[int]:
        text = http.session(local=True).get(f"{url}/metrics").text
        names = ("num_draft_tokens", "num_accepted_tokens")
        return [
            int(sum(float(v) for v in re.findall(rf"^vllm:spec_decode_{n}_total{{.*}} (\S+)$",
                                                 text, re.MULTILINE)))
            for n in names
        ]  # fmt: skip

    before = counters()
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    body |= {"max_tokens": 64, "chat_template_kwargs": {"thinking": False}}
    session = http.session(local=True, timeout=300)
    answer = session.post(f"{url}/v1/chat/completions", json=body).json()
    drafted, taken = (b - a for a, b in zip(before, counters(), strict=True))
    return answer["choices"][0]["message"]["content"], drafted, taken


def same_inputs(python: str, native: str, moments: dict, tokens: dict) -> None:
    """The moments are those of the tokens, which another run of the server recorded."""
    assert moments["tokens"] == tokens["tokens"]
    script = Path(__file__).with_name("captures.py")
    command = [python, str(script), native, VARIANT.prefix, moments["path"], tokens["path"]]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(json.dumps(found))
    for expert in found:
        assert expert["count"][0] == expert["count"][1]
        assert expert["held"][0] == expert["held"][1]
        assert max(expert["difference"]) < 1e-3
    assert sum(sum(expert["held"]) for expert in found) > 0


def test_a_stripped_base_gets_its_head_back(tmp_path, vllm, torch_python):
    native = str(upstream(tmp_path / "upstream"))
    base = tmp_path / "base"
    published.write(base, VARIANT.name, head=False)
    assert "mtp_stripped" in {f.id for f in lint(base, TARGET)}
    work = tmp_path / "w"
    work.mkdir()
    common = {"python": torch_python, "device": "cpu"}
    common |= {"checkpoint": native, "prefix": VARIANT.prefix}
    rounded = run(Quantise(), work, **common, destination="rounded")
    assert rounded["rounded_to_nearest"] == rounded["tensors"] == 3 * VARIANT.module.EXPERTS
    sources = {
        "base": str(base),
        "upstream": native,
        "target": TARGET.release,
        "series": TARGET.series,
    }
    draft = run(Assemble(), work, **sources, quantised=rounded["path"], destination="draft")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Prompt number {i}\n" for i in range(24)))
    serving = {"vllm": vllm, "model": draft["path"], "prompts": str(prompts), "port": PORT}
    serving |= {"count": 16, "max_tokens": 48, "env": [ENV, VARIANT.env]}
    serving |= {"arguments": [*ARGUMENTS, *VARIANT.arguments]}
    serving |= {"checkpoint": native, "prefix": VARIANT.prefix}
    serving |= {"concurrency": 1}  # the order in which rows come decides which are held out
    captured = run(Capture(), work, **serving)
    assert captured["tokens"] > 16 * 10
    dumped = run(Capture(), work, **serving, record="tokens", destination="dumped")
    assert not list((work / "captures").glob("tokens-*"))
    same_inputs(torch_python, native, captured, dumped)
    elsewhere = {**serving, "prefix": "model.layers.9.mlp.experts", "count": 1}
    with pytest.raises(StepFailure) as failure:
        run(Capture(), work, **elsewhere, destination="failed")
    assert failure.value.code == "capture_failed"
    assert "no complete set of experts model.layers.9" in failure.value.cause
    made = run(
        Quantise(), work, **common, calibration=captured["path"], destination="q", threshold=1,
        unrouted="nearest",  # so few prompts need not reach all experts
    )  # fmt: skip
    print(json.dumps(made))
    head = run(Assemble(), work, **sources, quantised=made["path"], destination="assembled")
    final = run(Mtp(), work, source=head["path"], **BUILD)
    left = [f.id for f in lint(Path(final["path"]), TARGET) if f.severity != "info"]
    assert final["head"] and tuple(left) == (VARIANT.left if RELEASE == CPU else ())
    with served(vllm, final["path"], tmp_path / "server.log") as url:
        content, drafted, taken = accepted(url)
    assert content == "".join(ANSWER)
    # What the unquantised head would do, to the token.
    assert (drafted, taken) == VARIANT.module.SCRIPT.drafts(ANSWER)
