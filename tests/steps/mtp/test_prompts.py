"""The step mtp-prompts against a local hub that serves a dataset, and how rows become prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runbook.protocol import StepFailure
from runbook.steps.mtp.prompts import Prompts
from runbook.steps.mtp.prompts.conversations import PromptError, draw
from runbook.steps.publish.repository import Repository
from tests.steps.common.hub.hub import Fault, FaultyHandler, FaultyServer, TestHub
from tests.steps.mtp.test_kinds import context

NAME = "org/talks"
ROWS = 40


class DatasetHandler(FaultyHandler):
    """Serves the repository where the hub has datasets, and nowhere else."""

    def _answer(self) -> None:
        for dataset, model in (("/api/datasets/", "/api/models/"), ("/datasets/", "/")):
            if self.path.startswith(dataset):
                self.path = model + self.path.removeprefix(dataset)
                break
        else:
            if not self.server.content:
                self.path = "/api/models/none"
        super()._answer()


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"answer {number}"},
        {"role": "user", "content": f"and {number}?"},
        {"role": "assistant", "content": "no"},
    ]


def write(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for part in range(2):
        rows = [
            {"prompt": f"question {n}", "prompt_id": str(n), "messages": talk(n)}
            for n in range(part * ROWS // 2, (part + 1) * ROWS // 2)
        ]
        path = folder / f"data/train_sft-0000{part}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        (folder / f"data/part-{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (folder / f"data/list-{part}.json").write_text(json.dumps(rows, indent=1))
    (folder / "data/test_sft.parquet").write_bytes(b"not read")
    (folder / "README.md").write_text("talks\n")
    return folder


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


class DatasetHub(TestHub):
    __test__ = False

    def __init__(self, repository: Repository, **options) -> None:
        super().__init__(repository, **options)
        for server in self.servers:
            assert isinstance(server, FaultyServer)
            server.RequestHandlerClass = DatasetHandler


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source")


@pytest.fixture
def hub(source):
    with DatasetHub(Repository.of(source, NAME)) as started:
        yield started


def step(tmp_path: Path, hub: TestHub, pattern: str = "data/train_sft-*.parquet", **values):
    given = {"repo": NAME, "endpoint": hub.url, "files": {"allow": [pattern]}, "patience": 5.0}
    return context(Prompts(), tmp_path / "w", **{**given, "count": 9, **values})


def drawn(check) -> list[list[dict[str, str]]]:
    made = Prompts.Outputs(**check.outputs)
    lines = Path(made.path).read_text().splitlines()
    assert len(lines) == made.count
    return [json.loads(line)["messages"] for line in lines]


@pytest.mark.parametrize("pattern", ["data/train_sft-*.parquet", "data/*.jsonl", "data/*.json"])
def test_draws_from_the_dataset(pattern, tmp_path, hub):
    ctx = step(tmp_path, hub, pattern)
    before = Prompts().check(ctx)
    assert not before.ok and before.work.bytes > 0
    Prompts().apply(ctx)
    check = Prompts().check(ctx)
    assert check.ok and check.outputs["revision"] == hub.repository.revision
    found = drawn(check)
    numbers = [int(messages[0]["content"].split()[-1]) for messages in found]
    assert len(set(numbers)) == 9 and min(numbers) < ROWS // 2 <= max(numbers)
    assert found == [talk(n)[:3] for n in numbers]  # the model's last word is for it to say
    folder = tmp_path / "w/datasets/talks"
    assert {p.name for p in folder.rglob("*") if p.is_file() and p.name[0] != "."} == {
        Path(f.path).name for f in hub.repository.files if Path(f.path).match(pattern)
    }
    Prompts().undo(ctx)
    left = [p for p in (tmp_path / "w").rglob("*") if p.name != "log"]
    assert [p.relative_to(tmp_path / "w").parts[0] for p in left] == ["runbook.lock.json"]


def test_all_forms_hold_the_same_and_the_seed_draws(tmp_path, source):
    def some(pattern: str, seed: int):
        return draw(sorted(source.glob(pattern)), 12, seed, "messages")

    first = some("data/train_sft-*.parquet", 1)
    assert first == some("data/*.jsonl", 1) == some("data/*.json", 1)
    assert first != some("data/*.jsonl", 2)
    assert len(draw([source / "data/part-0.jsonl"], 999, 0)) == ROWS // 2
    assert draw([source / "data/part-0.jsonl"], 1, 0, "prompt")[0][0]["role"] == "user"


def test_a_branch_is_resolved_once_and_other_inputs_draw_again(tmp_path, hub, source):
    ctx = step(tmp_path, hub)
    Prompts().apply(ctx)
    first = drawn(Prompts().check(ctx))
    asked = hub.faults.requests["content"] + hub.faults.requests["api"]
    ctx.inputs.seed = 5
    assert Prompts().check(ctx).reasons[0].code == "inputs_changed"
    Prompts().apply(ctx)
    assert drawn(Prompts().check(ctx)) != first
    assert hub.faults.requests["content"] + hub.faults.requests["api"] == asked
    (tmp_path / "w/s.jsonl").write_text("other\n")
    assert Prompts().check(ctx).reasons[0].code == "result_changed"
    Prompts().apply(ctx)
    assert Prompts().check(ctx).ok


@pytest.mark.parametrize(
    ("fault", "values", "code"),
    [
        (None, {"repo": "org/none"}, "repository_not_found"),
        (None, {"revision": "v7"}, "revision_not_found"),
        (None, {"files": {"allow": ["*.csv"]}}, "nothing_to_download"),
        (None, {"column": "dialogue"}, "bad_prompts"),
        (None, {"column": "prompt_id", "files": {"allow": ["README.md"]}}, None),
        (None, {"files": {"allow": ["data/test_sft.parquet"]}}, "bad_prompts"),
        ("503", {"patience": 0.2}, "hub_unreachable"),
        ("429", {"patience": 0.2}, "hub_rate_limited"),
    ],
)
def test_what_fails_says_why(fault, values, code, tmp_path, hub):
    if fault:
        hub.faults.always["api"] = Fault(fault, "api")
    ctx = step(tmp_path, hub, **values)
    if code is None:  # lines of text have no columns
        Prompts().apply(ctx)
        assert drawn(Prompts().check(ctx)) == [[{"role": "user", "content": "talks"}]]
        return
    with pytest.raises(StepFailure) as failure:
        Prompts().apply(ctx)
    assert failure.value.code == code
    assert failure.value.remedy
    assert not Prompts().check(ctx).ok


def test_a_gated_dataset_needs_its_token(tmp_path, source, monkeypatch):
    repository = Repository.of(source, NAME, "gated")
    with DatasetHub(repository, token="hf_secret") as hub:
        ctx = step(tmp_path, hub)
        assert "gated_repository" in {r.code for r in Prompts().check(ctx).reasons}
        with pytest.raises(StepFailure) as failure:
            Prompts().apply(ctx)
        assert failure.value.code == "gated_repository" and failure.value.exit_code == 3
        assert f"{hub.url}/datasets/{NAME}" in str(failure.value.remedy)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        ctx.secrets = frozenset({"HF_TOKEN"})
        Prompts().apply(ctx)
        assert Prompts().check(ctx).ok


def test_the_endpoint_of_the_environment_is_asked(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    ctx = step(tmp_path, hub, endpoint=None)
    Prompts().apply(ctx)
    assert Prompts().check(ctx).ok


def test_without_pyarrow_nothing_is_downloaded(tmp_path, hub, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    ctx = step(tmp_path, hub)
    reasons = {r.code: r for r in Prompts().check(ctx).reasons}
    assert "pip install pyarrow" in reasons["no_pyarrow"].remedy
    with pytest.raises(StepFailure) as failure:
        Prompts().apply(ctx)
    assert failure.value.code == "no_pyarrow" and failure.value.exit_code == 3
    assert not (tmp_path / "w/datasets").exists()
    Prompts().apply(step(tmp_path, hub, "data/*.jsonl"))
    with pytest.raises(StepFailure) as failure:  # only its listing says what it has
        Prompts().apply(step(tmp_path, hub, "data/train*"))
    assert failure.value.code == "no_pyarrow"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no prompts"),
        ("{broken", "part.jsonl: "),
        ('{"other": 1}', "no messages or prompt, only other"),
        ('{"prompt": ""}', "row 1"),
        ('{"prompt": "fine"}\n{"messages": [{"role": "assistant", "content": "a"}]}', "row 2"),
        ('{"messages": [{"content": "a"}]}', "row 1"),
        ('{"messages": 7}', "row 1"),
    ],
)
def test_rows_that_are_no_prompts_are_named(text, why, tmp_path):
    path = tmp_path / "part.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=why):
        draw([path], 10, 0)
