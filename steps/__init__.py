"""The kinds of step that runbook ships, by the name that `uses:` gives them."""

from pathlib import Path
from typing import Any

STEPS = {
    "collectives": "runbook.steps.collectives:Collectives",
    "kernels": "runbook.steps.kernels:Kernels",
    "mtp": "runbook.steps.mtp:Mtp",
    "mtp-assemble": "runbook.steps.mtp.assemble:Assemble",
    "mtp-capture": "runbook.steps.mtp.capture:Capture",
    "mtp-prompts": "runbook.steps.mtp.prompts:Prompts",
    "mtp-quantise": "runbook.steps.mtp.quantise:Quantise",
    "preflight": "runbook.steps.preflight:Preflight",
    "publish": "runbook.steps.publish:Publish",
    "serve": "runbook.steps.serve:Serve",
    "smoke": "runbook.steps.smoke:Smoke",
    "toolkit": "runbook.steps.toolkit:Toolkit",
    "vllm": "runbook.steps.vllm:Vllm",
    "weights": "runbook.steps.weights:Weights",
}

MODEL = "model"
ROLES = {MODEL: ("mtp", "mtp-assemble", "weights")}
"""Kinds that do the same for a book, by what it is: a remedy may name that in place of a kind. The
nearest before the step that failed is meant: of a book without a mended model that which fetches
it."""

FACTS = {
    "cpu": "runbook.steps.common.facts:cpu",
    "gpu_links": "runbook.steps.common.facts:gpu_links",
    "gpus": "runbook.steps.common.facts:gpus",
    "memory": "runbook.steps.common.facts:memory",
}

# Given a kind of step, the text of a log and the facts of the machine: the known failure that it
# shows, or None.
DIAGNOSE = "runbook.steps.common.diagnoses:diagnose"

# Given the text of a log: its first error, which says itself as text, or None.
ROOT = "runbook.steps.common.diagnoses:root_error"

# Given the text of a log: the range of lines that show its first error, empty if there is none.
EXCERPT = "runbook.steps.common.diagnoses:excerpt"

# Given the folder of a workspace: what was measured in it, {title, about, rows} each, for a report.
MEASURED = "runbook.steps.measure.report:measured"

# Given a kind of step and its outputs, of which the process lives no more: how that ended, as the
# error of an answer; None if nothing is known of it.
ENDED = "runbook.steps.common.deaths:ended"

# The verbs that steps add. `answers` is called with what the verb takes and the folder that
# workspaces share; `answer` is the shape of the answer's body. A name with dashes is an option.
# With `book` it takes a BOOK, and is given what is known of its steps: id, uses and with. With
# `workspace` it takes --workspace too, is given what runs recorded, and tells how far it is.
VERBS: dict[str, Any] = {
    "client": {
        "help": "Tell what a program needs that asks BOOK's server: base URL, model names, "
        "reasoning, sampling, and snippets for a shell and for Python.\n\nExits 3 if nothing is "
        "served.",
        "answers": "runbook.steps.client:client",
        "answer": "runbook.steps.client:Client",
        "workspace": True,
        "takes": [],
    },
    "bench": {
        "help": "Measure how fast BOOK's server answers: tokens/s, time to the first token, time "
        "per token, accepted drafts, power.\n\nFigures are those of `vllm bench serve`. The result "
        "is kept in the workspace. Exits 3 if a request failed, or, with --against, if a figure is "
        "worse beyond the noise of the repetitions.",
        "answers": "runbook.steps.measure.bench:bench",
        "answer": "runbook.steps.measure.bench:Bench",
        "workspace": True,
        "takes": [
            {
                "name": "--prompts",
                "default": "random",
                "help": "The class of prompts: random (tokens), prose, code, or file.",
            },
            {
                "name": "--prompts-file",
                "help": 'For the class file: JSON lines, {"prompt": text} each.',
            },
            {
                "name": "--input-length",
                "type": int,
                "help": "Tokens of each prompt. Default: 256 random ones; others as they are.",
            },
            {"name": "--output-length", "type": int, "default": 256, "help": "Tokens generated."},
            {
                "name": "--concurrency",
                "default": "1",
                "help": "Streams at once; several numbers, as 1,2,4,8, are measured in turn.",
            },
            {"name": "--repetitions", "type": int, "default": 5, "help": "Of each concurrency."},
            {
                "name": "--requests",
                "type": int,
                "default": 4,
                "help": "Of each stream in a repetition.",
            },
            {
                "name": "--ignore-eos/--heed-eos",
                "default": True,
                "help": "Generate to the output length whatever the model says.",
            },
            {
                "name": "--thinking/--no-thinking",
                "default": False,
                "help": "Let the model reason about prose and code.",
            },
            {
                "name": "--against",
                "metavar": "RESULT",
                "help": "A result to compare with: a file, or its name in the workspace.",
            },
            {
                "name": "--tolerance",
                "type": float,
                "default": 1.0,
                "help": "Percent by which a figure may be worse.",
            },
        ],
    },
    "diagnose": {
        "help": "Tell what failed, from a log: FILE, or standard input.\n\nAny log will do: of "
        "vLLM, a build, pip, uv, nvcc, the kernel.",
        "answers": "runbook.steps.verbs:diagnose",
        "answer": "runbook.steps.verbs:Diagnose",
        "takes": [
            {"name": "file", "default": "-"},
            {"name": "--kind", "help": "The kind of step whose log it is; default: any."},
        ],
    },
    "lint": {
        "help": "Examine a CHECKPOINT (a folder, or org/name[@revision] on the hub) by its headers "
        "alone.\n\nExits 3 if a finding is an error for the target.",
        "answers": "runbook.steps.verbs:lint",
        "answer": "runbook.steps.verbs:Lint",
        "takes": [
            {"name": "checkpoint"},
            {
                "name": "--target",
                "help": "The vLLM release to serve it. Default: that of deepseek-v4-flash.",
            },
            {
                "name": "--series",
                "help": "The patch series that the release has. Default: none, if --target.",
            },
        ],
    },
    "new": {
        "help": "Write a book NAME.yaml for a model: a checkpoint, or a recipe of "
        "vllm-project/recipes.\n\nReads the checkpoint's headers and config, this machine and the "
        "newest locked vLLM; what it cannot know it asks by name.",
        "answers": "runbook.steps.new.verb:new",
        "answer": "runbook.steps.new.verb:New",
        "takes": [
            {"name": "name"},
            {
                "name": "--from",
                "help": "The checkpoint: org/name[@revision] on the hub, or a folder.",
            },
            {"name": "--recipe", "type": Path, "help": "A recipe, in YAML."},
            {"name": "--variant", "help": "The variant of the recipe; default: `default`."},
            {
                "name": "--feature",
                "multiple": True,
                "help": "A feature that the recipe leaves off.",
            },
            {"name": "--users", "type": int, "help": "Requests side by side."},
            {"name": "--context", "type": int, "help": "Tokens of each at most."},
            {"name": "--target", "help": "The locked vLLM. Default: the newest for this machine."},
            {"name": "--tensor-parallel-size", "type": int, "help": "Ranks, if not by arithmetic."},
            {
                "name": "--kv-bytes-per-token",
                "type": int,
                "help": "KV cache of a rank, where the config does not tell.",
            },
            {"name": "--tool-call-parser", "help": "vLLM's parser of tool calls, or none."},
            {"name": "--reasoning-parser", "help": "vLLM's parser of reasoning, or none."},
            {"name": "--tokenizer-mode", "help": "vLLM's tokenizer mode, or none."},
            {"name": "--chat-template", "help": "A file that writes the prompts, or none."},
            {"name": "--env", "multiple": True, "help": "NAME=VALUE for the server."},
            {
                "name": "--output",
                "type": Path,
                "help": "The file to write. Default: NAME.yaml here.",
            },
        ],
    },
    "profiles": {
        "help": "List the profiles of BOOK's server: flags, and figures with where they come from.",
        "answers": "runbook.steps.verbs:profiles",
        "answer": "runbook.steps.verbs:Profiles",
        "book": True,
        "takes": [],
    },
    "eval": {
        "help": "Evaluate the answers of BOOK's server by lm-eval, beside published scores.\n\n"
        "lm-eval is installed into an environment of its own first, 0.6 GB. Programs that the "
        "model writes (HumanEval) run in a sandbox. Exits 3 if most answers have no text.",
        "answers": "runbook.steps.measure.evaluate:evaluate",
        "answer": "runbook.steps.measure.evaluate:Eval",
        "workspace": True,
        "takes": [
            {
                "name": "--task",
                "required": True,
                "help": "gsm8k, mmlu, humaneval, or a task file of lm-eval (YAML).",
            },
            {"name": "--limit", "type": int, "help": "Samples; of each subject. Default: all."},
            {
                "name": "--thinking/--no-thinking",
                "default": False,
                "help": "Let the model reason before it answers.",
            },
            {"name": "--max-tokens", "type": int, "help": "Of an answer, reasoning included."},
            {"name": "--concurrency", "type": int, "default": 4, "help": "Questions at once."},
        ],
    },
    "tune": {
        "help": "Find the flags that serve a goal best, among the `choices` of BOOK's server, by "
        "measuring them.\n\nEach is served by `run`; the best is written as a profile file "
        "with its evidence, and served at the end. What was measured is kept: the same command "
        "goes on after a kill, or with a larger budget.",
        "answers": "runbook.steps.measure.tune:tune",
        "answer": "runbook.steps.measure.tune:Tune",
        "workspace": True,
        "takes": [
            {
                "name": "--goal",
                "default": "tokens-per-second",
                "help": "What is to be best: tokens-per-second, ttft or tpot.",
            },
            {"name": "--concurrency", "type": int, "default": 1, "help": "Streams at once."},
            {
                "name": "--prompts",
                "default": "prose",
                "help": "The class of prompts: prose, code, or random (tokens).",
            },
            {"name": "--input-length", "type": int, "help": "Tokens of each prompt."},
            {"name": "--output-length", "type": int, "default": 256, "help": "Tokens generated."},
            {"name": "--repetitions", "type": int, "default": 3, "help": "Of each candidate."},
            {
                "name": "--requests",
                "type": int,
                "default": 4,
                "help": "Of each stream in a repetition.",
            },
            {
                "name": "--budget",
                "type": float,
                "default": 120.0,
                "help": "Minutes after which no further candidate is begun.",
            },
        ],
    },
    "patches": {
        "help": "Show the patch series for a TARGET vLLM and the state of each patch.",
        "usage": {
            "series_missing": "",
            "lock_missing": "name one with --lock, a file in env/ or a path; or leave it out",
        },
        "answers": "runbook.steps.verbs:patches",
        "answer": "runbook.steps.verbs:Patches",
        "takes": [
            {"name": "target", "required": False},
            {"name": "--workspace", "type": Path, "help": "Whose environment to examine."},
            {
                "name": "--lock",
                "help": "The locked release to examine: a file name in env/, or a path.",
            },
        ],
    },
}
