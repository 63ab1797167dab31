"""What becomes of each key of hydra-optuna-sweeper, before any job. Its own runs: tests/job/."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from typing import Any

import pytest

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.migration import THEIRS, Registered, translated
from autocl_sweeper.plan.settings import Settings
from hydra_plugins.hydra_autocl_sweeper._schema import AutoCLSweeperConf

NAMES = ("auto", "grid", "random", "tpe", "gp", "cmaes", "qmc")
SEARCHES = {name: {"factory": f"a.search.{name}"} for name in NAMES[1:]}
SEARCHES["auto"] = {"factory": "auto"}
SEARCHES["tpe"]["n_startup_trials"] = 8  # type: ignore[assignment]
SEARCHES["cmaes"] |= {"popsize": "${..popsize}", "sigma": 0.2}  # type: ignore[dict-item]
TPE = {"_target_": "optuna.samplers.TPESampler", "seed": None}
REGISTERED = Registered(SEARCHES, [{**TPE, "n_ei_candidates": 24, "group": False}], "gpu")


def settings_of(*arguments: str, registered: Registered = REGISTERED, **keys: Any) -> Settings:
    """What the schema's defaults and these keys become."""
    given = {**asdict(AutoCLSweeperConf()), "search": SEARCHES["auto"], **keys}
    for key in ("_target_", "_recursive_", "defaults"):
        del given[key]
    return Settings(**translated(given, arguments, registered))


def refusal(*arguments: str, **keys: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        settings_of(*arguments, **keys)
    assert "docs/migration.md" in str(raised.value) and "No job" in str(raised.value)
    return str(raised.value)


def test_without_their_keys_the_direction_is_ours_and_nothing_else_changes() -> None:
    settings = settings_of(jobs=7)
    assert (settings.direction, settings.jobs, settings.seed) == ("maximize", 7, 0)
    assert {field.name for field in fields(Settings)}.isdisjoint(THEIRS)
    assert settings_of(direction="minimize").direction == "minimize"
    assert [settings_of(direction=d).direction for d in ("max", "min")] == ["maximize", "minimize"]


def test_a_key_that_is_added_to_the_sweepers_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"has no key 'toppk'\. Did you mean top_k\?"):
        settings_of(toppk=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sampler", TPE), ("n_trials", 20), ("n_jobs", 2), ("max_failure_rate", 0.0),
     ("storage", "sqlite:///a.db"), ("study_name", "s"), ("search_space", {"x": {}}),
     ("custom_search_space", "my.function")],
)  # fmt: skip
def test_each_of_their_keys_wants_an_explicit_direction(key: str, value: object) -> None:
    told = refusal(**{key: value})
    assert f"hydra.sweeper.{key} is a key of hydra-optuna-sweeper" in told
    assert "hydra.sweeper.direction=minimize" in told


def test_several_directions_are_refused_with_the_selection_that_weighs_tasks() -> None:
    told = refusal(direction=["minimize", "maximize"], n_trials=4)
    assert "direction=['minimize', 'maximize']" in told and "selection=pareto" in told


@pytest.mark.parametrize(
    ("sampler", "search"),
    [
        ("tpe", "tpe"),
        ("optuna.samplers.TPESampler", "tpe"),
        ({"_target_": "optuna.samplers.TPESampler"}, "tpe"),
        ({"_target_": "optuna.samplers._tpe.sampler.TPESampler"}, "tpe"),
        ({"seed": 3}, "tpe"),  # theirs where none is chosen
        ({"_target_": "optuna.samplers.GPSampler"}, "gp"),
        ({"_target_": "optuna.samplers.CmaEsSampler"}, "cmaes"),
        ({"_target_": "optuna.samplers.QMCSampler"}, "qmc"),
        ({"_target_": "optuna.samplers.RandomSampler"}, "random"),
        ({"_target_": "optuna.samplers.GridSampler", "_partial_": True}, "grid"),
    ],
)
def test_a_sampler_is_the_search_of_its_name(sampler: object, search: str) -> None:
    settings = settings_of(direction="minimize", n_trials=9, sampler=sampler)
    assert settings.search["factory"] == f"a.search.{search}"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("optuna.samplers.NSGAIISampler", "several objectives"),
        ("hydra_plugins.hydra_optuna_sweeper._impl.create_nsgaii_sampler", "several objectives"),
        ("optuna.samplers.NSGAIIISampler", "several objectives"),
        ("hydra_plugins.hydra_optuna_sweeper.config.raise_motpe_removed", "several objectives"),
        ("optuna.samplers.BruteForceSampler", "no search like it"),
        ("my.own.Sampler", "no search like it"),
    ],
)
def test_a_sampler_without_a_search_is_refused(target: str, said: str) -> None:
    told = refusal(direction="minimize", sampler={"_target_": target})
    assert target in told and said in told and "cmaes (CmaEsSampler)" in told


def test_a_sampler_whose_search_is_not_registered_is_refused() -> None:
    few = Registered({name: SEARCHES[name] for name in ("auto", "grid")})
    with pytest.raises(ConfigurationError, match="no hydra/sweeper/search=tpe is here, only auto"):
        settings_of(direction="minimize", sampler="tpe", registered=few)


def test_a_sampler_beside_another_search_is_refused_and_beside_the_same_is_not() -> None:
    grid, tpe = ({"search": SEARCHES[name]} for name in ("grid", "tpe"))
    assert "both choose the search" in refusal(direction="minimize", sampler=TPE, **grid)
    assert settings_of(direction="minimize", sampler=TPE, **tpe).search == SEARCHES["tpe"]


def test_the_seed_of_a_sampler_is_that_of_the_sweep() -> None:
    settings = settings_of(direction="minimize", n_trials=9, sampler={**TPE, "seed": 123})
    assert settings.seed == 123
    told = refusal(direction="minimize", seed=7, sampler={**TPE, "seed": 123})
    assert "seed=123" in told and "seed=7" in told


def test_options_of_a_sampler_that_the_user_set_are_taken_over_or_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"n_startup_trials": 5, "n_ei_candidates": 24, "group": True}
    settings = settings_of(direction="minimize", n_trials=9, sampler={**TPE, **options})
    assert settings.search == {"factory": "a.search.tpe", "n_startup_trials": 5}
    (line,) = caplog.messages  # not about n_ei_candidates, which is as the group has it
    assert "sampler.group=True is not taken over" in line


def test_an_option_of_a_search_that_refers_to_a_key_beside_it_has_its_value() -> None:
    sampler = {"_target_": "optuna.samplers.CmaEsSampler", "popsize": 7}
    given = {"direction": "minimize", "popsize": 5, "rounds": 2}
    assert settings_of(sampler="cmaes", **given).search["popsize"] == 5
    assert settings_of(sampler=sampler, **given).search["popsize"] == 7


def test_n_trials_are_jobs_per_stage_and_twenty_where_it_is_not_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert settings_of(direction="minimize", n_trials=9).jobs == 9
    assert caplog.messages == []
    assert settings_of(direction="minimize", study_name="s").jobs == 20
    assert "20 jobs per stage" in caplog.text and "hydra.sweeper.jobs" in caplog.text
    assert settings_of(direction="minimize", study_name="s", popsize=3).jobs is None
    assert "jobs=4" in refusal(direction="minimize", n_trials=9, jobs=4)
    assert "popsize=4" in refusal(direction="minimize", n_trials=9, popsize=4)


@pytest.mark.parametrize(
    ("launcher", "named"),
    [("gpu", "hydra.launcher.cpu_slots"), ("joblib", "hydra.sweeper.max_batch_size")],
)
def test_n_jobs_is_ignored_with_a_line_that_names_the_slots(
    caplog: pytest.LogCaptureFixture, launcher: str, named: str
) -> None:
    registered = Registered(SEARCHES, launcher=launcher)
    settings_of(direction="minimize", n_trials=9, n_jobs=3, registered=registered)
    (line,) = caplog.messages
    assert "hydra.sweeper.n_jobs=3 is ignored" in line and named in line


def test_a_failure_rate_is_refused_with_the_number_of_failures() -> None:
    assert "max_failures=0" in refusal(direction="minimize", max_failure_rate=0.0)
    assert "max_failures=<number>" in refusal(direction="minimize", max_failure_rate=0.25)


def test_storage_and_study_name_are_an_export() -> None:
    settings = settings_of(direction="minimize", storage="sqlite:///a.db", study_name="s")
    assert settings.export == {"optuna": "sqlite:///a.db", "study_name": "s"}
    told = refusal(direction="minimize", storage="sqlite:///a.db", export={"optuna": "b.log"})
    assert "sqlite:///a.db" in told and "b.log" in told
    storage = {"_target_": "optuna.storages.InMemoryStorage"}
    assert "is no URL" in refusal(direction="minimize", storage=storage)


@pytest.mark.parametrize(
    ("text", "included", "instead"),
    [
        ("range(2,8,2)", "8", "range(2, 10, 2)"),
        ("range(3)", "3", "range(0, 4, 1)"),
        ("range(start=1, stop=4)", "4", "range(1, 5, 1)"),
        ("range(-5.5, 5.5, step=0.5)", "5.5", "range(-5.5, 6.0, 0.5)"),
        ("range(0.1,0.4,0.1)", "0.4", "range(0.1, 0.5, 0.1)"),
        ("shuffle(range(1,3))", "3", "range(1, 4, 1)"),
    ],
)
@pytest.mark.parametrize("typed", [True, False], ids=["on the command line", "in a file"])
def test_a_range_whose_stop_they_include_is_reported(
    caplog: pytest.LogCaptureFixture, typed: bool, text: str, included: str, instead: str
) -> None:
    arguments = [f"a.x={text}"] if typed else []
    params = {} if typed else {"a": {"x": text}}
    settings_of(*arguments, direction="minimize", n_trials=9, params=params)
    (line,) = caplog.messages
    assert line.startswith("a.x: range(") and f"tried {included} too" in line
    assert line.endswith(instead)


@pytest.mark.parametrize(
    "text",
    [
        "range(2,9,2)",
        "interval(2,8)",
        "choice(2,8)",
        "range(a,b)",
        "range()",
        "range(1,2,0)",
        "range(8,2,-2)",
    ],
)
def test_other_values_are_not_reported(caplog: pytest.LogCaptureFixture, text: str) -> None:
    settings_of(direction="minimize", n_trials=9, params={"x": text})
    assert caplog.messages == []


def test_ranges_of_our_own_files_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    settings_of("y=range(1,3)", direction="minimize", params={"x": "range(2,8,2)"})
    assert caplog.messages == []


def test_an_old_search_space_is_printed_as_params() -> None:
    space = {
        "a": {"type": "int", "low": 2, "high": 8, "step": 2},
        "b": {"type": "int", "low": 1, "high": 8},
        "c": {"type": "float", "low": -5.5, "high": 5.5, "step": 0.5},
        "d": {"type": "float", "low": 1e-5, "high": 1, "log": True},
        "e": {"type": "int", "low": 1, "high": 64, "log": True},
        "f": {"type": "categorical", "choices": [-5, "a b", "it: is", True, None]},
        "g": {"type": "float", "low": 0, "high": 1, "step": 0.3},
        "h": {"type": "gauss"},
    }
    told = refusal(direction="minimize", search_space=space)
    printed = told[told.index("    params:") :].splitlines()
    assert printed[1:9] == [
        "      a: range(2, 10, 2)",
        "      b: interval(1, 8)",
        "      c: range(-5.5, 6.0, 0.5)",
        "      d: tag(log, interval(1e-05, 1.0))",
        "      e: tag(log, interval(1, 64))",
        "      f: \"choice(-5, 'a b', 'it: is', true, null)\"",
        "      g: range(0.0, 1.2, 0.3)",
        "      h:  # no distribution: {'type': 'gauss'}",
    ]


def test_a_custom_search_space_is_refused_with_the_key_that_does_its_work() -> None:
    told = refusal(direction="minimize", custom_search_space="my.app.configure")
    assert "custom_search_space=my.app.configure" in told
    assert "when:" in told and "optimizer.momentum: {optimizer: sgd}" in told


def test_everything_that_is_refused_is_reported_at_once() -> None:
    told = refusal(sampler="nsgaii", max_failure_rate=0.5, custom_search_space="f")
    for key in ("direction", "sampler=nsgaii", "max_failure_rate=0.5", "custom_search_space=f"):
        assert f"hydra.sweeper.{key}" in told
    assert told.count("No job was started") == 1


def test_nothing_is_logged_about_keys_that_mean_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings_of(direction="maximize", n_trials=9, sampler=TPE, storage="a.log", study_name="s")
    assert caplog.messages == []
