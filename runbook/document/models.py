"""The models of a document. Their descriptions are what editors show."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from runbook.document import durations

INPUT_NAME = r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$"
STEP_ID = r"^[a-z][a-z0-9_]{0,63}$"
BOOK_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SECRET_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _duration(value: object) -> object:
    durations.seconds(str(value))
    return value


def _positive(value: object) -> object:
    if durations.seconds(str(value)) <= 0:
        raise ValueError("the duration is zero")
    return value


_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": durations.PATTERN})
Duration = Annotated[str, BeforeValidator(_duration), _DURATION_SCHEMA]
Limit = Annotated[str, BeforeValidator(_positive), _DURATION_SCHEMA]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False)


class Input(_Model):
    """A value that `--set NAME=VALUE` or the environment variable RUNBOOK_<NAME> can give."""

    type: Literal["string", "integer", "number", "boolean", "path", "list"] = Field(
        description="The type of the value. A `path` may start with ~; one given on the command "
        "line or in the environment counts from the current folder. A `list` is one of texts, "
        "given as a,b,c or as a JSON list."
    )
    default: Any = Field(
        default=None,
        description="The value if none is given. An input without this key must be given; "
        "null makes it optional.",
    )
    enum: list[Any] | None = Field(
        default=None, min_length=1, description="The only values that are allowed."
    )
    description: str = Field(default="", description="What the input is for.")


class Retry(_Model):
    """How often a step that failed is tried."""

    attempts: int = Field(ge=1, le=100, description="Attempts in all, the first included.")
    backoff: Duration = Field(
        default="10s",
        description="The wait before the second attempt; it doubles before each further one.",
    )


class Step(_Model):
    """A named unit of a runbook: one kind of step with its inputs."""

    id: str = Field(
        pattern=STEP_ID,
        description="The step's name: lower-case letters, digits and underscores.",
    )
    uses: str = Field(
        min_length=1,
        description="The kind of step, or a class of your own as path/to/file.py:Class, the path "
        "counting from the document's folder.",
    )
    with_: dict[str, Any] = Field(
        default_factory=dict,
        alias="with",
        description="The inputs of this kind of step. Any value may be a {{ template }}.",
    )
    needs: list[str] | None = Field(
        default=None,
        description="The earlier steps that must be done before. Default: the step before; "
        "[] for none.",
    )
    when: str | bool | None = Field(
        default=None,
        description="An expression over inputs, facts and steps.<id>.outputs, without braces. "
        "The step is left out if it is false.",
    )
    always: bool = Field(
        default=False, description="Whether the step is part of every selection of steps."
    )
    timeout: Limit | None = Field(
        default=None, description="An attempt that takes longer fails: 90s, 20m, 4h, 1h30m."
    )
    stall: Limit | None = Field(
        default=None,
        description="An attempt fails that gives neither output nor progress for that long.",
    )
    retry: Retry | None = Field(default=None, description="How often the step is tried.")
    approve: str | None = Field(
        default=None,
        min_length=1,
        description="A question that must be answered before the step runs. A template; besides "
        "what `with` may read, it has check.work.bytes, .seconds and .disk.",
    )


SecretName = Annotated[str, Field(pattern=SECRET_NAME)]


class Secret(_Model):
    """An environment variable that holds a secret, and whether a run needs it."""

    name: SecretName = Field(description="The name of the variable.")
    required: bool = Field(
        default=False, description="Whether nothing runs while it is unset or empty."
    )


class Document(_Model):
    """A runbook: a named list of steps, and the inputs that they are given."""

    model_config = ConfigDict(title="Runbook")

    runbook: Literal[1] = Field(description="The version of this format.")
    name: str = Field(
        pattern=BOOK_NAME,
        description="The runbook's name, also that of its default workspace.",
    )
    description: str = Field(default="", description="What the runbook is for.")
    inputs: dict[str, Input] = Field(
        default_factory=dict,
        description="Inputs by name. A dotted name such as build.jobs is read as "
        "inputs.build.jobs and set by --set build.jobs=12 or RUNBOOK_BUILD_JOBS.",
    )
    secrets: list[SecretName | Secret] = Field(
        default_factory=list,
        description="Names of environment variables that hold secrets. Their values are never "
        "stored or shown.",
    )
    steps: list[Step] = Field(min_length=1, description="The steps, in their order.")
