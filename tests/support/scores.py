"""Scores of sources for a few-shot target on a tiny T5, and its rows in plain transformers and peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.runs import planned


def scored(
    make: Any, deltas: tuple[list[str], dict[str, str]], folder: Path, **values: Any
) -> dict[str, Any]:
    """What result.json has of the target."""
    from train.config.merging import MergeSettings
    from train.score.run import score_tasks

    run = make(*deltas[0])
    settings = MergeSettings(**{"sources": deltas[1], **values})
    score_tasks(run, planned(run), settings, folder)
    told: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return told


def oracle(make: Any, deltas: tuple[list[str], dict[str, str]], name: str) -> Any:
    """A source in plain peft, and the dev rows: tensors for encoder and decoder, labels."""
    import torch
    from peft import PeftModel
    from support.runs import meeting_of
    from transformers import T5ForConditionalGeneration

    run = make(*deltas[0])
    base = T5ForConditionalGeneration.from_pretrained(run.model.path)
    model = PeftModel.from_pretrained(base, f"{deltas[1][name]}/task1").eval()
    vocabulary = meeting_of(run).vocabulary
    rows = []
    for row in planned(run)["mc_taco"].rows.dev:
        first = row["answers"].split("\t")[0]
        source = [*vocabulary.encode(row["prompt"]), 1]
        labels = [*vocabulary.encode(" <extra_id_0>"), *vocabulary.encode(f" {first}"), 1]
        decoder = torch.tensor([[0, *labels[:-1]]])
        rows.append(({"input_ids": torch.tensor([source]), "decoder_input_ids": decoder}, labels))
    return model, rows
