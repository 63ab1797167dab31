"""Tasks on models with a head of their own: what the model reads, answers and metrics by hand, real runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import finish, meeting_of, planned
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer

from train.config.typed import SettingsError
from train.data.families.object_detection import Drawn
from train.data.head_metrics import head_metric
from train.data.rows import Rows
from train.data.tables import DataError
from train.export import export
from train.loop.evaluation import Evaluated
from train.loop.records import write_ranked
from train.model.family import IGNORED

Make = Callable[..., Any]
RNG = np.random.default_rng(0)
CONTEXT = "the house of anna adams was old and the water there was very long"
WORDS = CONTEXT.split()
START = CONTEXT.index("anna")
ASKED = {
    "id": "q",
    "question": "who had water",
    "context": CONTEXT,
    "answers": "anna adams",
    "starts": ((START, START + len("anna adams")),),
    "place": "here",
}


def head(make: Make, task: str, *more: str) -> Any:
    few = f"task.{task}.dataset.made_rows=8"
    return meeting_of(make(f"task={task}", "model=headed", few, *more))


FEW = ("task.squad.max_src_length=14", "task.squad.preprocess.text.doc_stride=3")


# -- metrics by hand --------------------------------------------------------------------------------


def test_spans_are_scored_by_the_rules_of_squad() -> None:
    answers = ["the Eiffel Tower!", "in Paris, France", "", "blue", ""]
    truths = ["Eiffel tower", "Paris\tRome", "", "red\tgreen", "yes"]
    # Exact: 1, 0, 1, 0, 0. F1 of the second: precision 1/3, recall 1.
    found = head_metric("squad", answers, truths)
    assert found == pytest.approx({"f1": (1 + 0.5 + 1) / 5, "exact_match": 2 / 5})


def test_names_are_scored_whole() -> None:
    truths = ["B-PER I-PER O B-LOC", "O B-ORG"]
    answers = ["B-PER O O B-LOC", "B-LOC B-ORG"]  # one name cut short, two right, one of nothing
    precision, recall = 2 / 4, 2 / 3
    f1 = 2 * precision * recall / (precision + recall)
    found = head_metric("seqeval", answers, truths)
    wanted = {"f1": f1, "precision": precision, "recall": recall, "tag_accuracy": 4 / 6}
    assert found == pytest.approx(wanted)
    assert head_metric("seqeval", ["O"], ["O"])["f1"] == 0


def box(label: str, *place: float, **more: float) -> dict[str, Any]:
    return {"label": label, "bbox": list(place), **more}


def test_boxes_are_scored_at_each_threshold_of_their_overlap() -> None:
    truth = [box(k, 0, 0, 10, 10, area=100, iscrowd=0) for k in ("cat", "dog")]
    found = [
        box("cat", 0, 0, 10, 8, score=0.9),  # overlaps 0.8: right at 0.5 to 0.8, 7 of 10 thresholds
        box("dog", 0, 0, 10, 10, score=0.4),
        box("dog", 20, 20, 5, 5, score=0.8),  # wrong, and surer than the right one: precision 1/2
        box("cow", 0, 0, 1, 1, score=0.9),
    ]
    scores = head_metric("coco_map", [json.dumps(found)], [json.dumps(truth)])
    wanted = {"map": (0.7 + 0.5) / 2, "map_50": (1 + 0.5) / 2, "map_75": (1 + 0.5) / 2}
    assert scores == pytest.approx(wanted)
    assert head_metric("coco_map", ["[]"], [json.dumps(truth)])["map"] == 0


# -- what the model reads ---------------------------------------------------------------------------


def test_windows_cover_the_context_and_share_the_stride(make: Make) -> None:
    task = head(make, "squad", *FEW)
    windows = task.example(ASKED, RNG, False, "row")
    # 14 less 3 marks and 3 words of the question: 8 words of the context, 5 of them new.
    words = [[CONTEXT[slice(*one)] for one in w.offsets if one is not None] for w in windows]
    assert words == [WORDS[0:8], WORDS[5:13], WORDS[10:14]]
    first, last = windows[0].label
    assert CONTEXT[windows[0].offsets[first][0] : windows[0].offsets[last][1]] == "anna adams"
    assert all(w.label == (0, 0) and w.null == 0 for w in windows[1:])
    batch = task.batch([windows, windows[:1]])
    assert batch["input_ids"].shape == (4, 14)
    assert batch["labels"].tolist()[3] == [*windows[0].label]


def test_an_answer_that_a_window_cuts_is_not_in_it(make: Make) -> None:
    task = head(
        make, "squad", "task.squad.max_src_length=10", "task.squad.preprocess.text.doc_stride=1"
    )
    labels = [w.label for w in task.example(ASKED, RNG, True, "row")]
    # Windows of 4 words: 'the house of anna', 'anna adams was old', ...
    assert labels[:2] == [(0, 0), (5, 6)] and set(labels[2:]) == {(0, 0)}


def test_a_training_row_is_a_window_and_a_question_without_room_is_refused(make: Make) -> None:
    task = head(make, "squad", *FEW)
    spread = task.spread(Rows(lambda epoch: [ASKED], [], []))
    windows = [task.example(row, RNG, True, "row") for row in spread.train(0)]
    assert [w for [w] in windows] == [*task.example(ASKED, RNG, True, "row")]
    long = ASKED | {"question": "who " * 8}
    with pytest.raises(DataError, match=r"here: the question has 8 tokens, which leaves no room"):
        task.spread(Rows(lambda epoch: [ASKED], [long], []))


def test_the_best_span_of_all_windows_is_the_answer(make: Make) -> None:
    task = head(make, "squad", *FEW, "task.squad.evaluation.max_answer_length=3")
    windows = task.example(ASKED, RNG, False, "row")
    logits = [np.zeros((2, len(w.offsets))) for w in windows]
    place = next(i for i, one in enumerate(windows[0].offsets) if one is not None)
    logits[0][0, 0] = logits[0][1, 0] = 50  # the mark and the question are no answers
    logits[0][0, place + 3], logits[0][1, place + 4] = 4, 3  # anna adams
    logits[0][1, place + 7] = 9  # five words: too long
    logits[1][0, place + 4], logits[1][1, place + 3] = 9, 9  # the end before the start
    logits[2][0, place], logits[2][1, place] = 5, 1.5  # 'there'
    best = task.best([*zip(windows, logits, strict=True)])
    assert best[0].score == 9  # not 13, which is too long, nor 18, nor 100
    logits[1][:] = logits[0][1, place + 7] = 0
    best = task.best([*zip(windows, logits, strict=True)])
    assert [(one.text, one.score) for one in best[:2]] == [("anna adams", 7), ("there", 6.5)]
    assert len(best) == 20
    # A window says there is no answer only where all do.
    task.may_be_null = True
    assert task.best([*zip(windows, logits, strict=True)])[0].text == "anna adams"
    for one in logits:
        one[0, 0] = one[1, 0] = 50
    assert task.best([*zip(windows, logits, strict=True)])[0] == type(best[0])("", 50, 50)


def test_ranked_answers_are_a_questions_spans_with_their_share_of_all_in_the_file_of_squads_tools(
    make: Make, tmp_path: Path
) -> None:
    task = head(make, "squad", "task.squad.evaluation.n_best=2")
    example = task.example(ASKED, RNG, False, "row")
    start = next(i for i, one in enumerate(example[0].offsets) if one is not None)

    class Fixed(torch.nn.Module):
        def forward(self, **batch: torch.Tensor) -> Any:
            found = type("Found", (), {})()
            found.start_logits, found.end_logits = torch.full((2, *batch["input_ids"].shape), -9.0)
            found.start_logits[0, start + 3] = 2  # anna adams
            found.end_logits[0, start + 4] = 1
            found.end_logits[0, start + 3] = 0  # anna
            return found

    [best] = task.ranked(Fixed(), [example], torch.device("cpu"))
    shares = [math.exp(3) / (math.exp(3) + math.exp(2)), math.exp(2) / (math.exp(3) + math.exp(2))]
    wanted = [("anna adams", shares[0], 2, 1), ("anna", shares[1], 2, 0)]
    assert [tuple(one) for one in best] == [("text", "probability", "start_logit", "end_logit")] * 2
    for one, right in zip(best, wanted, strict=True):
        assert one["text"] == right[0] and [*one.values()][1:] == pytest.approx(right[1:])
    assert task.answers(Fixed(), [example], torch.device("cpu")) == ["anna adams"]
    one = Evaluated(task.plan, "dev", [ASKED], ["anna adams"], {}, None, [], [best])
    write_ranked(tmp_path, [one])
    assert json.loads((tmp_path / "nbest_predictions.json").read_text()) == {"q": best}


def test_a_tag_is_that_of_the_first_token_of_a_word(make: Make) -> None:
    task = head(make, "ner", "task.ner.max_src_length=7")
    row = {"tokens": ("paris", "xyz", "anna", "adams"), "tags": "B-LOC O B-PER I-PER"}
    one = task.example(row, RNG, True, "row")
    tags = [task.texts[i] if i != IGNORED else None for i in one.labels]
    # [CLS] paris x ##y ##z anna [SEP]: the last word is cut off.
    assert tags == [None, "B-LOC", "O", None, None, "B-PER", None] and one.words == 4

    class Right(torch.nn.Module):
        def forward(self, **batch: torch.Tensor) -> Any:
            wanted = torch.tensor([one.labels]).clamp(min=0)
            found = type("Found", (), {})()
            found.logits = torch.nn.functional.one_hot(wanted, len(task.texts)).float()
            return found

    assert task.answers(Right(), [one], torch.device("cpu")) == ["B-LOC O B-PER O"]


def test_choices_are_read_behind_their_context_and_padded_to_the_longest(make: Make) -> None:
    task = head(make, "swag")
    row = {"context": "the house", "choices": ("was old", "of anna adams was good"), "label": "1"}
    batch = task.batch([task.example(row, RNG, True, "row")] * 3)
    assert batch["input_ids"].shape == (3, 2, 10) and batch["labels"].tolist() == [1, 1, 1]
    assert batch["attention_mask"][0].sum(-1).tolist() == [7, 10]
    text = task.tokenizer.decode(batch["input_ids"][0, 1])
    assert text == "[CLS] the house [SEP] of anna adams was good [SEP]"


def test_images_are_padded_to_the_largest_and_their_boxes_stay_where_they_are(make: Make) -> None:
    task = head(make, "coco", "task.coco.dataset.shortest_edges=[24]")
    objects = [{"label": "green", "bbox": [160, 120, 320, 240], "area": 1.0, "iscrowd": 0}]
    crowd = objects[0] | {"iscrowd": 1}
    wide = {"image": Drawn(640, 480, (), 0), "objects": json.dumps([*objects, crowd]), "place": "x"}
    high = wide | {"image": Drawn(480, 640, (), 0), "objects": "[]"}
    examples = [task.example(row, RNG, False, "row") for row in (wide, high)]
    batch = task.batch(examples)
    assert batch["pixel_values"].shape == (2, 3, 64, 64)  # 48 x 64 and 64 x 48
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [48 * 64, 64 * 48]
    assert batch["labels"].tolist() == [[task.labels.index("green")], [IGNORED]]
    assert batch["boxes"][0, 0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5])
    assert task.example(wide, RNG, True, "row").pixels.shape == (3, 24, 32)


# -- runs -------------------------------------------------------------------------------------------

QUICK = ["evaluate_test=false", "max_eval_samples=4"]
SMALL = "model.config={num_hidden_layers: 1}"


@pytest.mark.parametrize("task", ["swag", "squad", "ner", "coco"])  # glue: below
def test_a_family_trains_and_the_next_task_goes_on_from_it(
    make: Make, tmp_path: Path, task: str
) -> None:
    small = [] if task == "coco" else [SMALL]
    rows = [f"task.{task}.dataset.made_rows=6", "trainer.per_device_train_batch_size=3"]
    own = [f"task={task}", "model=headed", *QUICK, *rows, *small, "trainer.max_steps=2"]
    keeps = task == "ner"  # what is saved and read again is the same for all texts
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    found = finish(make(*own, f"trainer.save_model={keeps}"), first)
    assert found["steps"] == 2 and 0 <= found["score"] <= 1 and np.isfinite(found["train_loss"])
    assert (first / "checkpoint").exists() == keeps == (found["checkpoint"] is not None)
    if task == "squad":
        answered = (first / "predict_eval_predictions.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in answered]
        ranked = json.loads((first / "nbest_predictions.json").read_text())
        assert {x["Instance"]["id"]: x["Prediction"] for x in lines} == {
            key: best[0]["text"] for key, best in ranked.items()
        }
    if not keeps:
        return
    finish(make(*own, f"init_from={first}/checkpoint"), second)  # an adapter
    export(second / "checkpoint", tmp_path / "merged", merged=True)
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged")
    assert [*merged.config.id2label.values()] == ["B-LOC", "B-ORG", "B-PER", "I-PER", "O"]
    with pytest.raises(SettingsError, match=r"the head of the model of the chain in init_from has"):
        other = "task.ner.preprocess.text.ans2label={O: 0, B-PER: 1, I-PER: 2, B-LOC: 3, B-ORG: 4}"
        finish(make(*own, f"init_from={first}/checkpoint", other), second)


def test_a_head_learns_what_its_rows_say(make: Make, tmp_path: Path) -> None:
    run = make(
        *["task=ner", "model=headed", *QUICK, "max_eval_samples=32", SMALL, "delta=seqft"],
        *["task.ner.dataset.made_rows=128", "trainer.learning_rate=5e-3", "trainer.max_steps=30"],
    )
    assert finish(run, tmp_path)["score"] > 0.9


def test_weights_without_a_head_get_a_new_one_and_are_trained_whole(
    make: Make, tmp_path: Path
) -> None:
    shape = Path(__file__).resolve().parents[2] / "data/models/bert_tiny"
    AutoModel.from_config(AutoConfig.from_pretrained(shape)).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(shape).save_pretrained(tmp_path / "bert")
    path, rows = f"model.path={tmp_path}/bert", "task.glue.dataset.made_rows=4"
    own = ["task=glue", "model=headed", path, rows]
    with pytest.raises(SettingsError, match=r"the head of model.path=.* may be new"):
        planned(make(*own))
    (tmp_path / "job").mkdir()
    done = finish(make(*own, *QUICK, "delta.first=full", "trainer.max_steps=1"), tmp_path / "job")
    assert done["steps"] == 1


@pytest.mark.slow  # a minute
def test_a_detector_learns_the_same_with_its_blocks_recomputed(make: Make, tmp_path: Path) -> None:
    losses = []
    for method in ("none", "gc"):
        (tmp_path / method).mkdir()
        rows = ["task.coco.dataset.made_rows=8", "trainer.per_device_train_batch_size=2"]
        own = ["task=coco", "model=headed", *QUICK, *rows, "trainer.max_steps=4"]
        losses.append(finish(make(*own, f"memory={method}"), tmp_path / method)["train_loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("task", ["swag", pytest.param("coco", marks=pytest.mark.slow)])
def test_sizes_and_plans_of_a_family_are_known_before_training(
    make: Make, tmp_path: Path, task: str
) -> None:
    settings = ["memory=plan", "memory.mode=sizes", "memory.budget_gib=1", "memory.collect_steps=3"]
    rows = [f"task.{task}.dataset.made_rows=8", "trainer.per_device_train_batch_size=2"]
    run = make(
        f"experiment=memory_{task}", f"task={task}", *settings, *rows, "trainer.num_train_epochs=1"
    )
    numbers = finish(run, tmp_path)
    table = json.loads((tmp_path / "memory_sizes.json").read_text())
    assert numbers["micro_batches"] == 4 and numbers["largest_rows"] == (8 if task == "swag" else 2)
    assert table["measured"] == pytest.approx(table["largest"]["predicted"], rel=0.25)
