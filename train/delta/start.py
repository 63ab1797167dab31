"""Where a new delta begins: as another delta, one task's or one merged of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from train.config.typed import SettingsError
from train.delta.own import tensors_of
from train.merge.apply import merge
from train.merge.plan import read_plan, reread_sources
from train.merge.rules import MergeError
from train.merge.sources import read_source, task_of


def begin_as(model: Any, name: str, given: str) -> None:
    """Put the delta in the folder `given`, or the one a merge plan describes, into the attached delta `name`.

    A LoRA of a lower rank than the new one's is filled up: with the A that were drawn, and with zeros for
    their B, so that it does what the given one does. Raises SettingsError where it does not fit.
    """
    key = f"delta.start_from={given}"
    try:
        state, scaling, kind = _read(Path(given))
    except MergeError as error:
        raise SettingsError(f"{key}: {error}") from error
    own = _of_peft(model, name) if kind in ("lora", "ia3") else tensors_of(model)
    if kind == "lora":
        if not any(".lora_" in one for one in own):
            raise SettingsError(f"{key}: it is a LoRA, and delta._name trains none")
        layers = dict(model.named_modules())
        state = {
            k: _filled(k, v, own, layers, name, scaling, key) if k in own else v
            for k, v in state.items()
        }
    if different := sorted(own.keys() ^ state.keys()):
        raise SettingsError(
            f"{key}: it is for other layers or another delta: '{different[0]}' is in only one of it and "
            "the new delta"
        )
    with torch.no_grad():
        for one, parameter in own.items():
            if parameter.shape != state[one].shape:
                raise SettingsError(
                    f"{key}: '{one}' has {tuple(state[one].shape)}, the new delta "
                    f"{tuple(parameter.shape)}; set the delta's sizes to those it was trained with"
                )
            parameter.copy_(state[one])


def _read(place: Path) -> tuple[Mapping[str, torch.Tensor], float, str]:
    """Tensors, scaling and kind of a delta folder, or of the merge a plan describes."""
    if place.suffix == ".json":
        plan = read_plan(place)
        sources = reread_sources(plan)
        made = merge(plan, sources)
        config, kind = made.config, sources[0].kind
        state: Mapping[str, torch.Tensor] = made.state
    else:
        source = read_source(task_of(place), str(place))
        config, kind, state = source.config, source.kind, source.state
    scaling = config["lora_alpha"] / config["r"] if kind == "lora" else 1.0
    return state, scaling, kind


def _of_peft(model: Any, name: str) -> dict[str, torch.nn.Parameter]:
    """The parameters of the adapter `name`, by the names peft saves them under."""
    found = {}
    for key, p in model.named_parameters():
        parts = key.split(".")
        if name in parts and (".lora_" in key or ".ia3_" in key):
            found[".".join(part for part in parts if part != name)] = p
    return found


def _filled(
    key: str,
    value: torch.Tensor,
    own: Mapping[str, torch.nn.Parameter],
    layers: Mapping[str, Any],
    name: str,
    scaling: float,
    where: str,
) -> torch.Tensor:
    """One factor in the rank and scaling of the new adapter."""
    like = own[key].detach()
    is_a = ".lora_A." in key
    rank, wanted = value.shape[0 if is_a else 1], like.shape[0 if is_a else 1]
    if rank > wanted:
        raise SettingsError(
            f"{where}: it has rank {rank}, the new adapter delta.lora_dim={wanted}: set delta.lora_dim to "
            f"{rank} or more, or merge.rank to {wanted}"
        )
    made: torch.Tensor = like.clone() if is_a else torch.zeros_like(like)
    if is_a:
        made[:rank] = value
    else:
        layer = layers[key.partition(".lora_B.")[0]]
        made[:, :rank] = value * (scaling / layer.scaling[name])
    return made
