"""The linter on the layout of DeepSeek-V4-Flash-0731 in full size, sound and damaged, in a folder
and on a hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.hub import open_repository
from runbook.steps.checkpoint.layout import layout
from runbook.steps.checkpoint.lint import examine, lint, subject
from runbook.steps.publish import git
from runbook.steps.publish.repository import File, Repository
from tests.steps.checkpoint import full_size
from tests.steps.checkpoint.cases import PATCHED
from tests.steps.checkpoint.test_hub import NAME, Counting, served

pytestmark = pytest.mark.harness

TENSORS = 72_317
STAGES = [1_568, 1_565, 1_572]
"""As published of the release: in all, and in its last three files."""


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "0731"
    assert full_size.write(folder) == TENSORS
    return folder


def test_the_layout_has_the_tensors_that_the_release_has():
    made = full_size.entries(layout(full_size.CONFIG))
    assert len(made) == TENSORS
    assert [sum(n.startswith(f"mtp.{i}.") for n in made) for i in range(3)] == STAGES


def test_sound(release):
    found = lint(release, PATCHED)
    # Holes read as zeros: exponents of 2^-127, which is what a sample of the scales shows.
    assert {f.id for f in found if f.severity != "info"} == set()
    assert open_folder(release).total_size == sum(
        t.nbytes for t in open_folder(release).tensors.values()
    )


def without(prefix: str):
    return lambda made: [made.pop(n) for n in list(made) if n.startswith(prefix)]


def shaped(name: str, shape: tuple[int, ...]):
    return lambda made: made.update({name: (name, made[name][1], shape)})


@pytest.mark.parametrize(
    ("change", "finding", "count"),
    [
        (without("mtp.2."), "dspark_stages", 0),
        (without("mtp.2."), "dspark_incomplete", None),
        (without("mtp.1.ffn.shared_experts."), "dspark_incomplete", 3),
        (without("mtp.0.ffn.experts.255.w3."), "dspark_incomplete", 1),
        (shaped("mtp.2.markov_head.markov_w1.weight", (129280, 128)), "tensor_shape", 1),
        (shaped("mtp.2.markov_head.markov_w2.weight", (256, 129280)), "tensor_shape", 1),
        (shaped("mtp.0.main_proj.weight", (4096, 8192)), "tensor_shape", 1),
        (shaped("mtp.1.ffn.experts.7.w1.scale", (2048, 64)), "scale_shape", 1),
    ],
)
def test_damaged(change, finding, count, tmp_path):
    full_size.write(tmp_path / "c", change)
    found = [f for f in lint(tmp_path / "c", PATCHED) if f.id == finding]
    assert [f.severity for f in found] == ["error"]
    assert count is None or len(found[0].tensors) == count


def test_on_a_hub_by_headers_alone(release):
    """No digest of 167 GB is computed: the hub is told made-up ones."""
    files = []
    for path in sorted(release.iterdir()):
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            sha256 = hashlib.sha256(path.name.encode()).hexdigest()
            oid = git.object_id("blob", git.pointer(sha256, size))
            files.append(File(path.name, size, oid, sha256))
        else:
            files.append(File(path.name, size, git.blob_id(path)))
    with served(Repository(NAME, "a" * 40, release, tuple(files))) as url:
        remote = open_repository(NAME, url)
        sent = Counting.sent
    assert len(remote.tensors) == TENSORS
    assert remote.headers == open_folder(release).headers
    assert sent <= 48 * (256 << 10)
    assert [f.id for f in examine(subject(remote), PATCHED)] == [
        f.id for f in examine(subject(open_folder(release)), PATCHED)
    ]
