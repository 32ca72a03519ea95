"""Targets: a release and a series, and the quirks that are left of the one after the other."""

from __future__ import annotations

from typing import get_args

import pytest

from runbook.steps.checkpoint.lint.rules import DOWNLOAD, RULES, Severity
from runbook.steps.checkpoint.targets import (
    PATCHES,
    RELEASES,
    Quirk,
    Target,
    UnknownTarget,
    lifted,
    targets,
)

SERIES = sorted(path.parent.name for path in PATCHES.glob("*/series.yaml"))


def test_every_series_lifts_what_its_release_has_by_patches_that_it_has():
    assert {t.series for t in targets() if t.series} == set(SERIES)
    for name in SERIES:
        found = lifted(name)
        assert set(found["lifts"]) == {path.name for path in (PATCHES / name).glob("*.patch")}
        gone = {quirk for quirks in found["lifts"].values() for quirk in quirks}
        for release in found["releases"]:
            assert gone <= RELEASES[release]
            assert Target(release, name).quirks == RELEASES[release] - gone


@pytest.mark.parametrize(
    ("release", "series", "left"),
    [
        ("0.33.0", "0.33.0", set()),
        ("0.33.0", "0.33.0-nvfp4", {"compressor_unquantised", "indexer_weights_unquantised"}),
        ("0.32.0-cpu", "0.32.0-cpu", {"indexer_weights_unquantised", "swiglu_unclamped"}),
        ("0.22.1", "0.22.1", {"gate_bias_strict", "dspark_absent"}),
    ],
)
def test_what_is_left_of_the_quirks_that_patches_are_for(release, series, left):
    others = {"fp4_renames_scales", "experts_alike"}
    assert Target(release, series).quirks - others == left
    assert left < Target(release).quirks


def test_the_draft_of_an_nvfp4_checkpoint_is_loaded_by_its_series():
    assert "experts_alike" in Target("0.33.0").quirks
    assert "experts_alike" not in Target("0.33.0", "0.33.0-nvfp4").quirks


@pytest.mark.parametrize(
    ("release", "series", "told"),
    [
        ("0.33.0-patched", "", "no vLLM release '0.33.0-patched'"),
        ("0.33.0", "0.34.0", "no patch series '0.34.0'"),
        ("0.32.0", "0.33.0", "for vLLM 0.33.0, not 0.32.0"),
    ],
)
def test_what_does_not_exist_or_fit_together(release, series, told):
    with pytest.raises(UnknownTarget, match=told):
        Target(release, series)


@pytest.mark.parametrize(
    ("text", "lifts", "told"),
    [
        (None, set(), "no patch series"),
        ("[{file: a.patch, lifts: [compressor_unquantised]}]", {"compressor_unquantised"}, ""),
        ("[{file: a.patch}]", set(), ""),
        ("[{file: a.patch, lifts: [no_such]}]", set(), "no quirk no_such"),
        ("[{file: a.patch, lifts: 3}]", set(), "not of its form"),
        ("[3]", set(), "not of its form"),
        ("[", set(), "not of its form"),
    ],
)
def test_a_series_of_ones_own(text, lifts, told, tmp_path):
    if text is not None:
        (tmp_path / "series.yaml").write_text(f"releases: [0.33.0]\npatches: {text}\n")
    if told:
        with pytest.raises(UnknownTarget, match=told):
            Target("0.33.0", str(tmp_path))
    else:
        assert Target("0.33.0", str(tmp_path)).quirks == RELEASES["0.33.0"] - lifts


def test_rules_are_by_known_quirks_and_severities():
    for rule in RULES.values():
        assert rule.severity in get_args(Severity)
        assert set(rule.quirks) <= set(get_args(Quirk)) and set(rule.quirks.values()) <= set(
            get_args(Severity)
        )
    assert DOWNLOAD in {rule.remedy for rule in RULES.values()}
