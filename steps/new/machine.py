"""This machine, as far as a book depends on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from runbook.steps.common import facts

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """`gpus` are those of one kind, the largest group; `gpu_memory` is of the least of them, in
    bytes, and `free` the space where workspaces lie. `nvlink`: whether all of them are linked so;
    None where it is not known."""

    gpus: int = 0
    gpu_name: str = ""
    architecture: str = ""
    gpu_memory: int = 0
    nvlink: bool | None = None
    memory: int = 0
    isa: str = ""
    free: int = 0

    def words(self) -> str:
        if not self.gpus:
            return f"no GPU, {self.isa}, {self.memory / GIB:.0f} GiB of memory"
        return (
            f"{self.gpus} x {self.gpu_name} of {self.gpu_memory / GIB:.0f} GiB, "
            f"{self.memory / GIB:.0f} GiB of memory"
        )


def here() -> Machine:
    """The machine that this runs on."""
    found = facts.gpus()
    groups: dict[tuple[str, str], list[facts.Fact]] = {}
    for gpu in found:
        groups.setdefault((gpu["architecture"], gpu["name"]), []).append(gpu)
    memory, cpu = facts.memory()["total"], facts.cpu()["isa"]
    if not groups:
        return Machine(memory=memory, isa=cpu, free=_free())
    (architecture, name), chosen = max(groups.items(), key=lambda group: len(group[1]))
    own = {gpu["index"] for gpu in chosen}
    links = [link for link in facts.gpu_links() if own >= {link["a"], link["b"]}]
    return Machine(
        gpus=len(chosen),
        gpu_name=name,
        architecture=architecture,
        gpu_memory=min(gpu["memory"] for gpu in chosen),
        nvlink=all(link["nvlinks"] for link in links) if links else None,
        memory=memory,
        isa=cpu,
        free=_free(),
    )


def _free() -> int:
    """Free bytes where workspaces lie by default."""
    place = os.environ.get("RUNBOOK_WORKSPACE") or os.environ.get("XDG_DATA_HOME")
    folder = os.path.abspath(place or os.path.expanduser("~/.local/share"))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
