"""Distributions for property tests of searches."""

from __future__ import annotations

from hypothesis import strategies as st

from autocl_sweeper.distributions import Choice, Distribution, Interval

NUMBERS: st.SearchStrategy[Distribution] = st.one_of(
    st.tuples(st.floats(-100, 100), st.floats(0.1, 100)).map(lambda b: Interval(b[0], b[0] + b[1])),
    st.tuples(st.floats(1e-6, 10), st.floats(1.5, 1e4)).map(
        lambda b: Interval(b[0], b[0] * b[1], log=True)
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 40), st.booleans()).map(
        lambda b: Interval(b[0], b[0] + b[1], log=b[2], integer=True)
    ),
    st.lists(st.integers(-9, 9), min_size=2, max_size=5, unique=True).map(
        lambda values: Choice(tuple(values))
    ),
)
"""Each with more than one number."""

NAMES = Choice(("relu", None, True, [1, 2], {"k": 1.5}))
SINGLE = [Interval(0.25, 0.25), Interval(2, 2, log=True, integer=True), Choice((7,))]
