"""Any text-to-text model of transformers from a folder: T5, BART and their kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import MakeFamily, Meeting
from train.model.text_family import TextFamily


@dataclass(frozen=True)
class Seq2Seq(TextFamily):
    """The family of `model=seq2seq`."""

    auto = "AutoModelForSeq2SeqLM"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        tokenizer, where = self.tokenizer()
        config, settings = self.config(), self.settings
        if self.base is None and settings.weights == "random" and settings.tokenizer is not None:
            # Marks of the tokenizer that the shape was first trained with.
            config.decoder_start_token_id = config.pad_token_id = None
        made = Vocabulary(tokenizer, where, config)
        self.check_ids(made.own, config, where)
        return made

    @property
    def marks(self) -> dict[str, int]:
        own = self.vocabulary
        marks = {"pad_token_id": own.pad, "eos_token_id": own.eos}
        return {**marks, "decoder_start_token_id": own.start[0]}

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.text_answer import GREEDY, TextAnswer

        return TextAnswer(plan, self.vocabulary, GREEDY)


FAMILY: MakeFamily = Seq2Seq
