"""Lengths and texts made up by rule: as long as those of the data set they stand for, and easy to learn.

Lengths are log-normal, in words; with data/models/bert_tiny a word is a token. The parameters give the
lengths of the longest of a batch that Mimose reports for the data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_FILLER = (
    "the a of and to in that was for on with as by at from this which had were but they his her one all "
    "when there then out up who so what into about some could time them other than its now more only new "
    "also after two like first may should very my over such our even most made through before must years "
    "where much way well down because long day still same never old work under last year part place small "
    "while again away house found hand great next light large every right hour water room side"
)
FILLER = _FILLER.split()
GOOD = ("good", "lovely", "clever", "funny", "brilliant", "warm", "bright", "gentle")
BAD = ("bad", "awful", "boring", "weak", "terrible", "cold", "dull", "clumsy")
FIRST = ("anna", "boris", "clara", "david", "emma", "frank", "grace", "henry")
LAST = ("adams", "baker", "cooper", "dixon", "evans", "fisher", "graham", "hughes")
CITIES = ("paris", "london", "berlin", "madrid", "vienna", "oslo", "dublin", "prague")
COMPANIES = ("acme", "globex", "initech", "umbrella", "stark", "wayne", "cyberdyne", "hooli")
WORDS = (*FILLER, *GOOD, *BAD, *FIRST, *LAST, *CITIES, *COMPANIES)


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths between two bounds."""

    median: float
    spread: float  # standard deviation of the logarithm
    least: int
    most: int

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        drawn = np.exp(np.log(self.median) + self.spread * rng.standard_normal(n))
        return [int(one) for one in np.clip(drawn.round(), self.least, self.most)]


def words(n: int, rng: np.random.Generator) -> list[str]:
    """n words that mean nothing."""
    return [FILLER[i] for i in rng.integers(len(FILLER), size=max(0, n))]


def one_of(some: Any, rng: np.random.Generator) -> str:
    return str(some[int(rng.integers(len(some)))])
