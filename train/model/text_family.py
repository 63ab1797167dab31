"""What the families that read and write text alone have in common: seq2seq, causal, encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.fit import refuse_images
from train.model.stored import Stored

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TextFamily(Stored):
    """Weights of a folder, in float32, or random ones of its shape; a tokenizer."""

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        if begins:
            self.check_folder()
        refuse_images(plans, self.settings.kind)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the base, or of the settings. Raises SettingsError."""
        raise NotImplementedError

    @property
    def marks(self) -> dict[str, int]:
        """Special ids of the vocabulary, as the model's configuration calls them."""
        raise NotImplementedError

    def build(self) -> PreTrainedModel:
        """Also refuses weights that are not whole."""
        from transformers import GenerationConfig

        config, vocabulary = self.config(), self.vocabulary
        if self.settings.weights == "random":
            config.vocab_size = max(config.vocab_size, vocabulary.size)
            config.update(self.marks)
        model = self.model(config)
        if model.can_generate():
            # Answers are searched as the task's generator_args say, not as the folder's author did.
            model.generation_config = GenerationConfig(**self.marks)
        return model

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        """The tokenizer goes beside the weights: the folder both are from may not stay."""
        model.save_pretrained(str(base))
        self.vocabulary.save(base)
