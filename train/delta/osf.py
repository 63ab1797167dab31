"""OSF: every task moves the weights, but not along the directions they already use most.

Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning" (arXiv
2504.07097), as peft has it. A task begins with W = U S V of all tasks before it; the `effective_rank`
largest singular directions are frozen, gradients of the others are projected away from them. The rank is
the same for every task and layer; the paper's is adapted to both.

Peft merges OSF into W for good. Here a checkpoint has the change of its task alone, as a LoRA adapter:

    W_new - W = U S V - U_0 S_0 V_0 = [U S, -U_0 S_0] [V; V_0]        over the directions that are trained

so that siblings share their ancestors, and a chain is loaded without decomposing anything again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, OSFConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from train.config.sections import DeltaSettings
from train.config.typed import SettingsError
from train.delta.delta import Model
from train.delta.lora import PeftDelta, default_targets, own_names


class OSF(PeftDelta):
    """A delta: what a task changed of the weights, outside of the directions that are frozen."""

    name = "osf"
    kind = "adapters"  # one per task, all of them active
    model: PeftModel | None

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__(settings)
        self.targets: list[str] = []
        self.begun: dict[str, torch.Tensor] = {}  # the trained factors as they were

    def attach(self, model: Model, name: str, ancestors: Sequence[str]) -> PeftModel:
        """The ancestors are merged into the weights, in memory. Raises SettingsError for another rank."""
        base: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
        self.targets = own_names(base, self.settings.target_modules or default_targets(base))
        rank = self.settings.effective_rank
        config = OSFConfig(
            effective_rank=rank if rank < 1 else int(rank), target_modules=self.targets
        )
        self.model, self.own = get_peft_model(base, config, adapter_name=name), name
        self.begun = {key: p.detach().clone() for key, p in self._factors().items()}
        if not self.begun or any(not p.numel() for p in self.begun.values()):
            why = (
                "nothing is left to train" if self.begun else "their layers are no torch.nn.Linear"
            )
            raise SettingsError(
                f"delta.effective_rank={rank:g}, delta.target_modules={self.targets}: {why}. Frozen "
                "directions must be fewer than a layer has inputs and outputs (0.5: half of them)"
            )
        return self.model

    def _factors(self) -> dict[str, torch.nn.Parameter]:
        """Name of a layer, and of its factor U_low, S_low or V_low -> what is trained."""
        assert self.model is not None
        mark = f".osf_svd_params.{self.own}."
        return {n.replace(mark, "."): p for n, p in self.model.named_parameters() if mark in n}

    def save(self, folder: Path) -> None:
        """A LoRA adapter with scaling 1 that adds what the task changed."""
        now = {key: p.detach() for key, p in self._factors().items()}
        layers = [key.removesuffix(".S_low") for key in now if key.endswith(".S_low")]
        rank = 2 * max(len(now[f"{layer}.S_low"]) for layer in layers)
        state = {}
        for layer in layers:
            (u, s, v), (u_0, s_0, v_0) = (
                [of[f"{layer}.{factor}"] for factor in ("U_low", "S_low", "V_low")]
                for of in (now, self.begun)
            )
            a, b = torch.cat([v, v_0]), torch.cat([u * s, -u_0.to(u) * s_0.to(s)], dim=1)
            rest = rank - len(a)  # of layers with fewer directions
            state[f"{layer}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, rest))
            state[f"{layer}.lora_B.weight"] = torch.nn.functional.pad(b, (0, rest))
        LoraConfig(
            r=rank, lora_alpha=rank, target_modules=self.targets, inference_mode=True
        ).save_pretrained(str(folder / self.own))
        path = folder / self.own / "adapter_model.safetensors"
        save_file({k: t.cpu().contiguous() for k, t in state.items()}, path, {"format": "pt"})


DELTA = OSF
