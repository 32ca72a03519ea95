"""Looks at one step: renders its inputs, compares fingerprints, asks `check`."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import runbook
from runbook import crash
from runbook.document import template
from runbook.document.registry import load_step
from runbook.files import digest_file
from runbook.planning.context import Progress, StepContext, default_cache
from runbook.planning.planner import View
from runbook.protocol import Check, Json, Reason, Step, StepFailure
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book
    from runbook.document.compiled import Step as CompiledStep


class Facts(Mapping[str, Any]):
    """The facts of this machine, each gathered when first read."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = importlib.import_module("runbook.steps").FACTS
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            module, _, function = self._sources[name].partition(":")
            self._values[name] = getattr(importlib.import_module(module), function)()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def digest(value: Json) -> str:
    """SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Look:
    """One look at a step. `inputs` is None when they could not be rendered. `begun` is what the
    attempt was asked that began since the step was verified, if there is one; `lasting` is whether
    it makes anything."""

    __slots__ = (
        "active",
        "begun",
        "check",
        "checkpoint",
        "context",
        "fingerprint",
        "inputs",
        "lasting",
        "raw",
        "step",
    )

    def __init__(self, step: CompiledStep) -> None:
        self.step = step
        self.active = True
        self.raw: Json = None
        self.inputs: dict[str, Json] | None = None
        self.lasting = True
        self.fingerprint: dict[str, Json] = {}
        self.checkpoint: dict[str, Any] | None = None
        self.begun: dict[str, str] | None = None
        self.check = Check(False)
        self.context: StepContext | None = None

    def changed(self) -> tuple[str, ...]:
        """The parts of the fingerprint that differ from the checkpoint's."""
        if self.checkpoint is None:
            return ()
        old = self.checkpoint.get("fingerprint")
        if old == self.fingerprint:
            return ()
        if not isinstance(old, dict):
            return ("with",)
        parts = [p for p, new in self.fingerprint.items() if p != "made" and old.get(p) != new]
        remade = [] if "needs" in parts else self.remade()
        return (*parts, *(f"{need} (made anew)" for need in remade))

    def remade(self) -> list[str]:
        """The needs that were made anew since the checkpoint. One of which it is not known when
        it was made, because it was found done, was not."""
        old = self.checkpoint.get("fingerprint") if self.checkpoint is not None else None
        made = self.fingerprint.get("made")
        if not isinstance(old, dict) or not isinstance(made, dict):
            return []
        before = old.get("made")
        before = before if isinstance(before, dict) else {}
        return [need for need, when in made.items() if when and before.get(need, "") != when]

    @property
    def made(self) -> str:
        """Which attempt made what is there, as far as it is known."""
        if self.begun is not None:
            return self.begun["attempt"]
        return str(self.checkpoint.get("made", "")) if self.checkpoint is not None else ""

    def _begun(self) -> Literal["", "same", "other"]:
        if self.begun is None:
            return ""
        return "same" if self.begun["fingerprint"] == digest(self.fingerprint) else "other"

    def view(self, *, forced: bool, runnable: bool, last_attempt: Any) -> View:
        record = self.checkpoint
        return View(
            check=self.check,
            has_checkpoint=record is not None,
            changed=self.changed(),
            outputs_differ=record is not None
            and self.check.ok
            and record["outputs"] != self.check.outputs,
            last_attempt=last_attempt,
            begun=self._begun(),
            forced=forced,
            runnable=runnable,
        )


class Evaluator:
    """Looks at the steps of one compiled document, in an order in which needs come first."""

    def __init__(self, book: Book, workspace: Workspace) -> None:
        self.workspace = workspace
        self._source = book["source"]
        self.secrets = frozenset(book["secrets"])
        self.facts = Facts()
        self.outputs: dict[str, dict[str, Json]] = {}
        self._digests: dict[str, str] = {}
        self._made: dict[str, str] = {}
        self._begun = workspace.begun.steps()
        self._cache = default_cache()
        self._kinds: dict[tuple[str, str], tuple[Step, str]] = {}
        self._scope: dict[str, Any] = {
            "inputs": book["inputs"],
            "facts": self.facts,
            "steps": {},
            "workspace": str(workspace.root),
        }

    def kind(self, step: CompiledStep) -> tuple[Step, str]:
        """The step's implementation and the version that goes into its fingerprint."""
        key = (step["uses"], step["folder"])
        if key not in self._kinds:
            kind = cast(Step, load_step(step["uses"], Path(step["folder"])))
            version = f"{step['uses']}@{kind.version}"
            if ".py:" in step["uses"]:
                source = Path(step["folder"]) / step["uses"].rpartition(":")[0]
                version += "+" + digest_file(source)[:16]
            self._kinds[key] = (kind, version)
        return self._kinds[key]

    def look(
        self, step: CompiledStep, deep: bool = False, on_progress: Progress | None = None
    ) -> Look:
        """Render, compare and check, if `deep` thoroughly. Never raises for what a step or its
        document does wrong: that comes back as a check that does not hold."""
        look = Look(step)
        name = step["id"]
        look.checkpoint = self.workspace.checkpoint(name)
        if name in self._begun:
            look.begun = self.workspace.begun.read(name)
        self._made[name] = look.made
        try:
            if step["when"] is not None and not template.evaluate(step["when"], self._scope):
                look.active = False
                return look
            kind, version = self.kind(step)
            look.lasting = not getattr(kind, "makes_nothing", False)
            raw = step["with"]
            look.raw = raw if step["static"] else template.render(raw, self._scope)
            inputs = self._inputs(look, kind, version)
            look.context = StepContext(
                step["id"],
                SimpleNamespace(**inputs),
                self.workspace.root,
                self._cache,
                deep=deep,
                facts=self.facts,
                secrets=self.secrets,
                on_progress=on_progress,
            )
            look.fingerprint = self._fingerprint(step, look, inputs, kind, version)
            look.inputs = inputs
            look.check = kind.check(look.context)
        except StepFailure as failure:
            look.check = Check.unsatisfied(
                *(failure.reasons or (Reason(failure.code, str(failure), failure.remedy),))
            )
        except Exception as error:
            file = crash.write(error, self.workspace.state)
            look.check = Check.unsatisfied(
                Reason("check_crashed", f"its check crashed: {error!r}", f"see {file}")
            )
        return look

    def foresees(self, step: CompiledStep) -> bool:
        """Whether this kind of step can say something before the steps that it needs have run."""
        try:
            return hasattr(self.kind(step)[0], "foresee")
        except StepFailure:
            return False  # told when it is its turn

    def foresee(self, step: CompiledStep) -> tuple[Reason, ...]:
        """What a step can say against its inputs before the steps that it needs have run."""
        try:
            ahead = getattr(self.kind(step)[0], "foresee", None)
            if ahead is None or not template.evaluate(step["when"], self._scope):
                return ()
            given, unknown = template.known(step["with"], self._scope)
            return tuple(ahead(given, frozenset(unknown), self.facts))
        except StepFailure:
            return ()  # nothing is known of it yet
        except Exception as error:
            file = crash.write(error, self.workspace.state)
            return (Reason("check_crashed", f"its rules crashed: {error!r}", f"see {file}"),)

    def record_outputs(
        self, step: str, outputs: Mapping[str, Json], known: str = "", made: str | None = None
    ) -> str:
        """Make a step's outputs visible to later ones; returns their digest. The identity of a
        service's process is left out of it: who depends on that, names it in `with`. `made`: the
        attempt that made it just now."""
        if made is not None:
            self._made[step] = made
        self.outputs[step] = dict(outputs)
        self._scope["steps"][step] = {"outputs": self.outputs[step]}
        if not known:
            known = digest({name: value for name, value in outputs.items() if name != "process"})
        self._digests[step] = known
        return known

    def approval(self, step: CompiledStep, check: Check) -> str:
        """The question that `approve` asks, rendered."""
        work = {"bytes": check.work.bytes, "seconds": check.work.seconds, "disk": check.work.disk}
        try:
            return str(template.render(step["approve"], {**self._scope, "check": {"work": work}}))
        except StepFailure as failure:
            failure.message = f"the question of step {step['id']} cannot be asked: {failure}"
            failure.where = f"{self._source}:{step['line']}"
            raise

    def _inputs(self, look: Look, kind: Step, version: str) -> dict[str, Json]:
        """Validated inputs; those of the checkpoint when nothing that makes them has changed,
        because importing pydantic costs more than a whole run that does nothing."""
        record = look.checkpoint
        if record is not None and record.get("package") == runbook.__version__:
            old = record.get("fingerprint") or {}
            if old.get("with") == look.raw and old.get("code") == version:
                return dict(record["inputs"])
        from pydantic import ValidationError

        try:
            return kind.Inputs.model_validate(look.raw).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise StepFailure(
                f"with.{place}: {first['msg']} (it is {first['input']!r})",
                code="invalid_inputs",
                cause="\n".join(
                    f"with.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
                ),
                remedy="correct the document, or the input that it comes from",
                where=f"step {look.step['id']}",
            ) from error

    def _fingerprint(
        self,
        step: CompiledStep,
        look: Look,
        inputs: Mapping[str, Json],
        kind: Step,
        version: str,
    ) -> dict[str, Json]:
        files: Json = None
        if (declared := getattr(kind, "files", None)) is not None:
            hashes = hashlib.sha256()
            for path in sorted(declared(SimpleNamespace(**inputs))):
                hashes.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
            files = hashes.hexdigest()
        names = getattr(kind, "facts", ())
        return {
            "with": look.raw,
            "code": version,
            "files": files,
            "needs": {need: self._digests.get(need) for need in step["needs"]},
            "made": {need: self._made.get(need, "") for need in step["needs"]},
            "facts": {name: self.facts[name] for name in names},
        }
