"""optimization_results.yaml: the best chain, its metrics, and the beams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from autocl_sweeper.outcome import write_whole
from autocl_sweeper.plan import Plan
from autocl_sweeper.results.early import savings, waste
from autocl_sweeper.results.lineage import beam_of, continual_metrics, final_lineages
from autocl_sweeper.results.provenance import merged, provenance
from autocl_sweeper.types import History, State, Trial

BEST_FILE = "optimization_results.yaml"


def best_chain(
    plan: Plan, history: History, overrides: Mapping[int, Sequence[str]]
) -> list[dict[str, Any]]:
    """The best chain so far, one entry per stage; empty while nothing is ranked."""
    return [
        {
            "stage": trial.stage,
            "task": trial.task,
            "trial": trial.number,
            **({"extra": trial.extra} if trial.extra else {}),
            "score": trial.score,
            "folder": trial.folder or None,
            "checkpoint": trial.outcome.checkpoint if trial.outcome else None,
            **merged(trial),
            "params": dict(trial.suggestion.params),
            **provenance(trial.suggestion),
            "overrides": [t for t in overrides.get(trial.number, ()) if not t.startswith("hydra.")],
        }
        for chain in final_lineages(plan, history)[:1]
        for trial in chain.trials
    ]


def write_best(
    folder: Path,
    plan: Plan,
    history: History,
    overrides: Mapping[int, Sequence[str]],
    used_up: str | None = None,
) -> None:
    """The best chain so far, its metrics, and the beam of each stage that is over.

    used_up: which part of its budget ended the sweep; its open stage has a beam of what there is.
    """
    best = next(iter(final_lineages(plan, history)), None)
    told: dict[str, Any] = {
        "name": "autocl",
        "best_value": best.score if best else None,
        "best_params": dict(best.trials[-1].suggestion.params) if best else {},
        "best_score": best.score if best else None,
        "direction": plan.settings.direction,
        "stages_finished": len(history.beams),
        "stages": len(plan.stages),
    }
    if best is not None and plan.settings.seeds > 1:
        told["repeats_of_best"] = repeats_of(best.trials[-1], history)
    if best is not None:
        told["metrics"] = {
            split: continual_metrics(matrix, forward)
            for split, matrix, forward in (
                ("eval", best.evaluation, best.forward),
                ("test", best.test, None),
            )
            if matrix is not None
        }
    told["chain"] = best_chain(plan, history, overrides)
    told["beams"] = {stage: list(beam) for stage, beam in history.beams.items()}
    if used_up is not None:
        told["budget_used_up"] = used_up
        open_stage = plan.stages[history.open_stage - 1]
        if beam := beam_of(plan, history, open_stage):
            told["beams"][open_stage.number] = list(beam)
    lost = waste(history)
    seconds, share = round(lost.seconds, 3), round(lost.share, 4)
    told["given_up"] = {"trials": lost.trials, "seconds": seconds, "share": share}
    saved = savings(history)
    told["stopped_early"] = {
        "trials": saved.trials,
        "steps_saved": saved.steps,
        "steps_in_all": saved.all_steps,
        "seconds_saved": round(saved.seconds, 3),
    }
    import yaml

    text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
    write_whole(folder / BEST_FILE, text.encode("utf-8", "backslashreplace"))


def repeats_of(trial: Trial, history: History) -> dict[str, Any]:
    """The runs of a trial's suggestion with its parent, and the mean that ranks them all."""
    key = (trial.suggestion.index, trial.parent, trial.extra)
    runs = [t for t in history.stage(trial.stage) if (t.suggestion.index, t.parent, t.extra) == key]
    scores = [r.score for r in runs if r.state is State.COMPLETE and r.score is not None]
    return {
        "trials": [run.number for run in runs],
        "mean_score": fmean(scores),
        "standard_error": stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
    }
