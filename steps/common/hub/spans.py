"""Sets of byte positions as sorted, disjoint spans (start, stop), stop excluded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Span = tuple[int, int]


class Spans:
    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans: list[Span] = []
        for start, stop in spans:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Add positions; spans that touch become one."""
        if start >= stop:
            return
        first = bisect_left(self._spans, start, key=lambda s: s[1])
        last = bisect_right(self._spans, stop, key=lambda s: s[0])
        if first < last:
            start = min(start, self._spans[first][0])
            stop = max(stop, self._spans[last - 1][1])
        self._spans[first:last] = [(start, stop)]

    def end_of(self, position: int) -> int:
        """Where the unbroken run that holds `position` ends; `position` if nothing holds it."""
        i = bisect_right(self._spans, position, key=lambda s: s[0]) - 1
        return max(position, self._spans[i][1]) if i >= 0 else position

    def gaps(self, size: int) -> list[Span]:
        """What is missing of [0, size)."""
        found, position = [], 0
        for start, stop in self._spans:
            if start > position:
                found.append((position, start))
            position = stop
        if position < size:
            found.append((position, size))
        return found

    @property
    def total(self) -> int:
        return sum(stop - start for start, stop in self._spans)

    def dump(self) -> list[Span]:
        return list(self._spans)
