"""O-LoRA: one LoRA adapter per task, held orthogonal to its frozen ancestors by two penalties.

"Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023:

    L      = task loss + lamda_1 * L_orth + lamda_2 * L_l2
    L_orth = sum over modules  sum_ij | <A_old[i, :], A_new[j, :]> |
    L_l2   = sum over modules  ( ||A_new||_F + ||B_new||_F )

A is r x d_in, as `lora_A` in peft: its rows are the input directions a task uses. A_old has the
rows of all ancestors, plain: the scaling alpha / r belongs to B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from train.config.sections import DeltaSettings
from train.delta.delta import Model, Penalty
from train.delta.lora import ANCESTORS, PeftDelta, add_adapter, stack


class OrthogonalityOff(RuntimeError):
    """The orthogonal penalty of a task with ancestors is not above 0."""


class OLoRA(PeftDelta):
    """A delta: the adapter of one task. Not attached, where the whole model is trained, it has no penalty."""

    name = "olora"
    kind = "adapters"  # one per task, all of them active
    model: PeftModel | None

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__(settings)
        self.ancestors: tuple[str, ...] = ()
        self.first: float | None = None  # the orthogonal penalty at the first step

    def attach(self, model: Model, name: str, ancestors: Sequence[str]) -> PeftModel:
        """As of Delta; the adapters of the ancestors become one (`stack`), whatever their number."""
        if ancestors:
            stack(cast(PeftModel, model), ancestors)
            self.ancestors = (ANCESTORS,)
        self.model, self.own = add_adapter(model, name, self.ancestors, self.settings), name
        return self.model

    @cached_property
    def modules(self) -> list[Factors]:
        """Found when first asked for, in training: only then the model is on its device."""
        return [] if self.model is None else factors(self.model, self.own, self.ancestors)

    @cached_property
    def groups(self) -> list[Alike]:
        return by_shape(self.modules)

    def penalty(self) -> Penalty:
        """lamda_1 * L_orth + lamda_2 * L_l2. Raises OrthogonalityOff at the first step."""
        weights = self.settings.lamda_1, self.settings.lamda_2
        with self._in_full():
            with torch.set_grad_enabled(weights[0] > 0):  # else it is logged alone
                orthogonal = orthogonal_loss(self.groups)
            with torch.set_grad_enabled(weights[1] > 0):
                l2 = l2_loss(self.groups)
        if self.first is None:
            self.first = orthogonal.item()
            if any(len(m.a_old) for m in self.modules) and not self.first > 0:
                raise OrthogonalityOff(
                    f"the orthogonal loss is {self.first} at the first step, but the task has ancestors "
                    "and random subspaces are never exactly orthogonal: the ancestors' lora_A are not "
                    "what was trained (all zero, or not loaded). Check the checkpoint in init_from."
                )
        weighted = weights[0] * orthogonal + weights[1] * l2
        return Penalty(weighted, {"orthogonal_loss": orthogonal, "l2_loss": l2})

    def _in_full(self) -> torch.autocast:
        """Without autocast, which would multiply the factors in 16 bits."""
        device = self.modules[0].a_new.device.type if self.modules else "cpu"
        return torch.autocast(device, enabled=False)

    def report(self) -> dict[str, float]:
        return {
            "orthogonal_loss_first": self.first or 0.0,
            "orthogonal_loss": orthogonal_loss(self.groups).item(),
            "l2_loss": l2_loss(self.groups).item(),
            "a_norm": a_norm(self.groups).item(),
        }


DELTA = OLoRA


@dataclass(frozen=True)
class Factors:
    """The factors of one LoRA module: all ancestors', stacked and frozen, and the new adapter's."""

    a_old: torch.Tensor  # R x d_in; R is the sum of the ancestors' ranks, 0 without ancestors
    a_new: torch.Tensor  # r x d_in
    b_new: torch.Tensor  # d_out x r


@dataclass(frozen=True)
class Alike:
    """Modules whose factors have the same shapes: one by one, 144 of them take longer than a layer."""

    a_old: torch.Tensor  # modules x R x d_in; frozen, so that it is put together only once
    a_new: Sequence[torch.Tensor]
    b_new: Sequence[torch.Tensor]


def by_shape(modules: Iterable[Factors]) -> list[Alike]:
    """The modules in groups that can be computed together."""
    groups: dict[tuple[torch.Size, ...], list[Factors]] = {}
    for m in modules:
        groups.setdefault((m.a_old.shape, m.a_new.shape, m.b_new.shape), []).append(m)
    return [
        Alike(_full([m.a_old for m in own]), [m.a_new for m in own], [m.b_new for m in own])
        for own in groups.values()
    ]


def orthogonal_loss(groups: Iterable[Alike]) -> torch.Tensor:
    """Sum of the absolute values of A_old A_new^T: neither squared nor averaged over anything."""
    return _total(
        (alike.a_old @ _full(alike.a_new).mT).abs().sum() for alike in groups if alike.a_old.numel()
    )


def l2_loss(groups: Iterable[Alike]) -> torch.Tensor:
    """Sum of the plain Frobenius norms of the new factors; the gradient of ||B|| at B = 0 is 0."""
    return _total(
        torch.linalg.vector_norm(_full(factors), dim=(1, 2)).sum()
        for alike in groups
        for factors in (alike.a_new, alike.b_new)
    )


def a_norm(groups: Iterable[Alike]) -> torch.Tensor:
    """||A_new|| over all modules. L_orth also falls when A_new shrinks to nothing: watch both."""
    return _total(_full(alike.a_new).square().sum() for alike in groups).sqrt()


def _full(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    together = torch.stack([*factors])
    # Summed in bfloat16, 144 modules were 5 % off; float64 is kept for exact comparisons.
    return together if together.dtype == torch.float64 else together.float()


def _total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return sum(terms, start=torch.zeros(()))


def factors(model: torch.nn.Module, name: str, ancestors: Sequence[str]) -> list[Factors]:
    """The factors of every LoRA module of `model`, for the adapter `name` on top of `ancestors`."""
    found = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            a: Any = module.lora_A  # adapter name -> linear layer
            b: Any = module.lora_B
            a_new = a[name].weight
            old = [a[one].weight.detach() for one in ancestors if one in a]
            a_old = torch.cat(old) if old else a_new.new_zeros(0, a_new.shape[1])
            found.append(Factors(a_old, a_new, b[name].weight))
    return found
