"""What a sweep would run, printed; nothing runs and no file is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from autocl_sweeper.budget import HOUR_S, spent
from autocl_sweeper.display.panel import clock
from autocl_sweeper.display.progress import short_key, value_text
from autocl_sweeper.journal import NAME, Record, fold, read
from autocl_sweeper.plan import Plan, refuse_another
from autocl_sweeper.protocols import IndexedSearch
from autocl_sweeper.results.provenance import origin_text
from autocl_sweeper.strategy.decisions import Stage, views
from autocl_sweeper.types import History, State, Suggestion, Trial
from autocl_sweeper.view import StageView

if TYPE_CHECKING:
    from rich.console import Console

FIRST = 3  # suggestions shown of a stage


@dataclass(frozen=True)
class Estimate:
    """What jobs took in a journal, and what the jobs of a plan will take at that pace."""

    folder: Path
    finished: int
    parallel: int  # jobs that ran side by side
    device_s: float
    wall_clock_s: float

    def __str__(self) -> str:
        return (
            f"about {clock(self.wall_clock_s)} with {self.parallel} side by side and"
            f" {self.device_s / HOUR_S:.3g} device-hours, as the {self.finished} finished trials in"
            f" '{self.folder}' took"
        )


def print_plan(plan: Plan, folder: Path, edited: Sequence[str], console: Console) -> None:
    """The stages, their first suggestions, what is composed, jobs in all and an estimate of time.

    edited: YAML files that changed since the sweep in this folder began. Raises ChangedSweepError
    where running would.
    """
    state = fold(_records(folder))
    history = state.history
    if state.setup is not None:
        refuse_another(folder, state, plan, edited)
    console.print("\nDry run: no job starts, no file is written", style="bold", highlight=False)
    for line in lines(plan, history):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(estimate_text(plan, folder), highlight=False, markup=False, soft_wrap=True)


def lines(plan: Plan, history: History) -> Iterator[str]:
    parents, begun = 1, len(history)
    for stage, view in zip(plan.stages, _views(plan, history), strict=True):
        jobs = stage.jobs(parents) or 0
        yield f"stage {stage.number}  {stage.task}: {_search(stage)}, {_jobs(stage, parents, jobs)}"
        if stage.number in history.beams:
            yield f"    done: trials {list(history.beams[stage.number])} survived"
        else:
            yield from _first(plan, stage, view, history)
        parents = min(stage.survivors or plan.settings.top_k, jobs // stage.seeds)
    told = f"{plan.size} jobs in all"
    if begun:
        told += f", {begun} of them begun in this folder"
    yield told
    if plan.settings.budget:
        budget = ", ".join(f"{key}={value}" for key, value in plan.settings.budget.items())
        yield f"budget: {budget}"


def _views(plan: Plan, history: History) -> list[StageView]:
    seen = views(plan.stages, history, plan.selection, plan.strategy.carried)
    for trial in history.changes:
        seen[trial.stage - 1].note(trial)
    return seen


def _search(stage: Stage) -> str:
    name = type(stage.search).__name__
    return name.removesuffix("Search").removesuffix("Chains").lower() or name


def _jobs(stage: Stage, parents: int, jobs: int) -> str:
    told = f"{jobs} job{'s' * (jobs != 1)}"
    if stage.seeds > 1:
        told += f" ({jobs // stage.seeds} times {stage.seeds} seeds)"
    if stage.number == 1 or stage.parents == "init":
        return f"{told} from the initial model"
    pairing = "each suggestion with every one" if stage.pairing == "every" else "one each"
    told += f" from up to {parents} parents" + (f" ({pairing})" if parents > 1 else "")
    return told + (f", and from {stage.extra} extra starts" if stage.extra else "")


def _first(plan: Plan, stage: Stage, view: StageView, history: History) -> Iterator[str]:
    """The next suggestions of a stage, as far as they do not hang on what trials will give."""
    known = stage.number <= history.open_stage or isinstance(stage.search, IndexedSearch)
    shown = list(_suggestions(stage, history, view)) if known else []
    if not known:
        asked = stage.search.ask(view)
        shown = [asked] if isinstance(asked, Suggestion) else []
    for suggestion in shown:
        params = " ".join(
            f"{short_key(key)}={value_text(value)}" for key, value in suggestion.params.items()
        )
        told = "" if known else "for instance, before anything is known: "
        source = origin_text(suggestion) or suggestion.origin
        origin = f"  [{source}]" if source else ""
        yield f"    {told}{suggestion.index}: {params or 'the app as it is'}{origin}"
    if shown:
        composed = plan.example(stage, shown[0].params, "<checkpoint>")
        yield f"    composed: {' '.join(composed)}"


def _suggestions(stage: Stage, history: History, view: StageView) -> Iterator[Suggestion]:
    """What the stage would ask for next while nothing ends; `view` and `history` grow by it."""
    parents = history.beams.get(stage.number - 1, (None,))
    most = stage.jobs(len(parents))
    for _ in range(FIRST if most is None else min(FIRST, most - len(view.trials))):
        asked = stage.search.ask(view)
        if not isinstance(asked, Suggestion):
            return
        yield asked
        parent = asked.parent if asked.parent is not None else parents[0]
        trial = Trial(len(history), stage.number, stage.task, asked, parent)
        history.start(trial)
        view.note(trial)


# -- how long it will take -------------------------------------------------------------------------


def estimate_text(plan: Plan, folder: Path) -> str:
    carried = plan.settings.carry_from
    for place in [folder, *([Path(carried)] if carried else [])]:
        found = estimate(plan, place, _records(place), place == folder)
        if found is not None:
            return f"estimate: {found}"
    return (
        "estimate: none, because no trial has finished yet; run the first one, or set"
        " hydra.sweeper.carry_from"
    )


def estimate(plan: Plan, folder: Path, records: list[Record], counts: bool) -> Estimate | None:
    """None without a finished trial. `counts`: what these records have begun is not run again."""
    history = fold(records).history
    by_task: dict[str, list[float]] = {}
    for trial in history:
        if trial.state is State.COMPLETE and trial.outcome is not None:
            by_task.setdefault(trial.task, []).append(trial.outcome.seconds)
    everything = [seconds for taken in by_task.values() for seconds in taken]
    if not everything:
        return None
    devices = spent(records).device_s / sum(
        t.outcome.seconds for t in history if t.outcome is not None
    )
    parents, job_s = 1, 0.0
    for stage in plan.stages:
        jobs = stage.jobs(parents) or 0
        parents = min(stage.survivors or plan.settings.top_k, jobs // stage.seeds)
        begun = sum(t.state is not State.RUNNING for t in history.stage(stage.number))
        left = (
            max(0, jobs - begun * counts) if stage.number not in history.beams or not counts else 0
        )
        job_s += left * fmean(by_task.get(stage.task, everything))
    parallel = side_by_side(records)
    return Estimate(folder, len(everything), parallel, job_s * devices, job_s / parallel)


def side_by_side(records: list[Record]) -> int:
    """The most jobs that ran at one time."""
    running: set[int] = set()
    most = 1
    for record in records:
        if record["event"] == "session":
            running.clear()
        elif record["event"] == "start":
            running.add(record["trial"])
            most = max(most, len(running))
        elif record["event"] in ("finish", "attempt_failed"):
            running.discard(record["trial"])
    return most


def _records(folder: Path) -> list[Record]:
    return read(folder) if (folder / NAME).exists() else []
