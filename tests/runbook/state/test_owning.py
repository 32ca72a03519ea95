"""Which document a workspace belongs to, without a process."""

from __future__ import annotations

import json

import pytest

from runbook.errors import RunbookError
from runbook.state import records
from runbook.state.owner import ADOPT, Owner


@pytest.fixture
def owner(tmp_path):
    """An owner by name, path of its document, and whether that is shipped."""
    state = tmp_path / "w" / ".runbook"
    state.mkdir(parents=True)
    return lambda name, source="", shipped=False: Owner(state, name, str(source), shipped)


def test_nobodys_workspace_is_everybodys(owner, tmp_path):
    assert owner("a", tmp_path / "a.yaml").verify() == ""
    assert owner("a", shipped=True).verify() == ""


def test_what_is_recorded(owner, tmp_path):
    mine = owner("a", tmp_path / "a.yaml")
    mine.record()
    file = tmp_path / "w" / ".runbook" / "owner.json"
    record = {"schema": "runbook/1", "name": "a", "source": str(tmp_path / "a.yaml")}
    assert json.loads(file.read_text()) == records.sealed(record)
    before = file.stat().st_ino
    mine.record()
    assert file.stat().st_ino == before, "as it was"
    owner("b", "/shipped/b.yaml", shipped=True).record()
    assert json.loads(file.read_text())["source"] == ""
    file.write_text("{}")
    assert mine.verify() == ""


# Who recorded itself, who comes, and whether the workspace is theirs. Of sources `a` and `b` are
# there, `link` leads to `a`.
CASES = [
    (("n", "a"), ("n", "a"), True),
    (("n", "a"), ("m", "a"), True),
    (("n", "a"), ("n", "link"), True),
    (("n", "a"), ("m", "link"), True),
    (("n", "a"), ("n", "b"), False),
    (("n", "a"), ("n", None), False),
    (("n", None), ("n", "a"), False),
    (("n", None), ("n", None), True),
    (("n", None), ("m", None), False),
    (("n", "gone"), ("m", "a"), False),
    (("n", "gone"), ("n", None), False),
    (("n", "dangling"), ("n", "a"), False),
]


@pytest.fixture
def sources(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    return lambda given: (given[0], str(tmp_path / (given[1] or "x")), given[1] is None)


@pytest.mark.parametrize(("recorded", "comes", "theirs"), CASES)
def test_whose_it_is(owner, sources, tmp_path, recorded, comes, theirs):
    owner(*sources(recorded)).record()
    if theirs:
        assert owner(*sources(comes)).verify() == ""
        return
    with pytest.raises(RunbookError) as refused:
        owner(*sources(comes)).verify()
    error = refused.value
    source = tmp_path / recorded[1] if recorded[1] else "the shipped book"
    assert str(error) == (
        f"the workspace {tmp_path / 'w'} belongs to another document of the name n: {source}"
    )
    assert (error.code, error.exit_code) == ("workspace_of_another_book", 3)
    assert error.cause == "what is recorded there was made by the steps of that document"
    assert error.remedy == ADOPT
    assert error.where == str(tmp_path / "w" / ".runbook" / "owner.json")


def test_a_document_that_was_moved_is_told_of(owner, sources, tmp_path):
    owner(*sources(("n", "gone"))).record()
    assert owner(*sources(("n", "a"))).verify() == (
        f"this workspace was made by {tmp_path / 'gone'}, which is there no more: "
        f"{tmp_path / 'a'} goes on with it"
    )
