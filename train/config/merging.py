"""The section `merge`: which deltas are merged, with which weights, by which rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from train.config.typed import SHARE, SettingsError, changed, option

Unscored = Literal["average", "manual", "best_single", "given"]
Method = Literal[
    Unscored,
    "loss", "kl", "el2n", "logits_labels_cos", "grand", "hidden_cos", "cosine", "euclidean", "performance",
]  # fmt: skip
Init = Literal["last", "random", Unscored, "loss", "el2n", "logits_labels_cos", "grand"]
Rule = Literal[
    "linear", "factor", "cat", "svd", "task_arithmetic", "magnitude_prune", "ties", "dare_linear",
    "dare_ties", "slerp", "model_stock",
]  # fmt: skip


@dataclass(frozen=True)
class MergeSettings:
    """Deltas of several tasks as one: sources, weights, the rule, and jobs that start from a merge."""

    init: Init | list[Init] | None = option(
        None,
        "what the delta of a job starts as: last (the parent's), random, or a merge of merge.pool by "
        "average, manual, best_single, given or a score; null: as the method in delta has it; a list: one "
        "for each of merge.extra_parents",
    )
    extra_parents: int = option(
        0,
        "of a sweep: so many starts by merge.init run with every suggestion beside the parents' own, which "
        "begin as the method in delta has it",
        least=0,
    )
    extra: int | None = option(
        None, "which of the extra parents a job starts from, from 1; a sweep hands it over", least=1
    )
    pool: Literal["lineage", "beam", "library"] = option(
        "lineage",
        "of merge.init: deltas of the chain's earlier tasks; the last ones of the chains in merge.sources, "
        "which a sweep hands over (hydra.sweeper.handover.merge.sources=sources); or those in merge.sources",
    )

    target: str | None = option(None, "the task the merge is for; its own delta never takes part")
    sources: dict[str, str] | list[str] | str | None = option(
        None,
        "deltas: task: folder; or folders, named by their task; or one folder that holds such folders",
    )
    method: Method = option(
        "average",
        "how weights are found: average, manual (the target's group), best_single, given, or the "
        "method of the scores in merge.scores",
    )
    groups: dict[str, list[str]] = option({}, "of manual: name of a group: its tasks")
    weights: dict[str, float] = option({}, "of given: task: weight; any finite numbers")
    scores: str | None = option(None, "of a scoring method: the result.json of a scoring run")
    reduction: Literal["mean", "sum"] = option(
        "mean", "of a score over tokens, or over batches for grand; the temperature has its unit"
    )
    target_tuned: str | dict[str, str] | None = option(
        None,
        "of kl, hidden_cos and cosine: a delta tuned on the target's few rows; several targets: by task",
    )
    tuned: dict[str, str] = option(
        {}, "of euclidean and performance: source: its delta after a tune pass on the target"
    )
    batch_size: int = option(50, "of scoring", unit="rows", least=1)
    max_batches: int | None = option(None, "of scoring; null: all dev rows", least=1)
    grand_mode: Literal["train", "eval"] = option("train", "of grand: with dropout or without")
    full_diagonal: bool = option(False, "score a target's own source as well; it is never merged")
    temperature: float | list[float] | None = option(
        None,
        "of the softmax over the scores, in their unit; a list: the one whose merge has the lowest loss on "
        "the target's dev rows",
        unit="of the score",
    )
    target_ess: float | None = option(
        None, "instead of a temperature: the effective number of sources it should give", least=1
    )
    blocks: Literal["all"] | list[str] | None = option(
        None,
        "of grand and hidden_cos: these blocks, such as encoder.0, or all, get weights by their own scores; "
        "null: all tensors have the same weights",
    )
    rule: Rule | None = option(None, "how tensors are merged; null: svd of LoRA, linear of others")
    rank: int | None = option(
        None, "of the merged LoRA; null: the largest of the sources'", least=1
    )
    energy: float | None = option(
        None,
        "of svd, instead of a rank: the share of squared singular values each module keeps",
        **SHARE,
    )
    density: float = option(1.0, "of pruning rules: the share of entries that is kept", **SHARE)
    majority: Literal["total", "frequency"] = option(
        "total", "of ties: what elects an entry's sign"
    )
    clamp: bool = option(True, "of model_stock: keep its t within [0, 1]")
    seed: int = option(0, "of the entries dare_linear and dare_ties drop", least=0)
    plan: str | None = option(
        None, "a merge_plan.json to apply or to inspect; it says all the above"
    )
    out: str | None = option(
        None, "folder of the merged delta; null: merged/ in Hydra's output folder"
    )

    def __post_init__(self) -> None:
        if not all(t > 0 and math.isfinite(t) for t in self.temperatures):
            raise SettingsError(
                f"merge.temperature={self.temperature}: must be a finite number above 0"
            )
        if self.temperature == []:
            raise SettingsError("merge.temperature=[]: must name one temperature at least")
        for key, found in (("target_ess", "temperature"), ("energy", "rank")):
            value, other = getattr(self, key), getattr(self, found)
            if value is not None and other is not None:
                told = f"merge.{key}={value}: it finds the {found} itself; remove"
                raise SettingsError(f"{told} merge.{found}={other}, or this")

    @property
    def temperatures(self) -> list[float]:
        """All that `temperature` names."""
        if isinstance(self.temperature, list):
            return self.temperature
        return [] if self.temperature is None else [self.temperature]

    @property
    def inits(self) -> list[Init]:
        """All that `init` names."""
        if isinstance(self.init, list):
            return self.init
        return [] if self.init is None else [self.init]

    @property
    def start(self) -> Init | None:
        """What the delta of this very job starts as."""
        if not self.extra_parents:
            return self.inits[0] if self.inits else None
        return None if self.extra is None else self.inits[self.extra - 1]

    def refuse_for_a_job(self, delta: str, start_from: str | None, has_parent: bool) -> None:
        """Refuse what has no effect on, or contradicts, a job with delta `delta._name`.

        Raises SettingsError.
        """
        m, inits = self.extra_parents, self.inits
        if m != len(inits) and (m or isinstance(self.init, list)):
            raise SettingsError(
                f"merge.extra_parents={m}: merge.init={self.init} says what {len(inits)} of them start as; "
                "it must name as many, for instance merge.extra_parents=2 merge.init=[average,loss]"
            )
        if self.extra is not None and self.extra > m:
            raise SettingsError(
                f"merge.extra={self.extra}: there are merge.extra_parents={m} in all; a sweep sets both"
            )
        if self.pool == "beam" and has_parent and self.sources is None:
            raise SettingsError(
                "merge.pool=beam: merge.sources has the checkpoints of the beam, and it is null; a sweep "
                "gives them with +hydra.sweeper.handover.merge.sources=sources"
            )
        wanted: list[Init | None] = [*inits]
        for one in wanted or [None]:
            self._refuse_start(one, delta, start_from)

    def _refuse_start(self, wanted: Init | None, delta: str, start_from: str | None) -> None:
        if wanted is None:
            for key, value in changed(self).items():
                raise SettingsError(
                    f"merge.{key}={value}: has no effect on a job without merge.init; "
                    "deltas are merged by python -m train.transfer"
                )
            return
        if wanted != "last" and delta in ("seqft", "ewc"):
            raise SettingsError(
                f"merge.init={wanted}: delta._name={delta} goes on from its parent; take olora, inclora, "
                "seqlora, ia3, adapter or prefix"
            )
        if wanted != "last" and start_from is not None:
            raise SettingsError(
                f"merge.init={wanted}: delta.start_from={start_from} says the start as well; remove one of "
                "them"
            )
        if wanted == "manual" and self.pool == "beam":
            raise SettingsError(
                "merge.init=manual: merge.groups are of tasks, and the deltas of merge.pool=beam are all of one "
                "task; take average or a score, or merge.pool=lineage"
            )
        scored = wanted not in ("last", "random", *get_args(Unscored))
        if scored and self.temperature is None and self.target_ess is None:
            raise SettingsError(
                f"merge.init={wanted}: a temperature has to be given, in the unit of the score: "
                "merge.temperature=0.1, or merge.target_ess=2.5, which finds it"
            )
