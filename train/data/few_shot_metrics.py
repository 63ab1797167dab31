"""Metrics of few-shot tasks, by CrossFit's names, on answers and on all right answers of a row.

Of several right answers the best counts, but for Classification-F1 and the correlations, which take the
first. All lie in [0, 1], the correlations in [-1, 1].
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

CLASSIFICATION_F1 = "Classification-F1"
PEARSON, MATTHEW = "Pearson-Correlation", "Matthew-Correlation"
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def few_shot_metric(
    name: str, answers: Sequence[str], truths: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Logged name -> value. truths: all right answers of each row."""
    if name in BEST:
        found = [max(BEST[name](a, t) for t in row) for a, row in zip(answers, truths, strict=True)]
        return {name: sum(found) / len(found)}
    first = [row[0] for row in truths]
    if name == CLASSIFICATION_F1:
        from sklearn.metrics import f1_score

        # The right answers that occur; what else was answered is wrong, and no class.
        classes = sorted(set(first))
        scores = f1_score(first, answers, labels=classes, average=None, zero_division=0).tolist()
        return {name: sum(scores) / len(scores)}
    if name == MATTHEW:
        from sklearn.metrics import matthews_corrcoef

        wanted = [[text == "acceptable" for text in part] for part in (first, answers)]
        return {name: float(matthews_corrcoef(*wanted))}
    return dict(zip(LOGGED[PEARSON], map(float, _pearson(answers, first)), strict=True))


def words(text: str) -> list[str]:
    """As SQuAD compares: lower case, no punctuation, no a, an, the."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(NO_PUNCTUATION)).split()


def _qa_f1(answer: str, truth: str) -> float:
    own, wanted = words(answer), words(truth)
    if not own or not wanted:
        return float(own == wanted)
    return _f1((Counter(own) & Counter(wanted)).total(), own, wanted)


def _f1(same: int, own: Sequence[str], wanted: Sequence[str]) -> float:
    return 2 * same / (len(own) + len(wanted)) if same else 0.0


def _rouge_l(answer: str, truth: str) -> float:
    if not answer.translate(NO_PUNCTUATION).strip():
        return 0.0
    own, wanted = answer.split(), truth.split()
    lengths = [0] * (len(wanted) + 1)  # of the longest common subsequence, row by row
    for word in own:
        before = lengths
        lengths = [0]
        for i, other in enumerate(wanted):
            longer = before[i] + 1 if word == other else max(before[i + 1], lengths[i])
            lengths.append(longer)
    return _f1(lengths[-1], own, wanted)


BEST: dict[str, Callable[[str, str], float]] = {
    "ACC": lambda answer, truth: answer.lower() == truth.lower(),
    "EM": lambda answer, truth: words(answer) == words(truth),
    "QA-F1": _qa_f1,
    "Rouge-L": _rouge_l,
}
# Logged names; the second of Pearson: rows left out because the answer is no number.
LOGGED: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*BEST, CLASSIFICATION_F1, MATTHEW)},
    PEARSON: (PEARSON, "no_number"),
}


def _pearson(answers: Sequence[str], truths: Sequence[str]) -> tuple[float, int]:
    """The correlation over rows whose answer is a number, 0 where it is not defined; how many are not."""
    pairs = []
    for answer, truth in zip(answers, truths, strict=True):
        try:
            own = float(answer)
        except ValueError:
            continue
        if math.isfinite(own):
            pairs.append((own, float(truth)))
    left_out = len(answers) - len(pairs)
    if len(pairs) < 2:
        return 0.0, left_out
    xs, ys = zip(*pairs, strict=True)
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    together = sum((x - x_mean) * (y - y_mean) for x, y in pairs)
    apart = math.sqrt(sum((x - x_mean) ** 2 for x in xs) * sum((y - y_mean) ** 2 for y in ys))
    return (together / apart if apart > 0 else 0.0), left_out
