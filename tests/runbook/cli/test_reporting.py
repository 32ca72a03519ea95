"""The page and the archive that are handed on: what they hold, and that no secret is in them."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from runbook.cli import report
from runbook.state import story
from tests.runbook.cli.test_answers import SERVER
from tests.runbook.helpers import write_book


@pytest.fixture
def failed(cli):
    """A run of three steps: one that holds, one that fails, one that waits for it."""
    steps = (
        {"id": "first", "with": {"seconds": 0.2}},
        {"id": "bad", "with": {"mood": "fails"}},
        {"id": "last", "with": {"content": "<script>alert(1)</script>"}},
    )
    cli.book = write_book(cli.home, *steps)
    cli.json("run", code=1)
    return cli


def test_the_page_tells_steps_runs_and_outputs_and_needs_no_network(failed):
    answer = failed.json("report", "--output", "page.html")
    page = Path(answer["path"]).read_text()
    assert len(page.encode()) == answer["bytes"]
    for told in ("first", "a bad mood", "remedy: cheer it up", 'class="bar failed"', "done"):
        assert told in page
    assert not re.search(r"(?:src|href)=|https?://|<script", page)


def test_what_documents_say_is_text_on_the_page(failed):
    failed.book = write_book(
        failed.home, {"id": "first", "with": {"content": "<script>alert(1)</script>"}}
    )
    failed.json("run")
    page = Path(failed.json("report")["path"]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_story_has_each_attempt_with_its_times_and_its_end(failed):
    (run,) = story.runs([(failed.workspace / ".runbook" / "latest").resolve()])
    assert [(a["step"], a["outcome"]) for a in run["attempts"]] == [
        ("first", "succeeded"),
        ("bad", "failed"),
    ]
    assert all(0 <= a["start"] <= a["end"] <= run["seconds"] for a in run["attempts"])
    assert run["exit_code"] == 1
    assert run["attempts"][0]["rates"]["seconds"]["done"] > 0


def test_the_archive_holds_what_helps_and_no_secret(cli):
    secret = 's3cret/väl "ue'
    cli.environment["MY_TOKEN"] = secret
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "tells"}}, secrets=["MY_TOKEN"])
    cli.json("run", code=1)
    answer = cli.json("bundle")
    names = {entry["name"].rpartition("/")[2] for entry in answer["files"]}
    assert {"document.json", "status.json", "machine.json", "packages.txt"} <= names
    assert {"journal.ndjson", "runbook.yaml", "one.1.log"} <= names
    with tarfile.open(answer["path"]) as archive:
        for member in archive.getmembers():
            assert member.mode == 0o600
            content = archive.extractfile(member).read()
            assert secret.encode() not in content
            assert b"v\\u00e4l" not in content
    assert Path(answer["path"]).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("verb", ["report", "bundle"])
def test_nothing_is_handed_on_before_a_run(cli, verb):
    cli.book = write_book(cli.home, {"id": "one"})
    answer = cli.json(verb, code=3)
    assert answer["error"]["code"] == "never_ran"
    assert f"runbook run {cli.book}" in answer["error"]["remedy"]


def test_what_was_measured_stands_beside_what_the_profile_promises():
    figure = {"value": 85.5, "unit": "tokens/s", "source": "the model card"}
    record = {
        "outputs": {
            "profile": "fast", "tokens_per_second": 80.1, "loud": True, "phases": {"a": 3, "b": 1},
            "revision": "abc", "wheel_sha256": "def", "model": "tiny", "gcc_version": "12",
        },
        "inputs": {"profiles": {"fast": {"figures": [figure]}, "slow": {}}},
        "fingerprint": {"files": "123"},
    }  # fmt: skip
    told = report._measured("serve", record)
    assert told["numbers"] == {"tokens_per_second": 80.1}
    assert [(p["name"], p["left"], p["width"]) for p in told["wholes"]["phases"]] == [
        ("a", 0.0, 75.0),
        ("b", 75.0, 25.0),
    ]
    assert told["figures"] == ["85.5 tokens/s source the model card"]
    assert report._provenance(record) == [
        ("revision", "abc"),
        ("wheel_sha256", "def"),
        ("gcc_version", "12"),
        ("files it is made of", "123"),
    ]
    assert report._measured("two", {"outputs": {"path": "x"}, "inputs": {}}) is None


def test_the_page_shows_amounts_measures_and_provenance(cli):
    (cli.home / "server.py").write_text(SERVER)
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(
        "runbook: 1\nname: served\nsteps:\n"
        '  - {id: smoke, uses: "server.py:Server", with: {measured: true}}\n'
    )
    cli.json("run")
    page = Path(cli.json("report")["path"]).read_text()
    assert "<h2>Measured</h2>" in page and "<dd>12.34</dd>" in page
    assert "<h2>Provenance</h2>" not in page or "files it is made of" in page


def test_rows_of_measures_are_a_table():
    """As the step `collectives` gives them."""
    sizes = [
        {"bytes": 4096, "seconds": 45e-6, "gb_per_second": 0.091},
        {"bytes": 32 << 20, "seconds": 0.0012, "gb_per_second": 105.25},
    ]
    table = [
        {"variant": "one", "verdict": "right", "detail": "", "sizes": sizes},
        {"variant": "two", "verdict": "hung", "detail": "", "sizes": []},
    ]
    assert report._table(table) == {
        "columns": ["variant", "verdict", "bytes", "seconds", "gb_per_second"],
        "rows": [
            ["one", "right", "4,096", "45 us", "0.091"],
            ["", "", "33,554,432", "1.2 ms", "105.2"],
            ["two", "hung", "", "", ""],
        ],
    }
    assert report._table([{"seconds": 1.5}])["rows"] == [["1.5 s"]]
    for other in ([], ["a"], [{"name": "a", "count": 2}], {"a": 1.5}, 2.5):
        assert report._table(other) is None
