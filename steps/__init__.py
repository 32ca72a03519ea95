"""The kinds of step that runbook ships, by the name that `uses:` gives them."""

STEPS = {
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

FACTS = {
    "cpu": "runbook.steps.common.facts:cpu",
    "gpu_links": "runbook.steps.common.facts:gpu_links",
    "gpus": "runbook.steps.common.facts:gpus",
    "memory": "runbook.steps.common.facts:memory",
}

# Given a kind of step and the text of a log: the known failure that it shows, or None.
DIAGNOSE = "runbook.steps.common.diagnoses:diagnose"

# Given the text of a log: the range of lines that show its first error, empty if there is none.
EXCERPT = "runbook.steps.common.diagnoses:excerpt"

VERBS = {
    "lint": "runbook.steps.verbs:lint",
    "patches": "runbook.steps.verbs:patches",
}
