"""The verbs that hand on what happened: report, bundle."""

from __future__ import annotations

from pathlib import Path

import click

from runbook import units
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.errors import PRECONDITION, RunbookError
from runbook.remedy import Remedy

OUTPUT = click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write."
)


@click.command()
@verb("report")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write."
)
def report(target: Target, output: Path | None) -> None:
    """Write one page (HTML, no network needed) of what was done, made and measured."""
    from runbook.cli.report import page

    _require_run(target)
    path = (output or Path(f"{target.book['name']}-report.html")).absolute()
    text = page(target.book, target.workspace)
    path.write_text(text)
    body = {"path": str(path), "bytes": len(text.encode())}
    answer = target.answer(True, body, next=[Remedy("status")])
    target.say(answer, lambda a: f"{a['path']}  {units.size(a['bytes'])}")


@click.command()
@verb("bundle")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write."
)
def bundle(target: Target, output: Path | None) -> None:
    """Pack document, records, last logs, facts and packages for whoever is asked for help.

    Secrets are redacted, and the archive is searched for them before it is written.
    """
    from runbook.cli.bundle import write

    _require_run(target)
    path = (output or Path(f"{target.book['name']}-bundle.tar.gz")).absolute()
    entries = write(target.book, target.workspace, path)
    body = {"path": str(path), "bytes": path.stat().st_size, "files": entries}
    answer = target.answer(True, body, next=[Remedy("status")])
    target.say(answer, lambda a: f"{a['path']}  {units.size(a['bytes'])}, {len(a['files'])} files")


def _require_run(target: Target) -> None:
    if target.workspace.latest() is None:
        raise RunbookError(
            f"nothing was run in {target.workspace.root}",
            code="never_ran",
            exit_code=PRECONDITION,
            remedy=Remedy("run", text="{command} first, or name another workspace"),
        )
