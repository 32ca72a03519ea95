"""What a power cut may take of the journal of files: the latest small ones, and no large one."""

from __future__ import annotations

import os

import pytest

from runbook.steps.common.hub import inventory
from runbook.steps.common.hub.inventory import JOURNAL, Inventory, Record
from runbook.steps.common.hub.listing import Digest, Entry, Listing
from runbook.steps.common.hub.parts import FOLDER

SMALL, LARGE = 1000, 200 << 20

# sizes of files in turn, of how many lines at the end the disk may know nothing, most waits for it
CASES = {
    "one small file": ([SMALL], 1, 0),
    "one large file": ([LARGE], 0, 1),
    "a large file after small ones": ([SMALL] * 9 + [LARGE], 0, 1),
    "small files after a large one": ([LARGE] + [SMALL] * 9, 9, 1),
    "files of 10 MB": ([10 << 20] * 30, 6, 5),
    "ten thousand small files": ([SMALL] * 10_000, 255, 40),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_disk_may_not_know_is_bounded(name, tmp_path, monkeypatch):
    sizes, most, waits = CASES[name]
    entries = [Entry(f"f{n}", size, Digest("sha256", f"{n:064x}")) for n, size in enumerate(sizes)]
    here = Inventory({"repo": "o/n", "revision": "main"}, Listing("o/n", "a" * 40, tuple(entries)))
    here.save(tmp_path)
    journal = tmp_path / FOLDER / JOURNAL
    durable: list[bytes] = []
    counted = [0]
    sync = os.fsync

    def spy(file: int) -> None:
        sync(file)
        if os.readlink(f"/proc/self/fd/{file}") == str(journal):
            durable.append(journal.read_bytes())
            counted.append(durable[-1].count(b'["f'))

    monkeypatch.setattr(inventory.os, "fsync", spy)
    for n, entry in enumerate(entries, start=1):
        here.add(tmp_path, entry, Record(entry.size, n, "downloaded", True))
        assert n - counted[-1] <= max(most, 255) and (entry.size < LARGE or counted[-1] == n)
    assert len(entries) - counted[-1] <= most
    assert len(durable) <= waits
    # What the disk knew at the last moment is a journal that counts.
    journal.write_bytes(durable[-1] if durable else b"")
    again = Inventory.load(tmp_path)
    assert again is not None and len(again.records) >= len(entries) - most


def test_a_file_that_counts_no_more_is_durably_out_of_the_journal(tmp_path, monkeypatch):
    entry = Entry("f", SMALL, Digest("sha256", "0" * 64))
    here = Inventory({"repo": "o/n", "revision": "main"}, Listing("o/n", "a" * 40, (entry,)))
    here.save(tmp_path)
    here.add(tmp_path, entry, Record(SMALL, 1, "downloaded", True))
    synced: list[int] = []
    monkeypatch.setattr(inventory.os, "fsync", synced.append)
    here.drop(tmp_path, entry)
    assert len(synced) == 1
