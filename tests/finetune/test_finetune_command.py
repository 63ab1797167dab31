"""`autocl finetune` as typed: a plain script with options, real processes, kill -9 and all."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.bench import APPS, Bench, Gpus, wait_until

from autocl_sweeper.cli import main as autocl
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.finetune.command import main, pairs, parser, translate

SCRIPT = APPS / "quadratic.py"
HPARAM = """\
param_list:
- {name: rate, init_value: 0.1, type: float, lower_than: 0.5, greater_than: 1e-2, log: true}
- {name: size, init_value: 20, type: int, lower_than: 32, greater_than: 8}
"""


class Finetune(Bench):
    """The command and its script, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, SCRIPT)
        del self.environment["HOLD"]
        (folder / "hparam.yaml").write_text(HPARAM)

    def command(self, *arguments: str) -> list[str]:
        own = ["finetune", str(self.app), f"--output_dir={self.sweep}"]
        return [sys.executable, "-m", "autocl_sweeper", *own, *arguments]

    def table(self) -> list[dict[str, str]]:
        _, _, rows = (self.sweep / "log_file.txt").read_text().partition("\n\n")
        found = csv.DictReader(rows.splitlines(), delimiter="\t")
        return [{key: v for key, v in row.items() if key != "seconds"} for row in found]

    def best(self) -> float:
        (score,) = re.findall(r"(?m)^best score: (\S+)", (self.sweep / "log_file.txt").read_text())
        return float(score)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Finetune]:
    made = Finetune(tmp_path)
    try:
        yield made
    finally:
        made.close()


FILE = "--param_file=hparam.yaml"
CARDS = "--gpu=0,1"  # two slots where there are no cards
POPULATION = (FILE, CARDS, "--popsize=3", "--round=3", "--tuning_strategy=PSHE2")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finetune]:
    made = Finetune(tmp_path_factory.mktemp("uninterrupted"))
    try:
        made.run(*POPULATION, "words", "it's $HOME; a b")
        yield made
    finally:
        made.close()


def options(argv: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in argv)  # type: ignore[misc]


def test_population_continues_from_its_parents_and_replays_its_winner(
    uninterrupted: Finetune, bench: Finetune
) -> None:
    rows = uninterrupted.table()
    assert [row["state"] for row in rows] == ["COMPLETE"] * 9
    assert rows[0]["rate"] == "0.1" and rows[0]["size"] == "20"
    started = [options(event["argv"]) for event in uninterrupted.ledger("start")]
    assert {one["words"] for one in started} == {"it's $HOME; a b"}, "never through a shell"
    by_folder = {Path(one["saved_params_dir"]).parent.name: one for one in started[3:6]}
    for row in rows[3:6]:
        one = by_folder[row["trial"]]
        assert one["epochs"] == "1" and one["rate"] == row["rate"]
        parent_round, place = row["parent"].split("/")
        assert one["model_path"].endswith(f"round{parent_round}/{place}/checkpoint")
    assert all("epochs" not in one and "model_path" not in one for one in started[:3])
    # The model is arithmetic on the schedule: two epochs first, then one a round.
    schedule = yaml.safe_load((uninterrupted.sweep / "schedule.yaml").read_text())
    w = 0.0
    for step in schedule["steps"]:
        for _ in range(step["epochs"] or 2):
            w += step["params"]["rate"] * (1 - w)
    saved = json.loads((uninterrupted.sweep / "best_model/w.json").read_text())
    assert saved == pytest.approx(w, rel=1e-12)
    assert uninterrupted.best() == max(float(row["score"]) for row in rows[6:])
    assert uninterrupted.nothing_is_left()
    bench.run(f"--replay={uninterrupted.sweep / 'schedule.yaml'}", "words=again")
    assert bench.best() == uninterrupted.best()
    assert json.loads((bench.sweep / "best_model/w.json").read_text()) == saved
    assert len(bench.ledger("start")) == 3


def test_kill_and_the_same_command_give_the_uninterrupted_result(
    uninterrupted: Finetune, bench: Finetune
) -> None:
    command = (*POPULATION, "words", "it's $HOME; a b")
    bench.environment["HOLD"] = str(bench.hold)
    process = bench.start(*command)
    wait_until(lambda: len(bench.finished()) >= 4, "a round and a trial are over")
    bench.hold.touch()
    wait_until(lambda: len(bench.ledger("start")) > len(bench.ledger("end")), "one is held")
    bench.kill(process)
    done = set(bench.finished())
    bench.hold.unlink()
    wait_until(bench.nothing_is_left, "the jobs ended with their controller")
    before = len(bench.ledger("start"))
    bench.run(*command)
    assert bench.table() == uninterrupted.table()
    assert bench.best() == uninterrupted.best()
    repeated = {event["trial"] for event in bench.events("start")[before:]} & done
    assert not repeated, "a finished trial ran again"
    assert (bench.sweep / "best_model/w.json").is_file()
    (bench.folder / "hparam.yaml").write_text(HPARAM.replace("32,", "31,"))
    assert "another configuration" in bench.run(*command, status=1)


def test_fulltrail_survives_crashes_and_says_what_happened(bench: Finetune, gpus: Gpus) -> None:
    """On cards 3 and 1, two trials each."""
    gpus.seen_by(bench)
    # A finite space, whose values come once each.
    sizes = (
        "param_list:\n- {name: size, init_value: 2, type: int, lower_than: 6, greater_than: 1}\n"
    )
    (bench.folder / "hparam.yaml").write_text(sizes)
    ends = {1: 3, 2: "nan", 3: "SIGSEGV", 4: "no report", 5: "saves nothing"}
    said = bench.run(
        *(FILE, "--gpu=3,1,3,1", "--popsize=3", "--round=2", "--evaluator=FullTrail", "rate=0.5"),
        *("--tuning_strategy=random", "--keep_going"),
        ENDS=json.dumps(ends),
    )
    reasons = {
        "1": "exit status 3",
        "2": "its score is nan",
        "3": "killed by SIGSEGV",
        "4": "ScriptError: quadratic.py ended without a result",
    }
    rows = bench.table()
    for row in rows:
        assert row["state"] == ("FAIL" if row["size"] in reasons else "COMPLETE"), row
        if row["size"] in reasons:
            warning = (
                "WARNING: Program which was ran with hyperparameters as"
                f" size={row['size']} was crashed!\n"
                f"  round {row['round']}, trial {row['trial']}: {reasons[row['size']]}"
            )
            assert warning in said
            log = bench.sweep / f"round{row['round']}/log-{row['trial']}.info"
            assert f"its log: {log}" in said
            assert f"size {row['size']} ends with" in log.read_text()
        else:
            assert (bench.sweep / row["saved_params_dir"]).is_dir()
    assert sorted(row["size"] for row in rows) == list("123456")
    cards = {event["devices"] for event in bench.ledger("start")}
    assert cards <= {gpus.gpus[number].uuid for number in (1, 3)} and cards
    assert bench.nothing_is_left()


def test_search_whose_round_fails_ends_with_an_error(bench: Finetune) -> None:
    few = (FILE, CARDS, "--popsize=2", "--round=2", "--evaluator=fulltrail")
    ends = json.dumps({size: 5 for size in range(8, 33)})
    said = bench.run(*few, status=1, ENDS=ends)
    assert "All trials of round 0 failed" in said and "exit status 5" in said
    assert len(bench.ledger("start")) == 2
    bench.run(*few, "--retries=1")  # what broke is mended
    assert [row["state"] for row in bench.table()] == ["COMPLETE"] * 4


@pytest.mark.slow
def test_two_searches_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    benches = [Finetune(tmp_path / name) for name in ("one", "other")]
    command = (FILE, CARDS, "--popsize=3", "--round=2", "--evaluator=fulltrail")
    try:
        for made in benches:
            made.environment["AUTOCL_LEASE_DIR"] = str(benches[0].leases)
        running = [made.start(*command, f"--seed={n}") for n, made in enumerate(benches)]
        for made, process in zip(benches, running, strict=True):
            made.finish(process, 0)
        for made in benches:
            for row in made.table():
                w = 1 - (1 - float(row["rate"])) ** 2
                score = 1 - (w - 1) ** 2 - (int(row["size"]) - 16) ** 2 / 1000
                assert float(row["score"]) == pytest.approx(score, abs=1e-9)
        assert benches[0].table() != benches[1].table()
    finally:
        for made in benches:
            made.close()


# -- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], {}),
        (["max_len", "128"], {"max_len": "128"}),
        (
            ["max_len=128", "lr", "-0.5", "--on", "true"],
            {"max_len": "128", "lr": "-0.5", "on": "true"},
        ),
        (["a=b=c", "d="], {"a": "b=c", "d": ""}),
    ],
)
def test_rest_is_read_as_pairs(words: list[str], found: dict[str, str]) -> None:
    assert pairs(words) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_len"], "'max_len' after the script has no value"),
        (["a", "1", "b"], "'b' after the script has no value"),
        (["a", "1", "a=2"], "'a' stands twice after the script: 1 and 2"),
        (["=3"], "'=3' after the script has no name"),
    ],
)
def test_odd_or_double_rest_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        pairs(words)
    assert said in str(raised.value)


def translated(folder: Path, *arguments: str) -> tuple[Any, list[str]]:
    (folder / "hparam.yaml").write_text(HPARAM)
    (folder / "train.py").touch()
    words = [str(folder / "train.py"), f"--param_file={folder / 'hparam.yaml'}"]
    given = parser().parse_intermixed_args([*words, "--output_dir=out", *arguments])
    return translate(given)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        pytest.param([], ["sweeper.popsize=5", "sweeper.rounds=10", "sweeper.parents=population",
            "sweeper.population.epochs=1", "sweeper.keep_checkpoints=beam"], id="the original's defaults"),
        pytest.param(["--gpu=0,1", "--popsize=6", "--evaluator=FullTrail"], ["sweeper.popsize=6",
            "sweeper.parents=init", "launcher.cpu_slots=2", "sweeper.keep_checkpoints=all"], id="the seed's"),
        pytest.param(["--gpu=0,1,0,1"], ["launcher.jobs_per_device=2", "launcher.cpu_slots=2"],
            id="a card named twice has two trials"),
    ],
)  # fmt: skip
def test_options_are_keys_of_the_sweeper_and_the_launcher(
    tmp_path: Path, arguments: list[str], found: list[str]
) -> None:
    _, overrides = translated(tmp_path, *arguments)
    assert {f"hydra.{text}" for text in found} <= set(overrides)


def test_a_search_is_chosen_in_any_case_and_the_rest_is_the_scripts(tmp_path: Path) -> None:
    config, overrides = translated(tmp_path)
    assert config["rate"] == 0.1 and config["size"] == 20
    assert "hydra/sweeper/search=pshe2" in overrides
    config, overrides = translated(tmp_path, "--tuning_strategy=HAZero", "max_seq_len", "128")
    assert config["autocl"]["rest"] == [["max_seq_len", "128"]]
    assert "hydra/sweeper/search=hazero" in overrides


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rate", "3"], "entry 1 (rate): it is given after the script too: rate 3"),
        (["saved_params_dir=x"], "'saved_params_dir' is set by the command"),
        (["epochs=3"], "'epochs' is set by the evaluator populationbased"),
        (["model_path", "x"], "'model_path' is set by the evaluator"),
        (["--epochs_name=size"], "entry 2 (size): 'size' is set by the evaluator"),
        (["--gpu=0, 1"], "separated by commas, without spaces"),
        (["--gpu=0,0,1"], "lists its cards unequally often (0: 2 times, 1: 1 times)"),
        (["--override=lr=3"], "sets a key of hydra.sweeper or hydra.launcher"),
        (["--replay=none.yaml"], "'none.yaml' cannot be read"),
    ],
)
def test_mistake_of_the_command_line_is_named(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        translated(tmp_path, *arguments)
    assert said in str(raised.value)


def test_epochs_are_the_scripts_own_with_fulltrail(tmp_path: Path) -> None:
    config, _ = translated(tmp_path, "--evaluator=fulltrail", "epochs=3")
    assert config["autocl"]["rest"] == [["epochs", "3"]]


def test_hazero_asks_for_two_parameters(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(HPARAM.partition("- {name: size")[0])
    with pytest.raises(ConfigurationError, match="hazero needs at least 2"):
        translated(tmp_path, f"--param_file={tmp_path / 'one.yaml'}", "--tuning_strategy=hazero")


@pytest.mark.parametrize(
    "arguments",
    [["--popsize=0"], ["--round=x"], ["--evaluator=best"], ["--unknown=1"], ["--pop=3"]],
)
def test_option_of_no_meaning_is_refused_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train.py", *arguments])
    assert left.value.code == 2
    assert "usage: autocl finetune" in capsys.readouterr().err


def test_errors_are_said_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert autocl(["finetune", str(tmp_path / "none.py")]) == 1
    assert "ConfigurationError: The script" in capsys.readouterr().err
    (tmp_path / "train.py").touch()
    assert autocl(["finetune", str(tmp_path / "train.py")]) == 1
    assert "--param_file is missing" in capsys.readouterr().err
