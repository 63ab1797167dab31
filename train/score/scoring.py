"""Scores of sources on one target: batches of its dev rows, once through the model of every source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from train.config.merging import MergeSettings
from train.config.task import LossSettings
from train.data.rows import Rows
from train.data.tables import Row
from train.loop.criterion import loss_sum
from train.loop.evaluation import predict
from train.merge.blocks import blocks_of
from train.merge.plan import Scores
from train.merge.rules import MergeError
from train.merge.sources import Source
from train.model.family import Meeting
from train.score import formulas
from train.score.hidden import EMBEDDING, Stack, alike, observed, stacks
from train.score.holder import Holder

Batch = Mapping[str, torch.Tensor]
Sums = dict[str, float]
Measure = Callable[[Source], Sums]


@dataclass(frozen=True)
class Scored:
    """Scores for one target, by method and source, and what they are over."""

    by_method: Mapping[str, Mapping[str, float]]
    tokens: int = 0
    batches: int = 0
    # Of grand and hidden_cos: block -> source -> score.
    blocks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, settings: MergeSettings, sources: Sequence[Source]) -> Scores:
        """Those of the settings' method, as a plan takes them."""
        method, hashes = settings.method, {one.name: one.sha256 for one in sources}
        sign, found = formulas.SIGNS[method], self.by_method[method]
        return Scores(method, settings.reduction, sign, found, hashes, self.blocks)


def score(
    task: Meeting,
    rows: Rows,
    sources: Sequence[Source],
    holder: Holder,
    settings: MergeSettings,
    tuned_target: Source | None,
    tuned: Mapping[str, Source],
    tick: Callable[[], object] = lambda: None,
) -> Scored:
    """Scores of all methods that `settings.method` needs a pass for. Raises MergeError.

    tuned_target: the delta tuned on the target's rows from a random start, for kl, cosine and hidden_cos.
    tuned: every source after its tune pass, for euclidean and performance. tick: called after each batch of a
    source.
    """
    method = settings.method
    if method in ("kl", "cosine", "hidden_cos") and tuned_target is None:
        raise MergeError(
            f"merge.method={method} needs merge.target_tuned: a delta tuned on the target's few rows from a "
            f"random start (python train.py task={task.plan.name} trainer.max_steps=200)"
        )
    if method in ("euclidean", "performance"):
        if lacking := [one.name for one in sources if one.name not in tuned]:
            raise MergeError(
                f"merge.method={method} needs merge.tuned: every source after a tune pass on the target; it "
                f"lacks '{lacking[0]}' (python train.py task={task.plan.name} "
                f"delta.start_from={sources[0].path} trainer.max_steps=200)"
            )
        return Scored({method: _after_tuning(task, rows, sources, holder, method, tuned)})
    if method == "cosine":
        assert tuned_target is not None
        for one in sources:
            both = f"merge.target_tuned and '{one.name}'"
            _refuse_other_names(one, tuned_target, both)
            _refuse_other_shapes(one, tuned_target, both)
        found = {one.name: formulas.cosine(tuned_target.state, one.state) for one in sources}
        return Scored({"cosine": found})
    batches = _batches(task, rows.dev, settings.batch_size)[: settings.max_batches]
    of = _Measures(task, holder, settings, tuned_target)
    measure = {"hidden_cos": of.hidden, "grand": of.gradients}.get(method, of.forward)
    sums: dict[str, Sums] = {one.name: {} for one in sources}
    n_rows = tokens = 0
    with torch.inference_mode(method != "grand"):
        for number, batch in enumerate(batches):
            own = {key: value.to(holder.device) for key, value in batch.items()}
            n_rows += len(own["labels"])
            tokens += int((own["labels"] != formulas.IGNORED).sum())
            in_batch = measure(number, own)
            for one in sources:
                sums[one.name] = formulas.added([sums[one.name], in_batch(one)])
                tick()
    over = {"grand": len(batches), "hidden_cos": n_rows}.get(method, tokens)
    if settings.reduction == "sum":
        over = 1
    keys = dict.fromkeys(key for own in sums.values() for key in own)
    by_key = {key: {n: own.get(key, 0.0) / over for n, own in sums.items()} for key in keys}
    if method == "grand":
        whole = by_key.pop("all")
        return Scored({"grand": whole}, tokens, len(batches), dict(sorted(by_key.items())))
    if method == "hidden_cos":
        blocks = _named_as_in(sources[0], by_key)
        trained = [row for block, row in blocks.items() if not block.endswith(EMBEDDING)]
        mean = {name: sum(row[name] for row in trained) / len(trained) for name in sums}
        return Scored({"hidden_cos": mean}, tokens, len(batches), blocks)
    return Scored({m: by_key[m] for m in formulas.OVER_TOKENS if m in by_key}, tokens, len(batches))


def _batches(task: Meeting, rows: Sequence[Row], size: int) -> list[dict[str, torch.Tensor]]:
    """All dev rows, without what is random in training."""
    seed = task.plan.task.dataset.fixed_validation_seed or 0
    examples = [
        task.example(
            row, np.random.default_rng([seed, i]), False, f"{task.plan.name}, dev row {i + 1}"
        )
        for i, row in enumerate(rows)
    ]
    return [task.batch(examples[i : i + size]) for i in range(0, len(examples), size)]


@dataclass(frozen=True)
class _Measures:
    """What a batch shows of any source, by method; each is given the number of the batch and the batch."""

    task: Meeting
    holder: Holder
    settings: MergeSettings
    tuned_target: Source | None

    def forward(self, _: int, batch: Batch) -> Measure:
        """Sums over tokens."""

        def logits(delta: Source) -> torch.Tensor:
            return self.task.logits(self.holder.put(delta), batch)

        target = None if self.tuned_target is None else logits(self.tuned_target)
        return lambda one: formulas.token_sums(logits(one), batch["labels"], target)

    def gradients(self, number: int, batch: Batch) -> Measure:
        """Norms of the delta's gradients, with the same dropout for every source."""
        labels = batch["labels"]
        count = int((labels != formulas.IGNORED).sum())

        def norms(one: Source) -> Sums:
            model = self.holder.put(one)
            model.train(self.settings.grand_mode == "train")
            parameters = self.holder.delta()
            for p in parameters.values():
                p.requires_grad_(True)
            with torch.random.fork_rng():
                torch.manual_seed(self.settings.seed + number)
                logits = self.task.logits(model, batch)
                loss = loss_sum(logits, labels, LossSettings(), 0) / count
            found = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            pairs = zip(parameters, found, strict=True)
            return formulas.gradient_norms({n: g for n, g in pairs if g is not None})

        return norms

    def hidden(self, _: int, batch: Batch) -> Measure:
        """How alike hidden states are to those of the target-tuned model, by block, summed over rows."""

        def states(delta: Source) -> dict[str, Stack]:
            model = self.holder.put(delta)
            with observed(model) as outputs:
                self.task.logits(model, batch)
            return stacks(outputs[-1], batch)

        assert self.tuned_target is not None
        target = states(self.tuned_target)
        return lambda one: alike(target, states(one))


def _named_as_in(
    source: Source, by_block: Mapping[str, Mapping[str, float]]
) -> dict[str, Mapping[str, float]]:
    """Blocks of a model with one stack, called as the delta's tensors call them: '3' or 'encoder.3'."""
    named = {block for key in source.state for block in blocks_of(key)}
    prefix = "encoder." if any(block.startswith("encoder.") for block in named) else ""
    return {block if "." in block else f"{prefix}{block}": row for block, row in by_block.items()}


def _after_tuning(
    task: Meeting,
    rows: Rows,
    sources: Sequence[Source],
    holder: Holder,
    method: str,
    tuned: Mapping[str, Source],
) -> dict[str, float]:
    found = {}
    for one in sources:
        after = tuned[one.name]
        both = f"'{one.name}' and its tuned delta"
        _refuse_other_names(one, after, both)
        if method == "euclidean":
            _refuse_other_shapes(one, after, both)
            found[one.name] = formulas.euclidean(one.state, after.state)
            continue
        dev = [predict(holder.put(delta), task, rows, "dev").score for delta in (after, one)]
        found[one.name] = dev[0] - dev[1]
    return found


def _refuse_other_names(one: Source, other: Source, both: str) -> None:
    if different := sorted(one.state.keys() ^ other.state.keys()):
        raise MergeError(f"{both}: only one has '{different[0]}'")


def _refuse_other_shapes(one: Source, other: Source, both: str) -> None:
    for key, value in one.state.items():
        if value.shape != other.state[key].shape:
            shapes = f"{tuple(value.shape)} and {tuple(other.state[key].shape)}"
            raise MergeError(f"{both}: '{key}' has the shapes {shapes}")
