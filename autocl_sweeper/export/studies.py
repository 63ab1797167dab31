"""Trials as Optuna studies, one per stage, in any storage that Optuna knows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autocl_sweeper.distributions import Choice, Distribution, Interval, same
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.export.rows import Beams, Described, Row, about, text_of
from autocl_sweeper.space import bare
from autocl_sweeper.types import State, Trial, Value

MOST_CHOICES = 100  # of numbers, listed: a storage keeps all of them with each value of a trial
OWNER = "sweep"  # the attribute of a study that names the folder of its sweep


class Studies:
    """The studies of a sweep in one storage. A study of the same name and sweep is replaced.

    Made and used in one thread: a connection to SQLite belongs to its thread. Raises
    ConfigurationError for a study of somebody else, and whatever the storage raises.
    """

    def __init__(self, url: str, sweep: Described) -> None:
        with _quiet():
            self._storage = _storage(url)
        self._url = url
        self._sweep = sweep
        self._studies: dict[int, _Study] = {}
        self._beams: dict[int, Sequence[int]] = {}

    def write(self, rows: Sequence[Row], beams: Beams) -> None:
        by_stage: dict[int, list[Row]] = {}
        for row in rows:
            by_stage.setdefault(row.trial.stage, []).append(row)
        for stage, changed in by_stage.items():
            if stage not in self._studies:
                self._studies[stage] = self._begin(stage, changed[0].trial.task)
            self._studies[stage].write(changed)
        for stage, beam in beams.items():
            if stage in self._studies and self._beams.get(stage) != beam:
                self._storage.set_study_user_attr(self._studies[stage].id, "beam", list(beam))
                self._beams[stage] = beam

    def _begin(self, stage: int, task: str) -> _Study:
        name = f"{self._sweep.name}/{stage}_{task}"
        attributes = {OWNER: str(self._sweep.folder), "stage": stage, "task": task}
        study = _Study(self._storage, name, self._sweep, attributes)
        with _quiet():
            if (before := study.of_this_name()) is not None:
                found = self._storage.get_study_user_attrs(before).get(OWNER)
                if found != attributes[OWNER]:
                    whose = f"the sweep in '{found}'" if found else "no sweep"
                    raise ConfigurationError(
                        f"the study '{name}' of {self._url} is there already, and is of {whose}.\n"
                        "  It is left as it is. Set hydra.sweeper.export.study_name to another name."
                    )
            study.begin()
        return study


@dataclass
class _Written:
    """What the storage has of a trial."""

    id: int
    row: Row
    reports: int


@dataclass
class _Study:
    """One study: a stage and its trials."""

    storage: Any
    name: str
    sweep: Described
    attributes: Mapping[str, Any]
    id: int = -1
    rows: dict[int, Row] = field(default_factory=dict)
    written: dict[int, _Written] = field(default_factory=dict)

    def __post_init__(self) -> None:
        space = self.sweep.spaces.get(self.attributes["task"], {})
        self.axes = {bare(key): _Axis(one) for key, one in space.items()}

    def of_this_name(self) -> int | None:
        try:
            found: int = self.storage.get_study_id_from_name(self.name)
        except KeyError:
            return None
        return found

    def begin(self) -> None:
        """Make an empty study; one of the same name is removed first."""
        from optuna.study import StudyDirection

        if (before := self.of_this_name()) is not None:
            self.storage.delete_study(before)
        direction = StudyDirection.MAXIMIZE if self.sweep.maximize else StudyDirection.MINIMIZE
        self.id = self.storage.create_new_study([direction], self.name)
        for key, value in self.attributes.items():
            self.storage.set_study_user_attr(self.id, key, value)
        self.written.clear()

    def write(self, rows: Sequence[Row]) -> None:
        self.rows.update((row.trial.number, row) for row in rows)
        if any(self._changed_back(row) for row in rows):
            # A storage never changes a finished trial, so a trial that runs again needs a new study.
            with _quiet():
                self.begin()
            rows = list(self.rows.values())
        for row in rows:
            written = self.written.get(row.trial.number)
            if written is None:
                self._create(row)
            elif written.row.state is State.RUNNING:
                self._update(written, row)

    def _changed_back(self, row: Row) -> bool:
        written = self.written.get(row.trial.number)
        if written is None:
            return False
        again = row.trial.attempt != written.row.trial.attempt
        if written.row.state is not State.RUNNING:
            return again or row.state is not written.row.state
        return again and written.reports > 0

    def _create(self, row: Row) -> None:
        from optuna.trial import TrialState, create_trial

        state, value = self._end(row)
        params, attributes = self._params(row.trial)
        count = len(row.reports)
        frozen = create_trial(
            state=TrialState[state.value],
            value=value,
            params=params,
            distributions={key: self.axes[key].distribution for key in params},
            user_attrs={**attributes, **_attributes(row)},
            intermediate_values={one.step: one.score for one in row.reports[:count]},
        )
        frozen.datetime_start = _datetime(row.started) or frozen.datetime_start
        if state is not State.RUNNING:
            frozen.datetime_complete = _datetime(row.ended) or frozen.datetime_complete
        trial_id = self.storage.create_new_trial(self.id, template_trial=frozen)
        self.written[row.trial.number] = _Written(trial_id, row, count)

    def _update(self, written: _Written, row: Row) -> None:
        from optuna.trial import TrialState

        count = len(row.reports)
        for report in row.reports[written.reports : count]:
            self.storage.set_trial_intermediate_value(written.id, report.step, report.score)
        written.reports = count
        before = _attributes(written.row)
        for key, attribute in _attributes(row).items():
            if before.get(key) != attribute:
                self.storage.set_trial_user_attr(written.id, key, attribute)
        state, value = self._end(row)
        if state is not State.RUNNING:
            values = None if value is None else [value]
            self.storage.set_trial_state_values(written.id, TrialState[state.value], values)
        written.row = row

    def _end(self, row: Row) -> tuple[State, float | None]:
        """State and value as Optuna takes them: a complete trial there has a value, a failed none."""
        score = row.score
        if row.state is State.COMPLETE and score is None:
            return State.FAIL, None  # a job that returned nothing to rank fails in Optuna too
        if row.state not in (State.COMPLETE, State.PRUNED) or score is None or math.isnan(score):
            return row.state, None
        return row.state, score

    def _params(self, trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters in the terms of their distributions; the others as attributes."""
        params: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for typed, value in trial.suggestion.params.items():
            key = bare(typed)
            if key in self.axes and self.axes[key].holds(value):
                params[key] = self.axes[key].told(value)
            else:
                others[f"param {key}"] = value
        return params, others


def _attributes(row: Row) -> dict[str, Any]:
    """What a dashboard shows of a trial beside its parameters."""
    trial, outcome = row.trial, row.trial.outcome
    found: dict[str, Any] = about(trial)
    if outcome is not None and row.state is not State.RUNNING:
        found |= {"seconds": round(outcome.seconds, 3), "reason": outcome.reason or None}
        found |= {f"eval/{task}": _finite(n) for task, n in outcome.evaluations.items()}
        found |= {f"test/{task}": _finite(n) for task, n in outcome.tests.items()}
        found |= {
            key: _finite(n) for key, n in outcome.numbers.items() if key not in (*found, "score")
        }
    if (carried := trial.suggestion.carried) is not None:
        found |= {"carried": asdict(carried)}
    return {key: value for key, value in found.items() if value is not None}


def _finite(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # a browser's JSON has no nan


def _datetime(time_s: float | None) -> datetime | None:
    return None if time_s is None else datetime.fromtimestamp(time_s)


# -- values in Optuna's terms -----------------------------------------------------------------------


class _Axis:
    """A distribution as Optuna has it. Its choices are ours by `same`, in order."""

    def __init__(self, one: Distribution) -> None:
        from optuna import distributions as optunas

        self.choices: list[tuple[Value, Any]] = []
        if isinstance(one, Choice) and one.ordered and len(one.values) > MOST_CHOICES:
            low, high = one.ranked[0], one.ranked[-1]
            assert isinstance(low, (int, float)) and isinstance(high, (int, float))
            one = Interval(low, high, integer=all(isinstance(value, int) for value in one.values))
        if isinstance(one, Choice):
            self.choices = _choices(one.values)
            told = [other for _, other in self.choices]
            self.distribution: Any = optunas.CategoricalDistribution(told)
        elif one.integer:
            self.distribution = optunas.IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            self.distribution = optunas.FloatDistribution(one.low, one.high, log=one.log)

    def holds(self, value: Value) -> bool:
        if self.choices:
            return any(same(value, one) for one, _ in self.choices)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.distribution.low <= value <= self.distribution.high

    def told(self, value: Value) -> Any:
        """A value it holds in Optuna's terms."""
        return next((told for one, told in self.choices if same(value, one)), value)


def _choices(values: Sequence[Value]) -> list[tuple[Value, Any]]:
    """Each value once, with what Optuna can hold of it: lists and mappings are JSON text.

    Optuna tells choices apart by `==`, for which 1 is true: where that matters, all are text.
    """
    distinct: list[Value] = []
    for value in values:
        if not any(same(value, other) for other in distinct):
            distinct.append(value)
    told = [_told(value) for value in distinct]
    if len(set(told)) < len(told):
        told = [text_of(value) for value in distinct]
    return list(zip(distinct, told, strict=True))


def _told(value: Value) -> Any:
    simple = value is None or isinstance(value, (bool, int, float, str))
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if simple and finite else text_of(value)


# -- storages ---------------------------------------------------------------------------------------


def absolute(given: str) -> str:
    """A storage URL or journal file with a path that does not depend on the working folder."""
    scheme, separator, rest = given.partition("://")
    if not separator:
        return str(Path(given).absolute())
    path, _, query = rest.removeprefix("/").partition("?")
    local = scheme.startswith("sqlite") and rest.startswith("/") and not rest.startswith("//")
    if not local or not path or path == ":memory:" or path.startswith("file:"):
        return given
    return f"{scheme}:///{Path(path).absolute()}{'?' if query else ''}{query}"


def _storage(url: str) -> Any:
    from optuna import storages
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend

    scheme, separator, path = url.partition("://")
    if not separator:
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return storages.JournalStorage(JournalFileBackend(url))
    if scheme in ("redis", "rediss"):
        return storages.JournalStorage(JournalRedisBackend(url))
    if scheme.startswith("sqlite") and path.startswith("//"):
        Path(path[1:].partition("?")[0]).parent.mkdir(parents=True, exist_ok=True)
    return storages.RDBStorage(url)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's own lines about new studies, which go to the terminal past Hydra's logging."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
