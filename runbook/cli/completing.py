"""What the shell completes: books and the ids of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook.cli import words

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def books(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped books; else files."""
    from click.shell_completion import CompletionItem

    from runbook.document.compile import shipped_books

    found = [CompletionItem(name) for name in shipped_books() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def steps(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The steps of the book that was named before; without one, of the default book."""
    from click.shell_completion import CompletionItem

    given = ctx.params.get("given") or ()
    book = ctx.params.get("book") or (given[0] if given and _is_book(given[0]) else None)
    known = words.steps_of(book)
    return [CompletionItem(name) for name in known if name.startswith(incomplete)]


def books_and_steps(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The first word may be either."""
    given = ctx.params.get("given") or ()
    found = steps(ctx, param, incomplete)
    if not given:
        found += [
            item for item in books(ctx, param, incomplete) if item.type == "plain" or not found
        ]
    return found


def _is_book(word: str) -> bool:
    from runbook.document.compile import shipped_books

    return words.is_path(word) or word in shipped_books()
