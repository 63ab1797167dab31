"""What our own delta modules share: parameters under names with `delta_`, saved as peft saves its own.

The modules lie inside the model, so that every task of a chain trains the same ones on: a checkpoint holds
them as they are after its task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from train.config.typed import SettingsError
from train.delta.delta import Delta, norm, refuse_misfit

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MARK = "delta_"  # in the name of every tensor that belongs to a delta, and of none of a model


def tensors_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The delta's parameters by name."""
    return {name: p for name, p in model.named_parameters() if f".{MARK}" in f".{name}"}


class OwnDelta(Delta):
    """A delta of our own modules, the only trainable part, which every task of a chain trains on."""

    def insert(self, model: Any) -> None:
        """Put new modules into `model`, drawn from torch's global generator. Raises SettingsError."""
        raise NotImplementedError

    def described(self) -> Mapping[str, Any]:
        """What decides the shapes of its tensors, beside the model."""
        raise NotImplementedError

    def attach(self, model: Any, name: str, ancestors: Sequence[str]) -> Any:
        """The modules are new, or those of the last of `ancestors`, which are in the model already."""
        self.model, self.own = model, name
        if not tensors_of(model):
            self.insert(model)
        model.requires_grad_(False)
        for p in tensors_of(model).values():
            p.requires_grad_(True)
        return model

    def report(self) -> dict[str, float]:
        if self.model is None:
            return {}
        return {"delta_norm": norm(p.detach().float() for p in tensors_of(self.model).values())}

    def save(self, folder: Path) -> None:
        place = folder / self.own
        place.mkdir(parents=True, exist_ok=True)
        tensors = sorted(tensors_of(self.model).items())
        state = {k: v.detach().cpu().contiguous() for k, v in tensors}
        save_file(state, place / WEIGHTS, {"format": "pt"})
        config = {
            "delta_type": self.name,
            "base_model_name_or_path": self.model.config.name_or_path,
            **self.described(),
        }
        (place / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def load(self, model: Any, name: str, ancestors: Sequence[str], folder: Path) -> Any:
        saved = load_file(folder / name / WEIGHTS)
        config = json.loads((folder / name / CONFIG).read_text())
        for key, value in self.described().items():
            if config.get(key) != value:
                raise SettingsError(
                    f"delta.{key}={value}: the {self.name} of the chain in {folder} has "
                    f"{config.get(key)}, and every task trains that one on; set it to this"
                )
        if not tensors_of(model):
            self.insert(model)
        found = tensors_of(model)
        refuse_misfit(saved, found)
        with torch.no_grad():
            for key, p in found.items():
                p.copy_(saved[key])
                p.requires_grad_(False)
        return model


def of_family(table: Mapping[str, Sequence[str]], model: Any, what: str) -> Sequence[str]:
    """The layer names of a table for the model's `model_type`. Raises SettingsError for an unknown one."""
    kind = model.config.model_type
    for types, names in table.items():
        if kind in types.split():
            return names
    known = ", ".join(sorted(one for types in table for one in types.split()))
    raise SettingsError(
        f"delta._name={what}: it is not known where it goes in a model of type {kind}; known are {known}. "
        "delta=lora and delta=ia3 take others"
    )
