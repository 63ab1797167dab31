"""The schedule of a winner: what its chain of trials was trained with, so that it can be replayed.

Its last settings alone do not reproduce a model that earlier rounds trained with others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocl_sweeper.outcome import write_whole
from autocl_sweeper.plan.rounds import SCHEDULE
from autocl_sweeper.rounds.table import Rounds, saved
from autocl_sweeper.types import Trial

REPLAY = """\
# The chain of trials that ends in the winner, from the base model. To train it again:
#   autocl finetune --replay={path} train.py [key value ...]
#   python app.py -m hydra/sweeper=autocl hydra.sweeper.parents=population \\
#     hydra.sweeper.population.replay={path}
"""


def write_schedule(folder: Path, rounds: Rounds, winner: Trial) -> None:
    import yaml

    steps = []
    for trial in rounds.chain(winner):
        number, place = rounds.round_of(trial)
        step: dict[str, Any] = {
            "round": number,
            "trial": place,
            "number": trial.number,
            "parent": rounds.name(trial.parent) or None,
            "score": trial.score,
            "epochs": rounds.passed(trial),  # null: the app's own
            "total_epochs": rounds.total_epochs(trial),
            "params": dict(trial.suggestion.params),
            "checkpoint": saved(trial, folder),
        }
        steps.append({"task": rounds.task, **step} if rounds.plan.tasks else step)
    settings = rounds.plan.settings
    told = {
        "score": winner.score,
        "direction": settings.direction,
        "parents": settings.parents,
        "steps": steps,
    }
    path = folder / rounds.root / SCHEDULE
    text = REPLAY.format(path=path) + yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
    write_whole(path, text.encode("utf-8", "backslashreplace"))
