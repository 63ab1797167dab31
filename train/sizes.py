"""`memory.mode=sizes`: which batches a run has and what each needs, found without training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from train.config.sections import Run
from train.data.rows import Rows
from train.delta.delta import Delta
from train.loop.batches import Training, Updates
from train.loop.criterion import sample_size, task_loss
from train.loop.evaluation import Part, in_batches
from train.memory.features import Shape
from train.memory.meter import meter_of
from train.memory.sizes import TABLE, DryRun, Sizes, largest_of, shape_seen, to_measure
from train.memory.static import OTHER_STATES, STATE_BYTES
from train.model.family import Meeting, moved

log = logging.getLogger(__name__)

AT_ONCE = 64  # rows that are put together while the longest row is sought


def dry_run(
    run: Run,
    model: torch.nn.Module,
    delta: Delta,
    trained: Sequence[Training],
    replayed: Sequence[Training],
    evaluated: Mapping[str, tuple[Meeting, Rows]],
    folder: Path,
) -> dict[str, float]:
    """Write sizes and plans of all batches of `run` into `folder`; the numbers of the job.

    evaluated: tasks whose dev and, if wanted, test are scored. Raises InfeasibleBudgetError, SettingsError.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    epochs = run.trainer.get("num_train_epochs", 3.0)
    limit = run.trainer.get("max_steps", -1)
    updates = Updates(trained, 0, 1, epochs, limit, replayed)
    memory = run.memory

    def step(micro: Mapping[str, Any]) -> None:
        task, batch = updates.tasks[micro["task"]].task, moved(micro["batch"], device)
        with precision(run, device):
            loss, _ = task_loss(task, model, batch, 1)
        settings = task.plan.loss
        loss = loss / max(1, sample_size(batch["labels"], settings, 1)) + delta.penalty().weighted
        torch.autograd.backward(loss)

    dry = DryRun(
        *(memory, model, meter_of(device), step),
        STATE_BYTES.get(str(run.trainer.get("optim", "adamw_torch")), OTHER_STATES),
        accumulates=any(len(one.micro_batches) > 1 for one in islice(updates.plan(), 8)),
    )

    def seen(task: Meeting, batch: Mapping[str, torch.Tensor]) -> Shape:
        return shape_seen(model, lambda: task.logits(model, batch), dry.blocks.has_decoder)

    batches: dict[Shape, Any] = {}
    firsts: dict[Shape, int] = {}
    order: list[Shape] = []
    is_bound = False
    for number, micros in enumerate(updates, start=1):
        for micro in micros:
            shape = seen(updates.tasks[micro["task"]].task, micro["batch"])
            batches.setdefault(shape, micro)
            firsts.setdefault(shape, number)
            order.append(shape)
        if len(order) >= memory.sizes_steps and number < updates.total:
            is_bound = True
            break
    dry.collect(batches)
    bounds = [*batches, *(_longest(task, seen) for task in updates.tasks if is_bound)]
    longest = max(one.length for one in bounds)
    if len(set(dry.blocks.kinds)) > 1:  # a first value, which peaks under plans have to correct
        for shape in to_measure([*batches], memory.collect_steps):
            dry.correct(shape, batches[shape], longest)
    most = max(batches, key=dry.kept_all)
    measured = dry.correct(most, batches[most], longest)
    for _ in range(len(batches)):  # corrected, another one may be the largest
        before, most = most, max(batches, key=dry.kept_all)
        if most == before:
            break
        measured = dry.correct(most, batches[most], longest)
    model.zero_grad(set_to_none=True)
    counts = Counter(order)
    planned = {s: dry.plan(s, longest, counts[s], firsts[s]) for s in batches}
    largest = dry.plan(largest_of(bounds), longest, 0, 0) if is_bound else planned[most]
    places = {shape: i for i, shape in enumerate(planned)}
    made = Sizes(
        sizes=tuple(planned.values()),
        order=tuple(places[shape] for shape in order),
        largest=largest,
        is_bound=is_bound,
        measured_shape=most,
        measured=measured,
        evaluation=dict(_evaluation(run, model, evaluated, seen, device)),
        static=dry.static,
        steps=dry.planner.steps,
        blocks=len(dry.blocks.layers),
    )
    made.write(folder, memory)
    log.info("sizes of %d micro-batches, also in %s:\n%s", len(order), TABLE, made.table(memory))
    if memory.on_infeasible == "raise":
        made.refuse_unfit(memory)
    return made.numbers()


def precision(run: Run, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast as trainer.bf16 and fp16 say."""
    kind = torch.float16 if run.trainer.get("fp16") else torch.bfloat16
    asked = bool(run.trainer.get("fp16") or run.trainer.get("bf16"))
    return torch.autocast(device.type, kind, enabled=asked)


def _longest(training: Training, seen: Any) -> Shape:
    """A micro-batch of the longest source and the longest target of a task's first epoch."""
    n, shapes = len(training.rows.train(0)), []
    for start in range(0, n, AT_ONCE):
        examples = [training.example(0, i) for i in range(start, min(start + AT_ONCE, n))]
        shape = seen(training.task, training.task.batch(examples))
        per_row = shape.rows // len(examples)  # choices
        shapes.append(Shape(training.micro_batch_size * per_row, shape.length, shape.target))
    return largest_of(shapes)


def _evaluation(
    run: Run,
    model: torch.nn.Module,
    evaluated: Mapping[str, tuple[Meeting, Rows]],
    seen: Any,
    device: torch.device,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Of every part that is scored, the batch with the most tokens, and what a pass over it takes."""
    parts: list[Part] = ["dev", *(["test"] if run.evaluate_test and run.extras.do_test else [])]  # type: ignore[list-item]
    model.eval()
    with torch.inference_mode():
        for name, (task, rows) in evaluated.items():
            for part in parts:
                batches = (task.batch(examples) for _, examples in in_batches(task, rows, part))
                sized = [(seen(task, batch), batch) for batch in batches]
                if not sized:
                    continue
                shape, batch = max(sized, key=lambda s: s[0].rows * (s[0].length + s[0].target))
                meter = meter_of(device)
                before = meter.start()
                with precision(run, device):
                    task.logits(model, moved(batch, device))
                took = meter.read()[0] - before
                numbers = {"rows": shape.rows, "length": shape.length, "bytes": took}
                yield f"{name} {part}", numbers
    model.train()
