"""SeqLoRA: one adapter for the whole chain, which every task trains on.

The baseline of that name in the O-LoRA paper, section 5. A checkpoint holds the adapter as it is after its
task, so that siblings of a search may go on from one parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from train.config.typed import SettingsError
from train.delta.lora import activate, add_adapter, load_adapter, save_adapter
from train.delta.method import Method
from train.delta.olora import a_norm, factors, l2_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class SeqLoRA(Method):
    """A delta: the adapter of the tasks so far, trained on without penalty."""

    name = "seqlora"
    kind = "adapter"  # of all tasks so far; it alone is active
    model: PeftModel | None

    def attach(
        self, model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str]
    ) -> PeftModel:
        """The new adapter begins as the last of `ancestors`. Raises SettingsError for another rank."""
        self.model, self.own = add_adapter(model, name, ancestors, self.settings), name
        if ancestors:
            _copy(self.model, ancestors[-1], name)
            _only(self.model, name, trainable=True)
        return self.model

    def report(self) -> dict[str, float]:
        if self.model is None:
            return {}
        modules = factors(self.model, self.own, [])
        return {"l2_loss": l2_loss(modules).item(), "a_norm": a_norm(modules).item()}

    def save(self, folder: Path) -> None:
        assert self.model is not None
        save_adapter(self.model, self.own, folder)

    def load(
        self, model: PreTrainedModel | PeftModel, name: str, ancestors: Sequence[str], folder: Path
    ) -> PeftModel:
        loaded = load_adapter(model, name, ancestors, folder)
        _only(loaded, name, trainable=False)
        return loaded


DELTA = SeqLoRA


def _copy(model: PeftModel, old: str, new: str) -> None:
    was, now = model.peft_config[old], model.peft_config[new]
    for key in ("r", "lora_alpha"):
        if getattr(was, key) != getattr(now, key):
            option = {"r": "lora_dim"}.get(key, key)
            raise SettingsError(
                f"delta.{option}={getattr(now, key)}: the adapter of the chain has "
                f"{getattr(was, key)}, and delta._name=seqlora trains that one on; set it to this"
            )
    ours = model.state_dict()
    with torch.no_grad():
        for key, value in ours.items():
            if f".{new}." in key and ".lora_" in key:
                value.copy_(ours[key.replace(f".{new}.", f".{old}.")])


def _only(model: PeftModel, name: str, trainable: bool) -> None:
    """Leave the adapter `name` alone in the model: the others are in it already."""
    activate(model, [name])
    for other in [one for one in model.peft_config if one != name]:
        model.delete_adapter(other)
    model.set_requires_grad(name, trainable)
