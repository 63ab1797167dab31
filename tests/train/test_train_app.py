"""`python train.py` as users and sweeps run it: fresh processes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs import finish, loaded
from support.train_app import ROOT, SMALL, train

from autocl_sweeper.reporter import VARIABLE

SHORT = (*SMALL, "+trainer.max_steps=2")


def test_help_loads_no_torch(tmp_path: Path) -> None:
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['train.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally: print('LOADED', sorted({'torch', 'peft', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "digits_01, digits_23" in done.stdout and "LOADED []" in done.stdout, done.stderr


def test_a_task_without_config_is_refused_with_the_list_of_tasks(tmp_path: Path) -> None:
    done = train(tmp_path, "task=digits_99")
    assert done.returncode != 0 and "digits_89" in done.stderr


def test_a_search_begins_with_the_app_s_own_values_though_only_its_code_has_them(
    tmp_path: Path,
) -> None:
    task = "task=digits_01,digits_23,digits_45,digits_67,digits_89"
    done = train(
        tmp_path, "-m", "experiment=split_digits_search", task, "hydra.sweeper.dry_run=true"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first = "0: learning_rate=0.001 num_train_epochs=5 lamda_1=0.1 lamda_2=0"
    assert f"{first}  [the app's own configuration]" in done.stdout


def test_jobs_are_forked_from_a_process_that_imported_the_app_and_make_a_chain(
    tmp_path: Path,
) -> None:
    sweep = tmp_path / "sweep"
    done = train(
        tmp_path, "-m", "hydra/sweeper=autocl", "hydra.sweeper.top_k=1", "hydra.sweep.dir=sweep",
        "task=digits_01,digits_23", "seed=0", "delta.lora_dim=4", *SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preloaded torch, transformers, peft, sklearn.datasets, train.job in " in done.stdout
    assert "fresh interpreters" not in done.stdout
    one, two = sweep / "1_digits_01/0", sweep / "2_digits_23/1"
    assert 0 < json.loads((one / "all_results.json").read_text())["score"] <= 1

    results = json.loads((two / "all_results.json").read_text())
    assert list(results["eval"]) == list(results["test"]) == ["digits_01", "digits_23"]
    assert results["score"] == pytest.approx(sum(results["eval"].values()) / 2)
    assert results["checkpoint"] == str(two / "checkpoint")
    assert results["orthogonal_loss"] == 0.0  # the base is no adapter: nothing to be orthogonal to
    assert results["l2_loss"] > 0

    assert (one / "checkpoint/base/model.safetensors").exists()
    node = json.loads((two / "checkpoint/node.json").read_text())
    assert node == {
        "task": "digits_23",
        "parent": "../../../1_digits_01/0/checkpoint",
        "delta": "adapters",
    }
    left = {p.relative_to(two).as_posix() for p in two.rglob("*") if p.is_file()}
    assert {f for f in left if not f.startswith(".hydra/")} == {
        "all_results.json",
        "job.log",
        "predict_eval_predictions.jsonl",
        "predict_results.json",
        "train.log",
        "train_results.json",
        "trainer_state.json",
        "checkpoint/README.md",
        "checkpoint/node.json",
        "checkpoint/task2/adapter_config.json",
        "checkpoint/task2/adapter_model.safetensors",
    }


def test_a_relative_parent_is_where_the_command_was_typed(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = finish(make_job("+trainer.max_steps=1"), tmp_path / "one")["checkpoint"]
    base = (Path(parent) / "base/model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    run = make_job("task=digits_23", "init_from=one/checkpoint", "+trainer.max_steps=1")
    two = Path(finish(run, tmp_path / "two")["checkpoint"])
    assert json.loads((two / "node.json").read_text())["parent"] == "../../one/checkpoint"
    assert (Path(parent) / "base/model.safetensors").read_bytes() == base


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    make_job: Any, tmp_path: Path
) -> None:
    def chain(name: str, seed: int) -> tuple[float, float]:
        few = (f"seed={seed}", "+trainer.max_steps=4")
        first = finish(make_job(*few), tmp_path / name / "1")
        parent = first["checkpoint"]
        second = finish(
            make_job("task=digits_23", f"init_from={parent}", *few), tmp_path / name / "2"
        )
        return first["train_loss"], second["train_loss"]

    once, again, other = chain("a", 0), chain("b", 0), chain("c", 1)
    assert once == again
    assert once[0] != other[0] and once[1] != other[1]


def test_every_place_of_a_chain_draws_its_own_adapter(make_job: Any, tmp_path: Path) -> None:
    """The same draw for parent and child would be the opposite of orthogonal."""
    from train.delta.olora import factors

    still = ("trainer.learning_rate=0", "+trainer.max_steps=1")
    parent = "null"
    for task in ("digits_01", "digits_23", "digits_45"):
        run = make_job(f"task={task}", f"init_from={parent}", *still)
        parent = finish(run, tmp_path / task)["checkpoint"]
    model = loaded(make_job(), Path(parent)).model
    for module in factors(model, "task3", ["task2"]):
        assert (module.a_old - module.a_new).abs().max() > 0.1


def test_every_validation_is_reported_with_its_update(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[float, int]] = []
    monkeypatch.setattr("train.job.report", lambda score, step: reports.append((score, step)))
    every = ("+trainer.eval_strategy=steps", "+trainer.eval_steps=2", "+trainer.max_steps=4")
    score = finish(make_job(*every), tmp_path)["score"]
    assert [step for _, step in reports] == [2, 4] and reports[-1][0] == score


def test_what_is_reported_after_the_first_task_is_what_the_sweep_ranks(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ("+trainer.eval_strategy=steps", "+trainer.eval_steps=2", "+trainer.max_steps=4")
    first = finish(make_job(*every), tmp_path / "first")["checkpoint"]
    monkeypatch.setenv(VARIABLE, str(tmp_path / "reports"))
    second = ("task=digits_23", f"init_from={first}", "seen_tasks=[digits_01,digits_23]")
    result = finish(make_job(*every, *second), tmp_path / "second")
    lines = [json.loads(line) for line in (tmp_path / "reports").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    # The mean over both tasks, as after the training, and not that of the second task alone.
    assert lines[-1]["score"] == pytest.approx(result["score"])
    assert result["score"] == pytest.approx(sum(result["eval"].values()) / 2)
    assert result["eval"]["digits_01"] != result["eval"]["digits_23"]


@pytest.mark.slow
def test_a_sweep_of_digits_stops_what_learns_nothing_and_keeps_what_learns(tmp_path: Path) -> None:
    done = train(
        tmp_path, "-m", "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.sweep.dir=sweep",
        "hydra.launcher.cpu_slots=1", "hydra.launcher.order=submitted", "hydra.sweeper.top_k=1",
        "hydra.sweeper.prune={rule:asha,max_steps:400}", "task=digits_01",
        "trainer.learning_rate=3e-3,1e-7", *SMALL, "+trainer.max_steps=400",
        "+trainer.eval_strategy=steps", "+trainer.eval_steps=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "sweep/trials.csv") as file:
        good, bad = csv.DictReader(file)
    assert (good["state"], good["step"], good["selected"]) == ("COMPLETE", "400", "1")
    # The report at 50 is the first at or beyond the rung of 45 steps.
    assert (bad["state"], bad["step"], bad["cause"]) == ("PRUNED", "50", "early_stopped")
    assert float(good["score"]) > 0.9 > float(bad["score"])
    assert not (tmp_path / "sweep/1_digits_01/1/checkpoint").exists()
