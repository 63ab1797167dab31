"""Accuracy of a model on a task, given the options of each image."""

from __future__ import annotations

import torch

from train.data import Examples

BATCH = 256


def among_options(logits: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
    """The logits with everything that is not an option (n x classes, bool) ruled out."""
    return logits.masked_fill(~options, float("-inf"))


def accuracy(model: torch.nn.Module, examples: Examples) -> float:
    """Share of the images whose digit has the highest logit among their options."""
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(examples, batch_size=BATCH):
            logits = model(pixel_values=batch["pixel_values"].to(device)).logits
            guess = among_options(logits, batch["options"].to(device)).argmax(-1).cpu()
            correct += int((guess == batch["labels"]).sum())
    return correct / len(examples)
