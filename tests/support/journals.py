"""Journals written by hand: sweeps whose every event a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocl_sweeper.journal import NAME, VERSION, Journal, outcome_to_json, trial_to_json
from autocl_sweeper.types import Outcome, State, Suggestion, Trial

LISTS = [[1, 2], [3]]
SPACE: dict[str, Any] = {
    "lr": "log float interval [0.0001, 0.1]",
    "depth": "int interval [1, 8]",
    "optimizer": ["adam", "sgd"],
    "optimizer.momentum": "float interval [0.0, 0.99]",
    "+widths": LISTS,
    "extra": [None, {"a": 1}, True, 1],
    "model,size": [["vit", 16], ["mlp", 32]],
    "when": {"optimizer.momentum": {"optimizer": ["sgd"]}},
}
ADAM = {"lr": 0.001, "depth": 3, "optimizer": "adam", "+widths": LISTS[0], "extra": None}
ADAM |= {"model": "vit", "size": 16}
SGD = {"lr": 0.01, "depth": 8, "optimizer": "sgd", "optimizer.momentum": 0.5, "+widths": LISTS[1]}
SGD |= {"extra": {"a": 1}, "model": "mlp", "size": 32}


class Written:
    """A sweep of two tasks whose events are written one by one."""

    def __init__(self, folder: Path, direction: str = "maximize", space: Any = SPACE) -> None:
        self.folder = folder
        self.journal = Journal(folder)
        fingerprint = {
            "hydra.sweeper.direction": direction,
            "search space": {"first": space, "second": [{"lr": 0.1}, {"lr": 0.2, "depth": 2}]},
        }
        self.journal.append("sweep", version=VERSION, fingerprint=fingerprint, configuration={})

    def start(self, number: int, params: Any = ADAM, **fields: Any) -> None:
        stage = fields.pop("stage", 1)
        told = {key: fields.pop(key, None) for key in ("origin", "source")}
        task = ("first", "second")[stage - 1]
        folder = f"{stage}_{task}/{number}"
        suggestion = Suggestion(number, params, **told)
        trial = Trial(number, stage, task, suggestion, fields.pop("parent", None), folder, **fields)
        self.journal.append("start", **trial_to_json(trial), overrides=[])

    def report(self, number: int, *scores: float | None) -> None:
        for step, score in enumerate(scores, start=1):
            self.journal.append("report", trial=number, attempt=1, step=10 * step, score=score)

    def finish(
        self, number: int, score: float | None, state: State = State.COMPLETE, **fields: Any
    ) -> None:
        outcome = Outcome(state, score=score, seconds=2.5, **fields)
        self.journal.append("finish", trial=number, **outcome_to_json(outcome))

    def select(self, stage: int, *beam: int) -> None:
        self.journal.append("select", stage=stage, beam=list(beam))

    def two_stages(self) -> Written:
        """Every state there is: 0 and 1 complete, 2 pruned, 3 failed, 4 complete, 5 running."""
        self.start(0, origin="init")
        self.report(0, 0.25, 0.5)
        self.finish(0, 0.75, numbers={"score": 0.75, "rows": 100.0}, evaluations={"first": 0.75})
        self.start(1, SGD, origin="model")
        self.finish(1, 0.5)
        self.start(2, {**SGD, "lr": 0.1})
        self.report(2, 0.125, None, 0.25)
        self.finish(2, None, State.PRUNED, reason="stopped early")
        self.start(3, ADAM)
        self.finish(3, None, State.FAIL, reason="exited with 1")
        self.select(1, 0, 1)
        self.start(4, {"lr": 0.1}, stage=2, parent=0, origin="carried", source=0)
        self.finish(4, 0.625)
        self.start(5, {"lr": 0.2, "depth": 2}, stage=2, parent=1)
        self.report(5, 0.25)
        self.journal.close()
        return self


def written_anew(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A journal of these records, without checksums, as older versions wrote it."""
    (folder / NAME).write_text("".join(json.dumps(record) + "\n" for record in records))
