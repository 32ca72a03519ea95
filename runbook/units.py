"""Quantities in words."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold: 512 B, 1.5 GB, 146 GB."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(amount) < 999.5 or unit == "TB":
            break
        amount /= 1000
    text = f"{amount:.0f}" if abs(amount) >= 99.95 or unit == "B" else f"{amount:.1f}"
    return f"{text.removesuffix('.0')} {unit}"


def moment(seconds: float) -> str:
    """A time that may be very short: 45 us, 1.2 ms."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:.3g} {unit}"
    return duration(seconds)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
