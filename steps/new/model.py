"""What a checkpoint is, for whoever wants to serve it: by its config, headers and small files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runbook.errors import USAGE, RunbookError
from runbook.protocol import StepFailure
from runbook.remedy import COMMAND, Remedy
from runbook.steps.checkpoint.checkpoint import INDEX, Checkpoint, CheckpointError, open_folder
from runbook.steps.checkpoint.lint.report import printable

TEXT = "text_config"
"""Where the config of a model that also sees or hears has the part that writes."""
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Files that may hold the chat template, in the order in which transformers takes them."""
SMALL = 16 << 20


@dataclass(frozen=True)
class Model:
    """`repo` and `revision` are empty for a folder; `folder` is None for a repository."""

    checkpoint: Checkpoint
    repo: str = ""
    revision: str = ""
    folder: Path | None = None

    @property
    def source(self) -> str:
        return self.repo or str(self.folder)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The part of config.json that tells of the language model."""
        inner = self.checkpoint.config.get(TEXT)
        return {**self.checkpoint.config, **inner} if isinstance(inner, dict) else self._top

    @property
    def _top(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        found = self._top.get("architectures")
        return tuple(n for n in found if isinstance(n, str)) if isinstance(found, list) else ()

    @cached_property
    def shards(self) -> list[str]:
        """The safetensors files that vLLM loads: those of the index, else all."""
        indexed = sorted(set(self.checkpoint.index.values()))
        return [name for name in indexed if name in self.checkpoint.sizes]

    @cached_property
    def ignored(self) -> list[str]:
        """Files of weights beside them, which are not loaded."""
        from runbook.steps.checkpoint.checkpoint import foreign

        others = [n for n in self.checkpoint.sizes if n.endswith(".safetensors")]
        return sorted({*foreign(self.checkpoint.sizes), *others} - set(self.shards))

    @cached_property
    def weights(self) -> int:
        """Bytes of the weights."""
        return sum(self.checkpoint.sizes[name] for name in self.shards)

    @cached_property
    def files(self) -> int:
        """Bytes of all files that are fetched."""
        return sum(n for name, n in self.checkpoint.sizes.items() if name not in self.ignored)

    @cached_property
    def longest(self) -> int | None:
        """Tokens of context that the model was made for; None if its config does not say."""
        for name in ("max_position_embeddings", "model_max_length", "max_sequence_length", "n_ctx"):
            value = self.config.get(name)
            if type(value) is int and value > 0:
                return value
        return None

    @cached_property
    def template(self) -> str:
        """The chat template; "" if there is none. Of several, all of them."""
        for name in TEMPLATES:
            size = self.checkpoint.sizes.get(name, 0)
            if not 0 < size <= SMALL:
                continue
            if name.endswith(".jinja"):
                text = self.checkpoint.fetch(name, 0, size).decode(errors="replace")
            else:
                text = _texts(self.checkpoint.document(name).get("chat_template"))
            if text:
                return text
        return ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over config, index and headers: what a folder's weights are known by."""
        digest = hashlib.sha256(json.dumps(self._top, sort_keys=True).encode())
        for name, tensor in sorted(self.checkpoint.tensors.items()):
            digest.update(f"{name} {tensor.shard} {tensor.dtype} {tensor.shape}\n".encode())
        return digest.hexdigest()


def _texts(template: Any) -> str:
    """A chat template, or a list of named ones."""
    if isinstance(template, str):
        return template
    if isinstance(template, list):
        found = (one.get("template") for one in template if isinstance(one, dict))
        return "\n".join(text for text in found if isinstance(text, str))
    return ""


def open_model(source: str) -> Model:
    """The model of a folder or of a repository, `org/name` or `org/name@revision`. Raises
    `RunbookError`, or `StepFailure` for a hub that cannot be read."""
    folder = Path(source).expanduser()
    try:
        if folder.exists():
            return _whole(Model(open_folder(folder.resolve()), folder=folder.resolve()))
        checkpoint = _on_hub(source)
    except CheckpointError as problem:
        raise RunbookError(
            printable(str(problem)),
            code="no_checkpoint",
            exit_code=USAGE,
            remedy=printable(problem.remedy),
        ) from problem
    repo, _, revision = checkpoint.source.rpartition("@")
    return _whole(Model(checkpoint, repo, revision))


def _on_hub(source: str) -> Checkpoint:
    """Failures whose remedy would run another verb say what to do in words."""
    from runbook.steps.checkpoint.hub import open_repository

    try:
        return open_repository(source)
    except StepFailure as failure:
        if isinstance(failure.remedy, Remedy):
            failure.remedy = failure.remedy.text.replace(COMMAND, "try again")
        raise


def _whole(model: Model) -> Model:
    if model.shards:
        return model
    from runbook.steps.checkpoint.checkpoint import foreign

    others = list(foreign(model.checkpoint.sizes).items())[:1]
    instead = "".join(f"; it has {name}: {what}" for name, what in others)
    raise RunbookError(
        f"{model.source} has no weights in safetensors files{instead}",
        code="weights_foreign" if others else "weights_absent",
        exit_code=USAGE,
        remedy="give a repository or folder with safetensors files"
        + (f" ({INDEX} names files that are not there)" if model.checkpoint.indexed else ""),
    )
