"""Looks at one step: renders its inputs, compares fingerprints, asks `check`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import runbook
from runbook.document import template
from runbook.document.registry import is_file, load_step
from runbook.files import digest_file
from runbook.planning import apart, asking
from runbook.planning.asking import BROKEN
from runbook.planning.context import Progress, StepContext, default_cache, lock_places
from runbook.planning.facts import Facts
from runbook.planning.lockfile import Lockfile
from runbook.planning.look import Look, digest
from runbook.protocol import Check, Hooks, Json, Reason, Step, StepFailure, Work
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book
    from runbook.document.compiled import Step as CompiledStep


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
        self._locks = lock_places(book["source"], workspace.root)
        self.lock = Lockfile(*self._locks)
        self._kinds: dict[tuple[str, str], tuple[Step, str]] = {}
        self.scope: dict[str, Any] = {
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
            if is_file(step["uses"]):
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
            if step["when"] is not None and not template.evaluate(step["when"], self.scope):
                look.active = False
                return look
            kind, version = self.kind(step)
            look.lasting = not getattr(kind, "makes_nothing", False)
            raw = step["with"]
            look.raw = raw if step["static"] else template.render(raw, self.scope)
            inputs = self._inputs(look, kind, version)
            look.context = self.context(step, SimpleNamespace(**inputs), deep, on_progress)
            look.fingerprint = self._fingerprint(step, look, inputs, kind, version)
            look.inputs = inputs
            look.check = self._ask(look, kind, version, look.context)
        except StepFailure as failure:
            self._fail(look, failure)
        except (KeyboardInterrupt, asking.Stopped):
            raise
        except BaseException as error:
            self._fail(look, asking.crashed(error, self.workspace.state))
        return look

    def context(
        self,
        step: CompiledStep,
        inputs: SimpleNamespace,
        deep: bool = False,
        on_progress: Progress | None = None,
    ) -> StepContext:
        return StepContext(
            step["id"],
            inputs,
            self.workspace.root,
            self._cache,
            deep=deep,
            facts=self.facts,
            secrets=self.secrets,
            locks=self._locks,
            on_progress=on_progress,
            uses=step["uses"],
        )

    def foresees(self, step: CompiledStep) -> bool:
        """Whether this kind of step can say something before the steps that it needs have run."""
        try:
            return hasattr(self.kind(step)[0], "foresee")
        except StepFailure:
            return False  # told when it is its turn

    def _ask(self, look: Look, kind: Step, version: str, context: StepContext) -> Check:
        """Ask the check, within its limit; outputs that are recorded of this very step are known
        to be valid."""
        record, step = look.checkpoint, look.step
        same = record is not None and record["fingerprint"].get("code") == version
        known = record["outputs"] if record is not None and same else None
        limit = asking.SECONDS
        if (own := getattr(kind, "check_limit", None)) is not None:
            limit = own(context.inputs) or limit
        limit = math.inf if context.deep else min(limit, step["timeout"] or math.inf)
        ask = apart.ask if is_file(step["uses"]) else asking.ask
        return ask(kind, context, limit, known)

    def _fail(self, look: Look, failure: StepFailure) -> None:
        """What went wrong in a look is why the step does not hold. One whose check is broken is
        not run either: nothing would prove that it was done."""
        look.broken = failure.code in BROKEN
        look.check = Check.unsatisfied(*_why(look.step, failure))

    def foresee(self, step: CompiledStep) -> tuple[Reason, ...]:
        """What a step can say against its inputs before the steps that it needs have run."""
        try:
            kind = cast(Hooks, self.kind(step)[0])
            if not hasattr(kind, "foresee") or not template.evaluate(step["when"], self.scope):
                return ()
            given, unknown = template.known(step["with"], self.scope)
        except StepFailure:
            return ()  # nothing is known of it yet
        ahead = (cast(Mapping[str, Json], given), frozenset(unknown), self.facts)
        limit = min(asking.SECONDS, step["timeout"] or math.inf)
        try:
            if is_file(step["uses"]):
                return apart.foresee(kind, ahead, limit, self.workspace.state)
            return asking.foresee(kind, ahead, limit)
        except (KeyboardInterrupt, asking.Stopped):
            raise
        except StepFailure as failure:
            return _why(step, failure) if failure.code in BROKEN else ()
        except BaseException as error:
            return _why(step, asking.crashed(error, self.workspace.state, "foresee"))

    def record_outputs(
        self, step: str, outputs: Mapping[str, Json], known: str = "", made: str | None = None
    ) -> str:
        """Make a step's outputs visible to later ones; returns their digest. The identity of a
        service's process is left out of it: who depends on that, names it in `with`. `made`: the
        attempt that made it just now."""
        if made is not None:
            self._made[step] = made
        self.outputs[step] = dict(outputs)
        self.scope["steps"][step] = {"outputs": self.outputs[step]}
        if not known:
            known = digest({name: value for name, value in outputs.items() if name != "process"})
        self._digests[step] = known
        return known

    def approval(self, step: CompiledStep, work: Work) -> str:
        """The question that `approve` asks, rendered."""
        asked = {**self.scope, "check": {"work": work.dump()}}
        try:
            return str(template.render(step["approve"], asked))
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


def _why(step: CompiledStep, failure: StepFailure) -> tuple[Reason, ...]:
    """A failure as reasons; a method of a step that is broken is named with its class."""
    message = failure.message
    if failure.code in BROKEN:
        message = f"{step['uses']}: {message}"
        message += f" ({failure.cause})" if failure.cause else ""
    return failure.reasons or (Reason(failure.code, message, failure.remedy),)
