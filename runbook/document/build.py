"""A document's bytes to its compiled form. All that is wrong is found before anything is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runbook.document import durations, inputs, invalid
from runbook.document.declarations import Declarations
from runbook.document.errors import DocumentInvalid
from runbook.document.models import Document, Step
from runbook.document.nodes import Node
from runbook.document.source import Source
from runbook.document.steps import Steps
from runbook.document.template import is_static


@dataclass
class Built:
    """A compiled document, and what of the surroundings it was made from: environment variables,
    the current folder where it mattered, files of code."""

    book: dict[str, Any]
    environment: dict[str, str | None]
    folder: str | None
    files: list[str]


def build(
    data: bytes,
    path: Path,
    sets: Sequence[str],
    env: Mapping[str, str],
    *,
    recorded: Mapping[str, str] | None = None,
    require_inputs: bool = True,
) -> Built:
    """Compile the document at `path`, whose content is `data`. Raises DocumentInvalid."""
    source = Source(data, str(path))
    if not isinstance(source.root.value, dict):
        raise source.fail(
            source.root.place, "not_a_mapping", "the document is not a mapping", "a mapping"
        )
    nodes = _step_nodes(source)
    document, good = _validate(source, nodes)
    declared = Declarations(source)
    resolved = inputs.resolve(declared.inputs, declared.secrets, sets, env, recorded)
    if require_inputs:
        declared.without_value(resolved)
    steps = Steps(source, nodes, good, str(path.parent))
    compiled = steps.compile(declared.inputs, resolved)
    problems = [*source.problems, *resolved.problems]
    if problems or document is None:
        raise DocumentInvalid(problems)
    book = {
        "name": document.name,
        "description": document.description,
        "source": str(path),
        "inputs": resolved.nested(),
        "given": resolved.given,
        "declared": {
            name: {"type": spec.type, "default": spec.default}
            for name, spec in declared.inputs.items()
        },
        "secrets": declared.secrets,
        "required": declared.required,
        "facts": sorted(steps.facts),
        "steps": [
            {
                **_fixed(step, node.place.line, str(path.parent)),
                **rest,
                "static": is_static(rest["with"]),
            }
            for step, node, rest in zip(document.steps, nodes, compiled, strict=True)
        ],
    }
    return Built(book, resolved.environment, resolved.folder, steps.files())


def _step_nodes(source: Source) -> list[Node]:
    steps = source.root.child("steps")
    return steps.children if steps is not None and isinstance(steps.children, list) else []


def _validate(
    source: Source, nodes: Sequence[Node]
) -> tuple[Document | None, list[dict[str, Any]]]:
    """The document if it is whole, and of each step the keys that are right in themselves."""
    raw = [node.value if isinstance(node.value, dict) else {} for node in nodes]
    try:
        return Document.model_validate(source.root.value), raw
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    invalid.report(source, (), errors, Document, source.root.value)
    bad = {tuple(e["loc"][1:3]) for e in errors if e["loc"][0] == "steps"}
    known = {field.alias or name for name, field in Step.model_fields.items()}
    return None, [
        {k: v for k, v in step.items() if k in known and (index, k) not in bad}
        for index, step in enumerate(raw)
    ]


def _fixed(step: Step, line: int, folder: str) -> dict[str, Any]:
    """What of a compiled step is not a template."""
    retry = step.retry
    return {
        "id": step.id,
        "uses": step.uses,
        "folder": folder,
        "always": step.always,
        "timeout": durations.seconds(step.timeout) if step.timeout else None,
        "stall": durations.seconds(step.stall) if step.stall else None,
        "retry": {
            "attempts": retry.attempts if retry else 1,
            "backoff": durations.seconds(retry.backoff) if retry else 0.0,
        },
        "line": line,
    }
