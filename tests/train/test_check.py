"""Mistakes of the training app's configuration: all at once, each with file and line. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.hydra_sweep import app_check
from train.check import Refused, checked

Compose = Callable[..., dict[str, Any]]
TASK = "task: {a: {_name: digits, options: [0, 1]}}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("trainer:\n  lerning_rate: 1", 2, "there is no option 'lerning_rate'; did you mean learn"),
        ("trainer: {max_steps: 1.5}", 1, "trainer.max_steps=1.5: must be a whole number"),
        ("trainr:\n  fp16: true", 1, "no section or key of this name; did you mean trainer?"),
        ("task:\n  a:\n    dataset:\n      headr: 1", 4, "'headr'; did you mean header?"),
        ("task:\n  a:\n    criterion: {weight: -1}", 3, "weight=-1: must be a finite number, 0 or"),
        ("task:\n  a:\n    max_src_length: x", 3, "max_src_length=x: must be a whole number"),
        (
            "task:\n  a:\n    dataset:\n      update_freq: [1, x]",
            4,
            "update_freq[1]=x: must be a whole number",
        ),
        (
            "model:\n  arch: lage",
            2,
            "model.arch=lage: unknown; there are tiny, medium, base, large",
        ),
        ("optimization:\n  lrs: 1", 2, "there is no option 'lrs'; did you mean lr?"),
        ("trainer:\n  seed: 3", 2, "set the top-level key `seed`"),
        ("trainer:\n  optim: adamm", 2, "trainer.optim=adamm: is none of the"),
        ("seed: -1", 1, "seed=-1: must be a whole number, 0 or more"),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_its_file_line_key_value_and_rule(
    composed: Compose, text: str, line: int, words: str
) -> None:
    with pytest.raises(Refused) as caught:
        composed(TASK, text)
    assert f"1.yaml:{line}: " in str(caught.value) and words in str(caught.value)


def test_all_mistakes_are_reported_at_once_wherever_they_stand(composed: Compose) -> None:
    with pytest.raises(Refused) as caught:
        composed(
            TASK,
            "trainer: {fp61: true}",
            "model: {hidden_size: big}",
            overrides=["task.a.max_scr_length=3"],
        )
    first, *said = str(caught.value).splitlines()
    assert first == "3 mistakes in the configuration:"
    places = sorted(one.split(": ")[0] for one in said)
    assert places == ["1.yaml:1", "2.yaml:1", "the command line"]
    assert "did you mean max_src_length?" in str(caught.value)


def test_a_mistake_in_an_included_file_names_the_chain(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("# base\ntrainer:\n  max_stepss: 3\n")
    (tmp_path / "middle.yaml").write_text("_include: below.yaml\n")
    with pytest.raises(Refused, match=r"below\.yaml:3, included from middle\.yaml, included from"):
        composed(TASK + "_include: middle.yaml\n")


def test_a_task_that_is_not_there_is_reported_with_the_nearest_and_how_to_add_one(
    composed: Compose,
) -> None:
    small = "task: {small: {_name: digits, options: [0, 1]}}"
    with pytest.raises(
        Refused, match=r"^the command line: .*no task 'smal'; did you mean small\?\n"
    ):
        composed(small, overrides=["task.smal.max_src_length=5"])
    with pytest.raises(Refused, match=r"there are: a\n.*'\+task\.b=\{_name: <"):
        composed(TASK, overrides=["task.b={_name: digits}"])
    with pytest.raises(
        Refused, match=r"^the command line: task\.b=5: must be a mapping of _name, "
    ):
        composed(TASK, overrides=["+task.b=5"])
    # All that a file says of a task may be overridden.
    values = composed("task: {a: {_name: digits}}", overrides=["task.a._name=parity"])
    assert values["task"] == {"a": {"_name": "parity"}}


def test_a_mistake_that_a_star_hands_down_is_found_at_the_star(composed: Compose) -> None:
    with pytest.raises(Refused, match=r"1\.yaml:3: task\.a\.dataset\.update_freq=x: must be"):
        composed(TASK, 'task:\n  "*":\n    dataset: {update_freq: x}\n')


# -- what has to be given ---------------------------------------------------------------------------

ASKS = """trainer:
  max_steps: ???
  lr_scheduler_kwargs:
    lr_end: ???
task:
  a:
    dataset: {update_freq: [1, "???"]}
    max_src_length: ???
"""


def test_all_that_is_left_to_be_given_is_reported_at_once_with_file_and_line(
    composed: Compose,
) -> None:
    with pytest.raises(Refused) as caught:
        composed(TASK, ASKS, "trainer: {optim: adamm}", overrides=["trainer.warmup_steps=???"])
    first, *said = str(caught.value).splitlines()
    assert first == "6 mistakes in the configuration:"
    assert sorted(one.partition("=")[0] for one in said) == [
        "1.yaml:2: trainer.max_steps",
        "1.yaml:4: trainer.lr_scheduler_kwargs.lr_end",
        "1.yaml:7: task.a.dataset.update_freq[1]",
        "1.yaml:8: task.a.max_src_length",
        "2.yaml:1: trainer.optim",
        "the command line: trainer.warmup_steps",
    ]
    assert "or on the command line (trainer.max_steps=<value>), or remove" in str(caught.value)


def test_what_a_later_file_or_an_override_gives_was_given(composed: Compose) -> None:
    later = "memory: {budget_mib: null}\ntask: {a: {max_src_length: 3, dataset: {update_freq: 2}}}"
    overrides = ["trainer.max_steps=5", "trainer.lr_scheduler_kwargs.lr_end=0"]
    values = composed(TASK, ASKS, later, overrides=overrides)
    assert values["trainer"] == {"max_steps": 5, "lr_scheduler_kwargs": {"lr_end": 0}}
    assert values["task"]["a"]["max_src_length"] == 3
    # Hydra's rule, over groups and the schema: `???` leaves what stands below it.
    assert composed(TASK, "delta:\n  lora_dim: ???")["delta"]["lora_dim"] == 8
    assert composed(TASK, "memory: ???")["memory"] == {"method": "none"}


def test_what_a_star_asks_for_each_task_has_to_give(composed: Compose) -> None:
    star = 'task:\n  b: {_name: digits, options: [0, 1]}\n  "*":\n    max_src_length: ???'
    values = composed(TASK, star, overrides=["task.a.max_src_length=1", "task.b.max_src_length=2"])
    assert [task["max_src_length"] for task in values["task"].values()] == [1, 2]
    with pytest.raises(Refused, match=r"^1\.yaml:4: task\.b\.max_src_length=\?\?\?") as caught:
        composed(TASK, star, overrides=["task.a.max_src_length=1"])
    assert "\n" not in str(caught.value)
    # By the merge rule `???` goes over what the star says, as it does over another file.
    with pytest.raises(Refused, match=r"^1\.yaml:1: task\.a\.max_src_length=\?\?\?"):
        composed('task: {"*": {max_src_length: 1}}', 'task: {a: {max_src_length: "???"}}')


def test_a_configuration_that_is_only_looked_at_may_have_values_left_to_give(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composed(TASK)
    (tmp_path / "asks.yaml").write_text(ASKS + "seed: ${trainer.max_steps}\n")
    hydra, name = GlobalHydra.instance().hydra, f"base+{tmp_path}/0.yaml+{tmp_path}/asks.yaml"
    assert hydra is not None
    hydra.show_cfg(name, [], "job", None)
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["trainer"] == {"max_steps": "???", "lr_scheduler_kwargs": {"lr_end": "???"}}
    assert shown["seed"] == "${trainer.max_steps}" and shown["memory"] == {"method": "none"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "seed: ${nowhere.x}",
            r"1\.yaml:1: seed=\$\{nowhere\.x\}: Interpolation key 'nowhere\.x' not",
        ),
        (
            "trainer:\n  save_dir: ${trainer.save_dir}/x",
            r"1\.yaml:2: trainer\.save_dir=.*\n *it refers to itself",
        ),
        (
            "optimizer:\n  _name: adamm",
            r"1\.yaml:2, as optimizer\._name: trainer\.optim=adamm: is none of the \d+ names that",
        ),
        (
            "checkpoint:\n  save_dir: oss://x",
            r"1\.yaml:2, as checkpoint\.save_dir: trainer\.save_dir=oss://x: must be a local path",
        ),
        (
            "trainer:\n  lr: 1",
            r"1\.yaml:2: trainer\.lr=1: .*; python train\.py --info trainer lists",
        ),
        ("task:\n  '*': 3", r"1\.yaml:2: task\.\*=3: must be a mapping of _name, "),
    ],
)
def test_a_mistake_is_found_where_it_was_written_whatever_the_name_and_the_stage(
    composed: Compose, text: str, said: str
) -> None:
    with pytest.raises(Refused, match=f"^{said}"):
        composed(TASK, text)


def test_a_task_chosen_twice_is_refused(composed: Compose) -> None:
    with pytest.raises(
        Refused, match=r"task=\[digits_01,digits_23,digits_01\]: digits_01 stands twi"
    ):
        composed(overrides=["task=[digits_01,digits_23,digits_01]"])


def test_two_files_chosen_together_must_not_bring_a_task_of_one_name(
    composed: Compose, tmp_path: Path
) -> None:
    folder = tmp_path / "more" / "task"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("\ndigits_01: {_name: digits, options: [2, 3]}\n")
    there = f"hydra.searchpath=['file://{folder.parent}']"
    composed(overrides=[there, "task=[mine,digits_23]"])
    with pytest.raises(Exception, match=r"task\.digits_01: two chosen files bring") as refused:
        composed(overrides=[there, "task=[digits_01,mine]"])
    assert "digits_01.yaml:2" in str(refused.value) and "mine.yaml:2" in str(refused.value)


# -- as a job --------------------------------------------------------------------------------------

TEXTS = """task:
  a:
    _name: arithmetic
    instruction:
      template: 'what is [TEXT:question]? -> [TEXT: answer]'
"""
RANK = "env:\n  nnodes: 2\n  rank: 2\n  port: 29500\n"


def test_an_override_with_an_interpolation_is_reported_as_typed(composed: Compose) -> None:
    said = r"^the command line: trainer\.max_steps=\$\{oc\.env:NOPE_\}: .*'NOPE_' not found"
    with pytest.raises(Refused, match=said):
        composed(TASK, overrides=["trainer.max_steps=${oc.env:NOPE_}", "task.a.max_src_length=3"])


def test_what_is_wrong_with_a_run_is_reported_at_once(composed: Compose, tmp_path: Path) -> None:
    def refusal(name: str, *overrides: str) -> str:
        config = compose(name, [*overrides], return_hydra_config=True)
        with pytest.raises(Refused) as caught:
            checked(config, config.hydra)
        return str(caught.value)

    composed(TEXTS, "# nothing", "model:\n  _name: unify\n  num_attention_heads: 7")
    (tmp_path / "1.yaml").write_text(RANK)
    said = refusal("+".join(["base", *(f"{tmp_path}/{n}.yaml" for n in range(3))])).splitlines()
    assert said[0] == "3 mistakes in the configuration:"
    assert said[1].startswith(
        "1.yaml:3: env.rank=2 with env.nnodes=2: the rank is the number of this"
    )
    assert said[2].endswith(
        "model.hidden_size=64: must be a multiple of model.num_attention_heads=7"
    )
    assert said[3].startswith("0.yaml:5: task.a: instruction template, column 29: '[TEXT: answer]'")
    assert said[5].index("^") == said[4].index("[TEXT: answer]")
    # Of two tasks that are both wrong, both.
    both = refusal(
        f"base+{tmp_path}/0.yaml",
        "model=unify_tiny",
        "+task.b={_name: arithmetic, instruction: {template: x}}",
    )
    assert "0.yaml:5: task.a: " in both and "command line: task.b: instruction" in both


# -- as a job of a sweep ----------------------------------------------------------------------------


def planned(name: str, typed: list[str], job: list[str]) -> Mapping[str, Any]:
    """What the check of a job returns to the sweep that plans it."""
    loader = GlobalHydra.instance().config_loader()
    sweep = loader.load_configuration(name, ["hydra.mode=MULTIRUN", *typed], RunMode.MULTIRUN)
    check = app_check("train.check.check_job", sweep)
    assert check is not None
    return check(loader.load_sweep_config(sweep, job), "The job")


def test_a_sweep_learns_the_values_that_stand_in_the_sections_alone(composed: Compose) -> None:
    values = planned("base", ["task=digits_01"], ["task=digits_01", "trainer.max_grad_norm=0.5"])
    trainer, delta = values["trainer"], values["delta"]
    assert (trainer["learning_rate"], trainer["num_train_epochs"]) == (1e-3, 5)  # the app's
    assert (trainer["weight_decay"], trainer["max_grad_norm"]) == (0, 0.5)  # Hugging Face's, typed
    assert (delta["lora_dim"], delta["lamda_1"], values["model"]["_name"]) == (8, 0.1, "vit")


def test_jobs_of_a_sweep_have_to_give_what_is_asked_each(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("seed: ???")
    name, task = f"base+{tmp_path}/1.yaml", "task=digits_01"
    planned(name, [task], [task, "seed=1"])
    with pytest.raises(ConfigurationError, match=r"(?m)^1\.yaml:1: seed=\?\?\?"):
        planned(name, [task], [task, "trainer.max_steps=1"])


def test_what_an_earlier_job_hands_over_need_not_be_there_yet(composed: Compose) -> None:
    job = ["task=digits_23", "init_from=checkpoint", "seen_tasks=[digits_01]"]
    planned("base", [], job)
    config = compose("base", job, return_hydra_config=True)
    with pytest.raises(Refused, match=r"command line: init_from=.*/checkpoint: no such folder"):
        checked(config, config.hydra)


def test_a_dry_run_of_the_memory_is_refused_in_several_processes(composed: Compose) -> None:
    words = ["task=digits_23", "memory=plan", "memory.budget_gib=1", "env.nproc_per_node=2"]
    config = compose("base", [*words, "+memory.mode=sizes"], return_hydra_config=True)
    with pytest.raises(Refused, match=r"memory\.mode=sizes: looks at .* and env asks for 2"):
        checked(config, config.hydra)


def test_jobs_of_a_sweep_are_held_against_what_the_launcher_leases(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide.yaml"
    wide.write_text("env:\n  nproc_per_node: 2\n")

    def refused(said: str, launcher: str, *typed: str, job: str = "seed=1") -> None:
        overrides = ["task=digits_01", *typed]
        with pytest.raises(ConfigurationError, match=f"(?m)^{said}"):
            planned(f"base+{wide}", [launcher, *overrides], [*overrides, job])

    gpu, warm = "hydra/launcher=gpu", "hydra/launcher=gpu_warm"
    refused(r"wide\.yaml:2: env\.nproc_per_node=2, but the launcher leases 1", gpu)
    for launcher in ([gpu, "hydra.launcher.devices_per_job=2"], [warm]):
        planned(f"base+{wide}", launcher, ["task=digits_01"])
    # The app's own launcher leases as many as the sweep says, not as one of its jobs does.
    said = r"the command line: env\.nproc_per_node=3, .*hydra\.launcher\.dev"
    refused(said, warm, job="env.nproc_per_node=3")
    said = r"the command line: env\.nnodes=2 in a job of a launcher that leas"
    refused(said, gpu, "env.nproc_per_node=1", "env.nnodes=2", "env.port=29500")
    # Hydra's own launcher trains here, where CUDA shows one.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("AUTOCL_DEVICES", raising=False)
    said = r"wide\.yaml:2: env\.nproc_per_node=2, but CUDA_VISIBLE_DEV"
    refused(said, "hydra/launcher=basic")
