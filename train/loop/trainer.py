"""The Hugging Face Trainer, taking an update from several tasks, with the penalty of a delta."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from train.config.sections import Run, TrainerExtras
from train.config.text_data import FEW_SHOT
from train.config.typed import SettingsError
from train.delta.delta import Delta, Penalty
from train.loop import ranks
from train.loop.batches import Training, Updates, ends_of_epochs
from train.loop.callbacks import Intervals, LogLines, Patience
from train.loop.criterion import n_right, sample_size, task_loss
from train.model.family import moved

log = logging.getLogger(__name__)

LEAST_LOSS = 1e-7  # nats; below it few-shot training has nothing left to learn


class Diverged(RuntimeError):
    """The training loss is not a finite number."""


@dataclass(frozen=True)
class TrainingReport:
    """The numbers a training ends with."""

    steps: int
    train_loss: float  # cross entropy alone, mean over the updates
    delta: dict[str, float]  # the delta's own numbers, at the end


Losses = tuple[torch.Tensor, ...]  # of one update: the tasks', then the penalty's parts


def table(updates: Sequence[Losses]) -> torch.Tensor:
    """Updates x losses, the mean over processes; a collective."""
    columns = [torch.stack(column) for column in zip(*updates, strict=True)]
    together = torch.stack([column.to(columns[0]) for column in columns], dim=1)
    return ranks.total(together) / ranks.size()


@dataclass
class Sums:
    """What several updates of one task sum up to, in this process."""

    loss: torch.Tensor | float = 0.0
    counted: int = 0
    right: int = 0


class UpdateTrainer(Trainer):
    """An item of its loader is one update: micro-batches of all tasks, in order.

    The loss of an update is the sum over all its micro-batches, processes included, divided by all
    that was summed over; the penalty of the delta is added to it once.
    """

    def __init__(
        self,
        updates: Updates,
        delta: Delta,
        validate: Callable[[int], dict[str, float]],
        save: Callable[[str], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._to_train()
        self.updates, self.delta = updates, delta
        self.validate, self.save_as = validate, save
        self.min_loss_scale = 0.0
        self.ties_improve = False  # and nothing improves behind a training loss of next to 0
        self.validated = 0  # updates before the last validation
        self.learned = True  # whether there was anything left to learn before it
        self.losses: list[Losses] = []  # per update
        self.parts: list[str] = []  # names of the latter
        self.by_task = [Sums() for _ in updates.tasks]  # since the last log
        self.logged = 0
        self.best: dict[str, torch.Tensor] | None = None

    def _to_train(self) -> None:
        """Once, and after every validation: in every step it would take as long as a layer."""
        assert self.model is not None
        self.model.train()

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        datasets = [t.task.plan.task.dataset for t in self.updates.tasks]
        reading: dict[str, Any] = {}
        if workers := max(d.num_workers for d in datasets):
            ahead = max(d.prefetch_factor for d in datasets)
            reading = {"num_workers": workers, "prefetch_factor": ahead}
        return torch.utils.data.DataLoader(
            self.updates, batch_size=None, pin_memory=self.args.dataloader_pin_memory, **reading
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # transformers' polynomial decay divides by the number of updates after the warm-up.
        warmup = self.args.get_warmup_steps(num_training_steps)
        if warmup >= num_training_steps:
            self.args.warmup_steps = warmup  # no longer a share, of a number that is not theirs
            num_training_steps = warmup + 1
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Any,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of all micro-batches of an update; the loss without the penalty.

        Gradients are added up over micro-batches, then over processes: each weighs what it counts.
        """
        schedule_free = getattr(self.optimizer, "train", None)
        if callable(schedule_free):
            schedule_free()
        update = self.state.global_step + 1
        tasks = [t.task for t in self.updates.tasks]
        counted = [
            sample_size(micro["batch"]["labels"], tasks[micro["task"]].plan.loss, update)
            if micro["batch"]
            else 0
            for micro in inputs
        ]
        total = ranks.count(sum(counted))
        mean = torch.zeros((), device=self.args.device)
        penalty: Penalty | None = None
        # Gradients of all processes are added up below, at once and whatever each of them used.
        with self.accelerator.no_sync(model):
            for micro, n in zip(inputs, counted, strict=True):
                if not micro["batch"]:  # a short last micro-batch: others have all its rows
                    continue
                task, batch = tasks[micro["task"]], self._prepare_inputs(micro["batch"])
                with self.compute_loss_context_manager():
                    own, logits = task_loss(task, model, batch, update)
                sums = self.by_task[micro["task"]]
                sums.loss = sums.loss + own.detach()
                sums.counted += n
                if task.plan.loss.report_accuracy:
                    sums.right += n_right(logits.detach(), batch["labels"])
                loss = own / total
                mean = mean + loss.detach()
                if penalty is None:  # behind the task's loss: see Delta.penalty
                    penalty = self.delta.penalty()
                    if penalty.weighted.requires_grad:
                        loss = loss + penalty.weighted / ranks.size()
                self.accelerator.backward(loss)
            if penalty is None:  # no rows here: this process still has its share of the penalty
                penalty = self.delta.penalty()
                if penalty.weighted.requires_grad:
                    self.accelerator.backward(penalty.weighted / ranks.size())
        ranks.add_gradients(model)
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < self.min_loss_scale:
            raise Diverged(
                f"the loss scale of fp16 is {scaler.get_scale()} before update {update}, below "
                f"trainer.min_loss_scale={self.min_loss_scale}: gradients overflow again and again; "
                "try a smaller learning rate, or trainer.bf16=true"
            )
        # Times the processes, over which a mean is taken when it is logged.
        mean = mean * ranks.size()
        self.losses.append((mean, *(part.detach() for part in penalty.parts.values())))
        self.parts = list(penalty.parts)
        return mean

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers would look for input ids in an update

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and len(self.losses) > self.logged:
            self.refuse_divergence()
            recent = table(self.losses[self.logged :]).mean(0).tolist()
            logs |= {"task_loss": recent[0], **self.delta.report()}
            logs |= dict(zip(self.parts, recent[1:], strict=True))
            sums = [[float(one.loss), one.counted, one.right] for one in self.by_task]
            together = torch.tensor(sums, dtype=torch.float64, device=self.args.device)
            logs |= self._log_of_tasks(ranks.total(together).tolist())
            self.by_task = [Sums() for _ in self.by_task]
            self.logged = len(self.losses)
        if self.updates.single:  # Trainer counts all updates as one epoch
            step, ends = self.state.global_step, [0, *sorted(self.ends), self.updates.total + 1]
            done = sum(end <= step for end in ends[1:])
            self.state.epoch = done + (step - ends[done]) / (ends[done + 1] - ends[done])
        super().log(logs, *args, **kwargs)

    @cached_property
    def ends(self) -> dict[int, int]:
        return ends_of_epochs(self.updates)

    def refuse_divergence(self) -> None:
        """Raises Diverged where the loss of an update since the last log is not finite."""
        recent = self.losses[self.logged :]
        losses = table(recent).tolist() if recent else []
        for step, values in enumerate(losses, start=self.logged + 1):
            for name, value in zip(["training loss", *self.parts], values, strict=True):
                if not math.isfinite(value):
                    raise Diverged(
                        f"the {name} is {value} at step {step} of {self.updates.total} with "
                        f"trainer.learning_rate={self.args.learning_rate:g}: try a smaller one"
                    )

    def _log_of_tasks(self, sums: list[list[float]]) -> dict[str, float]:
        """Per task, where there are several: loss; accuracy of the training rows where wanted."""
        made: dict[str, float] = {}
        for place, (loss, counted, right) in enumerate(sums):
            plan = self.updates.tasks[place].task.plan
            name = "" if self.updates.single and not place else f"{plan.name}_"
            if name and counted:
                made[f"{name}loss"] = loss / counted
            if plan.loss.report_accuracy and counted:
                made[f"{name}train_accuracy"] = right / counted
        return made

    # What Trainer does at its own intervals, done our way.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        found = ranks.on_first(lambda: self.validate(self.state.global_step))
        self._to_train()
        metrics = {f"eval_{k}": v for k, v in found.items()}
        recent = self.losses[self.validated :]
        self.learned = not recent or float(table(recent)[:, 0].mean()) >= LEAST_LOSS
        self.validated = len(self.losses)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def improves(self, value: float) -> bool:
        """Whether the last validation, of this value, counts as better than the best one so far."""
        if self.ties_improve and not self.learned:
            return False
        best = self.state.best_metric
        better = np.greater if self.args.greater_is_better else np.less
        tie = self.ties_improve and value == best
        return best is None or tie or bool(better(value, best))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.ties_improve and not self.learned:
            return False
        before, name = self.state.best_metric, self.args.metric_for_best_model
        new = bool(super()._determine_best_metric(metrics, trial))
        if self.ties_improve and name is not None and before is not None:
            new |= metrics[f"eval_{name.removeprefix('eval_')}"] == before
        if new:
            self.best = {name: p.detach().cpu().clone() for name, p in self._trained().items()}
        return new

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if ranks.rank() == 0:
            self.save_as(f"checkpoint-{self.state.global_step}")

    def restore_best(self) -> None:
        """Put the weights of the best validation back, where one was asked for."""
        if self.best is not None:
            own = self._trained()
            with torch.no_grad():
                for name, value in self.best.items():
                    own[name].copy_(value)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        assert self.model is not None
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}


def loss_scaler(extras: TrainerExtras, device: str) -> torch.amp.GradScaler:
    """The scaler that keeps gradients of fp16 above underflow, with the settings of `trainer`."""
    made = torch.amp.GradScaler(device, init_scale=extras.fp16_init_scale)
    if extras.fp16_scale_window is not None:
        made.set_growth_interval(extras.fp16_scale_window)
    return made


def train(
    model: torch.nn.Module,
    tasks: Sequence[Training],
    delta: Delta,
    run: Run,
    seed: int,
    folder: Path,
    validate: Callable[[int], dict[str, float]] = lambda step: {},
    save: Callable[[str], None] = lambda name: None,
    name: str | None = None,
    replayed: Sequence[Training] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingReport:
    """Train what is trainable of `model` on all `tasks` together, with the penalty of `delta`.

    folder: gets trainer_state.json, which has all that was logged.
    replayed: earlier tasks, with the rows of them that are mixed in.
    validate: update -> logged name -> value, on dev data. save: keep the model as it is under a name.
    name: of the run, for trackers. Raises Diverged on a loss of NaN.
    """
    given = ranks.arguments(run.trainer)
    epochs, limit = given.pop("num_train_epochs", 3.0), given.pop("max_steps", -1)
    given.pop("gradient_accumulation_steps", None)  # an update arrives whole
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            run_name=name,
            remove_unused_columns=False,
            disable_tqdm=True,
            **{"save_strategy": "no", "report_to": "none", **given},
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"trainer: {error}. Its keys are arguments of transformers.TrainingArguments"
        ) from error
    # A process trains on one device; unasked, Trainer would spread it over all visible GPUs.
    arguments._n_gpu = min(1, arguments.n_gpu)
    # Only now the process group is there, and with it the share of this process.
    updates = Updates(tasks, ranks.rank(), ranks.size(), epochs, limit, replayed)
    arguments.max_steps = len(updates)
    trainer = UpdateTrainer(
        updates=updates,
        delta=delta,
        validate=validate,
        save=save,
        model=model,
        args=arguments,
        train_dataset=updates,
        eval_dataset=updates,  # only so that Trainer believes there is something to validate on
        callbacks=[LogLines(run.extras.log_format), *callbacks],
    )
    few_shot = all(one.task.plan.task.kind == FEW_SHOT for one in tasks)
    trainer.ties_improve = few_shot if run.extras.ties_improve is None else run.extras.ties_improve
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler = loss_scaler(run.extras, arguments.device.type)
        trainer.min_loss_scale = run.extras.min_loss_scale
    trainer.add_callback(Intervals(lambda: trainer.ends, run.extras.stop_time_hours))
    if run.extras.patience > 0:
        trainer.add_callback(Patience(run.extras.patience, trainer.improves))
    if ranks.rank():  # the data is in the same order everywhere, what is dropped out is not
        torch.manual_seed(seed + ranks.rank())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if ranks.rank() == 0:
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
    trainer.restore_best()
    trainer.refuse_divergence()
    train_loss = table(trainer.losses).cpu()[:, 0].mean().item()
    return TrainingReport(trainer.state.global_step, train_loss, delta.report())


def row_losses(model: torch.nn.Module, tasks: Sequence[Training]) -> Iterator[torch.Tensor]:
    """Cross entropy in nats of every training row of the first epoch, as `Delta.conclude` takes it.

    Rows are read without what is random in training, one by one, by the model as it answers.
    """
    device = next(model.parameters()).device
    model.eval()
    for training in tasks:
        for i in range(len(training.rows.train(0))):
            batch = training.task.batch([training.example(0, i, training=False)])
            yield task_loss(training.task, model, moved(batch, device), 0)[0]
