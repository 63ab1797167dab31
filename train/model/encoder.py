"""Any encoder of transformers from a folder, choosing an answer: BERT, RoBERTa, MiniLM and their kind.

The text is read once and becomes one vector, the mean over its ids. An answer of the closed set is a fixed
direction of that space; the one the vector points to most is chosen:

    logit of answer k = 20 * cos(h, direction of answer k)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from train.config.typed import SettingsError
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import MakeFamily, Meeting
from train.model.fit import refuse_unread
from train.model.text_family import TextFamily


@dataclass(frozen=True)
class Encoder(TextFamily):
    """The family of `model=encoder`."""

    auto = "AutoModel"
    may_lack = ("pooler.",)  # it is not used

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        plans = list(plans)
        super().check(plans, begins)
        for plan in plans:
            if plan.answers is None or len(plan.answers) < 2:
                raise SettingsError(
                    f"task.{plan.name}: model=encoder chooses one answer of a closed_set of two or more; "
                    f"'{plan.templates[0]}' has {'none' if plan.answers is None else 'one'}. Mark the "
                    "target closed_set and give preprocess.text.ans2label, or take model=seq2seq or causal"
                )
            refuse_unread(plan, "model=seq2seq or causal")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        tokenizer, where = self.tokenizer()
        config = self.config()
        config.decoder_start_token_id = None  # it generates nothing
        made = Vocabulary(tokenizer, where, config)
        self.check_ids(made.own, config, where)
        return made

    @property
    def marks(self) -> dict[str, int]:
        return {"pad_token_id": self.vocabulary.pad}

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.text_choice import TextChoice

        return TextChoice(plan, self.vocabulary)


FAMILY: MakeFamily = Encoder
