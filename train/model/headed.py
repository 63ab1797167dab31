"""The model that transformers has for a task's class: its Auto class, with a head for the task's labels.

Weights of a folder without that head, as of bert-base-uncased, get a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.config.text_data import HEADED
from train.config.typed import SettingsError
from train.data.pretrained import CONFIG, PROCESSOR, described, read, require_tokenizer
from train.data.task_plan import TaskPlan
from train.model.family import MakeFamily, Meeting
from train.model.stored import Stored

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

AUTO = {
    "multiple_choice": "AutoModelForMultipleChoice",
    "question_answering": "AutoModelForQuestionAnswering",
    "text_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "object_detection": "AutoModelForObjectDetection",
}


@dataclass(frozen=True)
class Headed(Stored):
    """The family of `model=headed`; `settings.head` and the labels are those of the tasks (`fitted`)."""

    may_lack = (
        "classifier", "qa_outputs", "pooler", "sequence_summary", "logits_proj", "bbox_predictor",
    )  # fmt: skip

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        plans = list(plans)
        for plan in plans:
            kind, first = plan.task.kind, plans[0]
            head = self.settings.head or first.task.kind
            if kind not in HEADED:
                raise SettingsError(
                    f"task.{plan.name}: model=headed is for tasks of the classes {', '.join(HEADED)}; this "
                    f"one is of class {kind}"
                )
            if kind != head:
                raise SettingsError(
                    f"task.{plan.name}: is of class {kind}, and a model has one head: that of {head}"
                )
            if plan.answers != first.answers:
                raise SettingsError(
                    f"task.{plan.name}: has the labels {', '.join(plan.answers or ())}, and task "
                    f"{first.name} has {', '.join(first.answers or ())}: a model has one head. Name all "
                    "labels in preprocess.text.ans2label of both"
                )
        path = self.settings.path
        if begins and path is not None:
            described(path, CONFIG, "model.path")
            if any(plan.task.kind == "object_detection" for plan in plans):
                described(path, PROCESSOR, "model.path")
            elif self.settings.tokenizer:
                require_tokenizer(self.settings.tokenizer, "model.tokenizer")
            else:
                require_tokenizer(path, "model.path")

    @property
    def auto(self) -> str:
        assert self.settings.head is not None  # by `fitted`
        return AUTO[self.settings.head]

    @cached_property
    def reader(self) -> Any:
        """What makes text or images the model's input: a fast tokenizer, or an image processor."""
        if self.settings.head == "object_detection":
            from transformers import AutoImageProcessor

            return read(AutoImageProcessor.from_pretrained, *self.folder_with(PROCESSOR))
        tokenizer, where = self.tokenizer()
        if not tokenizer.is_fast:
            raise SettingsError(
                f"{where}: its tokenizer is not one of the tokenizers library, which alone says where in "
                "a text a token stands; a folder with a tokenizer.json has one"
            )
        tokenizer.padding_side = "right"  # as labels are padded
        return tokenizer

    def build(self) -> PreTrainedModel:
        config = self.config()
        if self.settings.head != "object_detection":
            self.check_ids(len(self.reader), config, f"model.path={self.settings.path}")
            if self.settings.weights == "random":
                config.vocab_size = max(config.vocab_size, len(self.reader))
        return self.model(config)

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        model.save_pretrained(str(base))
        self.reader.save_pretrained(str(base))

    def meeting(self, plan: TaskPlan) -> Meeting:
        module = import_module(f"train.model.heads.{plan.task.kind}")
        meeting: Meeting = module.MEETING(plan, self.reader)
        return meeting


FAMILY: MakeFamily = Headed
