"""Any model of transformers that continues text, from a folder: LLaMA, GPT-2, GPT-NeoX and their kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from train.data.task_plan import TaskPlan
from train.data.vocabulary import Continued
from train.model.family import MakeFamily, Meeting, load_base
from train.model.fit import refuse_images
from train.model.stored import FromFolder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Causal(FromFolder):
    """The family of `model=causal`: weights of the folder, in float32, or random ones of its shape."""

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        if begins:
            self.stored.check()
        refuse_images(plans, self.settings.kind)

    @cached_property
    def vocabulary(self) -> Continued:
        """The tokenizer of the base, or of the settings. Raises SettingsError."""
        tokenizer, where = self.stored.tokenizer()
        config = self.stored.config()
        is_random = self.base is None and self.settings.weights == "random"
        embedded = max(config.vocab_size, len(tokenizer)) if is_random else config.vocab_size
        made = Continued(tokenizer, where, embedded)
        # A pad behind the embedded ids is not used, and the end mark stands in for it.
        highest = max(i for i in tokenizer.get_vocab().values() if i != tokenizer.pad_token_id)
        self.stored.check_ids(highest + 1, config, where)
        return made

    def build(self) -> PreTrainedModel:
        """Also refuses weights that are not whole."""
        from transformers import AutoModelForCausalLM, GenerationConfig

        config, vocabulary = self.stored.config(), self.vocabulary
        if self.settings.weights == "random":
            config.vocab_size = max(config.vocab_size, vocabulary.size)
            config.pad_token_id, config.eos_token_id = vocabulary.pad, vocabulary.eos
            config.bos_token_id = vocabulary.begin
            model = self.stored.random(AutoModelForCausalLM, config)
        else:
            model = self.stored.weights(AutoModelForCausalLM, config)
        model.generation_config = GenerationConfig(
            pad_token_id=vocabulary.pad, eos_token_id=vocabulary.eos, bos_token_id=vocabulary.begin
        )
        return model

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        """The tokenizer goes beside the weights: the folder both are from may not stay."""
        model.save_pretrained(str(base))
        self.vocabulary.save(base)

    def load(self, base: Path) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        return load_base(AutoModelForCausalLM, base)

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.continued_answer import ContinuedAnswer

        return ContinuedAnswer(plan, self.vocabulary)


FAMILY: MakeFamily = Causal
