"""`python -m benchmarks.memory`: cards, equal starts, void runs and tables, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.machine import EIGHT, UUIDS, Machine

from benchmarks.memory.__main__ import command_line, main
from benchmarks.memory.cards import Card, verdict
from benchmarks.memory.contestants import Known, flops_of, jobs, numbers, settings_of, share_of
from benchmarks.memory.discipline import Job, NotSettled, cool, interleaved, measure, warm
from benchmarks.memory.families import CHOICES, FAMILIES, lengths
from benchmarks.memory.planning import planning
from benchmarks.memory.run import protocol
from benchmarks.memory.tables import (
    PUBLISHED,
    SOURCE,
    bars,
    notes,
    recompute_table,
    seed_table,
    shares,
    step_table,
)
from benchmarks.memory.training import Setting, Steps, run
from train.config.memory import MemorySettings

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "memory.json").read_text()
)
GIB = 2.0**30


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    return Machine(library, tmp_path)


# -- cards ------------------------------------------------------------------------------------------


def test_cards_of_one_model_are_compared_by_what_the_driver_says(machine: Machine) -> None:
    machine.show([EIGHT[0], replace(EIGHT[1], clock_mhz=1755, pcie_lanes=8)])
    said = machine.run("from benchmarks.memory.cards import show_gpus\nsay(show_gpus(False))")
    assert f"{UUIDS[0]}  Fake H100 80GB" in said and "power_w           70.5" in said
    assert "max_clock_mhz differs: 1980 (GPU-00000000), 1755 (GPU-00000001)" in said
    assert "pcie differs: gen 5 x16 of gen 5 x16 (GPU-00000000), gen 5 x8" in said
    assert "memory_mib differs" not in said


def test_a_machine_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["gpus"]) == 2
    assert "there is no GPU here" in capsys.readouterr().err


def test_runs_need_one_card_that_nothing_else_uses(machine: Machine) -> None:
    machine.show([EIGHT[0], replace(EIGHT[1], pids=(1,)), replace(EIGHT[2], utilisation=30)])
    several, busy, idle, chosen = machine.run(
        "from benchmarks.memory.run import choose\n"
        "from benchmarks.memory.cards import NoCard\n"
        "from benchmarks.memory.discipline import NotSettled\n"
        "for asked in (None, EIGHT[1].uuid, EIGHT[2].uuid, 'GPU-00000000'):\n"
        "    try: say(choose(asked).id)\n"
        "    except (NoCard, NotSettled) as error: say(str(error))\n"
    )
    assert several.startswith("there are 3 GPUs. Choose one for all runs by --card")
    assert "in use before the first run: processes [1]" in busy
    assert "processes [], 30 % busy" in idle
    assert chosen == UUIDS[0]


def test_cards_whose_medians_differ_by_more_than_1_percent_are_not_mixed() -> None:
    assert verdict({"a": [10.0, 10.1, 9.0], "b": [10.05, 10.2, 1.0]}).endswith(
        "medians differ by 0.5 %: within 1 %"
    )
    assert "medians differ by 2.0 %: keep all compared runs on one of them" in verdict(
        {"a": [10.0, 10.0, 50.0], "b": [10.2, 10.2, 10.2]}
    )


# -- discipline -------------------------------------------------------------------------------------


class Clock:
    """A clock that a load of so many seconds turns on."""

    def __init__(self, steps: Sequence[float]) -> None:
        self.now, self.steps = 0.0, iter(steps)

    def __call__(self) -> float:
        return self.now

    def load(self) -> float:
        took = next(self.steps)
        self.now += took
        return took


def test_a_card_is_warm_when_20_steps_stayed_the_same_for_the_whole_time() -> None:
    # Windows of 20 s, 40 s and then 22 s: those are quiet after 3 more, 66 s.
    clock = Clock([1.0] * 20 + [2.0] * 20 + [1.1] * 200)
    assert warm(clock.load, 60, 900, clock=clock) == 1.1
    assert clock.now == pytest.approx(20 + 40 + 22 + 66)


def test_a_later_run_starts_once_the_median_of_the_first_start_is_reached() -> None:
    clock = Clock([1.5] * 20 + [1.005] * 20)
    assert warm(clock.load, 60, 900, wanted=1.0, clock=clock) == 1.005


def test_a_load_that_never_settles_is_an_error_with_its_time() -> None:
    clock = Clock([1.0 + 0.02 * (i // 20 % 2) for i in range(2000)])
    with pytest.raises(NotSettled, match="still changes by 1 % or more after 300 s"):
        warm(clock.load, 60, 300, clock=clock)


def test_a_cooled_start_waits_until_it_is_within_3_degrees_of_the_first() -> None:
    slept: list[float] = []
    readings = iter([50, 46, 44, 43])
    cool(lambda: next(readings), 40, 900, slept.append)
    assert len(slept) == 3
    with pytest.raises(NotSettled, match="has 60 C after 10 s, the first run began at 40 C"):
        cool(lambda: 60, 40, 10, slept.append)


def named(names: str, ran: list[str] | None = None) -> list[Job]:
    def act(name: str) -> Callable[[Path], dict[str, Any]]:
        return lambda folder: [] if ran is None else ran.append(folder.name) or {"n": 1}

    return [Job("t", name, act(name)) for name in names]


def test_methods_take_turns() -> None:
    order = [(repeat, job.method) for repeat, job in interleaved(named("abc"), 2)]
    assert order == [(1, "a"), (1, "b"), (1, "c"), (2, "a"), (2, "b"), (2, "c")]


def test_a_run_beside_which_others_compute_is_void_and_comes_again(machine: Machine) -> None:
    tries, lines = machine.run(
        "from benchmarks.memory.discipline import Job, measure\n"
        "from benchmarks.memory.cards import card\n"
        "tries = []\n"
        "def act(folder):\n"
        "    tries.append(folder.name)\n"
        "    figures([replace(EIGHT[0], pids=(1, os.getpid()) if len(tries) == 1 else (os.getpid(),))])\n"
        "    return {'training_s': 5.0}\n"
        "reader, quiet = lambda: card(EIGHT[0].uuid), lambda: figures(EIGHT)\n"
        f"folder = Path({str(machine.folder)!r})\n"
        "lines = measure([Job('t', 'a', act)], 2, folder, {'device': 'x'}, reader, quiet)\n"
        "say([tries, lines])"
    )
    assert tries == ["t-a-1", "t-a-1.again", "t-a-2"]
    assert [line["void"] for line in lines] == ["other processes computed on the card: 1", "", ""]
    assert lines[1]["card_before"]["id"] == UUIDS[0] and lines[1]["temperature_c"] == [40, 40]
    written = (machine.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines
    assert notes(lines) == ["- t, a, run 1: void, other processes computed on the card: 1"]


def test_in_a_container_one_process_with_a_number_of_the_host_is_our_own() -> None:
    from benchmarks.memory.cards import Watch

    values: dict[str, Any] = dict.fromkeys(Card.__dataclass_fields__)
    one = Card(**{**values, "id": "a", "name": "b", "foreign": (), "hidden": (70001,)})
    watch = Watch(None)
    watch.looks = [one]
    assert watch.void == ""
    watch.looks.append(replace(one, hidden=(70001, 70002)))
    assert watch.void == "other processes computed on the card: 70002"


def test_no_run_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    clock = Clock([])

    def act(folder: Path) -> dict[str, Any]:
        clock.now += 40.0
        return {}

    lines = measure(
        [Job("t", name, act) for name in "ab"], 2, tmp_path, {}, limit_s=130, clock=clock
    )
    assert [line.get("left_out") for line in lines] == [None, None, None, "no time: it takes 40 s"]


def test_results_of_an_earlier_run_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(SystemExit, match="holds the results of an earlier run"):
        main(["run", "--card", "cpu", "--out", str(tmp_path)])


@pytest.mark.parametrize("option", ["--tasks", "--methods"])
def test_a_name_that_is_none_is_refused_with_those_there_are(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"{option} swagg: must be among (multiple|none)"):
        main(["run", "--card", "cpu", "--out", str(tmp_path / "new"), option, "swagg"])


# -- contestants ------------------------------------------------------------------------------------

SWAG = FAMILIES["multiple-choice"]


def test_lengths_stay_within_those_of_the_data_and_hold_the_longest() -> None:
    for family in FAMILIES.values():
        found = lengths(family, 60)
        assert min(found) >= family.shortest and max(found) == family.longest
        assert found == lengths(family, 60)
    assert SWAG.tiny_rows % CHOICES == 0


def test_the_protocol_measures_levels_first_and_fixed_after_static() -> None:
    setting = Setting(SWAG, 8, (40, 142), "base")
    methods = ("none", "fixed", "prefix", "gc", "static", "none_capped")
    made = jobs(setting, methods, {"6": lambda known: 6 * GIB}, capped=True)
    assert [job.method for job in made] == [
        *("none", "gc", "prefix@6", "static@6", "none_capped@6", "fixed@6"),
    ]


def test_the_gpu_protocol_is_swag_and_squad_at_the_published_budgets_with_200_timed_steps() -> None:
    made = protocol(command_line().parse_args(["run", "--out", "x"]), on_gpu=True)
    tasks = {job.task: [one.method for one in made if one.task == job.task] for job in made}
    assert [*tasks] == ["multiple-choice", "question-answering"]
    levels = ["none", "gc", "every_2", "every_4"]
    planned = ["prefix", "tiered", "static", "bucket_greedy", "none_capped", "fixed"]
    assert tasks["multiple-choice"] == [*levels, *(f"{method}@6" for method in planned)]
    assert tasks["question-answering"] == [*levels, *(f"{method}@8" for method in planned)]


def test_a_plan_is_solved_once_for_each_size_of_an_epoch() -> None:
    sizes = lengths(SWAG, 4597)[8:]
    assert f"4589 batches, {len(set(sizes))} sizes: a cached plan takes" in planning()


def test_budgets_by_share_lie_between_the_peaks_of_gc_and_none() -> None:
    known = Known({"gc": 2 * GIB, "none": 6 * GIB}, {}, {})
    assert share_of(0.25)(known) == 3 * GIB
    setting = Setting(SWAG, 8, (40, 142), "base")
    static = settings_of("static", 3 * GIB, setting, None)
    assert (static.method, static.max_size, static.budget_gib) == ("static", 142, 3.0)
    assert settings_of("fixed", 3 * GIB, setting, (0, 1)).blocks == (0, 1)
    assert settings_of("bucket_greedy", GIB, setting, None).planner == "bucket_greedy"


def test_step_times_leave_collection_out_and_steps_above_the_budget_are_counted() -> None:
    record = {"phase": "plan", "predicted_bytes": 0.98 * GIB, "peak_allocated_bytes": GIB}
    known = {**record, "cache_hit": True, "plan_us": 10.0, "infeasible": False}
    known |= {"blocks": [0, 1], "extrapolated": False}
    solved = {**known, "cache_hit": False, "plan_us": 900.0}
    collected = [{**known, "phase": "collect"}] * 8
    # 98.5 % of the budget: it leaves the margin of 1 %, not that of a size beyond what was collected.
    near = 0.985 * 1.5 * GIB
    beyond = [
        {**solved, "peak_allocated_bytes": near, "extrapolated": far} for far in (False, True)
    ]
    margins = numbers(
        Setting(SWAG, 2, (10,) * 10, "base"), "static", Steps(records=collected + beyond), 1.5 * GIB
    )
    assert margins["above"] == [False, True] and margins["blocks"] == [2, 2]
    steps = Steps(
        seconds=[9.0] * 8 + [1.0, 2.0, 3.0],
        allocated=[5 * GIB] * 8 + [GIB, 2 * GIB, 3 * GIB],
        records=[*collected, solved, known, known],
    )
    setting = Setting(SWAG, 2, (10,) * 8 + (1, 2, 3), "base")
    found = numbers(setting, "prefix", steps, 1.5 * GIB)
    assert (found["step_s"], found["steps_s"], found["collect_s"]) == (2.0, 6.0, 72.0)
    assert found["tokens_per_s"] == 2 * (1 + 2 + 3) / 6.0
    assert found["over_budget"] == 2
    assert (found["hit_us"], found["miss_us"], found["hits"]) == (10.0, 900.0, 2)
    assert found["error"] == pytest.approx(0.02)


@pytest.mark.slow
def test_each_recomputed_block_adds_the_same_part_of_a_third_of_the_flops(tmp_path: Path) -> None:
    setting = Setting(FAMILIES["text-classification"], 2, (32,) * 3, "tiny", collect=1)
    own = MemorySettings(method="fixed", blocks=(0, 5, 6))
    methods = {"none": MemorySettings(), "gc": MemorySettings(method="gc"), "fixed": own}
    ran = {
        name: run(setting, memory, tmp_path / name, flops=True, timed=False)
        for name, memory in methods.items()
    }
    assert len(ran["none"].allocated) == 3 and len(ran["none"].flops) == 2  # one was collection
    assert max(ran["gc"].allocated) < max(ran["fixed"].allocated) < max(ran["none"].allocated)
    # A backward pass has twice the products of a forward pass, nearly all of them in blocks.
    assert ran["gc"].flops[0] / ran["none"].flops[0] == pytest.approx(4 / 3, rel=0.01)
    known = Known({}, {}, {name: ran[name].flops for name in ("none", "gc")})
    assert ran["fixed"].flops == pytest.approx(flops_of(known, [(0, 5, 6)] * 2), rel=1e-9)


@pytest.mark.slow
def test_on_the_cpu_plans_stay_within_the_budget_and_recompute_no_more_than_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--tasks", "multiple-choice", "--steps", "4", "--shares", "50", "--no-times"]
    assert main(["run", "--card", "cpu", "--out", str(tmp_path), *chosen]) == 0
    printed = capsys.readouterr().out
    lines = [json.loads(one) for one in (tmp_path / "results.jsonl").read_text().splitlines()]
    own = {line["method"]: line for line in lines}
    assert own["prefix@50%"]["over_budget"] == 0 and own["prefix@50%"]["error"] < 0.01
    assert own["gc"]["peak_allocated_gib"] < own["prefix@50%"]["budget_gib"]
    assert "more in 0 |" in printed and "FAILS" not in printed
    assert "by bucket_greedy in 0 of" in printed and "at most half of it: holds" in printed


# -- tables -----------------------------------------------------------------------------------------


def test_published_times_and_overheads_are_those_of_the_golden_table_and_marked() -> None:
    golden = GOLDEN["reference_table"]
    names = {"multiple-choice": "swag", "question-answering": "squad", "text-classification": "qqp"}
    for one in PUBLISHED:
        assert golden[names[one.task]][one.method]["seconds"] == one.seconds
    assert len(PUBLISHED) == sum(map(len, golden.values()))
    lines = seed_table([]).splitlines()
    assert len(lines) == 2 + len(PUBLISHED) and all(SOURCE in line for line in lines[2:])
    assert "| DC-6 | 6 | 1:05:47 |  | +4.45 |" in lines[3]


def line(method: str, **values: Any) -> dict[str, Any]:
    own = {
        "task": "multiple-choice",
        "method": method,
        "repeat": 1,
        "steps": 24,
        "ended": "",
        "steps_s": None,
    }
    measured = {"budget_gib": None, "peak_allocated_gib": 1.0, "device": "x", "model": "small"}
    return {**own, **measured, "over_budget": 0, "error": None, "miss_us": None, **values}


def test_measured_rows_stand_below_the_published_ones_as_measured_here() -> None:
    times = [100.0, 102.0, 101.0]
    lines = [
        *(line("none", training_s=n) for n in times),
        line("prefix@6", training_s=106.05, budget_gib=6.0, peak_allocated_gib=5.5),
        line("prefix@6", training_s=500.0, void="other processes"),
        line("static@6", left_out="no time"),
    ]
    rows = [row for row in seed_table(lines).splitlines() if "here: x, small model" in row]
    assert rows == [
        "| multiple-choice, 24 steps | None | - | 101.0 s (100.0-102.0) | 3 | +0.0 | 1 | "
        "here: x, small model |",
        "| multiple-choice, 24 steps | DC-6 | 6 | 106.0 s | 1 | +5.0 | 5.5 | here: x, small model |",
    ]


def test_what_is_recomputed_is_a_share_of_what_full_checkpointing_adds() -> None:
    flops = {"none": 100, "gc": 130, "prefix@50%": 106, "static@50%": 115, "every_2": 115}
    found = shares([line(method, flops=n) for method, n in flops.items()], "multiple-choice")
    assert found == pytest.approx(
        {"none": 0, "gc": 1, "prefix@50%": 0.2, "static@50%": 0.5, "every_2": 0.5}
    )


def test_bars_compare_step_by_step_and_leave_out_those_where_the_reference_takes_the_margin() -> (
    None
):
    def lines(ours: list[int], flops: int) -> list[dict[str, Any]]:
        levels = [line("none", flops=100), line("gc", flops=130), line("static@50%", flops=112)]
        above = [False, True, False]
        reference = line("bucket_greedy@50%", flops=103, blocks=[2, 1, 0], above=above)
        own = line("prefix@50%", flops=flops, blocks=ours)
        planned = [{**one, "budget_gib": 2.0} for one in (reference, own, levels.pop())]
        return [*levels, *planned]

    assert bars(lines([2, 3, 0], 106)) == [
        "- multiple-choice, 50%: more blocks recomputed than by bucket_greedy in 0 of the 2 steps in "
        "which it keeps its margin: holds",
        "- multiple-choice, 50%: 20.0 % of full checkpointing, static 40.0 %; at most half of it: holds",
    ]
    said = bars(lines([1, 3, 1], 107))
    assert [text.rsplit(": ", 1)[1] for text in said] == ["FAILS", "FAILS"]
    assert "| 2 : 2 in 2 of 3 steps, more in 0 | - |" in recompute_table(lines([2, 3, 0], 106))
    assert "| 2 : 2 in 2 of 3 steps, more in 1 | - |" in recompute_table(lines([1, 3, 1], 107))


def test_steps_of_a_gpu_are_compared_by_the_sum_of_their_times() -> None:
    def timed(method: str, seconds: float, **values: Any) -> dict[str, Any]:
        measured = {"steps_s": seconds, "step_s": seconds / 200, "peak_reserved_gib": 5.8}
        return line(method, **measured, **values)

    lines = [timed("none", 20.0), timed("prefix@6", 20.5, budget_gib=6.0, error=0.004, plan_us=7.0)]
    lines.append(line("none_capped@6", ended="out of memory: CUDA out of memory. Tried"))
    none, planned, capped = step_table(lines).splitlines()[2:]
    assert "| None | 100.0 | +0.00 |" in none
    assert "| DC-6 | 102.5 | +2.50 |" in planned and "| 0.40 | 7 |" in planned
    assert capped.endswith("| out of memory: CUDA out of memory. Tried |")
