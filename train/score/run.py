"""A scoring run: every task of the configuration is a target; files in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from train.config.merging import MergeSettings
from train.config.sections import Run
from train.data.rows import load as load_rows
from train.data.task_plan import TaskPlan
from train.merge import weights as weighing
from train.merge.plan import LIBRARIES, write_whole
from train.merge.rules import MergeError
from train.merge.sources import Source, located, read_all, read_source
from train.score import formulas, matrix
from train.score.holder import Holder, family_for
from train.score.scoring import Scored, score
from train.score.temperature import dev_losses


def score_tasks(
    run: Run, plans: Mapping[str, TaskPlan], settings: MergeSettings, folder: Path
) -> str:
    """Score the sources for every task of the run; the text of what was found. Raises MergeError.

    Writes result.tsv, result.json, and, where a temperature or target_ess is given, weights.tsv and
    weights.png; of grand and hidden_cos a matrix per block and blocks.png; timing.json has the seconds, which
    differ from run to run.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    if settings.method not in formulas.SIGNS:
        raise MergeError(
            f"merge.method={settings.method} needs no scores; those that do are "
            f"{', '.join(formulas.SIGNS)}"
        )
    given, targets = located(settings.sources), [task.name for task in run.tasks]
    others = [name for name in given if settings.full_diagonal or [name] != targets]
    if not others:
        raise MergeError(f"merge.sources has no delta but that of the target '{targets[0]}'")
    sources = read_all(given, others)
    tuned = {name: read_source(name, path) for name, path in settings.tuned.items()}
    family, base = family_for(run, plans, sources[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    holder, sign = Holder(base, device), formulas.SIGNS[settings.method]
    found: dict[str, Scored] = {}
    seconds: dict[str, float] = {}
    losses: dict[str, dict[float, float]] = {}  # of temperatures, by target
    with tqdm(total=None, unit="batch", desc="scoring", mininterval=1.0) as bar:
        for target in targets:
            start = time.perf_counter()
            own = [s for s in sources if settings.full_diagonal or s.name != target]
            rows = load_rows(plans[target], run.evaluation)
            task = family.meeting(plans[target])
            tuned_target = _tuned_target(settings, target)
            found[target] = score(
                *(task, rows, own, holder, settings, tuned_target, tuned, bar.update)
            )
            if isinstance(settings.temperature, list):
                known, asked = found[target].of(settings, sources), replace(settings, target=target)
                losses[target] = dev_losses(task, rows, holder, asked, known)
            seconds[target] = round(time.perf_counter() - start, 3)
    names = [one.name for one in sources]
    rows_of = {target: found[target].by_method[settings.method] for target in targets}
    matrix.write_tsv(folder / "result.tsv", rows_of, names)
    write_whole(folder / "result.json", _text(run, settings, sources, found, losses))
    _write_blocks(folder, found, names, settings)
    write_whole(folder / "timing.json", json.dumps({"seconds": seconds}, indent=2) + "\n")
    lines = _table(rows_of, names, settings.method)
    if settings.temperature is not None or settings.target_ess is not None:
        weights = {t: _weights(rows_of[t], t, sign, settings, losses.get(t, {})) for t in targets}
        ess = {target: weighing.ess([*row.values()]) for target, row in weights.items()}
        matrix.write_tsv(folder / "weights.tsv", weights, names)
        matrix.heat_map(folder / "weights.png", weights, names, ess, settings.groups)
        lines += ["", *_table(weights, names, "weight")]
        lines += [f"effective sources: {', '.join(f'{t} {e:.2f}' for t, e in ess.items())}"]
        for target, by_temperature in losses.items():
            told = ", ".join(f"{t:g} {loss:.4f}" for t, loss in by_temperature.items())
            lines.append(f"dev loss of the merge by temperature: {target} {told}")
    return "\n".join([*lines, "", str(folder / "result.json")])


def _tuned_target(settings: MergeSettings, target: str) -> Source | None:
    given = settings.target_tuned
    path = given.get(target) if isinstance(given, dict) else given
    return None if path is None else read_source(target, path)


def _write_blocks(
    folder: Path, found: Mapping[str, Scored], names: list[str], settings: MergeSettings
) -> None:
    """A matrix of every block, and the picture of how much each has, against the target's largest."""
    blocks = [*dict.fromkeys(block for one in found.values() for block in one.blocks)]
    for block in blocks:
        rows = {target: one.blocks.get(block, {}) for target, one in found.items()}
        name = block.replace(".", "_block_", 1).replace(".", "_")
        matrix.write_tsv(folder / "blocks" / f"{name}_result.tsv", rows, names)
    if blocks:
        means = {
            target: {block: sum(row.values()) / len(row) for block, row in one.blocks.items()}
            for target, one in found.items()
        }
        largest = {target: max(map(abs, row.values())) for target, row in means.items()}
        shares = {t: {b: v / (largest[t] or 1) for b, v in row.items()} for t, row in means.items()}
        matrix.heat_map(
            folder / "blocks.png", shares, blocks, largest, settings.groups, title="largest"
        )


def _weights(
    scores: Mapping[str, float],
    target: str,
    sign: int,
    settings: MergeSettings,
    losses: Mapping[float, float],
) -> dict[str, float]:
    own = {name: value for name, value in scores.items() if name != target}
    t = min(settings.temperatures, key=lambda one: losses.get(one, 0.0), default=None)
    if settings.target_ess is not None:
        t = weighing.temperature_for(own, sign, settings.target_ess)
    assert t is not None
    return weighing.softmax(own, sign, t)


def _text(
    run: Run,
    settings: MergeSettings,
    sources: list[Source],
    found: Mapping[str, Scored],
    losses: Mapping[str, Mapping[float, float]],
) -> str:
    """result.json: the same bytes for the same inputs."""
    unit = formulas.UNITS.get(settings.method, "1")
    per = dict.fromkeys(formulas.OVER_TOKENS, "token") | {"grand": "batch", "hidden_cos": "row"}
    over = f" per {per[settings.method]}" if settings.method in per else ""
    told: dict[str, Any] = {
        "method": settings.method,
        "reduction": settings.reduction,
        "unit": unit + (over if settings.reduction == "mean" else ""),
        "signs": dict(formulas.SIGNS),
        "seed": settings.seed,
        "model": {"path": run.model.path, "fingerprint": sources[0].fingerprint},
        "sources": {
            one.name: {"path": one.path, "sha256": one.sha256, "kind": one.kind} for one in sources
        },
        "targets": {
            target: {
                "scores": one.by_method,
                "tokens": one.tokens,
                "batches": one.batches,
                "blocks": one.blocks,
                "dev_losses": {str(t): loss for t, loss in losses.get(target, {}).items()},
            }
            for target, one in found.items()
        },
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return json.dumps(told, indent=2, sort_keys=True) + "\n"


def _table(rows: matrix.Matrix, names: list[str], what: str) -> list[str]:
    """A line per source and target, best known first."""
    lines = [f"{'target':20} {'source':20} {what:>14}"]
    for target, row in rows.items():
        lines += [f"{target:20} {name:20} {row[name]:14.6g}" for name in names if name in row]
    return lines
