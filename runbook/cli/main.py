"""The program: its group of verbs, and how every failure ends in one clear error."""

from __future__ import annotations

import difflib
import importlib

import click

import runbook
from runbook import errors, redact
from runbook.cli import envelope, shell
from runbook.cli.defects import as_failure
from runbook.cli.form import of_arguments
from runbook.cli.remedies import Renderer
from runbook.cli.verbs import verbs
from runbook.errors import Failure, RunbookError

EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {code:>3}  {meaning}" for code, meaning in errors.EXIT_CODES.items()
)


class Verbs(click.Group):
    """The verbs of the table, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = verbs().get(cmd_name)
        if found is None:
            return None
        module, _, name = found.command.partition(":")
        made = getattr(importlib.import_module(module), name)
        command: click.Command = made if isinstance(made, click.Command) else made(cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as problem:
            near = difflib.get_close_matches(args[0], verbs(), 1)
            if near and "Did you mean" not in problem.message:
                message = f"{problem.message} Did you mean `{near[0]}`?"
                raise click.UsageError(message, ctx) from problem
            raise


@click.group(cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(runbook.__version__, prog_name="runbook")
def cli() -> None:
    """Set up and serve what a runbook describes, and never lose its place.

    BOOK is a path or a shipped name; default `runbook.yaml` here, else `deepseek-v4-flash`.
    """


def invoke(arguments: list[str]) -> int:
    """Run the program; returns its exit code. Nothing that fails shows a traceback."""
    try:
        code = cli.main(args=arguments, prog_name="runbook", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.NoArgsIsHelpError as problem:
        problem.show()
        code = errors.USAGE
    except click.ClickException as problem:
        code = _fail(arguments, _usage(problem))
    except (KeyboardInterrupt, click.Abort):
        code = errors.SIGINT
    except BrokenPipeError:
        code = errors.DONE
    except Failure as problem:
        code = _fail(arguments, problem)
    except Exception as problem:
        code = _fail(arguments, as_failure(problem, "this machine", None))
    return code if isinstance(code, int) else errors.DONE


def _usage(problem: click.ClickException) -> RunbookError:
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    path = context.command_path if context is not None else "runbook"
    return RunbookError(
        " ".join(problem.format_message().split()),
        code="usage",
        exit_code=errors.USAGE,
        cause=context.get_usage() if context is not None else "",
        remedy=f"see `{path} --help`",
    )


def _fail(arguments: list[str], problem: Failure) -> int:
    """Say what failed where no verb could; what it proposes names no book, unless it was rendered
    where one was known."""
    Renderer(lambda verb, *words: shell.join(["runbook", verb, *words])).failure(problem)
    following = getattr(problem, "next", ())
    redactor = redact.of_this_process()
    error = redactor.data(problem.error_dict())
    asked = of_arguments(arguments)
    if asked != "human":
        kind = next((word for word in arguments if word in verbs()), "runbook")
        body = {"errors": problem.errors} if hasattr(problem, "errors") else {}
        answer = envelope.document(kind, False, body, error=error, next=following)
        envelope.print_answer(redactor.data(answer), asked, lambda a: "")
    else:
        envelope.print_error(error, following)
    return problem.exit_code
