"""Settings and arguments become stages and job overrides; composing is faked, so no app is needed."""

from __future__ import annotations

import pytest
from support.plans import RANDOM, plan_of

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.plan.checks import changed
from autocl_sweeper.plan.settings import HANDOVER
from autocl_sweeper.search.grid import GridSearch
from autocl_sweeper.types import Outcome, State, Suggestion, Trial


def suggestions(plan, stage=0):
    search = plan.stages[stage].search
    return [dict(search.suggestion(index).params) for index in range(search.size)]


def trial(plan, stage=1, parent=None, number=0, **params):
    task = plan.stages[stage - 1].task
    folder = plan.folder(number, plan.stages[stage - 1])
    outcome = Outcome(State.COMPLETE)
    return Trial(number, stage, task, Suggestion(0, params), parent, folder, outcome=outcome)


def test_the_sequence_is_no_axis_of_the_grid():
    plan = plan_of("task=a,b,c", "lr=1,2")
    assert list(plan.tasks) == ["a", "b", "c"]
    assert suggestions(plan) == [{"lr": 1}, {"lr": 2}]
    assert [stage.number for stage in plan.stages] == [1, 2, 3]


def test_a_list_in_the_sequence_is_one_joint_task():
    plan = plan_of("task=[a,b],c")
    assert dict(plan.tasks) == {"a+b": ["a", "b"], "c": "c"}
    assert plan.overrides(trial(plan), None)[0] == "task=[a,b]"


def test_a_sequence_may_be_one_task_and_stand_in_params():
    assert list(plan_of("task=a", "lr=1,2").tasks) == ["a"]
    assert list(plan_of(params={"task": "a,b"}).tasks) == ["a", "b"]


def test_without_a_sequence_there_is_one_unranked_stage():
    plan = plan_of("lr=1,2", "wd=0")
    assert not plan.ranked and len(plan.stages) == 1
    assert plan.folder(7, plan.stages[0]) == "7"


def test_overrides_keep_the_users_order_and_text():
    plan = plan_of("db=mysql,postgres", "task=a,b", "+note='x, ${y}'", "lr=1,2")
    assert plan.overrides(trial(plan, stage=2, number=5, parent=1, db="mysql", lr=2), "/c k") == (
        "db=mysql",
        "task=b",
        "+note='x, ${y}'",
        "lr=2",
        "init_from='/c k'",
        "hydra.sweep.subdir='2_b/5'",
    )


def test_the_first_task_gets_no_checkpoint():
    plan = plan_of("task=a,b", "lr=1,2")
    texts = plan.overrides(trial(plan, lr=1), None)
    assert not [text for text in texts if text.startswith("init_from")]


def test_mappings_and_deletions_go_along_with_what_else_is_said_of_their_key():
    plan = plan_of("task=a,b", "++task={x: {n: 1}}", "~db", "+db={m: 2}", "+db={k: 3}", "lr=1,2")
    assert list(plan.tasks) == ["a", "b"]
    assert plan.overrides(trial(plan, lr=1), None)[:-1] == (
        "task=a", "++task={x: {n: 1}}", "~db", "+db={m: 2}", "+db={k: 3}", "lr=1",
    )  # fmt: skip
    alone = plan_of("~task", "+task={x: {n: 1}}", "lr=1,2")
    assert not alone.tasks
    assert alone.overrides(trial(alone, lr=2), None) == ("~task", "+task={x: {n: 1}}", "lr=2")


def test_everything_that_can_be_handed_over():
    names = {"c": "checkpoint", "s": "seen_tasks", "n": "stage", "t": "trial", "p": "parent"}
    handover = {**names, "init_from": None}
    plan = plan_of("task=a,b,c", handover=handover, knows_folders=False)
    texts = plan.overrides(trial(plan, stage=2, parent=3, number=9), "ckpt")
    assert texts == ("task=b", "c=ckpt", "s=[a,b]", "n=2", "t=9", "p=3")
    alone = plan_of("lr=1,2", handover={"s": "seen_tasks"})
    assert alone.overrides(trial(alone, lr=2), None) == ("lr=2",)  # without a sequence: the app's


def test_sources_are_the_checkpoints_of_all_survivors_and_need_a_beam():
    handover = {"init_from": "checkpoint", "merge.sources": "sources"}
    plan = plan_of("task=a,b", handover=handover, knows_folders=False)
    assert plan.overrides(trial(plan, stage=1), None) == ("task=a",)
    texts = plan.overrides(trial(plan, stage=2, parent=3), "c 3", ["c 3", "c 1"])
    assert texts == ("task=b", "init_from='c 3'", "merge.sources=['c 3','c 1']")
    with pytest.raises(ConfigurationError, match="no job gets its parent's"):
        plan_of("task=a,b", handover={"init_from": None, "merge.sources": "sources"})
    with pytest.raises(ConfigurationError, match=r"hydra\.sweeper\.parents=init"):
        plan_of("task=a,b", handover=handover, parents="init")


@pytest.mark.parametrize("value", HANDOVER)
def test_a_handover_to_a_key_that_the_app_lacks_says_what_the_key_is_for(value):
    def compose(overrides, meant_for):
        if any(text.startswith("own=") for text in overrides):
            raise ConfigurationError("Could not override 'own'")
        return {}

    handover = {"init_from": "checkpoint", "own": value}
    with pytest.raises(ConfigurationError) as refused:
        plan_of("task=a,b", handover=handover, extra_parents=int(value == "extra"), compose=compose)
    assert f"Add `own: null` to it. {HANDOVER[value]}" in str(refused.value)


def test_a_sweep_on_the_command_line_replaces_the_key_in_params():
    plan = plan_of("lr=5,6", params={"lr": "1,2", "wd": "0,1"})
    assert suggestions(plan) == [{"wd": wd, "lr": lr} for wd in (0, 1) for lr in (5, 6)]


def test_a_fixed_value_on_the_command_line_takes_the_key_out_of_the_search():
    plan = plan_of("lr=5", params={"lr": "1,2", "wd": "0,1"})
    assert suggestions(plan) == [{"wd": 0}, {"wd": 1}]
    assert "lr=5" in plan.overrides(trial(plan, wd=0), None)


def test_task_params_replace_params_for_their_task():
    plan = plan_of(
        "task=a,b,c",
        params={"lr": "1,2"},
        task_params={"b": [{"lr": 7, "opt": {"wd": 0.1}}], "c": {"lr": "8,9"}},
    )
    assert suggestions(plan, 0) == [{"lr": 1}, {"lr": 2}]
    assert suggestions(plan, 1) == [{"lr": 7, "opt.wd": 0.1}]
    assert suggestions(plan, 2) == [{"lr": 8}, {"lr": 9}]


def test_a_listed_suggestion_beats_a_fixed_override():
    plan = plan_of("task=a", "lr=1", task_params={"a": [{"lr": 2}]})
    assert plan.overrides(trial(plan, lr=2), None)[:2] == ("task=a", "lr=2")


def test_a_key_typed_with_a_plus_keeps_it_wherever_it_is_named():
    plan = plan_of("+task=a,b", "+lr=1", task_params={"b": [{"lr": 2}]}, handover={})
    assert plan.overrides(trial(plan, stage=1), None)[:2] == ("+task=a", "+lr=1")
    assert plan.overrides(trial(plan, stage=2, lr=2), None)[:2] == ("+task=b", "+lr=2")


def test_text_in_a_listed_suggestion_stays_what_it_is():
    plan = plan_of("task=a", task_params={"a": [{"text": "${not_resolved}"}]})
    (only,) = suggestions(plan)
    assert plan.overrides(trial(plan, **only), None)[1] == "text='\\${not_resolved}'"


@pytest.mark.parametrize(
    "arguments, settings, size",
    [
        (["task=a,b,c", "lr=1,2,3"], {}, 3 + 6 + 6),
        (["task=a,b,c", "lr=1,2,3"], {"top_k": 1}, 9),
        (["task=a,b", "lr=1,2,3"], {"popsize": 2}, 2 + 4),
        (["task=a,b", "lr=1,2,3"], {"task_params": {"a": [{"lr": 1}]}}, 1 + 3),
        (["lr=1,2,3", "wd=0,1"], {}, 6),
    ],
)
def test_the_number_of_trials_is_known_ahead(arguments, settings, size):
    assert plan_of(*arguments, **settings).size == size


def test_every_task_and_every_choice_is_composed_before_a_job():
    composed = []

    def compose(overrides, meant_for):
        composed.append([text for text in overrides if not text.startswith("hydra.")])
        return {}

    plan_of("task=a,b", "lr=1,2", "model=x,y", compose=compose)
    assert ["task=a", "lr=1", "model=x"] in composed
    assert ["task=a", "lr=2", "model=x"] in composed
    assert ["task=a", "lr=1", "model=y"] in composed
    assert ["task=b", "lr=1", "model=x", "init_from=checkpoint"] in composed


@pytest.mark.parametrize(
    "arguments, settings, words",
    [
        (["task="], {}, ["'task' is empty", "task=first,second,third"]),
        (["task=[]"], {}, ["'task' is empty"]),
        (["task=a,b,a"], {}, ["'a' is listed twice in the sequence 'task'", "a name of its own"]),
        (["task=interval(0,1)"], {}, ["'task' is an interval"]),
        (["task=a"], {"task_params": {"b": []}}, ["for ['b']", "are: a", "Correct the name"]),
        (["lr=1,2"], {"task_params": {"b": []}}, ["task_params", "there is no sequence"]),
        (["task=a"], {"task_params": {"a": []}}, ["task_params.a is an empty", "nothing to run"]),
        (["task=a"], {"task_params": {"a": [3]}}, ["task_params.a[0] is 3", "Each entry is one"]),
        (["task=a"], {"task_params": {"a": 3}}, ["task_params.a", "list of suggestions"]),
        (["task=a"], {"sequence": None, "task_params": {"a": []}}, ["sequence is null"]),
        (["task=a"], {"top_k": 0}, ["hydra.sweeper.top_k=0", "at least 1", "docs/sweeper.md"]),
        (["task=a"], {"retries": -1}, ["retries=-1", "at least 0"]),
        (["task=a"], {"direction": "up"}, ["direction='up'", "maximize, minimize"]),
        (["task=a"], {"keep_checkpoints": "some"}, ["keep_checkpoints='some'", "beam, all"]),
        (["task=a"], {"handover": {"x": "model"}}, ["handover.x='model'", "checkpoint"]),
        (
            ["task=a", "lr=interval(0,1)"],
            {},
            ["'lr'", "cannot be listed", "search=relay, tpe or random"],
        ),
        (["task=a", "lr=interval(0,1)"], {"search": RANDOM}, ["never ends", "null", "jobs=8"]),
        (["task=a"], {"search": {"factory": "no.such.Search"}}, ["no.such.Search", "imported"]),
    ],
)
def test_a_mistake_is_named_before_any_job(arguments, settings, words):
    with pytest.raises(ConfigurationError) as refused:
        plan_of(*arguments, **settings)
    for word in words:
        assert word in str(refused.value)


def test_the_fingerprint_tells_what_changed_and_from_what():
    config = {"lr": 1, "optimizer.name": "adam", "init_from": None, "rows": 5}
    before = plan_of("task=a,b", "lr=1,2", compose=lambda *_: config).fingerprint
    same = plan_of("task=a,b", "lr=1,2", compose=lambda *_: dict(config), retries=3).fingerprint
    assert changed(before, same) == []
    other = {**config, "rows": 6}
    after = plan_of("task=a,b", "lr=1,3", compose=lambda *_: other, top_k=3).fingerprint
    told = changed(before, after)
    assert "hydra.sweeper.top_k: was 2, is 3" in told
    assert "search space / a / lr: was [1, 2], is [1, 3]" in told
    assert "configuration / b / rows: was 5, is 6" in told
    assert len(told) == 5  # the space and the rows of both tasks, and top_k


def test_a_search_of_ones_own_is_a_dotted_path():
    plan = plan_of("task=a", "lr=1,2", search={"factory": f"{GridSearch.__module__}.GridSearch"})
    assert isinstance(plan.stages[0].search, GridSearch)


@pytest.mark.parametrize(
    "name, folder", [("SST-2", "1_SST-2"), ("a/b c", "1_a_b_c"), ("情感" * 50, "1_" + "情感" * 33)]
)
def test_a_tasks_name_is_a_safe_folder_name(name, folder):
    plan = plan_of(f"task='{name}','other'")
    assert plan.folder(0, plan.stages[0]) == f"{folder}/0"
