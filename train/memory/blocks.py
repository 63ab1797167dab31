"""The blocks of a model whose activations can be recomputed, and the switch of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from train.config.memory import MemorySettings
from train.config.typed import SettingsError
from train.memory.planner import Planner
from train.memory.selective import KEPT, checkpointing

UNLIMITED = 2.0**80  # bytes, of a budget that is not set


class Blocks:
    """The innermost checkpointable layers of a model, in the order of its modules.

    Raises SettingsError for a model whose blocks cannot be recomputed one by one.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        owners = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
        name = type(owners[0] if owners else model).__name__
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.layers = [m for m in layers if not _holds_another(m)]
        if not owners or not owners[0].supports_gradient_checkpointing or not self.layers:
            raise SettingsError(
                f"memory.method: the model {name} has no layers that can be recomputed one by one "
                "(GradientCheckpointingLayer of transformers). Use another model, or memory=none"
            )
        for config in getattr(model, "peft_config", {}).values():
            if str(getattr(config.peft_type, "value", config.peft_type)) == "PREFIX_TUNING":
                raise SettingsError(
                    f"memory.method: {name} has a prefix of peft, which arrives through "
                    "past_key_values; a recomputed block drops those. Use another delta, or memory=none"
                )
        self.owner = owners[0]
        self.has_decoder = bool(getattr(self.owner.config, "is_encoder_decoder", False))

    def all_but(self, probe: int) -> tuple[int, ...]:
        """Indices of the blocks without that of `probe`."""
        return tuple(i for i in range(len(self.layers)) if i != probe)

    @property
    def kinds(self) -> list[int]:
        """The kind of each block: of one kind are a class with the same parameters, frozen alike."""
        numbers: dict[object, int] = {}
        return [numbers.setdefault(_likeness(one), len(numbers)) for one in self.layers]

    @property
    def gradients(self) -> list[float]:
        """Bytes of the gradients of each block's parameters."""
        return [
            float(sum(p.numel() * p.element_size() for p in one.parameters() if p.requires_grad))
            for one in self.layers
        ]

    def enable(self) -> None:
        """Let torch's non-reentrant checkpoint recompute whichever blocks `choose` says; none yet."""
        self.owner.activation_checkpointing_enable({"use_reentrant": False})
        for module in self.owner.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = False  # outer layers of nested ones stay off

    def choose(
        self,
        recomputed: Collection[int],
        selective: Collection[int] = (),
        tier: str | None = None,
        offload: bool = False,
    ) -> None:
        """Recompute these blocks from the next forward pass on.

        selective: blocks that are recomputed in part, as `tier` says. offload: inputs of recomputed
        blocks wait in the machine's memory.
        """
        whole: Callable[..., Any] = offloading if offload else WHOLE
        partly = None if tier is None else checkpointing(tier)
        for i, block in enumerate(self.layers):
            block.gradient_checkpointing = i in recomputed or i in selective
            # The one place where transformers takes the function of a single layer.
            function: Any = partly if i in selective else whole
            block._gradient_checkpointing_func = function

    def disable(self) -> None:
        """The model as it was."""
        self.owner.activation_checkpointing_disable()


WHOLE = partial(checkpoint, use_reentrant=False)


def offloading(function: Callable[..., Any], *args: Any) -> Any:
    """`function` is recomputed, and what is saved for it lies in the machine's memory until then."""
    with save_on_cpu(pin_memory=True):
        return WHOLE(function, *args)


def planner_of(blocks: Blocks, settings: MemorySettings) -> Planner:
    """A planner for these blocks, under the budget of the settings, that has seen nothing yet."""
    return Planner(
        blocks.kinds,
        settings.budget_bytes or UNLIMITED,
        settings.margin_bytes,
        settings.collect_steps,
        settings.planner,
        blocks.gradients,
    )


def check_indices(indices: Sequence[int], blocks: Blocks) -> None:
    """Raise SettingsError for an index that is no block's."""
    n = len(blocks.layers)
    if wrong := [i for i in indices if i >= n]:
        raise SettingsError(
            f"memory.blocks={list(indices)}: {type(blocks.owner).__name__} has {n} blocks, 0 to "
            f"{n - 1}; there is no {', '.join(map(str, wrong))}"
        )


def check_tier(wanted: str, blocks: Blocks) -> bool:
    """Whether blocks may be recomputed in part: they are of one kind.

    wanted: memory.selective. Raises SettingsError where it names a tier that cannot be.
    """
    alike = len(set(blocks.kinds)) == 1
    if not alike and wanted in KEPT:
        raise SettingsError(
            f"memory.selective={wanted}: the blocks of {type(blocks.owner).__name__} differ, and are "
            "recomputed as a whole. Leave it at auto"
        )
    return alike


def _holds_another(layer: torch.nn.Module) -> bool:
    inner = (m for m in layer.modules() if m is not layer)
    return any(isinstance(m, GradientCheckpointingLayer) for m in inner)


def _likeness(block: torch.nn.Module) -> object:
    parameters = ((n, tuple(p.shape), p.requires_grad) for n, p in block.named_parameters())
    return type(block).__name__, tuple(parameters)
