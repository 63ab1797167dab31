"""IA3 of peft (arXiv 2205.05638): vectors that scale keys, values and the inside of feed-forwards.

One for the whole chain, which every task trains on; a checkpoint holds it as it is after its task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import IA3Config, PeftModel, get_peft_model

from train.config.typed import SettingsError
from train.delta.delta import norm
from train.delta.lora import OneAdapter


class IA3(OneAdapter):
    """A delta: vectors of ones that are trained."""

    name = "ia3"
    kind = "ia3"
    model: PeftModel | None

    def attach(self, model: Any, name: str, ancestors: Sequence[str]) -> PeftModel:
        """The vectors are ones, or begin as those of the last of `ancestors`, which goes."""
        self.own = name
        if isinstance(model, PeftModel):
            model.add_adapter(name, model.peft_config[ancestors[-1]])
            self.model = model
            self.go_on(ancestors[-1])
            return model
        try:
            self.model = get_peft_model(model, IA3Config(), adapter_name=name)
        except ValueError as error:
            raise SettingsError(
                f"delta._name=ia3: peft does not know where it goes in a model of type "
                f"{model.config.model_type}: {error}"
            ) from error
        return self.model

    def report(self) -> dict[str, float]:
        if self.model is None:
            return {}
        trained = [p.detach().float() for p in self.model.parameters() if p.requires_grad]
        return {"delta_norm": norm(p - 1 for p in trained)}


DELTA = IA3
