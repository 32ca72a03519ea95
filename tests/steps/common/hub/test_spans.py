from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from runbook.steps.common.hub.spans import Spans

SIZE = 60
SPAN = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda s: (min(s), max(s)))


@given(added=st.lists(SPAN, max_size=15))
def test_behaves_as_a_set_of_positions(added):
    spans, model = Spans(), set()
    for start, stop in added:
        spans.add(start, stop)
        model |= set(range(start, stop))
    held = spans.dump()
    assert {p for start, stop in held for p in range(start, stop)} == model
    assert spans.total == len(model)
    gaps = spans.gaps(SIZE)
    assert {p for start, stop in gaps for p in range(start, stop)} == set(range(SIZE)) - model
    for found in (held, gaps):
        assert all(start < stop for start, stop in found), "none is empty"
        assert all(a[1] < b[0] for a, b in itertools.pairwise(found)), "disjoint, sorted"
    for position in range(SIZE):
        end = position
        while end in model:
            end += 1
        assert spans.end_of(position) == end
