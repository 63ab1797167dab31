"""Few-shot tasks: the files, the sampling tool, seven metrics, and a run on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import finish, loaded, meeting_of, model_of, planned, trainings
from support.train_app import ENV, ROOT, train

from train.config.task import MetricSettings
from train.config.typed import SettingsError
from train.data.few_shot import METRICS
from train.data.few_shot_metrics import few_shot_metric
from train.data.task_metrics import compute
from train.delta.seqft import DELTA
from train.loop import trainer


@pytest.mark.parametrize(
    ("name", "answer", "truths", "value"),
    [
        ("ACC", "Yes", ["yes"], 1),
        ("ACC", "yes.", ["yes"], 0),
        ("ACC", "b", ["a", "B"], 1),
        ("EM", "The  Beatles!", ["beatles"], 1),
        ("EM", "a beatle", ["beatles"], 0),
        # 2 of 3 words right, 2 of 2 words found: 2 * (2/3 * 1) / (2/3 + 1)
        ("QA-F1", "the red big apple", ["red apple", "pear"], 0.8),
        ("QA-F1", "the", ["an"], 1),  # both are empty when normalised
        ("QA-F1", "", ["apple"], 0),
        # longest common subsequence 'a c d': 3 of 4 and 3 of 3
        ("Rouge-L", "a b c d", ["a c d"], 6 / 7),
        ("Rouge-L", "d c a", ["a c d"], 1 / 3),
        ("Rouge-L", "...", ["..."], 0),
    ],
)
def test_a_metric_of_one_row_has_the_value_worked_out_by_hand(
    name: str, answer: str, truths: list[str], value: float
) -> None:
    assert few_shot_metric(name, [answer], [truths]) == {name: pytest.approx(value)}


def test_classification_f1_is_the_mean_over_gold_labels_of_the_first_answers() -> None:
    """Label a: 1 of 2 given, 1 of 2 wanted: 1/2. Label b: 1 of 1 given, 1 of 1 wanted: 1. c is no class."""
    answers, truths = ["a", "c", "b", "a"], [["a"], ["a"], ["b", "a"], ["d"]]
    found = few_shot_metric("Classification-F1", answers, truths)
    assert found == {"Classification-F1": pytest.approx((1 / 2 + 1 + 0) / 3)}


def test_correlations_are_those_of_numpy_and_say_what_they_left_out() -> None:
    answers, truths = ["1", "2.5", "none", "4", "nan"], ["1", "2", "3", "5", "1"]
    found = few_shot_metric("Pearson-Correlation", answers, [[t] for t in truths])
    wanted = np.corrcoef([1, 2.5, 4], [1, 2, 5])[0, 1]
    assert found == {"Pearson-Correlation": pytest.approx(wanted), "no_number": 2}
    # True and right 2, false and right 1, one missed, none too many: (2*1 - 0*1) / sqrt(2*3*1*2)
    answers = ["acceptable", "unacceptable", "acceptable", "x"]
    truths = ["acceptable", "unacceptable", "acceptable", "acceptable"]
    found = few_shot_metric("Matthew-Correlation", answers, [[t] for t in truths])
    assert found == {"Matthew-Correlation": pytest.approx(2 / 12**0.5)}


def test_all_right_answers_of_a_row_reach_the_metric() -> None:
    assert compute("EM", MetricSettings("answers"), ["b", "z"], ["a\tb", "a\tb"]) == {"EM": 0.5}


def put(root: Path, task: str, sample: str = "", **parts: str) -> None:
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev", "test"):
        lines = parts.get(part) or "".join(f"{part} {i}\tyes\tsure\n" for i in range(6))
        path = folder / f"{sample or task + '_6_42'}_{part}.tsv"
        path.write_text(lines, encoding="utf-8")


def of(root: Path, task: str, folder: Path, *more: str) -> list[str]:
    return [
        "model=pretrained", f"model.path={folder}", f"data_dir={root}",
        f"+task.{task}._name=few_shot", "~task.sentiment", "trainer.max_steps=2", *more,
    ]  # fmt: skip


def plan_of(make: Any, folders: Any, root: Path, task: str, *more: str) -> Any:
    return planned(make(*of(root, task, folders("t5"), *more)))[task]


def test_rows_have_their_prompt_and_every_answer(make: Any, folders: Any, tmp_path: Path) -> None:
    put(tmp_path, "mc_taco", train='one "x\tyes\n\ntwo\tno\tnever\n')
    plan = plan_of(make, folders, tmp_path, "mc_taco")
    rows = plan.rows.train
    assert [r["prompt"] for r in rows] == [' [mc_taco] one "x', " [mc_taco] two"]
    assert [r["answers"] for r in rows] == ["yes", "no\tnever"]
    assert plan.logged == ("ACC",) and plan.max_src_length == 512 and plan.max_tgt_length == 64


@pytest.mark.parametrize(
    ("task", "metric"),
    [("codah", "Classification-F1"), ("hotpot_qa", "QA-F1"), ("search_qa", "EM"), ("mine", "ACC")],
)
def test_a_task_has_the_metric_of_its_name(
    task: str, metric: str, make: Any, folders: Any, tmp_path: Path
) -> None:
    put(tmp_path, task)
    assert plan_of(make, folders, tmp_path, task).logged == (metric,)


def test_the_table_names_the_published_number_of_tasks() -> None:
    assert Counter(METRICS.values()) == {"EM": 5, "QA-F1": 3, "Rouge-L": 3, "Classification-F1": 1}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"train": "one\tyes\ntwo\n"}, r"mc_taco_6_42_train.tsv, line 2: has no answer"),
        ({"dev": "one\t \n"}, r"_dev.tsv, line 1: has no answer"),
        ({"dev": "same\tyes\n", "test": "same\tno\n"}, r"_test.tsv: 1 inputs are in dev as well"),
        ({"train": "\n"}, r"_train.tsv: has no rows"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_file_and_line(
    parts: dict[str, str], words: str, make: Any, folders: Any, tmp_path: Path
) -> None:
    put(tmp_path, "mc_taco", **parts)
    with pytest.raises(SettingsError, match=words):
        plan_of(make, folders, tmp_path, "mc_taco")


def test_of_several_samples_one_has_to_be_named(make: Any, folders: Any, tmp_path: Path) -> None:
    for seed in (13, 21):
        put(tmp_path, "qasc", f"qasc_16_{seed}")
    with pytest.raises(SettingsError, match="has 2 samples: qasc_16_13, qasc_16_21"):
        plan_of(make, folders, tmp_path, "qasc")
    plan_of(make, folders, tmp_path, "qasc", "+task.qasc.dataset.sample=qasc_16_21")


def test_training_draws_each_answer_and_selection_has_the_first(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    put(tmp_path, "mc_taco", train="one\tbad\tgood\n")
    run = make(*of(tmp_path, "mc_taco", folders("t5")))
    task, row = meeting_of(run), planned(run)["mc_taco"].rows.train[0]

    def answer(seed: int, training: bool) -> str:
        made = task.example(row, np.random.default_rng(seed), training, "row")
        assert made.learned[1:] == (True,) * (len(made.decoder) - 1)  # <extra_id_0> is learned, too
        return str(task.vocabulary.decode([*made.decoder[2:-1]])).strip()

    assert {answer(seed, True) for seed in range(20)} == {"bad", "good"}
    assert {answer(seed, False) for seed in range(20)} == {"bad"}


def test_a_zero_shot_run_trains_nothing_and_is_scored(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    put(tmp_path / "data", "mc_taco")
    own = of(tmp_path / "data", "mc_taco", folders("t5"), "trainer.optim=adafactor")
    told = finish(make(*own, "trainer.do_train=false", "trainer.do_test=false"), tmp_path / "0")
    assert told["steps"] == 0 and told["test"] == {} and told["eval"].keys() == {"mc_taco"}
    trained = finish(make(*own), tmp_path / "1")
    assert trained["steps"] == 2 and trained["test"].keys() == {"mc_taco"}


def selected(
    make: Any, folders: Any, root: Path, scores: list[float], *more: str, nothing_left: int = 0
) -> tuple[list[str], int]:
    """The update that the weights are from, as text, and how many there were, for given dev scores.

    nothing_left: the update whose training loss is next to 0.
    """
    put(root, "mc_taco")
    run = make(
        *of(root, "mc_taco", folders("t5"), "trainer.eval_strategy=steps", "trainer.eval_steps=1",
            "trainer.metric_for_best_model=score", "trainer.greater_is_better=true",
            "trainer.patience=2", "delta=seqft", "trainer.learning_rate=1e-2", *more),
        f"trainer.max_steps={len(scores)}",
    )  # fmt: skip
    model, seen = model_of(run), []

    def validate(step: int) -> dict[str, float]:
        seen.append(model.shared.weight.detach().clone())
        return {"score": scores[step - 1]}

    plain, calls = trainer.task_loss, iter(range(1, 100))

    def loss(*args: Any) -> tuple[torch.Tensor, Any]:
        own, logits = plain(*args)
        return own * (1e-9 if next(calls) == nothing_left else 1.0), logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "task_loss", loss)
        done = trainer.train(model, trainings(run), DELTA(run.delta), run, 0, root, validate)
    same = [str(i) for i, one in enumerate(seen, start=1) if torch.equal(one, model.shared.weight)]
    return same, done.steps


def test_a_tie_is_an_improvement_of_few_shot_tasks_and_nothing_learned_is_none(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    ties = [0.5, 0.5, 0.25, 0.5, 0.25, 0.25, 0.75]
    # The later of two equal ones stays, and starts the patience anew.
    assert selected(make, folders, tmp_path / "1", ties) == (["4"], 6)
    assert selected(make, folders, tmp_path / "2", ties, "trainer.ties_improve=false") == (["1"], 3)
    # The third validation is the best, but there was nothing left to learn before it.
    rising = [0.25, 0.5, 0.75, 0.25]
    assert selected(make, folders, tmp_path / "3", rising, nothing_left=3) == (["2"], 4)
    assert selected(make, folders, tmp_path / "4", rising) == (["3"], 4)


def test_a_batch_above_the_micro_batch_is_split_exactly_and_a_remainder_is_refused(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    """6 rows of unlike lengths in one update: at once, in 3 micro-batches of 2, or one by one."""
    rows = "".join(f"train {'long ' * i}{i}\tyes{' no' * (i % 3)}\n" for i in range(6))
    put(tmp_path / "data", "mc_taco", train=rows)
    base = of(
        tmp_path / "data", "mc_taco", folders("t5"), "trainer.learning_rate=0.1", "trainer.optim=sgd",
        "model.config={dropout_rate:0.0}", "evaluate_test=false",
    )  # fmt: skip
    states = []
    for size in (6, 2, 1):
        run = make(*base, "trainer.batch_size=6", f"trainer.micro_batch_size={size}")
        assert run.trainer["per_device_train_batch_size"] == size
        told = finish(run, tmp_path / str(size))
        assert told["steps"] == 2
        states.append(loaded(run, tmp_path / str(size) / "checkpoint").model.state_dict())
    for other in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-6)
    with pytest.raises(
        SettingsError, match=r"batch_size=24: above .*=16 it must be .* instance 16"
    ):
        make(*base, "trainer.batch_size=24")
    with pytest.raises(
        SettingsError, match=r"gradient_accumulation_steps=2 says the same in anoth"
    ):
        make(*base, "trainer.batch_size=8", "trainer.gradient_accumulation_steps=2")


@pytest.mark.slow
def test_the_test_rows_of_a_grid_are_evaluated_for_the_winner_by_dev_alone(
    folders: Any, tmp_path: Path
) -> None:
    put(tmp_path / "data", "mc_taco")
    done = train(
        tmp_path, "-m", "hydra/sweeper=autocl", "task=mc_taco",
        "data_dir=data", "model=pretrained", f"model.path={folders('t5')}", "trainer.max_steps=1",
        "trainer.learning_rate=1e-3,1e-2", "trainer.batch_size=2,4", "evaluate_test=final",
        "hydra.sweep.dir=grid", "hydra.sweeper.top_k=1", timeout_s=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folders_of = [path.parent for path in (tmp_path / "grid").rglob("all_results.json")]
    assert len(folders_of) == 4
    splits = {
        folder.name: json.loads((folder / "predict_results.json").read_text())["predict_split"]
        for folder in folders_of
    }
    [chain] = json.loads((tmp_path / "grid/test_results.json").read_text())["chains"]
    [winner] = chain["trials"]
    assert splits.pop(winner) == "test" and {*splits.values()} == {"dev"}


def test_the_sampling_tool_writes_crossfits_names_and_the_seed_alone_decides(
    tmp_path: Path,
) -> None:
    lines = [f"line {i}\t{'AB'[i % 2]}" for i in range(20)]
    (tmp_path / "all.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "valid.tsv").write_text("v1\tA\nv2\tB\n")

    def sampled(folder: str, seed: int) -> dict[str, list[str]]:
        command = [sys.executable, "-m", "train.sample", "all.tsv", "valid.tsv", folder]
        env = {**ENV, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [*command, "--k", "3", "--seed", str(seed), "--classes"],
            cwd=tmp_path, env=env, check=True, timeout=300,
        )  # fmt: skip
        stem = f"{Path(folder).name}_3_{seed}"
        return {
            part: (tmp_path / folder / f"{stem}_{part}.tsv").read_text().splitlines()
            for part in ("train", "dev", "test")
        }

    one = sampled("a/codah", 13)
    assert one == sampled("b/codah", 13) and one["train"] != sampled("b/codah", 21)["train"]
    for part in ("train", "dev"):
        assert sorted(line.split("\t")[1] for line in one[part]) == ["A"] * 3 + ["B"] * 3
    assert not set(one["train"]) & set(one["dev"]) and one["test"] == ["v1\tA", "v2\tB"]


@pytest.mark.slow
def test_the_command_line_finds_few_shot_tasks_by_their_folder(
    folders: Any, tmp_path: Path
) -> None:
    put(tmp_path / "data", "mc_taco")
    done = train(
        tmp_path, "task=mc_taco", "data_dir=data", "model=pretrained",
        f"model.path={folders('t5')}", "trainer.max_steps=1", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "run/all_results.json").read_text())
    assert told["eval"].keys() == {"mc_taco"}
