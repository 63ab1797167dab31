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
        *("trainer.learning_rate=3e-2", "evaluate_test=false", "hydra/launcher=gpu"),
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
    # One job, then the parent's and the merged start, then two parents' and the merged start.
    starts = [(row["task"], row["parent"], row["extra"]) for row in once["trials"]]
    assert [(task, extra) for task, _, extra in starts] == [
        ("sentiment", "0"),
        *(("parity", "0"), ("parity", "1")),
        *(("arithmetic", "0"), ("arithmetic", "0"), ("arithmetic", "1")),
    ]
    # A merged start descends from the best of the beam.
    assert starts[-1][1] == starts[3][1]
    merged = json.loads(once["plans"][once["trials"][-1]["folder"]])
    assert {one["trial"] for one in merged["sources"]} == {1, 2}
    assert merged["weights"] == {"parity_1": 0.5, "parity_2": 0.5}
    assert told(killed) == once
