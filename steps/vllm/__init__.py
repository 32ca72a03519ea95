"""Step `vllm`: a vLLM, patched or stock, built once per content, in an environment of its own.

`mode: wheel` patches the Python sources of a published wheel, `mode: source` compiles a pinned
source; both apply `series` whole or not at all, if there is one, and end in `<workspace>/venv`.
Importing this module costs little: `check` runs in each no-op.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure, Work
from runbook.steps.common.stamp import RESULT, Stamp, marks
from runbook.steps.common.vllm_release import Release, load_release, lock_path
from runbook.steps.vllm import environment
from runbook.steps.vllm.target import SeriesError, files_of, series_failure

if TYPE_CHECKING:
    from runbook.steps.vllm.built import Built

# The time of an install on two cores, without downloads: byte-compiling is most of it.
_SECONDS = 60.0


class Vllm:
    version = "2"
    Inputs = Model("runbook.steps.vllm.models:Inputs")
    Outputs = Model("runbook.steps.vllm.models:Outputs")

    def files(self, inputs: SimpleNamespace) -> Iterable[Path]:
        lock = lock_path(inputs.target, inputs.lock)
        release = load_release(lock)
        build = [release.build_requirements] if release.build_requirements else []
        return [*_series_files(inputs.series), lock, release.requirements, *build]

    def foresee(
        self, given: Mapping[str, Json], unknown: Collection[str], facts: Mapping[str, Any]
    ) -> Iterable[Reason]:
        """A release or series that there is not."""
        from runbook.steps.vllm.known import require

        names = ("target", "series", "lock")
        target, series, lock = (given.get(name) for name in names)
        if isinstance(target, str) and not any(name in unknown for name in names):
            try:
                require(target, str(series or ""), None if lock is None else str(lock))
            except StepFailure as failure:
                yield Reason(failure.code, failure.message, failure.remedy)

    def check(self, ctx: Context) -> Check:
        folder = ctx.workspace / environment.LINK
        release = load_release(lock_path(ctx.inputs.target, ctx.inputs.lock))
        work = Work(release.download_bytes, _SECONDS, release.disk_bytes)
        stamp = environment.read_stamp(folder)
        if stamp is None:
            message = f"there is no finished environment {folder}"
            return Check.unsatisfied(Reason("not_installed", message), work=work)
        wanted = origin(ctx.inputs, release)
        if differing := [k for k, v in wanted.items() if stamp.inputs.get(k) != v]:
            if not {"lock", "requirements", "python"} & set(differing):
                work = Work(0, _SECONDS, release.disk_bytes)
            message = f"it was made from other {', '.join(differing)}"
            return Check.unsatisfied(Reason("inputs_changed", message), work=work)
        changed = environment.changed_files(folder, stamp)
        wheel = ctx.workspace / stamp.made["wheel"]
        if not wheel.is_file():
            changed.append(f"{wheel} is gone")
        if ctx.deep and not changed:
            from runbook.steps.vllm.verify import deep_faults

            changed = deep_faults(ctx, folder, stamp)
        if changed:
            work = Work(0, _SECONDS, release.disk_bytes)
            message = "; ".join(changed[:5]) + (" ..." if len(changed) > 5 else "")
            return Check.unsatisfied(Reason("environment_changed", message), work=work)
        return Check.satisfied(_outputs(ctx.workspace, stamp))

    def apply(self, ctx: Context) -> None:
        from runbook.steps.common.disk import disk_failure
        from runbook.steps.vllm.install import install, prune
        from runbook.steps.vllm.own_wheel import folder_with_it

        try:
            release = load_release(lock_path(ctx.inputs.target, ctx.inputs.lock))
            find_links = folder_with_it(ctx, release, release.python(ctx.inputs.python))
            built = build(ctx, release)
            folder = install(ctx, release, built, find_links)
            _stamp(ctx, release, built, folder).write(folder / environment.STAMP)
            environment.switch(ctx.workspace, folder)
            prune(ctx.workspace)
        except SeriesError as error:
            raise series_failure(error) from error
        except OSError as error:
            raise disk_failure(error, ctx.workspace) from error

    def undo(self, ctx: Context) -> None:
        from runbook.steps.common.disk import disk_failure

        try:
            self._remove(ctx)
        except OSError as error:
            raise disk_failure(error, ctx.workspace) from error

    def _remove(self, ctx: Context) -> None:
        import shutil

        from runbook.steps.common import jit

        link = ctx.workspace / environment.LINK
        if link.is_symlink():
            link.unlink()
        for folder in environment.environments(ctx.workspace):
            if (stamp := environment.read_stamp(folder)) is not None:
                kernels = jit.folder(ctx.cache, stamp.made["wheel_sha256"])
                shutil.rmtree(kernels, ignore_errors=True)
            environment.remove(folder)
        for folder in ctx.workspace.glob(f"build.{environment.DIGEST}"):
            shutil.rmtree(folder)
        shutil.rmtree(ctx.workspace / "dist", ignore_errors=True)


def build(ctx: Context, release: Release) -> Built:
    if ctx.inputs.mode == "source":
        from runbook.steps.vllm.source import build_source

        return build_source(ctx, release)
    from runbook.steps.vllm.published import build_wheel

    return build_wheel(ctx, release)


def origin(inputs: SimpleNamespace, release: Release) -> dict[str, Json]:
    """What a build is made from, as digests: what `check` compares with the stamp's."""
    return {
        "mode": inputs.mode,
        "patches": _digest(_series_files(inputs.series)),
        "lock": _digest([release.path]),
        "requirements": _digest([release.requirements]),
        "python": release.python(inputs.python),
        "source": _source_origin(inputs.source),
    }


def _source_origin(source: dict[str, Any] | None) -> dict[str, Json] | None:
    """What decides over a compiled wheel; where the source lies and how fast it builds does not."""
    if source is None:
        return None
    without = ("archive", "jobs", "repository", "cuda_home", "path")
    return {key: value for key, value in source.items() if key not in without}


def _stamp(ctx: Context, release: Release, built: Built, folder: Path) -> Stamp:
    from runbook.steps.vllm.envs import known_variables
    from runbook.steps.vllm.install import DIST

    site = environment.site_packages(folder)
    info = site / f"vllm-{built.version}.dist-info" / "RECORD"
    keys = [folder / "bin" / "python", folder / "bin" / "vllm", info]
    keys += [site / path for path in built.files]
    return Stamp(
        environment.KIND,
        origin(ctx.inputs, release),
        files={RESULT: marks(folder, [str(path.relative_to(folder)) for path in keys])},
        made={
            "version": built.version,
            "wheel": f"{DIST}/{built.path.name}",
            "wheel_sha256": built.sha256,
            "patch_digest": built.series.digest,
            "environment_variables": known_variables(site / "vllm" / "envs.py"),
        },
    )


def _outputs(workspace: Path, stamp: Stamp) -> dict[str, Json]:
    made = stamp.made
    bin_folder = workspace / environment.LINK / "bin"
    return {
        "wheel": str(workspace / made["wheel"]),
        "wheel_sha256": made["wheel_sha256"],
        "python": str(bin_folder / "python"),
        "vllm": str(bin_folder / "vllm"),
        "vllm_version": made["version"],
        "patch_digest": made["patch_digest"],
        "environment_variables": made["environment_variables"],
    }


def _series_files(series: str) -> list[Path]:
    try:
        return files_of(series) if series else []
    except SeriesError as error:
        raise series_failure(error) from error


def _digest(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents; a missing file has no content."""
    digest = hashlib.sha256()
    for path in paths:
        data = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
