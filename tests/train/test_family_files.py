"""Files of the classes with a head: what is read of them, and what is refused before training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import planned

from train.config.reading import read_tasks
from train.config.typed import SettingsError
from train.data.families import made, multiple_choice, question_answering, text_classification
from train.data.task_plan import plan_task, refuse_processes

Make = Callable[..., Any]
CLASSES = {
    "swag": "multiple_choice",
    "squad": "question_answering",
    "glue": "text_classification",
    "ner": "token_classification",
    "coco": "object_detection",
}
CHOICE = {"sent1": "He sits.", "sent2": "He", **{f"ending{i}": f"does {i}" for i in range(4)}}
TEXT = "Anna Adams lives in Paris."


def squad(answers: Sequence[tuple[str, int]], key: str = "q1", context: str = TEXT) -> Any:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    asked = [{"id": key, "question": "Who?", "answers": given, "is_impossible": not given}]
    return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]}


def coco(**changes: Any) -> Any:
    one = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [one | changes],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


def written(path: Path, content: Any) -> Path:
    """A file: text as it is, lists of objects as JSON lines, all else as JSON on several lines."""
    if path.suffix == ".jsonl" and not isinstance(content, str):
        content = "".join(json.dumps(one) + "\n" for one in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def plan(task: str, **node: Any) -> Any:
    """The plan of a task of these options, as conf/task has it."""
    return plan_task(read_tasks({task: {"_name": CLASSES[task], **node}})[0])


def rows(folder: Path, task: str, train: Any, ending: str, **node: Any) -> Any:
    """Training rows of a task whose dev file is alike."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "a.png")
    files = [str(written(folder / f"{name}{ending}", train)) for name in ("train", "dev")]
    data = dict(zip(("train_data", "valid_data"), files, strict=True)) | node.pop("dataset", {})
    return plan(task, dataset=data, **node).rows


def test_swags_own_table_is_read(tmp_path: Path) -> None:
    head = ",video-id,sent1,sent2,ending0,ending1,ending2,ending3,label\n"
    table = head + '0,v,"He sits, then.",He,stands.,runs.,eats.,sleeps.,2\n'
    [row] = rows(tmp_path, "swag", table, ".csv").train
    assert row["context"] == "He sits, then." and row["label"] == "2"
    assert row["choices"] == ("He stands.", "He runs.", "He eats.", "He sleeps.")


def test_squads_files_of_both_versions_are_read(tmp_path: Path) -> None:
    one, none = squad([("Anna Adams", 0), ("Anna", 0)]), squad([], "q2")
    one["data"] += none["data"]
    first, second = rows(tmp_path, "squad", one, ".json").train
    assert first["answers"] == "Anna Adams\tAnna" and first["starts"] == ((0, 10), (0, 4))
    assert second["answers"] == "" and second["starts"] == ()
    flat = {"id": "q", "question": "Who?", "context": TEXT}
    flat |= {"answers": {"text": ["Paris"], "answer_start": [20]}}
    [row] = rows(tmp_path, "squad", [flat], ".jsonl").train
    assert TEXT[slice(*row["starts"][0])] == "Paris"


def test_glues_tables_are_read_under_the_names_of_their_columns(tmp_path: Path) -> None:
    table = 'id\tquestion1\tquestion2\tis_duplicate\n1\tWho is "it"?\tWho?\t1\n2\tA?\tB?\t0\n'
    found = rows(tmp_path, "glue", table, ".tsv")
    assert [(r["text"], r["pair"], r["label"]) for r in found.train] == [
        ('Who is "it"?', "Who?", "1"),
        ("A?", "B?", "0"),
    ]
    assert found.labels == ("0", "1")
    own = [{"body": f"text {i}", "stars": i} for i in (10, 9, 1)]
    named = {"selected_cols": "body:text,stars:label"}
    found = rows(tmp_path, "glue", own, ".jsonl", dataset=named)
    assert found.labels == ("1", "9", "10") and found.train[0]["pair"] == ""


def test_conlls_lines_and_lists_of_tags_are_read(tmp_path: Path) -> None:
    lines = "-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nsits VBZ B-VP O\n\n\nParis NNP B-NP B-LOC\n"
    found = rows(tmp_path, "ner", lines, ".txt")
    assert [(r["tokens"], r["tags"]) for r in found.train] == [
        (("Anna", "sits"), "B-PER O"),
        (("Paris",), "B-LOC"),
    ]
    assert found.labels == ("B-LOC", "B-PER", "O")
    numbers = [{"tokens": ["Anna", "sits"], "ner_tags": [1, 0]}]
    named = {"text": {"ans2label": {"O": 0, "B-PER": 1}}}
    found = rows(tmp_path, "ner", numbers, ".jsonl", preprocess=named)
    assert found.train[0]["tags"] == "B-PER O" and found.labels == ("O", "B-PER")


def test_cocos_files_are_read_and_boxes_without_a_size_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = coco()
    whole["annotations"] += coco(id=8, bbox=[1, 1, 0, 5])["annotations"]
    found = rows(tmp_path, "coco", whole, ".json")
    assert json.loads(found.train[0]["objects"]) == [
        {"label": "cat", "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    ]
    assert found.labels == ("cat", "dog") and "1 boxes without" in caplog.text


@pytest.mark.parametrize(
    ("task", "ending", "content", "said"),
    [
        ("swag", ".jsonl", [CHOICE | {"label": 4}], "train.jsonl, line 1: label 4 is no ending"),
        ("swag", ".jsonl", [CHOICE], "line 1: has no 'label'; there are sent1"),
        ("swag", ".json", [CHOICE | {"label": 0}, {"sent1": "a"}], "line 11: has no 'ending0'"),
        ("swag", ".csv", "sent1,label\na\n", "line 2: has 1 columns, and the first line names 2"),
        ("swag", ".jsonl", '{"sent1":\n', "line 1: is no JSON"),
        ("squad", ".json", squad([("Boris", 0)]), "line 10: question q1: the answer 'Boris' is not"),
        ("squad", ".json", squad([("Anna", 1)]), "where there is 'nna '"),
        ("squad", ".json", {"data": [{"paragraphs": [{"qas": []}]}]}, "lacks 'context'"),
        ("glue", ".jsonl", [{"sentence": "a", "label": 0.5}], "label 0.5 must be a text or a whole"),
        ("glue", ".jsonl", [{"story": "a", "label": 0}], "has the columns story, label, and none of"),
        ("glue", ".tsv", "sentence\tlabel\na\t-1\n", "line 2: label -1 marks rows without"),
        ("glue", ".tsv", "sentence\tlabel\na\t1\n", "line 2: all training rows have the label '1'"),
        ("ner", ".txt", "Anna B-PER\nsits\n", "train.txt, line 2: has 'sits' and no tag"),
        ("ner", ".txt", "Anna PER\n", "line 1: 'PER' is no tag"),
        ("ner", ".jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}], "has 2 tokens and 1 tags"),
        ("ner", ".jsonl", [{"tokens": ["a"], "tags": [3]}], "tag 3 is a number without a name"),
        ("coco", ".json", coco(category_id=4), "line 12: annotation 7: there is no category with"),
        ("coco", ".json", coco(image_id=2), "annotation 7: there is no image with the id 2"),
        ("coco", ".json", coco(bbox=[0, 0, -1, 4]), "bbox [0, 0, -1, 4] must be x, y, width"),
        ("coco", ".json", {"images": []}, "has no list 'annotations'"),
        ("swag", ".xml", "", "ends in '.xml'; files of this class end in .json"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_with_file_and_line(
    tmp_path: Path, task: str, ending: str, content: Any, said: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        rows(tmp_path, task, content, ending)
    assert said in str(refused.value) and f"train{ending}" in str(refused.value)


def test_a_missing_image_is_named_with_its_line(tmp_path: Path) -> None:
    whole = coco()
    whole["images"][0]["file_name"] = "gone.png"
    with pytest.raises(SettingsError, match=r"train.json, line 5: there is no image .*gone.png"):
        rows(tmp_path, "coco", whole, ".json")


def test_a_label_of_dev_that_training_lacks_is_refused_with_its_line(tmp_path: Path) -> None:
    written(tmp_path / "a.tsv", "sentence\tlabel\na\tx\nb\ty\n")
    written(tmp_path / "b.tsv", "sentence\tlabel\na\tx\nb\tz\n")
    own, other = f"{tmp_path}/a.tsv", f"{tmp_path}/b.tsv"
    with pytest.raises(
        SettingsError, match=r"b.tsv, line 3: the label 'z' is none of the training"
    ):
        plan("glue", dataset={"train_data": own, "valid_data": other})
    with pytest.raises(SettingsError, match="is in train_data and in valid_data"):
        plan("glue", dataset={"train_data": own, "valid_data": own})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=swag"], "class multiple_choice takes model=headed"),
        (["task=swag", "model=headed", "task.swag.instruction.template=x"], "reads its columns"),
        (["task=sentiment", "model=headed"], "model=headed is for tasks of the classes"),
        (["task=[swag,glue]", "model=headed", "trainer.max_steps=1"], "a model has one head"),
        (
            ["task=coco", "model=headed", "task.coco.criterion.label_smoothing=0.1"],
            "takes no options",
        ),
    ],
)
def test_what_a_head_cannot_do_is_refused(make: Make, overrides: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        planned(make(*overrides))


def test_a_detector_is_trained_by_one_process() -> None:
    tasks = [plan("coco").task]
    refuse_processes(tasks, 1)
    with pytest.raises(SettingsError, match=r"task.coco: .* one process, .* env asks for 2"):
        refuse_processes(tasks, 2)


def test_made_up_rows_are_the_same_for_a_seed_and_as_long_as_their_data_set_has_them() -> None:
    for module, batch, least, most in (
        (multiple_choice, 64, 40, 142),
        (question_answering, 12, 146, 516),
        (text_classification, 32, 30, 332),
    ):
        drawn = module.LENGTHS.draw(2000 * batch, np.random.default_rng(0))
        longest = np.array(drawn).reshape(2000, batch).max(1) + 4  # marks of the tokenizer
        low, high = np.quantile(longest, (0.01, 1.0))
        assert least <= low and high <= most, (module, low, high)
        assert drawn[:50] == module.LENGTHS.draw(2000 * batch, np.random.default_rng(0))[:50]
    assert len(set(made.WORDS)) == len(made.WORDS)
