"""An encoder-decoder of text and images: T5 of transformers, small, with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from train.config.sections import ModelSettings
from train.data.pretrained import read, require_tokenizer
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary, tokens
from train.model.family import MakeFamily, Meeting
from train.model.stored import load_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Unify:
    """The family of `model=unify_tiny`: it reads bytes, or the ids of a tokenizer from a folder."""

    settings: ModelSettings
    base: Path | None = None

    @property
    def source(self) -> None:
        return None

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        if begins and self.settings.tokenizer is not None:
            require_tokenizer(self.settings.tokenizer, "model.tokenizer")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer beside the base, later in a chain; that of the settings at its beginning."""
        name, key = self.settings.tokenizer, "model.tokenizer"
        if self.base is not None:
            stored = (self.base / "tokenizer_config.json").is_file()
            name, key = str(self.base) if stored else None, "init_from"
        if name is None:
            return tokens()
        from transformers import AutoTokenizer

        return Vocabulary(read(AutoTokenizer.from_pretrained, name, key), f"{key}={name}")

    def build(self) -> PreTrainedModel:
        from train.model.patches import UnifyConfig, UnifyModel

        settings, vocabulary = self.settings, self.vocabulary
        return UnifyModel(
            UnifyConfig(
                image_size=settings.side,
                num_channels=settings.channels,
                patch_size=settings.patch,
                vocab_size=vocabulary.size,
                d_model=settings.hidden_size,
                d_kv=settings.hidden_size // settings.num_attention_heads,
                d_ff=settings.intermediate_size,
                num_layers=settings.num_hidden_layers,
                num_decoder_layers=settings.num_decoder_layers or settings.num_hidden_layers,
                num_heads=settings.num_attention_heads,
                dropout_rate=settings.dropout,
                pad_token_id=vocabulary.pad,
                eos_token_id=vocabulary.eos,
                decoder_start_token_id=vocabulary.start[0],
            )
        )

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        model.save_pretrained(str(base))
        self.vocabulary.save(base)

    def load(self, base: Path) -> PreTrainedModel:
        from train.model.patches import UnifyModel

        return load_base(UnifyModel, base, "unify")

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.text_answer import BEAMS, TextAnswer

        patches = (self.settings.side // self.settings.patch) ** 2
        return TextAnswer(plan, self.vocabulary, BEAMS, patches)


FAMILY: MakeFamily = Unify
