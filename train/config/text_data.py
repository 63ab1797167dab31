"""Keys of tasks in CL_Benchmark's format: where their text is, and how rows become prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from train.config.typed import option

CL_BENCHMARK = "cl_benchmark"  # the task class
FEW_SHOT = "few_shot"  # another one
FEW_SHOT_FILE = "*_train.tsv"
DETECTION = "object_detection"
HEADED = (  # classes whose answers a head of the model makes
    "multiple_choice", "question_answering", "text_classification", "token_classification", DETECTION,
)  # fmt: skip
SHIPPED = Path(__file__).resolve().parents[2] / "data"


def _limits(answer: int) -> dict[str, Any]:
    """Greedy answers of so many tokens."""
    evaluation = {"generator_args": {"beam": 1, "max_len_b": answer}}
    return {"max_src_length": 512, "max_tgt_length": answer, "evaluation": evaluation}


# Task class -> what is not the default of other classes.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    CL_BENCHMARK: _limits(50),  # as O-LoRA's published code
    FEW_SHOT: _limits(64),  # as the reference
    # The positions of BERT and its kind: nothing shorter is cut.
    **{kind: {"max_src_length": 512, "evaluation": {}} for kind in HEADED},
}


@dataclass(frozen=True)
class TextData:
    """Keys at the top of the configuration; names and defaults are those of O-LoRA's scripts."""

    data_dir: str | None = option(
        None,
        "folder of <Group>/<dataset>/{train,dev,test,labels}.json; null: data/CL_Benchmark. Of class "
        "few_shot: of <task>/<sample>_{train,dev,test}.tsv",
    )
    task_config_dir: str | None = option(
        None, "folder of <task>/{train,dev,test}_tasks.json; null: data/task_configs"
    )
    instruction_file: str | None = option(
        None, "instructions by group; null: data/instructions.json"
    )
    instruction_strategy: Literal["single", "multiple"] = option(
        "single", "the first instruction of a group, or one drawn per row"
    )
    add_task_name: bool = option(True, "prompts begin with Task:<Group>")
    add_dataset_name: bool = option(True, "prompts name Dataset:<folder>")
    num_examples: int = option(
        0,
        "examples in a prompt",
        check=lambda v: v == 0,
        rule="must be 0: examples in prompts are not supported (nor did they work in O-LoRA)",
    )
    max_num_instances_per_task: int = option(
        10000, "rows of a training set with strategy random or sample", unit="rows", least=1
    )
    max_num_instances_per_eval_task: int = option(
        200, "likewise of a dev set", unit="rows", least=1
    )
    max_train_samples: int | None = option(
        None, "the first rows of a task's training sets", unit="rows", least=1
    )
    max_eval_samples: int | None = option(None, "of its dev sets", unit="rows", least=1)
    max_predict_samples: int | None = option(None, "of its test sets", unit="rows", least=1)
    closed_set: bool = option(False, "answers are labels.json's alone; false: any text")
    keep_end: bool = option(
        False, "a prompt that is too long keeps its end, '\\nAnswer:'; false: it loses it"
    )
    dev_from_train: float = option(
        0.0,
        "share of the training rows that becomes the dev set; 0: dev.json",
        check=lambda v: 0 <= v < 1,
        rule="must be 0 or more and below 1",
    )
    allow_test_selection: bool = option(
        False, "take dev rows that are test rows as well; results then say so"
    )


NAME = re.compile(r"[A-Za-z_][\w-]*")  # of a task, as Hydra's command line reads one


def config_root(task_config_dir: str | None) -> Path:
    """The folder of task-config folders that is meant by the key."""
    return Path(task_config_dir).absolute() if task_config_dir else SHIPPED / "task_configs"


def task_names(root: Path, file: str = "train_tasks.json") -> list[str]:
    """Folders below `root` that have such a file and can be written as `task=<name>`."""
    names = {path.parent.name for path in root.glob(f"*/{file}")}
    return sorted(name for name in names if NAME.fullmatch(name))


def few_shot_names(data_dir: str | None) -> list[str]:
    """Folders below `data_dir` that hold few-shot samples, likewise."""
    return [] if data_dir is None else task_names(Path(data_dir), FEW_SHOT_FILE)


def given_on(argv: Sequence[str], key: str) -> list[str]:
    """What a command line gives a key, for who needs it before Hydra composes."""
    named = [word.lstrip("+").partition("=") for word in argv]
    return [value.strip("'\"") for name, _, value in named if name == key]
