"""The files a sweep leaves for its reader, computed from its history."""

from __future__ import annotations

import csv
import io
import json
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from autocl_sweeper import metrics
from autocl_sweeper.disk import disk_errors
from autocl_sweeper.journal import Record, outcome_from_json
from autocl_sweeper.outcome import LOG_NAME, write_whole
from autocl_sweeper.plain import plain
from autocl_sweeper.plan import Plan
from autocl_sweeper.plan.rounds import POPULATION
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial, is_stopped

RESULT_FILE = "autoCL_result.txt"
BEST_FILE = "optimization_results.yaml"
TABLE_FILE = "trials.csv"

# Settings that AutoCL's readers look for, and those that make a chain repeatable, by the last part
# of their configuration key. Searched parameters are always told.
KNOWN_SETTINGS = (
    "lamda_1",
    "lamda_2",
    "learning_rate",
    "num_train_epochs",
    "lora_dim",
    "lora_alpha",
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


@dataclass(frozen=True)
class Lineage:
    """A trial's chain of parents and its numbers. `evaluation`, `test`: accuracy matrices R[i][j].

    `forward`: forward transfer on dev, where jobs are evaluated on tasks to come and the first one
    returned the scores before training, `before_<task>`.
    """

    trials: Sequence[Trial]
    evaluation: Sequence[Sequence[float]] | None
    test: Sequence[Sequence[float]] | None
    forward: float | None = None

    @property
    def score(self) -> float:
        score = self.trials[-1].score
        assert score is not None
        return score


def lineage_of(trial: Trial, history: History, tasks: Sequence[str]) -> Lineage:
    """The lineage of a trial; a matrix is None unless every trial has all the scores it needs."""
    trials = history.lineage(trial)
    last = {one.task: one for one in trials}  # of a task's rounds the last one is its training
    outcomes = [one.outcome for one in last.values() if one.outcome is not None]

    def matrix(scores: Sequence[Mapping[str, float]]) -> list[list[float]] | None:
        complete = all(set(tasks[: stage + 1]) <= set(row) for stage, row in enumerate(scores))
        return metrics.accuracy_matrix(tasks, scores) if tasks and complete else None

    return Lineage(
        trials,
        matrix([outcome.evaluations for outcome in outcomes]),
        matrix([outcome.tests for outcome in outcomes]),
        _forward(tasks, outcomes),
    )


def _forward(tasks: Sequence[str], outcomes: Sequence[Outcome]) -> float | None:
    """Forward transfer of a chain on dev; None unless it has at least two tasks and all scores it needs."""
    scores = [outcome.evaluations for outcome in outcomes]
    before = outcomes[0].numbers if outcomes else {}
    later = [*enumerate(tasks)][1:]
    if not later or len(scores) < len(tasks):
        return None
    if not all(f"before_{task}" in before and task in scores[i - 1] for i, task in later):
        return None
    whole = [[row.get(task, 0.0) for task in tasks] for row in scores]
    return metrics.forward_transfer(whole, [before.get(f"before_{task}", 0.0) for task in tasks])


def final_lineages(plan: Plan, history: History) -> list[Lineage]:
    """The lineages that end in the last stage reached: the survivors, then the others by score."""
    # Rounds of a population train for different times: only one that is over has a winner.
    over = plan.settings.parents == POPULATION
    reached = len(history.beams) if over else history.open_stage
    for stage in reversed(plan.stages[:reached]):
        finished = [
            (plan.selection.loss(trial.score), history.place(trial), trial)
            for trial in history.stage(stage.number)
            if trial.state is State.COMPLETE and trial.score is not None
        ]
        if finished:
            tasks = plan.tasks_until(stage.number)
            beam = {number: place for place, number in enumerate(beam_of(plan, history, stage))}
            ranked = [trial for _, _, trial in sorted(finished)]
            ranked.sort(key=lambda trial: beam.get(trial.number, len(beam)))
            return [lineage_of(trial, history, tasks) for trial in ranked]
    return []


def beam_of(plan: Plan, history: History, stage: Stage) -> Sequence[int]:
    """The survivors of a stage, best first; of an open one, those that would be if it were over."""
    if stage.number in history.beams:
        return history.beams[stage.number]
    trials = sorted(history.stage(stage.number), key=history.place)
    return [trial.number for trial in plan.selection(trials)]


def continual_metrics(
    matrix: Sequence[Sequence[float]], forward: float | None = None
) -> dict[str, float]:
    """Metrics this matrix defines: transfer needs two tasks. forward: what else is known of it."""
    found = {"average_accuracy": metrics.average_accuracy(matrix)}
    if len(matrix) > 1:
        found["backward_transfer"] = metrics.backward_transfer(matrix)
        found["forgetting"] = metrics.forgetting(matrix)
    if forward is not None:
        found["forward_transfer"] = forward
    return found


@dataclass(frozen=True)
class Waste:
    """What trials cost that began early and were given up. `seconds` of jobs, `share` of all."""

    trials: int
    seconds: float
    share: float

    def __str__(self) -> str:
        return (
            f"given up: {self.trials} trials whose parent left the beam,"
            f" {self.seconds:.1f} s of jobs ({self.share:.1%} of all)"
        )


def waste(history: History) -> Waste:
    def seconds(trials: Iterable[Trial]) -> float:
        return sum(trial.outcome.seconds for trial in trials if trial.outcome is not None)

    lost, spent = seconds(history[number] for number in history.given_up), seconds(history)
    return Waste(len(history.given_up), lost, lost / spent if spent else 0.0)


@dataclass(frozen=True)
class Savings:
    """What early stopping saved: `trials` of `finished` ones were stopped.

    `steps` and `seconds` are estimates: what is missing to the longest and to the mean completed
    trial of the stage; `all_steps` is what all of these trials would have done.
    """

    trials: int
    finished: int
    steps: int
    all_steps: int
    seconds: float

    def __str__(self) -> str:
        share = self.steps / self.all_steps if self.all_steps else 0.0
        return (
            f"stopped early: {self.trials} of {self.finished} trials; about {self.steps} of"
            f" {self.all_steps} steps ({share:.0%}) and {self.seconds:.0f} s of jobs were saved"
        )


def savings(history: History) -> Savings:
    trials = finished = steps = all_steps = 0
    seconds = 0.0
    for stage in range(1, len(history.beams) + 2):
        ended = history.stage(stage)
        stopped = [trial for trial in ended if is_stopped(trial)]
        complete = [trial for trial in ended if trial.state is State.COMPLETE]
        trials, finished = trials + len(stopped), finished + len(stopped) + len(complete)
        full = max((_last_step(history, trial) for trial in complete), default=0)
        missing = [max(0, full - _last_step(history, trial)) for trial in stopped]
        done = sum(_last_step(history, trial) for trial in (*stopped, *complete))
        steps, all_steps = steps + sum(missing), all_steps + sum(missing) + done
        if complete:
            mean = sum(t.outcome.seconds for t in complete if t.outcome) / len(complete)
            seconds += sum(max(0.0, mean - t.outcome.seconds) for t in stopped if t.outcome)
    return Savings(trials, finished, steps, all_steps, seconds)


def _last_step(history: History, trial: Trial) -> int:
    reports = history.reports(trial.number)
    return reports[-1].step if reports else 0


# -- where suggestions come from --------------------------------------------------------------------


def provenance(suggestion: Suggestion) -> dict[str, Any]:
    """Where a suggestion comes from, as far as its search says; empty where it does not."""
    carried = suggestion.carried
    found = {
        "origin": suggestion.origin,
        "source": suggestion.source,
        "source_task": None if carried is None else carried.task,
        "source_sweep": None if carried is None else carried.sweep,
        "keys_carried": None if carried is None else carried.keys,
    }
    return {name: value for name, value in found.items() if value is not None}


def origin_text(suggestion: Suggestion) -> str:
    """The same as a sentence; empty unless there is something to say beside "new"."""
    if suggestion.origin == "init":
        return "the app's own configuration"
    if suggestion.carried is None or suggestion.source is None:
        return ""
    carried, whole = suggestion.carried, len(suggestion.params)
    sweep = "" if carried.sweep is None else f" of {carried.sweep}"
    kept = f"{carried.keys} of {whole} keys carried"
    return f"carried from {carried.task}, trial {suggestion.source}{sweep}; {kept}"


# -- autoCL_result.txt ------------------------------------------------------------------------------


class ResultFile:
    """AutoCL's result file: its layout, our keys beside its own. Written by the sweep alone.

    Lines follow the journal's events, so the file can be rebuilt from it at any time. A task's
    lines stand together: those of trials that began before the stage before was over are held back
    until it is, and trials given up are left out.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._path = folder / RESULT_FILE
        self._plan = plan
        self._open = 1  # the stage whose lines are written
        self._titled = 0
        self._held: list[tuple[str, Mapping[str, Any]]] = []

    def rebuild(self, records: Iterable[Record], history: History) -> None:
        lines = (line for one in records for line in self.lines(one["event"], one, history))
        write_whole(self._path, "".join(lines).encode("utf-8", "backslashreplace"))

    def append(self, event: str, record: Mapping[str, Any], history: History) -> None:
        if lines := self.lines(event, record, history):
            data = "".join(lines).encode("utf-8", "backslashreplace")
            with disk_errors(self._path), open(self._path, "ab") as file:
                file.write(data)

    def lines(self, event: str, record: Mapping[str, Any], history: History) -> list[str]:
        if event == "select":
            self._open = record["stage"] + 1
            held, self._held = self._held, []
            selection = {
                "selected": list(record["beam"]),
                "stage": record["stage"],
                "task": self._plan.stages[record["stage"] - 1].task,
                "scores": [history[number].score for number in record["beam"]],
            }
            later = [line for kind, one in held for line in self.lines(kind, one, history)]
            return [_line(selection), *later]
        if event not in ("start", "finish") or record["trial"] in history.given_up:
            return []
        trial = history[record["trial"]]
        if trial.stage > self._open:
            self._held.append((event, record))
        elif event == "finish":
            # The record's own outcome: a trial that failed may be running again by now.
            return [_line(self._trial(replace(trial, outcome=outcome_from_json(record)), history))]
        elif trial.stage > self._titled:
            before, self._titled = self._titled, trial.stage
            if before and self._plan.stages[before - 1].task == trial.task:
                return []  # another round of the task
            return [f"-------------{trial.task} beginner---------------\n"]
        return []

    def _trial(self, trial: Trial, history: History) -> dict[str, Any]:
        outcome = trial.outcome
        assert outcome is not None
        config = {**self._plan.configs.get(trial.task, {}), **trial.suggestion.params}
        return {
            "training_params": training_params(config, trial.suggestion.params),
            "average_metrics": [t.score for t in history.lineage(trial)[:-1]] + [trial.score],
            "test_result": [[name, score] for name, score in outcome.tests.items()],
            "model_save_path": outcome.checkpoint,
            "task": trial.task,
            "stage": trial.stage,
            "trial": trial.number,
            "parent": trial.parent,
            **({"extra": trial.extra} if trial.extra else {}),
            **_merged(trial),
            **provenance(trial.suggestion),
            "status": outcome.state.value,
            "reason": outcome.reason,
            "score": outcome.score,
            "score_split": _score_split(outcome),
            "dev_result": [[name, score] for name, score in outcome.evaluations.items()],
            "log": f"{trial.folder}/{LOG_NAME}" if trial.folder else None,
            "seconds": round(outcome.seconds, 3),
        }


def _merged(trial: Trial) -> dict[str, Any]:
    merged = trial.outcome.merged_from if trial.outcome else {}
    return {"merged_from": dict(merged)} if merged else {}


def _score_split(outcome: Outcome) -> str:
    """The rows a trial is ranked by. An app says with the number `selected_on_test` that they are test's."""
    if outcome.numbers.get("selected_on_test"):
        return "test"
    return "dev" if outcome.evaluations else "returned"


def _line(told: Mapping[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False) + "\n"


def training_params(config: Mapping[str, Any], searched: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job under their short names, as AutoCL wrote them.

    A short name is the last part of a key; where two keys share it, both keep their whole name.
    """
    keys = [key for key in config if key in searched or key.rpartition(".")[2] in KNOWN_SETTINGS]
    names = [key.lstrip("+") for key in keys]
    shorts = [name.rpartition(".")[2] for name in names]
    told: dict[str, Any] = {}
    for key, name, short in zip(keys, names, shorts, strict=True):
        told[short if shorts.count(short) == 1 else name] = config[key]
    if "per_device_train_batch_size" in told:
        told["train_bs"] = told.pop("per_device_train_batch_size")
    return told


# -- optimization_results.yaml and trials.csv -------------------------------------------------------


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
            **_merged(trial),
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


def write_table(folder: Path, history: History) -> None:
    """Every trial as a row; parameters, scores by task and other numbers as columns of their own."""
    fixed = ["trial", "stage", "task", "state", "score", "step", "parent"]
    fixed += ["selected", "attempt"]
    fixed += ["seconds", "folder", "cause", "reason"]
    repeated = any(trial.repeat for trial in history)
    has_extras = any(trial.extra for trial in history)
    fixed += ["repeat"] * repeated + ["extra"] * has_extras
    fixed += ["merged_from"] * any(t.outcome and t.outcome.merged_from for t in history)
    rows: list[tuple[dict[str, Any], ...]] = []
    selected = {number for beam in history.beams.values() for number in beam}
    for trial in history:
        outcome = trial.outcome
        row: dict[str, Any] = {
            "trial": trial.number,
            "stage": trial.stage,
            "task": trial.task,
            "state": trial.state.value,
            "score": trial.score,
            "step": reports[-1].step if (reports := history.reports(trial.number)) else None,
            "parent": trial.parent,
            "selected": int(trial.number in selected),
            "attempt": trial.attempt,
            "folder": trial.folder,
        }
        if repeated:
            row["repeat"] = trial.repeat
        if has_extras:
            row["extra"] = trial.extra
        if outcome is not None and outcome.merged_from:
            row["merged_from"] = json.dumps(dict(outcome.merged_from))
        params = {
            f"param/{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in trial.suggestion.params.items()
        }
        numbers: dict[str, float] = {}
        device: dict[str, Any] = {}
        if outcome is not None:
            row["seconds"] = round(outcome.seconds, 3)
            row |= {"cause": outcome.cause.value, "reason": outcome.reason}
            numbers |= {f"eval/{key}": n for key, n in outcome.evaluations.items()}
            numbers |= {f"test/{key}": n for key, n in outcome.tests.items()}
            numbers |= {key: n for key, n in outcome.numbers.items() if key not in fixed}
            if outcome.device is not None:
                device = {f"device/{k}": figure for k, figure in asdict(outcome.device).items()}
                device["device/ids"] = " ".join(outcome.device.ids)
        rows.append((row, provenance(trial.suggestion), params, numbers, device))
    columns = dict.fromkeys(fixed)
    for group in (1, 2, 3, 4):
        columns |= dict.fromkeys(key for row in rows for key in row[group])
    write_whole(folder / TABLE_FILE, _csv(list(columns), rows).encode("utf-8", "backslashreplace"))


def _csv(columns: Sequence[str], rows: Iterable[tuple[dict[str, Any], ...]]) -> str:
    """A table that Python's csv, pandas and spreadsheets read alike, whatever its texts hold."""
    text = io.StringIO(newline="")
    # The writer quotes what is in its line end, with this one a carriage return as well.
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    lines = []
    for row in ({key: key for key in columns}, *(dict(ChainMap(*groups)) for groups in rows)):
        writer.writerow({k: plain(v) if k == "reason" else v for k, v in row.items()})
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        text.seek(0)
        text.truncate()
    return "".join(lines)
