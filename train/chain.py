"""The chain of checkpoints a job starts from: base first, then one adapter per task.

A checkpoint holds what its own job trained and a pointer to its parent's checkpoint:

    node.json                                              task (a list: several), parent (null: the first)
    base/  config.json, model.safetensors                  a whole model, where the whole was trained
    task3/ adapter_config.json, adapter_model.safetensors  an adapter, named by its place

A chain of adapters from the first task on has no base/: node.json of the first says where its weights are
from (`base`: path and fingerprint). Reading it loads no model, so that a mistake in it is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class CheckpointError(RuntimeError):
    """A checkpoint, or one it builds on, is missing or damaged."""


@dataclass(frozen=True)
class Node:
    """One checkpoint of a chain."""

    folder: Path
    tasks: tuple[str, ...]  # several, where they were trained together
    parent: Path | None
    base: Mapping[str, str] | None = None  # path and fingerprint of weights that were not trained
    kind: str | None = None  # how its adapter goes on from its parent: `Delta.kind`

    @property
    def is_whole(self) -> bool:
        """True where the folder has a whole model, which needs none of its ancestors."""
        return (self.folder / "base").is_dir()

    @property
    def task(self) -> str:
        return "+".join(self.tasks)


def walk(folder: Path | None) -> list[Node]:
    """The chain that ends in `folder`, base first; null: no chain. Raises CheckpointError."""
    nodes: list[Node] = []
    here = None if folder is None else folder.resolve()
    while here is not None:
        if here in [node.folder for node in nodes]:
            raise broken(here, "its chain of parents comes back to itself", nodes)
        try:
            record = json.loads((here / "node.json").read_text())
            pointer = record["parent"]
            parent = None if pointer is None else (here / pointer).resolve()
            task = record["task"]
            tasks = (task,) if isinstance(task, str) else tuple(task)
            node = Node(here, tasks, parent, record.get("base"), record.get("delta"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = "no such folder" if not here.is_dir() else f"node.json: {error!r}"
            raise broken(here, reason, nodes[::-1]) from error
        nodes.append(node)
        here = node.parent
    return nodes[::-1]


def base_of(nodes: Sequence[Node]) -> Path | None:
    """The folder of the last whole model of a chain; null where the chain has adapters alone."""
    return next((node.folder / "base" for node in reversed(nodes) if node.is_whole), None)


def broken(folder: Path, reason: str, needed_by: list[Node]) -> CheckpointError:
    """The error for a folder at fault, naming the checkpoints that build on it."""
    chain = "".join(f"\n  needed by {node.task}: {node.folder}" for node in needed_by)
    return CheckpointError(
        f"checkpoint {folder} is missing or damaged ({reason}).{chain}\n"
        "A checkpoint holds only its own task; all its ancestors must stay where they were."
    )
