"""Numbers made from the shape of a micro-batch, on which the bytes of its step depend linearly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of one micro-batch."""

    rows: int  # sequences or images; of multiple choice: questions times choices
    length: int  # tokens of a sequence, padding included; of an image: its pixels
    target: int = 0  # tokens of the decoder's sequence; 0: the model has no decoder of its own
    segments: tuple[int, ...] = ()  # lengths of the sequences packed into the rows; empty: none are

    def features(self) -> tuple[float, ...]:
        """[B*L^2, B*L, B, 1], then of a decoder [B*Lt^2, B*Lt, B*L*Lt].

        Packed rows count the squares of their segments, since attention stays inside of them.
        """
        if self.segments:
            squares, tokens = sum(n * n for n in self.segments), sum(self.segments)
        else:
            squares, tokens = self.rows * self.length**2, self.rows * self.length
        own = (float(squares), float(tokens), float(self.rows), 1.0)
        if not self.target:
            return own
        more = self.target**2, self.target, self.length * self.target
        return (*own, *(float(self.rows * one) for one in more))


def shape_of(inputs: Mapping[str, Any], has_decoder: bool = False) -> Shape:
    """The shape of a model's keyword arguments. has_decoder: config.is_encoder_decoder.

    Raises ValueError where none of the tensors that have a size is there.
    """
    for name in ("input_ids", "inputs_embeds", "pixel_values"):
        if inputs.get(name) is not None:
            sizes = [int(n) for n in inputs[name].shape]
            break
    else:
        raise ValueError(
            f"the model was called with {sorted(inputs)}: one of input_ids, inputs_embeds and "
            "pixel_values must be among them, by name, for its step to be planned"
        )
    if name == "pixel_values":
        return Shape(sizes[0], sizes[-1] * sizes[-2])
    if name == "inputs_embeds":
        sizes = sizes[:-1]
    *rows, length = sizes
    n_rows = math.prod(rows)  # of multiple choice: questions times choices
    if has_decoder:
        for other in ("decoder_input_ids", "labels"):
            if inputs.get(other) is not None:
                return Shape(n_rows, length, int(inputs[other].shape[-1]))
    ends = inputs.get("cu_seq_lens_q")
    if ends is not None:
        at = [int(n) for n in ends]
        return Shape(n_rows, length, 0, tuple(b - a for a, b in itertools.pairwise(at)))
    return Shape(n_rows, length)
