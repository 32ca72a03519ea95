"""The kind of step that every book has: run a command."""

from __future__ import annotations

from runbook.protocol import Check, Context, Model


class Command:
    version = "1"
    Inputs = Model("runbook.command_models:Inputs")
    Outputs = Model("runbook.command_models:Outputs")

    def check(self, ctx: Context) -> Check:
        raise NotImplementedError

    def apply(self, ctx: Context) -> None:
        raise NotImplementedError

    def undo(self, ctx: Context) -> None:
        raise NotImplementedError
