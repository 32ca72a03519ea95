"""The verdicts on recorded series: hangs within their time, healthy starts never."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runbook.steps.common.starting.watch import Sample, judge

SERIES = yaml.safe_load((Path(__file__).parent / "series.yaml").read_text())
EVERY = 5.0
COUNTS = ("spoken", "cached", "read", "steps")
STANDING = ("phase", "bar", "processes", "runnable")
NAMES = ("compilers", "on_disk", "stopped", "gone")


def samples(series):
    """The samples, each with the index of its segment."""
    at = cpu = 0.0
    counts = dict.fromkeys(COUNTS, 0)
    for number, segment in enumerate(series["segments"]):
        for _ in range(int(segment["for"] / EVERY)):
            at += EVERY
            cpu += segment["cores"] * EVERY
            counts = {name: counts[name] + int(segment.get(name, 0)) for name in COUNTS}
            values = {name: segment[name] for name in STANDING if name in segment}
            values |= {name: tuple(segment.get(name, ())) for name in NAMES}
            gpus = tuple(segment["gpus"]) if "gpus" in segment else None
            yield number, Sample(at=at, cpu=cpu, gpus=gpus, **counts, **values)


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series["name"])
def test_verdict(series):
    seen: list[Sample] = []
    begins = {}
    for segment, sample in samples(series):
        begins.setdefault(segment, sample.at)
        seen.append(sample)
        verdict = judge(seen)
        if verdict is not None and verdict.code != "compilation":
            assert verdict.code == series["expect"]
            assert segment == len(series["segments"]) - 1
            assert sample.at - begins[segment] <= series["within"]
            assert verdict.evidence
            return
    assert series["expect"] in (None, "compilation")
    if series["expect"] == "compilation":
        assert verdict is not None and "cicc" in verdict.evidence


def test_the_evidence_says_what_was_seen():
    series = next(s for s in SERIES if s["expect"] == "collective_hang")
    seen = [sample for _, sample in samples(series)]
    evidence = judge(seen).evidence
    for words in ("no line of progress", "compilers: none", "2.00 cores", "100 to 100 %"):
        assert words in evidence


def test_time_alone_proves_nothing():
    """An hour without anything that could be seen."""
    seen = [Sample(at=n * EVERY, cpu=n * EVERY, gpus=(50, 50)) for n in range(720)]
    assert judge(seen) is None
