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
from train.model.family import IGNORED
from train.model.patches import UnifyModel

log = logging.getLogger(__name__)

BEAMS: Mapping[str, Any] = {"num_beams": 5, "max_new_tokens": 32, "no_repeat_ngram_size": 3}
GREEDY: Mapping[str, Any] = {"num_beams": 1, "max_new_tokens": 50}


class TextAnswer:
    """A `Meeting`: rows to ids and images, answers by generation or by the options' probability."""

    def __init__(
        self,
        plan: TaskPlan,
        patches: int,
        vocabulary: Vocabulary,
        generation: Mapping[str, Any] = BEAMS,
    ) -> None:
        """generation: arguments of `generate` for a task that says nothing of it."""
        self.plan = plan
        self.generation = generation if plan.generation is None else plan.generation
        self.patches = patches  # ids an image takes
        self.vocabulary = vocabulary
        self.cut = self.cut_answer = False
        self._check_answers()
        ratios = [s.attributes.get("mask_ratio", 0) for t in plan.templates for s in t.slots]
        if vocabulary.mask is None and any(ratios):
            raise SettingsError(
                f"task.{plan.name}.instruction.template: mask_ratio needs a mask token, and the "
                "tokenizer of the model has none"
            )

    def _check_answers(self) -> None:
        key = f"task.{self.plan.name}.preprocess.text.ans2label"
        by_ids: dict[tuple[int, ...], str] = {}
        for answer in self.plan.answers or ():
            ids = tuple(self.vocabulary.encode(" " + answer.strip()))
            if not ids or ids in by_ids:
                same = f"the same ids as '{by_ids[ids]}'" if ids else "no id at all"
                raise SettingsError(
                    f"{key}: the tokenizer makes {same} of the answer '{answer}' ({list(ids)}), so it "
                    "could not be told apart; choose other words"
                )
            by_ids[ids] = answer
        if not by_ids:
            return
        longest = max(by_ids, key=len)
        # Ids behind the start mark, the end mark among them.
        length = len(longest) + max(1, len(self.vocabulary.start))
        if length > self.plan.max_tgt_length:
            raise SettingsError(
                f"task.{self.plan.name}.max_tgt_length={self.plan.max_tgt_length}: the answer "
                f"'{by_ids[longest]}' has {length} ids ({self.vocabulary.unit}, one space and the end "
                "mark) and would be learned cut short"
            )

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Example:
        plan = self.plan
        made = example(plan, self.vocabulary, self.patches, row, rng, training, where)
        if not self.cut and is_cut(made, plan, self.vocabulary):
            self.cut = True
            log.warning(
                "%s: the text is cut to task.%s.max_src_length=%d ids; later rows are cut without a warning",
                *(where, plan.name, plan.max_src_length),
            )
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
        return collate(examples, self.vocabulary.pad)

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x length x vocabulary; `labels` of the batch are aligned with it."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: torch.Tensor = model(**inputs).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Example], device: torch.device
    ) -> list[str]:
        closed_set = None if self.plan.answers is None else list(self.plan.answers)
        return generate(model, examples, self.vocabulary, closed_set, self.generation, device)


def is_cut(made: Example, plan: TaskPlan, vocabulary: Vocabulary) -> bool:
    """True where the end of what is read was left out."""
    whole = (*vocabulary.after[-1:], vocabulary.image)
    return len(made.source) > plan.max_src_length and made.source[-1] not in whole


def collate(examples: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """A batch: ids padded to the longest, images of all rows one after another."""
    source = padded([e.source or (pad,) for e in examples], pad)
    labels = [
        [i if learn else IGNORED for i, learn in zip(e.decoder[1:], e.learned[1:], strict=True)]
        for e in examples
    ]
    batch = {
        "input_ids": source,
        "attention_mask": padded([[1] * max(1, len(e.source)) for e in examples], 0),
        "decoder_input_ids": padded([e.decoder[:-1] for e in examples], pad),
        "labels": padded(labels, IGNORED),
    }
    images = [image for e in examples for image in e.images]
    if images:
        batch["pixel_values"] = torch.from_numpy(np.stack(images))
    return batch


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


def option_ids(vocabulary: Vocabulary, answers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Answer of a closed set -> its ids and the end mark."""
    return {a: (*vocabulary.encode(" " + a.strip()), vocabulary.eos) for a in answers}


def best(
    scores: torch.Tensor, options: Mapping[str, Sequence[int]], arguments: Mapping[str, Any]
) -> list[str]:
    """The option with the highest of `scores` (n x options, in nats) for every row; ties: the first.

    A score is the log-probability of the whole answer, end mark included: options of any length compete
    as answers. With `length_penalty` p it is divided by (number of ids) ** p: 1 is the mean per id.
    """
    lengths = torch.tensor([len(ids) for ids in options.values()], device=scores.device)
    scores = scores / lengths ** float(arguments.get("length_penalty", 0.0))
    texts = [*options]
    return [texts[i] for i in scores.argmax(-1).tolist()]


def generate(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    closed_set: Sequence[str] | None,
    arguments: Mapping[str, Any],
    device: torch.device,
) -> list[str]:
    """The answers of `model`, one per example; of `closed_set`, where there is one, the likeliest.

    Rows are put together by the length of what they are forced to begin with, so that no answer
    begins behind padding.
    """
    options = option_ids(vocabulary, closed_set or ())
    by_prefix: dict[int, list[int]] = {}
    for i, one in enumerate(examples):
        by_prefix.setdefault(len(one.prefix), []).append(i)
    answers = [""] * len(examples)
    base = base_of(model)
    for length, rows in by_prefix.items():
        batch = collate([examples[i] for i in rows], vocabulary.pad)
        batch = {key: value.to(device) for key, value in batch.items()}
        mask = batch["attention_mask"]
        if isinstance(base, UnifyModel):
            seen = base.embed(batch["input_ids"], batch.get("pixel_values"))
            encoded = base.get_encoder()(inputs_embeds=seen, attention_mask=mask)
        else:
            encoded = base.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
        prefix = torch.tensor([examples[i].prefix for i in rows], device=device)
        if options:
            scores = option_scores(base, encoded, mask, prefix, [*options.values()])
            texts = best(scores, options, arguments)
        else:
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
                **arguments,
            )
            texts = [vocabulary.decode(ids) for ids in made[:, length:].tolist()]
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text
    return answers


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
        logs = logits.float().log_softmax(-1)
        scores.append(logs.gather(-1, own.unsqueeze(-1)).squeeze(-1).sum(-1))
    return torch.stack(scores, dim=1)
