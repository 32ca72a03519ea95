"""`runbook lock`: what names that move are, resolved once, beside the document, for a fleet."""

from __future__ import annotations

import json

import pytest

from runbook.steps.publish.repository import Repository
from tests.steps.common.hub.hub import TestHub, write_repository

BOOK = """\
runbook: 1
name: fleet
inputs:
  endpoint: {{type: string, default: "{url}"}}
steps:
  - {{id: weights, uses: weights, with: {{repo: org/tiny, endpoint: "{{{{ inputs.endpoint }}}}"}}}}
  - id: pinned
    uses: weights
    needs: []
    with: {{repo: org/tiny, endpoint: "{url}", revision: "{commit}", destination: elsewhere}}
  - id: later
    uses: weights
    needs: [weights]
    with: {{repo: "org/{{{{ steps.weights.outputs.files }}}}", endpoint: "{url}"}}
"""
NAME = "model org/tiny@main"


@pytest.fixture
def releases(tmp_path):
    """What the branch is today, and what it is tomorrow."""
    found = []
    for number, sizes in enumerate([(10_000,), (20_000,)]):
        write_repository(tmp_path / str(number), sizes=sizes)
        found.append(Repository.of(tmp_path / str(number), "org/tiny"))
    return found


@pytest.fixture
def hub(releases):
    with TestHub(releases[0]) as hub:
        yield hub


@pytest.fixture
def book(cli, hub, releases):
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(BOOK.format(url=hub.url, commit=releases[0].revision))
    return cli.book


def serve(hub, repository):
    """The branch moves on."""
    for server in hub.servers:
        server.repository = repository


def test_a_branch_is_locked_beside_the_document_before_anything_runs(cli, book, hub, releases):
    first = releases[0].revision
    told = cli.json("plan")["steps"][0]["reasons"]
    beside = book.with_name("book.lock.json")
    assert any(f"is {first}; `run` locks it in {beside}" in reason["message"] for reason in told)
    answer = cli.json("lock")
    assert answer["path"] == str(beside)
    assert [entry["value"] for entry in answer["names"]] == [first, None]
    assert answer["names"][1]["unresolved"] == "it depends on what earlier steps make"
    assert json.loads(beside.read_text()) == {"runbook": 1, "lock": {NAME: first}}
    told = cli.json("plan")["steps"][0]["reasons"]
    assert any(f"{first}, locked in {beside}" in reason["message"] for reason in told)
    assert cli.json("lock")["names"][0] == answer["names"][0] | {"before": first}


def test_upgrade_is_asked_for_and_taken_up(cli, book, hub, releases):
    first, second = (release.revision for release in releases)
    cli.json("run", "--until", "weights")
    assert json.loads(book.with_name("book.lock.json").read_text())["lock"] == {NAME: first}
    serve(hub, releases[1])
    assert cli.json("lock", "weights")["names"][0]["value"] == first
    entry = cli.json("lock", "weights", "--upgrade")["names"][0]
    assert (entry["value"], entry["before"]) == (second, first)
    shown = cli.run("lock", "weights").stdout
    assert f"{NAME} is {second}" in shown and "as before" in shown
    answer = cli.json("run", "--until", "weights")
    assert answer["outputs"]["weights"]["revision"] == second


def test_another_machine_takes_what_the_lock_has(cli, book, hub, releases):
    cli.json("lock")
    serve(hub, releases[1])
    error = cli.json("run", "--until", "weights", code=1)["error"]
    assert error["code"] == "revision_not_found", "never what the branch is now"
    assert f"runbook lock {book} weights --upgrade" in error["remedy"]
    serve(hub, releases[0])
    answer = cli.json("run", "--until", "weights")
    assert answer["outputs"]["weights"]["revision"] == releases[0].revision


def test_a_shipped_book_is_locked_in_the_workspace(cli, hub, releases):
    repo = "LordNeel/DeepSeek-V4-Flash-Acti-MTP-W4A16-FP8"
    with TestHub(Repository.of(releases[0].folder, repo)) as there:
        answer = cli.json("lock", "deepseek-v4-flash", HF_ENDPOINT=there.url)
    assert answer["path"] == str(cli.workspace / "runbook.lock.json")
    [entry] = answer["names"]
    assert entry["step"] == "weights" and len(entry["value"]) == 40


@pytest.mark.parametrize("verb", ["validate", "plan", "check", "run", "destroy", "lock"])
def test_a_lock_of_the_wrong_form_is_told_before_anything_is_done(verb, cli, book):
    file = book.with_name("book.lock.json")
    file.write_text('{"runbook": 1,\n "lock": {')
    answer = cli.json(verb, code=2)
    assert answer["error"]["code"] == "lock_invalid"
    assert answer["error"]["where"].startswith(f"{file}:2:")
    assert f"`runbook lock {book}`" in answer["error"]["remedy"]
    assert not cli.workspace.exists() and file.read_text().endswith("{")


def test_a_hub_that_does_not_answer_is_the_steps_failure(cli, book):
    answer = cli.json("lock", "--set", "endpoint=http://127.0.0.1:9", code=1)
    assert answer["error"]["code"] == "hub_unreachable" and answer["error"]["retryable"]
    assert answer["names"][0]["unresolved"] and not book.with_name("book.lock.json").exists()
