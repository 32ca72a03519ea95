"""A workspace belongs to the document that made it."""

from __future__ import annotations

import shutil

import pytest

from tests.runbook.helpers import write_book

WATCHING = ["status", "wait", "events", "logs", "plan", "check", "cancel", "run", "destroy"]


@pytest.fixture
def two(cli):
    """Two documents of one name; the first has made the workspace."""
    for name in ("first", "second"):
        (cli.home / name).mkdir()
    first = write_book(cli.home / "first", {"id": "one"})
    second = write_book(cli.home / "second", {"id": "one", "with": {"content": "other"}})
    cli.book = first
    cli.json("run")
    return cli, first, second


@pytest.mark.harness
@pytest.mark.parametrize("verb", WATCHING)
def test_another_document_of_the_name_is_refused(two, verb):
    cli, first, second = two
    cli.book = second
    error = cli.json(verb, *["one"] * (verb == "logs"), code=3)["error"]
    assert error["code"] == "workspace_of_another_book"
    assert str(first) in error["message"]
    assert f"runbook run {second} --adopt-workspace" in error["remedy"]
    assert (cli.workspace / "one").read_text() == "done"


def test_it_is_taken_over_when_asked_for(two):
    cli, first, second = two
    cli.book = second
    cli.json("run", "--adopt-workspace")
    assert (cli.workspace / "one").read_text() == "other"
    cli.json("status")
    cli.book = first
    assert cli.json("status", code=3)["error"]["code"] == "workspace_of_another_book"


def test_a_document_that_was_moved_goes_on_with_a_notice(two):
    cli, first, _ = two
    moved = cli.home / "moved"
    shutil.move(first.parent, moved)
    cli.book = moved / first.name
    said = cli.run("status").stderr
    assert f"was made by {first}, which is there no more" in said
    cli.json("run")
    assert not cli.run("status").stderr


def test_the_same_document_by_another_path(two):
    cli, first, _ = two
    (cli.home / "link").symlink_to(first.parent)
    cli.book = cli.home / "link" / first.name
    assert not cli.run("status").stderr


def test_a_document_may_change(two):
    cli, first, _ = two
    write_book(first.parent, {"id": "one"}, {"id": "two"})
    cli.json("run")


def test_looking_claims_nothing(cli):
    cli.book = write_book(cli.home, {"id": "one"})
    cli.json("plan")
    cli.json("status")
    assert not (cli.workspace / ".runbook").exists()


def test_of_a_shipped_book_the_name_counts(cli):
    cli.book = "rehearsal"
    cli.run("run", "--until", "preflight", code=None)
    cli.json("status")
    cli.book = write_book(cli.home, {"id": "one"})
    error = cli.json("status", code=3)["error"]
    assert "the shipped book" in error["message"]
