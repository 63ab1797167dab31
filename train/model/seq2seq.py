"""Any text-to-text model of transformers from a folder: T5, BART and their kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import MakeFamily, Meeting, load_base
from train.model.fit import refuse_images
from train.model.stored import FromFolder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Seq2Seq(FromFolder):
    """The family of `model=seq2seq`: weights of the folder, in float32, or random ones of its shape."""

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        if begins:
            self.stored.check()
        refuse_images(plans, self.settings.kind)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the base, or of the settings. Raises SettingsError."""
        tokenizer, where = self.stored.tokenizer()
        config = self.stored.config()
        settings = self.settings
        if self.base is None and settings.weights == "random" and settings.tokenizer is not None:
            # Marks of the tokenizer that the shape was first trained with.
            config.decoder_start_token_id = config.pad_token_id = None
        made = Vocabulary(tokenizer, where, config)
        self.stored.check_ids(made.own, config, where)
        return made

    def build(self) -> PreTrainedModel:
        """Also refuses weights that are not whole."""
        from transformers import AutoModelForSeq2SeqLM, GenerationConfig

        config, vocabulary = self.stored.config(), self.vocabulary
        if self.settings.weights == "random":
            config.vocab_size = max(config.vocab_size, vocabulary.size)
            config.pad_token_id, config.eos_token_id = vocabulary.pad, vocabulary.eos
            config.decoder_start_token_id = vocabulary.start[0]
            model = self.stored.random(AutoModelForSeq2SeqLM, config)
        else:
            model = self.stored.weights(AutoModelForSeq2SeqLM, config)
        # Answers are searched as the task's generator_args say, not as the folder's author did.
        model.generation_config = GenerationConfig(
            pad_token_id=vocabulary.pad,
            eos_token_id=vocabulary.eos,
            decoder_start_token_id=vocabulary.start[0],
        )
        return model

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        """The tokenizer goes beside the weights: the folder both are from may not stay."""
        model.save_pretrained(str(base))
        self.vocabulary.save(base)

    def load(self, base: Path) -> PreTrainedModel:
        from transformers import AutoModelForSeq2SeqLM

        return load_base(AutoModelForSeq2SeqLM, base)

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.text_answer import GREEDY, TextAnswer

        return TextAnswer(plan, 0, self.vocabulary, GREEDY)


FAMILY: MakeFamily = Seq2Seq
