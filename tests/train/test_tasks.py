"""Tasks as instructions: what is read where, and what a mistake in one is answered with."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import meeting_of
from support.runs import planned as plans_of

from train.config.sections import SettingsError
from train.config.task import ImagePreprocess
from train.data.pixels import blank_centre, image_pixels, open_image
from train.data.preprocess import example
from train.data.rows import load
from train.data.specs import Column
from train.data.tables import DataError, read_table
from train.data.vocabulary import tokens

TASKS = ["arithmetic", "digits_01", "parity", "sentiment"]


def planned(make_job: Any, *overrides: str) -> Any:
    job = make_job("model=unify_tiny", *overrides)
    return plans_of(job)[job.tasks[0].name], job


def loaded(make_job: Any, *overrides: str) -> Any:
    plan, job = planned(make_job, *overrides)
    return load(plan, job.evaluation)


def table(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def of_files(folder: Path, **dataset: Any) -> str:
    """An override: a task `t` of class text on a.tsv, dev.tsv and test.tsv of `folder`."""
    node = {
        "train_data": folder / "a.tsv",
        "valid_data": folder / "dev.tsv",
        "test_data": folder / "test.tsv",
        "selected_cols": '"0:q,1:a"',
        **dataset,
    }
    text = ",".join(f"{key}:{value}" for key, value in node.items())
    template = "'[TEXT:q] -> [TEXT:a]'"
    return f"+task={{t:{{_name:text,instruction:{{template:{template}}},dataset:{{{text}}}}}}}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    table(tmp_path / "a.tsv", "1\tone", "2\ttwo", "3\tthree")
    table(tmp_path / "b.tsv", "4\tfour", "5\tfive")
    table(tmp_path / "dev.tsv", "6\tsix")
    table(tmp_path / "test.tsv", "7\tseven")
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_rows_by_rule_are_the_same_every_time_and_in_one_part_only(
    make_job: Any, task: str
) -> None:
    once, again = (loaded(make_job, f"task={task}") for _ in range(2))
    keys = [
        [tuple(map(str, row.values())) for row in part]
        for part in (once.train(0), once.dev, once.test)
    ]
    assert keys[0] == [tuple(map(str, row.values())) for row in again.train(3)]
    assert all(keys) and len({k for part in keys for k in part}) == sum(map(len, keys))


def test_what_made_up_rows_say_is_true(make_job: Any) -> None:
    words = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    words += " fifteen sixteen seventeen eighteen"
    number = {word: n for n, word in enumerate(re.findall("[a-z]+", words))}
    for row in loaded(make_job, "task=arithmetic").train(0):
        a, sign, b = row["question"].split()
        result = number[a] + number[b] if sign == "plus" else number[a] - number[b]
        assert number[row["answer"]] == result
    for row in loaded(make_job, "task=parity").dev:
        assert row["answer"] == ("even", "odd")[row["bits"].split().count("one") % 2]
    kinds = {row["review"]: row["label"] for row in loaded(make_job, "task=sentiment").test}
    assert all((" not " in r) != (v == "positive") for r, v in kinds.items() if r.endswith("good"))


def test_files_take_turns_by_epoch_and_sources_mix_in_proportion(
    make_job: Any, files: Path
) -> None:
    turns = loaded(make_job, of_files(files, train_data=f'"{files}/a.tsv,{files}/b.tsv"'))
    assert [[row["q"] for row in turns.train(epoch)] for epoch in (0, 1, 2)] == [
        ["1", "2", "3"], ["4", "5"], ["1", "2", "3"],
    ]  # fmt: skip
    mixed = loaded(
        make_job,
        of_files(
            files,
            train_data=f"[{files}/a.tsv,{files}/b.tsv]",
            sample_ratios="[1,2]",
            interleaved_multiple_reader="true",
        ),
    )
    assert [row["q"] for row in mixed.train(0)] == ["4", "1", "5", "2", "4", "3", "5"]
    assert [row["q"] for row in mixed.dev] == ["6"]


def test_a_header_gives_columns_their_names_and_quotes_count_in_csv_only(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", "id,text", '1,"a, b"')
    assert [*read_table(path, [Column("text", "t")], ",", True)] == [{"t": "a, b"}]
    path = table(tmp_path / "x.tsv", '1\t"a')
    assert [*read_table(path, [Column("1", "t")], "\t", False)] == [{"t": '"a'}]


def test_a_row_that_training_and_selection_share_is_refused(make_job: Any, files: Path) -> None:
    table(files / "dev.tsv", "2\ttwo")
    with pytest.raises(DataError, match=r"task t: the row \{'q': '2', 'a': 'two'\} is in 'train'"):
        loaded(make_job, of_files(files))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            {"train_data": "nowhere.tsv"},
            ["task.t.dataset.train_data", "nowhere.tsv", "looked from"],
        ),
        ({"train_data": "oss://b/x"}, ["oss://b/x", "local"]),
        ({"valid_data": "null"}, ["task.t.dataset.valid_data is not set"]),
        ({"valid_data": "{}/a.tsv"}, ["a.tsv is in train_data and in valid_data"]),
        ({"selected_cols": '"0:q"'}, ["column 'a'", "rows have q"]),
        ({"selected_cols": '"0:q,0:a"'}, ["column 0 twice"]),
        ({"selected_cols": '"0:q,7:a"'}, ["line 1", "column 7", "slot 'a'"]),
        ({"selected_cols": '"q,a"'}, ["no column 'q'", "dataset.header=true"]),
        ({"separator": '"ab"'}, ["separator", "one character"]),
        ({"sample_ratios": "[1,2]"}, ["2 given for 1 sources"]),
    ],
)
def test_a_mistake_about_files_names_the_key_and_the_rule(
    make_job: Any, files: Path, dataset: dict[str, str], words: list[str]
) -> None:
    given = {key: value.format(files) for key, value in dataset.items()}
    with pytest.raises((SettingsError, DataError)) as caught:
        loaded(make_job, of_files(files, **given))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.digits_01.instruction.template='[IMAGE: image] -> [TEXT:label]'"],
         ["task.digits_01", "column 1", "write [IMAGE:image]", "^"]),
        (["task.digits_01.instruction.template='[IMAGE:picture] -> [TEXT:label]'"],
         ["names the column 'picture'", "image, label"]),
        (["task.digits_01.instruction.template='[IMAGE:image] -> [TEXT:label]'"],
         ["images of class digits are read by preprocess=digits"]),
        (["task.digits_01.instruction.template='[IMAGE:image,preprocess=text] -> [TEXT:label]'"],
         ["preprocess=text does not go with IMAGE"]),
        (["task.digits_01.instruction.template="
          "'[IMAGE:image,preprocess=digits,adaptor=image_resnet] -> [TEXT:label]'"],
         ["adaptor=image_resnet is not supported"]),
        (["task=parity", "task.parity.preprocess.text.ans2label=null"], ["ans2label is not set", "closed_set"]),
        (["task=parity", "task.parity.preprocess.text.ans2label={even:0,odd:0}"],
         ["a number of its own"]),
        (["task=parity", "task.parity.instruction.template='[TEXT:bits] -> [TEXT:answer,closed_set] !'"],
         ["must come last"]),
        (["task=parity", "+task.parity.evaluation={metrics:{acuracy:{target_field:answer}}}"],
         ["unknown metric 'acuracy'", "did you mean accuracy?"]),
        (["task=parity", "+task.parity.evaluation={metrics:{cider:{target_field:answer}}}"],
         ["'cider' is not supported"]),
        (["task=parity", "+task.parity.evaluation={metrics:{accuracy:{target_field:x}}}"],
         ["target_field=x", "bits, answer"]),
        (["task=parity", "+task.parity.evaluation={generator_args:{beams:3}}"],
         ["generator_args.beams=3", "not supported"]),
        (["task=parity", "+task.parity.criterion={_name:focal}"], ["criterion._name=focal"]),
        (["task=parity", "+task.parity.criterion={_name:cross_entropy,label_smoothed_cross_entropy:{weight:2}}"],
         ["both given"]),
        (["task=parity", "+task.parity.criterion={label_smoothing:0.1}"],
         ["label_smoothing=0.1", "belongs to label_smoothed_cross_entropy"]),
        (["task=parity", "+task.parity.preprocess.text.mask_span_distribution=x"], ["span-poisson"]),
        (["task=parity", "task.parity._name=partiy"], ["_name=partiy", "did you mean parity?"]),
        (["task=[digits_01,parity]"], ["trainer.max_steps=-1", "digits_01, parity", "above 0"]),
        (["task=parity", "model=vit_tiny"], ["one image", "model=unify_tiny"]),
        (["task=parity", "+trainer.metric_for_best_model=mcc", "+trainer.eval_strategy=epoch"],
         ["metric_for_best_model=mcc", "loss, score, acc"]),
        (["task=parity", "+trainer.metric_for_best_model=acc"], ["nothing validates"]),
        (["task=parity", "+trainer.patience=2", "+trainer.eval_strategy=epoch"],
         ["trainer.patience=2", "metric_for_best_model"]),
        (["task=parity", "+task.parity.dataset={update_freq:[1,0]}"], ["update_freq=[1, 0]"]),
        (["+trainer.log_format=tqdm"], ["trainer.log_format=tqdm", "simple, json or none"]),
        (["+model.image_size=16"], ["images of 8 pixels", "model.image_size=16"]),
    ],
)  # fmt: skip
def test_a_mistake_about_a_task_is_found_before_torch(
    make_job: Any, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        planned(make_job, *overrides)
    for word in words:
        assert word in str(caught.value)


def test_what_a_family_refuses_is_known_without_torch() -> None:
    code = (
        "import sys\n"
        "from typing import get_args, get_type_hints\n"
        "from train.config.sections import ModelSettings\n"
        "from train.model.family import family_of\n"
        "kinds = get_args(get_type_hints(ModelSettings)['kind'])[:-1]\n"  # the last asks for its folder
        "for kind in kinds:\n"
        "    more = {} if kind in ('vit', 'unify') else {'path': 'google/t5'}\n"
        "    family_of(ModelSettings(kind=kind, **more)).check([], begins=True)\n"
        "print(kinds, {'torch', 'transformers', 'peft'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.stdout == "('vit', 'unify', 'seq2seq', 'causal', 'encoder', 'headed') set()\n", (
        done.stderr
    )


@pytest.mark.parametrize(
    "criterion",
    ["{_name:label_smoothed_cross_entropy,label_smoothing:0.1,weight:2}",
     "{label_smoothed_cross_entropy:{label_smoothing:0.1,weight:2}}"],
)  # fmt: skip
def test_both_forms_of_a_criterion_activate_it(make_job: Any, criterion: str) -> None:
    plan, _ = planned(make_job, "task=parity", f"+task.parity.criterion={criterion}")
    assert (plan.loss.label_smoothing, plan.loss.weight) == (0.1, 2.0)


@pytest.mark.parametrize("form", ["json", "file"])
def test_answers_may_be_json_text_or_a_file(make_job: Any, tmp_path: Path, form: str) -> None:
    path = table(tmp_path / "answers.tsv", "even\t0", "odd\t1")
    value = '"{\\"even\\": 0, \\"odd\\": 1}"' if form == "json" else str(path)
    plan, _ = planned(make_job, "task=parity", f"task.parity.preprocess.text.ans2label='{value}'"
                      if form == "file" else f"task.parity.preprocess.text.ans2label={value}")  # fmt: skip
    assert plan.answers == {"even": 0, "odd": 1}


# -- from rows to ids and pixels ----------------------------------------------------------------------


def made(make_job: Any, template: str, row: dict[str, Any], training: bool, *more: str) -> Any:
    plan, _ = planned(
        make_job, "task=sentiment", f"task.sentiment.instruction.template='{template}'", *more
    )
    return example(plan, tokens(), 4, row, np.random.default_rng(0), training)


ROW = {"review": " A fine, fine film! ", "label": "positive"}


def test_a_group_of_text_has_one_begin_and_one_end_and_a_space_before_each_part(
    make_job: Any,
) -> None:
    t = tokens()
    one = made(make_job, "judge: [TEXT:review] now -> [TEXT:label]", ROW, False)
    assert list(one.source) == [*t.before, *t.encode(" judge: A fine, fine film! now"), t.eos]
    assert list(one.decoder) == [*t.before, *t.encode(" positive"), t.eos]
    assert one.learned == (False, *[True] * (len(one.decoder) - 1)) and one.prefix == t.start


def test_what_is_given_on_the_answers_side_is_forced_and_not_learned(make_job: Any) -> None:
    from train.model.family import IGNORED

    t = tokens()
    template = "[TEXT:review] -> it is [TEXT:review,no_loss,max_length=3] so [TEXT:label]"
    one = made(make_job, template, ROW, False)
    forced = [*t.before, *t.encode(" it is"), *t.encode(" A "), *t.encode(" so")]
    assert list(one.prefix) == forced
    whole = f"task.sentiment.instruction.template='{template}'"
    batch = meeting_of(make_job("model=unify_tiny", "task=sentiment", whole)).batch([one])
    answer = [*t.encode(" positive"), t.eos]
    assert batch["labels"][0].tolist() == [IGNORED] * (len(forced) - 1) + answer
    assert batch["decoder_input_ids"][0].tolist() == [*forced, *answer[:-1]]
    learned = made(make_job, template, ROW, False,
                   "+task.sentiment.instruction.decoder_plain_with_loss=true")  # fmt: skip
    assert sum(learned.learned) == len(answer) + len(t.encode(" it is")) + len(t.encode(" so"))


def test_text_is_cut_lowered_and_freed_of_punctuation(make_job: Any) -> None:
    t = tokens()
    one = made(make_job, "[TEXT:review,uncased,no_punctuation] -> [TEXT:label]", ROW, False)
    assert t.decode(one.source[1:]) == "a fine fine film"
    cut = made(make_job, "[TEXT:review] -> [TEXT:label]", ROW, False,
               "+task.sentiment.max_src_length=5", "+task.sentiment.max_tgt_length=3")  # fmt: skip
    assert len(cut.source) == 6 and len(cut.decoder) == 4


def test_masks_and_noise_act_in_training_only_and_in_the_share_asked_for(make_job: Any) -> None:
    t, words = tokens(), {"review": "a b c d e f g h i j", "label": "positive"}
    masked = "[TEXT:review,mask_ratio=0.3] -> [TEXT:label]"
    assert t.mask not in made(make_job, masked, words, False).source
    assert made(make_job, masked, words, True).source.count(t.mask) == 3 * 2  # space and letter
    single = made(make_job, masked, words, True, "+task.sentiment.preprocess.text.replace_length=0")
    assert len(single.source) == 2 + 7 * 2 and t.mask not in single.source
    noisy = "[TEXT:review,noise_ratio=1] -> [TEXT:label]"
    assert made(make_job, noisy, words, True).source != made(make_job, noisy, words, False).source


def test_a_template_is_drawn_for_every_row(make_job: Any) -> None:
    plan, _ = planned(make_job, "task=sentiment")
    draws = [
        example(plan, tokens(), 4, ROW, np.random.default_rng([0, i]), True).source
        for i in range(40)
    ]
    wordings = {tokens().decode(ids[1:]).split()[0] for ids in draws}
    assert wordings == {"does", "review:"}


def test_images_come_from_a_path_base64_or_pil_and_are_resized_and_normalised(
    tmp_path: Path,
) -> None:
    from PIL import Image

    image = Image.new("RGB", (20, 10), (255, 0, 51))
    image.save(tmp_path / "x.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    settings = ImagePreprocess(patch_image_size=4)
    for value in (image, str(tmp_path / "x.png"), text):
        pixels = image_pixels(open_image(value, "row"), settings)
        assert pixels.shape == (3, 4, 4)
        np.testing.assert_allclose(pixels.mean((1, 2)), [1, -1, 0.2 * 2 - 1], atol=1e-5)
    imagenet = ImagePreprocess(patch_image_size=4, imagenet_default_mean_and_std=True)
    red = (1 - 0.485) / 0.229
    np.testing.assert_allclose(image_pixels(image, imagenet)[0], red, rtol=1e-4)
    blank = blank_centre(pixels, 0.25)
    assert (blank == 0).sum() == 3 * 4 and (blank[:, 1:3, 1:3] == 0).all()
    for wrong in ("nothing/there.png", base64.b64encode(b"no image").decode()):
        with pytest.raises(DataError, match="row 3"):
            open_image(wrong, "row 3")
