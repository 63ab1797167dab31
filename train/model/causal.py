"""Any model of transformers that continues text, from a folder: LLaMA, GPT-2, GPT-NeoX and their kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from train.data.task_plan import TaskPlan
from train.data.vocabulary import Continued
from train.model.family import MakeFamily, Meeting
from train.model.text_family import TextFamily


@dataclass(frozen=True)
class Causal(TextFamily):
    """The family of `model=causal`."""

    auto = "AutoModelForCausalLM"

    @cached_property
    def vocabulary(self) -> Continued:
        tokenizer, where = self.tokenizer()
        config = self.config()
        is_random = self.base is None and self.settings.weights == "random"
        embedded = max(config.vocab_size, len(tokenizer)) if is_random else config.vocab_size
        made = Continued(tokenizer, where, embedded)
        # A pad behind the embedded ids is not used, and the end mark stands in for it.
        highest = max(i for i in tokenizer.get_vocab().values() if i != tokenizer.pad_token_id)
        self.check_ids(highest + 1, config, where)
        return made

    @property
    def marks(self) -> dict[str, int]:
        own = self.vocabulary
        return {"pad_token_id": own.pad, "eos_token_id": own.eos, "bos_token_id": own.begin}

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.continued_answer import ContinuedAnswer
        from train.model.text_answer import GREEDY

        return ContinuedAnswer(plan, self.vocabulary, GREEDY)


FAMILY: MakeFamily = Causal
