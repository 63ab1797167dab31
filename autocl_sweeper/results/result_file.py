"""autoCL_result.txt, line by line as the sweep goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocl_sweeper.disk import disk_errors
from autocl_sweeper.journal import Record, outcome_from_json
from autocl_sweeper.outcome import LOG_NAME, write_whole
from autocl_sweeper.plan import Plan
from autocl_sweeper.results.provenance import merged, provenance
from autocl_sweeper.types import History, Outcome, Trial

RESULT_FILE = "autoCL_result.txt"

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
            **merged(trial),
            **provenance(trial.suggestion),
            "status": outcome.state.value,
            "reason": outcome.reason,
            "score": outcome.score,
            "score_split": _score_split(outcome),
            "dev_result": [[name, score] for name, score in outcome.evaluations.items()],
            "log": f"{trial.folder}/{LOG_NAME}" if trial.folder else None,
            "seconds": round(outcome.seconds, 3),
        }


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
