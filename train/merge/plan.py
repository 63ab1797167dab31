"""The MergePlan: one JSON file that says what is merged, with which weights, by which rule, and why.

The same inputs give the same bytes: there is no time in it. Applying one needs no scoring.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.config.merging import MergeSettings
from train.config.typed import build, option
from train.merge import weights as weighing
from train.merge.blocks import blocks_of
from train.merge.rules import MergeError, refuse_weights
from train.merge.sources import Source, SourceRecord, located, read_all

PLAN = "merge_plan.json"
VERSION = 1
LIBRARIES = ("numpy", "peft", "safetensors", "torch")


@dataclass(frozen=True)
class MergePlan:
    """What a merge does; `result` is null until it was applied."""

    version: int = option(help="of this format")
    target: str | None = option(help="the task the merge is for")
    excluded: list[str] = option(help="sources left out: the target's own")
    sources: list[SourceRecord] = option(help="in order")
    method: str = option(help="how the weights were found")
    weights: dict[str, float] = option(help="task: weight")
    ess: float = option(help="effective number of sources")
    rule: str = option(help="how tensors are merged")
    parameters: dict[str, Any] = option(help="of the rule")
    seed: int = option(help="of what the rule drops")
    reduction: str | None = option(None, "of the scores")
    sign: int | None = option(None, "how a score enters the softmax")
    temperature: float | None = option(None, "of the softmax")
    target_ess: float | None = option(None, "what the temperature was solved for")
    scores: dict[str, float] | None = option(None, "task: score")
    dev_losses: dict[str, float] = option(
        {}, "temperature: loss of its merge on dev, where that chose it"
    )
    block_weights: dict[str, dict[str, float]] = option(
        {}, "block: task: weight, of the blocks that have their own"
    )
    block_scores: dict[str, dict[str, float]] = option({}, "of these blocks")
    merged_of: str = option("sources", "sources, or tuned: those after the tune pass")
    result: dict[str, Any] | None = option(None, "rank, relative error per module, sha256")
    libraries: dict[str, str] = option({}, "name: version")

    def text(self) -> str:
        """The JSON text; equal plans have equal bytes."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Scores:
    """Scores of sources for one target, as a scoring run wrote them."""

    method: str
    reduction: str
    sign: int
    by_source: Mapping[str, float]
    hashes: Mapping[str, str]  # source -> sha256 it was scored with
    # Block -> source -> score; temperature -> loss of its merge on dev.
    blocks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    dev_losses: Mapping[float, float] = field(default_factory=dict)


# Rules on task vectors, with the settings that are their parameters.
ON_VECTORS: Mapping[str, tuple[str, ...]] = {
    "task_arithmetic": (),
    "magnitude_prune": ("density",),
    "ties": ("density", "majority"),
    "dare_linear": ("density",),
    "dare_ties": ("density", "majority"),
    "slerp": (),
    "model_stock": ("clamp",),
}
WITH_BLOCKS = ("grand", "hidden_cos")  # methods that score single blocks


def make_plan(
    settings: MergeSettings, scores: Scores | None = None
) -> tuple[MergePlan, list[Source]]:
    """The plan that the settings describe, and its sources. Raises MergeError."""
    given = located(settings.tuned if settings.method == "performance" else settings.sources)
    target = settings.target
    names = [name for name in given if name != target]
    if not names:
        raise MergeError(
            f"merge.sources has no delta but that of the target '{target}', which never takes part: "
            "there is nothing to merge"
        )
    sources = read_all(given, names)
    if target in given:
        _refuse_copies(target, given[target], sources)
    found, more = _weights(settings, sources, scores)
    rule, parameters = rule_of(settings, sources[0].kind)
    if rule in ("ties", "dare_ties") and settings.method != "given":
        # TIES divides by the number of sources that agree; shares of 1 would be divided twice.
        parameters["scale"] = len([w for w in found.values() if w != 0])
    plan = MergePlan(
        version=VERSION,
        target=target,
        excluded=[name for name in given if name == target],
        sources=[one.record for one in sources],
        method=settings.method,
        weights=found,
        ess=weighing.ess([*found.values()]),
        rule=rule,
        parameters=parameters,
        seed=settings.seed,
        libraries={name: version(name) for name in LIBRARIES},
        **more,
    )
    check_plan(plan)
    return plan, sources


def _refuse_copies(target: str, path: str, sources: Sequence[Source]) -> None:
    """The target's own delta must not come in again under another name."""
    own = Path(path).resolve()
    for one in sources:
        if Path(one.path).resolve() == own:
            raise MergeError(
                f"source '{one.name}' is {one.path}, which is the delta of the target '{target}' itself: "
                "it never takes part"
            )


def _weights(
    settings: MergeSettings, sources: Sequence[Source], scores: Scores | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Weights by name, and what the plan remembers of how they were found."""
    method, names = settings.method, [one.name for one in sources]
    if settings.blocks is not None and method not in WITH_BLOCKS:
        raise MergeError(
            f"merge.blocks={settings.blocks}: merge.method={method} has no scores of single blocks; "
            f"{' and '.join(WITH_BLOCKS)} have"
        )
    if method == "average":
        return weighing.average(names), {}
    if method == "manual":
        if settings.target is None:
            raise MergeError("merge.method=manual needs merge.target: its group is averaged")
        return weighing.manual(names, settings.target, settings.groups), {}
    if method == "given":
        if different := sorted(set(names) ^ settings.weights.keys()):
            raise MergeError(
                f"merge.weights has {', '.join(settings.weights) or 'nothing'}, the sources are "
                f"{', '.join(names)}: '{different[0]}' is in one of them only"
            )
        refuse_weights([*settings.weights.values()])
        return {name: settings.weights[name] for name in names}, {}
    if scores is None:
        raise MergeError(
            f"merge.method={method} needs scores: run `python -m train.transfer score` and give its "
            "result.json as merge.scores"
        )
    if method not in (scores.method, "best_single"):
        raise MergeError(
            f"merge.method={method}, but merge.scores={settings.scores} has {scores.method}"
        )
    if lacking := [name for name in names if name not in scores.by_source]:
        raise MergeError(
            f"merge.scores={settings.scores} has no score of source '{lacking[0]}' for the target "
            f"'{settings.target}'"
        )
    for one in sources:
        if scores.hashes.get(one.name, one.sha256) != one.sha256 and method != "performance":
            raise MergeError(
                f"source '{one.name}' ({one.path}) is not the delta that merge.scores={settings.scores} "
                "scored: score again"
            )
    own = {name: scores.by_source[name] for name in names}
    told: dict[str, Any] = {"scores": own, "sign": scores.sign, "reduction": scores.reduction}
    if method == "best_single":
        return weighing.best_single(own, scores.sign), told
    weighing.refuse_scores(own)
    temperature = None if settings.temperature is None else _chosen(settings, scores, told)
    if settings.target_ess is not None:
        temperature = weighing.temperature_for(own, scores.sign, settings.target_ess)
    elif temperature is None:
        raise MergeError(
            f"merge.method={method}: a temperature has to be given, in the unit of the score "
            f"({scores.reduction}): merge.temperature=0.1, or merge.target_ess=2.5, which finds it"
        )
    told |= {"temperature": temperature, "target_ess": settings.target_ess}
    told["merged_of"] = "tuned" if method == "performance" else "sources"
    if settings.blocks is not None:
        told |= _of_blocks(settings, sources, scores, temperature)
    return weighing.softmax(own, scores.sign, temperature), told


def _chosen(settings: MergeSettings, scores: Scores, told: dict[str, Any]) -> float:
    """The temperature; of several the one with the lowest loss on dev, which `told` then has."""
    if not isinstance(settings.temperature, list):
        return settings.temperatures[0]
    losses = scores.dev_losses
    if lacking := [t for t in settings.temperature if t not in losses]:
        raise MergeError(
            f"merge.temperature={settings.temperature}: merge.scores={settings.scores} has no dev loss of "
            f"{lacking[0]:g}: run `python -m train.transfer score` with the same merge.temperature"
        )
    told["dev_losses"] = {str(t): losses[t] for t in settings.temperature}
    return min(settings.temperature, key=lambda t: losses[t])


def _of_blocks(
    settings: MergeSettings, sources: Sequence[Source], scores: Scores, temperature: float
) -> dict[str, Any]:
    """Weights of the blocks in `merge.blocks`, by their own scores."""
    there = {block for key in sources[0].state for block in blocks_of(key)}
    known = sorted(there & scores.blocks.keys())
    if isinstance(settings.blocks, list):
        wanted = settings.blocks
    else:
        # Sub-layers of a block, 'encoder.0.1', have one number more.
        depth = min((block.count(".") for block in known), default=0)
        wanted = [block for block in known if block.count(".") == depth]
    if missing := [one for one in wanted if one not in known]:
        raise MergeError(
            f"merge.blocks={wanted}: '{missing[0]}' is no block of these deltas that "
            f"{scores.method} has scores of; there are {', '.join(known) or 'none'}"
        )
    if not wanted:
        raise MergeError(
            f"merge.blocks={settings.blocks}: no tensor of these deltas ({sources[0].kind}) lies in a block; "
            "lora, ia3 and adapter have such"
        )
    weights, found = {}, {}
    for block in wanted:
        own = {one.name: scores.blocks[block][one.name] for one in sources}
        t = temperature
        if settings.target_ess is not None:
            t = weighing.temperature_for(own, scores.sign, settings.target_ess)
        weights[block], found[block] = weighing.softmax(own, scores.sign, t), own
    return {"block_weights": weights, "block_scores": found}


def rule_of(settings: MergeSettings, kind: str) -> tuple[str, dict[str, Any]]:
    """The rule for deltas of this kind, with its parameters. Raises MergeError."""
    known = [*(("svd", "factor", "cat") if kind == "lora" else ("linear",)), *ON_VECTORS]
    rule = settings.rule or known[0]
    if rule not in known:
        why = (
            "the average of LoRA's factors is rule=factor, and its delta weights are added by svd or cat"
            if kind == "lora"
            else "it is for LoRA"
        )
        raise MergeError(f"merge.rule={rule}: not for deltas of kind {kind}: {why}")
    own = ON_VECTORS.get(rule, ())
    if kind == "lora" and rule not in ("factor", "cat"):
        own = (*own, "rank", *(("energy",) if rule in ("svd", "task_arithmetic") else ()))
    return rule, {name: getattr(settings, name) for name in own}


def check_plan(plan: MergePlan) -> None:
    """Refuse a plan that contradicts itself. Raises MergeError, which names both sides."""
    names = [one.name for one in plan.sources]
    if plan.version != VERSION:
        raise MergeError(f"version {plan.version} of a merge plan; this program reads {VERSION}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise MergeError(f"source '{twice[0]}' stands twice in the plan")
    if plan.target in names:
        raise MergeError(f"the target '{plan.target}' is among the sources {', '.join(names)}")
    by_block = {f"block_weights.{block}": own for block, own in plan.block_weights.items()}
    for key, weights in {"weights": plan.weights, **by_block}.items():
        if different := sorted(set(names) ^ weights.keys()):
            raise MergeError(f"'{different[0]}' is in only one of the plan's sources and {key}")
        refuse_weights([*weights.values()])
    if plan.scores:
        weighing.refuse_scores(plan.scores)


def read_plan(path: str | Path) -> MergePlan:
    """The plan in a file. Raises MergeError."""
    try:
        values = json.loads(Path(path).read_text())
        plan = build(MergePlan, values, "plan")
    except (OSError, ValueError) as error:
        raise MergeError(f"merge.plan={path} cannot be read: {error}") from error
    check_plan(plan)
    return plan


def reread_sources(plan: MergePlan) -> list[Source]:
    """The sources of a plan, as they were when it was made. Raises MergeError where one has changed."""
    sources = read_all({one.name: one.path for one in plan.sources}, plan.weights)
    by_name = {one.name: one for one in sources}
    for record in plan.sources:
        now = asdict(by_name[record.name].record)
        if changed := {k: v for k, v in asdict(record).items() if now[k] != v}:
            told = ", ".join(f"{k}={v}, now {now[k]}" for k, v in changed.items())
            raise MergeError(
                f"source '{record.name}' ({record.path}) is not what the plan has: {told}"
            )
    return [by_name[record.name] for record in plan.sources]


def write_whole(path: Path, text: str) -> None:
    """Write beside `path` and rename: another process never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
