"""SeqLoRA: one adapter for the whole chain, which every task trains on.

The baseline of that name in the O-LoRA paper, section 5. A checkpoint holds the adapter as it is after its
task, so that siblings of a search may go on from one parent.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel

from train.config.typed import SettingsError
from train.delta.delta import Model
from train.delta.lora import OneAdapter, add_adapter
from train.delta.olora import a_norm, by_shape, factors, l2_loss


class SeqLoRA(OneAdapter):
    """A delta: the adapter of the tasks so far, trained on without penalty."""

    name = "seqlora"
    kind = "adapter"  # of all tasks so far; it alone is active
    model: PeftModel | None

    def attach(self, model: Model, name: str, ancestors: Sequence[str]) -> PeftModel:
        """The new adapter begins as the last of `ancestors`. Raises SettingsError for another rank."""
        self.model, self.own = add_adapter(model, name, ancestors, self.settings), name
        if ancestors:
            _refuse_other_sizes(self.model, ancestors[-1], name)
            self.go_on(ancestors[-1])
        return self.model

    def report(self) -> dict[str, float]:
        if self.model is None:
            return {}
        groups = by_shape(factors(self.model, self.own, []))
        return {"l2_loss": l2_loss(groups).item(), "a_norm": a_norm(groups).item()}


DELTA = SeqLoRA


def _refuse_other_sizes(model: PeftModel, old: str, new: str) -> None:
    was, now = model.peft_config[old], model.peft_config[new]
    for key, option in (("r", "lora_dim"), ("lora_alpha", "lora_alpha")):
        if getattr(was, key) != getattr(now, key):
            raise SettingsError(
                f"delta.{option}={getattr(now, key)}: the adapter of the chain has "
                f"{getattr(was, key)}, and delta._name=seqlora trains that one on; set it to this"
            )
