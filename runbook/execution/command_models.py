"""What a `command` step is given and gives."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from runbook.document.models import Limit

Text = Annotated[str, Field(min_length=1)]
Scalar = str | int | float | bool
Command = Annotated[list[Scalar], Field(min_length=1)] | Text


class OutputFile(BaseModel):
    """An output that is read from a file."""

    model_config = ConfigDict(extra="forbid")

    file: Text = Field(
        description="The file, relative to the workspace. Its text is the output, without the "
        "last line break; a file named *.json gives the value that it holds."
    )


class Inputs(BaseModel):
    """Run a command, unless what it makes is there already."""

    model_config = ConfigDict(extra="forbid")

    run: Command = Field(
        description="The command: a list of arguments, or text for /bin/sh, which stops at the "
        "first line that fails."
    )
    cwd: Text = Field(default=".", description="The folder to run in, relative to the workspace.")
    env: dict[str, Scalar] = Field(
        default_factory=dict, description="Environment variables to add."
    )
    creates: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None,
        description="Files or folders that the command makes, relative to the workspace. The step "
        "is done when all are there.",
    )
    check: Command | None = Field(
        default=None,
        description="A quick command that changes nothing; the step is done when it exits with 0.",
    )
    check_timeout: Limit = Field(
        default="10s", description="How long `check` may take; longer means not done."
    )
    outputs: dict[str, Scalar | list[Any] | OutputFile | None] = Field(
        default_factory=dict,
        description="What later steps can read: names with values, or with {file: PATH}.",
    )
    undo: Command | None = Field(
        default=None,
        description="A command that undoes what `run` did. What `creates` names is removed in any "
        "case.",
    )


class Outputs(BaseModel):
    """The outputs that the step's `outputs:` names."""

    model_config = ConfigDict(extra="allow")
