"""The joint between a run and its kind of model: one module per family, called like `model._name`.

A new family is a new module here whose `FAMILY` makes it, and a YAML file in conf/model. Importing a
family loads no torch: its check answers mistakes before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from train.chain import base_of, walk
from train.config.sections import ModelSettings, Run
from train.config.text_data import HEADED
from train.config.typed import SettingsError
from train.data.rows import Rows
from train.data.tables import Row
from train.data.task_plan import TaskPlan
from train.model.fit import fitted
from train.model.stored import settled

if TYPE_CHECKING:
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

IGNORED = -100  # a label that counts in no loss


def inputs_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model reads of a batch: all but the labels."""
    return {key: value for key, value in batch.items() if key != "labels"}


def moved(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in batch.items()}


class Meeting(Protocol):
    """One task on one kind of model: rows to examples, batches to logits, models to answers."""

    plan: TaskPlan

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Any:
        """One row as the model reads it. Raises DataError, which calls the row `where`."""

    def batch(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Examples put together; `labels` are IGNORED where nothing is learned."""

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x classes, or n x length x vocabulary: aligned with the labels of the batch."""

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Any], device: torch.device
    ) -> list[str]:
        """The model's answer to each example, as text."""


@runtime_checkable
class OwnLoss(Protocol):
    """A `Meeting` whose model computes its loss itself."""

    def loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, summed over the rows of the batch, and the logits."""


@runtime_checkable
class Spreads(Protocol):
    """A `Meeting` that learns from other examples than rows, such as windows of a long text."""

    def spread(self, rows: Rows) -> Rows:
        """`rows` with a training row per example. Raises DataError."""


@runtime_checkable
class Ranked(Protocol):
    """A `Meeting` that has several answers to a row."""

    def ranked(
        self, model: torch.nn.Module, examples: Sequence[Any], device: torch.device
    ) -> list[list[dict[str, Any]]]:
        """The best answers to each example, that of `answers` first, as SQuAD's scripts write them:
        text, probability, start_logit, end_logit."""


class Family(Protocol):
    """A kind of model, with the settings and, later in a chain, the base of this run."""

    @property
    def source(self) -> str | None:
        """Folder or name of the hub that `build` reads all weights from; null where it draws some."""

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        """Refuse tasks this kind cannot do, and where the chain `begins` here, missing folders.

        Loads no torch. Raises SettingsError.
        """

    def build(self) -> PreTrainedModel:
        """A first model: random weights, from torch's global generator, or weights of a folder.

        Raises SettingsError.
        """

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        """Write a first model to the folder `base`, with whatever is needed to read it again."""

    def load(self, base: Path) -> PreTrainedModel:
        """The model `save` wrote to `base`. Raises whatever the libraries do on damage."""

    def meeting(self, plan: TaskPlan) -> Meeting:
        """A task on this kind of model. Raises SettingsError."""


# `FAMILY` of a family's module, from the settings and the folder of the chain's base, if there is one.
MakeFamily: TypeAlias = "Callable[[ModelSettings, Path | None], Family]"


def family_of(settings: ModelSettings, base: Path | None = None) -> Family:
    """The family `model._name` names; of `pretrained`, that of the model's `model_type`."""
    settings = settled(settings, base)
    make: MakeFamily = import_module(f"train.model.{settings.kind}").FAMILY
    return make(settings, base)


def check_model(run: Run, plans: Mapping[str, TaskPlan]) -> None:
    """Refuse tasks that the model of `run` cannot do; loads no torch. Raises SettingsError."""
    if run.delta.first == "adapter" and not run.model.is_pretrained:
        raise SettingsError(
            "delta.first=adapter: an adapter alone cannot teach random weights anything; take "
            "delta.first=full, or a pretrained model (model=pretrained model.path=<folder>)"
        )
    begun = run.init_from
    for plan in plans.values():
        if plan.task.kind in HEADED and run.model.kind != "headed":
            raise SettingsError(
                f"task.{plan.name}: class {plan.task.kind} takes model=headed, with model.path for the model; "
                f"model._name is {run.model.kind}"
            )
    adapts = run.delta.first is None and run.delta.kind != "seqft"
    if run.model.kind == "headed" and run.model.is_pretrained and begun is None and adapts:
        raise SettingsError(
            f"delta.first is not set: the head of model.path={run.model.path} may be new, and an adapter does "
            "not train it. Take delta.first=full, or delta.first=adapter for a folder with its head"
        )
    # In a sweep the checkpoint need not be there yet.
    base = base_of(walk(begun)) if begun is not None and begun.is_dir() else None
    family_of(run.model, base).check(plans.values(), begins=begun is None)
    fitted(run.model, plans.values())
