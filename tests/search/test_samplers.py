"""tpe, gp and qmc as searches of a stage: Optuna and scipy, run directly, are the oracle."""

from __future__ import annotations

import importlib.util
import logging
import math
import time

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc
from support.played import Played

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.protocols import IndexedSearch
from autocl_sweeper.search.cube import seed_of
from autocl_sweeper.search.gp import gp_search
from autocl_sweeper.search.qmc import QMCSearch
from autocl_sweeper.search.random import RandomSearch
from autocl_sweeper.search.tpe import tpe_search
from autocl_sweeper.types import Later, State

has_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="gp needs torch, which is an extra"
)
SAMPLERS = [
    pytest.param(tpe_search, id="tpe"),
    pytest.param(gp_search, id="gp", marks=[has_torch, pytest.mark.slow]),  # it fits for seconds
]
QUICK_GP = pytest.param(gp_search, id="gp", marks=has_torch)
ALL = [*SAMPLERS, pytest.param(QMCSearch, id="qmc")]

AXES = {
    "lr": Interval(1e-5, 1e-1, log=True),
    "wd": Interval(0.0, 1.0),
    "batch": Interval(8, 32, integer=True),
    "width": Choice((64, 16, 32)),
    "opt": Choice(("adam", "sgd", None)),
}
SPACE = Space(AXES, init={"lr": 1e-3, "wd": 0.1, "batch": 32, "width": 16, "opt": "adam"})
CONDITIONAL = Space(
    {"opt": Choice(("adam", "sgd")), "momentum": Interval(0.0, 0.99)},
    when={"momentum": {"opt": ["sgd"]}},
)
ZIPPED = Space(
    {"model,lr": Choice((["s", 1e-3], ["m", 1e-4], ["l", 1e-5])), "wd": Interval(0.0, 1.0)},
    zips={"model,lr": ("model", "lr")},
)


def bowl(params, index=0):
    return (math.log10(params["lr"]) + 2) ** 2 + params["wd"] + (params["opt"] != "sgd")


# -- Optuna itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [SAMPLERS[0], QUICK_GP])
def test_a_suggestion_is_what_optuna_proposes_for_the_same_trials(factory):
    """A study written here from the stage's trials: completed, failed, stopped and running ones."""
    states = {2: None, 5: State.PRUNED}
    played = Played(factory(SPACE, 3, "task", n_startup_trials=5))
    played.run(lambda params, index: states.get(index, bowl(params)), 10)
    played.start(played.ask())  # runs on
    asked = played.ask()

    distributions = {
        "lr": FloatDistribution(1e-5, 1e-1, log=True),
        "wd": FloatDistribution(0, 1),
        "batch": IntDistribution(8, 32),
        "width": IntDistribution(0, 2),  # by rank: 16, 32, 64
        "opt": CategoricalDistribution([0, 1, 2]),
    }
    study = optuna.create_study()
    for trial in played.stage.trials:
        params = dict(trial.params)
        params["width"] = [16, 32, 64].index(params["width"])
        params["opt"] = ["adam", "sgd", None].index(params["opt"])
        state = {State.COMPLETE: TrialState.COMPLETE, State.RUNNING: TrialState.RUNNING}
        study.add_trial(
            create_trial(
                state=state.get(trial.state, TrialState.FAIL),  # stopped without a report, too
                value=trial.loss,
                params=params,
                distributions=distributions,
            )
        )
    seed = seed_of("3/task", 11, 0)
    if factory is tpe_search:
        study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=5, multivariate=True, constant_liar=True
        )
    else:
        study.sampler = optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=5, warn_independent_sampling=False
        )
    expected = dict(study.ask(distributions).params)
    expected["width"] = [16, 32, 64][expected["width"]]
    expected["opt"] = ["adam", "sgd", None][expected["opt"]]
    assert asked.params == expected and asked.origin == "model"


@pytest.mark.parametrize("factory", SAMPLERS)
def test_random_suggestions_follow_the_apps_configuration_until_there_is_a_model(factory):
    played = Played(factory(SPACE, 0, "t", n_startup_trials=4))
    # The third one fails, so the fourth to complete is the fifth.
    made = played.run(lambda params, index: None if index == 2 else bowl(params), 7)
    assert made[0].params == dict(SPACE.init)
    assert [one.origin for one in made] == ["init", *["fresh"] * 4, "model", "model"]


def test_stopped_trials_teach_tpe_by_what_they_reported():
    def asked(report):
        played = Played(tpe_search(SPACE, 0, "t", n_startup_trials=3))
        for index in range(12):
            number = played.start(played.ask())
            if index:
                played.report(number, 10, report(index))
                played.end(number, State.PRUNED)
            else:
                played.end(number, bowl(played.history[number].suggestion.params))
        return played.ask().params

    assert asked(lambda index: index) != asked(lambda index: -index)
    assert asked(lambda index: math.nan) == asked(lambda index: math.nan)


def test_nothing_of_optunas_is_logged(caplog, capfd):
    caplog.set_level(logging.INFO)
    before = optuna.logging.get_verbosity()
    Played(tpe_search(SPACE, 0, "t")).run(bowl, 3)
    assert "study" not in caplog.text + capfd.readouterr().err
    assert optuna.logging.get_verbosity() == before


# -- all three ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", SAMPLERS)
def test_a_failed_trial_that_runs_again_is_followed(factory):
    played = Played(factory(SPACE, 0, "t", n_startup_trials=2))
    played.run(lambda params, index: None if index == 1 else bowl(params), 5)
    played.ask()
    played.again(1)
    played.ask()
    played.end(1, -9.0)
    fresh = Played(factory(SPACE, 0, "t", n_startup_trials=2))
    for number, trial in enumerate(played.stage.trials):
        fresh.start(trial.suggestion)
        fresh.end(number, trial.loss)
    assert played.ask() == fresh.ask()


@pytest.mark.parametrize("factory", ALL)
def test_zipped_keys_get_values_that_go_together(factory):
    made = Played(factory(ZIPPED, 0, "t")).run(lambda params, index: params["wd"], 13)
    rows = {(one.params["model"], one.params["lr"]) for one in made}
    assert rows == {("s", 1e-3), ("m", 1e-4), ("l", 1e-5)}


@pytest.mark.parametrize("factory", [tpe_search, QMCSearch])
def test_a_key_with_a_condition_is_there_only_where_it_holds(factory):
    def ends(params, index):
        return -params.get("momentum", 0.0)

    made = Played(factory(CONDITIONAL, 0, "t")).run(ends, 20)
    assert {("momentum" in one.params, one.params["opt"]) for one in made} == {
        (True, "sgd"), (False, "adam"),
    }  # fmt: skip
    # Without momentum there is but one suggestion, and none comes twice.
    assert sum(one.params["opt"] == "adam" for one in made) == 1


@has_torch
def test_gp_refuses_conditions_and_names_searches_that_take_them():
    with pytest.raises(ConfigurationError, match=r"(?s)when: 'momentum' .*'gp'.*relay, tpe, qmc"):
        gp_search(CONDITIONAL, 0, "t")


def test_gp_without_its_packages_says_what_to_install(monkeypatch):
    def find(name):
        return None if name == "torch" else importlib.util.find_spec(name)

    monkeypatch.setattr("autocl_sweeper.search.gp.find_spec", find)
    with pytest.raises(
        ConfigurationError, match=r"(?s)needs torch.*pip install autocl-sweeper\[gp\]"
    ):
        gp_search(SPACE, 0, "t")


@pytest.mark.parametrize("factory", SAMPLERS)
def test_a_startup_without_trials_is_refused(factory):
    with pytest.raises(ConfigurationError, match="n_startup_trials=0, but it must be at least 1"):
        factory(SPACE, 0, "t", n_startup_trials=0)


# -- what it costs --------------------------------------------------------------------------------


def cost_ms(played):
    """CPU time of an ask after a trial ended: the least of five, as a busy machine only adds."""
    spent = []
    for _ in range(5):
        played.end(played.start(played.ask()), 1.0)
        begin = time.process_time()
        played.ask()
        spent.append(1e3 * (time.process_time() - begin))
    return min(spent)


def filled(search, count):
    """A stage with so many finished trials, which another search suggested."""
    played = Played(QMCSearch(SPACE, 1, "t"))
    played.run(bowl, count)
    played.search = search
    return played


def test_tpe_answers_within_50_ms_at_1000_trials():
    assert cost_ms(filled(tpe_search(SPACE, 0, "t"), 1000)) < 50


@has_torch
@pytest.mark.slow
def test_gp_answers_within_a_second_at_100_trials():
    assert cost_ms(filled(gp_search(SPACE, 0, "t"), 100)) < 1000


# -- Sobol ----------------------------------------------------------------------------------------


def test_qmc_gives_the_points_of_a_scrambled_sobol_sequence_by_their_index():
    space = Space({"x": Interval(0.0, 1.0), "y": Interval(-1.0, 3.0)})
    search = QMCSearch(space, 5, "task")
    assert isinstance(search, IndexedSearch) and search.pairing == "every"
    points = qmc.Sobol(2, seed=np.random.default_rng(seed_of("5/task"))).random_base2(4)
    asked = [search.suggestion(index).params for index in (9, 0, 15)]
    assert asked == [
        {"x": pytest.approx(points[i, 0]), "y": pytest.approx(4 * points[i, 1] - 1)}
        for i in (9, 0, 15)
    ]


def test_sixteen_points_of_qmc_fill_every_sixteenth_of_each_axis():
    search = QMCSearch(Space({"x": Interval(0.0, 16.0), "y": Interval(0.0, 16.0)}), 0, "t")
    points = [search.suggestion(index).params for index in range(16)]
    for axis in ("x", "y"):
        assert sorted(int(point[axis]) for point in points) == [*range(16)]


@pytest.mark.parametrize("factory", [QMCSearch, RandomSearch])
def test_a_search_by_places_goes_on_where_a_value_is_listed_twice(factory):
    space = Space({"x": Choice((1, 1, 2)), "n": Interval(1, 2, integer=True)})
    search = factory(space, 0, "t")
    params = [tuple(search.suggestion(index).params.values()) for index in range(search.size)]
    assert sorted(params[:4]) == [(1, 1), (1, 2), (2, 1), (2, 2)] and len(params) == 6


def test_qmc_ends_where_a_value_is_listed_twice():
    search = QMCSearch(Space({"x": Choice((1, 1, 2))}), 0, "t")
    assert len(Played(search).run(lambda params, index: 0.0, 9)) == 2


def test_qmc_waits_for_nothing():
    played = Played(QMCSearch(SPACE, 0, "t"))
    for _ in range(20):
        asked = played.ask()
        assert not isinstance(asked, Later)
        played.start(asked)
