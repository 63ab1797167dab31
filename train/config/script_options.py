"""Options of Mimose's training scripts on our command line, each as the key of ours that it means.

    python train.py experiment=memory_swag --do_train --per_device_train_batch_size 16 --memory_threshold 8

A name may stand with dashes or without (`memory_threshold=6,8` sweeps). docs/memory.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocl_sweeper.command_line import CommandLineError
from train.config.memory import ROWS
from train.config.typed import nearest

# Option -> key of ours; the first ones are those of the memory planner.
KEYS: Mapping[str, str] = {
    **{name: f"memory.{name}" for name in ROWS},
    "model_name_or_path": "model.path",
    "output_dir": "hydra.run.dir",
    "do_train": "trainer.do_train",
    "num_train_epochs": "trainer.num_train_epochs",
    "max_steps": "trainer.max_steps",
    "per_device_train_batch_size": "trainer.per_device_train_batch_size",
    "per_device_eval_batch_size": "trainer.per_device_eval_batch_size",
    "learning_rate": "trainer.learning_rate",
    "optim": "trainer.optim",
    "seed": "seed",
    "doc_stride": "task.squad.preprocess.text.doc_stride",
}
# What --dataset_name and --task_name say, in the file of conf/experiment with the task and its settings.
EXPERIMENTS: Mapping[str, str] = {
    "swag": "memory_swag",
    "squad": "memory_squad",
    "qqp": "memory_glue",
    "conll2003": "memory_ner",
}
INSTEAD: Mapping[str, str] = {
    "gradient_checkpointing": "memory=gc",
    "max_seq_length": "task.<name>.max_src_length=<tokens>",
    "do_eval": "every job evaluates; trainer.eval_strategy=epoch does so while it trains",
    "do_predict": "every job evaluates; evaluate_test=false leaves the test rows out",
    "fp16": "trainer.fp16=true",
    "overwrite_output_dir": "a job never writes over another one; choose a folder with hydra.run.dir",
}
SAID = ("true", "false", "1", "0")  # behind a flag
FLAGS = ("do_train", *(name for name, row in ROWS.items() if row.type is bool))


def translated(words: Sequence[str]) -> list[str]:
    """The command line with options of Mimose's scripts as overrides of ours. Raises CommandLineError."""
    made: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        is_option = word.startswith("--")
        known = name in KEYS or name in ("dataset_name", "task_name") or name in INSTEAD
        # Without dashes `seed=1` and the like are keys of ours already, or Hydra's to judge.
        if not known or not (is_option or (equals and name in ROWS)):
            made.append(word)
            continue
        if name in INSTEAD:
            raise CommandLineError(
                f"{word}: is an option of transformers' scripts that is written otherwise here: "
                f"{INSTEAD[name]}"
            )
        if not equals:
            value = _value(name, left)
        if name in ("dataset_name", "task_name"):
            made += _experiment(name, value, words)
        else:
            made.append(f"{KEYS[name]}={value}")
    return made


def _value(name: str, left: list[str]) -> str:
    """The value behind an option, taken from the words; true for a flag. Raises CommandLineError."""
    if left and not left[0].startswith("-") and (name not in FLAGS or left[0].lower() in SAID):
        return left.pop(0)
    if name in FLAGS:
        return "true"
    key = KEYS.get(name, "experiment")
    raise CommandLineError(f"--{name}: wants a value: --{name} <value>, or {key}=<value>")


def _experiment(name: str, value: str, words: Sequence[str]) -> list[str]:
    found = EXPERIMENTS.get(value.lower())
    if found is None:
        near = nearest(value.lower(), EXPERIMENTS) or f"; there are: {', '.join(EXPERIMENTS)}"
        raise CommandLineError(
            f"--{name}={value}: no file of conf/experiment has this data{near}. Give rows of your own: "
            "task.<name>.dataset.train_data (docs/families.md)"
        )
    wanted = f"experiment={found}"
    given = [word for word in words if word.lstrip("+").startswith("experiment=")]
    if given and given != [wanted]:
        raise CommandLineError(
            f"--{name}={value}: means {wanted}, and {given[0]} is there. Remove one"
        )
    return [] if given else [wanted]
