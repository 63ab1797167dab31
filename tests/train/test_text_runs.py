"""Runs on text: what they leave of their evaluation, and a sweep whose test rows are evaluated once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cl_benchmark import configure, dataset, overrides, rows
from support.runs import finish, meeting_of, planned
from support.train_app import SMALL, train

from train.config.task import MetricSettings, Task
from train.config.text_data import TextData
from train.config.typed import SettingsError
from train.data.rows import load
from train.data.task_plan import TaskPlan, plan_task
from train.final import FinalTestError, chains_of
from train.job import score_by
from train.loop import records
from train.loop.evaluation import Evaluated, scored

TINY = tuple(word for word in SMALL if "patch_size" not in word)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    dataset(tmp_path, "SC/SST-2", labels=("Good", "Bad"))
    dataset(tmp_path, "SC/yelp", test=rows("y", 6, ("Good", "Bad")), labels=("Good", "Bad"))
    dataset(tmp_path, "QQP/QQP")
    configure(tmp_path, "SST-2", train={"SC": ["SST-2"]})
    configure(tmp_path, "both", train={"SC": ["SST-2", "yelp"], "QQP": []})
    configure(tmp_path, "qqp_8", train={"QQP": ["QQP"]})
    return tmp_path


def plan(root: Path, name: str) -> TaskPlan:
    text = TextData(data_dir=str(root / "CL_Benchmark"), task_config_dir=str(root / "configs"))
    return plan_task(Task(name, "cl_benchmark"), text)


def evaluated(of: TaskPlan, answers: Sequence[str], **more: Any) -> Evaluated:
    assert of.rows is not None
    found = scored(of, of.rows.test, answers)
    made = Evaluated(of, "test", of.rows.test, answers, found, (3.0, 12), [2] * len(answers))
    return replace(made, **more)


def test_numbers_of_a_prediction_are_those_counted_by_hand(root: Path) -> None:
    # SST-2: Good Bad Good Bad; yelp: the same, six rows; QQP: True False True False.
    both = evaluated(plan(root, "both"), ["good."] * 4 + [" BAD"] * 5 + ["Good"])
    other = evaluated(plan(root, "qqp_8"), ["True", "False", "true", ""], lengths=[3, 4, 2, 1])
    assert both.score == pytest.approx(
        (2 / 4 + 2 / 6) / 2
    )  # the mean over its datasets, not over rows
    assert records.predict_results([both, other], 7) == {
        "predict_exact_match": 50.0,  # 2 + 2 + 3 of 14
        "predict_exact_match_for_SC": 40.0,
        "predict_exact_match_for_SST-2": 50.0,
        "predict_exact_match_for_yelp": 33.3333,
        "predict_exact_match_for_QQP": 75.0,  # group and dataset of one name
        "predict_exact_match_macro": 52.7778,
        "predict_loss": 0.25,
        "predict_gen_len": 2.1429,  # 20 + 10 ids in 14 answers
        "predict_samples": 14,
        "predict_global_step": 7,
    }
    assert records.apart([both, other]) == {
        "groups": {"SC": 40.0, "QQP": 75.0},
        "datasets": {"SST-2": 50.0, "yelp": 33.3333, "QQP": 75.0},
    }
    assert records.predictions([other])[1] == {
        "Task": "QQP",
        "Dataset": "QQP",
        "Instance": {
            "id": 1,
            "sentence": "QQP QQP test sentence 1",
            "prompt": other.rows[1]["prompt"],
            "label": "False",
        },
        "Prediction": "False",
        "Split": "test",
    }


def test_rouge_is_there_for_tasks_that_ask_for_it(root: Path) -> None:
    pytest.importorskip("torchmetrics")
    of = plan(root, "qqp_8")
    of = replace(of, metrics={**of.metrics, "rouge": MetricSettings("answer")})
    found = records.predict_results([evaluated(of, ["True", "no", "True", "False"])], 1)
    assert (found["predict_rougeL"], found["predict_rouge1_for_QQP"]) == (75.0, 75.0)


def test_a_run_leaves_the_files_of_the_published_scripts(
    root: Path, make_job: Any, tmp_path: Path
) -> None:
    short = "max_src_length:60,evaluation:{generator_args:{beam:1,max_len_b:4}}"
    task = f"+task={{both:{{_name:cl_benchmark,{short}}}}}"
    run = make_job(*overrides(root, task, *TINY))
    (tmp_path / "out").mkdir()
    returned = finish(run, tmp_path / "out")
    read = {path.name: path for path in (tmp_path / "out").iterdir()}
    everything = json.loads(read["all_results.json"].read_text())
    predicted = json.loads(read["predict_results.json"].read_text())
    trained = json.loads(read["train_results.json"].read_text())
    assert (predicted["predict_split"], predicted["predict_samples"]) == ("test", 10)
    assert predicted["predict_global_step"] == trained["train_steps"] == returned["steps"] == 1
    assert predicted["predict_loss"] > 0 and predicted["predict_gen_len"] >= 1
    assert everything.items() >= {**predicted, **trained}.items()
    assert set(everything["dev"]["datasets"]) == {"SST-2", "yelp"}
    lines = read["predict_eval_predictions.jsonl"].read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["Split"] for one in told] == ["dev"] * 8 + ["test"] * 10
    right = sum(one["Prediction"] == one["Instance"]["label"] for one in told[8:])
    assert predicted["predict_exact_match"] == 100 * right / 10
    # 60 ids, and every prompt is longer than 60 bytes.
    state = json.loads(read["trainer_state.json"].read_text())
    assert state["global_step"] == 1 and "train_loss" in state["log_history"][0]
    assert trained["train_over_length"] == {"both": {"train": 16, "dev": 8, "test": 10}}


@pytest.mark.parametrize("keep_end", [False, True])
def test_a_prompt_that_is_too_long_is_cut_from_the_right_or_inside(
    root: Path, make_job: Any, keep_end: bool
) -> None:
    task = "+task={qqp_8:{_name:cl_benchmark,max_src_length:40}}"
    run = make_job(*overrides(root, task, f"keep_end={str(keep_end).lower()}", *TINY))
    met = meeting_of(run)
    row = planned(run)["qqp_8"].rows.train[0]  # type: ignore[union-attr]
    made = met.example(row, np.random.default_rng(0), False, "row")
    assert len(made.source) == 40  # with a begin mark and an end mark
    assert made.source[-1] == met.vocabulary.eos
    text = row["prompt"]
    wanted = text[:30] + "\nAnswer:" if keep_end else text[:38]
    assert met.vocabulary.decode(made.source[1:-1]) == wanted


def test_a_closed_set_that_lost_its_quotes_is_refused_with_the_reason(
    make_job: Any, tmp_path: Path
) -> None:
    for part in ("a", "dev"):
        (tmp_path / f"{part}.tsv").write_text("".join(f"{part}{i}\tyes\n" for i in range(3)))
    files = f"train_data:{tmp_path}/a.tsv,valid_data:{tmp_path}/dev.tsv,selected_cols:'0:q,1:a'"
    node = f"{{instruction:{{template:'[TEXT:q] -> [TEXT:a,closed_set]'}},dataset:{{{files}}}}}"
    answers = "+task.t.preprocess.text.ans2label={true:0,false:1}"  # as YAML reads yes and no
    run = make_job("model=unify_tiny", f"+task={{t:{node}}}", answers, *TINY)
    with pytest.raises(SettingsError, match=r"no answer for 'yes' \(3 rows\) of train.*quote them"):
        load(planned(run)["t"], run.evaluation)


def test_the_score_of_a_job_is_of_the_tasks_seen_its_own_or_the_worst() -> None:
    found = {"a": 0.9, "b": 0.5, "c": 0.7}
    scores = [score_by(choice, found, ["c"]) for choice in ("seen", "current", "worst")]
    assert scores == pytest.approx([0.7, 0.7, 0.5])


def test_a_mistake_in_the_data_ends_a_sweep_before_its_first_job(
    root: Path, tmp_path: Path
) -> None:
    dataset(root, "QQP/QQP", dev=rows("x", 4), test=rows("x", 4))
    done = train(
        tmp_path,
        *("-m", "hydra/sweeper=autocl", "task=SST-2,qqp_8", "hydra.sweep.dir=sweep"),
        *overrides(root, *TINY),
    )
    assert done.returncode != 0
    assert re.search(r"dev\.json is the same file as test\.json", done.stderr), done.stderr
    assert not list((tmp_path / "sweep").glob("1_*"))


def test_a_sweep_that_is_not_over_or_not_ours_is_not_tested(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text("trial,parent\n0,\n1,0\n2,0\n")
    best = tmp_path / "optimization_results.yaml"
    with pytest.raises(FinalTestError, match="holds no sweep"):
        chains_of(tmp_path)
    best.write_text("{name: optuna}")
    with pytest.raises(FinalTestError, match="was not written by hydra/sweeper=autocl"):
        chains_of(tmp_path)
    best.write_text("{name: autocl, stages: 2, stages_finished: 1, beams: {1: [0]}}")
    with pytest.raises(FinalTestError, match="1 of 2 stages are over"):
        chains_of(tmp_path)
    best.write_text("{name: autocl, stages: 2, stages_finished: 2, beams: {1: [0], 2: [2, 1]}}")
    assert [[one["trial"] for one in chain] for chain in chains_of(tmp_path)] == [
        ["0", "2"],
        ["0", "1"],
    ]


@pytest.mark.slow
def test_a_sweep_over_folders_evaluates_test_once_for_its_last_beam(
    root: Path, tmp_path: Path
) -> None:
    done = train(
        tmp_path,
        *("-m", "hydra/sweeper=autocl", "task=SST-2,qqp_8", "hydra.sweep.dir=sweep"),
        *("evaluate_test=final", "seen_tasks=[SST-2,qqp_8]", "hydra.sweeper.top_k=1"),
        *overrides(root, *TINY, "trainer.learning_rate=1e-3,1e-2", "closed_set=true"),
    )
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"
    lines = [
        line for line in (sweep / "autoCL_result.txt").read_text().splitlines() if line[0] == "{"
    ]
    trials = [json.loads(line) for line in lines if "trial" in json.loads(line)]
    assert [one["test_result"] for one in trials] == [[]] * 4
    told = (sweep / "optimization_results.yaml").read_text()
    assert re.search(r"^    forward_transfer: ", told, re.MULTILINE), told
    (chain,) = json.loads((sweep / "test_results.json").read_text())["chains"]
    assert chain["tasks"] == ["SST-2", "qqp_8"]
    assert [len(row) for row in chain["matrix"]] == [1, 2]
    assert chain["metrics"]["average_accuracy"] == pytest.approx(sum(chain["matrix"][1]) / 2)
    splits = {}
    for one in trials:
        (folder,) = sweep.glob(f"*/{one['trial']}")
        found = json.loads((folder / "predict_results.json").read_text())
        splits[str(one["trial"])] = found["predict_split"]
    assert {number for number, split in splits.items() if split == "test"} == set(chain["trials"])
