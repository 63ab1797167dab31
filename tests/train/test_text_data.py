"""CL_Benchmark's format: prompts, sampling, dev rows, and what is refused before anything is trained."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.cl_benchmark import configure, dataset, put, rows

from train.config.task import DatasetSettings, PreprocessSettings, Task, TextPreprocess
from train.config.text_data import SHIPPED, TextData
from train.config.typed import SettingsError
from train.data import text_tasks
from train.data.benchmark import prompt, read_labels, read_split
from train.data.task_plan import TaskPlan, plan_task
from train.data.text_tasks import TextRows

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/olora_text.json").read_text())
SHIPPED_TASKS = ("boolqa", "copa", "multirc", "qqp")


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    text_tasks._say.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Task `a` trains on BoolQA/a_8 and is evaluated on it and on another one."""
    dataset(tmp_path, "BoolQA/a_8")
    dataset(tmp_path, "SC/SST-2", labels=("Good", "Bad"))
    both = {"BoolQA": ["a_8"], "SC": ["SST-2"]}
    configure(tmp_path, "a", train={"BoolQA": ["a_8"], "SC": []}, dev=both, test=both)
    configure(tmp_path, "SST-2", train={"SC": ["SST-2"]}, dev=both, test=both)
    return tmp_path


def plan(root: Path, name: str = "a", seed: int = 0, task: Any = None, **keys: Any) -> TaskPlan:
    """task: options of the task; keys: those of the configuration."""
    folders = {"data_dir": str(root / "CL_Benchmark"), "task_config_dir": str(root / "configs")}
    own = Task(name, "cl_benchmark", **(task or {}))
    return plan_task(own, TextData(**(folders | keys)), seed)


def read(root: Path, name: str = "a", seed: int = 0, **keys: Any) -> TextRows:
    found = plan(root, name, seed, **keys).rows
    assert found is not None
    return found


def sentences(part: Any) -> list[str]:
    return [row["sentence"].rpartition("sentence ")[2] for row in part]


# -- prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["dataset"])
def test_prompts_are_those_of_the_published_code_character_for_character(case: Any) -> None:
    asked = {k: v for k, v in case.items() if k not in ("prompt", "target")}
    assert prompt(**asked) == case["prompt"]


def test_rows_carry_the_golden_prompts_from_files_on(tmp_path: Path) -> None:
    for place, case in enumerate(GOLDEN["prompts"]):
        root, group, name = tmp_path / str(place), case["group"], case["dataset"]
        other = next(label for label in case["labels"] if label != case["target"])
        train = [(case["sentence"], case["target"]), ("x", other)]
        dataset(root, f"{group}/{name}", train=train, labels=case["labels"])
        configure(root, name, train={group: [name]})
        kind = {"instruction_type": "zero-shot", "instruction": case["instruction"]}
        put(root / "i.json", {group: [kind]} if case["instruction"] else {"WiC": []})
        switches = {key: case[key] for key in ("add_task_name", "add_dataset_name")}
        row = read(root, name, instruction_file=str(root / "i.json"), **switches).train[0]
        assert row["prompt"] == case["prompt"]
        assert row["answer"] == case["target"]


def test_braces_in_a_sentence_stay(root: Path) -> None:
    dataset(root, "BoolQA/a_8", train=[("{0} {", "True"), ("}", "False")])
    assert read(root).train[0]["prompt"].endswith("Option: True, False \n{0} {\nAnswer:")


def test_a_group_without_instruction_is_said_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "i.json", {"SC": [{"instruction_type": "few-shot", "instruction": "x\n"}]})
    for _ in range(2):
        found = read(root, instruction_file=str(root / "i.json"))
    assert (
        found.train[0]["prompt"] == "Task:BoolQA\nDataset:a_8\nBoolQA a_8 train sentence 0\nAnswer:"
    )
    told = [r.message for r in caplog.records if "no instruction for group BoolQA" in r.message]
    assert len(told) == 1


def test_strategy_multiple_draws_every_rows_instruction_by_the_seed(root: Path) -> None:
    kinds = [{"instruction_type": "zero-shot", "instruction": f"{i}: "} for i in "xyz"]
    put(root / "i.json", {"BoolQA": kinds})
    dataset(root, "BoolQA/a_8", train=rows("t", 300))

    def drawn(seed: int, strategy: Any = "multiple") -> list[str]:
        keys = {"instruction_file": str(root / "i.json"), "instruction_strategy": strategy}
        return [row["prompt"].split("\n")[2][0] for row in read(root, seed=seed, **keys).train]

    assert drawn(0, "single") == ["x"] * 300
    # 300 draws of three: 100 each, and a standard deviation of 8.2; 60 is five of them away.
    assert min(Counter(drawn(0))[i] for i in "xyz") > 60
    assert drawn(0) == drawn(0) != drawn(1)


# -- rows -------------------------------------------------------------------------------------------


def test_a_task_is_evaluated_on_what_it_trains_on_and_says_what_else_is_listed(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = read(root)
    assert {row["dataset"] for part in (found.train, found.dev, found.test) for row in part} == {
        "a_8"
    }
    assert "also lists SC/SST-2 to evaluate on" in caplog.text
    assert (found.labels, len(found.train), len(found.dev)) == (("True", "False"), 8, 4)
    assert {row["answer"] for row in read(root, "SST-2").test} == {"Good", "Bad"}


def test_random_keeps_the_first_rows_full_ignores_the_limit_and_sample_draws(root: Path) -> None:
    def train(strategy: str | None, seed: int = 0, **keys: Any) -> list[str]:
        entry = {"dataset name": "a_8", "sampling strategy": strategy}
        listed = {"BoolQA": [{k: v for k, v in entry.items() if v}]}
        configure(root, "a", train=listed, dev={"BoolQA": ["a_8"]}, test={})
        return sentences(read(root, seed=seed, **keys).train)

    assert train("random", max_num_instances_per_task=3) == ["0", "1", "2"]
    assert train(None, max_num_instances_per_task=3) == ["0", "1", "2"]
    assert train("full", max_num_instances_per_task=3) == list("01234567")
    assert train("full", max_train_samples=5) == list("01234")
    drawn = [train("sample", seed, max_num_instances_per_task=3) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and all(len(set(one)) == 3 for one in drawn)
    assert len({tuple(one) for one in drawn}) > 1
    assert all(one == sorted(one) for one in drawn)


def test_limits_of_dev_and_test_are_those_of_the_published_code(root: Path) -> None:
    dataset(root, "BoolQA/a_8", dev=rows("d", 300), test=rows("t", 300))
    listed = {"BoolQA": [{"dataset name": "a_8"}]}
    configure(root, "a", train=listed)
    found = read(root)
    assert (len(found.dev), len(found.test)) == (200, 300)  # N of dev; of test it is never applied
    found = read(root, max_eval_samples=7, max_predict_samples=9)
    assert (sentences(found.dev), sentences(found.test)) == (
        [str(i) for i in range(7)],
        [str(i) for i in range(9)],
    )


def test_rows_without_label_are_counted_and_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = [("a", "True"), ("b", "-"), ("c", ""), ("d", "False")]
    dataset(root, "BoolQA/a_8", test=test)
    assert [row["sentence"] for row in read(root).test] == ["a", "d"]
    assert "2 of 4 rows have no label ('-' or empty) and are left out" in caplog.text


def test_several_datasets_come_in_the_order_of_the_file(root: Path) -> None:
    listed = {"SC": ["SST-2"], "BoolQA": ["a_8"]}
    configure(root, "both", train=listed)
    found = read(root, "both")
    assert [row["dataset"] for row in found.train] == ["SST-2"] * 8 + ["a_8"] * 8
    assert found.labels == ("Good", "Bad", "True", "False")


# -- dev and test -----------------------------------------------------------------------------------


def test_a_dev_set_that_is_test_is_refused_unless_allowed_and_then_told(root: Path) -> None:
    same = rows("same", 6)
    dataset(root, "BoolQA/a_8", dev=same, test=same)
    with pytest.raises(
        SettingsError, match=r"dev\.json is the same file as test\.json.*dev_from_train"
    ):
        plan(root)
    assert read(root, allow_test_selection=True).selects_on_test
    assert not read(root, dev_from_train=0.5).selects_on_test


def test_a_dev_set_that_shares_a_text_with_test_is_refused_unless_allowed(root: Path) -> None:
    dataset(root, "BoolQA/a_8", dev=[("one", "True"), ("two", "False")], test=[("two", "True")])
    with pytest.raises(SettingsError, match=r"1 texts of .*dev\.json are in test\.json .*'two'"):
        plan(root)
    assert read(root, allow_test_selection=True).selects_on_test


def test_dev_from_train_is_balanced_seeded_and_shares_no_text(root: Path) -> None:
    train = [
        *rows("t", 30),
        *rows("more", 10, ["True"]),
        ("t sentence 0", "False"),
        ("seen", "True"),
    ]
    dataset(root, "BoolQA/a_8", train=train, test=[("seen", "True")])
    found = read(root, dev_from_train=0.25)
    # 42 rows: a quarter is 10.5, five of each label.
    assert Counter(row["answer"] for row in found.dev) == {"True": 5, "False": 5}
    assert not {r["sentence"] for r in found.dev} & {r["sentence"] for r in found.train}
    assert "seen" not in {row["sentence"] for row in found.dev}
    kept = {row["sentence"] for row in (*found.dev, *found.train)}
    assert kept == {sentence for sentence, _ in train}
    assert found == read(root, dev_from_train=0.25)
    assert found.dev != read(root, dev_from_train=0.25, seed=1).dev


# -- mistakes ---------------------------------------------------------------------------------------


CONFIG, DATA = "configs/a/", "CL_Benchmark/BoolQA/a_8/"
ROW = {"sentence": "s", "label": "True"}
NAMED = {"dataset name": "x"}
CASES = {  # file, its new content (null: there is none), message
    "a missing split": (DATA + "dev.json", None, r"split 'dev' is missing \(there are"),
    "missing labels": (DATA + "labels.json", None, r"labels\.json: no such file"),
    "a missing task file": (
        CONFIG + "test_tasks.json", None, r"configs/a/test_tasks\.json: no such",
    ),
    "an unknown group": (
        CONFIG + "train_tasks.json", {"BoolQa": [{"dataset name": "a_8"}]},
        r"no group 'BoolQa' .*did you mean BoolQA\? \(there are BoolQA, SC\)",
    ),
    "an unknown dataset": (
        CONFIG + "train_tasks.json", {"BoolQA": [{"dataset name": "a_9"}]},
        r"no dataset 'a_9' .*did you mean a_8\?",
    ),
    "an unknown strategy": (
        CONFIG + "train_tasks.json", {"SC": [NAMED | {"sampling strategy": "all"}]},
        r"sampling strategy 'all': must be random \(the first rows\), full",
    ),
    "a misspelt key": (
        CONFIG + "train_tasks.json", {"SC": [NAMED | {"sampling_strategy": "full"}]},
        r"unknown key 'sampling_strategy'",
    ),
    "a dataset twice": (CONFIG + "train_tasks.json", {"SC": [NAMED, NAMED]}, "SC/x stands twice"),
    "nothing to train on": (
        CONFIG + "train_tasks.json", {"BoolQA": []}, "names no dataset to train on",
    ),
    "nothing to select by": (
        CONFIG + "dev_tasks.json", {"SC": []}, r"lists none of BoolQA/a_8.*dev_from_train=0\.1",
    ),
    "a label that is none": (
        DATA + "train.json", [ROW, {"sentence": "t", "label": "true"}],
        r"train\.json, row 2: label 'true' is not in labels\.json \(True, False\)",
    ),
    "a row without text": (
        DATA + "train.json", [{"text": "t", "label": "True"}],
        r"row 1: must be a mapping with the texts 'sentence' and 'label'",
    ),
    "no labelled row": (
        DATA + "train.json", [{"sentence": "t", "label": "-"}], "no labelled row of BoolQA/a_8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "content", "message"), CASES.values(), ids=CASES.keys())
def test_mistakes_in_the_data_are_answered_with_the_file_when_a_task_is_planned(
    root: Path, file: str, content: Any, message: str
) -> None:
    (root / file).unlink()
    if content is not None:
        put(root / file, content)
    with pytest.raises(SettingsError, match=message):
        plan(root)


def test_a_file_that_is_no_json_is_named(root: Path) -> None:
    (root / DATA / "train.json").write_text("[{")
    with pytest.raises(SettingsError, match=r"train\.json: cannot be read as JSON"):
        plan(root)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data_dir": "/nowhere"}, r"data_dir=/nowhere: no such folder"),
        ({"task_config_dir": "/nowhere"}, r"task_config_dir=/nowhere: no such folder"),
        ({"instruction_file": "/nowhere.json"}, r"/nowhere\.json: no such file"),
    ],
)
def test_folders_that_are_not_there_are_named(root: Path, keys: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(root, **keys)


def test_an_instruction_of_another_type_is_refused(root: Path) -> None:
    put(root / "i.json", {"BoolQA": [{"instruction_type": "one-shot", "instruction": "x"}]})
    with pytest.raises(SettingsError, match=r"BoolQA: .*must have.*zero-shot or few-shot"):
        plan(root, instruction_file=str(root / "i.json"))


# -- tasks and folders ------------------------------------------------------------------------------


def test_a_task_finds_its_folder_by_name_by_beginning_and_by_key(root: Path) -> None:
    dataset(root, "QQP/QQP_40_1")
    configure(root, "QQP_40_1", train={"QQP": ["QQP_40_1"]})
    assert read(root, "qqp") == read(root, "QQP_40_1")
    named = {"dataset": DatasetSettings(task_config="QQP_40_1")}
    assert plan(root, "mine", task=named).rows == read(root, "QQP_40_1")
    configure(root, "QQP_40_2", train={"QQP": ["QQP_40_1"]})
    with pytest.raises(SettingsError, match="it could be QQP_40_1, QQP_40_2"):
        plan(root, "qqp")


def test_the_closed_set_of_a_task_is_its_labels_and_one_that_lacks_some_is_refused(
    root: Path,
) -> None:
    closed = plan(root, closed_set=True)
    assert closed.answers == {"True": 0, "False": 1}
    assert list(closed.metrics) == ["exact_match"]

    few = PreprocessSettings(text=TextPreprocess(ans2label={"True": 0, "Maybe": 1}))
    with pytest.raises(SettingsError, match=r"has no answer for 'False' \(4 rows\) of train"):
        plan(root, task={"preprocess": few}, closed_set=True)


@pytest.mark.parametrize("name", SHIPPED_TASKS)
def test_the_sentences_that_ship_are_balanced_and_in_one_split_each(name: str) -> None:
    found = plan_task(Task(name, "cl_benchmark")).rows
    assert found is not None
    parts = [found.train, found.dev, found.test]
    assert [len(part) for part in parts] == [40, 12, 12]
    for part in parts:
        assert len(set(Counter(row["answer"] for row in part).values())) == 1
    texts = [row["sentence"] for part in parts for row in part]
    assert len(set(texts)) == len(texts) == 64
    assert max(len(row["prompt"].encode()) for part in parts for row in part) <= 510
    has_options = "\nOption: " in found.train[0]["prompt"]
    assert has_options is (name != "copa")


def test_files_of_the_shipped_data_are_read_as_they_are() -> None:
    folder = SHIPPED / "CL_Benchmark/COPA/COPA_40_1"
    assert read_labels(folder) == ("A", "B")
    raw = json.loads((folder / "test.json").read_text())
    assert [(i.sentence, i.label) for i in read_split(folder, "test", ("A", "B")).items] == [
        (row["sentence"], row["label"]) for row in raw
    ]
