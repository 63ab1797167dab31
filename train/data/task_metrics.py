"""Metrics of a task by name, on answers and truths as text; computed by kept libraries.

matthews_corrcoef and f_measure come from scikit-learn, rouge and bleu from torchmetrics; rouge compares
words by nltk's Porter stems, as O-LoRA's scripts do. Names are checked without importing either.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from train.config.typed import nearest
from train.data import few_shot_metrics, head_metrics

if TYPE_CHECKING:
    from train.config.task import MetricSettings

LOGGED: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("acc",),
    "matthews_corrcoef": ("mcc",),
    "f_measure": ("f_{beta:g}",),
    "rouge": ("rouge1_f1", "rouge2_f1", "rougeL_f1"),
    "bleu": ("bleu",),
    "exact_match": ("exact_match",),
    **few_shot_metrics.LOGGED,
    **head_metrics.LOGGED,
}
NEEDED = {  # packages
    "rouge": ("torchmetrics", "nltk"),
    "bleu": ("torchmetrics",),
    **head_metrics.NEEDED,
}
REFUSED = {"cider": "no maintained library computes it without Java or a download"}


def logged_names(metric: str, beta: float = 1.0) -> tuple[str, ...]:
    """The names a metric is logged under. Raises ValueError for an unknown or missing one."""
    if metric in REFUSED:
        raise ValueError(f"metric '{metric}' is not supported: {REFUSED[metric]}")
    if metric not in LOGGED:
        near = nearest(metric, LOGGED)
        raise ValueError(f"unknown metric '{metric}'{near} (known: {', '.join(LOGGED)})")
    for package in NEEDED.get(metric, ()):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"metric '{metric}' needs a package: pip install {package}")
    return tuple(name.format(beta=beta) for name in LOGGED[metric])


def normalise(text: str) -> str:
    """`text` in lower case, without ASCII punctuation, words one blank apart: as O-LoRA compares."""
    return " ".join(text.lower().translate(few_shot_metrics.NO_PUNCTUATION).split())


def exact_match(answer: str, truth: str) -> bool:
    """True where both normalise to the same text.

    A truth of punctuation alone, such as '-', normalises to nothing, which an empty answer must not
    match: there the stripped texts are compared.
    """
    wanted = normalise(truth)
    return normalise(answer) == wanted if wanted else _same(answer, truth)


def _same(answer: str, truth: str) -> bool:
    return answer.strip() == truth.strip()


def compute(
    metric: str, settings: MetricSettings, answers: Sequence[str], truths: Sequence[str]
) -> dict[str, float]:
    """Logged name -> value, all from 0 to 1 but mcc (-1 to 1) and bleu (0 to 100).

    f_measure of two classes is that of the second label of `ans2label`'s numbering (1); of more, the
    plain mean over classes.
    """
    names = logged_names(metric, settings.beta)
    if metric in head_metrics.LOGGED:
        return head_metrics.head_metric(metric, answers, truths)
    if metric in few_shot_metrics.LOGGED:  # of class few_shot: all right answers of a row
        every = [truth.split("\t") for truth in truths]
        return few_shot_metrics.few_shot_metric(metric, [a.strip() for a in answers], every)
    if metric in ("accuracy", "exact_match"):
        equal = exact_match if metric == "exact_match" else _same
        right = [equal(a, t) for a, t in zip(answers, truths, strict=True)]
        return {names[0]: sum(right) / len(right)}
    if metric == "matthews_corrcoef":
        from sklearn.metrics import matthews_corrcoef

        return {names[0]: float(matthews_corrcoef(list(truths), list(answers)))}
    if metric == "f_measure":
        return {names[0]: _f_measure(settings, answers, truths)}
    from torchmetrics.functional.text import rouge_score, sacre_bleu_score

    if metric == "rouge":
        kinds = ("rouge1", "rouge2", "rougeL")
        found = rouge_score(list(answers), list(truths), use_stemmer=True, rouge_keys=kinds)
        return dict(zip(names, (float(found[f"{kind}_fmeasure"]) for kind in kinds), strict=True))
    return {names[0]: 100 * float(sacre_bleu_score(list(answers), [[t] for t in truths]))}


def _f_measure(settings: MetricSettings, answers: Sequence[str], truths: Sequence[str]) -> float:
    from sklearn.metrics import fbeta_score

    given: list[Sequence[Any]] = [truths, answers]
    average = "macro"
    if isinstance(settings.ans2label, Mapping) and len(settings.ans2label) == 2:
        for positive in (text for text, number in settings.ans2label.items() if number == 1):
            given, average = [[text == positive for text in part] for part in given], "binary"
    return float(fbeta_score(*given, average=average, beta=settings.beta, zero_division=0))
