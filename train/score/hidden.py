"""Hidden states of a model at every block, and how alike those of two deltas are.

Block b is what transformers calls hidden_states[b + 1]: what the block puts out, behind the last one after the
final norm. hidden_states[0], which only embeds, is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from train.merge.rules import MergeError
from train.score.formulas import IGNORED

EMBEDDING = "embedding"


@dataclass(frozen=True)
class Stack:
    """One stack of blocks: its states, n x length x width each, and which positions count."""

    states: tuple[torch.Tensor, ...]
    counts: torch.Tensor  # n x length


@contextmanager
def observed(model: torch.nn.Module) -> Iterator[list[Any]]:
    """Within it, every output of `model` goes to the list, hidden states among it."""
    outputs: list[Any] = []

    def ask(module: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return args, {**kwargs, "output_hidden_states": True}

    handles = (
        model.register_forward_pre_hook(ask, with_kwargs=True),
        model.register_forward_hook(lambda module, args, output: outputs.append(output)),
    )
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def stacks(output: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Stack]:
    """Name of a stack -> its states; '' where there is only one. Raises MergeError where there are none.

    An encoder's positions count where they are no padding, a decoder's where they have a label.
    """
    labels, mask = batch["labels"], batch.get("attention_mask")
    encoder = getattr(output, "encoder_hidden_states", None)
    decoder = getattr(output, "decoder_hidden_states", None)
    single = getattr(output, "hidden_states", None)
    if encoder is not None and decoder is not None:
        assert mask is not None
        return {
            "encoder": Stack(encoder, mask != 0),
            "decoder": Stack(decoder, labels != IGNORED),
        }
    if single is None:
        raise MergeError(
            f"merge.method=hidden_cos: {type(output).__name__} of this model has no hidden states"
        )
    if labels.dim() == 2:  # a model that continues text answers at the last positions
        cut = tuple(one[:, -labels.shape[1] :] for one in single)
        return {"": Stack(cut, labels != IGNORED)}
    whole = single[0].new_ones(single[0].shape[:2], dtype=torch.bool)
    return {"": Stack(single, whole if mask is None else mask != 0)}


def alike(own: Mapping[str, Stack], other: Mapping[str, Stack]) -> dict[str, float]:
    """Block -> sum over rows of the cosine of both, flattened over the positions that count."""
    found = {}
    for name, stack in own.items():
        for place, pair in enumerate(zip(stack.states, other[name].states, strict=True)):
            flat = [(one.double() * stack.counts.unsqueeze(-1)).flatten(1) for one in pair]
            cosines = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=1)
            block = EMBEDDING if place == 0 else str(place - 1)
            found[f"{name}.{block}" if name else block] = float(cosines.sum())
    return found
