"""Who survives: fronts, repeats, noise and diversity, against brute force and by hand."""

from __future__ import annotations

import math
import random
from statistics import mean, stdev

import pytest
from support.plans import plan_of

from autocl_sweeper.selection import TopK
from autocl_sweeper.selection.diverse import Diverse, residual_deviation
from autocl_sweeper.selection.groups import TopKGroups, groups
from autocl_sweeper.selection.pareto import Pareto
from autocl_sweeper.types import Outcome, State, Suggestion, Trial


def trial(number, score, suggestion=None, parent=None, repeat=0, seconds=1.0, stage=2, **scores):
    place = number if suggestion is None else suggestion
    state = State.FAIL if score is None else State.COMPLETE
    outcome = Outcome(state, score=score, seconds=seconds, evaluations=scores)
    suggestion = Suggestion(place, {})
    task = "abc"[stage - 1]
    return Trial(number, stage, task, suggestion, parent, repeat=repeat, outcome=outcome)


def numbers(survivors):
    return [one.number for one in survivors]


# -- pareto -----------------------------------------------------------------------------------------


def brute_pareto(points, scores, k):
    """Ranks by how many fronts have to go first; crowding by its definition."""
    left, chosen = dict(points), []
    while left and len(chosen) < k:
        front = [
            p
            for p in left
            if not any(
                left[q][0] >= left[p][0] and left[q][1] >= left[p][1] and left[q] != left[p]
                for q in left
            )
        ]

        def crowding(p, front=front):
            total = 0.0
            for axis in (0, 1):
                order = [q for _, q in sorted((-points[q][axis], q) for q in front)]
                place = order.index(p)
                if place in (0, len(order) - 1):
                    return math.inf
                spread = points[order[0]][axis] - points[order[-1]][axis]
                gap = points[order[place - 1]][axis] - points[order[place + 1]][axis]
                total += gap / spread if spread else 0.0
            return total

        room = k - len(chosen)
        if len(front) > room:
            front = sorted(front, key=lambda p: (-crowding(p), -scores[p], p))[:room]
        chosen += sorted(front, key=lambda p: (-scores[p], p))
        for p in front:
            del left[p]
    return chosen


@pytest.mark.parametrize("seed", range(60))
def test_pareto_keeps_the_first_fronts_and_of_a_last_one_the_least_crowded(seed):
    dice = random.Random(seed)
    levels = dice.choice([4, 1000])
    points = {
        n: (dice.randrange(levels), dice.randrange(levels)) for n in range(dice.randint(1, 12))
    }
    scores = {n: mean(point) for n, point in points.items()}
    trials = [trial(n, scores[n], b=points[n][0], a=points[n][1]) for n in points]
    k = dice.randint(1, 6)
    found = numbers(Pareto(k, tasks=("a", "b"))(trials))
    # Where several have one distance, the score decides, as the brute force has it.
    assert found == brute_pareto(points, scores, k)


def test_on_the_first_task_pareto_has_one_axis():
    trials = [trial(n, s, stage=1, a=s) for n, s in enumerate([0.1, 0.9, 0.5])]
    assert numbers(Pareto(2, tasks=("a", "b"))(trials)) == [1, 2]


def test_pareto_keeps_the_mean_of_the_old_tasks_apart_from_the_current_one():
    trials = [
        trial(0, 0.6, b=0.9, a=0.2, stage=3, c=0.7),  # old mean 0.55, current 0.7
        trial(1, 0.5, b=0.4, a=0.6, stage=3, c=0.5),  # 0.5, 0.5: beaten by 0 in both
        trial(2, 0.4, b=0.1, a=0.1, stage=3, c=0.9),  # 0.1, 0.9
    ]
    assert numbers(Pareto(2, tasks=("a", "b", "c"))(trials)) == [0, 2]
    assert numbers(Pareto(3, tasks=("a", "b", "c"))(trials)) == [0, 2, 1]


# -- repeats and noise ------------------------------------------------------------------------------


def test_a_group_is_ranked_by_its_mean_and_goes_on_from_its_best_run():
    trials = [
        trial(0, 0.9, 0, repeat=0), trial(1, 0.1, 0, repeat=1),  # mean 0.5
        trial(2, 0.6, 1, repeat=0), trial(3, 0.62, 1, repeat=1),  # mean 0.61
        trial(4, None, 2, repeat=0), trial(5, 0.55, 2, repeat=1),  # one failed: 0.55
        trial(6, None, 3, repeat=0), trial(7, None, 3, repeat=1),  # none is left
    ]  # fmt: skip
    assert numbers(TopKGroups(9)(trials)) == [3, 5, 0]
    assert numbers(TopKGroups(9, maximize=False)(trials)) == [1, 5, 2]


def brute_ties(cells, k):
    """Cells: suggestion -> (scores, seconds). Best of the rest, or a cheaper one within its error."""
    left, order = dict(cells), []
    while left and len(order) < k:
        best = max(left, key=lambda name: (mean(left[name][0]), -name))
        scores = left[best][0]
        error = stdev(scores) / len(scores) ** 0.5
        close = [n for n in left if mean(left[n][0]) >= mean(scores) - error]
        if error:
            best = min(close, key=lambda name: (left[name][1], name))
        order.append(best)
        del left[best]
    return order


@pytest.mark.parametrize("seed", range(40))
def test_within_a_standard_error_of_the_best_the_cheaper_one_wins(seed):
    dice = random.Random(seed)
    cells = {
        name: ([dice.gauss(0, 1) for _ in range(3)], dice.choice([1.0, 2.0, 3.0]))
        for name in range(6)
    }
    trials = [
        trial(3 * name + repeat, score, name, repeat=repeat, seconds=seconds)
        for name, (scores, seconds) in cells.items()
        for repeat, score in enumerate(scores)
    ]
    chosen = [one.suggestion.index for one in TopKGroups(4)(trials)]
    assert chosen == brute_ties(cells, 4)


@pytest.mark.parametrize("seconds, kept", [(1.0, 1), (9.0, 3)])  # of suggestion 0; its best run
def test_within_noise_the_cheaper_suggestion_goes_on_and_of_equal_ones_the_lower(seconds, kept):
    # Means 0.52 and 0.55; the standard error of the better one is 0.15.
    trials = [
        trial(n, score, n // 2, repeat=n % 2, seconds=seconds if n < 2 else 1.0)
        for n, score in enumerate([0.50, 0.54, 0.4, 0.7])
    ]
    assert numbers(TopKGroups(1)(trials)) == [kept]


@pytest.mark.parametrize("seed", range(20))
def test_without_repeats_groups_are_ranked_as_top_k_ranks(seed):
    dice = random.Random(seed)
    trials = [trial(n, dice.choice([None, 0.1, 0.2, 0.3]), n // 2, n % 2) for n in range(12)]
    for maximize in (True, False):
        assert TopKGroups(5, maximize)(trials) == TopK(5, maximize)(trials)


# -- diverse ----------------------------------------------------------------------------------------


def crossed(scores):
    """Every suggestion (row) with every parent (column)."""
    return [
        trial(len(scores[0]) * row + column, score, row, column)
        for row, line in enumerate(scores)
        for column, score in enumerate(line)
    ]


def test_noise_is_what_suggestion_and_parent_leave_unexplained():
    def noise(trials):
        return residual_deviation(groups(trials, TopK(1).loss))

    # 0.9 0.5 / 0.6 0.4: rows 0.7, 0.5; columns 0.75, 0.45; residuals are all 0.05 in size, 1 free.
    assert noise(crossed([[0.9, 0.5], [0.6, 0.4]])) == pytest.approx(math.sqrt(4 * 0.05**2))
    assert noise(crossed([[0.9, 0.5], [0.7, 0.3]])) == pytest.approx(0)
    assert noise([trial(n, n / 9) for n in range(5)]) == 0  # no crossing


def test_a_beam_has_no_suggestion_twice_while_another_is_within_noise():
    close = crossed([[0.90, 0.80], [0.75, 0.60], [0.30, 0.60]])  # noise is 0.19
    assert numbers(TopK(2)(close)) == [0, 1]
    assert numbers(Diverse(2)(close)) == [0, 2]
    far = crossed([[0.90, 0.80], [0.30, 0.20], [0.11, 0.0]])  # noise is 0.004
    assert numbers(Diverse(2)(far)) == [0, 1]
    assert numbers(Diverse(4)(far)) == [0, 1, 2, 3]


def test_with_repeats_the_standard_error_says_what_is_within_noise():
    def group(number, score, spread, suggestion, parent):
        return [
            trial(number, score - spread, suggestion, parent),
            trial(number + 1, score + spread, suggestion, parent, repeat=1),
        ]

    for spread, beam in ((0.01, [0, 3]), (0.2, [0, 4])):
        trials = [
            *group(0, 0.9, 0.0, 0, 0),
            *group(2, 0.8, spread, 0, 1),
            *group(4, 0.7, 0.0, 1, 0),
        ]
        assert numbers(Diverse(2)(trials)) == beam


@pytest.mark.parametrize(
    "settings, kind, monotone",
    [
        ({}, TopK, True),
        ({"selection": "pareto"}, Pareto, False),
        ({"selection": "diverse"}, Diverse, False),
        ({"seeds": 2, "handover": {"init_from": "checkpoint", "s": "seed"}}, TopKGroups, False),
    ],
)
def test_only_top_k_of_single_runs_lets_a_stage_begin_early(settings, kind, monotone):
    selection = plan_of("task=a,b", "lr=1,2", **settings).selection
    assert isinstance(selection, kind) and selection.monotone is monotone
