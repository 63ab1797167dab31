"""Starts that were merged from other trials: in the journal, in trials.csv and on the page; and those skipped."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from support.journals import ADAM, Written

from autocl_sweeper.errors import SkippedError
from autocl_sweeper.journal import outcome_from_json, outcome_to_json
from autocl_sweeper.outcome import failure, outcome_of
from autocl_sweeper.overview import look
from autocl_sweeper.page.document import page
from autocl_sweeper.page.starts import merged_starts
from autocl_sweeper.results.table import write_table
from autocl_sweeper.types import Cause, State


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two trials, then one from the best of them, one merged of both, and one that was skipped."""
    written = Written(tmp_path)
    for number, score in ((0, 0.75), (1, 0.5)):
        written.start(number)
        written.finish(number, score)
    written.select(1, 0, 1)
    for number, extra in ((2, 0), (3, 1), (4, 2)):
        written.start(number, ADAM, stage=2, parent=0, extra=extra)
    written.finish(2, 0.625)
    written.finish(3, 0.875, merged_from={"0": 0.75, "1": 0.25, "<b>": 0.0})
    written.finish(4, None, State.PRUNED, cause=Cause.SKIPPED, reason="nothing to merge")
    written.journal.close()
    return tmp_path


def test_the_page_has_a_heat_map_of_weights_with_what_the_merge_brought(sweep: Path) -> None:
    """ESS: 1 / (9/16 + 1/16) = 1.6; 0.875 is 0.25 ahead of the parent's own start."""
    [stage] = merged_starts(look(sweep))
    [row] = stage.rows
    assert stage.sources == [("0", 0), ("1", 1), ("<b>", None)]
    assert (row.trial, row.weights, row.score) == (3, [0.75, 0.25, 0.0], 0.875)
    assert row.effective == pytest.approx(1.6) and row.ahead == pytest.approx(0.25)
    text = page(look(sweep))
    [section] = re.findall(r'<section id="starts">.*?</section>', text, re.DOTALL)
    assert '<a href="#starts">Merged starts</a>' in text
    cells = re.findall(r'<td class="cell s(\d)">([\d.]+)</td>', section)
    assert cells == [("5", "0.750"), ("1", "0.250"), ("0", "0")]
    assert "&lt;b&gt;" in section and ">1.60<" in section and ">0.250<" in section


def test_a_sweep_without_merged_starts_has_no_section_for_them(tmp_path: Path) -> None:
    Written(tmp_path).two_stages()
    assert 'id="starts"' not in page(look(tmp_path))


def test_journal_and_table_have_the_sources_of_a_merge(sweep: Path) -> None:
    write_table(sweep, look(sweep).history)
    with (sweep / "trials.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert json.loads(rows[3]["merged_from"]) == {"0": 0.75, "1": 0.25, "<b>": 0.0}
    assert [row["merged_from"] for row in rows[:3]] == ["", "", ""]
    returned = {"score": 0.5, "merged_from": {"0": 1, "x": "no number"}}
    outcome = outcome_of(returned, sweep, 1.0)
    assert outcome.merged_from == {"0": 1.0} and outcome.numbers == {"score": 0.5}
    assert outcome_from_json(outcome_to_json(outcome)) == outcome


def test_a_job_that_would_repeat_another_is_neither_failed_nor_ranked(sweep: Path) -> None:
    outcome = failure(SkippedError("one source"), 2.0)
    assert (outcome.state, outcome.cause) == (State.PRUNED, Cause.SKIPPED)
    assert outcome.reason == "SkippedError: one source" and outcome.score is None
    counts = look(sweep).counts
    assert counts["given up"] == 1 and counts["PRUNED"] == counts["FAIL"] == 0
