"""Checkpoints of a chain (`train.chain`), saved and loaded: a base, then one delta per task."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.chain import Node, broken, walk
from train.delta.delta import Delta
from train.model.family import Family

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedChain:
    """A model with all deltas of its chain active and frozen."""

    model: PreTrainedModel | PeftModel
    nodes: tuple[Node, ...]  # base first
    deltas: tuple[str, ...]  # their names: one for each node but the base


def delta_name(place: int) -> str:
    """The delta of the task at this place of the chain; the base is at place 1."""
    return f"task{place}"


def save(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    tasks: Sequence[str],
    parent: LoadedChain | None,
    family: Family,
    delta: Delta,
) -> None:
    """Write what this run trained; node.json comes last and makes the checkpoint whole."""
    pointer = None
    if parent is None:
        family.save(model, folder / "base")
    else:
        delta.save(folder)
        # Relative, so that a sweep folder can be moved as a whole.
        pointer = Path(os.path.relpath(parent.nodes[-1].folder, folder)).as_posix()
    task = tasks[0] if len(tasks) == 1 else list(tasks)
    (folder / "node.json").write_text(json.dumps({"task": task, "parent": pointer}) + "\n")


def load(folder: Path, family: Family, delta: Delta) -> LoadedChain:
    """The model of a checkpoint: its base and every delta on the way, all frozen.

    Raises CheckpointError, which names the folder at fault and the chain that needs it.
    """
    nodes, deltas = walk(folder), tuple[str, ...]()
    model: PreTrainedModel | PeftModel | None = None
    for place, node in enumerate(nodes, start=1):
        try:
            if model is None:
                model = family.load(node.folder / "base").requires_grad_(False)
            else:
                model = delta.load(model, delta_name(place), deltas, node.folder)
                deltas += (delta_name(place),)
        # Whatever the libraries raise on damaged files (OSError, SafetensorError, KeyError, ...).
        except Exception as error:
            raise broken(node.folder, f"{type(error).__name__}: {error}", nodes[place:]) from error
    assert model is not None
    return LoadedChain(model, tuple(nodes), deltas)
