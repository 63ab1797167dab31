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
from typing import TYPE_CHECKING

import torch

from train.settings import DeltaSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Factors:
    """The factors of one LoRA module: those of all ancestors, stacked and frozen, and the new."""

    a_old: torch.Tensor  # R x d_in; R is the sum of the ancestors' ranks, 0 without ancestors
    a_new: torch.Tensor  # r x d_in
    b_new: torch.Tensor  # d_out x r


def orthogonal_loss(modules: Iterable[Factors]) -> torch.Tensor:
    """Sum of the absolute values of A_old A_new^T: neither squared nor averaged over anything."""
    return _total((_full(m.a_old) @ _full(m.a_new).T).abs().sum() for m in modules)


def l2_loss(modules: Iterable[Factors]) -> torch.Tensor:
    """Sum of the plain Frobenius norms of the new factors; the gradient of ||B|| at B = 0 is 0."""
    return _total(_full(m.a_new).norm() + _full(m.b_new).norm() for m in modules)


def a_norm(modules: Iterable[Factors]) -> torch.Tensor:
    """||A_new|| over all modules. L_orth also falls when A_new shrinks to nothing: watch both."""
    return _total(_full(m.a_new).square().sum() for m in modules).sqrt()


def _full(factor: torch.Tensor) -> torch.Tensor:
    # Summed in bfloat16, 144 modules were 5 % off; float64 is kept for exact comparisons.
    return factor if factor.dtype == torch.float64 else factor.float()


def _total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return sum(terms, start=torch.zeros(()))


def add_adapter(
    model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str], delta: DeltaSettings
) -> PeftModel:
    """The model with a new adapter `name`, the only trainable part, on top of its active ancestors.

    The adapter changes nothing yet: B = 0, and A is uniform in +-1/sqrt(d_in). Ranks may differ
    along a chain; every adapter keeps its own scaling alpha / r.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=delta.lora_dim,
        lora_alpha=delta.lora_alpha,  # type: ignore[arg-type]  # peft only divides it
        lora_dropout=delta.lora_dropout,
        target_modules=[own_name(model, name) for name in delta.target_modules],
    )
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, adapter_name=name)
    activate(model, [*ancestors, name])
    model.set_requires_grad(name, True)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    own = {n for n, _ in model.named_parameters() if "lora_" in n and f".{name}." in n}
    assert own and trainable == own, f"trainable besides '{name}': {sorted(trainable ^ own)[:5]}"
    return model


# What the layers of T5 are called that other transformers name after their place.
T5_NAMES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "fc1": "wi", "fc2": "wo",
}  # fmt: skip


def own_name(model: PreTrainedModel | PeftModel, name: str) -> str:
    """The name `model` has for a layer of `delta.target_modules`; T5's own are taken as they are."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return T5_NAMES.get(name, name) if kind in ("t5", "unify") else name


def activate(model: PeftModel, names: Sequence[str]) -> None:
    """Use all these adapters in forward, none of them trainable."""
    # PeftModel.set_adapter takes one name only; the tuner's takes a list, but makes all trainable.
    model.base_model.set_adapter(list(names))
    for name in names:
        model.set_requires_grad(name, False)


def factors(model: torch.nn.Module, name: str, ancestors: Sequence[str]) -> list[Factors]:
    """The factors of every LoRA module of `model`, for the adapter `name` on top of `ancestors`."""
    from peft.tuners.lora import LoraLayer

    found = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            a_new, b_new = module.lora_A[name].weight, module.lora_B[name].weight
            old = [module.lora_A[a].weight.detach() for a in ancestors if a in module.lora_A]
            a_old = torch.cat(old) if old else a_new.new_zeros(0, a_new.shape[1])
            found.append(Factors(a_old, a_new, b_new))
    return found
