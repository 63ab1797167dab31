"""The encoder-decoder, the loss of several tasks, validation: small models against arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.runs import finish, loaded, model_of, read, trainings

from train.config.sections import TrainerExtras
from train.config.task import LossSettings, MetricSettings
from train.config.typed import SettingsError
from train.data.task_metrics import compute
from train.delta.olora import OLoRA, factors
from train.loop.criterion import loss_sum, sample_size
from train.loop.evaluation import means
from train.loop.trainer import loss_scaler, train

UNIFY = ["model=unify_tiny", "model.num_decoder_layers=1", "trainer.num_train_epochs=1"]
ONE_STEP = ["+trainer.max_steps=1", "+trainer.optim=sgd", "trainer.max_grad_norm=0"]


# -- the loss -----------------------------------------------------------------------------------------


def loss(settings: dict[str, Any], logits: torch.Tensor, labels: Sequence[int]) -> float:
    made, wanted = LossSettings(**settings), torch.tensor(labels)
    return loss_sum(logits, wanted, made, 1).item() / sample_size(wanted, made, 1)


def test_the_criterion_is_that_of_the_formula() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.0]])
    labels = [0, 2, -100]
    log_p = [[x - math.log(sum(map(math.exp, row))) for x in row] for row in logits.tolist()]
    nll = [-log_p[0][0], -log_p[1][2]]
    assert loss({}, logits, labels) == pytest.approx(sum(nll) / 2)
    assert loss({"weight": 3.0}, logits, labels) == pytest.approx(3 * sum(nll) / 2)
    assert loss({"sentence_avg": True}, logits, labels) == pytest.approx(sum(nll) / 3)
    assert loss({"drop_worst_ratio": 0.5}, logits, labels) == pytest.approx(min(nll))
    late = {"drop_worst_ratio": 0.5, "drop_worst_after": 1}
    assert loss(late, logits, labels) == pytest.approx(sum(nll) / 2)
    spread = [0.9 * nll[i] - 0.1 / 3 * sum(log_p[i]) for i in (0, 1)]
    assert loss({"label_smoothing": 0.1}, logits, labels) == pytest.approx(sum(spread) / 2)
    without = torch.cat([logits, torch.full((3, 1), -torch.inf)], dim=1)  # a class ruled out
    assert loss({"label_smoothing": 0.1}, without, labels) == pytest.approx(sum(spread) / 2)


TOGETHER = [
    *UNIFY, *ONE_STEP, "task=[digits_01,parity]", "trainer.learning_rate=0.1",
    "+task.digits_01.dataset={micro_batch_size:2}",
    "+task.parity.dataset={micro_batch_size:3,update_freq:2}",
]  # fmt: skip


@pytest.mark.parametrize("criterion", ["", "{sentence_avg:true,weight:2}"])
def test_a_step_of_two_tasks_is_the_sum_of_their_losses_over_the_sum_of_what_they_count(
    make_job: Any, tmp_path: Path, criterion: str
) -> None:
    more = [f"+task.parity.criterion={criterion}"] if criterion else []
    job = make_job(*TOGETHER, *more)
    tasks, model = trainings(job), model_of(job, 3)
    weight = 2.0 if criterion else 1.0
    total, counted = torch.zeros(()), 0
    for number, (training, batches) in enumerate(zip(tasks, ([2], [3, 3]), strict=True)):
        order, begin = training.order(0), 0
        for size in batches:
            chosen, begin = order[begin : begin + size], begin + size
            batch = training.task.batch([training.example(0, i) for i in chosen])
            labels = batch.pop("labels")
            log_p = model(**batch).logits.log_softmax(-1)
            for row, column in (labels != -100).nonzero().tolist():
                part = -log_p[row, column, labels[row, column]]
                total = total + part * (weight if number else 1.0)
            sentences = bool(criterion) and number == 1
            counted += size if sentences else int((labels != -100).sum())
    (total / counted).backward()
    expected = {
        n: (p - 0.1 * p.grad if p.grad is not None else p).detach().clone()
        for n, p in model.named_parameters()
    }
    model.zero_grad()
    report = train(model, tasks, OLoRA(job.delta), job, 0, tmp_path)
    assert report.steps == 1 and report.train_loss == pytest.approx(total.item() / counted)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-6)


# -- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 5])
def test_an_untrained_model_answers_nothing_but_what_is_in_the_closed_set(
    make_job: Any, beam: int
) -> None:
    generator = f"+task.parity.evaluation={{generator_args:{{beam:{beam},no_repeat_ngram_size:1}}}}"
    job = make_job(*UNIFY, "task=parity", generator,
                   "task.parity.preprocess.text.ans2label.odd=2",
        "+task.parity.preprocess.text.ans2label={evening:1,odd odd odd:3}")  # fmt: skip
    [training], model = trainings(job), model_of(job)
    rows = [row for row in training.rows.dev if row["answer"] == "even"]
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        examples = [read(training.task, row) for row in rows[:4]]
        answers = training.task.answers(model.eval(), examples, torch.device("cpu"))
        assert set(answers) <= {"even", "evening", "odd", "odd odd odd"}


def test_what_is_forced_before_an_answer_is_not_part_of_it_and_lengths_may_differ(
    make_job: Any,
) -> None:
    job = make_job(
        *UNIFY,
        "task=parity",
        "task.parity.instruction.template='[TEXT:bits] -> [TEXT:bits,no_loss] [TEXT:answer,closed_set]'",
    )
    [training], model = trainings(job), model_of(job)
    rows = [*training.rows.dev[:2], {"bits": "one", "answer": None}]
    examples = [read(training.task, row) for row in rows]
    assert len({len(e.prefix) for e in examples}) > 1
    answers = training.task.answers(model.eval(), examples, torch.device("cpu"))
    alone = [training.task.answers(model, [e], torch.device("cpu"))[0] for e in examples]
    assert answers == alone and set(answers) <= {"even", "odd"}


def test_images_of_files_are_read_in_colour(make_job: Any, tmp_path: Path) -> None:
    for n, (part, colours) in enumerate({"train": ("red", "blue"), "dev": ("green",)}.items()):
        lines = []
        for colour in colours:
            Image.new("RGB", (9 + n, 7), colour).save(tmp_path / f"{colour}.png")
            lines.append(f"{tmp_path / colour}.png\t{colour}\n")
        (tmp_path / f"{part}.tsv").write_text("".join(lines))
    job = make_job(
        *UNIFY, "+model.num_channels=3",
        "+task={c:{_name:text,instruction:{template:'[IMAGE:p] and [IMAGE:p]? -> [TEXT:a]'},"
        f"dataset:{{train_data:{tmp_path}/train.tsv,valid_data:{tmp_path}/dev.tsv,"
        'selected_cols:"0:p,1:a"},preprocess:{image:{patch_image_size:8}}}}',
    )  # fmt: skip
    [training] = trainings(job)
    one, other = (read(training.task, row) for row in training.rows.train(0))
    assert one.images[0][:, 0, 0].tolist() == [1, -1, -1] and len(one.images) == 2
    model = model_of(job)
    batch = training.task.batch([one, other])
    assert batch["pixel_values"].shape == (4, 3, 8, 8)
    assert training.task.logits(model, batch).isfinite().all()
    assert len(training.task.answers(model.eval(), [one, other], torch.device("cpu"))) == 2


def test_an_answer_that_would_be_learned_cut_short_is_refused(make_job: Any) -> None:
    job = make_job(*UNIFY, "task=parity", "+task.parity.max_tgt_length=5")
    with pytest.raises(SettingsError, match=r"max_tgt_length=5: the answer 'even' has 6 ids"):
        trainings(job)


def test_text_that_is_cut_is_told_once(make_job: Any, caplog: pytest.LogCaptureFixture) -> None:
    [training] = trainings(make_job(*UNIFY, "task=parity", "+task.parity.max_src_length=20"))
    for row in training.rows.dev[:3]:
        read(training.task, row)
    assert caplog.text.count("row: the text is cut to task.parity.max_src_length=20") == 1


def test_a_patch_changes_what_the_model_sees_and_padding_does_not(make_job: Any) -> None:
    job = make_job(*UNIFY, "task=digits_01")
    [training], model = trainings(job), model_of(job).eval()
    image = training.rows.dev[0]["image"]
    changed = image.copy()
    changed[6:, 6:] += 1
    rows = [{"image": i, "label": "1"} for i in (image, changed)]
    task = training.task
    one, other = (read(task, row) for row in rows)
    longer = read(task, {"image": image, "label": "0 and more"})
    with torch.no_grad():
        seen, different = (task.logits(model, task.batch([e])) for e in (one, other))
        both = task.logits(model, task.batch([one, longer]))
    assert not torch.allclose(seen, different, atol=1e-5)
    torch.testing.assert_close(both[:1, : seen.shape[1]], seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "answers", "truths", "expected"),
    [
        ("accuracy", ["a", "b ", "c"], ["a", "b", "a"], {"acc": 2 / 3}),
        ("exact_match", ["a b", "c"], ["a b", "d"], {"exact_match": 0.5}),
        # one true positive, one false positive, one true negative: (1 * 1 - 1 * 0) / sqrt(2 * 1 * 2 * 1)
        ("matthews_corrcoef", ["y", "y", "n"], ["y", "n", "n"], {"mcc": 0.5}),
        # precision 1/2, recall 1, beta 2: 5 * p * r / (4 * p + r)
        ("f_measure", ["y", "y", "n"], ["y", "n", "n"], {"f_2": 5 * 0.5 / 3}),
        ("rouge", ["the cat"], ["the cat sat"], {
            "rouge1_f1": 0.8, "rouge2_f1": 2 / 3, "rougeL_f1": 0.8}),
        # Stems: the cat were run, and the cat run. Words: 3 of 4 and of 3; pairs: 1 of 3 and of 2.
        ("rouge", ["The cats were running"], ["the cat runs"], {
            "rouge1_f1": 6 / 7, "rouge2_f1": 2 / 5, "rougeL_f1": 6 / 7}),
        ("bleu", ["a b c d e"], ["a b c d e"], {"bleu": 100.0}),
    ],
)  # fmt: skip
def test_metrics_are_logged_by_name_with_the_value_worked_out_by_hand(
    metric: str, answers: list[str], truths: list[str], expected: dict[str, float]
) -> None:
    settings = MetricSettings("t", ans2label={"n": 0, "y": 1}, beta=2.0)
    assert compute(metric, settings, answers, truths) == pytest.approx(expected)


# -- validation during training -----------------------------------------------------------------------


def test_the_best_weights_come_back_and_patience_ends_the_training(
    make_job: Any, tmp_path: Path
) -> None:
    job = make_job(
        "trainer.num_train_epochs=9", "+trainer.eval_strategy=epoch", "+trainer.patience=2",
        "+trainer.metric_for_best_model=loss", "+trainer.save_strategy=epoch",
    )  # fmt: skip
    model, told, saved = model_of(job), iter([3.0, 1.0, 2.0, 5.0, 0.0]), []
    at_validation: list[torch.Tensor] = []

    def validate(step: int) -> dict[str, float]:
        assert step == len(at_validation) + 1
        at_validation.append(next(model.parameters()).detach().clone())
        return {"loss": next(told)}

    delta = OLoRA(job.delta)
    report = train(model, trainings(job, 8), delta, job, 0, tmp_path, validate, saved.append)
    assert len(at_validation) == 4 and report.steps == 4
    now = next(model.parameters()).detach()
    assert torch.equal(now, at_validation[1]) and not torch.equal(now, at_validation[3])
    assert saved == [f"checkpoint-{n}" for n in (1, 2, 3, 4)]


def test_a_mean_over_tasks_is_plain_and_takes_those_that_have_the_metric() -> None:
    found = {"a": {"acc": 0.5, "loss": 1.0}, "b": {"mcc": 0.2, "loss": 3.0}}
    assert means(found, {"a": "acc", "b": "mcc"}) == pytest.approx(
        {"acc": 0.5, "mcc": 0.2, "loss": 2.0, "score": 0.35,
         "a_acc": 0.5, "a_loss": 1.0, "b_mcc": 0.2, "b_loss": 3.0}
    )  # fmt: skip


def test_the_loss_scale_of_fp16_is_what_was_asked_for() -> None:
    made = loss_scaler(TrainerExtras(fp16_scale_window=512, fp16_init_scale=64.0), "cpu")
    assert made.get_scale() == 64.0 and made.get_growth_interval() == 512
    assert loss_scaler(TrainerExtras(), "cpu").get_growth_interval() == 2000


# -- whole jobs ---------------------------------------------------------------------------------------

QUICK = ["+trainer.max_steps=2", "evaluation.dev_share=0.04", "evaluation.test_share=0.04"]


def test_two_tasks_train_as_one_job_and_their_chain_goes_on_with_adapters(
    make_job: Any, tmp_path: Path
) -> None:
    out = f"+task.parity.evaluation={{output_dir:{tmp_path / 'answers'}}}"
    first = finish(make_job(*UNIFY, *QUICK, "task=[digits_01,parity]", out), tmp_path / "1")
    assert first["score"] == pytest.approx(sum(first["eval"].values()) / 2)
    assert list(first["eval"]) == list(first["test"]) == ["digits_01", "parity"]
    node = json.loads((tmp_path / "1/checkpoint/node.json").read_text())
    assert node["task"] == ["digits_01", "parity"]
    lines = (tmp_path / "answers/parity_test.jsonl").read_text().splitlines()
    right = [json.loads(x)["answer"] == json.loads(x)["target"] for x in lines]
    assert sum(right) / len(right) == pytest.approx(first["test"]["parity"])

    chain = [*UNIFY, *QUICK, "delta.target_modules=[q,v]", "trainer.save_strategy=steps",
             "+trainer.save_steps=1", "+trainer.save_total_limit=1"]  # fmt: skip
    chain[-3] = "+" + chain[-3]
    parent = first["checkpoint"]
    for place, task in ((2, "sentiment"), (3, "arithmetic")):
        job = make_job(*chain, f"task={task}", f"init_from={parent}")
        result = finish(job, tmp_path / str(place))
        parent = result["checkpoint"]
    assert list(result["eval"]) == ["digits_01", "parity", "sentiment", "arithmetic"]
    assert result["orthogonal_loss_first"] > 0 and result["l2_loss"] > 0
    assert [p.name for p in Path(parent).glob("checkpoint-*")] == ["checkpoint-2"]
    last, kept = (loaded(job, Path(parent) / name) for name in ("", "checkpoint-2"))
    assert last.nodes[0].tasks == ("digits_01", "parity")
    # Two encoder layers, one decoder layer with two attentions: q and v of each.
    assert len(factors(last.model, "task3", ["task2"])) == (2 + 2) * 2
    for one, other in zip(last.model.parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_folder_with_the_checkpoint_of_another_run_is_not_written_over(
    make_job: Any, tmp_path: Path
) -> None:
    (tmp_path / "node.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"trainer\.save_dir=.*another run"):
        finish(make_job(f"+trainer.save_dir={tmp_path}"), tmp_path / "job")


@pytest.mark.slow
def test_the_encoder_decoder_learns_to_answer_about_images(make_job: Any, tmp_path: Path) -> None:
    """Far above chance, 0.5, on images it has not seen; 1.0 when this was written."""
    job = make_job("model=unify_tiny", "model.hidden_size=64", "model.num_attention_heads=4",
                   "model.intermediate_size=256", "model.patch_size=2", "task=digits_01",
                   "trainer.learning_rate=3e-3", "trainer.max_steps=60")  # fmt: skip
    assert finish(job, tmp_path)["eval"]["digits_01"] > 0.9
