"""Adapters of peft, LoRA above all: adding, saving, loading one by name, on a model that may have others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from train.config.sections import DeltaSettings
from train.config.typed import SettingsError, nearest
from train.delta.delta import Delta, Model, refuse_misfit


class PeftDelta(Delta):
    """A delta that peft has, saved as peft reads it."""

    def save(self, folder: Path) -> None:
        # Without the flag peft looks the base up where it was when the chain began.
        self.model.save_pretrained(
            str(folder), selected_adapters=[self.own], save_embedding_layers=False
        )

    def load(self, model: Model, name: str, ancestors: Sequence[str], folder: Path) -> PeftModel:
        # Read here: without this file peft looks for a pickle, and of missing keys it only warns.
        saved = load_file(folder / name / "adapter_model.safetensors")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder / name), adapter_name=name, is_trainable=False)
        else:
            model = PeftModel.from_pretrained(model, str(folder / name), adapter_name=name)
        refuse_misfit(saved, state_of(model, name))
        activate(model, [*ancestors, name])
        return model


class OneAdapter(PeftDelta):
    """One adapter for the whole chain, which every task trains on; it alone is in the model."""

    def go_on(self, last: str) -> None:
        """Let the attached adapter begin as the adapter `last`, which goes."""
        state = self.model.state_dict()
        with torch.no_grad():
            for key, value in state.items():
                parts = key.split(".")
                if self.own in parts:
                    old = ".".join(last if part == self.own else part for part in parts)
                    value.copy_(state[old])
        _leave_alone(self.model, self.own)
        self.model.set_requires_grad(self.own, True)

    def load(self, model: Model, name: str, ancestors: Sequence[str], folder: Path) -> PeftModel:
        loaded = super().load(model, name, ancestors, folder)
        _leave_alone(loaded, name)
        return loaded


def _leave_alone(model: PeftModel, name: str) -> None:
    activate(model, [name])
    for other in [one for one in model.peft_config if one != name]:
        model.delete_adapter(other)


def activate(model: PeftModel, names: Sequence[str]) -> None:
    """Use all these adapters in forward, none of them trainable."""
    tuner: Any = model.base_model  # PeftModel.set_adapter takes one name only
    tuner.set_adapter(list(names), inference_mode=True)


def state_of(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter by the names peft saves them under."""
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    )
    return found


def add_adapter(
    model: Model, name: str, ancestors: Sequence[str], delta: DeltaSettings
) -> PeftModel:
    """The model with a new adapter `name`, the only trainable part, on top of its active ancestors.

    The adapter changes nothing yet: B = 0, and A is uniform in +-1/sqrt(d_in). Ranks may differ
    along a chain; every adapter keeps its own scaling alpha / r.
    """
    targets = own_names(model, delta.target_modules or default_targets(model))
    config = LoraConfig(
        r=delta.lora_dim,
        lora_alpha=delta.lora_alpha,  # type: ignore[arg-type]  # peft only divides it
        lora_dropout=delta.lora_dropout,
        target_modules=targets,
        # GPT-2's layers keep their weights transposed.
        fan_in_fan_out=_is_transposed(model, targets),
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


# A layer by its place -> what it is called in transformers' models, one or several. Where one layer makes
# queries, keys and values together, its adapter is one for all three: GPT-2's c_attn, NeoX's query_key_value.
FUSED = (("c_attn",), ("query_key_value",), ("Wqkv",), ("qkv_proj",))
LAYER_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "q_proj": (("q",), ("query",), ("q_lin",), ("query_proj",), *FUSED),
    "k_proj": (("k",), ("key",), ("k_lin",), ("key_proj",), *FUSED),
    "v_proj": (("v",), ("value",), ("v_lin",), ("value_proj",), *FUSED),
    "o_proj": (("o",), ("out_proj",)),
    "fc1": (("wi",), ("wi_0", "wi_1")),
    "fc2": (("wo",),),
}
PUBLISHED = ("q_proj", "v_proj")  # of O-LoRA
WHOLE_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")


def default_targets(model: Any) -> tuple[str, ...]:
    """Layers that get an adapter by default: q and v; in our own small models, all of a layer.

    In models of that size, q and v alone interfere too little to tell settings apart.
    """
    return WHOLE_LAYER if model.config.model_type in ("vit", "unify") else PUBLISHED


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Path -> layer with a weight matrix, as it was before it got adapters."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and ".lora_" not in name
    }


def _is_transposed(model: torch.nn.Module, targets: Sequence[str]) -> bool:
    return any(
        type(module).__name__ == "Conv1D" and _is_called(path, name)
        for path, module in linears(model).items()
        for name in targets
    )


def _is_called(path: str, name: str) -> bool:  # as peft looks
    return path == name or path.endswith(f".{name}")


def own_names(model: torch.nn.Module, wanted: Sequence[str]) -> list[str]:
    """The names `model` has for the layers of `delta.target_modules`; its own are taken as they are.

    Raises SettingsError for one that it has no layer for.
    """
    paths = [*linears(model)]

    def there(name: str) -> bool:
        return any(_is_called(path, name) for path in paths)

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
    return [*dict.fromkeys(found)]


ANCESTORS = "ancestors"


def stack(model: PeftModel, names: Sequence[str]) -> None:
    """Put one frozen adapter, ANCESTORS, in the place of the adapters `names`: the same outputs at once.

    However long the chain, a layer computes one pair of factors for all its ancestors, without dropout.
    Draws nothing from torch's global generator.
    """
    configs: list[Any] = [model.peft_config[name] for name in names]
    states = [state_of(model, name) for name in names]
    ranks = [config.r for config in configs]
    scalings = [config.lora_alpha / config.r for config in configs]
    config = LoraConfig(
        r=sum(ranks),
        lora_alpha=sum(ranks),
        target_modules=sorted({target for config in configs for target in config.target_modules}),
        fan_in_fan_out=configs[-1].fan_in_fan_out,
    )
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(ANCESTORS, config)
    made = concatenated(states, ranks, scalings)
    set_peft_model_state_dict(model, made, adapter_name=ANCESTORS)
    activate(model, [ANCESTORS])
    for name in names:
        model.delete_adapter(name)


State = Mapping[str, torch.Tensor]


def concatenated(
    states: Sequence[State], ranks: Sequence[int], scalings: Sequence[float]
) -> dict[str, torch.Tensor]:
    """[A_1; A_2; ...] and [s_1 B_1, s_2 B_2, ...] of adapters, in the names of peft's files.

    Every A stays as it is, the scalings go into B: an orthogonal loss against it is that against the
    adapters. Where an adapter has not got a layer of another, zeros stand for it.
    """
    made: dict[str, torch.Tensor] = {}
    for key in sorted({key for state in states for key in state}):
        like = next(state[key] for state in states if key in state)
        is_a = ".lora_A." in key
        parts = []
        for state, rank, scaling in zip(states, ranks, scalings, strict=True):
            shape = (rank, like.shape[1]) if is_a else (like.shape[0], rank)
            part = state.get(key, like.new_zeros(shape))
            parts.append(part if is_a else part * scaling)
        made[key] = torch.cat(parts, dim=0 if is_a else 1).contiguous()
    return made
