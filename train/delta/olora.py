"""O-LoRA: one LoRA adapter per task, held orthogonal to its frozen ancestors by two penalties.

"Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023:

    L      = task loss + lamda_1 * L_orth + lamda_2 * L_l2
    L_orth = sum over modules  sum_ij | <A_old[i, :], A_new[j, :]> |
    L_l2   = sum over modules  ( ||A_new||_F + ||B_new||_F )

A is r x d_in, as `lora_A` in peft: its rows are the input directions a task uses. A_old has the
rows of all ancestors, plain: the scaling alpha / r belongs to B.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from train.config.sections import DeltaSettings, SettingsError
from train.config.typed import nearest

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
        target_modules=own_names(model, delta.target_modules),
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


# A layer by its place -> what it is called in transformers' models, one or several.
LAYER_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "q_proj": (("q",),),
    "k_proj": (("k",),),
    "v_proj": (("v",),),
    "o_proj": (("o",), ("out_proj",)),
    "fc1": (("wi",), ("wi_0", "wi_1")),
    "fc2": (("wo",),),
}


def own_names(model: torch.nn.Module, wanted: Sequence[str]) -> list[str]:
    """The names `model` has for the layers of `delta.target_modules`; its own are taken as they are.

    Raises SettingsError for one that it has no layer for.
    """
    paths = [
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    ]

    def there(name: str) -> bool:  # as peft looks
        return any(path == name or path.endswith(f".{name}") for path in paths)

    found: list[str] = []
    for name in wanted:
        candidates = ((name,), *LAYER_NAMES.get(name, ()))
        own = next((one for one in candidates if all(map(there, one))), None)
        if own is None:
            linear = {path.rpartition(".")[2] for path in paths}
            raise SettingsError(
                f"delta.target_modules: the model has no layer '{name}'{nearest(name, linear)}. Its "
                f"layers: {', '.join(sorted(linear))}"
            )
        found += own
    return found


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
