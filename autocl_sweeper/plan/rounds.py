"""Rounds of a search: AutoDL Finetuner's evaluators, FullTrail and PopulationBased, as stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.settings import Settings, refuse_unknown
from autocl_sweeper.protocols import Search
from autocl_sweeper.search.listed import ListedSearch
from autocl_sweeper.space import bare, is_key
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.types import Value

BEAM, INIT, POPULATION = PARENTS = ("beam", "init", "population")
HANDED = "checkpoint"  # the value of `handover` that is a parent's checkpoint
SOURCES = "sources"  # handover value: checkpoints of the whole beam of the stage before


@dataclass(frozen=True)
class Population:
    """The keys under `hydra.sweeper.population`. `keep`: null: half of the population."""

    keep: int | None = None
    epochs: int | None = 1
    epochs_key: str = "epochs"
    first_epochs: int | None = None
    model_path: str | None = None
    perturb: bool = False
    replay: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Population:
        """Raises ConfigurationError for an unknown key and for values out of their range."""
        refuse_unknown(settings.population, cls, "hydra.sweeper.population")
        population = cls(**settings.population)
        for name in ("keep", "epochs", "first_epochs"):
            value = getattr(population, name)
            if value is not None and value < 1:
                raise ConfigurationError(
                    f"hydra.sweeper.population.{name}={value!r}, but it must be a whole number of at"
                    " least 1, or null.\n  `autocl docs finetune` explains it."
                )
        for name in ("epochs_key", "model_path"):
            value = getattr(population, name)
            if value is not None and not is_key(str(value)):
                raise ConfigurationError(
                    f"hydra.sweeper.population.{name}={value!r} is not an override key.\n"
                    "  It names what a job gets the value under, as typed on its command line."
                )
        return population

    def passed(self, epochs: int | None) -> dict[str, Value]:
        """What a round sets beside its suggestions; `epochs` None: the app's own number."""
        return {} if epochs is None else {self.epochs_key: epochs}


def check_rounds(settings: Settings) -> None:
    """Validate `parents`, and what `population` needs. Raises ConfigurationError."""
    if settings.parents not in PARENTS:
        raise ConfigurationError(
            f"hydra.sweeper.parents={settings.parents!r} is not one of: {', '.join(PARENTS)}."
        )
    population = Population.of(settings)
    if settings.rounds > 1 and settings.popsize is None and population.replay is None:
        raise ConfigurationError(
            f"hydra.sweeper.rounds={settings.rounds}, but hydra.sweeper.popsize is null.\n"
            "  A round has popsize suggestions: set it, for instance hydra.sweeper.popsize=5."
        )
    if settings.parents != BEAM and settings.seeds != 1:
        raise ConfigurationError(
            f"hydra.sweeper.seeds={settings.seeds} with hydra.sweeper.parents={settings.parents}: a"
            " search in rounds runs each suggestion once.\n"
            "  Leave one of them at its default."
        )
    if settings.parents != POPULATION:
        if population.replay is not None:
            raise ConfigurationError(
                "hydra.sweeper.population.replay is set, but hydra.sweeper.parents="
                f"{settings.parents}.\n  A schedule is replayed by hydra.sweeper.parents=population."
            )
        return
    if settings.popsize is None and population.replay is None:
        raise ConfigurationError(
            "hydra.sweeper.parents=population, but hydra.sweeper.popsize is null.\n"
            "  It is the number of trials in a round. Set it, for instance hydra.sweeper.popsize=5."
        )
    keep, popsize = population.keep, settings.popsize
    if keep is not None and popsize is not None and keep > popsize:
        raise ConfigurationError(
            f"hydra.sweeper.population.keep={keep} is more than hydra.sweeper.popsize={popsize}: a"
            f" round of {popsize} trials cannot have {keep} that the next one starts from.\n"
            f"  Set hydra.sweeper.population.keep={popsize} or less."
        )
    if HANDED not in handover_of(settings).values():
        raise ConfigurationError(
            "hydra.sweeper.parents=population, but no job would get its parent's checkpoint.\n"
            "  Name the override key that takes it: hydra.sweeper.population.model_path=model_path,"
            " or\n  hydra.sweeper.handover.init_from=checkpoint."
        )


def handover_of(settings: Settings) -> dict[str, str | None]:
    """`handover`, with `population.model_path` in the place of other keys for the checkpoint."""
    model_path = Population.of(settings).model_path
    if settings.parents != POPULATION or model_path is None:
        return dict(settings.handover)
    others = {key: value for key, value in settings.handover.items() if value != HANDED}
    return {**others, model_path: HANDED}


def beam_width(settings: Settings) -> int:
    """How many survivors a stage has; in a population that is how many parents a round has."""
    if settings.parents != POPULATION:
        return settings.top_k
    keep = Population.of(settings).keep
    return keep if keep is not None else max(1, (settings.popsize or 1) // 2)


def rounds_told(settings: Settings) -> dict[str, Any]:
    """What a fingerprint holds of rounds: with another popsize trials would change theirs."""
    keys = ["parents", "popsize"] + ["population"] * (settings.parents == POPULATION)
    return {key: getattr(settings, key) for key in keys}


def taken_names(settings: Settings) -> dict[str, str]:
    """Override keys that the sweep itself sets -> why they cannot be searched or fixed."""
    taken = {
        bare(key): f"{bare(key)!r} is set by hydra.sweeper.handover, from the parent of a trial"
        for key, value in handover_of(settings).items()
        if value is not None
    }
    if settings.sequence is not None:
        taken[bare(settings.sequence)] = f"{settings.sequence!r} lists the tasks of the sequence"
    return {**taken, **epochs_taken(settings)}


def epochs_taken(settings: Settings) -> dict[str, str]:
    """The key of the epochs, where rounds set it."""
    population = Population.of(settings)
    passed = (population.epochs, population.first_epochs)
    if settings.parents != POPULATION or passed == (None, None):
        return {}
    key = bare(population.epochs_key)
    return {
        key: f"{key!r} is set by hydra.sweeper.population, so that all trials of a round train"
        " equally long: set population.epochs (of a continued round) and population.first_epochs"
        " (of the first one), or population.epochs_key if your app calls them something else"
    }


def round_stages(
    settings: Settings, task: str, first: int, search: Callable[[int], Search]
) -> list[Stage]:
    """The stages of one task, numbered from `first`. search: round, counted from 0 -> its search.

    In a population every round is a stage of its own, whose trials have the best of the round
    before as their parents; else the rounds of a task are one stage.
    """
    if settings.parents != POPULATION:
        limit = None if settings.popsize is None else settings.rounds * settings.popsize
        seeds, parents = settings.seeds, settings.parents
        return [Stage(first, task, search(0), limit, settings.jobs, seeds, parents=parents)]
    population = Population.of(settings)
    epochs = [population.first_epochs] + [population.epochs] * (settings.rounds - 1)
    return [
        _round(first + place, task, search(place), settings.popsize, place, population.passed(one))
        for place, one in enumerate(epochs)
    ]


def _round(
    number: int, task: str, search: Search, size: int | None, place: int, passed: dict[str, Value]
) -> Stage:
    return Stage(number, task, search, size, parents=POPULATION, round=place, passed=passed)


# -- schedules --------------------------------------------------------------------------------------

SCHEDULE = "schedule.yaml"


@dataclass(frozen=True)
class Step:
    """One trial of a schedule. `epochs`: what it was passed; None: the app's own number."""

    task: str | None
    round: int
    params: Mapping[str, Value]
    epochs: int | None


def read_schedule(path: str | Path) -> list[Step]:
    """The steps of a schedule file, first to last. Raises ConfigurationError."""
    from omegaconf import OmegaConf

    try:
        told: Any = OmegaConf.to_container(OmegaConf.load(path))
        steps = [
            Step(one.get("task"), int(one["round"]), dict(one["params"]), one["epochs"])
            for one in told["steps"]
        ]
    except OSError as error:
        raise ConfigurationError(
            f"The schedule '{path}' cannot be read: {error.strerror or error}.\n"
            f"  A search writes its winner's as {SCHEDULE} into its folder."
        ) from error
    except Exception as error:  # whatever a broken file makes YAML, OmegaConf or these lines raise
        raise ConfigurationError(
            f"'{path}' is no schedule: {type(error).__name__}: {error}\n"
            f"  A search writes its winner's as {SCHEDULE} into its folder. No job was started."
        ) from error
    if not steps:
        raise ConfigurationError(f"The schedule '{path}' has no steps. No job was started.")
    return steps


def replayed_stages(settings: Settings, tasks: Sequence[str]) -> tuple[list[Stage], dict[str, Any]]:
    """A stage of one trial for every step of `population.replay`, and what a fingerprint has of it.

    Raises ConfigurationError.
    """
    population = Population.of(settings)
    assert population.replay is not None
    steps = read_schedule(population.replay)
    named = [tasks[0] if len(tasks) == 1 else str(step.task) for step in steps]
    if list(dict.fromkeys(named)) != list(tasks):
        raise ConfigurationError(
            f"The schedule '{population.replay}' goes through the tasks"
            f" {list(dict.fromkeys(named))}, the sequence through {list(tasks)}.\n"
            "  Replay it with the same tasks in the same order. No job was started."
        )
    passed = [population.passed(step.epochs) for step in steps]
    stages = [
        _round(number, task, ListedSearch([step.params]), 1, step.round, more)
        for number, (task, step, more) in enumerate(zip(named, steps, passed, strict=True), start=1)
    ]
    given = [{**step.params, **more} for step, more in zip(steps, passed, strict=True)]
    return stages, {"schedule": given}
