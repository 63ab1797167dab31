"""Files in OFASys's words, as somebody has them who comes from there: what they leave out follows."""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose
from support.files import written
from support.runs import meeting_of, planned
from support.train_app import train

from train.config.reading import read_run
from train.config.typed import SettingsError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

SHARED = """
model:
  _name: unify
  arch: large
  adaptor: {image_resnet: {resnet_type: resnet50, freeze_resnet: true}}
  encoder: {normalize_before: true, learned_pos: true}
  decoder: {normalize_before: true, learned_pos: true}
  share_all_embeddings: true
  activation_fn: gelu
  dropout: 0.1
common: {fp16: true, fp16_scale_window: 512, log_format: simple, log_interval: 1, seed: 3}
distributed_training: {find_unused_parameters: true}
optimization: {max_epoch: 2, clip_norm: 1.0, lr: 1e-4, sentence_avg: false}
optimizer: {_name: adam, adam_betas: "(0.9,0.98)", adam_eps: 1e-08, weight_decay: 0.01}
lr_scheduler: {_name: ofa_polynomial_decay, warmup_ratio: 0.06}
checkpoint: {save_interval_updates: 500, validate_interval_updates: 500}
env: {runner: local, nnodes: 1, nproc_per_node: 1, cuda_visible_devices: ""}
"""
COLOUR = """
_include: shared.yaml
task:
  which_colour:
    instruction:
      template: '[IMAGE:image,preprocess=imagenet] <BOS> colour? <EOS> -> <BOS> [TEXT:name,closed_set] <EOS>'
    dataset:
      train_data: train.tsv
      valid_data: dev.tsv
      selected_cols: 0:uid,1:image,3:name
      num_workers: 1
      micro_batch_size: 1
      update_freq: 2
    preprocess:
      imagenet: {imagenet_default_mean_and_std: true, patch_image_size: 64}
      text: {ans2label: answers.txt}
    evaluation: {metrics: {accuracy: {target_field: name}}}
    criterion: {label_smoothed_cross_entropy: {is_active: true, label_smoothing: 0.1}}
checkpoint:
  save_dir: kept/${model.arch}/${optimization.max_epoch}_${lr_scheduler.warmup_ratio}
  best_checkpoint_metric: acc
"""
MATCH = """
_include: [shared.yaml]
task:
  match:
    instruction:
      template: '[IMAGE:image] does it show " [TEXT:said] "? -> " [TEXT:said,no_loss] "? [TEXT:fits,closed_set]'
    max_tgt_length: 64
    dataset: {train_data: train.tsv, valid_data: dev.tsv, selected_cols: '1:image,2:said,4:fits'}
    preprocess:
      image: {patch_image_size: 64}
      text: {ans2label: '{"no": 0, "yes": 1}'}
    criterion: {_name: label_smoothed_cross_entropy, label_smoothing: 0.1}
    evaluation: {metrics: {accuracy: {target_field: fits}}, generator_args: '{"beam":1,"max_len_b":5}'}
"""
FILL = """
task:
  fill:
    instruction:
      template: 'the whole of " [TEXT:said,mask_ratio=0.3] "? -> [TEXT:said]'
    dataset: {train_data: train.tsv, selected_cols: '2:said', micro_batch_size: 2}
    preprocess: {text: {mask_span_distribution: span-poisson, poisson_lambda: 3.0}}
"""
TOGETHER = """
_include:
  - match.yaml
  - colour.yaml task
  - fill.yaml task
task:
  "*":
    dataset: {micro_batch_size: 2, micro_valid_batch_size: 4}
    max_src_length: 100
optimization: {max_epoch: 0, max_update: 2}
checkpoint: {save_dir: kept/together}
"""


@pytest.fixture
def pasted(app_conf: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)  # paths of data are relative to it
    files = {"shared": SHARED, "colour": COLOUR, "match": MATCH, "fill": FILL, "all": TOGETHER}
    written(tmp_path, files)
    for part, side in (("train", 20), ("dev", 30)):
        rows = []
        for number, (name, colour) in enumerate([*COLOURS.items()] * 3):
            buffer = io.BytesIO()
            Image.new("RGB", (side + number, side), colour).save(buffer, "PNG")
            image = base64.b64encode(buffer.getvalue()).decode()
            said = [*COLOURS][number // 3]
            fits = "yes" if said == name else "no"
            rows.append(f"{part}{number}\t{image}\ta {said} one in {part}\t{name}\t{fits}\n")
        (tmp_path / f"{part}.tsv").write_text("".join(rows))
    answers = [f"{name}\t{number}\n" for number, name in enumerate(COLOURS)]
    (tmp_path / "answers.txt").write_text("".join(answers))
    return tmp_path


def job_of(folder: Path, name: str, *more: str) -> Any:
    return read_run(compose(f"base+{folder}/{name}.yaml", list(more)))


def test_what_a_file_leaves_out_of_class_and_size_follows_from_its_data(pasted: Path) -> None:
    from train.model.fit import fitted

    job = job_of(pasted, "colour")
    [plan] = planned(job).values()
    model = fitted(job.model, [plan])
    assert (plan.task.kind, model.side, model.channels, model.patch) == ("text", 64, 3, 16)
    assert plan.loss.label_smoothing == 0.1 and plan.is_scored
    off = "task.which_colour.criterion.label_smoothed_cross_entropy.is_active=false"
    [plain] = planned(job_of(pasted, "colour", off)).values()
    assert plain.loss.label_smoothing == 0.0


def test_a_task_without_valid_data_is_trained_along_but_not_alone(pasted: Path) -> None:
    plans = planned(job_of(pasted, "all"))
    assert [plan.is_scored for plan in plans.values()] == [True, True, False]
    with pytest.raises(SettingsError, match=r"task\.fill\.dataset\.valid_data is not set"):
        planned(job_of(pasted, "fill", "model=unify_tiny"))
    wrong = "checkpoint.best_checkpoint_metric=fill_exact_match"
    with pytest.raises(SettingsError, match="is not logged"):
        planned(job_of(pasted, "all", wrong))


def test_an_answer_that_its_own_beginning_pushes_out_is_an_error_and_not_learned_as_nothing(
    pasted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from train.data.tables import DataError

    row = {"image": str(pasted / "x.png"), "said": "a red one in train", "fits": "yes"}
    from PIL import Image

    Image.new("RGB", (9, 9)).save(row["image"])

    def learned(length: int) -> int:
        task = meeting_of(job_of(pasted, "match", f"task.match.max_tgt_length={length}"))
        return sum(task.example(row, np.random.default_rng(0), True, "row 1").learned)

    before = len(' " a red one in train "?')
    with pytest.raises(DataError, match=f"max_tgt_length={before} ids .*: raise it"):
        learned(before)
    with caplog.at_level(logging.WARNING):
        assert learned(before + 2) == 2
    assert "learned without its end" in caplog.text
    assert learned(before + 5) == 5  # " yes" and the end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "scored", "kept"),
    [("colour", ["which_colour"], "kept/tiny/2_0.06"), ("all", ["match", "which_colour"], "kept/together")],
)  # fmt: skip
def test_files_of_ofasys_train_by_the_command_line(
    pasted: Path, file: str, scored: list[str], kept: str
) -> None:
    """Two updates each; the model made small and the limit set as one does on the command line."""
    tiny = ("--model.arch=tiny", "--optimization.max_update=2")
    done = train(pasted, f"{file}.yaml", *tiny, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    results = json.loads((pasted / "out/all_results.json").read_text())
    assert results["steps"] == 2 and sorted(results["eval"]) == sorted(scored)
    assert np.isfinite(results["train_loss"]) and (pasted / kept / "node.json").is_file()
    assert "fp16=true has no effect on the CPU" in done.stdout + done.stderr
