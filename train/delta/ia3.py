"""IA3 of peft (arXiv 2205.05638): vectors that scale keys, values and the inside of feed-forwards.

One for the whole chain, which every task trains on; a checkpoint holds it as it is after its task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from train.config.typed import SettingsError
from train.delta.method import Method


class IA3(Method):
    """A delta: vectors of ones that are trained."""

    name = "ia3"
    kind = "ia3"

    def attach(self, model: Any, name: str, ancestors: Sequence[str]) -> Any:
        """The vectors are ones, or begin as those of the last of `ancestors`, which goes."""
        from peft import IA3Config, PeftModel, get_peft_model

        if isinstance(model, PeftModel):
            last = ancestors[-1]
            model.add_adapter(name, model.peft_config[last])
            old = {k: v.clone() for k, v in model.state_dict().items() if k.endswith(f".{last}")}
            for key, p in model.named_parameters():
                if key.endswith(f".{name}"):
                    p.data.copy_(old[key.removesuffix(name) + last])
            model.set_adapter(name)
            model.delete_adapter(last)
        else:
            try:
                model = get_peft_model(model, IA3Config(), adapter_name=name)
            except ValueError as error:
                raise SettingsError(
                    f"delta._name=ia3: peft does not know where it goes in a model of type "
                    f"{model.config.model_type}: {error}"
                ) from error
        self.model, self.own = model, name
        for key, p in model.named_parameters():
            p.requires_grad_(key.endswith(f".{name}"))
        return model

    def report(self) -> dict[str, float]:
        if self.model is None:
            return {}
        away = [
            (p.detach().float() - 1).square().sum()
            for p in self.model.parameters()
            if p.requires_grad
        ]
        return {"delta_norm": torch.stack(away).sum().sqrt().item()}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(
            str(folder), selected_adapters=[self.own], save_embedding_layers=False
        )

    def load(self, model: Any, name: str, ancestors: Sequence[str], folder: Path) -> Any:
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors.torch import load_file

        saved = load_file(folder / name / "adapter_model.safetensors")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder / name), adapter_name=name, is_trainable=False)
            model.set_adapter(name)
            for other in [one for one in model.peft_config if one != name]:
                model.delete_adapter(other)
        else:
            model = PeftModel.from_pretrained(model, str(folder / name), adapter_name=name)
        found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        if saved.keys() != found.keys():
            raise ValueError(
                f"its weights do not fit the model: {sorted(saved.keys() ^ found.keys())[:3]}"
            )
        model.requires_grad_(False)
        return model


DELTA = IA3
