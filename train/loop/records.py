"""Files a job leaves of its evaluation, as O-LoRA's scripts write them: train, predict and all results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.tables import Row
from train.data.task_metrics import compute, exact_match
from train.loop.evaluation import Evaluated

PREDICTIONS = "predict_eval_predictions.jsonl"
RANKED = "nbest_predictions.json"
Truths = tuple[list[str], list[str]]  # answers and right answers, row by row


def predict_results(evaluated: Sequence[Evaluated], steps: int) -> dict[str, float]:
    """O-LoRA's `predict_*` of all rows of a split: percent, four decimals, and a loss as it is.

    `predict_exact_match` pools the rows (micro), `..._macro` is the plain mean over datasets. A group and
    a dataset of one name share a key, as theirs do; `apart` keeps them apart. rouge1 and rougeL are there
    for tasks with the metric rouge. steps: of this job's training.
    """
    made: dict[str, float] = {}
    [pooled] = _by(evaluated, None).values()
    groups, datasets = (_by(evaluated, key) for key in ("group", "dataset"))
    for name, of in _measures(evaluated).items():
        made[f"predict_{name}"] = of(pooled)
        made |= {f"predict_{name}_for_{one}": of(own) for one, own in groups.items()}
        made |= {f"predict_{name}_for_{one}": of(own) for one, own in datasets.items()}
        means = [of(own) for own in datasets.values()]
        made[f"predict_{name}_macro"] = sum(means) / len(means)
    lengths = [length for one in evaluated for length in one.lengths]
    if lengths:
        made["predict_gen_len"] = sum(lengths) / len(lengths)
    made["predict_samples"] = sum(len(one.rows) for one in evaluated)
    made["predict_global_step"] = steps
    made = {key: round(value, 4) for key, value in made.items()}
    losses = [one.loss for one in evaluated if one.loss is not None]
    if counted := sum(n for _, n in losses):  # in nats, per id that counts
        made["predict_loss"] = sum(loss for loss, _ in losses) / counted
    return made


def apart(evaluated: Sequence[Evaluated]) -> dict[str, dict[str, float]]:
    """Exact match in percent by group and by dataset, which predict_results mixes."""
    return {
        f"{key}s": {name: round(_percent(rows), 4) for name, rows in _by(evaluated, key).items()}
        for key in ("group", "dataset")
    }


def predictions(evaluated: Iterable[Evaluated]) -> list[dict[str, Any]]:
    """A record per row: O-LoRA's Task (the group), Dataset, Instance and Prediction, and the split."""
    return [
        {
            "Task": _name(one, row, "group"),
            "Dataset": _name(one, row, "dataset"),
            "Instance": {
                "id": row.get("instance", place),
                "sentence": row.get("sentence"),
                "prompt": row.get("prompt"),
                "label": _truth(one, row),
            },
            "Prediction": answer,
            "Split": one.part,
        }
        for one in evaluated
        for place, (row, answer) in enumerate(zip(one.rows, one.answers, strict=True))
    ]


def write_job(
    folder: Path,
    results: Mapping[str, Any],
    training: Mapping[str, Any],
    dev: Sequence[Evaluated],
    test: Sequence[Evaluated],
) -> None:
    """train_results.json, predict_results.json, both with `results` in all_results.json, and predictions.

    predict_results.json and nbest_predictions.json are of the test rows; of a job that does not evaluate
    them, of the dev rows: predict_split says which.
    """
    _write_predictions(folder, [], [*dev, *test])
    predicted = _write_predicted(
        folder, "test" if test else "dev", test or dev, training["train_steps"]
    )
    write(folder, "train_results.json", training)
    everything = {**results, **training, **predicted, "dev": apart(dev), "tested": apart(test)}
    write(folder, "all_results.json", everything)


def write_test(folder: Path, results: Mapping[str, Any], test: Sequence[Evaluated]) -> None:
    """The records of a job whose test rows are evaluated when its sweep is over, beside those of dev."""
    predicted = _write_predicted(folder, "test", test, results["steps"])
    scores = {one.plan.name: one.score for one in test}
    everything = {**results, **predicted, "test": scores, "tested": apart(test)}
    write(folder, "all_results.json", everything)
    lines = (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["Split"] != "test"]
    _write_predictions(folder, kept, test)


def write(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def _write_predicted(
    folder: Path, split: str, evaluated: Sequence[Evaluated], steps: int
) -> dict[str, Any]:
    """predict_results.json, which is returned, and nbest_predictions.json."""
    write_ranked(folder, evaluated)
    predicted = {"predict_split": split, **predict_results(evaluated, steps)}
    write(folder, "predict_results.json", predicted)
    return predicted


def _write_predictions(folder: Path, kept: list[str], evaluated: Iterable[Evaluated]) -> None:
    own = [json.dumps(record, ensure_ascii=False) + "\n" for record in predictions(evaluated)]
    (folder / PREDICTIONS).write_text("".join([*kept, *own]), encoding="utf-8")


def write_ranked(folder: Path, evaluated: Sequence[Evaluated]) -> None:
    """Id of a question -> its best answers, as SQuAD's scripts have them; a file per task of several."""
    several = [one for one in evaluated if one.ranked]
    for one in several:
        name = RANKED if len(several) == 1 else f"{one.plan.name}_{RANKED}"
        pairs = zip(one.rows, one.ranked, strict=True)
        write(folder, name, {str(row["id"]): best for row, best in pairs})


def _measures(evaluated: Sequence[Evaluated]) -> dict[str, Callable[[Truths], float]]:
    made: dict[str, Callable[[Truths], float]] = {"exact_match": _percent}
    asked = [one.plan.metrics["rouge"] for one in evaluated if "rouge" in one.plan.metrics]
    if asked:

        def rouge(kind: str) -> Callable[[Truths], float]:
            return lambda rows: 100 * compute("rouge", asked[0], *rows)[f"{kind}_f1"]

        made |= {kind: rouge(kind) for kind in ("rouge1", "rougeL")}
    return made


def _percent(rows: Truths) -> float:
    answers, truths = rows
    right = sum(exact_match(a, t) for a, t in zip(answers, truths, strict=True))
    return 100 * right / len(answers)


def _by(evaluated: Sequence[Evaluated], key: str | None) -> dict[str, Truths]:
    """The rows by group or dataset; together without a key."""
    made: dict[str, Truths] = {}
    for one in evaluated:
        for row, answer in zip(one.rows, one.answers, strict=True):
            name = "" if key is None else _name(one, row, key)
            answers, truths = made.setdefault(name, ([], []))
            answers.append(answer)
            truths.append(_truth(one, row))
    return made


def _name(one: Evaluated, row: Row, key: str) -> str:
    """Group or dataset of a row; a task of another class is one of its own."""
    name = one.plan.name
    return str(row.get(key, name)) if one.plan.rows is not None else name


def _truth(one: Evaluated, row: Row) -> str:
    return str(row.get(one.plan.templates[0].target.name))
