from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from runbook.steps.kernels import synthetic
from runbook.steps.publish.checkpoint import Format, Variant, write


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant, Format], Path]:
    """The rehearsal's checkpoint in a format, written once; only to be read."""

    @cache
    def made(variant: Variant, form: Format = "seed") -> Path:
        folder = tmp_path_factory.mktemp("rehearsal")
        write(folder, variant, format=form)
        return folder

    return made


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 1 MiB a pool, of which these tensors take their slices just as well."""
    monkeypatch.setattr(synthetic, "POOL_BYTES", 1 << 20)
