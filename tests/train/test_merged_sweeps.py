"""Merged starts that compete with the parents of a beam, in real sweeps that die and go on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench, wait_until
from support.train_app import ROOT

TASKS = "task=sentiment,parity,arithmetic"


def command(folders: Any) -> list[str]:
    return [
        *("hydra/sweeper=autocl", "hydra.sweeper.top_k=2", TASKS, "model=pretrained"),
        *(f"model.path={folders('t5')}", "delta=lora", "delta.lora_dim=3", "trainer.max_steps=2"),
        *("trainer.learning_rate=3e-2", "evaluate_test=false", "hydra/launcher=gpu_warm"),
        # The first task has two settings, so that the second one's beam has two parents.
        "+hydra.sweeper.task_params.sentiment=[{trainer.learning_rate:3e-2},{trainer.learning_rate:1e-2}]",
        *("hydra.launcher.cpu_slots=1", "merge.init=average", "merge.extra_parents=1"),
        *("merge.pool=beam", "+hydra.sweeper.handover.merge.sources=sources"),
    ]


def told(bench: Bench) -> dict[str, Any]:
    """What a sweep came to, without its own path and what may take another time."""
    with open(bench.sweep / "trials.csv", newline="") as file:
        rows = [
            {k: v for k, v in row.items() if "seconds" not in k and k != "attempt"}
            for row in csv.DictReader(file)
        ]
    plans = {row["folder"]: bench.sweep / row["folder"] / "merge_plan.json" for row in rows}
    found = {name: path.read_text() for name, path in plans.items() if path.exists()}
    return {
        "trials": rows,
        "plans": {name: t.replace(str(bench.sweep), "<sweep>") for name, t in found.items()},
        "chain": [(one["trial"], one["score"]) for one in bench.results()["chain"]],
        "beams": bench.results()["beams"],
    }


@pytest.mark.slow
def test_a_sweep_killed_while_it_trains_a_merge_ends_with_the_same_plans_and_chain(
    folders: Any, tmp_path: Path
) -> None:
    benches = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        benches.append(Bench(tmp_path / name, ROOT / "train.py"))
    whole, killed = benches
    try:
        output = whole.run(*command(folders))
        assert "the orthogonal loss starts high" in "".join(
            path.read_text() for path in whole.sweep.glob("3_*/*/job.log")
        ), output
        process = killed.start(*command(folders))
        wait_until(
            lambda: [*killed.sweep.glob("3_*/*/merge_plan.json")] or process.poll() is not None,
            "a job of the third task has its plan",
        )
        assert process.poll() is None, killed.printed(process)
        killed.kill(process)
        killed.run(*command(folders))
    finally:
        for bench in benches:
            bench.close()
    once = told(whole)
    # Two jobs, then twice two parents' and the merged start.
    starts = [(row["task"], row["extra"]) for row in once["trials"]]
    assert starts == [
        *(("sentiment", "0"), ("sentiment", "0")),
        *(("parity", "0"), ("parity", "0"), ("parity", "1")),
        *(("arithmetic", "0"), ("arithmetic", "0"), ("arithmetic", "1")),
    ]
    for place, stage in ((4, 1), (7, 2)):
        row, beam = once["trials"][place], once["beams"][stage]
        # A merged start descends from the best of the beam, and is made of all of it.
        assert row["parent"] == str(beam[0])
        assert json.loads(row["merged_from"]) == {str(number): 0.5 for number in beam}
        merged = json.loads(once["plans"][row["folder"]])
        assert [one["trial"] for one in merged["sources"]] == beam
    assert told(killed) == once


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "prefix", "ia3"])
def test_a_chain_killed_while_it_trains_a_delta_ends_with_the_same_weights(
    kind: str, folders: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    words = [
        *("hydra/sweeper=autocl", "hydra.sweeper.top_k=1", "task=sentiment,parity"),
        *(
            "model=pretrained",
            f"model.path={folders('t5')}",
            f"delta={kind}",
            "trainer.max_steps=4",
        ),
        *("trainer.learning_rate=3e-2", "evaluate_test=false", "hydra/launcher=gpu"),
        "hydra.launcher.cpu_slots=1",
    ]
    states = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, ROOT / "train.py")
        try:
            if name == "killed":
                process = bench.start(*words)
                wait_until(
                    lambda: [*bench.sweep.glob("2_*/1/job.log")] or process.poll() is not None,  # noqa: B023
                    "the job of the second task runs",
                )
                assert process.poll() is None, bench.printed(process)
                bench.kill(process)
            bench.run(*words)
        finally:
            bench.close()
        place = bench.sweep / "2_parity/1/checkpoint/task2/adapter_model.safetensors"
        states.append(load_file(place))
    assert (tmp_path / "killed/sweep/2_parity/1.attempt1").is_dir()
    assert states[0].keys() == states[1].keys()
    assert all((states[1][key] == value).all() for key, value in states[0].items())
