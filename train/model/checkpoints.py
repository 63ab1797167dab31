"""Checkpoints of a chain (`train.chain`), saved and loaded: a base, then one delta per task."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.chain import CheckpointError, Node, broken, walk
from train.config.typed import SettingsError
from train.delta.delta import Delta
from train.model.family import Family

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedChain:
    """A model with all deltas of its chain active and frozen."""

    model: PreTrainedModel | PeftModel
    nodes: tuple[Node, ...]  # first task first
    deltas: tuple[str, ...]  # their names: one for each node behind the last whole model


def delta_name(place: int) -> str:
    """The delta of the task at this place of the chain, counted from 1."""
    return f"task{place}"


def save(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    tasks: Sequence[str],
    parent: LoadedChain | None,
    family: Family,
    delta: Delta | None,
) -> None:
    """Write what this run trained; node.json comes last and makes the checkpoint whole.

    delta: null where the run trained the whole model.
    """
    node: dict[str, Any] = {"task": tasks[0] if len(tasks) == 1 else list(tasks), "parent": None}
    if parent is not None:
        # Relative, so that a sweep folder can be moved as a whole.
        node["parent"] = Path(os.path.relpath(parent.nodes[-1].folder, folder)).as_posix()
    if delta is None:
        family.save(model, folder / "base")
    else:
        delta.save(folder)
        node["delta"] = delta.kind
        if parent is None:
            assert family.source is not None  # an adapter of the first task: `check_model`
            node["base"] = {"path": family.source, "fingerprint": fingerprint(model)}
    (folder / "node.json").write_text(json.dumps(node) + "\n")


def load(folder: Path, family: Family, delta: Delta) -> LoadedChain:
    """The model of a checkpoint: its base and every delta on the way, all frozen.

    Raises CheckpointError, which names the folder at fault and the chain that needs it.
    """
    nodes = walk(folder)
    first = max((i for i, node in enumerate(nodes) if node.is_whole), default=0)
    begun, deltas = nodes[first], tuple[str, ...]()
    at = begun
    try:
        model: PreTrainedModel | PeftModel = _base(begun, family)
        for place, at in enumerate(nodes[first:], start=first + 1):
            if at.kind is None:
                continue
            if at.kind != delta.kind:
                raise CheckpointError(
                    f"checkpoint {at.folder} holds {at.kind}, and delta._name={delta.name} goes on from "
                    f"{delta.kind}. Take the delta that the chain began with"
                )
            model = delta.load(model, delta_name(place), deltas, at.folder)
            deltas += (delta_name(place),)
    except (CheckpointError, SettingsError):
        raise
    # Whatever the libraries raise on damaged files (OSError, SafetensorError, KeyError, ...).
    except Exception as error:
        needed_by = nodes[nodes.index(at) + 1 :]
        raise broken(at.folder, f"{type(error).__name__}: {error}", needed_by) from error
    return LoadedChain(model, tuple(nodes), deltas)


def _base(node: Node, family: Family) -> PreTrainedModel:
    if node.is_whole:
        return family.load(node.folder / "base").requires_grad_(False)
    if node.base is None:
        raise FileNotFoundError("it has no base/, and node.json does not say where its base is")
    if family.source is None:
        raise SettingsError(
            f"model: the chain in init_from has adapters for the weights of {node.base['path']}; set "
            "model.path to it, with the model._name that the chain began with"
        )
    model = family.build().requires_grad_(False)
    if (found := fingerprint(model)) != node.base["fingerprint"]:
        raise CheckpointError(
            f"checkpoint {node.folder}: its adapter is for another base model. It was trained on the "
            f"weights of {node.base['path']} (fingerprint {node.base['fingerprint'][:12]}); "
            f"model.path={family.source} has others ({found[:12]}). Set model.path to the model that the "
            "chain began with"
        )
    return model


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names and shapes of the base's weights, and of values at both ends of each.

    Adapters do not count. Training moves every value a little, so a few of each tell models apart.
    """
    found = hashlib.sha256()
    weights = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not any(mark in f".{name}" for mark in (".lora_", ".ia3_", ".delta_", "osf_"))
    }
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().flatten()
        ends = flat[[*range(min(64, len(flat))), *range(-min(64, len(flat)), 0)]].float().cpu()
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(ends.numpy().tobytes())
    return found.hexdigest()
