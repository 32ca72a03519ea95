"""The folders of runs, in their order."""

from __future__ import annotations

import os
import re

import pytest

from runbook.state.runs import Runs


@pytest.fixture
def runs(tmp_path):
    made = Runs(tmp_path)
    assert made.newest_first() == [] and made.latest() is None and made.latest_name() == ""
    made.folder.mkdir()
    return made


def test_a_run_has_a_number_a_time_and_chance(runs, monkeypatch):
    monkeypatch.setattr("time.gmtime", lambda: (2026, 1, 2, 3, 4, 5, 4, 2, 0))
    first, second = runs.new(), runs.new()
    assert re.fullmatch(r"000001-20260102T030405Z-[0-9a-f]{4}", first.name)
    assert re.fullmatch(r"000002-20260102T030405Z-[0-9a-f]{4}", second.name)
    assert first.parent == second.parent == runs.folder and first.is_dir()
    assert runs.newest_first() == [second, first]
    assert runs.latest() == second and runs.latest_name() == second.name


def test_numbers_go_on_after_a_million(runs):
    for name in ("999999-a", "1000000-b", "b", "12-z", "a"):
        (runs.folder / name).mkdir()
    names = [run.name for run in runs.newest_first()]
    assert names == ["1000000-b", "999999-a", "b", "a", "12-z"]
    assert runs.new().name.startswith("1000001-")


def test_of_what_has_no_number_the_first_run_is_number_one(runs):
    (runs.folder / "odd").mkdir()
    assert runs.new().name.startswith("000001-")


def test_the_latest_is_where_the_link_points(runs, tmp_path):
    first, second = runs.new(), runs.new()
    runs.point_latest(first)
    assert os.readlink(tmp_path / "latest") == f"runs/{first.name}"
    assert runs.latest() == first
    runs.point_latest(second)
    assert runs.latest() == second
    assert sorted(os.listdir(tmp_path)) == ["latest", "runs"]


@pytest.mark.parametrize(
    "target",
    [
        "runs/",
        "runs/.",
        "runs/..",
        "runs/{}/.",
        "other/{}",
        "a/runs/{}",
        "runs/none",
        "{}",
        "/x/runs/{}",
    ],
)
def test_a_link_to_anything_else_is_no_link(runs, tmp_path, target):
    first, second = runs.new(), runs.new()
    os.symlink(target.format(first.name), tmp_path / "latest")
    assert runs.latest() == second


def test_what_stands_in_the_place_of_the_link_is_set_aside(runs, tmp_path):
    first = runs.new()
    (tmp_path / "latest").mkdir()
    (tmp_path / f".latest.{os.getpid()}").symlink_to("left behind")
    runs.point_latest(first)
    assert runs.latest() == first
    assert (tmp_path / "latest.damaged.1").is_dir()


def test_the_link_is_on_the_disk(runs, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("runbook.state.runs.sync_folder", synced.append)
    runs.point_latest(runs.new())
    assert synced == [tmp_path]
