"""The re-parametrised prefix (Li and Liang, arXiv 2101.00190), kept as what it is trained as.

    keys and values of every layer's self-attention = W_up tanh(W_down table),   table: n x d

Every stack (encoder, decoder) has one, without biases. They are put before the keys and values of the text;
nothing masks them, and they have no position. Table and projections are saved, so that a prefix can be
trained on and merged; peft keeps the resulting keys and values alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from train.config.typed import SettingsError
from train.delta.own import OwnDelta, of_family

# `model_type`s -> the self-attentions, by the end of their path, and their layer that makes keys.
ATTENTIONS = {
    "t5 mt5 umt5 unify": ("SelfAttention", "k"),
    "llama mistral qwen2 qwen3 smollm3 olmo2": ("self_attn", "k_proj"),
    "bert roberta xlm-roberta electra camembert": ("attention.self", "key"),
    "bart mbart": ("self_attn", "k_proj"),
}
NAME = "autocl_prefix"  # of the attention function in transformers' registry


class Prefix(torch.nn.Module):
    """The table and projections of one stack."""

    def __init__(self, tokens: int, width: int, size: int, layers: int, keys: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(tokens, width))
        self.down = torch.nn.Linear(width, size, bias=False)
        self.up = torch.nn.Linear(size, layers * 2 * keys, bias=False)
        self.keys = keys

    def layer(self, number: int) -> torch.Tensor:
        """tokens x 2 * keys: the keys, then the values, of one layer."""
        own = self.up.weight[number * 2 * self.keys : (number + 1) * 2 * self.keys]
        return torch.nn.functional.linear(torch.tanh(self.down(self.table)), own)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_bias: torch.Tensor | None = None,
    **more: Any,
) -> Any:
    """Attention as transformers' `sdpa`, with the prefix of `module` before keys and values."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if hasattr(module, "delta_prefix"):
        stack, number = module.delta_prefix
        rows, heads, _, size = key.shape
        made = stack.layer(number).to(key.dtype)
        shaped = made.view(len(made), 2, heads, size).permute(1, 2, 0, 3).unsqueeze(1)
        keys, values = shaped.expand(2, rows, heads, len(made), size)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        if attention_mask is not None:
            attention_mask = torch.nn.functional.pad(attention_mask, (len(made), 0), value=0.0)
        if position_bias is not None:
            position_bias = torch.nn.functional.pad(position_bias, (len(made), 0), value=0.0)
    if position_bias is not None:
        more["position_bias"] = position_bias
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **more)


class PrefixTuning(OwnDelta):
    """A delta: keys and values before those of the text, in every self-attention."""

    name = "prefix"
    kind = "prefix"

    def insert(self, model: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import eager_mask

        end, makes_keys = of_family(ATTENTIONS, model, self.name)
        stacks: dict[str, list[Any]] = {}
        for path, module in model.named_modules():
            if f".{path}".endswith(f".{end}"):
                parts = path.split(".")
                both = model.config.is_encoder_decoder
                stack = next((p for p in parts if both and p in ("encoder", "decoder")), "model")
                stacks.setdefault(stack, []).append(module)
        if not stacks:
            raise SettingsError(f"delta._name=prefix: the model has no layer '{end}'")
        settings, width = self.settings, model.config.hidden_size
        model.delta_prefix = torch.nn.ModuleDict()
        for name, attentions in stacks.items():
            keys = getattr(attentions[0], makes_keys)
            made = Prefix(
                settings.num_tokens, width, settings.bottleneck, len(attentions), keys.out_features
            ).to(keys.weight.device)
            model.delta_prefix[name] = made
            for number, module in enumerate(attentions):
                module.delta_prefix = (made, number)  # a tuple: the stack alone owns the parameters
        AttentionInterface.register(NAME, attention)
        # A mask of numbers, for every call: a prefix can be put before it.
        AttentionMaskInterface.register(NAME, eager_mask)
        model.set_attn_implementation(NAME)

    def described(self) -> Mapping[str, Any]:
        return {"num_tokens": self.settings.num_tokens, "bottleneck": self.settings.bottleneck}


DELTA = PrefixTuning
