"""Whether the bridges above a PCI device send peers' requests through the host (ACS)."""

from __future__ import annotations

from pathlib import Path

EXTENDED = 0x100
"""Where extended capabilities begin; only root may read that far."""
ACS = 0x000D
CONTROL = 6
REDIRECT = 0b1100
"""Bits of the control register: request redirect, completion redirect (PCIe 6.0, 7.7.11)."""
MOST_CAPABILITIES = 64


def redirecting(device: Path) -> list[str]:
    """The bridges above a device of sysfs that redirect, by PCI address, the uppermost first; none
    where the configuration may not be read."""
    path = device.resolve()
    return [
        folder.name
        for folder in reversed(path.parents)
        if (folder / "config").is_file() and _redirects(folder / "config")
    ]


def _redirects(config: Path) -> bool:
    try:
        data = config.read_bytes()
    except OSError:
        return False
    place = EXTENDED
    for _ in range(MOST_CAPABILITIES):
        header = int.from_bytes(data[place : place + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return False
        if header & 0xFFFF == ACS:
            control = data[place + CONTROL : place + CONTROL + 2]
            return bool(int.from_bytes(control, "little") & REDIRECT)
        place = header >> 20
        if place < EXTENDED:
            return False
    return False
