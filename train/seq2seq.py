"""A small encoder-decoder that reads text and images and answers in text.

T5 of transformers with random weights; patches of an image are projected into the encoder's embeddings,
at the places of the `<image>` ids. Text is bytes (ByT5's tokenizer needs no vocabulary file).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput

from train.criterion import IGNORED
from train.plan import TaskPlan
from train.preprocess import Example, example
from train.rows import Row
from train.settings import SettingsError

log = logging.getLogger(__name__)


class ByteTokens:
    """The bytes of ByT5 and, behind them, <bos>, <mask> and <image>."""

    def __init__(self) -> None:
        self._tokenizer = ByT5Tokenizer(extra_ids=0)
        first = len(self._tokenizer)
        self.bos, self.mask, self.image = first, first + 1, first + 2
        self.pad: int = self._tokenizer.pad_token_id
        self.eos: int = self._tokenizer.eos_token_id
        self.size = first + 3

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the end mark; other marks and bytes that are no UTF-8 are left out."""
        own = list(ids)
        if self.eos in own:
            own = own[: own.index(self.eos)]
        own = [i for i in own if i < self.bos]
        return str(self._tokenizer.decode(own, skip_special_tokens=True)).strip()

    def random_ids(self, n: int, rng: np.random.Generator) -> list[int]:
        """Ids of printable ASCII."""
        offset = self.encode("a")[0] - ord("a")
        return [int(i) + offset for i in rng.integers(32, 127, n)]


class UnifyConfig(T5Config):
    """T5's, with the size of the images it reads."""

    model_type = "unify"

    def __init__(
        self, image_size: int = 8, num_channels: int = 1, patch_size: int = 2, **kwargs: Any
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.patch_size = patch_size
        super().__init__(**kwargs)


class UnifyModel(T5ForConditionalGeneration):  # type: ignore[misc]
    """T5 whose encoder also reads image patches."""

    config_class = UnifyConfig

    def __init__(self, config: UnifyConfig) -> None:
        super().__init__(config)
        side = config.image_size // config.patch_size
        self.patches = torch.nn.Linear(config.patch_size**2 * config.num_channels, config.d_model)
        self.patch_positions = torch.nn.Parameter(torch.zeros(side**2, config.d_model))
        self.image_id = config.vocab_size - 1
        torch.nn.init.normal_(self.patch_positions)
        self.post_init()

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Embeddings (n x length x d), patches (images x C x H x W) at their places in order."""
        embeddings: torch.Tensor = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embeddings
        size = self.config.patch_size
        cut = torch.nn.functional.unfold(pixel_values, size, stride=size).transpose(1, 2)
        patches = self.patches(cut.to(self.patches.weight.dtype)) + self.patch_positions
        places = (input_ids == self.image_id).unsqueeze(-1).expand_as(embeddings)
        return embeddings.masked_scatter(places, patches.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        # Named here because `generate` looks for them among the parameters.
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        if input_ids is not None:
            kwargs["inputs_embeds"] = self.embed(input_ids, pixel_values)
        return super().forward(
            attention_mask=attention_mask, encoder_outputs=encoder_outputs, **kwargs
        )


@cache
def tokens() -> ByteTokens:
    return ByteTokens()


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch: ids padded to the longest, images of all rows one after another."""
    pad = tokens().pad
    source = _padded([e.source or (pad,) for e in examples], pad)
    labels = [
        [i if learn else IGNORED for i, learn in zip(e.decoder[1:], e.learned[1:], strict=True)]
        for e in examples
    ]
    batch = {
        "input_ids": source,
        "attention_mask": _padded([[1] * max(1, len(e.source)) for e in examples], 0),
        "decoder_input_ids": _padded([e.decoder[:-1] for e in examples], pad),
        "labels": _padded(labels, IGNORED),
    }
    images = [image for e in examples for image in e.images]
    if images:
        batch["pixel_values"] = torch.from_numpy(np.stack(images))
    return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


class Trie:
    """The answers of a closed set, as a tree of ids: what may follow what was generated."""

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        self.end = end
        self.longest = max(len(a) for a in answers) + 1  # with the end mark
        self._next: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            ids = (*answer, end)
            for i, one in enumerate(ids):
                self._next.setdefault(ids[:i], set()).add(one)

    def after(self, generated: Sequence[int]) -> list[int]:
        """Ids that may come next; after the end, the end again (a beam may be longer)."""
        return sorted(self._next.get(tuple(generated), {self.end}))


def generate(
    model: Any,
    examples: Sequence[Example],
    closed_set: Sequence[str] | None,
    arguments: Mapping[str, Any],
    device: torch.device,
) -> list[str]:
    """The answers of `model`, one per example; of `closed_set` where there is one.

    Rows are put together by the length of what they are forced to begin with, so that no answer
    begins behind padding.
    """
    vocabulary = tokens()
    trie = None
    if closed_set is not None:
        trie = Trie([vocabulary.encode(" " + a.strip()) for a in closed_set], vocabulary.eos)
    by_prefix: dict[int, list[int]] = {}
    for i, one in enumerate(examples):
        by_prefix.setdefault(len(one.prefix), []).append(i)
    answers = [""] * len(examples)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for length, rows in by_prefix.items():
        batch = collate([examples[i] for i in rows])
        batch = {key: value.to(device) for key, value in batch.items()}
        encoded = base.get_encoder()(
            inputs_embeds=base.embed(batch["input_ids"], batch.get("pixel_values")),
            attention_mask=batch["attention_mask"],
        )
        prefix = torch.tensor([examples[i].prefix for i in rows], device=device)
        made = base.generate(
            encoder_outputs=encoded,
            attention_mask=batch["attention_mask"],
            decoder_input_ids=prefix,
            bos_token_id=vocabulary.bos,
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
            do_sample=False,
            **_limits(arguments, trie, length),
        )
        for i, ids in zip(rows, made[:, length:].tolist(), strict=True):
            answers[i] = vocabulary.decode(ids)
    return answers


def _limits(arguments: Mapping[str, Any], trie: Trie | None, begin: int) -> dict[str, Any]:
    if trie is None:
        return dict(arguments)
    own = {k: v for k, v in arguments.items() if k in ("num_beams", "length_penalty")}
    # The answers are all there is: a limit on length or repetition could rule every one out.

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return trie.after(ids[begin:].tolist())

    return {**own, "max_new_tokens": trie.longest, "prefix_allowed_tokens_fn": allowed}


class TextAnswer:
    """How a task meets the encoder-decoder: rows to examples, batches to logits, models to answers."""

    def __init__(self, plan: TaskPlan, patches: int) -> None:
        self.plan = plan
        self.patches = patches  # ids an image takes
        self.cut = False
        longest = max(plan.answers or ("",), key=lambda answer: len(tokens().encode(answer)))
        length = len(tokens().encode(" " + longest)) + 1  # with the end mark
        if plan.answers is not None and length > plan.max_tgt_length:
            raise SettingsError(
                f"task.{plan.name}.max_tgt_length={plan.max_tgt_length}: the answer '{longest}' has "
                f"{length} ids (bytes, one space and the end mark) and would be learned cut short"
            )

    def example(self, row: Row, rng: np.random.Generator, training: bool, where: str) -> Example:
        made = example(self.plan, tokens(), self.patches, row, rng, training, where)
        whole = (tokens().eos, tokens().image)
        if not self.cut and made.source and made.source[-1] not in whole:
            self.cut = True
            log.warning(
                "%s: the text is cut to task.%s.max_src_length=%d ids; of later rows this is not told",
                where,
                self.plan.name,
                self.plan.max_src_length,
            )
        return made

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return collate(examples)

    def logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """n x length x vocabulary; `labels` of the batch are aligned with it."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: torch.Tensor = model(**inputs).logits
        return logits

    def answers(
        self, model: torch.nn.Module, examples: Sequence[Example], device: torch.device
    ) -> list[str]:
        closed_set = None if self.plan.answers is None else list(self.plan.answers)
        return generate(model, examples, closed_set, self.plan.generation, device)
