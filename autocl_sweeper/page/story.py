"""The result of a sweep in one sentence, and the five figures below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from autocl_sweeper.compare import Figures
from autocl_sweeper.overview import Overview
from autocl_sweeper.page.matrices import Matrices, matrices, tasks_of
from autocl_sweeper.page.words import clean, counted, drop, duration, number, score, share


@dataclass(frozen=True)
class Fact:
    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Story:
    """`before`, `figure` and `after` make the title: the figure stands out in it."""

    badge: str
    meta: Sequence[str]
    before: str
    figure: str
    after: str
    lead: Sequence[tuple[str, str, str]]  # a sentence each, its figure in the middle
    facts: Sequence[Fact]


def story(sweep: Overview, found: Matrices, others: Sequence[Figures]) -> Story:
    before, figure, after = _title(sweep, found)
    lead, facts = _lead(sweep, found, others), _facts(sweep, found)
    return Story(sweep.status_text, _meta(sweep), before, figure, after, lead, facts)


def when(time_s: float) -> str:
    moment = datetime.fromtimestamp(time_s)
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def lanes_text(sweep: Overview) -> str:
    names = list(sweep.lanes)
    if not names:
        return "no device yet"
    if all(name.startswith(("cpu-", "slot ")) for name in names):
        return counted(len(names), "CPU slot")
    gpus = all("GPU" in name or "MIG" in name for name in names)
    return counted(len(names), "GPU" if gpus else "device")


def _meta(sweep: Overview) -> list[str]:
    took = f"{duration(sweep.spent.wall_clock_s)} on {lanes_text(sweep)}"
    told = [clean(sweep.name), when(sweep.begun), took]
    if sweep.status != "finished":
        begun, last = map(datetime.fromtimestamp, (sweep.begun, sweep.as_of))
        same_day = begun.date() == last.date()
        told.append(f"as of {f'{last:%H:%M:%S}' if same_day else when(sweep.as_of)}")
    return told


def title_text(sweep: Overview) -> str:
    """The sentence alone, for terminals."""
    return "".join(_title(sweep, matrices(sweep)))


def measure(found: Matrices) -> str:
    """What the mean over tasks is called: an accuracy lies between 0 and 1."""
    one = found.dev or found.test
    inside = one is not None and all(0 <= value <= 1 for row in one.rows for value in row)
    return "average accuracy" if inside else "average score"


def _title(sweep: Overview, found: Matrices) -> tuple[str, str, str]:
    history, counts = sweep.history, sweep.counts
    over = sweep.status == "finished"
    if not len(history):
        jobs = sweep.planned
        planned = "" if jobs is None else f": {counted(jobs, 'trial')} are planned"
        return f"No trial has started yet{planned}.", "", ""
    if not sweep.chain:
        if (failed := counts["FAIL"]) and failed == len(history) - counts["RUNNING"]:
            if failed == 1:
                return "The only trial so far failed.", "", ""
            all_of = "All" if over or not counts["RUNNING"] else "So far all"
            return f"{all_of} {failed} trials failed.", "", ""
        return f"{counted(len(history), 'trial')} started; none has a score yet.", "", ""
    best = sweep.chain[-1]
    learned = len(tasks_of(sweep.chain))
    tasks = max(len(sweep.tasks), learned)
    figure = score(best.score)
    if tasks < 2:
        if not over:
            return "So far the best trial scores ", figure, "."
        return f"The best of {counted(counts['COMPLETE'], 'trial')} scores ", figure, "."
    if not over or learned < tasks:
        of = f"{number(learned)} of" if learned < tasks else "all"
        return "So far ", figure, f" after {of} {number(tasks)} tasks."
    if found.dev is None or score(found.dev.means[-1]) != figure:
        return "The best chain scores ", figure, f" after {number(tasks)} tasks."
    lost = found.dev.forgetting or 0.0
    if abs(lost) < 5e-4:
        forgets = "forgets nothing"
    elif lost > 0:
        forgets = f"forgets {drop(lost)}"
    else:
        forgets = f"gains {drop(-lost)} on earlier tasks"
    after = f" {measure(found)} on {number(tasks)} tasks and {forgets}."
    return "The best chain reaches ", figure, after


def _lead(
    sweep: Overview, found: Matrices, others: Sequence[Figures]
) -> list[tuple[str, str, str]]:
    lead = []
    if found.test is not None:
        told = "On test data, which selection never saw, it reaches "
        lead.append((told, score(found.test.means[-1]), "."))
    ends = sweep.scored(sweep.chain[-1].stage) if sweep.chain else []
    if len(ends) > 1 and sweep.status == "finished":
        what = "Other chains end" if len(sweep.chain) > 1 else "Other trials score"
        bad, worst = "low" if sweep.maximize else "high", max(ends, key=sweep.loss)
        lead.append((f"{what} as {bad} as {score(worst.score)}.", "", ""))
    for other in others:
        value, split = (other.test, "test") if other.test is not None else (other.dev, "dev")
        if value is not None:
            name = clean(other.folder.name)
            lead.append((f"The sweep “{name}” reaches {score(value)} on {split}.", "", ""))
    if (failed := sweep.counts["FAIL"]) and sweep.chain:
        lead.append((f"{counted(failed, 'trial')} failed; the causes are below.", "", ""))
    return lead


def _facts(sweep: Overview, found: Matrices) -> list[Fact]:
    facts = []
    counts, history = sweep.counts, sweep.history
    if found.dev is not None:
        name = measure(found)
        test = "no test scores" if found.test is None else f"test {score(found.test.means[-1])}"
        facts.append(Fact(f"{name.capitalize()}, dev", score(found.dev.means[-1]), test))
        if found.dev.forgetting is not None:
            note = f"backward transfer {drop(found.dev.transfer)}"
            facts.append(Fact("Forgetting", drop(found.dev.forgetting), note))
    elif sweep.chain:
        best = sweep.chain[-1]
        facts.append(Fact("Best score", score(best.score), f"trial {best.number}"))
        facts.append(Fact("Stages over", f"{len(history.beams)}", f"of {max(len(sweep.tasks), 1)}"))
    planned, of = sweep.planned, ""
    if planned and planned != len(history) and sweep.status != "finished":
        of = f" of {planned:,}"
    note = f"{counts['FAIL']:,} failed, {counts['given up']:,} given up"
    if counts["PRUNED"]:
        note += f", {counts['PRUNED']:,} stopped early"
    if counts["RUNNING"]:
        note = f"{counts['RUNNING']:,} running, {note}"
    facts.append(Fact("Trials", f"{len(history):,}{of}", note))
    spent, busy = sweep.spent, sweep.busy
    on_devices = f"{duration(spent.device_s)} of device time"
    facts.append(Fact("Wall clock", duration(spent.wall_clock_s), on_devices))
    idle = "" if busy is None else f"{share(1 - busy)} idle after the first job"
    facts.append(Fact("Devices busy", share(busy), idle))
    return facts
