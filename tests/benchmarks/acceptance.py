"""What quantising an MTP head costs in accepted drafts: a trained tiny model, served by real vLLM.

    python tests/benchmarks/acceptance.py --vllm PROGRAM --work FOLDER

PROGRAM is the `vllm` of a patched CPU build. A DeepSeek-V3 language model with an MTP block is
trained (some minutes; FOLDER keeps the weights), written as an upstream release and as a quantised
base without its head, and taken through the steps capture, quantise, assemble and mtp once for each
way of quantising. Every head is served with the same base and asked the same held-out prompts,
greedily. Then the same heads are judged in torch at the same positions, which is what tells small
differences apart. Prints JSON lines:

- training, checkpoint: the model;
- quantised, errors: of the experts' outputs, on calibration and on held-out tokens;
- served: accepted drafts by vLLM's counters, beside what torch foretells for the same answers;
- model: how far torch and vLLM agree on the answers;
- offline, paired: drafts that hit, at all positions of the answers and of held-out text, and each
  head against others (exact McNemar test; intervals by bootstrap over prompts, 95 %);
- sampled: acceptance at temperature 1 on held-out text, and the divergence of each head.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import requests
import tiny_release as release

from runbook.planning.context import StepContext
from runbook.process import stop_session
from runbook.protocol import Step
from runbook.steps.common import http
from runbook.steps.mtp import Mtp
from runbook.steps.mtp.assemble import Assemble
from runbook.steps.mtp.capture import Capture
from runbook.steps.mtp.quantise import Quantise
from runbook.steps.publish.checkpoint import tokenizer

HERE = Path(__file__).parent
TARGET = {"target": "0.32.0-cpu", "series": "0.32.0-cpu"}
ARGUMENTS = ["--max-model-len", "1024", "--max-num-seqs", "4"]
ARGUMENTS += ["--kv-cache-memory-bytes", "268435456"]
ENV = {"TRITON_INTERPRET": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
LENGTH, TEXT = 96, 192
"""Characters of a prompt, and of a held-out text that is only judged."""
NEVER = 10**9
"""A threshold of tokens that no expert reaches: all are rounded to nearest."""
EXACT = "unquantised"
HEADS: dict[str, dict[str, Any]] = {
    "rtn": {"threshold": NEVER, "scale": "absmax"},
    "rtn mse": {"threshold": NEVER, "scale": "mse"},
    "gptq": {},
    "gptq signed": {"signed": True},
}
PAIRS = [(name, EXACT) for name in HEADS]
PAIRS += [("gptq", "rtn"), ("gptq", "rtn mse"), ("gptq signed", "rtn"), ("gptq signed", "gptq")]
RESAMPLES = 2000

Hits = list[list[int]]
"""For each prompt, by position: whether a draft is right."""


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def run(step: Step, workspace: Path, **values: Any) -> dict[str, Any]:
    """Apply a step unless it holds, as the engine would; returns its outputs."""
    inputs = SimpleNamespace(**step.Inputs(**values).model_dump())
    with (workspace / "steps.log").open("a") as log:
        ctx = StepContext(type(step).__name__, inputs, workspace, out=log)
        check = step.check(ctx)
        if not check.ok:
            step.apply(ctx)
            check = step.check(ctx)
    if not check.ok:
        sys.exit(f"{type(step).__name__}: {check.reasons}")
    return dict(check.outputs)


def trained(work: Path, python: str, texts: list[str], steps: int, seed: int) -> Path:
    """The weights, trained unless FOLDER has them."""
    model, text, vocabulary = work / "model.json", work / "train.txt", work / "tokenizer"
    release.describe(model)
    text.write_text("".join(texts))
    vocabulary.mkdir(exist_ok=True)
    tokenizer.write(vocabulary, release.BYTES, release.TEMPLATE)
    seen = hashlib.sha256(f"{steps} {seed}".encode())
    sources = HERE / "tiny_lm.py", HERE / "gptq_data.py", model, text
    for path in sources:
        seen.update(path.read_bytes())
    out = work / f"trained-{seen.hexdigest()[:16]}.npz"
    if not out.exists():
        command = [python, str(HERE / "tiny_lm.py"), str(model), str(text)]
        command += [str(vocabulary / "tokenizer.json"), str(out)]
        subprocess.run([*command, "--steps", str(steps), "--seed", str(seed)], check=True)
    return out


@contextmanager
def served(vllm: str, model: str, port: int, log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    if healthy(url):
        sys.exit(f"another server answers on port {port}")
    command = [vllm, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "m", "--enforce-eager", *ARGUMENTS]
    command += ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}']
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **ENV}, start_new_session=True
        )
    try:
        while not healthy(url):
            if server.poll() is not None:
                sys.exit(f"the server died:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            pass  # stop_session ends it
        stop_session(server.pid, 10)


def healthy(url: str) -> bool:
    try:
        return http.session(local=True).get(f"{url}/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def counters(client: requests.Session, url: str) -> tuple[int, int]:
    """Tokens that were drafted and accepted so far."""
    text = client.get(f"{url}/metrics").text
    names = "num_draft_tokens", "num_accepted_tokens"
    patterns = (rf"^vllm:spec_decode_{name}_total{{.*}} (\S+)$" for name in names)
    drafted, accepted = (
        int(sum(float(v) for v in re.findall(pattern, text, re.MULTILINE))) for pattern in patterns
    )
    return drafted, accepted


def ask(url: str, prompts: Sequence[str], tokens: int) -> list[dict[str, Any]]:
    """One prompt after the other: token ids of prompt and answer, drafted, accepted."""
    found = []
    body = {"model": "m", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body |= {"add_special_tokens": False, "return_token_ids": True}
    with http.session(local=True, timeout=300) as client:
        before = counters(client, url)
        for text in prompts:
            prompt = {"prompt": release.prompt(text)}
            response = client.post(f"{url}/v1/completions", json=body | prompt)
            response.raise_for_status()
            choice = response.json()["choices"][0]
            after = counters(client, url)
            line = {"prompt": choice["prompt_token_ids"], "answer": choice["token_ids"]}
            line |= {"drafted": after[0] - before[0], "accepted": after[1] - before[1]}
            found.append(line)
            before = after
    return found


def walk(hits: Sequence[int]) -> tuple[int, int]:
    """Drafted and accepted tokens of an answer with one draft a step: an accepted draft saves the
    step after it. `hits` are those for its second token and on."""
    at = drafted = accepted = 0
    while at < len(hits):
        drafted += 1
        accepted += hits[at]
        at += 1 + hits[at]
    return drafted, accepted


def interval(prompts: int, statistic: Callable[[Sequence[int]], float]) -> list[float]:
    """95 % by bootstrap over prompts of a statistic of their numbers."""
    chosen = random.Random(0)
    drawn = sorted(statistic(chosen.choices(range(prompts), k=prompts)) for _ in range(RESAMPLES))
    return [round(drawn[int(share * RESAMPLES)], 5) for share in (0.025, 0.975)]


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p of `one` and `other` discordant positions being equally likely."""
    total = one + other
    tail = sum(math.comb(total, k) for k in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**total)


def compare(on: str, hits: dict[str, Hits]) -> None:
    """Each head's share of right drafts, and heads in pairs, at the same positions `on` a text."""
    prompts = len(hits[EXACT])
    width = len(hits[EXACT][0])
    flat = {name: [hit for row in rows for hit in row] for name, rows in hits.items()}
    right = {name: [sum(row) for row in rows] for name, rows in hits.items()}

    def limits(statistic: Callable[[int], int]) -> list[float]:
        """Of the mean over all positions of what a prompt adds to it."""
        return interval(prompts, lambda chosen: sum(map(statistic, chosen)) / prompts / width)

    for name, counts in right.items():
        say(
            kind="offline",
            on=on,
            head=name,
            positions=prompts * width,
            rate=round(sum(counts) / prompts / width, 5),
            low_high=limits(counts.__getitem__),
        )
    for name, other in PAIRS:
        each = [a - b for a, b in zip(flat[name], flat[other], strict=True)]
        gained, lost = each.count(1), each.count(-1)
        differences = [a - b for a, b in zip(right[name], right[other], strict=True)]
        say(
            kind="paired",
            on=on,
            head=name,
            against=other,
            difference=round((gained - lost) / len(each), 5),
            low_high=limits(differences.__getitem__),
            gained=gained,
            lost=lost,
            p=round(mcnemar(gained, lost), 5),
        )


def distributions(found: dict[str, dict[str, list[float]]]) -> None:
    """What sampling at temperature 1 would accept on the texts, and how far each head's
    distribution is from that of the unquantised head."""
    for name, lists in found.items():
        sampled, divergence = lists["sampled"], lists["divergence"]
        lost = [a - b for a, b in zip(sampled, found[EXACT]["sampled"], strict=True)]
        fields: dict[str, object] = {"acceptance": round(fmean(sampled), 5)}
        for key, values in {"difference": lost, "divergence": divergence}.items():
            limits = interval(len(values), lambda chosen, v=values: fmean(v[i] for i in chosen))
            fields |= {key: round(fmean(values), 6), f"{key}_low_high": limits}
        say(kind="sampled", on="text", head=name, **fields)


def report_served(answers: dict[str, list[dict[str, Any]]], judged: dict[str, Hits]) -> None:
    for name, lines in answers.items():

        def share(chosen: Sequence[int], lines: list[dict[str, Any]] = lines) -> float:
            return sum(lines[i]["accepted"] for i in chosen) / sum(
                lines[i]["drafted"] for i in chosen
            )

        foretold = [walk(row) for row in judged[name]]
        say(
            kind="served",
            head=name,
            prompts=len(lines),
            drafted=sum(line["drafted"] for line in lines),
            accepted=sum(line["accepted"] for line in lines),
            acceptance=round(share(range(len(lines))), 5),
            low_high=interval(len(lines), share),
            same_answers=sum(
                a["answer"] == b["answer"] for a, b in zip(lines, answers[EXACT], strict=True)
            ),
            foretold=[sum(d for d, _ in foretold), sum(a for _, a in foretold)],
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the weights")
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--calibration", type=int, default=24, help="prompts")
    parser.add_argument("--held", type=int, default=128, help="held-out prompts")
    parser.add_argument("--asked", type=int, default=64, help="of them, asked of every head")
    parser.add_argument("--texts", type=int, default=512, help="held-out texts")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--port", type=int, default=8193)
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = str(Path(given.vllm).with_name("python"))
    texts, held = release.modules()
    weights = trained(work, python, texts, given.steps, given.seed)
    made = work / "made"
    upstream, base, exact = made / "upstream", made / "base", made / "exact"
    marker = made / "weights"
    if not marker.exists() or marker.read_text() != weights.name:
        shutil.rmtree(made, ignore_errors=True)
        parts, head = release.read_weights(weights)
        release.upstream(upstream, parts, head)
        release.base(base, parts)
        release.base(exact, parts, head)
        marker.write_text(weights.name)
    prompts = {
        "calibration": release.slices(texts, given.calibration, LENGTH, given.seed),
        "held_out": release.slices(held, given.held, LENGTH, given.seed),
    }
    for name, found in prompts.items():
        release.write_prompts(made / f"{name}.jsonl", found)

    quantise = {"python": python, "checkpoint": str(upstream), "prefix": release.EXPERTS}
    quantise |= {"device": "cpu"}
    sources = {"base": str(base), "upstream": str(upstream), **TARGET}
    rounded = run(Quantise(), made, **quantise, destination="rounded")
    draft = run(Assemble(), made, **sources, quantised=rounded["path"], destination="draft")
    captures = {}
    for name, found in prompts.items():
        captures[name] = run(
            Capture(),
            made,
            vllm=given.vllm,
            model=draft["path"],
            record="tokens",
            prompts=str(made / f"{name}.jsonl"),
            count=len(found),
            max_tokens=given.tokens,
            port=given.port,
            arguments=ARGUMENTS,
            env=[ENV],
            destination=f"captured-{name}",
        )["path"]
    heads = {EXACT: str(exact)}
    for name, options in HEADS.items():
        slug = name.replace(" ", "-")
        done = run(
            Quantise(),
            made,
            **quantise,
            **options,
            calibration=captures["calibration"],
            destination=f"quantised-{slug}",
        )
        say(kind="quantised", head=name, **{k: v for k, v in done.items() if k != "path"})
        put = run(
            Assemble(), made, **sources, quantised=done["path"], destination=f"assembled-{slug}"
        )
        final = run(Mtp(), made, source=put["path"], **TARGET, destination=f"model-{slug}")
        heads[name] = final["path"]

    asked = prompts["held_out"][:: given.held // given.asked]
    answers = {}
    for name, folder in heads.items():
        with served(given.vllm, folder, given.port, made / "server.log") as url:
            answers[name] = ask(url, asked, given.tokens)
        (made / "answers.json").write_text(json.dumps(answers))
    judge(
        python, made, heads, captures, answers, release.slices(held, given.texts, TEXT, given.seed)
    )


def judge(
    python: str,
    made: Path,
    heads: dict[str, str],
    captures: dict[str, str],
    answers: dict[str, list[dict[str, Any]]],
    texts: list[str],
) -> None:
    (made / "answers-exact.json").write_text(json.dumps(answers[EXACT]))
    (made / "texts.json").write_text(json.dumps(texts))
    task = {"heads": heads, "upstream": str(made / "upstream"), "captures": captures}
    task |= {"prefix": release.EXPERTS, "answers": str(made / "answers-exact.json")}
    task |= {"texts": str(made / "texts.json")}
    (made / "task.json").write_text(json.dumps(task))
    command = [python, str(HERE / "tiny_judge.py"), str(made / "task.json")]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    found: dict[str, dict[str, Any]] = {"served": {}, "text": {}}
    for line in map(json.loads, lines.splitlines()):
        if line["kind"] in found:
            found[line["kind"]][line["head"]] = line
        else:
            say(**line)
    hits = {on: {name: x["hits"] for name, x in lines.items()} for on, lines in found.items()}
    report_served(answers, hits["served"])
    for on, by_head in hits.items():
        compare(on, by_head)
    distributions(found["text"])


if __name__ == "__main__":
    main()
