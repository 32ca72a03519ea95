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
