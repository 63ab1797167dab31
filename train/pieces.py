"""A tokenizer made from the training rows of tasks, where there is no folder with one.

    python -m train.pieces words scripts/sentiment.yaml      a new folder, then what train.py takes
    python train.py scripts/sentiment.yaml model.tokenizer=words

Byte-level BPE as of BART: nothing is unknown to it and text comes back as it was. What is frequent
becomes one id, words above all, and a small model need not learn first how bytes make words.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train.config.reading import read_run
from train.config.sections import Run
from train.config.typed import SettingsError
from train.data.instruction import fill
from train.data.rows import load
from train.data.tables import Row
from train.data.task_plan import TaskPlan, plan_run

MARKS = {
    "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
    "mask_token": "<mask>",
}  # fmt: skip


def texts(plan: TaskPlan, rows: Sequence[Row]) -> Iterator[str]:
    """All text of the instructions that `rows` make, as it is tokenised, and the answers."""
    for row in rows:
        for template in plan.templates:
            for slot, value in fill(template, row):
                if slot.type == "TEXT" and value is not None:
                    yield f" {str(value).strip()}"
    yield from (f" {answer.strip()}" for answer in plan.answers or ())


def train(corpus: Iterator[str], size: int) -> Any:
    """A fast tokenizer of transformers with at most `size` ids, but for its 256 bytes and marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[*MARKS.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(corpus, trainer)
    around = [(mark, made.token_to_id(mark)) for mark in ("<s>", "</s>")]
    made.post_processor = TemplateProcessing("<s> $A </s>", None, around)
    return PreTrainedTokenizerFast(tokenizer_object=made, **MARKS)


def tokenizer_of(run: Run, size: int) -> Any:
    """A tokenizer of the text of all tasks the run trains. Raises SettingsError, DataError."""
    plans = plan_run(run)
    own = [plans[task.name] for task in run.tasks]
    rows = ((plan, load(plan, run.evaluation).train(0)) for plan in own)
    return train((text for plan, found in rows for text in texts(plan, found)), size)


def main(argv: Sequence[str]) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.plugins import Plugins

    from train.config.schema import CONF, VERSION_BASE, register

    Plugins.instance()  # before composing: one of them reads several files as one
    register()
    parser = argparse.ArgumentParser(prog="python -m train.pieces", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="where the tokenizer goes; must be new")
    parser.add_argument("words", nargs="+", help="YAML files and overrides, as of train.py")
    parser.add_argument("--size", type=int, default=2000, help="ids at most (default 2000)")
    options = parser.parse_args(argv)
    if options.folder.exists():
        raise SettingsError(f"{options.folder} is there already: give a folder that is not")
    files = [str(Path(w).absolute()) for w in options.words if w.endswith(".yaml")]
    overrides = [w for w in options.words if not w.endswith(".yaml")]
    if not files:  # text is read; a file chooses its model itself
        overrides.insert(0, "model=unify_tiny")
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        run = read_run(compose("+".join(["base", *files]), overrides))
    made = tokenizer_of(run, options.size)
    made.save_pretrained(options.folder)
    print(f"{options.folder}: {len(made)} ids, of {', '.join(task.name for task in run.tasks)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SettingsError as error:
        sys.exit(str(error))
