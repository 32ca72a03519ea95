"""A profile in a file of its own, as `runbook tune` writes it: YAML, flags as in a book, with the
evidence for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runbook.protocol import PreconditionNotMet


def read(path: str | Path) -> dict[str, Any]:
    """What it gives, without what it leaves out. Raises PreconditionNotMet."""
    import yaml
    from pydantic import ValidationError

    from runbook.steps.common.flags.models import ProfileFile
    from runbook.steps.common.positions import load

    try:
        given = load(Path(path).read_text())
        model = ProfileFile.model_validate({} if given is None else given)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise _bad(path, "; ".join(told)) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _bad(path, str(error)) from error
    return model.model_dump(mode="json", exclude_unset=True)


def flags(path: str | Path) -> dict[str, Any]:
    """The flags alone. Raises PreconditionNotMet."""
    return flags_of(read(path))


def flags_of(given: dict[str, Any]) -> dict[str, Any]:
    """The flags alone, of what a file gives."""
    about = ("figures", "choices", "evidence")
    return {name: value for name, value in given.items() if name not in about}


def _bad(path: str | Path, cause: str) -> PreconditionNotMet:
    return PreconditionNotMet(
        f"{path} is no profile",
        code="bad_profile_file",
        cause=cause,
        remedy="name a file that `runbook tune` has written, or correct it",
        where=str(path),
    )
