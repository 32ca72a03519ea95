"""Installed wheels are moved and removed within their tree, whatever their RECORD says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.protocol import StepFailure
from runbook.steps.toolkit import record
from tests.cpu import bounded, examples
from tests.steps.toolkit.test_pypi import PypiBench, pypi  # noqa: F401
from tests.steps.toolkit.wheelhouse import write_wheel

INFO = "pkg-1.0.dist-info"
# Paths below the tree, out of it, and through the links that are laid in it.
PATHS = [
    "pkg/a.py",
    "pkg",
    f"{INFO}/RECORD",
    "../victim",
    "../outside/victim",
    "pkg/../../victim",
    "out/victim",
    "pkg/up/victim",
    "link",
    "/{root}/victim",
    "//{root}/victim",
    "./../victim",
    "pkg//../../victim",
    ".",
    "..",
    "",
    "../tree/pkg/a.py",
    "in/a.py",
    "missing",
]


def lay(root: Path, rows: list[str]) -> dict[str, bytes]:
    """A tree with an installed wheel, links out of it, and what must never be touched; gives the
    latter."""
    for folder in ("tree", "other"):
        (root / folder / "pkg").mkdir(parents=True)
        (root / folder / INFO).mkdir()
        (root / folder / "pkg/a.py").write_text("x = 1\n")
        (root / folder / "out").symlink_to("../outside")
        (root / folder / "pkg/up").symlink_to("../..")
        (root / folder / "link").symlink_to("../victim")
        (root / folder / "in").symlink_to("pkg")
        (root / folder / INFO / "RECORD").write_text("".join(rows))
    (root / "outside").mkdir()
    for victim in ("victim", "outside/victim"):
        (root / victim).write_text(f"{victim} stays")
    return untouched(root)


def untouched(root: Path) -> dict[str, bytes]:
    return {p: (root / p).read_bytes() for p in ("victim", "outside/victim") if (root / p).exists()}


def use(root: Path) -> None:
    """All that is done by a RECORD, in the order of an installation and its removal."""
    (root / "tree" / INFO / "RECORD").chmod(0o644)
    record.damage(root / "tree", INFO)
    try:
        record.move(root / "other", root / "tree", INFO)
    except OSError:  # a folder is in the way of a file; the step says so
        pass
    record.damage(root / "tree", INFO)
    record.remove(root / "tree", INFO)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", ["", "6", "14"])
def test_no_row_reaches_out_of_the_tree(tmp_path: Path, path: str, size: str) -> None:
    before = lay(tmp_path, [f"{path.format(root=tmp_path)},,{size}\n", f"{INFO}/RECORD,,\n"])
    use(tmp_path)
    assert untouched(tmp_path) == before


@pytest.mark.harness
@settings(max_examples=examples(400))
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(PATHS),
                st.lists(st.sampled_from(["..", ".", "", "pkg", "up", "out", "victim"])).map(
                    "/".join
                ),
            ),
            st.sampled_from(["", "sha256=x", "md5=x"]),
            st.sampled_from(["", "6", "x"]),
        ).map(",".join),
        max_size=5,
    )
)
def test_no_record_reaches_out_of_the_tree(rows: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before = lay(root, [f"{row.replace('{root}', folder)}\n" for row in rows])
        with bounded():
            use(root)
        assert untouched(root) == before
        assert not (root / "tree" / INFO / "RECORD").exists()


def test_a_pinned_wheel_that_names_files_outside_is_refused_before_it_is_unpacked(
    pypi: PypiBench,  # noqa: F811
) -> None:
    victim = pypi.workspace / "victim"
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text("stays")
    rogue = write_wheel(pypi.house, "rogue", "1.0", {"rogue.py": b"x = 1\n"})
    with_row(rogue, "../victim,,5\n")
    pypi.wheels["rogue"] = rogue
    pypi.write_lock()
    with pytest.raises(StepFailure) as caught:
        pypi.install()
    assert caught.value.code == "wheel_malformed"
    assert "'../victim', outside its tree" in caught.value.cause
    assert victim.read_text() == "stays"
    assert not list(pypi.prefix.glob("rogue*"))


def with_row(wheel: Path, row: str) -> None:
    """Add a row to the RECORD of a wheel file."""
    import zipfile

    aside = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(aside, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data + row.encode() if name.endswith("RECORD") else data)
    os.replace(aside, wheel)


def test_a_stranger_in_the_prefix_takes_nothing_outside_with_it(
    pypi: PypiBench,  # noqa: F811
) -> None:
    pypi.install()
    info = pypi.prefix / "stranger-1.dist-info"
    info.mkdir()
    victim = pypi.workspace / "victim"
    victim.write_text("stays")
    (info / "RECORD").write_text(f"../victim,,\n{victim},,\nstranger-1.dist-info/RECORD,,\n")
    pypi.install()
    assert victim.read_text() == "stays"
    assert not info.exists()
