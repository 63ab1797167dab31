"""`autocl compare`: numbers of whole sweeps from their journals, by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.bench import REPOSITORY, Bench
from support.lineages import Simulated
from support.plans import plan_of

from autocl_sweeper.cli import main
from autocl_sweeper.compare import compare, t_quantile
from autocl_sweeper.types import DeviceUse, Outcome, State

pytestmark = pytest.mark.usefixtures("no_fsync")


def sweep(folder: Path, x: float, seed: int = 0, **settings) -> Path:
    """Two tasks: x on the first, forgotten by 0.1 while the second comes to x / 2."""

    def turns(lineage):
        scores = [{"a": x}, {"a": x - 0.1, "b": x / 2}][len(lineage) - 1]
        return Outcome(
            State.COMPLETE,
            evaluations=scores,
            tests={task: score - 0.01 for task, score in scores.items()},
            seconds=1800.0,
            device=DeviceUse(("GPU-1", "GPU-2")),
            returned="dict",
        )

    made = plan_of("task=a,b", "lr=1,2", seed=seed, top_k=1, handover={"p": "parent"}, **settings)
    Simulated(folder, made, turns)
    return folder


def test_accuracy_forgetting_jobs_and_device_hours_are_those_of_the_best_chain(tmp_path):
    (row,) = compare([sweep(tmp_path / "one", 0.9)])
    (found,) = row.sweeps
    assert found.dev == pytest.approx((0.8 + 0.45) / 2)
    assert found.test == pytest.approx((0.79 + 0.44) / 2)
    assert found.dev_forgetting == found.test_forgetting == pytest.approx(0.1)
    assert found.jobs == 4 and found.device_hours == pytest.approx(4 * 0.5 * 2)
    assert row.mean("dev").half is None


def test_sweeps_that_differ_in_their_seed_are_one_row_with_mean_and_t_interval(tmp_path):
    folders = [sweep(tmp_path / f"seed_{n}", x, seed=n) for n, x in enumerate((0.8, 0.9, 0.7))]
    other = sweep(tmp_path / "greedy", 0.9, protocol="greedy")
    more = sweep(tmp_path / "more", 0.9, jobs=2)
    row, *others = compare([*folders, other, more])
    assert [len(one.sweeps) for one in (row, *others)] == [3, 1, 1]
    dev = row.mean("dev")
    # (1.5 x - 0.1) / 2 of 0.8, 0.9 and 0.7: 0.55, 0.625, 0.475, whose deviation is 0.075.
    assert dev.mean == pytest.approx(0.55)
    assert dev.half == pytest.approx(4.302653 * 0.075 / 3**0.5, rel=1e-5)


@pytest.mark.parametrize(
    "freedom, value",
    [
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (9, 2.26216),
        (10, 2.22814),
        (30, 2.04227),
        (120, 1.97993),
    ],
)  # fmt: skip  (from a printed table)
def test_the_quantiles_are_students(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, abs=6e-5)


def test_the_app_s_own_seeds_count_as_seeds(tmp_path):
    def configured(seed):
        return {"seed": seed, "data.split_seed": seed, "trainer.epochs": 3}

    folders = [
        sweep(tmp_path / str(n), 0.9, compose=lambda *_, n=n: configured(n)) for n in range(2)
    ]
    longer = {**configured(0), "trainer.epochs": 4}
    other = sweep(tmp_path / "longer", 0.9, compose=lambda *_: longer)
    assert [len(row.sweeps) for row in compare([*folders, other])] == [2, 1]


def unfinished(folder: Path, whole: Path) -> Path:
    """The journal as it was when the second stage had begun."""
    shutil.copytree(whole, folder)
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "select")
    (folder / "journal.jsonl").write_text("".join(lines[: place + 2]) + '{"torn')
    return folder


def test_an_unfinished_sweep_is_named_and_in_no_mean(tmp_path, capsys):
    whole = sweep(tmp_path / "whole", 0.9)
    part = unfinished(tmp_path / "part", whole)
    (row,) = compare([whole, part])
    assert row.mean("dev").mean == pytest.approx(0.625) and len(row.finished) == 1
    assert main(["compare", str(whole), str(part)]) == 0
    told = capsys.readouterr().out
    assert (
        f"'{part}' is not finished, so no mean includes it: its best chain has 1 of 2 tasks (dev 0.9000 so far)"
        in told
    )
    assert main(["compare", str(part)]) == 0
    assert "is not finished" in capsys.readouterr().out


def test_the_table_and_the_json_say_the_same(tmp_path, capsys):
    folders = [sweep(tmp_path / f"beam_{n}", x, seed=n) for n, x in enumerate((0.8, 0.9))]
    folders.append(sweep(tmp_path / "greedy", 0.7, protocol="greedy"))
    given = [str(folder) for folder in folders]
    assert main(["compare", *given]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line and line[0] in ("beam_*", "greedy")}
    # 0.55 and 0.625: 12.706 * 0.053033 / sqrt(2) = 0.476
    beam = (
        "beam grid 1 all 2 0.588 ± 0.476 0.578 ± 0.476 0.100 ± 0.000 0.100 ± 0.000 4 4.000 ± 0.000"
    )
    assert " ".join(rows["beam_*"]) == beam
    assert " ".join(rows["greedy"]) == "greedy grid 1 all 1 0.475 0.465 0.100 0.100 4 4.000"
    assert main(["compare", "--json", *given]) == 0
    beam, greedy = json.loads(capsys.readouterr().out)
    assert beam["protocol"] == "beam" and greedy["protocol"] == "greedy"
    assert [one["folder"] for one in beam["sweeps"]] == given[:2]
    assert beam["dev"]["mean"] == pytest.approx(0.5875) and greedy["dev"]["half"] is None


def test_a_sweep_without_scores_by_task_has_jobs_and_hours_alone(tmp_path, capsys):
    made = plan_of("task=a,b", "lr=1,2", handover={"p": "parent"})
    score = Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float", seconds=3600)
    Simulated(tmp_path / "run", made, lambda lineage: score)
    (row,) = compare([tmp_path / "run"])
    assert row.mean("dev") is None and row.mean("device_hours").mean == pytest.approx(6)
    assert main(["compare", str(tmp_path / "run")]) == 0
    assert " dev " not in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize(
    "journal, words",
    [
        (None, "holds no sweep: No such file"),
        ("", "has no sweep in it yet"),
        ('{"event": "sweep", "version": 1, "fingerprint": {}}\n', "hydra.sweeper.sequence"),
        ('{"event": "sweep", "version": 9, "fingerprint": {"hydra.sweeper.sequence": ["a"]}}\n',
         "is a journal of version 9"),
        ('{"event": "sweep", "version": 1, "fingerprint": {"hydra.sweeper.sequence": []}}\n',
         "holds a sweep without a sequence"),
        ('{"event": "sweep", "version": 1, "fingerprint": {}}\n{"event": "strange"}\n',
         "has no event 'strange'"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_compared_is_named(journal, words, tmp_path, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    if journal is not None:
        (folder / "journal.jsonl").write_text(journal)
    good = sweep(tmp_path / "good", 0.9)
    assert main(["compare", str(good), str(folder)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("SweepFolderError: ") and str(folder) in told and words in told


def test_real_sweeps_of_two_protocols_are_compared(benches, capsys) -> None:
    """examples/minimal: a model that is one number, with scores by task."""
    bench: Bench = benches(REPOSITORY / "examples/minimal/app.py")
    common = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.warm=true",
              "hydra.launcher.cpu_slots=2", "hydra/sweeper/search=random", "hydra.sweeper.jobs=2",
              "task=low,high", "rate=interval(0.1,1)")  # fmt: skip
    for protocol in ("greedy", "fixed"):
        folder = bench.folder / protocol
        bench.run(*common, f"hydra.sweeper.protocol={protocol}", f"hydra.sweep.dir={folder}",
                  "hydra.sweeper.objective='0.5*current+0.5*mean'")  # fmt: skip
    assert (
        main(["compare", "--json", str(bench.folder / "greedy"), str(bench.folder / "fixed")]) == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row["protocol"] for row in rows] == ["greedy", "fixed"]
    for row, protocol in zip(rows, ("greedy", "fixed"), strict=True):
        import yaml

        told = yaml.safe_load((bench.folder / protocol / "optimization_results.yaml").read_text())
        assert row["dev"]["mean"] == pytest.approx(told["metrics"]["eval"]["average_accuracy"])
        assert row["jobs"]["mean"] == 4
        assert told["best_score"] == pytest.approx(
            0.5 * row["dev"]["mean"] + 0.5 * last_score(bench.folder / protocol, told)
        )


def last_score(folder, told):
    """What the best chain's last trial has on its own task."""
    number = told["chain"][-1]["trial"]
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    ended = next(e for e in events if e["event"] == "finish" and e["trial"] == number)
    return ended["eval"]["high"]
