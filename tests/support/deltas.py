"""Delta folders of two linear layers, as training would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODULES = ("base_model.model.q", "base_model.model.v")
SIZES = (5, 6)  # d_out, d_in


def lora(folder: Path, rank: int = 2, alpha: float = 4, seed: int = 0, **config: Any) -> Path:
    """A LoRA adapter of peft with random factors."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module in MODULES:
        state[f"{module}.lora_A.weight"] = torch.randn(rank, SIZES[1], generator=generator)
        state[f"{module}.lora_B.weight"] = torch.randn(SIZES[0], rank, generator=generator)
    told = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q", "v"]).to_dict()  # type: ignore[arg-type]
    told |= {"target_modules": ["q", "v"], "base_model_name_or_path": "base", **config}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(told, default=str))
    save_file(state, folder / "adapter_model.safetensors")
    return folder


def change(folder: Path, name: str, value: Any) -> None:
    """Put another tensor into a delta; null: take it out."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "adapter_model.safetensors")
    if value is None:
        del state[name]
    else:
        state[name] = value
    save_file(state, folder / "adapter_model.safetensors")
