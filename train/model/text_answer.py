"""A task on an encoder-decoder: an instruction is read, an answer is generated as text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache

from train.config.typed import SettingsError
from train.data.preprocess import Example, example
from train.data.tables import DataError, Row
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import IGNORED, inputs_of, moved
from train.model.patches import UnifyModel

log = logging.getLogger(__name__)

BEAMS: Mapping[str, Any] = {"num_beams": 5, "max_new_tokens": 32, "no_repeat_ngram_size": 3}
GREEDY: Mapping[str, Any] = {"num_beams": 1, "max_new_tokens": 50}


class TextReader:
    """The part of a `Meeting` that reads rows as ids and images."""

    def __init__(self, plan: TaskPlan, vocabulary: Vocabulary, patches: int = 0) -> None:
        self.plan, self.vocabulary = plan, vocabulary
        self.patches = patches  # ids an image takes
        self.cut = False

    def read(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Example:
        """A row as ids; a warning for the first whose end is left out."""
        plan = self.plan
        made = example(plan, self.vocabulary, self.patches, row, rng, training, where)
        whole = (*self.vocabulary.after[-1:], self.vocabulary.image)
        too_long = len(made.source) > plan.max_src_length and made.source[-1] not in whole
        if too_long and not self.cut:
            self.cut = True
            log.warning(
                "%s: the text is cut to task.%s.max_src_length=%d ids; later rows are cut without a warning",
                *(where, plan.name, plan.max_src_length),
            )
        return made


class TextAnswer(TextReader):
    """A `Meeting`: rows to ids and images, answers by generation or by the options' probability."""

    def __init__(
        self,
        plan: TaskPlan,
        vocabulary: Vocabulary,
        generation: Mapping[str, Any],
        patches: int = 0,
    ) -> None:
        """generation: arguments of `generate` for a task that says nothing of it."""
        super().__init__(plan, vocabulary, patches)
        self.generation = generation if plan.generation is None else plan.generation
        self.cut_answer = False
        self.options = self._options()
        ratios = [s.attributes.get("mask_ratio", 0) for t in plan.templates for s in t.slots]
        if vocabulary.mask is None and any(ratios):
            raise SettingsError(
                f"task.{plan.name}.instruction.template: mask_ratio needs a mask token, and the "
                "tokenizer of the model has none"
            )

    def _options(self) -> dict[str, tuple[int, ...]]:
        """Answer of a closed set -> its ids and the end mark."""
        by_ids: dict[tuple[int, ...], str] = {}
        for answer in self.plan.answers or ():
            ids = tuple(self.vocabulary.encode(" " + answer.strip()))
            if not ids or ids in by_ids:
                same = f"the same ids as '{by_ids[ids]}'" if ids else "no id at all"
                raise SettingsError(
                    f"task.{self.plan.name}.preprocess.text.ans2label: the tokenizer makes {same} of the "
                    f"answer '{answer}' ({list(ids)}), so it could not be told apart; choose other words"
                )
            by_ids[ids] = answer
        longest = max(by_ids, key=len, default=())
        # Ids behind the start mark, the end mark among them.
        length = len(longest) + max(1, len(self.vocabulary.start))
        if longest and length > self.plan.max_tgt_length:
            raise SettingsError(
                f"task.{self.plan.name}.max_tgt_length={self.plan.max_tgt_length}: the answer "
                f"'{by_ids[longest]}' has {length} ids ({self.vocabulary.unit}, one space and the end "
                "mark) and would be learned cut short"
            )
        return {answer: (*ids, self.vocabulary.eos) for ids, answer in by_ids.items()}

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Example:
        plan = self.plan
        made = self.read(row, rng, training, where)
        if training and not any(made.learned):
            raise DataError(
                f"{where}: nothing is left to learn, because what stands before the answer takes all "
                f"of task.{plan.name}.max_tgt_length={plan.max_tgt_length} ids "
                f"({self.vocabulary.unit}): raise it, or take a tokenizer with longer pieces "
                "(model.tokenizer)"
            )
        if training and not self.cut_answer and made.decoder[-1] != self.vocabulary.eos:
            self.cut_answer = True
            log.warning(
                "%s: the answer is cut to task.%s.max_tgt_length=%d ids and learned without its end; "
                "later rows are cut without a warning",
                *(where, plan.name, plan.max_tgt_length),
            )
        return made

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Ids padded to the longest, images of all rows one after another."""
        pad = self.vocabulary.pad
        labels = [
            [i if learn else IGNORED for i, learn in zip(e.decoder[1:], e.learned[1:], strict=True)]
            for e in examples
        ]
        batch = {
            "input_ids": padded([e.source or (pad,) for e in examples], pad),
            "attention_mask": padded([[1] * max(1, len(e.source)) for e in examples], 0),
            "decoder_input_ids": padded([e.decoder[:-1] for e in examples], pad),
            "labels": padded(labels, IGNORED),
        }
        if images := [image for e in examples for image in e.images]:
            batch["pixel_values"] = torch.from_numpy(np.stack(images))
        return batch

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x length x vocabulary; `labels` of the batch are aligned with it."""
        logits: torch.Tensor = model(**inputs_of(batch)).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Example], device: torch.device
    ) -> list[str]:
        """By groups of rows whose forced beginnings are as long: no answer begins behind padding."""
        by_prefix: dict[int, list[int]] = {}
        for i, one in enumerate(examples):
            by_prefix.setdefault(len(one.prefix), []).append(i)
        answers = [""] * len(examples)
        for rows in by_prefix.values():
            texts = self._answers(base_of(model), [examples[i] for i in rows], device)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
        return answers

    def _answers(self, base: Any, examples: Sequence[Example], device: torch.device) -> list[str]:
        vocabulary, batch = self.vocabulary, moved(self.batch(examples), device)
        mask = batch["attention_mask"]
        if isinstance(base, UnifyModel):
            seen = base.embed(batch["input_ids"], batch.get("pixel_values"))
            encoded = base.get_encoder()(inputs_embeds=seen, attention_mask=mask)
        else:
            encoded = base.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
        prefix = torch.tensor([one.prefix for one in examples], device=device)
        if self.options:
            return self.likeliest(
                option_scores(base, encoded, mask, prefix, [*self.options.values()])
            )
        made = base.generate(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=prefix,
            bos_token_id=vocabulary.start[0],
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
            do_sample=False,
            # Transformers' own has as many layers as the encoder; this one as are asked for.
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            **self.generation,
        )
        return [vocabulary.decode(ids) for ids in made[:, prefix.shape[1] :].tolist()]

    def likeliest(self, scores: torch.Tensor) -> list[str]:
        """The option with the highest of `scores` (n x options, in nats) for every row; ties: the first.

        A score is the log-probability of the whole answer, end mark included: options of any length compete
        as answers. With `length_penalty` p it is divided by (number of ids) ** p: 1 is the mean per id.
        """
        lengths = torch.tensor([len(ids) for ids in self.options.values()], device=scores.device)
        scores = scores / lengths ** float(self.generation.get("length_penalty", 0.0))
        texts = [*self.options]
        return [texts[i] for i in scores.argmax(-1).tolist()]


def padded(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> torch.Tensor:
    """Rows of ids as long as the longest. Through NumPy, which reads lists five times faster than torch."""
    made = np.full((len(rows), max(len(row) for row in rows)), value)
    for into, row in zip(made, rows, strict=True):
        into[len(into) - len(row) if left else 0 :][: len(row)] = row
    return torch.from_numpy(made)


def base_of(model: Any) -> Any:
    """The model of transformers inside, with its adapters in place; also that of several processes."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def log_probability(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """n: that of the ids (n x length) by the logits of their places, in nats."""
    logs = logits.float().log_softmax(-1)
    return logs.gather(-1, ids.unsqueeze(-1)).squeeze(-1).sum(-1)


@torch.no_grad()
def option_scores(
    model: Any,
    encoded: Any,
    mask: torch.Tensor,
    prefix: torch.Tensor,
    options: Sequence[Sequence[int]],
) -> torch.Tensor:
    """n x options: log-probability in nats of each option's ids behind `prefix` (n x length)."""
    scores = []
    for option in options:
        own = torch.tensor(option, device=prefix.device).expand(len(prefix), -1)
        logits = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=torch.cat([prefix, own[:, :-1]], dim=1),
            use_cache=False,
        ).logits[:, prefix.shape[1] - 1 :]
        scores.append(log_probability(logits, own))
    return torch.stack(scores, dim=1)
