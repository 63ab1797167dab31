"""Which job goes first, and by what estimate; no process but in the last two."""

from __future__ import annotations

import pytest
from support.bench import Bench

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.order import (
    DURATION_KEYS,
    WINDOW,
    Durations,
    Queue,
    Work,
    longest_first,
    work_of,
)
from autocl_sweeper.types import Job

CONFIGS = {"a": {"trainer.num_train_epochs": 3, "lr": 0.1}}


@pytest.mark.parametrize(
    "params, task, amount",
    [
        ({"trainer.num_train_epochs": 4, "lr": 5}, "", 4),
        ({"+data.max_train_samples": 100, "epochs": 2}, "", 200),
        ({"max_steps": -1, "num_train_epochs": 2}, "", 2),  # -1: the epochs say how long
        ({"num_train_epochs": "many"}, "", 1),
        ({"lr": 1e-3}, "a", 3),  # what the task's configuration says
        ({"+trainer.num_train_epochs": 5}, "a", 5),
        ({}, "", 1),
    ],
)
def test_work_is_the_product_of_what_a_duration_grows_with(params, task, amount):
    assert Work(DURATION_KEYS, CONFIGS)(params, task) == amount


def test_a_launcher_names_the_keys_or_asks_for_the_order_submitted():
    named = work_of({"order": "longest", "duration_keys": ["data.rows"]})
    assert named is not None and named({"data.rows": 7, "num_train_epochs": 3}) == 7
    assert work_of({"order": "submitted"}) is None
    assert work_of({}) is None  # a launcher that knows no order
    with pytest.raises(ConfigurationError, match="order='shortest' is not one of: longest, sub"):
        work_of({"order": "shortest"})


def drain(queue, begun=None):
    """All that the queue gives, in its order."""
    begun = set() if begun is None else begun
    order = []
    while (pair := queue.next(begun)) is not None:
        begun.add(pair)
        order.append(pair)
    return order


def test_the_longest_go_first_and_equal_ones_stay_as_they_were_submitted():
    work = [2, 3, 2, 5, 3]
    queue = Queue(5, (None,), Durations(), work.__getitem__)
    assert [index for index, _ in drain(queue)] == [3, 1, 4, 0, 2]
    queue = Queue(5, (None,), Durations(), None)
    assert [index for index, _ in drain(queue)] == [0, 1, 2, 3, 4]


def test_a_suggestion_goes_to_all_parents_before_the_next_and_begun_ones_are_left_out():
    queue = Queue(2, (8, 7), Durations(), [1, 2].__getitem__)
    assert drain(queue, begun={(1, 7)}) == [(1, 8), (0, 8), (0, 7)]


def test_what_a_suggestion_took_with_another_parent_counts_more_than_its_work():
    durations = Durations()
    queue = Queue(3, (8, 7), durations, [1.0, 2.0, 4.0].__getitem__)
    begun = {(0, 8), (1, 8), (2, 8)}
    assert queue.next(begun) == (2, 7)
    durations.note(0, 1.0, 60.0)  # a minute per unit of work: the others are worth 120 s and 240 s
    queue.note()
    assert queue.next(begun) == (2, 7)
    durations.note(2, 4.0, 30.0)  # much quicker than its work said: 18 s per unit of work now
    queue.note()
    assert drain(queue, begun) == [(0, 7), (1, 7), (2, 7)]


def test_a_stage_of_any_size_costs_no_more_at_its_start():
    asked = []
    queue = Queue(10**9, (None,), Durations(), lambda index: asked.append(index) or index)
    assert queue.next(set()) == (WINDOW - 1, None)
    assert len(asked) == WINDOW


def test_jobs_known_from_the_start_are_sorted_by_their_overrides():
    texts = ["epochs=2", "epochs=10 lr=0.1", "+x.epochs=3", "epochs=choice", "epochs=2"]
    jobs = [Job(number, tuple(text.split())) for number, text in enumerate(texts)]
    assert [job.number for job in longest_first(jobs, Work(DURATION_KEYS))] == [1, 2, 0, 4, 3]


GPU = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=1", "hydra.launcher.duration_keys=[lr]",
       "hydra.launcher.warm=true")  # fmt: skip


@pytest.mark.parametrize("sweeper", ["basic", "autocl"])
def test_the_longest_job_starts_first_under_any_sweeper(chain: Bench, sweeper: str) -> None:
    output = chain.run(f"hydra/sweeper={sweeper}", *GPU, "lr=1,3,2")
    assert [event["lr"] for event in chain.ledger("start")] == [3, 2, 1]
    if sweeper == "basic":  # numbers are those of the arguments, whatever runs first
        numbers = {event["lr"]: event["trial"] for event in chain.ledger("start")}
        assert numbers == {1: 0, 3: 1, 2: 2}
        assert output.index("#1 : lr=3") < output.index("#2 : lr=2") < output.index("#0 : lr=1")


def test_an_order_that_is_none_is_an_error_before_any_job(chain: Bench) -> None:
    output = chain.run(*GPU, "hydra.launcher.order=random", "lr=1,2", status=1)
    assert "ConfigurationError: hydra.launcher.order='random' is not one of" in output
    assert chain.ledger() == []
