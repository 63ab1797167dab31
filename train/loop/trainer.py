"""The Hugging Face Trainer, taking an update from several tasks, with the O-LoRA loss."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from train.config.sections import DeltaSettings, Run, SettingsError, TrainerExtras
from train.delta.olora import Factors, a_norm, factors, l2_loss, orthogonal_loss
from train.loop import ranks
from train.loop.batches import Training, Updates, ends_of_epochs
from train.loop.criterion import loss_sum, n_right, sample_size

log = logging.getLogger(__name__)


class OrthogonalityOff(RuntimeError):
    """The orthogonal penalty of a task with ancestors is not above 0."""


class Diverged(RuntimeError):
    """The training loss is not a finite number."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to. The penalties are unweighted, and reported for lamda 0 as well."""

    steps: int
    train_loss: float  # cross entropy alone, mean over the updates
    orthogonal_loss_first: float  # at the first step
    orthogonal_loss: float  # after the last step, like the following
    l2_loss: float
    a_norm: float


class OLoRATrainer(Trainer):
    """An item of its loader is one update: micro-batches of all tasks, in order.

    The loss of an update is the sum over all its micro-batches, processes included, divided by all
    that was summed over; to it come lamda_1 * L_orth + lamda_2 * L_l2, once.
    """

    def __init__(
        self,
        updates: Updates,
        adapters: Sequence[str],
        delta: DeltaSettings,
        validate: Callable[[], dict[str, float]],
        save: Callable[[str], None],
        workers: int,
        prefetch_factor: int,
        **kwargs: Any,
    ) -> None:
        """`adapters` is the chain, the one to train last; empty: the base is trained in full."""
        super().__init__(**kwargs)
        self.updates = updates
        self.validate, self.save_as = validate, save
        self.workers, self.prefetch_factor = workers, prefetch_factor
        self.min_loss_scale = 0.0
        self.lamda_1, self.lamda_2 = delta.lamda_1, delta.lamda_2
        self.modules: list[Factors] = []
        if adapters:  # stacked only now, where Trainer has moved the model to its device
            self.modules = factors(kwargs["model"], adapters[-1], adapters[:-1])
        self.losses: list[torch.Tensor] = []  # per update: task, orthogonal, l2
        self.by_task: list[torch.Tensor] = []  # per update: tasks x (loss sum, counted, right)
        self.logged = 0
        self.best: dict[str, torch.Tensor] | None = None

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        reading: dict[str, Any] = {}
        if self.workers:
            reading = {"num_workers": self.workers, "prefetch_factor": self.prefetch_factor}
        return torch.utils.data.DataLoader(
            self.updates,
            batch_size=None,
            pin_memory=self.args.dataloader_pin_memory,
            **reading,
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
        """Forward and backward of all micro-batches of an update; the loss without penalties.

        Gradients are added up over micro-batches, then over processes: each weighs what it counts.
        """
        model.train()
        schedule_free = getattr(self.optimizer, "train", None)
        if callable(schedule_free):
            schedule_free()
        update = self.state.global_step + 1
        tasks = [t.task for t in self.updates.tasks]
        sums = torch.zeros(len(tasks), 3, device=self.args.device)
        for micro in inputs:
            if micro["batch"]:
                settings = tasks[micro["task"]].plan.loss
                sums[micro["task"], 1] += sample_size(micro["batch"]["labels"], settings, update)
        total = ranks.total(sums[:, 1].sum())
        penalties: tuple[torch.Tensor, torch.Tensor] | None = None
        # Gradients of all processes are added up below, at once and whatever each of them used.
        with self.accelerator.no_sync(model):
            for micro in inputs:
                if not micro["batch"]:  # a short last micro-batch: others have all its rows
                    continue
                task, batch = tasks[micro["task"]], self._prepare_inputs(micro["batch"])
                with self.compute_loss_context_manager():
                    logits = task.logits(model, batch)
                own = loss_sum(logits, batch["labels"], task.plan.loss, update)
                sums[micro["task"], 0] += own.detach()
                if task.plan.loss.report_accuracy:
                    sums[micro["task"], 2] += n_right(logits.detach(), batch["labels"])
                loss = own / total
                if penalties is None:  # behind the task's, as in the formula: see _penalties
                    penalties = self._penalties()
                    loss = loss + self._weighted(penalties)
                self.accelerator.backward(loss)
            if penalties is None:
                penalties = self._penalties()
                if self.modules:
                    self.accelerator.backward(self._weighted(penalties))
        orthogonal, l2 = penalties
        ranks.add_gradients([p for p in model.parameters() if p.requires_grad])
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < self.min_loss_scale:
            raise Diverged(
                f"the loss scale of fp16 is {scaler.get_scale()} before update {update}, below "
                f"trainer.min_loss_scale={self.min_loss_scale}: gradients overflow again and again; "
                "try a smaller learning rate, or trainer.bf16=true"
            )
        if not self.losses:
            self._check_orthogonal(orthogonal.item())
        # Times the processes, over which a mean is taken when it is logged.
        mean = sums[:, 0].sum() / total * ranks.size()
        self.losses.append(torch.stack([part.detach().to(mean) for part in (mean, orthogonal, l2)]))
        self.by_task.append(sums)
        return mean

    def _penalties(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Orthogonal and l2. When they are computed tells in which order autograd adds their gradients

        to the task's (the last computed comes first), and with it the last bit of a step.
        """
        with torch.autocast(self.args.device.type, enabled=False):
            return orthogonal_loss(self.modules), l2_loss(self.modules)

    def _weighted(self, penalties: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The share of this process."""
        orthogonal, l2 = penalties
        return (self.lamda_1 * orthogonal + self.lamda_2 * l2) / ranks.size()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers would look for input ids in an update

    def _check_orthogonal(self, value: float) -> None:
        if any(len(m.a_old) for m in self.modules) and not value > 0:
            raise OrthogonalityOff(
                f"the orthogonal loss is {value} at the first step, but the task has ancestors and "
                "random subspaces are never exactly orthogonal: the ancestors' lora_A are not what "
                "was trained (all zero, or not loaded). Check the checkpoint in init_from."
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and len(self.losses) > self.logged:
            recent = ranks.mean(torch.stack(self.losses[self.logged :]).mean(0)).tolist()
            logs |= dict(zip(("task_loss", "orthogonal_loss", "l2_loss"), recent, strict=True))
            logs["a_norm"] = a_norm(self.modules).item()
            logs |= self._log_of_tasks(ranks.total(torch.stack(self.by_task).sum(0)).tolist())
            self.by_task = []
            self.logged = len(self.losses)
        if self.updates.single:  # Trainer counts all updates as one epoch
            ends = sorted(self.ends)
            done = [step for step in ends if step <= self.state.global_step]
            begin = done[-1] if done else 0
            later = ends[len(done)] if len(done) < len(ends) else self.updates.total + 1
            part = (self.state.global_step - begin) / (later - begin)
            self.state.epoch = len(done) + part
        super().log(logs, *args, **kwargs)

    @property
    def ends(self) -> dict[int, int]:
        if not hasattr(self, "_ends"):
            self._ends = ends_of_epochs(self.updates)
        return self._ends

    def _log_of_tasks(self, sums: list[list[float]]) -> dict[str, float]:
        """Per task, where there are several: loss; accuracy of the training rows where wanted."""
        made: dict[str, float] = {}
        for training, (loss, counted, right) in zip(self.updates.tasks, sums, strict=True):
            plan = training.task.plan
            name = "" if self.updates.single else f"{plan.name}_"
            if name and counted:
                made[f"{name}loss"] = loss / counted
            if plan.loss.report_accuracy and counted:
                made[f"{name}train_accuracy"] = right / counted
        return made

    # What Trainer does at its own intervals, done our way.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {f"eval_{k}": v for k, v in ranks.on_first(self.validate).items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        new = bool(super()._determine_best_metric(metrics, trial))
        if new:
            self.best = {
                name: parameter.detach().cpu().clone()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }
        return new

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if ranks.rank() == 0:
            self.save_as(f"checkpoint-{self.state.global_step}")

    def restore_best(self) -> None:
        """The weights of the best validation, where one was asked for; else those of the end."""
        if self.best is not None:
            own = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, value in self.best.items():
                    own[name].copy_(value)

    def report(self) -> TrainingReport:
        losses = ranks.mean(torch.stack(self.losses)).cpu()
        return TrainingReport(
            steps=self.state.global_step,
            train_loss=losses[:, 0].mean().item(),
            orthogonal_loss_first=losses[0, 1].item(),
            orthogonal_loss=orthogonal_loss(self.modules).item(),
            l2_loss=l2_loss(self.modules).item(),
            a_norm=a_norm(self.modules).item(),
        )


class LogLines(TrainerCallback):
    """Trainer's log entries as log lines, so that they stand in the job's log."""

    def __init__(self, log_format: str | None = None) -> None:
        self.log_format = log_format

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.log_format == "json":
            log.info("%s", json.dumps({"step": state.global_step, **(logs or {})}))
        elif self.log_format != "none":
            log.info("step %d: %s", state.global_step, logs)


def loss_scaler(extras: TrainerExtras, device: str) -> torch.amp.GradScaler:
    """What keeps gradients of fp16 above underflow, as `trainer` asks for it."""
    window = extras.fp16_scale_window
    made = torch.amp.GradScaler(device, init_scale=extras.fp16_init_scale)
    if window is not None:
        made.set_growth_interval(window)
    return made


class Patience(EarlyStoppingCallback):
    """Transformers', without its warning that the best weights were lost: they come back."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        return None


class Intervals(TrainerCallback):
    """Validates and saves at the ends of epochs, which Trainer cannot see, and stops in time."""

    def __init__(self, ends: Callable[[], dict[int, int]], hours: float) -> None:
        self.ends = ends
        self.end_s = time.monotonic() + hours * 3600 if hours > 0 else math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.ends():
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            control.should_log |= args.logging_strategy == "epoch"
        if math.isfinite(self.end_s) and ranks.any_of(time.monotonic() > self.end_s):
            log.warning("trainer.stop_time_hours is over: training ends at %d", state.global_step)
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Trainer's one epoch is the whole training, whose last update was an end of its own.
        control.should_evaluate = control.should_save = False


def train(
    model: torch.nn.Module,
    tasks: Sequence[Training],
    adapters: Sequence[str],
    job: Run,
    seed: int,
    folder: Path,
    validate: Callable[[], dict[str, float]] = dict,
    save: Callable[[str], None] = lambda name: None,
) -> TrainingReport:
    """Train the last of `adapters`, or without any the base, on all `tasks` together.

    validate: logged name -> value, on dev data. save: keep the model as it is under a name.
    Raises Diverged on a loss of NaN.
    """
    given = ranks.arguments(job.trainer)
    epochs, limit = given.pop("num_train_epochs", 3.0), given.pop("max_steps", -1)
    given.pop("gradient_accumulation_steps", None)  # an update arrives whole
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            **{"save_strategy": "no", **given},
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"trainer: {error}. Its keys are arguments of transformers.TrainingArguments"
        ) from error
    # A process trains on one device; unasked, Trainer would spread it over all visible GPUs.
    arguments._n_gpu = min(1, arguments.n_gpu)
    # Only now the process group is there, and with it the share of this process.
    updates = Updates(tasks, ranks.rank(), ranks.size(), epochs, limit)
    arguments.max_steps = len(updates)
    datasets = [t.task.plan.task.dataset for t in tasks]
    trainer = OLoRATrainer(
        updates=updates,
        adapters=adapters,
        delta=job.delta,
        validate=validate,
        save=save,
        workers=max(d.num_workers for d in datasets),
        prefetch_factor=max(d.prefetch_factor for d in datasets),
        model=model,
        args=arguments,
        train_dataset=updates,
        eval_dataset=updates,  # only so that Trainer believes there is something to validate on
        callbacks=[LogLines(job.extras.log_format)],
    )
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler = loss_scaler(job.extras, arguments.device.type)
        trainer.min_loss_scale = job.extras.min_loss_scale
    trainer.add_callback(Intervals(lambda: trainer.ends, job.extras.stop_time_hours))
    if job.extras.patience > 0:
        trainer.add_callback(Patience(job.extras.patience))
    if ranks.rank():  # the data is in the same order everywhere, what is dropped out is not
        torch.manual_seed(seed + ranks.rank())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.restore_best()
    report = trainer.report()
    if not math.isfinite(report.train_loss):
        raise Diverged(
            f"the mean training loss is {report.train_loss} after {report.steps} steps with "
            f"trainer.learning_rate={arguments.learning_rate}: try a smaller one"
        )
    return report
