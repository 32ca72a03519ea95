"""The facts of this machine, as steps and templates see them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any


class Facts(Mapping[str, Any]):
    """The facts of this machine, each gathered when first read."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = importlib.import_module("runbook.steps").FACTS
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            module, _, function = self._sources[name].partition(":")
            self._values[name] = getattr(importlib.import_module(module), function)()
        return self._values[name]

    def gathered(self) -> dict[str, Any]:
        """Those that were gathered so far."""
        return dict(self._values)

    def learn(self, values: Mapping[str, Any]) -> None:
        """Take what another process has gathered."""
        self._values.update(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
