"""Text to ids and back: the bytes of ByT5, or a tokenizer of Hugging Face from a folder. No torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from train.config.typed import SettingsError

_MASKS = ("<mask>", "[MASK]", "<extra_id_0>")  # the last one is T5's
KNOWN = 10_000  # texts whose ids are kept: 2 kB each at 512 ids


class Vocabulary:
    """Ids of a tokenizer of Hugging Face, for a model that was made for it or is made for it here.

    Made here (`config` null): marks that it lacks, and <image>, get ids behind its own, and groups have a
    begin mark. Else the tokenizer sets its own marks around text, and an answer begins
    with the model's decoder_start_token_id.
    """

    unit = "tokens"  # what an id is
    before: tuple[int, ...]  # what a group of text that is read begins with
    after: tuple[int, ...]  # and ends with
    start: tuple[int, ...]  # what an answer begins with, before its first own id
    mask: int | None
    image: int  # in the place of a patch; -1 where the model reads none

    def __init__(self, tokenizer: Any, key: str, config: Any = None) -> None:
        self._use(tokenizer)
        eos = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        pad = tokenizer.pad_token_id
        if config is None:
            self.pad, self.eos = self._mark(pad), self._mark(eos)
            begin = self._mark(_first(tokenizer.bos_token_id, tokenizer.cls_token_id))
            self.mask, self.image = self._mark(self.mask), self._mark(None)
            self.before, self.after, self.start = (begin,), (self.eos,), (begin,)
            return
        if missing := [n for n, i in (("pad", pad), ("eos (or sep)", eos)) if i is None]:
            raise SettingsError(
                f"{key}: its tokenizer has no {' and no '.join(missing)} token; give it one "
                "(tokenizer.add_special_tokens) and save it again"
            )
        self.pad, self.eos, self.image = pad, eos, -1
        self.before, self.after = self._around()
        first: int = _first(config.decoder_start_token_id, config.pad_token_id, self.pad)
        self.start = (first, *(i for i in self.before if i != first))

    def _use(self, tokenizer: Any) -> None:
        """Take its ids, before any mark is known but the mask."""
        self._tokenizer = tokenizer
        self._known: dict[str, array[int]] = {}  # texts come again with every epoch
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.own = max(vocabulary.values()) + 1
        self.size = self.own
        self._special = {i for i in tokenizer.all_special_ids if i is not None}
        self._plain = sorted(set(vocabulary.values()) - self._special)
        self.mask = _first(tokenizer.mask_token_id, *(vocabulary.get(m) for m in _MASKS))

    def _mark(self, known: int | None) -> int:
        if known is not None:
            return known
        self.size += 1
        return self.size - 1

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The marks the tokenizer itself puts before and after a text."""
        text = self._tokenizer.convert_ids_to_tokens(self._plain[0])
        bare = self.encode(text)
        whole: list[int] = self._tokenizer(text).input_ids
        for place in range(len(whole) - len(bare) + 1):
            if whole[place : place + len(bare)] == bare:
                after = tuple(whole[place + len(bare) :])
                return tuple(whole[:place]), after or (self.eos,)
        return (), (self.eos,)

    def encode(self, text: str) -> list[int]:
        if (ids := self._known.get(text)) is None:
            # Not verbose: a text that is too long is cut later, and a warning says so.
            found = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            ids = array("i", found)
            if len(self._known) < KNOWN:
                self._known[text] = ids
        return ids.tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the end mark, without other marks."""
        own = [i for i in takewhile(lambda i: i != self.eos, ids) if i < self.own]
        return str(self._tokenizer.decode(own, skip_special_tokens=True)).strip()

    def random_ids(self, n: int, rng: np.random.Generator) -> list[int]:
        """Ids that are no marks."""
        return [self._plain[int(i)] for i in rng.integers(len(self._plain), size=n)]

    def save(self, folder: Path) -> None:
        """Beside the weights, so that a checkpoint can be read where the folder is not."""
        self._tokenizer.save_pretrained(folder)


class Continued(Vocabulary):
    """Ids for a model that continues text: the answer follows what is read, in one sequence.

    One begin mark stands before both where the tokenizer puts one before text, and the end mark behind
    the answer. What is read and what is answered are tokenised apart, with a blank between them:
    LLaMA's tokenizer brings it, to others it is given. Padding is known by its place, so that its id
    may be that of the end mark; it is the end mark where the tokenizer has no pad that is embedded.
    """

    def __init__(self, tokenizer: Any, key: str, embedded: int) -> None:
        """embedded: ids the weights embed; none is added."""
        self._use(tokenizer)
        pieces = "".join(tokenizer.convert_ids_to_tokens(self.encode(" a")))
        # Its own blank and that of the text would be two.
        self._brings_blank = pieces.startswith("\u2581\u2581")
        eos = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        if eos is None:
            raise SettingsError(
                f"{key}: its tokenizer has no eos token, so that an answer has no end; give it one "
                "(tokenizer.eos_token=...) and save it again"
            )
        pad = tokenizer.pad_token_id
        self.eos, self.image = eos, -1
        self.pad = pad if pad is not None and pad < embedded else eos
        self.before = tuple(dict.fromkeys(self._around()[0]))
        self.after = self.start = ()
        # What the first id of an answer follows where nothing is read.
        self.begin: int = _first(*self.before, tokenizer.bos_token_id, eos)

    _brings_blank = False

    def encode(self, text: str) -> list[int]:
        return super().encode(text[1:] if self._brings_blank and text[:1] == " " else text)


def _first(*candidates: Any) -> Any:
    return next((one for one in candidates if one is not None), None)


class ByteTokens(Vocabulary):
    """The bytes of ByT5 and, behind them, <bos>, <mask> and <image>."""

    unit = "bytes"

    def __init__(self) -> None:
        from transformers import ByT5Tokenizer

        super().__init__(ByT5Tokenizer(extra_ids=0), "bytes")

    def random_ids(self, n: int, rng: np.random.Generator) -> list[int]:
        """Ids of printable ASCII."""
        offset = self.encode("a")[0] - ord("a")
        return [int(i) + offset for i in rng.integers(32, 127, n)]

    def save(self, folder: Path) -> None:
        """Nothing to keep: it is made without a file."""


@cache
def tokens() -> ByteTokens:
    return ByteTokens()
