"""Object names against git itself."""

from __future__ import annotations

import subprocess

import pytest

from runbook.steps.publish import git

FILES = {"a.txt": "one\n", "a/b.txt": "two\n", "a-b": "three\n", "a/c/d.txt": "four\n", "z": ""}


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    return tmp_path


def ask(checkout, *arguments, **environment):
    process = subprocess.run(
        ["git", *arguments],
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(checkout), **environment},
    )
    return process.stdout.strip()


def test_blobs_trees_and_commits(checkout):
    blobs = [(name, git.blob_id(checkout / name)) for name in FILES]
    for name, oid in blobs:
        assert oid == ask(checkout, "hash-object", name)
    ids = git.tree_ids(blobs)
    root = ask(checkout, "write-tree")
    assert ids[""] == root
    assert ids["a"] == ask(checkout, "rev-parse", f"{root}:a")
    assert ids["a/c"] == ask(checkout, "rev-parse", f"{root}:a/c")
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in [
            ("NAME", "runbook"),
            ("EMAIL", "runbook@localhost"),
            ("DATE", "@0 +0000"),
        ]
    }
    assert git.commit_id(root, "text") == ask(checkout, "commit-tree", root, "-m", "text", **who)
