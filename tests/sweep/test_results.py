"""The files a sweep leaves, against values worked out by hand; jobs are a table, not processes."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
import yaml
from support.plans import plan_of, sweep_of

from autocl_sweeper.display.summary import print_summary
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.results.result_file import training_params
from autocl_sweeper.retention import Leaders
from autocl_sweeper.types import History, Outcome, State, Suggestion, Trial

FAILED = Outcome(State.FAIL, reason="exit status 3", log_tail=("boom",))


def scored(evaluations, tests=None, **numbers):
    score = sum(evaluations.values()) / len(evaluations)
    return Outcome(
        State.COMPLETE,
        evaluations=evaluations,
        tests=tests or {},
        numbers={"score": score, **numbers},
        returned="dict",
        seconds=2.5,
    )


# Two tasks, two settings, beam of 2: trials 0, 1 on a; 2..5 on b, in the order s0p, s0q, s1p, s1q.
TABLE = [
    scored({"a": 0.6}, {"a": 0.55}),
    scored({"a": 0.8}, {"a": 0.75}, loss=0.1),
    scored({"a": 0.5, "b": 0.7}, {"a": 0.4, "b": 0.6}),
    scored({"a": 0.2, "b": 0.4}, {"a": 0.2, "b": 0.4}),
    FAILED,
    scored({"a": 0.7, "b": 0.1}, {"a": 0.7, "b": 0.2}),
]


def table_in(folder, outcomes):
    """One device, whose jobs have the outcomes of a table and save a file where a model would be."""

    def run(job):
        outcome = outcomes[job.number]
        subdir = next(t for t in job.overrides if t.startswith("hydra.sweep.subdir="))
        checkpoint = folder / subdir.partition("=")[2].strip("'") / "checkpoint"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text("w")
        if outcome.state is State.COMPLETE:
            outcome = replace(outcome, checkpoint=str(checkpoint))
        return outcome

    return SimulatedExecutor(1, run)


def sweep_in(folder, outcomes=TABLE, **settings):
    config = {"lr": 1, "model.lora_dim": 8, "per_device_train_batch_size": 4, "text": "x"}
    plan = plan_of("task=a,b", "lr=1,2", compose=lambda *_: config, **settings)
    sweep = sweep_of(folder, plan, table_in(folder, outcomes))
    return plan, sweep


@pytest.fixture
def finished(tmp_path):
    plan, sweep = sweep_in(tmp_path)
    return plan, sweep.run(), tmp_path


def test_the_result_file_keeps_autocls_layout_with_our_keys(finished):
    _, _, folder = finished
    lines = (folder / "autoCL_result.txt").read_text().splitlines()
    assert lines[0] == "-------------a beginner---------------"
    assert lines[4] == "-------------b beginner---------------"
    trials = [json.loads(line) for line in lines if '"trial"' in line]
    assert [trial["trial"] for trial in trials] == [0, 1, 2, 3, 4, 5]
    assert trials[2] == {
        "training_params": {"lr": 1, "lora_dim": 8, "train_bs": 4},
        "average_metrics": [0.8, 0.6],
        "test_result": [["a", 0.4], ["b", 0.6]],
        "model_save_path": "2_b/2/checkpoint",
        "task": "b",
        "stage": 2,
        "trial": 2,
        "parent": 1,
        "status": "COMPLETE",
        "reason": "",
        "score": 0.6,
        "score_split": "dev",
        "dev_result": [["a", 0.5], ["b", 0.7]],
        "log": "2_b/2/job.log",
        "seconds": 2.5,
    }
    assert (trials[4]["status"], trials[4]["reason"]) == ("FAIL", "exit status 3")
    selected = [json.loads(line) for line in lines if '"selected"' in line]
    assert selected[0] == {"selected": [1, 0], "stage": 1, "task": "a", "scores": [0.8, 0.6]}
    assert selected[1]["selected"] == [2, 5]


def test_the_result_file_can_be_rebuilt_from_the_journal(finished):
    _, _, folder = finished
    before = (folder / "autoCL_result.txt").read_bytes()
    (folder / "autoCL_result.txt").unlink()
    _, sweep = sweep_in(folder, outcomes=[])  # nothing is left to run
    sweep.run()
    assert (folder / "autoCL_result.txt").read_bytes() == before


def test_the_best_chain_has_one_entry_per_stage(finished):
    _, _, folder = finished
    told = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert told["best_score"] == told["best_value"] == 0.6
    assert told["best_params"] == {"lr": 1}
    assert [entry["trial"] for entry in told["chain"]] == [1, 2]
    assert told["chain"][1]["folder"] == "2_b/2"
    assert told["chain"][1]["params"] == {"lr": 1}
    assert told["chain"][1]["overrides"] == [
        "task=b",
        "lr=1",
        f"init_from={folder / '1_a/1/checkpoint'}",
    ]
    assert told["beams"] == {1: [1, 0], 2: [2, 5]}
    # The chain 1 -> 2 on dev: a was 0.8, is 0.5; on test 0.75, 0.4.
    assert told["metrics"]["eval"]["average_accuracy"] == pytest.approx(0.6)
    assert told["metrics"]["eval"]["backward_transfer"] == pytest.approx(-0.3)
    assert told["metrics"]["test"]["forgetting"] == pytest.approx(0.35)


def test_the_table_has_a_row_per_trial_and_a_column_per_number(finished):
    _, _, folder = finished
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == list("012345")
    assert rows[1]["param/lr"] == "2" and rows[1]["eval/a"] == "0.8" and rows[1]["loss"] == "0.1"
    assert rows[2]["test/b"] == "0.6" and rows[2]["parent"] == "1" and rows[2]["selected"] == "1"
    assert rows[4]["state"] == "FAIL" and rows[4]["score"] == "" and rows[4]["reason"]


def test_selection_never_looks_at_test_scores(tmp_path):
    good_on_test = [scored({"a": 0.6}, {"a": 0.9}), scored({"a": 0.8}, {"a": 0.1}), *TABLE[2:]]
    _, sweep = sweep_in(tmp_path, good_on_test)
    assert sweep.run().beams[1] == (1, 0)


def test_a_trial_ranked_by_test_rows_says_so(tmp_path):
    told = [scored({"a": 0.6}, selected_on_test=1), *TABLE[1:]]
    sweep_in(tmp_path, told)[1].run()
    lines = (tmp_path / "autoCL_result.txt").read_text().splitlines()
    splits = [json.loads(line)["score_split"] for line in lines if '"trial"' in line]
    assert splits[:2] == ["test", "dev"]


def test_forward_transfer_is_told_where_jobs_are_evaluated_on_tasks_to_come(tmp_path):
    # The best chain is 1 -> 2: on b 0.4 before anything, 0.55 behind a.
    told = [TABLE[0], scored({"a": 1.0, "b": 0.55}, before_b=0.4), *TABLE[2:]]
    sweep_in(tmp_path, told)[1].run()
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert [entry["trial"] for entry in best["chain"]] == [1, 2]
    assert best["metrics"]["eval"]["forward_transfer"] == pytest.approx(0.15)


def checkpoints(folder):
    return sorted(path.parent.name for path in folder.glob("*/*/checkpoint"))


def test_only_the_beam_and_its_ancestors_keep_their_checkpoints(finished):
    _, _, folder = finished
    # The beam of b is 2 and 5, children of 1 and of 0.
    assert checkpoints(folder) == ["0", "1", "2", "5"]


def test_all_checkpoints_stay_when_asked(tmp_path):
    _, sweep = sweep_in(tmp_path, keep_checkpoints="all")
    sweep.run()
    assert checkpoints(tmp_path) == ["0", "1", "2", "3", "4", "5"]


def test_a_parent_whose_line_died_out_loses_its_checkpoint(tmp_path):
    line_of_0_loses = [*TABLE[:5], scored({"a": 0.0, "b": 0.0})]
    _, sweep = sweep_in(tmp_path, [*line_of_0_loses[:4], TABLE[2], line_of_0_loses[5]])
    history = sweep.run()
    assert history.beams[2] == (2, 4) and {history[n].parent for n in (2, 4)} == {1}
    assert checkpoints(tmp_path) == ["1", "2", "4"]


@pytest.mark.parametrize("seed", range(20))
def test_leaders_never_drop_what_selection_would_keep(seed):
    import random

    plan = plan_of("task=a", "lr=1,2", top_k=3)
    scores = random.Random(seed).choices([0.1, 0.2, 0.3, 0.4, None], k=12)
    leaders, dropped, trials = Leaders(plan.selection), set(), []
    for number, score in enumerate(scores):
        state = State.FAIL if score is None else State.COMPLETE
        outcome = Outcome(state, score=score)
        trials.append(Trial(number, 1, "a", Suggestion(number, {}), None, outcome=outcome))
        dropped |= {trial.number for trial in leaders.add(trials[-1], History())}
    kept = {trial.number for trial in plan.selection(trials)}
    assert dropped == set(range(12)) - kept


@pytest.mark.parametrize(
    "config, searched, told",
    [
        ({"delta.lamda_1": 0.5, "model": "t5"}, (), {"lamda_1": 0.5}),
        ({"a.lr": 1, "b.lr": 2}, ("a.lr", "b.lr"), {"a.lr": 1, "b.lr": 2}),
        ({"+new": 3, "seed": 4}, ("+new",), {"new": 3, "seed": 4}),
    ],
)
def test_settings_are_told_by_short_names_unless_two_share_one(config, searched, told):
    assert training_params(config, dict.fromkeys(searched)) == told


def test_the_summary_shows_beams_matrix_metrics_chain_and_files(finished):
    from rich.console import Console

    plan, history, folder = finished
    text = io.StringIO()
    print_summary(plan, history, folder, Console(width=100, file=text))
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    for told in (
        "Beam of each stage (* is on the best chain)",
        "2 b *2 1 0.6000 1",
        "b 0.500 0.700 0.600",
        "average accuracy 0.6000, backward transfer -0.3000, forgetting 0.3000",
        "average accuracy 0.5000, backward transfer -0.3500, forgetting 0.3500",
        "Best chain: score 0.6000",
        "Chains through the last stage: 3, from 0.3000 to 0.6000",
        str(folder / "optimization_results.yaml"),
        str(folder / "2_b/2/checkpoint"),
    ):
        assert told in lines
