"""The joint for making one delta of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Merge(Protocol):
    """One state of several, tensor by tensor: a pure function.

    `states` map the names of a delta's tensors to their values and have names and shapes in common;
    `weights` has a number per state and need not sum to 1. The result has the same names, new tensors
    and the dtype of the first state; nothing handed in is changed, and the same input gives the same
    bits. One state with weight 1 comes back bit for bit. Raises ValueError, naming the tensor, where
    names, shapes or dtypes differ, and for a weight that is not finite.
    """

    def __call__(
        self, states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
    ) -> dict[str, torch.Tensor]: ...
