"""The Hugging Face Trainer with the O-LoRA loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from train import ranks
from train.data import Examples, collate
from train.evaluation import among_options
from train.olora import Factors, a_norm, factors, l2_loss, orthogonal_loss
from train.settings import DeltaSettings, Job, SettingsError

log = logging.getLogger(__name__)


class OrthogonalityOff(RuntimeError):
    """The orthogonal penalty of a task with ancestors is not above 0."""


class Diverged(RuntimeError):
    """The training loss is not a finite number."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to. The penalties are unweighted, and reported for lamda 0 as well."""

    steps: int
    train_loss: float  # cross entropy alone, mean over the micro-batches
    orthogonal_loss_first: float  # at the first step
    orthogonal_loss: float  # after the last step, like the following
    l2_loss: float
    a_norm: float


class OLoRATrainer(Trainer):
    """Adds lamda_1 * L_orth + lamda_2 * L_l2 to the cross entropy of every micro-batch."""

    # compute_loss returns plain means, to be divided by the number of micro-batches of a step.
    # Unless told, Trainer takes a model whose forward has **kwargs for one that did so already.
    loss_is_scaled_for_ga = False

    def __init__(self, adapters: Sequence[str], delta: DeltaSettings, **kwargs: Any) -> None:
        """`adapters` is the chain, the one to train last; empty: the base is trained in full."""
        super().__init__(**kwargs)
        self.lamda_1, self.lamda_2 = delta.lamda_1, delta.lamda_2
        self.modules: list[Factors] = []
        if adapters:  # stacked only now, where Trainer has moved the model to its device
            self.modules = factors(kwargs["model"], adapters[-1], adapters[:-1])
        self.losses: list[torch.Tensor] = []  # per micro-batch: task, orthogonal, l2
        self.logged = 0

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        if ranks.size() == 1:
            return super().get_train_dataloader()
        # The order that accelerate gives one process. Its own way to share batches would fill
        # the last one of an epoch with rows from the beginning.
        order = SeedableRandomSampler(self.train_dataset, data_seed=self.args.seed)
        batches = torch.utils.data.BatchSampler(
            order, self.args.train_batch_size * ranks.size(), self.args.dataloader_drop_last
        )
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=ranks.Shares(batches, ranks.rank(), ranks.size()),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(pixel_values=inputs["pixel_values"])
        # Rows of the head that are no option of an image get no gradient from it.
        logits = among_options(outputs.logits.float(), inputs["options"])
        task = torch.nn.functional.cross_entropy(logits, inputs["labels"])
        task = task * ranks.weight(len(logits), task.device)
        with torch.autocast(task.device.type, enabled=False):
            orthogonal, l2 = orthogonal_loss(self.modules), l2_loss(self.modules)
            loss = task + self.lamda_1 * orthogonal + self.lamda_2 * l2
        if not self.losses:
            self._check_orthogonal(orthogonal.item())
        self.losses.append(torch.stack([part.detach().to(task) for part in (task, orthogonal, l2)]))
        return (loss, outputs) if return_outputs else loss

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
            self.logged = len(self.losses)
        super().log(logs, *args, **kwargs)

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

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        log.info("step %d: %s", state.global_step, logs)


def train(
    model: torch.nn.Module,
    examples: Examples,
    adapters: Sequence[str],
    job: Job,
    seed: int,
    folder: Path,
) -> TrainingReport:
    """Train the last of `adapters`, or without any the base. Raises Diverged on a loss of NaN."""
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            **ranks.arguments(job.trainer),
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"trainer: {error}. Its keys are arguments of transformers.TrainingArguments"
        ) from error
    # A process trains on one device; unasked, Trainer would spread it over all visible GPUs.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = OLoRATrainer(
        adapters=adapters,
        delta=job.delta,
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        callbacks=[LogLines()],
    )
    if ranks.rank():  # the data is in the same order everywhere, what is dropped out is not
        torch.manual_seed(seed + ranks.rank())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    report = trainer.report()
    if not math.isfinite(report.train_loss):
        raise Diverged(
            f"the mean training loss is {report.train_loss} after {report.steps} steps with "
            f"trainer.learning_rate={arguments.learning_rate}: try a smaller one"
        )
    return report
