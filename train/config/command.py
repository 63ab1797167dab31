"""`python train.py a.yaml b.yaml --trainer.num_train_epochs=3`: YAML files over the app's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Sequence
from typing import Any

from omegaconf import OmegaConf

from autocl_sweeper.command_line import CommandLineError, rewrite
from autocl_sweeper.yaml.layers import below_files
from autocl_sweeper.yaml.origins import typed_for
from train.config.before import check_words
from train.config.schema import CONF
from train.config.script_options import translated

log = logging.getLogger(__name__)

NEEDED = ("hydra", "hydra.sweeper", "hydra.launcher")


def accept_yaml_files() -> None:
    """Let Hydra read this process's command line. Ends the process where it cannot."""
    try:
        sys.argv[1:] = rewrite(translated(sys.argv[1:]), first="base")
        refuse_nameless(sys.argv[1:])
        check_words(sys.argv[1:])
    except CommandLineError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from None


def refuse_nameless(words: Sequence[str]) -> None:
    """Raise CommandLineError where a group is to be chosen by null: Hydra would show a traceback."""
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        if value == "null" and group.replace("/", ".") in NEEDED:
            raise CommandLineError(
                f"the command line: {word}: Hydra does not start without this section. Remove the word"
            )
        if value == "null" and (CONF / group).is_dir():
            raise CommandLineError(
                f"the command line: {word}: a choice of the group '{group}' is the name of one of its"
                f" files, or a list of names. ~{group} chooses none of them."
            )


def warn_of_a_default_task(hydra: Any, tasks: Collection[str]) -> None:
    """Log that a task nobody named is trained with those that were added to it."""
    default = hydra.runtime.choices.get("task")
    typed = [text for text in typed_for(hydra) if text.startswith("task=")]
    if hydra.job.config_name == "config" and default in tasks and len(tasks) > 1 and not typed:
        log.warning(
            "%s is trained together with %s: conf/config.yaml chooses it where nothing else does, and"
            " a plus adds to it. Without it: ~task",
            *(default, ", ".join(name for name in tasks if name != default)),
        )


def warn_of_choices_below_files(hydra: Any) -> None:
    """Log which groups chosen on the command line its YAML files go over; a sweep does so itself."""
    if OmegaConf.is_missing(hydra.job, "num"):
        for sentence in below_files(hydra.job.config_name, typed_for(hydra), hydra.runtime.choices):
            log.warning(sentence)
