"""A plan applied: the merged delta's tensors, and its folder, which peft loads where it is peft's kind."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from train.merge import lora, rules
from train.merge.blocks import blocks_of
from train.merge.plan import PLAN, MergePlan
from train.merge.rules import MergeError, State
from train.merge.sources import CONFIG, WEIGHTS, Source, hash_of

ALIKE = 0.5  # mean cosine of the A's below which the factors of sources do not correspond


@dataclass(frozen=True)
class Merged:
    """The merged delta."""

    state: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]
    result: Mapping[str, Any]  # as MergePlan.result


def merge(plan: MergePlan, sources: Sequence[Source]) -> Merged:
    """The delta a plan describes, of its sources in its order. Raises MergeError."""
    if plan.block_weights:
        return _by_block(plan, sources)
    kept = [one for one in sources if plan.weights[one.name] != 0]
    weights = [plan.weights[one.name] for one in kept]
    if not kept:
        raise MergeError("all weights of the plan are 0: there is nothing to merge")
    if weights == [1]:
        same = {key: value.clone() for key, value in kept[0].state.items()}
        return Merged(same, kept[0].config, _result(same, kept[0].rank, {}))
    own = [w * plan.parameters.get("scale", 1) for w in weights]
    if kept[0].kind == "lora":
        return _lora(plan, kept, own)
    states = [one.state for one in kept]
    rules.refuse_different(states, [one.name for one in kept])
    if plan.rule == "linear":
        state: State = rules.linear(states, own)
    else:
        # IA3 multiplies, and begins with ones; what else is added begins, by default, with nothing.
        start = 1.0 if kept[0].kind == "ia3" else 0.0
        taus = [{k: v.double() - start for k, v in one.items()} for one in states]
        made = _by_entry(plan, kept, own, taus)
        state = {k: (v + start).to(states[0][k].dtype) for k, v in made.items()}
    return Merged(state, kept[0].config, _result(state, None, {}))


def _by_block(plan: MergePlan, sources: Sequence[Source]) -> Merged:
    """Every block with weights of its own merged by them, all other tensors by the plan's weights."""
    groups: dict[str, list[str]] = {}
    for key in sources[0].state:
        own = [block for block in blocks_of(key) if block in plan.block_weights]
        groups.setdefault(own[-1] if own else "", []).append(key)
    for one in sources[1:]:
        if different := sorted(one.state.keys() ^ sources[0].state.keys()):
            raise MergeError(f"'{sources[0].name}' and '{one.name}': only one has '{different[0]}'")
    parts = []
    for block, keys in groups.items():
        weights = plan.block_weights.get(block, plan.weights)
        some = [replace(one, state={k: one.state[k] for k in keys}) for one in sources]
        parts.append(merge(replace(plan, block_weights={}, weights=weights), some))
    if sources[0].kind != "lora":
        state = {key: value for part in parts for key, value in part.state.items()}
        return Merged(state, sources[0].config, _result(state, None, {}))
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    errors: dict[str, float] = {}
    for part in parts:
        scaling = part.config["lora_alpha"] / part.config["r"]  # that of a lone source stays
        made = lora.lora_of(part.state, scaling)
        modules |= {m: (a, b * scaling) for m, (a, b) in made.modules.items()}
        errors |= part.result["errors"]
    whole = lora.filled(modules, lora.rank_of(modules))
    return _folder_of(lora.MergedLoRA(whole, errors), sources[0])


def _by_entry(
    plan: MergePlan, sources: Sequence[Source], weights: Sequence[float], taus: Sequence[State]
) -> State:
    """The rules on task vectors."""
    options = plan.parameters
    if plan.rule == "task_arithmetic":
        return rules.linear(taus, weights)
    if plan.rule == "magnitude_prune":
        return rules.magnitude_prune(taus, weights, options["density"])
    if plan.rule == "ties":
        return rules.ties(taus, weights, options["density"], options["majority"])
    if plan.rule in ("dare_linear", "dare_ties"):
        # By what a source is, not by its place: sources in another order lose the same entries.
        seeds = [(plan.seed << 32) ^ int(one.sha256[:8], 16) for one in sources]
        masks = [
            rules.keep_mask(tau, options["density"], seed)
            for tau, seed in zip(taus, seeds, strict=True)
        ]
        return rules.dare(taus, weights, options["density"], masks, options.get("majority"))
    if plan.rule == "slerp":
        return rules.slerp(taus, rules.shares_to_steps(weights))
    assert plan.rule == "model_stock", plan.rule
    return rules.model_stock(taus, options["clamp"])


def _lora(plan: MergePlan, sources: Sequence[Source], weights: Sequence[float]) -> Merged:
    factors = []
    for one in sources:
        try:
            factors.append(lora.lora_of(one.state, one.scaling))
        except MergeError as error:
            raise MergeError(f"source '{one.name}': {error}") from error
    lora.refuse_shapes(factors)
    options = plan.parameters
    if plan.rule == "factor":
        refuse_ranks(sources)
        rules.refuse_different([one.state for one in sources], [one.name for one in sources])
        warn_of_other_starts(sources, factors)
        made = lora.factor(factors, weights)
    elif plan.rule == "cat":
        made = lora.cat(factors, weights)
    elif plan.rule in ("svd", "task_arithmetic"):
        made = lora.svd(factors, weights, options["rank"], options["energy"])
    else:
        made = lora.dense(
            factors, lambda taus: _by_entry(plan, sources, weights, taus), options["rank"]
        )
    return _folder_of(made, sources[0])


def _folder_of(made: lora.MergedLoRA, like: Source) -> Merged:
    """A merged LoRA as peft's folder has it."""
    state, rank = lora.state_of(made.modules), lora.rank_of(made.modules)
    names = [module.removeprefix("base_model.model.") for module in made.modules]
    config = dict(like.config) | {
        "r": rank,
        "lora_alpha": rank,  # scaling 1
        "target_modules": sorted(names),
        "base_model_name_or_path": like.base,
        "inference_mode": True,
    }
    return Merged(state, config, _result(state, rank, made.errors))


def refuse_ranks(sources: Sequence[Source]) -> None:
    """Raises MergeError where ranks or alphas differ under a rule that adds factors."""
    first = sources[0]
    for one in sources[1:]:
        if (one.rank, one.alpha) != (first.rank, first.alpha):
            raise MergeError(
                f"merge.rule=factor needs equal ranks and alphas: '{first.name}' has r={first.rank}, "
                f"alpha={first.alpha:g}, '{one.name}' has r={one.rank}, alpha={one.alpha:g}. svd and cat "
                "take any"
            )


def warn_of_other_starts(sources: Sequence[Source], factors: Sequence[lora.LoRA]) -> None:
    """Warn where the sources' A have little in common: their factors were drawn by different seeds."""
    first = torch.cat([a.flatten().double() for a, _ in factors[0].modules.values()])
    for source, other in zip(sources[1:], factors[1:], strict=True):
        vector = torch.cat([other.modules[m][0].flatten().double() for m in factors[0].modules])
        cosine = float(torch.nn.functional.cosine_similarity(first, vector, dim=0))
        if cosine < ALIKE:
            warnings.warn(
                f"merge.rule=factor: the A of '{sources[0].name}' and '{source.name}' have a cosine of "
                f"{cosine:.2f}: they began differently, and their factors do not correspond. svd adds what "
                "they do",
                stacklevel=3,
            )
            return


def _result(state: State, rank: int | None, errors: Mapping[str, float]) -> dict[str, Any]:
    # Rounded: what is below differs between machines.
    told = {module: float(f"{error:.6g}") for module, error in errors.items()}
    return {"rank": rank, "errors": told, "sha256": hash_of(state)}


def write_merged(merged: Merged, plan: MergePlan, folder: Path) -> MergePlan:
    """Put the delta and its plan into `folder`, whole, in the place of an earlier merge.

    Raises MergeError where something else lies there.
    """
    from safetensors.torch import save_file

    if folder.exists() and any(folder.iterdir()) and not (folder / PLAN).is_file():
        raise MergeError(f"{folder} holds something that is no merge; give a new folder")
    done = replace(plan, result=dict(merged.result))
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    contiguous = {key: value.contiguous() for key, value in sorted(merged.state.items())}
    save_file(contiguous, aside / WEIGHTS, {"format": "pt"})
    if merged.config:
        told = json.dumps(dict(merged.config), indent=2, sort_keys=True)
        (aside / CONFIG).write_text(told + "\n")
    (aside / PLAN).write_text(done.text())
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
    return done
