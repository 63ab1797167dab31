"""Text to ids and back: the bytes of ByT5, or a tokenizer of Hugging Face from a folder. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.config.sections import ModelSettings
from train.config.typed import SettingsError
from train.data.pretrained import read

UNIT = "tokens"
_MASKS = ("<mask>", "[MASK]", "<extra_id_0>")  # the last one is T5's


class Vocabulary(Protocol):
    """Ids, and the marks among them."""

    before: tuple[int, ...]  # what a group of text that is read begins with
    after: tuple[int, ...]  # and ends with
    start: tuple[int, ...]  # what an answer begins with, before its first own id
    eos: int
    pad: int
    mask: int | None
    image: int  # in the place of a patch; -1 where the model reads none
    size: int
    unit: str  # what an id is

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def random_ids(self, n: int, rng: np.random.Generator) -> list[int]: ...
    def save(self, folder: Path) -> None: ...


class ByteTokens:
    """The bytes of ByT5 and, behind them, <bos>, <mask> and <image>."""

    unit = "bytes"

    def __init__(self) -> None:
        from transformers import ByT5Tokenizer

        self._tokenizer = ByT5Tokenizer(extra_ids=0)
        first = len(self._tokenizer)
        self.bos, self.mask, self.image = first, first + 1, first + 2
        self.pad: int = self._tokenizer.pad_token_id
        self.eos: int = self._tokenizer.eos_token_id
        self.before = self.start = (self.bos,)
        self.after = (self.eos,)
        self.size = first + 3

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the end mark; other marks and bytes that are no UTF-8 are left out."""
        own = [i for i in _up_to(ids, self.eos) if i < self.bos]
        return str(self._tokenizer.decode(own, skip_special_tokens=True)).strip()

    def random_ids(self, n: int, rng: np.random.Generator) -> list[int]:
        """Ids of printable ASCII."""
        offset = self.encode("a")[0] - ord("a")
        return [int(i) + offset for i in rng.integers(32, 127, n)]

    def save(self, folder: Path) -> None:
        """Nothing to keep: it is made without a file."""


class FolderTokens:
    """A tokenizer of Hugging Face, for a model that was made for it or is made for it here.

    Made here (`config` null): marks that it lacks, and <image>, get ids behind its own, and groups have a
    begin mark. Else the marks around text are those the tokenizer sets itself, and an answer begins
    with the model's decoder_start_token_id.
    """

    unit = UNIT

    def __init__(self, tokenizer: Any, key: str, config: Any = None) -> None:
        self._tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.own = max(vocabulary.values()) + 1
        self.size = self.own
        self._special = {i for i in tokenizer.all_special_ids if i is not None}
        self._plain = sorted(set(vocabulary.values()) - self._special)
        begin = _first(tokenizer.bos_token_id, tokenizer.cls_token_id)
        eos = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        pad = tokenizer.pad_token_id
        mask = _first(tokenizer.mask_token_id, *(vocabulary.get(m) for m in _MASKS))
        self.mask: int | None
        if config is None:
            self.pad, self.eos = self._mark(pad), self._mark(eos)
            begin, self.mask = self._mark(begin), self._mark(mask)
            self.image = self._mark(None)
            self.before = self.start = (begin,)
            self.after = (self.eos,)
            return
        missing = [name for name, i in (("pad", pad), ("eos (or sep)", eos)) if i is None]
        if missing:
            raise SettingsError(
                f"{key}: its tokenizer has no {' and no '.join(missing)} token; give it one "
                "(tokenizer.add_special_tokens) and save it again"
            )
        self.pad, self.eos, self.mask, self.image = pad, eos, mask, -1
        self.before, self.after = self._around()
        first = _first(config.decoder_start_token_id, config.pad_token_id, self.pad)
        self.start = (first, *(i for i in self.before if i != first))

    def _mark(self, known: int | None) -> int:
        if known is not None:
            return known
        self.size += 1
        return self.size - 1

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer itself puts before and after a text."""
        text = self._tokenizer.convert_ids_to_tokens(self._plain[0])
        bare = self.encode(text)
        whole: list[int] = self._tokenizer(text).input_ids
        for place in range(len(whole) - len(bare) + 1):
            if whole[place : place + len(bare)] == bare:
                after = tuple(whole[place + len(bare) :])
                return tuple(whole[:place]), after or (self.eos,)
        return (), (self.eos,)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the end mark, without other marks."""
        own = [i for i in _up_to(ids, self.eos) if i < self.own]
        return str(self._tokenizer.decode(own, skip_special_tokens=True)).strip()

    def random_ids(self, n: int, rng: np.random.Generator) -> list[int]:
        """Ids that are no marks."""
        return [self._plain[int(i)] for i in rng.integers(len(self._plain), size=n)]

    def save(self, folder: Path) -> None:
        """Beside the weights, so that a checkpoint can be read where the folder is not."""
        self._tokenizer.save_pretrained(folder)


def _up_to(ids: Sequence[int], eos: int) -> list[int]:
    own = list(ids)
    return own[: own.index(eos)] if eos in own else own


def _first(*candidates: int | None) -> int | None:
    return next((one for one in candidates if one is not None), None)


@cache
def tokens() -> ByteTokens:
    return ByteTokens()


def vocabulary_of(settings: ModelSettings, base: Path | None = None) -> Vocabulary | None:
    """The vocabulary of the model of these settings, or of a chain's `base` folder; null: it has none.

    Raises SettingsError.
    """
    if settings.kind == "vit":
        return None
    name, key = settings.tokenizer or settings.path, "model.tokenizer"
    if settings.tokenizer is None:
        key = "model.path"
    if base is not None and (base / "tokenizer_config.json").is_file():
        name, key = str(base), "init_from"
    elif base is not None and settings.kind == "unify":
        name = None
    if name is None:
        return tokens()
    from transformers import AutoTokenizer

    tokenizer = read(AutoTokenizer.from_pretrained, name, key)
    if settings.kind == "unify":
        return FolderTokens(tokenizer, f"{key}={name}")
    config = config_of(settings, base)
    if base is None and settings.weights == "random" and settings.tokenizer is not None:
        # Marks of the tokenizer that the shape was first trained with.
        config.decoder_start_token_id = config.pad_token_id = None
    made = FolderTokens(tokenizer, f"{key}={name}", config)
    if made.own > config.vocab_size and settings.weights != "random":
        raise SettingsError(
            f"{key}={name}: the tokenizer has {made.own} ids, but the weights of "
            f"model.path={settings.path} embed {config.vocab_size}; they do not belong together. "
            "model.weights=random makes a model of this shape for the tokenizer"
        )
    return made


def config_of(settings: ModelSettings, base: Path | None = None) -> Any:
    """The configuration of an encoder-decoder from a folder, `model.config` over it.

    Raises SettingsError.
    """
    from transformers import AutoConfig

    if base is not None:
        return read(AutoConfig.from_pretrained, str(base), "init_from")
    assert settings.path is not None
    config = read(AutoConfig.from_pretrained, settings.path, "model.path")
    for key, value in settings.config.items():
        if not hasattr(config, key):
            known = ", ".join(sorted(k for k in config.to_diff_dict() if not k.startswith("_")))
            raise SettingsError(
                f"model.config.{key}={value}: the configuration of model.path={settings.path} has no "
                f"such value; it has {known}"
            )
        setattr(config, key, value)
    return config
