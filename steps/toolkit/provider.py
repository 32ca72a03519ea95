"""What the two providers have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runbook.protocol import Context, Work
from runbook.steps.toolkit.host_compiler import HostCompiler


@dataclass(frozen=True, slots=True)
class Toolchain:
    """An installed toolkit with its host compiler, and how to use the two."""

    home: Path
    compiler: HostCompiler
    env: Mapping[str, str]
    path: Sequence[Path]


class Provider(Protocol):
    """A source of CUDA toolkits, for one prefix and one lock."""

    name: str
    lock: Path
    prefix: Path

    def work(self) -> Work:
        """What a whole installation costs, as far as the lock tells."""
        ...

    def leftovers(self) -> list[Path]:
        """Where a killed installation may have left files that are of no use once the toolkit
        is removed."""
        ...

    def damage(self) -> list[str]:
        """Files below the prefix that are not as the lock's packages made them, by reading all
        of them: at most one for each package."""
        ...

    def install(self, ctx: Context) -> Toolchain:
        """Give the prefix exactly what the lock names, keeping what is already right."""
        ...
