"""Which block of a model a tensor of a delta belongs to, by its name."""

from __future__ import annotations


def blocks_of(name: str) -> list[str]:
    """The block a tensor is in: 'encoder.3' or '3', and below it the sub-layer: 'encoder.3.1'."""
    parts = name.split(".")
    stack = [part for part in parts if part in ("encoder", "decoder")][:1]
    numbers = [part for part in parts if part.isdecimal()]
    if not numbers:
        return []
    block = ".".join([*stack, numbers[0]])
    at = parts.index(numbers[0])
    below = parts[at + 1 : at + 3]
    if not below:
        return [block]
    # T5 numbers sub-layers ("layer.1"); others name them ("self_attn", "mlp", "attention").
    sub = below[1] if below[0] == "layer" and len(below) > 1 else below[0]
    return [block, f"{block}.{sub}"]
