"""A task on a model that continues text: the answer follows the instruction in one sequence.

    [pad ...] [begin] instruction | answer [end]

Rows are padded on the left. Masks and positions are made of the rows' lengths, so that neither the id of
the padding nor the other rows of a batch change what a row computes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from train.data.preprocess import Example
from train.data.vocabulary import Continued
from train.model.family import IGNORED, inputs_of, moved
from train.model.text_answer import TextAnswer, base_of, log_probability, padded


class ContinuedAnswer(TextAnswer):
    """A `Meeting`: rows to one sequence each, answers by generation or by the options' probability."""

    vocabulary: Continued

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """`labels`: n x (ids of the longest answer), the end of every row, aligned right."""
        rows = [(*self._read(one), *one.decoder[:-1]) for one in examples]
        labels = [
            [i if learn else IGNORED for i, learn in zip(one.decoder, one.learned, strict=True)]
            for one in examples
        ]
        return {
            **padded_left(rows, self.vocabulary.pad),
            "labels": padded(labels, IGNORED, left=True),
        }

    def _read(self, one: Example) -> tuple[int, ...]:
        return one.source or (self.vocabulary.begin,)

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x (ids of the longest answer) x vocabulary, aligned with the labels."""
        logits: torch.Tensor
        length = batch["labels"].shape[1]
        logits = last_logits(model, inputs_of(batch), length, use_cache=False).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Example], device: torch.device
    ) -> list[str]:
        rows = [(*self._read(one), *one.prefix) for one in examples]
        batch = moved(padded_left(rows, self.vocabulary.pad), device)
        if self.options:
            return self.likeliest(option_scores(model, batch, [*self.options.values()]))
        base = base_of(model)
        if "position_ids" not in inspect.signature(base.forward).parameters:
            batch.pop("position_ids")  # it makes them of the mask
        made = base.generate(
            **batch,
            bos_token_id=self.vocabulary.begin,
            eos_token_id=self.vocabulary.eos,
            pad_token_id=self.vocabulary.pad,
            do_sample=False,
            **self.generation,
        )
        width = batch["input_ids"].shape[1]
        return [self.vocabulary.decode(ids) for ids in made[:, width:].tolist()]


def padded_left(rows: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Ids, mask and positions of rows, padded on the left. A position counts the row's own ids."""
    mask = padded([[1] * len(row) for row in rows], 0, left=True)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ids = padded(rows, pad, left=True)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def last_logits(model: Any, inputs: Mapping[str, Any], last: int, **more: Any) -> Any:
    """The output of `model` on `inputs`, with logits of the `last` places alone."""
    known = inspect.signature(base_of(model).forward).parameters
    given = {k: v for k, v in inputs.items() if k != "position_ids" or k in known}
    if "logits_to_keep" in known:
        return model(**given, logits_to_keep=last, **more)
    output = model(**given, **more)
    output.logits = output.logits[:, -last:]
    return output


@torch.no_grad()
def option_scores(
    model: Any, batch: Mapping[str, torch.Tensor], options: Sequence[Sequence[int]]
) -> torch.Tensor:
    """n x options: log-probability in nats of each option's ids behind the rows of `batch`.

    What is read is computed once, and kept for all options.
    """
    read = last_logits(model, batch, 1, use_cache=True)
    first = read.logits[:, -1].float().log_softmax(-1)
    n, device = len(first), first.device
    scores = []
    for option in options:
        total = first[:, option[0]]
        if len(option) > 1:
            own = torch.tensor(option[:-1], device=device).expand(n, -1)
            steps = torch.arange(1, len(option), device=device)
            inputs = {
                "input_ids": own,
                "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(own)], dim=1),
                "position_ids": batch["position_ids"][:, -1:] + steps,
                # Another option must not find this one in it.
                "past_key_values": copy.deepcopy(read.past_key_values),
            }
            logits = last_logits(model, inputs, len(option) - 1, use_cache=True).logits
            wanted = torch.tensor(option[1:], device=device).expand(n, -1)
            total = total + log_probability(logits, wanted)
        scores.append(total)
    return torch.stack(scores, dim=1)
