"""Whether there is the release that is asked for, and the series, and one is of the other."""

from __future__ import annotations

from runbook.steps.common.vllm_release import load_release, lock_path
from runbook.steps.vllm.patching.series import load_or_stock
from runbook.steps.vllm.target import SeriesError, series_failure


def require(target: str, series: str, lock: str | None) -> None:
    """Raises `StepFailure` unless there is such a release, and such a series of it ("": stock)."""
    release = load_release(lock_path(target, lock))
    try:
        load_or_stock(series).require_release(release.version)
    except SeriesError as error:
        raise series_failure(error) from error
