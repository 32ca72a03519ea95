"""Install a patched wheel and its locked requirements into an environment of its own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.steps.common import tether
from runbook.steps.common.packages import uv_command
from runbook.steps.common.store import sha256_file
from runbook.steps.common.vllm_release import Release
from runbook.steps.vllm import environment
from runbook.steps.vllm.built import NAME, Built
from runbook.steps.vllm.verify import file_faults

DIST = "dist"
_INSTALLED = "installed"
_COMPILED = re.compile(r"\[(\d+)/(\d+)\]")


def install(ctx: Context, release: Release, built: Built, find_links: Path | None) -> Path:
    """The folder of a complete environment, of which only the stamp may be missing.

    Stages that were completed before a kill are kept: the packages, then the compiled files. One
    that was finished before is read through, and made anew if a file is not as it was.
    """
    python = release.python(ctx.inputs.python)
    requirements = sha256_file(release.requirements)
    folder = environment.environment_folder(
        ctx.workspace,
        {"wheel": built.sha256, "requirements": requirements, "python": python},
    )
    keep(built.path, ctx.workspace / DIST)
    stamp = environment.read_stamp(folder)
    if stamp is not None:
        damaged = file_faults(folder)
        if not damaged and not environment.changed_files(folder, stamp):
            return folder
        environment.remove(folder)
        # Files are linked to uv's cache, so what was written into one is in there as well.
        ctx.run(tether.command("uv", "cache", "clean", "--quiet", NAME, *damaged))
    installed = folder / _INSTALLED
    if not installed.exists():
        environment.create(ctx, folder, python)
        install_packages(ctx, folder, release.requirements, built, find_links)
        installed.touch()
    compile_sources(ctx, folder)
    return folder


def install_packages(
    ctx: Context, folder: Path, requirements: Path, built: Built, find_links: Path | None
) -> None:
    """Install by hash, nothing resolved; then prove that the lock is complete."""
    python = folder / "bin" / "python"
    wanted = folder / "requirements.txt"
    wanted.write_text(
        f"-r {requirements}\n{uv_command.file_requirement(NAME, built.path, built.sha256)}\n",
        encoding="utf-8",
    )
    uv_command.uv(
        ctx,
        *("pip", "install", "--python", python, "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--requirement", wanted),
        what=built.path.name,
        find_links=find_links,
    )
    ctx.run(
        tether.command("uv", "pip", "check", "--python", os.fspath(python)),
        failure=StepFailure(
            f"the lock {requirements.name} does not fit {built.path.name}",
            code="lock_incomplete",
            remedy="write the lock anew (`make lock` in the repository of runbook)",
        ),
    )


def compile_sources(ctx: Context, folder: Path) -> None:
    """Byte-compile all packages: vLLM starts three processes which import thousands of modules,
    45 to 117 s from source and 25 s compiled."""

    def follow(line: str) -> None:
        if count := _COMPILED.match(line):
            ctx.progress(int(count[1]), int(count[2]), "files", "byte-compile")

    script = Path(__file__).with_name("bytecode.py")
    site = environment.site_packages(folder)
    command: list[str | Path]
    command = [folder / "bin" / "python", "-I", "-W", "ignore", script, site, str(os.getpid())]
    ctx.run(command, on_line=follow)


def prune(workspace: Path) -> None:
    """Remove the wheels that no environment here was made from."""
    stamps = map(environment.read_stamp, environment.environments(workspace))
    wanted = {stamp.made["wheel"] for stamp in stamps if stamp is not None}
    for wheel in (workspace / DIST).iterdir():
        if f"{DIST}/{wheel.name}" not in wanted:
            wheel.unlink()


def keep(wheel: Path, dist: Path) -> Path:
    """The wheel in the workspace too, by hard link where possible: caches are emptied."""
    dist.mkdir(parents=True, exist_ok=True)
    place = dist / wheel.name
    if place.exists() and (place.samefile(wheel) or sha256_file(place) == sha256_file(wheel)):
        return place
    temporary = dist / f".{wheel.name}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(wheel)
    except OSError:
        shutil.copyfile(wheel, temporary)
    temporary.replace(place)
    return place
