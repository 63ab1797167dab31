"""What made the difference: shares of variance, suggestions by stage, importances, origins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from autocl_sweeper.overview import Overview
from autocl_sweeper.page.scale import Scale
from autocl_sweeper.page.words import bare_key, clean, counted, joined, setting
from autocl_sweeper.types import State, Trial, Value

MOST_SUGGESTIONS = 24
LEAST_TRIALS = 8  # of a stage, for importances


@dataclass(frozen=True)
class Shares:
    """Parts of the score differences within stages whose suggestions all ran with all parents."""

    suggestion: float
    parent: float

    @property
    def rest(self) -> float:
        return max(0.0, 1.0 - self.suggestion - self.parent)


@dataclass(frozen=True)
class SuggestionRow:
    params: Sequence[str]
    means: Sequence[float | None]  # by stage
    chosen: int  # trials of beams


@dataclass(frozen=True)
class Suggestions:
    keys: Sequence[str]
    stages: Sequence[str]
    rows: Sequence[SuggestionRow]
    scale: Scale


@dataclass(frozen=True)
class Importances:
    """Share of each parameter by stage; None where a stage cannot say."""

    stages: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclass(frozen=True)
class OriginRow:
    origin: str
    trials: int
    failed: int
    chosen: int
    middle: float | None
    best: float | None


@dataclass(frozen=True)
class Influence:
    shares: Shares | None
    suggestions: Suggestions | None
    importances: Importances | None
    origins: Sequence[OriginRow]
    sentences: Sequence[str]


def influence(sweep: Overview) -> Influence:
    shares = _shares(sweep)
    suggestions = _suggestions(sweep)
    importances, why = _importances(sweep)
    return Influence(shares, suggestions, importances, _origins(sweep), why)


def _score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score


def _shares(sweep: Overview) -> Shares | None:
    """Two-way analysis of variance over the stages that cross all suggestions with all parents."""
    total = of_suggestion = of_parent = 0.0
    for stage in range(2, sweep.stages + 1):
        cells: dict[tuple[int, int], list[float]] = {}
        for trial in sweep.scored(stage):
            if trial.parent is not None:
                cells.setdefault((trial.suggestion.index, trial.parent), []).append(_score(trial))
        suggestions = {s for s, _ in cells}
        parents = {p for _, p in cells}
        crossed = len(cells) == len(suggestions) * len(parents)
        if not crossed or len(suggestions) < 2 or len(parents) < 2:
            continue
        means = {key: fmean(values) for key, values in cells.items()}
        middle = fmean(means.values())
        total += sum((value - middle) ** 2 for value in means.values())
        for s in suggestions:
            off = fmean(means[s, p] for p in parents) - middle
            of_suggestion += len(parents) * off**2
        for p in parents:
            off = fmean(means[s, p] for s in suggestions) - middle
            of_parent += len(suggestions) * off**2
    return Shares(of_suggestion / total, of_parent / total) if total > 0 else None


def _suggestions(sweep: Overview) -> Suggestions | None:
    """Suggestions that more than one stage ran, with their mean score in each."""
    first = 2 if sweep.stages > 1 else 1
    found: dict[str, dict[int, list[Trial]]] = {}
    for stage in range(first, sweep.stages + 1):
        for trial in sweep.scored(stage):
            key = json.dumps(trial.suggestion.params, sort_keys=True)
            found.setdefault(key, {}).setdefault(stage, []).append(trial)
    if not 2 <= len(found) <= MOST_SUGGESTIONS or all(len(one) < 2 for one in found.values()):
        return None
    stages = list(range(first, sweep.stages + 1))
    params = [dict(next(iter(one.values()))[0].suggestion.params) for one in found.values()]
    keys = list(dict.fromkeys(key for one in params for key in one))
    rows = []
    for chosen, by_stage in zip(params, found.values(), strict=True):
        means = [fmean(map(_score, by_stage[s])) if s in by_stage else None for s in stages]
        count = sum(t.number in sweep.in_beams for trials in by_stage.values() for t in trials)
        rows.append(
            SuggestionRow([setting(chosen[k]) if k in chosen else "" for k in keys], means, count)
        )
    sign = -1.0 if sweep.maximize else 1.0
    rows.sort(key=lambda row: (-row.chosen, sign * fmean(m for m in row.means if m is not None)))
    cells = [mean for row in rows for mean in row.means if mean is not None]
    names = [clean(sweep.history.stage(s)[0].task) or f"stage {s}" for s in stages]
    scale = Scale.of(cells, sweep.maximize)
    return Suggestions([bare_key(key) for key in keys], names, rows, scale)


# -- importances ------------------------------------------------------------------------------------


def _importances(sweep: Overview) -> tuple[Importances | None, list[str]]:
    """By stage, PED-ANOVA's (arXiv 2304.10255), and what cannot be said."""
    by_stage: dict[int, Mapping[str, float]] = {}
    keys: dict[str, None] = {}
    together: dict[tuple[str, ...], None] = {}
    few = ""
    for stage in range(1, sweep.stages + 1):
        trials = sweep.scored(stage)
        groups = _varying(trials)
        parameters = sum(map(len, groups))
        different = len({json.dumps(t.suggestion.params, sort_keys=True) for t in trials})
        if parameters < 2:
            continue
        if len(groups) < 2 or different < max(LEAST_TRIALS, 2 * len(groups)):
            few = (
                f"{counted(different, 'suggestion')} of a stage"
                f" {'change' if different != 1 else 'changes'} {counted(parameters, 'parameter')}"
                " together, so no importance of a single parameter can be given."
            )
            continue
        found = _of_stage(trials, groups, sweep.maximize)
        by_stage[stage] = {_name(group): found[group[0]] for group in groups}
        keys |= dict.fromkeys(map(_name, groups))
        together |= dict.fromkeys(tuple(group) for group in groups if len(group) > 1)
    sentences = [
        f"{joined([bare_key(key) for key in group])} vary only together: they count as one."
        for group in together
    ]
    if not by_stage:
        return None, [few] if few else []
    named = [f"{s} · {clean(sweep.history.stage(s)[0].task)}".rstrip(" ·") for s in by_stage]
    rows = [(key, [one.get(key) for one in by_stage.values()]) for key in keys]
    rows.sort(key=lambda row: -fmean([v for v in row[1] if v is not None] or [0.0]))
    return Importances(named, rows), sentences


def _name(group: Sequence[str]) -> str:
    return " + ".join(bare_key(key) for key in group)


def _varying(trials: Sequence[Trial]) -> list[list[str]]:
    """Parameters that all trials have and that differ; those that vary only together in one list."""
    keys = [
        key
        for key in (trials[0].suggestion.params if trials else ())
        if all(key in trial.suggestion.params for trial in trials)
    ]
    groups: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        seen: dict[str, int] = {}
        pattern = tuple(
            seen.setdefault(json.dumps(trial.suggestion.params[key]), len(seen)) for trial in trials
        )
        if len(seen) == len({json.dumps(t.suggestion.params) for t in trials}):
            pattern = (-len(groups),)  # another value each time, by which no two keys are the same
        if len(seen) > 1:
            groups.setdefault(pattern, []).append(key)
    return list(groups.values())


def _of_stage(
    trials: Sequence[Trial], groups: Sequence[Sequence[str]], maximize: bool
) -> dict[str, float]:
    """PED-ANOVA's importance of the first key of each group; their sum is 1."""
    import optuna

    keys = [group[0] for group in groups]
    distributions = {key: _distribution([t.suggestion.params[key] for t in trials]) for key in keys}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                value=_score(trial),
                params={key: distributions[key][1](trial.suggestion.params[key]) for key in keys},
                distributions={key: distributions[key][0] for key in keys},
            )
            for trial in trials
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=keys)
    return {key: float(found[key]) for key in keys}


def _distribution(values: Sequence[Value]) -> tuple[Any, Any]:
    """Optuna's distribution that holds these values, and how it has a value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(values) and all(map(math.isfinite, numbers)):
        low, high = min(numbers), max(numbers)
        return FloatDistribution(low, high, log=low > 0 and high / low > 30), float
    texts = list(dict.fromkeys(json.dumps(value) for value in values))
    return CategoricalDistribution(texts), json.dumps


# -- origins ----------------------------------------------------------------------------------------


def _origins(sweep: Overview) -> list[OriginRow]:
    """How suggestions of each origin fared; empty where the search does not tell them apart."""
    found: dict[str, list[Trial]] = {}
    for trial in sweep.history:
        if trial.suggestion.origin is not None:
            found.setdefault(trial.suggestion.origin, []).append(trial)
    if len(found) < 2:
        return []
    best = max if sweep.maximize else min
    rows = []
    for origin, trials in found.items():
        scores = [t.score for t in trials if t.state is State.COMPLETE and t.score is not None]
        failed = sum(trial.state is State.FAIL for trial in trials)
        chosen = sum(trial.number in sweep.in_beams for trial in trials)
        middle = median(scores) if scores else None
        rows.append(
            OriginRow(origin, len(trials), failed, chosen, middle, best(scores, default=None))
        )
    return sorted(rows, key=lambda row: -row.chosen)
