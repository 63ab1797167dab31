"""The temperature of a softmax over scores, chosen by the loss of its merge on the target's dev rows."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from train.config.merging import MergeSettings
from train.data.rows import Rows
from train.merge.apply import merge, write_merged
from train.merge.plan import Scores, make_plan
from train.merge.sources import Source, read_source
from train.model.family import Meeting
from train.score.holder import Holder
from train.score.scoring import score


def dev_losses(
    task: Meeting, rows: Rows, holder: Holder, settings: MergeSettings, scores: Scores
) -> dict[float, float]:
    """Temperature -> loss on dev, per token, of the delta that its weights merge to. Raises MergeError.

    settings: of the merge, with its sources and target.
    """
    merged: list[Source] = []
    with tempfile.TemporaryDirectory() as place:
        for number, temperature in enumerate(settings.temperatures):
            plan, sources = make_plan(replace(settings, temperature=temperature), scores)
            folder = Path(place) / str(number)
            write_merged(merge(plan, sources), plan, folder)
            merged.append(read_source(str(temperature), str(folder)))
        plain = replace(settings, method="loss", temperature=None, reduction="mean", blocks=None)
        found = score(task, rows, merged, holder, plain, None, {}).by_method["loss"]
    return {float(name): value for name, value in found.items()}
