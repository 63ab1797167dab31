"""Utilisation and memory over time: a file per job, and the timeline of the report."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.bench import Bench, Gpus, wait_until
from support.journals import Written

from autocl_sweeper.device import samples as files
from autocl_sweeper.device.probe import Device, FakeProbe
from autocl_sweeper.device.samples import Sample, SampleFile, samples
from autocl_sweeper.overview import look
from autocl_sweeper.page.load import POINTS, load
from autocl_sweeper.page.timeline import timeline

COMMAND = (
    "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.max_devices=2", "task=a", "lr=1,2",
)  # fmt: skip


def test_a_real_sweep_leaves_samples_with_each_job_and_its_timeline_shows_them(
    on_gpus: Bench, gpus: Gpus
) -> None:
    for number in range(2):
        gpus.change(number, utilisation=40 + 10 * number, free_mib=81559 - 10240)
    process = on_gpus.start_held(2, *COMMAND)
    running = on_gpus.sweep / ".autocl"
    wait_until(
        lambda: all(samples(running / f"{number}.devices.csv") for number in range(2)),
        "both devices are sampled while their jobs run",
    )
    assert load(look(on_gpus.sweep)).keys() == {gpu.uuid for gpu in gpus.gpus[:2]}
    on_gpus.release(process)
    where = {one["trial"]: one["device"] for one in on_gpus.events("running")}
    for number, (device,) in where.items():
        first, *_ = samples(on_gpus.sweep / f"1_a/{number}/devices.csv")
        load_is = 40.0 if device == gpus.gpus[0].uuid else 50.0
        assert (first.device, first.utilisation, first.used_mib) == (device, load_is, 10240)
        assert (first.total_mib, first.temperature_c) == (81559, 40)
    sweep = look(on_gpus.sweep)
    chart = timeline(sweep)
    assert chart is not None
    (shown,) = (one["values"] for one in chart["data"] if one["name"] == "sampled")
    assert {one["u"] for one in shown} == {0.4, 0.5} and {one["m"] for one in shown} == {0.126}
    end = sweep.as_of - sweep.begun + 1e-4  # the chart's rounding
    assert all(0 <= one["x"] <= one["x2"] <= end for one in shown)


def test_without_a_gpu_nothing_is_sampled(chain: Bench) -> None:
    chain.run("hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a", "lr=1")
    assert not list(chain.sweep.rglob("*devices.csv"))
    assert load(look(chain.sweep)) == {}


def device(**figures: int | None) -> Device:
    (one,) = FakeProbe.gpus(1, 1000).devices()
    return replace(one, **{"free_mib": 400, **figures})


def test_lines_come_more_seldom_the_longer_a_job_runs_and_have_the_mean_of_the_looks(
    tmp_path: Path,
) -> None:
    file = SampleFile(tmp_path / "devices.csv", 0.0)
    hours = 24
    for second in range(2, hours * 3600, 2):
        file.add(float(second), [device(utilisation=second % 4 * 50, temperature_c=50)])
    found = samples(tmp_path / "devices.csv")
    # One for each look in the first 250 * 2 s, then one each 1/250 of the age: ln(86400 / 500) * 250.
    assert 250 + 1000 < len(found) < 250 + 1500
    assert found[0] == Sample(2.0, device().id, 100.0, 600, 1000, 50)
    assert found[-1].utilisation == pytest.approx(50.0, abs=2)


def test_a_file_that_cannot_be_written_or_is_torn_ends_nothing(tmp_path: Path) -> None:
    SampleFile(tmp_path / "away" / "devices.csv", 0.0).add(2.0, [device()])
    path = tmp_path / "devices.csv"
    file = SampleFile(path, 0.0)
    file.add(2.0, [device(utilisation=None, free_mib=None)])
    path.write_bytes(path.read_bytes() + b"4.0,GPU")
    assert samples(path) == [Sample(2.0, device().id, None, None, 1000, None)]


def test_the_report_thins_samples_and_leaves_gaps_where_no_job_ran(tmp_path: Path) -> None:
    sweep = Written(tmp_path)
    for number in range(2):
        sweep.start(number)
        sweep.journal.append("running", trial=number, attempt=1, device=["GPU-1"])
        sweep.finish(number, 0.5)
    sweep.journal.close()
    begun = look(tmp_path).begun
    path = tmp_path / "1_first"
    for number, seconds in ((0, range(0, 4000, 2)), (1, range(6000, 10000, 2))):
        (path / str(number)).mkdir(parents=True)
        rows = [f"{begun + one},GPU-1,{50 + 50 * (one % 4 == 0)},500,1000,60" for one in seconds]
        text = "\n".join([",".join(files.COLUMNS), *rows])
        (path / str(number) / files.NAME).write_text(text)
    found = look(tmp_path)
    found.records[-1]["time"] = begun + 10000
    (stretches,) = load(found).values()
    assert 350 < len(stretches) <= POINTS
    gaps = [b.begin - a.end for a, b in pairwise(stretches)]
    assert [gap > 0 for gap in gaps].count(True) == 1 and max(gaps) == pytest.approx(2000, abs=25)
    # A job begins and ends anywhere within a stretch, which then holds as little as one sample.
    second = gaps.index(max(gaps)) + 1
    whole = stretches[1 : second - 1] + stretches[second + 1 : -1]
    assert all(one.utilisation == pytest.approx(0.75, abs=0.05) for one in whole)
