"""The training app's command line with YAML files on it, in processes as users start them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.train_app import train


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/base.yaml").write_text(
        "trainer: {learning_rate: 2e-3, num_train_epochs: 9, weight_decay: 0.5}\nseed: 3\n"
    )
    (tmp_path / "scripts/a.yaml").write_text("_include: base.yaml trainer\nseed: 4\n")
    (tmp_path / "scripts/b.yaml").write_text("trainer: {weight_decay: 0.25}\n")
    (tmp_path / "env_local.yaml").write_text("env: {nnodes: 1, port: 29501}\n")
    return tmp_path


def test_files_options_and_overrides_make_one_configuration(scripts: Path) -> None:
    done = train(
        scripts, "scripts/a.yaml", "scripts/b.yaml", "--cfg", "job", "env_local.yaml",
        "--trainer.num_train_epochs=3", "env.nnodes=2", "task=digits_23", "--resolve",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    trainer = config["trainer"]
    assert (trainer["learning_rate"], trainer["num_train_epochs"]) == (2e-3, 3)
    assert (trainer["weight_decay"], config["seed"]) == (0.25, 4)
    assert (config["env"]["nnodes"], config["env"]["port"]) == (2, 29501)
    assert list(config["task"]) == ["digits_23"]


def test_a_missing_file_ends_the_command_before_hydra_starts(scripts: Path) -> None:
    done = train(scripts, "scripts/a.yaml", "gone.yaml")
    assert done.returncode == 1
    assert "'gone.yaml': there is no such file" in done.stderr
    assert f"It was looked for as {scripts}/gone.yaml" in done.stderr
    assert "Traceback" not in done.stderr and not (scripts / "outputs").exists()


@pytest.mark.parametrize("words, said", [
    (["init_from=damaged"], "damaged is missing or damaged (node.json: JSONDecodeError"),
    (["trainer.learning_rate=1e9"], "the training loss is nan at step"),
], ids=["a damaged checkpoint", "a loss of nan"])  # fmt: skip
def test_what_a_message_says_all_of_ends_a_run_without_a_traceback(
    tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/node.json").write_text("{")
    done = train(tmp_path, "task=digits_01", "trainer.max_steps=3", *words)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_group_chosen_by_null_is_refused_before_hydra_starts() -> None:
    from autocl_sweeper.command_line import CommandLineError
    from train.config.command import refuse_nameless

    with pytest.raises(CommandLineError, match=r"task=null: .* ~task chooses none of them"):
        refuse_nameless(["-m", "task=null"])
    refuse_nameless(["seed=null", "task.a.dataset=null", "~task"])


@pytest.mark.slow
def test_a_sweep_of_files_trains_every_job_as_they_were(scripts: Path) -> None:
    done = train(
        scripts, "scripts/a.yaml", "-m", "scripts/b.yaml", "hydra/sweeper=autocl",
        "task=digits_01,digits_23", "--trainer.num_train_epochs=1", "hydra.sweep.dir=swept",
        "hydra.sweeper.top_k=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for number, stage in enumerate(("1_digits_01", "2_digits_23")):
        text = (scripts / f"swept/{stage}/{number}/.hydra/config.yaml").read_text()
        assert "???" not in text  # what nobody set is not in it
        used = yaml.safe_load(text)
        assert (used["trainer"]["weight_decay"], used["seed"]) == (0.25, 4)
    copies = scripts / "swept/configuration" / str(scripts)[1:]
    assert (copies / "scripts/base.yaml").read_text() == (scripts / "scripts/base.yaml").read_text()
