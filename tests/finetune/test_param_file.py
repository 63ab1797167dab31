"""hparam.yaml: what it says, and every mistake in it, all at once and before any job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plans import RANDOM, plan_of

from autocl_sweeper.distributions import Interval
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.param_file import read_param_file
from autocl_sweeper.types import History

RATE = "{name: rate, init_value: 0.001, type: float, lower_than: 0.05, greater_than: 5e-5}"
SIZE = "{name: size, init_value: 12, type: int, lower_than: 20, greater_than: 10}"


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(*entries: str) -> Path:
        path = tmp_path / "hparam.yaml"
        path.write_text("".join(["param_list:\n", *(f"- {entry}\n" for entry in entries)]))
        return path

    return write


def mistakes(path: Path, least: int = 1, **taken: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        read_param_file(path, taken, least)
    return str(raised.value)


def test_bounds_are_inclusive_and_a_number_without_a_dot_is_a_number(written: Any) -> None:
    rate = "{name: rate, init_value: 1e-3, type: float, lower_than: 5e-2, greater_than: 5e-6}"
    file = read_param_file(written(rate, SIZE), {})
    assert file.space == {
        "rate": Interval(5e-6, 0.05),
        "size": Interval(10.0, 20.0, integer=True),
    }
    assert file.init == {"rate": 1e-3, "size": 12}
    assert isinstance(file.init["size"], int) and isinstance(file.init["rate"], float)


def test_log_is_the_one_key_that_may_be_left_out(written: Any) -> None:
    logarithmic = RATE.replace("type", "log: true, type")
    assert read_param_file(written(logarithmic), {}).space["rate"].log


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{init_value: 1, type: int, lower_than: 2, greater_than: 0}", "the key name is missing"),
        (RATE.replace("init_value: 0.001, ", ""), "the key init_value is missing"),
        (RATE.replace("type: float, ", ""), "the key type is missing"),
        (RATE.replace("lower_than: 0.05, ", ""), "the key lower_than is missing"),
        (RATE.replace(", greater_than: 5e-5", ""), "the key greater_than is missing"),
        (RATE.replace("lower_than", "lower_then"), "'lower_then', did you mean lower_than?"),
        (RATE.replace("float", "double"), "type is 'double', not int or float"),
        (RATE.replace("0.05", "true"), "lower_than is True, not a finite number"),
        (RATE.replace("0.05", ".inf"), "lower_than is inf, not a finite number"),
        (RATE.replace("0.001", ".nan"), "init_value is nan, not a finite number"),
        (RATE.replace("0.001", "'0.001'"), "init_value is '0.001', not a finite number"),
        (RATE.replace("0.001", "null"), "init_value is None, not a finite number"),
        (RATE.replace("5e-5", "0.05"), "must be below the upper one"),
        (RATE.replace("5e-5", "0.5"), "must be below the upper one"),
        (RATE.replace("0.001", "0.051"), "init_value is 0.051, outside the bounds [5e-05, 0.05]"),
        (RATE.replace("0.001", "1e-5"), "init_value is 1e-05, outside the bounds"),
        (SIZE.replace("12", "12.5"), "init_value is 12.5, not a whole number"),
        (SIZE.replace("20", "20.5"), "lower_than is 20.5, not a whole number"),
        (RATE.replace("5e-5", "0, log: true"), "log: true needs a lower bound above 0"),
        (RATE.replace("5e-5", "5e-5, log: 1"), "log is 1, not true or false"),
        (RATE.replace("rate", "'my rate'"), "'my rate', which is no legal override key"),
        (RATE.replace("rate", "~rate"), "'~rate', which is no legal override key"),
        (RATE.replace("rate", "7"), "name is 7, which is no legal override key"),
        (RATE.replace("rate", "hydra.job.num"), "cannot be searched"),
        (RATE.replace("rate", "fixed"), "it is fixed elsewhere"),
        ("rate", "'rate' is not a mapping"),
    ],
)
def test_a_mistake_names_file_entry_and_rule(written: Any, entry: str, words: str) -> None:
    path = written(SIZE.replace("size", "other"), entry)
    said = mistakes(path, fixed="it is fixed elsewhere")
    assert f"'{path}'" in said and "entry 2" in said and words in said
    assert "entry 1" not in said


def test_all_mistakes_of_all_entries_are_said_at_once(written: Any) -> None:
    said = mistakes(written(RATE.replace("0.05", "true"), SIZE.replace("int", "in"), RATE))
    assert "entry 1 (rate): lower_than" in said
    assert "entry 2 (size): type is 'in'" in said
    assert "entry 3 (rate): the name is that of entry 1 too" in said


def test_a_key_beside_the_list_hides_no_mistake_in_it(written: Any) -> None:
    path = written(RATE, RATE.replace("float", "double"))
    path.write_text(path.read_text() + "\nmore: 1\n")
    said = mistakes(path)
    assert "unknown key 'more'" in said and "entry 2 (rate): type is 'double'" in said
    assert "entry 2 (rate): the name is that of entry 1 too" in said


def test_hazero_needs_two_entries(written: Any) -> None:
    assert "hazero needs at least 2" in mistakes(written(RATE), least=2)
    assert len(read_param_file(written(RATE, SIZE), {}, 2).space) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the key param_list is missing"),
        ("param_lst: []", "'param_lst', did you mean param_list?"),
        (f"param_list: [{RATE}]\nmore: 1", "unknown key 'more'"),
        ("param_list: []", "param_list is empty"),
        ("param_list: 3", "not a list"),
        ("- 1", "it holds no mapping"),
        ("param_list: [", "it is not YAML"),
    ],
)
def test_a_file_that_is_no_list_of_parameters_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "hparam.yaml"
    path.write_text(text)
    assert words in mistakes(path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    assert "No such file" in mistakes(tmp_path / "none.yaml")


# -- in a sweep -------------------------------------------------------------------------------------


def test_the_file_is_the_space_and_its_init_values_the_first_suggestion(written: Any) -> None:
    file = str(written(RATE, SIZE))
    plan = plan_of("lr=1,2", param_file=file, jobs=2, search=RANDOM)
    first = plan.stages[0].search.suggestion(0)  # type: ignore[attr-defined]
    assert first.params.keys() == {"lr", "rate", "size"}
    plan = plan_of(param_file=file, popsize=3, rounds=2, search=RANDOM)
    start = plan.strategy.next(History())
    assert (start.suggestion.params, start.suggestion.origin) == (  # type: ignore[union-attr]
        {"rate": 0.001, "size": 12},
        "init",
    )
    assert plan.size == 6


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (("size=3",), {}, "entry 2 (size): it is set on the command line too: size=3"),
        (("size=3,4",), {}, "entry 2 (size): it is set on the command line too: size=3,4"),
        ((), {"params": {"rate": "1,2"}}, "entry 1 (rate): 'rate' is searched by"),
        ((), {"handover": {"rate": "checkpoint"}}, "'rate' is set by hydra.sweeper.handover"),
        (("rate=a,b",), {"sequence": "rate"}, "entry 1 (rate): it is set on the command line"),
        (
            (),
            {"parents": "population", "popsize": 2, "population": {"epochs_key": "size"}},
            "entry 2 (size): 'size' is set by hydra.sweeper.population",
        ),
    ],
)
def test_a_name_that_is_set_elsewhere_too_is_refused(
    written: Any, arguments: tuple[str, ...], settings: dict[str, Any], words: str
) -> None:
    settings = {"popsize": 3, "search": RANDOM, "param_file": str(written(RATE, SIZE)), **settings}
    with pytest.raises(ConfigurationError) as raised:
        plan_of(*arguments, **settings)
    assert words in str(raised.value)
