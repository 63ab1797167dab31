"""`report.html`: what it says, from journals whose numbers a reader can check by hand."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.journals import Written, written_anew
from support.sweeps import crossed, failing

from autocl_sweeper.journal import read as events
from autocl_sweeper.overview import look
from autocl_sweeper.page.data import as_json, data
from autocl_sweeper.page.document import page
from autocl_sweeper.page.scale import Scale
from autocl_sweeper.page.words import clean, command_line, duration, score, without_paths
from autocl_sweeper.types import Cause, State

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b]0;title\x07\x1b[31mred\x1b[0m\u202e\x00"

pytestmark = pytest.mark.usefixtures("no_fsync")


@dataclass
class Read(HTMLParser):
    """Headings, text, scripts and elements of a page."""

    text: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._in: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("script", "style", "h1", "h2"):
            self._in.append(tag)
            (self.scripts if tag == "script" else self.headings).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._in and self._in[-1] == tag:
            self._in.pop()

    def handle_data(self, data: str) -> None:
        inside = self._in[-1] if self._in else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside != "style":
            self.text.append(data)
        if inside in ("h1", "h2"):
            self.headings[-1] += data

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def data(self) -> dict[str, Any]:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        found: dict[str, Any] = json.loads(self.scripts[0], parse_constant=refuse)
        return found


def read(folder: Path, *others: Path) -> Read:
    found = Read()
    found.feed(page(look(folder), others))
    found.close()
    return found


def test_the_title_is_the_result_and_the_sections_follow_in_their_order(tmp_path):
    # Best chain: rates 2, 1, 1. Its last scores are 1 - 0.1 - 0.1, 0.9 - 0.1 and 0.9.
    found = read(crossed(tmp_path / "s"))
    assert found.headings[0] or found.headings[1]
    title = next(text for text in found.headings if text)
    assert (
        title == "The best chain reaches 0.833 average accuracy on three tasks and forgets 0.150."
    )
    assert [text for text in found.headings if text][1:] == [
        "Best chain",
        "Lineage",
        "Accuracy and forgetting",
        "What mattered",
        "Time and devices",
        "All trials",
        "How it was made",
    ]
    assert "On test data, which selection never saw, it reaches 0.783 ." in found.words


def test_the_matrix_has_the_scores_the_means_and_what_was_forgotten(tmp_path):
    words = read(crossed(tmp_path / "s")).words
    assert (
        "after a 1 b 2 c 3 mean a 1.000 1.000 b 0.900 0.900 0.900 c 0.800 0.800 0.900 0.833"
        in words
    )
    assert "forgotten 0.200 0.100 0.150" in words


def test_variance_shares_are_those_of_a_two_way_analysis(tmp_path):
    # Stage 2, scores by (rate, parent's rate): (1,1) 0.85, (2,1) 0.8, (1,2) 0.9, (2,2) 0.85. Suggestion and
    # parent each move the mean by 0.025 to either side: 4 x 0.025^2 each. Stage 3 continues the best two,
    # (2 > 1) with 0.9 and the earlier of the two with 0.85, in the same way; nothing is left over.
    from autocl_sweeper.page.influence import influence

    shares = influence(look(crossed(tmp_path / "s"))).shares
    assert shares.suggestion + shares.parent == pytest.approx(1.0)
    assert shares.rest == pytest.approx(0.0, abs=1e-9)


def test_nothing_a_job_says_becomes_markup_or_reaches_a_terminal(tmp_path):
    folder = failing(tmp_path / "s", reason=EVIL, tail=[EVIL, "plain"])
    text = page(look(folder))
    found = Read()
    found.feed(text)
    assert found.tags.count("script") == 3 and "img" not in found.tags
    assert "onerror" not in {name for name, _ in found.attributes}
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    assert "alert(1)" not in found.scripts[1] and "alert(1)" in found.words
    assert "red" in found.data["reasons"][-1] and "title" not in found.data["reasons"][-1]


def test_task_names_and_parameters_with_markup_stay_text(tmp_path):
    sweep = Written(tmp_path)
    sweep.start(0, {"lr": 0.1, "name": EVIL, "<b>key": 1})
    sweep.finish(0, 0.5)
    sweep.journal.close()
    found = read(tmp_path)
    assert found.tags.count("script") == 3 and "img" not in found.tags and "<b>key" in found.words


def test_numbers_that_json_has_no_name_for_are_left_out(tmp_path):
    sweep = Written(tmp_path)
    nan = float("nan")
    sweep.start(0, {"lr": nan, "depth": float("inf")})
    sweep.finish(0, 0.5, evaluations={"first": nan}, numbers={"loss": nan})
    sweep.start(1)
    sweep.finish(1, nan)
    sweep.journal.close()
    found = read(tmp_path).data  # which refuses NaN
    assert found["trials"]["score"] == [0.5, None]


def test_a_script_cannot_be_closed_from_within_its_data():
    told = as_json({"a": "</script><!--\u2028"})
    assert (
        "<" not in told and "\u2028" not in told and json.loads(told)["a"] == "</script><!--\u2028"
    )


def test_alike_failures_are_one_kind_with_a_count_and_one_tail(tmp_path):
    found = read(failing(tmp_path / "s", tail=["Traceback", "boom"]))
    assert "Failures" in found.headings
    assert "exit, 2 trials" in found.words and found.words.count("boom") == 1


def test_when_all_failed_failures_come_first(tmp_path):
    sweep = Written(tmp_path)
    for number in (0, 1):
        sweep.start(number)
        sweep.finish(number, None, State.FAIL, reason="out of memory", cause=Cause.DEVICE_MEMORY)
    sweep.journal.close()
    headings = [text for text in read(tmp_path).headings if text]
    assert headings[0] == "All 2 trials failed." and headings[1] == "Failures"
    assert "Lineage" not in headings and "Best chain" not in headings


def test_an_empty_sweep_shows_its_plan(tmp_path):
    sweep = Written(tmp_path)
    sweep.journal.close()
    found = read(tmp_path)
    assert [text for text in found.headings if text][:2] == [
        "No trial has started yet.",
        "The plan",
    ]


def test_a_stopped_sweep_names_the_command_that_continues_it(tmp_path):
    folder = crossed(tmp_path / "s")
    lines = events(folder)[:-1]
    lines[0]["command"] = "python train.py -m lr=1,2 hydra.sweep.dir=/home/anna/secret/runs/s"
    over = subprocess.Popen(["true"])
    over.wait()
    for line in lines:
        if line["event"] == "session":
            line["pid"] = over.pid
    written_anew(folder, lines)
    words = read(folder).words
    assert "stopped" in words and "Continue it" in words
    assert "python train.py -m lr=1,2 hydra.sweep.dir=…/s" in words and "anna" not in words


def test_a_sweep_whose_controller_lives_is_running_as_of_its_last_event(tmp_path):
    folder = crossed(tmp_path / "s")  # by this process
    journal = folder / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    words = read(folder).words
    assert (
        "running" in words and "as of" in words and "So far 0.833 after all three tasks." in words
    )


def test_no_path_of_the_machine_is_in_the_page(tmp_path):
    assert str(tmp_path) not in page(look(crossed(tmp_path / "s")))


def test_one_stage_without_scores_by_task_has_no_matrix_and_no_tree_of_stages(tmp_path):
    sweep = Written(tmp_path)
    sweep.start(0, {"lr": 0.1})
    sweep.finish(0, 0.5)
    sweep.start(1, {"lr": 0.2})
    sweep.finish(1, 0.75)
    sweep.select(1, 1)
    sweep.journal.append("end")
    sweep.journal.close()
    headings = [text for text in read(tmp_path).headings if text]
    assert headings[0] == "The best of 2 trials scores 0.750."
    assert "Trials by score" in headings and "Accuracy and forgetting" not in headings


def test_other_sweeps_stand_in_equal_columns(tmp_path):
    one, other = crossed(tmp_path / "one"), crossed(tmp_path / "other")
    words = read(one, other).words
    assert "Comparison" in words and "The sweep “other” reaches 0.783 on test." in words


def test_the_page_asks_nothing_of_any_network(tmp_path):
    found = read(crossed(tmp_path / "s"))
    assert not {"src", "href"} & {n for n, v in found.attributes if v and not v.startswith("#")}
    policy = next(v for n, v in found.attributes if n == "content" and v and "default-src" in v)
    assert policy.startswith("default-src 'none';") and "connect-src" not in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_every_trial_is_in_the_data_and_every_row_as_long_as_the_others(tmp_path):
    found = read(crossed(tmp_path / "s")).data
    assert {len(column) for column in found["trials"].values()} == {10}
    assert len(found["evals"]) == len(found["tests"]) == 10
    assert found["charts"].keys() == {"tree", "timeline", "parallel"}


def test_a_trial_without_a_conditional_parameter_stays_in_the_parallel_coordinates(tmp_path):
    sweep = Written(tmp_path)
    sweep.start(0, {"lr": 0.1, "optimizer": "adam"})
    sweep.start(1, {"lr": 0.2, "optimizer": "sgd", "optimizer.momentum": 0.5})
    sweep.finish(0, 0.5)
    sweep.finish(1, 0.6)
    sweep.journal.close()
    spec = data(look(tmp_path))["charts"]["parallel"]
    points, heads = (table["values"]["columns"] for table in spec["data"])
    axis = heads["name"].index("momentum")
    drawn = {
        t: y for t, a, y in zip(points["t"], points["a"], points["y"], strict=True) if a == axis
    }
    assert drawn.keys() == {0, 1} and drawn[0] < 0 and heads["gap"][axis] == "not set"


def test_ten_thousand_trials_keep_the_tree_small_and_count_the_rest(tmp_path):
    sweep = Written(tmp_path)
    sweep.journal.close()
    lines = []
    for number in range(10_000):
        start = {
            "event": "start",
            "trial": number,
            "stage": 1,
            "task": "first",
            "suggestion": number,
        }
        start |= {"params": {"lr": number / 1e4}, "parent": None, "folder": f"1_first/{number}"}
        lines.append({**start, "attempt": 1, "overrides": [], "time": 2e9 + number})
        finish = {
            "event": "finish",
            "trial": number,
            "state": "COMPLETE",
            "reason": "",
            "score": number / 1e4,
        }
        finish |= {"checkpoint": None, "eval": {}, "test": {}, "numbers": {}, "returned": "float"}
        lines.append(
            {**finish, "seconds": 1.0, "log_tail": [], "cause": "", "time": 2e9 + number + 1}
        )
    written_anew(tmp_path, [*events(tmp_path), *lines])
    text = page(look(tmp_path))
    tree = next(t for t in data(look(tmp_path))["charts"]["tree"]["data"] if t["name"] == "more")
    assert tree["values"]["columns"]["text"] == ["9,989 more,\nto 0"]
    assert len(text.encode()) < 2_900_000


@pytest.mark.parametrize(
    ("value", "step"), [(1.0, 6), (0.0, 0), (0.5, 2), (0.99, 6), (0.9, 4), (None, -1), (-9.0, 0)]
)
def test_colours_are_finer_towards_the_best(value, step):
    # floor(7 (1 - sqrt(1 - v))): 0.5 -> 7 x 0.29 = 2.05, 0.9 -> 7 x 0.684 = 4.8, 0.99 -> 6.3
    assert Scale(0.0, 1.0).step(value) == step
    assert value is None or Scale(1.0, 0.0).step(1.0 - value) == step


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\rb\r\nc", "a\nb\nc"),
        ("\u202eevil", "evil"),
        ("\ud800", "?"),
    ],
)
def test_logs_lose_what_terminals_would_act_on(text, shown):
    assert clean(text) == shown


def test_paths_lose_all_but_their_last_part():
    assert without_paths("cannot read /home/anna/data/x.json: no") == "cannot read …/x.json: no"
    assert without_paths("relative/path/x and 1/2") == "relative/path/x and 1/2"
    assert (
        command_line("python train.py 'a=[1, 2]' d=/home/anna/x")
        == "python train.py 'a=[1, 2]' d=…/x"
    )


def test_numbers_and_times_are_told_as_people_do():
    scores = [score(x) for x in (0.96664, -0.5, 1234.5, 120800.4, 0.00012, None)]
    assert scores == ["0.967", "\u22120.500", "1234", "120,800", "0.00012", "\u2013"]
    times = [duration(s) for s in (0.5, 46, 249, 5040, 39300)]
    assert times == ["0.5 s", "46 s", "4 min 09 s", "84 min", "10 h 55 min"]
