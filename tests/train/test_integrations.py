"""Callbacks that report to a sweep, in trainings by the libraries' own trainers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from autocl_sweeper.reporter import VARIABLE


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "0.reports"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def read(path: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["score"]) for line in lines]


class Line(torch.nn.Module):
    """y = weight * x, as transformers calls a model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.weight * x
        return {"loss": ((y - labels) ** 2).mean(), "logits": y}


def train_with_transformers(folder: Path, metric: str) -> Any:
    from transformers import Trainer, TrainingArguments

    from autocl_sweeper.integrations.huggingface import ReportCallback

    rows = [{"x": torch.tensor(float(i)), "labels": torch.tensor(2.0 * i)} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=6,
        eval_strategy="steps", eval_steps=2, per_device_train_batch_size=2, save_strategy="no",
        learning_rate=0.1, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer = Trainer(
        model=Line(), args=arguments, train_dataset=rows, eval_dataset=rows,
        callbacks=[ReportCallback(metric)],
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("metric", ["eval_loss", "loss"])
def test_a_hugging_face_trainer_reports_each_evaluation_with_its_optimiser_steps(
    metric: str, reports: Path, tmp_path: Path
) -> None:
    trainer = train_with_transformers(tmp_path, metric)
    logged = [(e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e]
    assert read(reports) == logged
    assert [step for step, _ in logged] == [2, 4, 6]  # two batches each: not steps of the loader


def test_a_metric_that_no_evaluation_has_is_named_with_those_it_had(
    reports: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_with_transformers(tmp_path, "accuracy")
    assert not reports.exists()
    assert "nothing was reported: no evaluation had 'eval_accuracy' (it had: " in caplog.text
    assert "eval_loss" in caplog.text


@pytest.mark.filterwarnings("ignore")  # of Lightning's own, by version
@pytest.mark.parametrize("library, monitor", [
    ("pytorch_lightning", "val_loss"), ("lightning.pytorch", "val_loss"),
    ("pytorch_lightning", "val_accuracy"),
])  # fmt: skip
def test_a_lightning_trainer_reports_each_validation_with_its_optimiser_steps(
    library: str, monitor: str, reports: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lightning = pytest.importorskip(library)
    from autocl_sweeper.integrations.lightning import ReportCallback

    seen: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.line = Line()

        def training_step(self, batch: Any, place: int) -> torch.Tensor:
            return self.line(*batch)["loss"]

        def validation_step(self, batch: Any, place: int) -> None:
            self.log("val_loss", self.line(*batch)["loss"])

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                seen.append(float(self.trainer.callback_metrics["val_loss"]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    x = torch.arange(8.0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 2 * x), batch_size=2)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=3, accumulate_grad_batches=2, logger=False, devices=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[ReportCallback(monitor)],
    )  # fmt: skip
    module = Module()
    with caplog.at_level(logging.WARNING, "autocl_sweeper"):
        trainer.fit(module, loader, loader)
        trainer.validate(module, loader, verbose=False)  # after the training: no report
    if monitor == "val_accuracy":
        assert not reports.exists()
        assert "no metric 'val_accuracy' (logged: val_loss)" in caplog.text
        return
    # Four batches an epoch, two to an optimiser step; none for the check before the first epoch.
    found = read(reports)
    assert [step for step, _ in found] == [2, 4, 6]
    assert [score for _, score in found] == pytest.approx(seen[:3])
    assert found[0][1] > found[-1][1] > 0
