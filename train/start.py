"""The start of a job's delta as `merge.init` says it: random, or a merge of earlier tasks' deltas.

The plan is written into the job's folder as merge_plan.json before the delta is made from it, so that the
same job starts alike again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autocl_sweeper.errors import SkippedError
from train.chain import base_of, walk
from train.config.merging import MergeSettings
from train.config.sections import Run
from train.config.typed import SettingsError
from train.data.rows import Rows
from train.data.task_plan import TaskPlan
from train.delta.delta import Delta
from train.delta.start import begin_as
from train.merge.plan import PLAN, MergePlan, make_plan, write_whole
from train.merge.rules import MergeError, lorahub_objective
from train.merge.sources import Source, located, read_all, read_source
from train.model.family import Family
from train.score.holder import Holder
from train.score.scoring import score
from train.score.temperature import dev_losses

log = logging.getLogger(__name__)


def is_asked_for(run: Run, delta: Delta) -> bool:
    """Whether `merge.init` changes what the delta of this job starts as."""
    wanted = run.merge.start
    if wanted in (None, "last"):
        return False
    if delta.name == "olora" and run.delta.lamda_1 > 0:
        log.warning(
            "merge.init=%s with delta.lamda_1=%g: a merged start lies in the row space of its ancestors, "
            "so the orthogonal loss starts high (orthogonal_loss_first in the results)",
            *(wanted, run.delta.lamda_1),
        )
    return True


def pool_of(run: Run) -> dict[str, str]:
    """Task -> folder of the deltas a merge may use, without those of the tasks of this job."""
    own = {task.name for task in run.tasks}
    if run.merge.pool == "library":
        found = located(run.merge.sources)
        return {name: path for name, path in found.items() if name not in own}
    if run.merge.pool == "beam":
        return _beam(run, own)
    nodes = walk(run.init_from)
    return {n.task: str(n.folder) for n in nodes if n.kind is not None and not own & {*n.tasks}}


def _beam(run: Run, own: Set[str]) -> dict[str, str]:
    """Task and rank -> checkpoint, of the survivors of the stage before; of equal deltas the best one's.

    Those on another base model than this job's are left out: chains that begin with a training of the
    whole model have one each.
    """
    given = run.merge.sources
    if isinstance(given, (dict, str)):
        raise SettingsError(
            f"merge.sources={given}: merge.pool=beam takes a list of checkpoints, best first"
        )
    base = base_of(walk(run.init_from))
    found: dict[str, Source] = {}
    for rank, path in enumerate(given or (), start=1):
        nodes = walk(Path(path))
        last = nodes[-1]
        if last.kind is None or own & {*last.tasks}:
            continue
        if run.init_from is not None and base_of(nodes) != base:
            log.info(
                "merge.pool=beam: %s is for another base model (%s), left out", path, base_of(nodes)
            )
            continue
        one = read_source(f"{last.task}_{rank}", path)
        if all(one.identity != other.identity for other in found.values()):
            found[one.name] = one
    return {name: one.path for name, one in found.items()}


def base_model(run: Run, family: Family) -> Any:
    """The model of the chain without any delta."""
    base = base_of(walk(run.init_from))
    return (family.build() if base is None else family.load(base)).requires_grad_(False)


def merged_start(
    run: Run,
    plans: Mapping[str, TaskPlan],
    rows: Mapping[str, Rows],
    family: Family,
    model: Any,
    name: str,
    folder: Path,
) -> dict[str, Any]:
    """Make the attached delta `name` of `model` start as the merge; weights and seconds, for the results.

    An empty pool, and merge.init=random, leave it as it was drawn. Raises SettingsError, and SkippedError
    for an extra start that has nothing to merge.
    """
    settings, begun = run.merge, time.perf_counter()
    try:
        pool = pool_of(run)
    except MergeError as error:
        raise SettingsError(f"merge.pool={settings.pool}: {error}") from error
    if settings.start == "random":
        return {}
    _skip_what_is_no_merge(run, pool)
    if not pool:
        log.info(
            "merge.init=%s: no earlier delta in the pool, so it starts at random", settings.start
        )
        return {}
    try:
        plan = _plan(run, plans, rows, family, pool)
    except MergeError as error:
        raise SettingsError(f"merge.init={settings.start}: {error}") from error
    write_whole(folder / PLAN, plan.text())
    begin_as(model, name, str(folder / PLAN))
    told = ", ".join(f"{n} {w:.3f}" for n, w in plan.weights.items())
    log.info("the delta starts as a merge (%s): %s", settings.start, told)
    # Deltas of a library may be of another sweep, whose trials have numbers of their own.
    by_name = settings.pool == "library"
    by_trial = {
        one.name if by_name or one.trial is None else str(one.trial): plan.weights[one.name]
        for one in plan.sources
    }
    return {
        "merge_ess": plan.ess,
        **{f"weight_{name}": weight for name, weight in plan.weights.items()},
        "merged_from": by_trial,
        "seconds_merge": time.perf_counter() - begun,
    }


def lorahub(run: Run, begun: Mapping[str, Any], dev_losses: Sequence[float]) -> dict[str, float]:
    """LoraHub's objective of a job with merge.init=given, to be minimised; nothing of other jobs.

    dev_losses: of the job's own tasks, per token.
    """
    if run.merge.start != "given" or not begun or not dev_losses:
        return {}
    weights = [*begun["merged_from"].values()]
    return {"lorahub": lorahub_objective(sum(dev_losses) / len(dev_losses), weights)}


def _skip_what_is_no_merge(run: Run, pool: Mapping[str, str]) -> None:
    """An extra start of a sweep is there to be something else than its parents': refuse one that is not."""
    if run.merge.extra is None or len(pool) > 1 or (pool and run.merge.start == "given"):
        return
    what = f"only the delta of {', '.join(pool)}" if pool else "no delta"
    raise SkippedError(
        f"merge.init={run.merge.start}: merge.pool={run.merge.pool} has {what} at this stage, so that the start "
        f"would be {'that one' if pool else 'random'} and no merge; the parents' own starts run without it"
    )


def _plan(
    run: Run,
    plans: Mapping[str, TaskPlan],
    rows: Mapping[str, Rows],
    family: Family,
    pool: Mapping[str, str],
) -> MergePlan:
    settings = run.merge
    target = run.tasks[0].name
    method: Any = settings.start
    if len(pool) == 1 and method != "given":
        method = "average"  # of one: itself
    asked: MergeSettings = replace(
        settings, sources=dict(pool), target=target, method=method, tuned={}, plan=None
    )
    is_lora = run.delta.kind in ("olora", "inclora", "seqlora")
    if is_lora and settings.rank is None and settings.energy is None:
        asked = replace(asked, rank=run.delta.lora_dim)
    if method in ("average", "manual", "given"):
        return make_plan(asked)[0]
    scored = replace(asked, method="loss" if method == "best_single" else method)
    sources = read_all(pool, pool)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    holder = Holder(base_model(run, family), device)
    task = family.meeting(plans[target])
    found = score(task, rows[target], sources, holder, scored, None, {})
    scores = found.of(scored, sources)
    if isinstance(settings.temperature, list):
        losses = dev_losses(task, rows[target], holder, asked, scores)
        scores = replace(scores, dev_losses=losses)
    return make_plan(asked, scores)[0]
