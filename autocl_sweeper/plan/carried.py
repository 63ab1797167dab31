"""Stages of an older sweep that a new one learns from: `hydra.sweeper.carry_from`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from autocl_sweeper.distributions import Distribution, Space
from autocl_sweeper.errors import ConfigurationError, SweepFolderError
from autocl_sweeper.overview import Overview, look
from autocl_sweeper.plan.settings import Settings
from autocl_sweeper.plan.spaces import describe, distributions_of, kinds_of
from autocl_sweeper.protocols import IndexedSearch
from autocl_sweeper.selection import TopK
from autocl_sweeper.space import bare
from autocl_sweeper.strategy.decisions import Stage
from autocl_sweeper.view import StageView


@dataclass(frozen=True)
class OlderSweep:
    """The stages of another sweep, oldest first, and what a fingerprint holds of it."""

    stages: Sequence[StageView]
    fingerprint: Mapping[str, Any]


def older_sweep(settings: Settings) -> OlderSweep | None:
    """The sweep that `carry_from` names; None where it names none. Raises ConfigurationError."""
    if settings.carry_from is None:
        return None
    if not settings.transfer:
        raise ConfigurationError(
            f"hydra.sweeper.carry_from={settings.carry_from} with hydra.sweeper.transfer=false.\n"
            "  Without transfer a search learns from no other stage, of an older sweep neither.\n"
            "  Drop one of the two."
        )
    folder = Path(settings.carry_from).absolute()
    try:
        sweep = look(folder)
    except SweepFolderError as error:
        raise _no_sweep(settings.carry_from, f".\n  {error}") from error
    if not any(trial.score is not None for trial in sweep.history):
        raise _no_sweep(settings.carry_from, ": none of its trials has a score.")
    held = [
        (trial.stage, trial.task, dict(trial.suggestion.params), trial.state.value, trial.score)
        for trial in sweep.history
    ]
    direction = "maximize" if sweep.maximize else "minimize"
    digest = blake2b(json.dumps([direction, held]).encode(), digest_size=8).hexdigest()
    what = {"folder": str(folder), "trials": len(held), "digest": digest}
    return OlderSweep(_stages(sweep, settings.carry_from), what)


def refuse_useless(
    settings: Settings,
    older: OlderSweep | None,
    stages: Sequence[Stage],
    spaces: Mapping[str, Space],
) -> None:
    """Refuse an older sweep that no search can learn from. Raises ConfigurationError."""
    if older is None:
        return
    where = f"hydra.sweeper.carry_from={settings.carry_from}"
    if all(isinstance(stage.search, IndexedSearch) for stage in stages):
        names = ", ".join(sorted({type(stage.search).__name__ for stage in stages}))
        raise ConfigurationError(
            f"{where}, but {names} does not learn from other trials.\n"
            "  Choose a search that does: hydra/sweeper/search=relay with hydra.sweeper.jobs set."
        )
    ours = _kinds([distributions_of(describe(space)) for space in spaces.values()])
    tried = [[trial.params for trial in stage.trials] for stage in older.stages]
    theirs = _kinds([distributions_of(params) for params in tried])
    if not any(ours[key] & theirs[key] for key in ours.keys() & theirs.keys()):
        raise ConfigurationError(
            f"{where}: that sweep has no key in common with this one.\n"
            f"  It searched: {_listed(theirs)}.\n"
            f"  This one searches: {_listed(ours)}.\n"
            "  Name a sweep over at least one of these keys, or drop carry_from."
        )


def _kinds(spaces: Sequence[Mapping[str, Distribution]]) -> dict[str, set[str]]:
    """Key without prefix -> what its values are in these spaces: `numbers`, `names`."""
    found: dict[str, set[str]] = {}
    for space in spaces:
        for key, distribution in space.items():
            found.setdefault(bare(key), set()).update(kinds_of(distribution))
    return found


def _listed(kinds: Mapping[str, set[str]]) -> str:
    told = [f"{key} ({' and '.join(sorted(of)) or 'null'})" for key, of in sorted(kinds.items())]
    return ", ".join(told) or "nothing"


def _stages(sweep: Overview, name: str) -> list[StageView]:
    loss, found = TopK(1, sweep.maximize).loss, list[StageView]()
    for number in sorted({trial.stage for trial in sweep.history}):
        task, earlier = sweep.task_of(number), tuple(found)
        view = StageView(number, task, sweep.history, loss, lambda _: 0, earlier, name)
        for trial in sweep.history.stage(number):
            view.note(trial)
        found.append(view)
    return found


def _no_sweep(folder: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"hydra.sweeper.carry_from={folder} is not the folder of a sweep{why}\n"
        "  Its trials have scores, and its path is relative to where you start the command. No job"
        " was started."
    )
