"""The bottleneck adapter of Houlsby et al. (arXiv 1902.00751), without biases.

    out = x + silu(x A) B,   A: d x r, B: r x d, both N(0, 0.02)

x is what a sub-layer (self-attention, cross-attention, feed-forward) puts out, before the block's dropout
and its residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from train.delta.own import OwnDelta, of_family

# `model_type`s -> the layers that end a sub-layer, by the end of their path.
LAST_LAYERS = {
    "t5 mt5 umt5 unify": ("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"),
    "llama mistral qwen2 qwen3 smollm3 gemma olmo2": ("self_attn.o_proj", "mlp.down_proj"),
    "bert roberta xlm-roberta electra camembert": ("output.dense",),
    "bart mbart": ("self_attn.out_proj", "encoder_attn.out_proj", "fc2"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
}


class Bottleneck(torch.nn.Module):
    """x + silu(x A) B."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.empty(width, size))
        self.B = torch.nn.Parameter(torch.empty(size, width))
        torch.nn.init.normal_(self.A, std=0.02)
        torch.nn.init.normal_(self.B, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + torch.nn.functional.silu(x @ self.A) @ self.B
        return made


def _adapted(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """The forward hook of a layer with an adapter."""
    made: torch.Tensor = layer.delta_adapter(output)
    return made


class Adapter(OwnDelta):
    """A delta: a bottleneck behind every sub-layer."""

    name = "adapter"
    kind = "bottleneck"

    def insert(self, model: Any) -> None:
        ends = of_family(LAST_LAYERS, model, self.name)
        for path, layer in [*model.named_modules()]:
            is_end = any(f".{path}".endswith(f".{end}") for end in ends)
            if is_end and hasattr(layer, "weight"):
                # Conv1D of GPT-2 keeps its weight as d_in x d_out.
                conv = type(layer).__name__ == "Conv1D"
                width = layer.weight.shape[1 if conv else 0]
                made = Bottleneck(width, self.settings.size)
                layer.delta_adapter = made.to(layer.weight.device)
                layer.register_forward_hook(_adapted)

    def described(self) -> Mapping[str, Any]:
        return {"size": self.settings.size}


DELTA = Adapter
