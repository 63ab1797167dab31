"""What ranks a trial: names of returned numbers and arithmetic, against arithmetic on paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocl_sweeper.errors import ConfigurationError, JobContractError
from autocl_sweeper.objective import Objective
from autocl_sweeper.types import Outcome, State, Suggestion, Trial
from autocl_sweeper.verdict import Verdict

TASKS = ("a", "b", "c")
OUTCOME = Outcome(
    State.COMPLETE,
    numbers={"score": 0.9, "loss": 2.0, "val/loss": 3.0, "worst": 7.0},
    evaluations={"a": 0.5, "b": 0.8},
    returned="dict",
)


@pytest.mark.parametrize(
    "text, value",
    [
        ("current", 0.8),
        ("mean", 0.65),
        ("worst", 0.5),
        ("loss", 2.0),
        ("-loss", -2.0),
        ("0.5 * current + 0.5 * mean", 0.725),
        ("eval/a", 0.5),
        ("eval/a/2", 0.25),  # a name, then a division
        ("2*eval/b-eval/a", 1.1),
        ("'val/loss' - 1", 2.0),
        ('"eval/a" + 0', 0.5),
        ("min(current, loss, 3)", 0.8),
        ("max(eval/a, eval/b)", 0.8),
        ("mean(eval/a, eval/b, loss)", 1.1),
        ("loss ** 3 - loss / 4", 7.5),
        ("-(loss - +score) * 2", -2.2),
    ],
)
def test_an_objective_is_arithmetic_on_what_a_job_returned(text, value):
    objective = Objective(text=text, tasks=TASKS)
    assert objective.missing(OUTCOME, "b") == []
    assert objective.value(OUTCOME, "b") == pytest.approx(value)


@pytest.mark.parametrize(
    "metric, numbers, evaluations, value",
    [
        (None, {"score": 0.9}, {"a": 0.1, "b": 0.2}, 0.9),  # what a job says itself counts
        (None, {}, {"a": 0.1, "b": 0.2}, 0.15),
        (None, {}, {"a": 0.1, "b": 0.2, "c": 9.0}, 0.15),  # c comes later
        ("mean", {"mean": 5.0}, {"a": 0.1, "b": 0.2}, 5.0),  # a metric is what a job calls so
        ("loss", {"loss": 4.0, "score": 1.0}, {}, 4.0),
    ],
)
def test_without_an_objective_the_metric_the_score_or_the_mean_of_eval_ranks(
    metric, numbers, evaluations, value
):
    outcome = Outcome(State.COMPLETE, numbers=numbers, evaluations=evaluations)
    assert Objective(metric, tasks=TASKS).value(outcome, "b") == pytest.approx(value)


def test_the_worst_task_is_the_one_with_the_highest_loss_where_losses_are_minimized():
    assert Objective(text="worst", tasks=TASKS, maximize=False).value(OUTCOME, "b") == 0.8


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "2 + 2", "score >", "score > 1", "score if loss else 1", "a and b", "not a",
        "__import__('os').system('true')", "open('x')", "score.real", "x[0]", "[score]", "abs(score)",
        "min()", "min(*score)", "mean(x=score)", "lambda: score", "score; loss", "score := 1", "True",
        "1j * score", "b'x'", "f'{score}'", "score @ loss", "score // 2", "{score}", "(score, loss)",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_it_may_be(text):
    with pytest.raises(ConfigurationError, match=r"hydra\.sweeper\.objective=(.|\n)*expression of"):
        Objective(text=text)


@pytest.mark.parametrize("text", ["loss / (loss - 2)", "loss ** 5000", "(0 - loss) ** 0.5"])
def test_arithmetic_without_a_result_is_not_a_number(text):
    assert str(Objective(text=text).value(OUTCOME, "b")) in ("nan", "inf")


def judged(objective, outcome, ranked_before=False):
    verdict = Verdict(Path("/nowhere"), objective, True, 2, None, "list")
    trial = Trial(0, 2, "b", Suggestion(0, {}), None)
    outcome = verdict.judge(trial, outcome)
    verdict.refuse_broken_contract(trial, outcome, ranked_before)
    return outcome


@pytest.mark.parametrize(
    "objective, outcome, words",
    [
        (Objective(text="acc - 0.1 * size", tasks=TASKS), OUTCOME,
         ["no number 'acc' and no number 'size'", "score, loss, val/loss, worst, eval/a, eval/b",
          "objective='acc - 0.1 * size'", "Correct the name"]),
        (Objective(text="eval/c", tasks=TASKS), OUTCOME, ["'eval/c'", "eval/a, eval/b"]),
        (Objective("accuracy", tasks=TASKS), OUTCOME, ["'accuracy'", "hydra.sweeper.metric"]),
        (Objective(text="mean", tasks=TASKS),
         Outcome(State.COMPLETE, evaluations={"b": 0.5}, returned="dict"),
         ["no number 'mean'", "it has: eval/b; 'eval' has to have every task so far"]),
        (Objective(tasks=TASKS, needs=("mean",)),
         Outcome(State.COMPLETE, numbers={"score": 1.0}, returned="float"),
         ["no number 'mean'", "selection=pareto compares scores by task", "returns 'eval'"]),
    ],
)  # fmt: skip
def test_a_name_that_the_first_trial_does_not_return_stops_the_sweep(objective, outcome, words):
    with pytest.raises(JobContractError) as raised:
        judged(objective, outcome)
    for word in words:
        assert word in str(raised.value)
    later = judged(objective, outcome, ranked_before=True)  # then it says nothing of the others
    assert later.state is State.FAIL and later.score is None


def test_a_score_that_is_not_finite_is_a_failed_trial_and_stops_nothing():
    outcome = judged(Objective(text="loss / (loss - 2)", tasks=TASKS), OUTCOME)
    assert outcome.state is State.FAIL and outcome.reason == "its loss / (loss - 2) is nan"
