"""A search by one of Optuna's samplers, which is asked anew for each suggestion."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, ClassVar, Literal

from autocl_sweeper.distributions import Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search import in_turn, next_index
from autocl_sweeper.search.cube import seed_of
from autocl_sweeper.search.grid import size_of
from autocl_sweeper.search.pooled import Axes, Mirror, ask
from autocl_sweeper.search.random import places, unseen
from autocl_sweeper.types import Origin, State, Suggestion
from autocl_sweeper.view import StageView, TrialView

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

ATTEMPTS = 5  # proposals that were there before; then one is drawn from what is left


class SamplerSearch:
    """What a sampler proposes for the stage as it is, each with one parent, the parents in turn.

    The first suggestion is the app's own configuration where it lies in the space; random ones
    follow until `startup` trials have ended in one of the states the sampler learns from. Every
    suggestion has a sampler of its own, with a seed of its own, so none depends on the ones asked
    before. A proposal that was there before is asked again, then drawn from what is left.
    """

    pairing: ClassVar[Literal["every", "one"]] = "one"

    def __init__(
        self,
        space: Space,
        name: str,
        sampler: Callable[[int], BaseSampler],
        startup: int,
        learns_from: Collection[State],
    ) -> None:
        if startup < 1:
            raise ConfigurationError(
                f"hydra.sweeper.search.n_startup_trials={startup}, but it must be at least 1."
            )
        self.size = size_of(space)
        self._space = space
        self._name = name
        self._sampler = sampler
        self._startup = startup
        self._learns_from = learns_from
        self._axes = Axes(space)
        self._mirror: Mirror[tuple[str, State, FrozenTrial | None]] | None = None

    def ask(self, stage: StageView) -> Suggestion | None:
        index = next_index(stage)
        parent = in_turn(stage, index)
        initial = self._space.initial
        if index == 0 and initial is not None:
            return Suggestion(index, initial, "init", parent=parent)
        if self._mirror is None or self._mirror.stage is not stage:
            self._mirror = Mirror(stage, self._row)
        rows = self._mirror.rows()
        seen = {params for params, _, _ in rows}
        trials = [(state, frozen) for _, state, frozen in rows if frozen is not None]
        learned = sum(state in self._learns_from for state, _ in trials) >= self._startup
        origin: Origin = "model" if learned else "fresh"
        for attempt in range(ATTEMPTS if self._space else 0):
            sampler = self._sampler(seed_of(self._name, index, attempt))
            asked = ask([frozen for _, frozen in trials], sampler, self._axes.distributions)
            params = self._space.params(self._axes.from_optuna(asked))
            if repr(params) not in seen:
                return Suggestion(index, params, origin, parent=parent)
        rest = unseen(self._space, seen, f"{self._name}/{index}")
        return None if rest is None else Suggestion(index, rest, "fresh", parent=parent)

    def _row(self, trial: TrialView) -> tuple[str, State, FrozenTrial | None]:
        """Its parameters as text, its state, and itself as Optuna has it; None: outside the space.

        Every trial has a value for every axis, or Optuna would leave the axis out of its joint
        model: one that a condition took away is drawn from the seed.
        """
        from optuna.trial import TrialState, create_trial

        place = places(f"{self._name}/{trial.suggestion.index}")
        point = self._axes.completed(self._space.point(trial.params), place)
        frozen: FrozenTrial | None = None
        if all(one.position(point[axis]) is not None for axis, one in self._space.items()):
            value = trial.loss if trial.state is State.COMPLETE else None
            reports = dict(trial.reports) if trial.state is State.PRUNED else {}
            known = trial.state is State.RUNNING or value is not None or reports
            frozen = create_trial(
                state=TrialState[trial.state.value] if known else TrialState.FAIL,
                value=value,
                params=self._axes.to_optuna(point),
                distributions=self._axes.distributions,
                intermediate_values=reports,
            )
        return repr(dict(trial.params)), trial.state, frozen
