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
from train.model.family import MakeFamily, Meeting, load_base
from train.model.stored import FromFolder

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
HEADS = ("classifier", "qa_outputs", "pooler", "sequence_summary", "logits_proj", "bbox_predictor")


@dataclass(frozen=True)
class Headed(FromFolder):
    """The family of `model=headed`; `settings.head` and the labels are those of the tasks (`fitted`)."""

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        plans = list(plans)
        for plan in plans:
            first = plans[0]
            if plan.task.kind not in HEADED:
                raise SettingsError(
                    f"task.{plan.name}: model=headed is for tasks of the classes {', '.join(HEADED)}; this "
                    f"one is of class {plan.task.kind}"
                )
            if plan.task.kind != (self.settings.head or first.task.kind):
                raise SettingsError(
                    f"task.{plan.name}: is of class {plan.task.kind}, and a model has one head: that of "
                    f"{self.settings.head or first.task.kind}"
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
            else:
                require_tokenizer(
                    self.settings.tokenizer or path,
                    "model.tokenizer" if self.settings.tokenizer else "model.path",
                )

    @property
    def auto(self) -> Any:
        import transformers

        assert self.settings.head is not None  # by `fitted`
        return getattr(transformers, AUTO[self.settings.head])

    @cached_property
    def reader(self) -> Any:
        """What makes text or images the model's input: a fast tokenizer, or an image processor."""
        if self.settings.head == "object_detection":
            from transformers import AutoImageProcessor

            of_base = self.base is not None and (self.base / PROCESSOR).is_file()
            name, key = self.settings.path, "model.path"
            if of_base:
                name, key = str(self.base), "init_from"
            assert name is not None
            return read(AutoImageProcessor.from_pretrained, name, key)
        tokenizer, where = self.stored.tokenizer()
        if not tokenizer.is_fast:
            raise SettingsError(
                f"{where}: its tokenizer is not one of the tokenizers library, which alone says where in "
                "a text a token stands; a folder with a tokenizer.json has one"
            )
        tokenizer.padding_side = "right"  # as labels are padded
        return tokenizer

    def build(self) -> PreTrainedModel:
        config = self.stored.config()
        if self.settings.head != "object_detection":
            self.stored.check_ids(len(self.reader), config, f"model.path={self.settings.path}")
            if self.settings.weights == "random":
                config.vocab_size = max(config.vocab_size, len(self.reader))
        if self.settings.weights == "random":
            return self.stored.random(self.auto, config)
        return self.stored.weights(self.auto, config, may_lack=HEADS)

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        model.save_pretrained(str(base))
        self.reader.save_pretrained(str(base))

    def load(self, base: Path) -> PreTrainedModel:
        return load_base(self.auto, base)

    def meeting(self, plan: TaskPlan) -> Meeting:
        module = import_module(f"train.model.heads.{plan.task.kind}")
        meeting: Meeting = module.MEETING(plan, self.reader)
        return meeting


FAMILY: MakeFamily = Headed
