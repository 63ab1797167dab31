"""The base model, and loading and saving one link of a chain of checkpoints (`train.chain`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from train.chain import Node, broken, walk
from train.config.sections import CLASSES, ModelSettings
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary, vocabulary_of
from train.delta.olora import activate
from train.loop.batches import Meeting
from train.model.vit import ImageChoice

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Chain:
    """A loaded model with all adapters of its chain active and frozen."""

    model: PreTrainedModel | PeftModel
    nodes: tuple[Node, ...]  # base first

    @property
    def adapters(self) -> list[str]:
        return [adapter_name(place) for place in range(2, len(self.nodes) + 1)]


def adapter_name(place: int) -> str:
    """The adapter of the task at this place of the chain; the base is at place 1."""
    return f"task{place}"


def build_base(settings: ModelSettings, vocabulary: Vocabulary | None = None) -> PreTrainedModel:
    """A first model: random weights, from torch's global generator, or those of a folder.

    `vocabulary`: that of the settings unless given. Raises SettingsError.
    """
    if settings.kind == "vit":
        return _build_vit(settings)
    from train.model.seq2seq import build_seq2seq, build_unify

    known = vocabulary or vocabulary_of(settings)
    assert known is not None
    build = build_unify if settings.kind == "unify" else build_seq2seq
    return build(settings, known)


def meeting(
    plan: TaskPlan, settings: ModelSettings, vocabulary: Vocabulary | None = None
) -> Meeting:
    """How a task meets the model of these settings."""
    if settings.kind == "vit":
        return ImageChoice(plan)
    from train.model.seq2seq import TextAnswer

    known = vocabulary or vocabulary_of(settings)
    assert known is not None
    return TextAnswer(plan, (settings.side // settings.patch) ** 2, known)


def _build_vit(settings: ModelSettings) -> PreTrainedModel:
    """A vision transformer with a frozen head.

    The head's rows are orthonormal directions, one per digit. They stand for the embeddings of the
    label words, which O-LoRA does not train either: all that is learned lies in the transformer.
    """
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(
        ViTConfig(
            image_size=settings.side,
            num_channels=settings.channels,
            num_labels=CLASSES,
            patch_size=settings.patch,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            intermediate_size=settings.intermediate_size,
        )
    )
    with torch.no_grad():
        torch.nn.init.orthogonal_(model.classifier.weight)
        model.classifier.bias.zero_()
    model.classifier.requires_grad_(False)
    return model


def save(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    tasks: Sequence[str],
    parent: Chain | None,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Write what this job trained; node.json comes last and makes the checkpoint whole.

    A base has its tokenizer beside it, unless that is made without files.
    """
    pointer = None
    if parent is None:
        model.save_pretrained(folder / "base")
        if vocabulary is not None:
            vocabulary.save(folder / "base")
    else:
        name = adapter_name(len(parent.nodes) + 1)
        # Without the flag peft looks the base up where it was when the chain began.
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        # Relative, so that a sweep folder can be moved as a whole.
        pointer = Path(os.path.relpath(parent.nodes[-1].folder, folder)).as_posix()
    task = tasks[0] if len(tasks) == 1 else list(tasks)
    (folder / "node.json").write_text(json.dumps({"task": task, "parent": pointer}) + "\n")


def load(folder: Path) -> Chain:
    """The model of a checkpoint: its base and every adapter on the way, all frozen.

    Raises CheckpointError, which names the folder at fault and the chain that needs it.
    """
    nodes = walk(folder)
    model: PreTrainedModel | PeftModel | None = None
    for place, node in enumerate(nodes, start=1):
        try:
            model = _load_base(node) if model is None else _load_adapter(model, node, place)
        # Whatever the libraries raise on damaged files (OSError, SafetensorError, KeyError, ...).
        except Exception as error:
            raise broken(node.folder, f"{type(error).__name__}: {error}", nodes[place:]) from error
    assert model is not None
    chain = Chain(model, tuple(nodes))
    if chain.adapters:
        activate(model, chain.adapters)  # type: ignore[arg-type]
    return chain


def _load_base(node: Node) -> PreTrainedModel:
    base = node.folder / "base"
    kind: type[PreTrainedModel]
    name = json.loads((base / "config.json").read_text())["model_type"]
    if name == "unify":
        from train.model.seq2seq import UnifyModel as kind
    elif name == "vit":
        from transformers import ViTForImageClassification as kind
    else:
        from transformers import AutoModelForSeq2SeqLM as kind
    model = kind.from_pretrained(base, local_files_only=True, use_safetensors=True)
    return model.requires_grad_(False)


def _load_adapter(model: PreTrainedModel | PeftModel, node: Node, place: int) -> PeftModel:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    name = adapter_name(place)
    # Read here: without this file peft looks for a pickle, and of missing keys it only warns.
    saved = load_file(node.folder / name / "adapter_model.safetensors")
    if isinstance(model, PeftModel):
        model.load_adapter(str(node.folder / name), adapter_name=name, is_trainable=False)
    else:
        model = PeftModel.from_pretrained(model, str(node.folder / name), adapter_name=name)
    loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if saved.keys() != loaded.keys():
        raise ValueError(
            f"its weights do not fit the model: {sorted(saved.keys() ^ loaded.keys())[:3]}"
        )
    return model
