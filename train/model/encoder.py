"""Any encoder of transformers from a folder, choosing an answer: BERT, RoBERTa, MiniLM and their kind.

The text is read once and becomes one vector, the mean over its ids. An answer of the closed set is a fixed
direction of that space; the one the vector points to most is chosen:

    logit of answer k = 20 * cos(h, direction of answer k)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from train.config.typed import SettingsError
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import MakeFamily, Meeting, load_base
from train.model.fit import refuse_images
from train.model.stored import FromFolder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Encoder(FromFolder):
    """The family of `model=encoder`: weights of the folder, in float32, or random ones of its shape."""

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        if begins:
            self.stored.check()
        plans = list(plans)
        refuse_images(plans, self.settings.kind)
        for plan in plans:
            _check(plan)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the base, or of the settings. Raises SettingsError."""
        tokenizer, where = self.stored.tokenizer()
        config = self.stored.config()
        config.decoder_start_token_id = None  # it generates nothing
        made = Vocabulary(tokenizer, where, config)
        self.stored.check_ids(made.own, config, where)
        return made

    def build(self) -> PreTrainedModel:
        """Also refuses weights that are not whole, but for the pooler, which is not used."""
        from transformers import AutoModel

        config, vocabulary = self.stored.config(), self.vocabulary
        if self.settings.weights == "random":
            config.vocab_size = max(config.vocab_size, vocabulary.size)
            config.pad_token_id = vocabulary.pad
            return self.stored.random(AutoModel, config)
        return self.stored.weights(AutoModel, config, may_lack=("pooler.",))

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        """The tokenizer goes beside the weights: the folder both are from may not stay."""
        model.save_pretrained(str(base))
        self.vocabulary.save(base)

    def load(self, base: Path) -> PreTrainedModel:
        from transformers import AutoModel

        return load_base(AutoModel, base)

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.text_choice import TextChoice

        return TextChoice(plan, self.vocabulary)


FAMILY: MakeFamily = Encoder


def _check(plan: TaskPlan) -> None:
    where = f"task.{plan.name}"
    if plan.answers is None or len(plan.answers) < 2:
        raise SettingsError(
            f"{where}: model=encoder chooses one answer of a closed_set of two or more; "
            f"'{plan.templates[0]}' has {'none' if plan.answers is None else 'one'}. Mark the target "
            "closed_set and give preprocess.text.ans2label, or take model=seq2seq or causal"
        )
    unread = [s for t in plan.templates for s in t.side("decoder") if s is not t.target]
    if unread or plan.loss.drop_worst_ratio:
        what = f"'{unread[0]}' before the answer" if unread else "criterion.drop_worst_ratio"
        raise SettingsError(f"{where}: {what} needs model=seq2seq or causal")
