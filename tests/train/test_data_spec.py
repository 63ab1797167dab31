"""Data strings: files by epoch, columns, ratios, shards, mixtures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.specs import (
    DataSpecError,
    columns,
    mix,
    ratios,
    shard,
    sources,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/layered_config/data_spec.json").read_text()
)


def read(kind: str, case: dict[str, Any]) -> Any:
    """What ours gives for a recorded case, in the words of the recording."""
    if kind == "paths":
        return [list(files) for files in sources(*case["args"])]
    if kind == "columns":
        found = columns(*case["args"])
        return [",".join(c.column for c in found), {c.column: c.name for c in found}]
    if kind == "ratios":
        [value] = case["args"]
        several = str(value).count(",") + 1
        found = ratios(value, several)
        return list(found) if several > 1 else found[0]
    if kind == "shard":
        return list(shard(*case["args"]))
    mixed = mix(case["lens"], case["sample_ratios"], case["interleaved"])
    return [source for source, _ in mixed]


CASES = [
    pytest.param(kind, case, id=case["id"])
    for kind in ("paths", "columns", "ratios", "shard", "mix")
    for case in GOLDEN[kind]
    if len(case.get("args", ())) < 4  # a shard's fourth: whether the last ones are the longer ones
]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_recorded_data_string_is_read_as_recorded(kind: str, case: dict[str, Any]) -> None:
    if "error" in case["expected"]:
        with pytest.raises(DataSpecError):
            read(kind, case)
    else:
        assert read(kind, case) == case["expected"]["result"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tsv ||| b.tsv,c.tsv", (("a.tsv",), ("b.tsv", "c.tsv"))),
        (["a.tsv", "b.tsv ||| c.tsv"], (("a.tsv",), ("b.tsv",), ("c.tsv",))),
        ("x_[1-3].tsv", (("x_1.tsv", "x_2.tsv", "x_3.tsv"),)),
        ("x_[08-10],y", (("x_08", "x_09", "x_10", "y"),)),
        (None, ()),
        ("  ", ()),
    ],
)
def test_bars_divide_sources_and_commas_the_files_that_take_turns(
    text: Any, expected: tuple[tuple[str, ...], ...]
) -> None:
    assert sources(text) == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sources("a,,b"), ["empty path", "'a,,b'"]),
        (lambda: sources("a ||| "), ["empty path"]),
        (lambda: sources("x_[3-1]"), ["x_[3-1]", "range is empty"]),
        (lambda: sources("x_[a-b]"), ["x_[a-b]", "[FIRST-LAST]"]),
        (lambda: sources("oss://bucket/a"), ["oss://bucket/a", "only local paths"]),
        (lambda: columns("0:a,1:a"), ["slot a twice"]),
        (lambda: columns("0:"), ["column, or column:slot"]),
        (lambda: columns("0:a:b"), ["column, or column:slot"]),
        (lambda: ratios(0.5, 2), ["1 given for 2 sources"]),
        (lambda: ratios([1, 2], 1), ["2 given for 1 sources"]),
        (lambda: ratios("__import__('os')", 1), ["must be a number"]),
        (lambda: ratios([1, float("nan")], 2), ["a finite number, 0 or more"]),
    ],
)
def test_a_mistake_names_the_value_and_the_rule(call: Any, words: list[str]) -> None:
    with pytest.raises(DataSpecError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_cover_all_rows_in_order_and_differ_by_one_at_most(rows: int, world: int) -> None:
    parts = [shard(rows, rank, world) for rank in range(world)]
    assert [row for start, end in parts for row in range(start, end)] == list(range(rows))
    sizes = [end - start for start, end in parts]
    assert sorted(sizes, reverse=True) == sizes and max(sizes) - min(sizes) <= 1


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.sampled_from([0.5, 1.0, 2.5])), min_size=1, max_size=4
    )
)
def test_interleaved_sources_stand_in_proportion_all_along(parts: list[tuple[int, float]]) -> None:
    rows, shares = [n for n, _ in parts], [r for _, r in parts]
    mixed = mix(rows, shares, interleaved=True)
    assert Counter(mixed) == Counter(mix(rows, shares, interleaved=False))
    order = [source for source, _ in mixed]
    total = Counter(order)
    for end in range(len(order) + 1):
        for source, n in total.items():
            # Half a row off at most in its own count, one more for each other source in between.
            assert abs(Counter(order[:end])[source] - end * n / len(order)) <= len(parts)


def test_a_source_above_its_rows_repeats_from_the_head() -> None:
    assert mix([3, 2], [1.0, 2.0], interleaved=False) == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 0), (1, 1),
    ]  # fmt: skip
