"""Models, tokenizers and image processors from folders, made here in miniature by their own libraries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from support.folders import corpus
from support.runs import finish, meeting_of, model_of, planned, read
from transformers import (
    AutoImageProcessor,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    T5Config,
)

from train.config.task import ImagePreprocess
from train.config.typed import SettingsError
from train.data.pixels import image_pixels
from train.data.pretrained import located
from train.data.rows import Rows, load
from train.delta.olora import OLoRA
from train.loop.batches import Training
from train.loop.evaluation import predict
from train.loop.trainer import train
from train.model.fit import fitted
from train.pieces import main

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["+trainer.max_steps=2", "evaluation.dev_share=0.02", "evaluation.test_share=0.02"]


def of(folder: Path, *more: str) -> list[str]:
    return ["model=seq2seq", f"model.path={folder}", *more]


@pytest.fixture
def make(read: Any) -> Any:
    """A job whose model comes from a folder: without the sizes of `make_job`."""
    return read


def example_of(job: Any, row: dict[str, Any]) -> tuple[Any, Any]:
    task = meeting_of(job)
    return task, read(task, row)


def test_what_is_read_and_learned_has_the_marks_its_model_was_trained_with(
    make: Any, folders: Callable[[str], Path]
) -> None:
    """As the tokenizer itself writes text and `text_target` of transformers' own recipes."""
    row = {"review": "the film was good", "label": "positive"}
    wording = "judge: [TEXT:review] -> [TEXT:label,closed_set]"
    template = f"task.sentiment.instruction.template='{wording}'"
    for name in ("t5", "bart"):
        own = AutoTokenizer.from_pretrained(folders(name))
        job = make(*of(folders(name)), "task=sentiment", template)
        task, one = example_of(job, row)
        text = " judge: the film was good"
        assert list(one.source) == own(text).input_ids
        labels = own(" positive").input_ids
        start = {"t5": [0], "bart": [2]}[name]
        assert list(one.decoder) == [*start, *labels]
        batch = task.batch([one])
        counted = [i for i in batch["labels"][0].tolist() if i != -100]
        # BART's begin mark is forced, as its recipes force it.
        assert counted == labels[len(one.prefix) - 1 :]
        assert batch["decoder_input_ids"][0].tolist() == [*start, *labels[:-1]]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_model_from_a_folder_computes_what_transformers_does_with_it(
    make: Any, folders: Callable[[str], Path], name: str
) -> None:
    job = make(*of(folders(name)), "task=sentiment")
    task, one = example_of(job, {"review": "the film was good", "label": "positive"})
    model = model_of(job).eval()
    batch = task.batch([one])
    own = AutoModelForSeq2SeqLM.from_pretrained(folders(name)).eval()
    labels = AutoTokenizer.from_pretrained(folders(name))(" positive", return_tensors="pt")
    with torch.no_grad():
        mine = task.logits(model, batch)
        theirs = own(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels.input_ids,
        ).logits
    assert torch.equal(mine, theirs)


def test_answers_of_a_closed_set_are_given_as_they_were_written_whatever_the_tokenizer_makes_of_them(
    make: Any, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    answers = tmp_path / "answers.tsv"
    answers.write_text("Positive!\t1\nNEGATIVE - (not)\t0\n")
    job = make("model=unify_tiny", f"model.tokenizer={folders('words')}", "task=sentiment",
               f"task.sentiment.preprocess.text.ans2label={answers}")  # fmt: skip
    task, one = example_of(job, {"review": "the film was good", "label": "Positive!"})
    model = model_of(job).eval()
    told = task.answers(model, [one] * 3, torch.device("cpu"))
    assert told[0] in ("Positive!", "NEGATIVE - (not)")
    assert task.vocabulary.decode(task.vocabulary.encode(" Positive!")) != "Positive!"


def test_a_folder_with_a_file_of_sentencepiece_alone_has_a_tokenizer(
    make: Any, tmp_path: Path
) -> None:
    """As T5 1.1 and mT5 are handed out; their sentinels serve as masks."""
    (tmp_path / "text").write_text("\n".join(corpus()))
    SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=60,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    T5Config(vocab_size=160, decoder_start_token_id=0).save_pretrained(tmp_path)
    job = make(*of(tmp_path), "task=sentiment")
    made = meeting_of(job).vocabulary
    assert made.decode(made.encode(" the film was good")) == "the film was good"
    assert (made.before, made.after, made.start, made.mask) == ((), (1,), (0,), 159)


def test_a_vocabulary_of_a_folder_gets_the_marks_it_lacks_where_the_model_begins_at_random(
    make: Any, folders: Callable[[str], Path]
) -> None:
    job = make("model=unify_tiny", f"model.tokenizer={folders('t5')}", "task=sentiment")
    made = meeting_of(job).vocabulary
    assert made.eos == 1 and made.pad == 0  # its own
    assert (
        made.decode([made.before[0], *made.encode(" good film"), made.image, 1, 5]) == "good film"
    )
    assert made.size == made.own + 2 and {made.before[0], made.image} == {made.own, made.own + 1}
    drawn = made.random_ids(200, np.random.default_rng(0))
    assert len(set(drawn)) > 20 and min(drawn) > 2 and max(drawn) < made.own


def test_texts_longer_than_the_model_has_positions_for_are_refused(
    make: Any, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """139 ids and a begin mark are what BART has positions for: that they run, and 140 do not."""

    def job(length: int) -> Any:
        longest = f"task.sentiment.max_src_length={length}"
        return make(*of(folders("bart")), *QUICK, "task=sentiment", longest)

    task = meeting_of(job(139))
    row = {"review": "good film " * 100, "label": "positive"}
    one = read(task, row)
    assert len(one.source) == 140
    with torch.no_grad():
        assert task.logits(model_of(job(139)), task.batch([one])).isfinite().all()
    with pytest.raises(SettingsError, match=r"max_src_length=140: .* for 140 ids.*139 is"):
        finish(job(140), tmp_path)


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_a_chain_of_adapters_on_a_model_from_a_folder_outlives_the_folder(
    make: Any, folders: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    here = tmp_path / "model"
    shutil.copytree(folders(name), here)
    whole = "delta.first=full"  # an adapter alone would need the folder again
    last = finish(make(*of(here), *QUICK, "task=sentiment", whole), tmp_path / "1")
    shutil.rmtree(here)
    for place, task in ((2, "parity"), (3, "arithmetic")):
        run = make(*of(here), *QUICK, f"task={task}", f"init_from={last['checkpoint']}")
        last = finish(run, tmp_path / str(place))
    assert list(last["eval"]) == ["sentiment", "parity", "arithmetic"]
    assert last["orthogonal_loss_first"] > 0
    adapter = json.loads((tmp_path / "3/checkpoint/task3/adapter_config.json").read_text())
    names = {"t5": "q v", "bart": "q_proj v_proj"}[name]
    assert set(adapter["target_modules"]) == set(names.split())


def test_a_configuration_alone_makes_a_model_of_its_shape_for_any_tokenizer(
    make: Any, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folders("t5") / "config.json").read_bytes())
    job = make(*of(tmp_path), "model.weights=random", f"model.tokenizer={folders('bart')}",
               "+model.config={d_ff:24,dropout_rate:0.0}", "task=sentiment")  # fmt: skip
    model = model_of(job)
    assert (model.config.d_ff, model.config.vocab_size, model.config.eos_token_id) == (24, 400, 2)
    assert model.config.decoder_start_token_id == model.config.pad_token_id == 1


def test_a_package_may_bring_the_folder(
    make: Any, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models/__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "my_models/small").symlink_to(folders("t5"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert located("pkg://my_models/small", "model.path") == tmp_path / "my_models/small"
    for wrong, words in (("pkg://my_models/big", "no such folder"), ("pkg://nobody/x", "'nobody'")):
        with pytest.raises(SettingsError, match=words):
            located(wrong, "model.path")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=seq2seq"], ["model.path"]),
        (["model=seq2seq", "model.path=./nowhere"], ["model.path=./nowhere", "looked from", "pkg://"]),
        (["model=seq2seq", "model.path={empty}"], ["config.json", "save_pretrained"]),
        (["model=seq2seq", "model.path={gpt}"], ["holds a gpt2", "no encoder-decoder"]),
        (["model=seq2seq", "model.path={bare}"], ["has no tokenizer in it", "model.tokenizer"]),
        (["model=seq2seq", "model.path={t5}", "+model.hidden_size=32"],
         ["model.hidden_size=32", "model.config"]),
        (["model=seq2seq", "model.path={t5}", "+model.config={{d_fff:3}}"],
         ["model.config.d_fff=3", "d_ff"]),
        (["model=seq2seq", "model.path={t5}", "+model.tokenizer={bart}"],
         ["do not belong together", "model.weights=random"]),
        (["model=seq2seq", "model.path={t5}", "delta.target_modules=[q_prj]"],
         ["no layer 'q_prj'", "Its layers: k, lm_head, o, q, v, wi, wo"]),
        (["model=unify_tiny", "+model.path={t5}"], ["model.path=", "model=seq2seq"]),
        (["model=seq2seq", "model.path={t5}", "task=digits_01"],
         ["[IMAGE:image,preprocess=digits]", "text alone", "model=unify_tiny"]),
        (["model=seq2seq", "model.path={t5}",
          "task.sentiment.preprocess.text.ans2label={snow}"],
         ["the same ids as", "choose other words"]),
        (["model=seq2seq", "model.path={damaged}"], ["cannot be read from", "Safetensor"]),
        (["model=seq2seq", "model.path={half}"], ["weights lack"]),
    ],
)  # fmt: skip
def test_a_folder_that_will_not_do_is_told_with_key_and_remedy(
    make: Any,
    folders: Callable[[str], Path],
    tmp_path: Path,
    overrides: list[str],
    words: list[str],
) -> None:
    places = {name: folders(name) for name in ("t5", "bart")}
    places |= {name: tmp_path / name for name in ("empty", "gpt", "bare", "damaged", "half")}
    for name in ("empty", "gpt", "bare"):
        places[name].mkdir()
    (places["gpt"] / "config.json").write_text('{"model_type": "gpt2"}')
    shutil.copy(folders("t5") / "config.json", places["bare"])
    for name in ("damaged", "half"):
        shutil.copytree(folders("t5"), places[name])
    (places["damaged"] / "model.safetensors").write_bytes(b"no")
    whole = load_file(places["half"] / "model.safetensors")
    kept = {key: value for key, value in whole.items() if "decoder.block.1" not in key}
    save_file(kept, places["half"] / "model.safetensors", {"format": "pt"})

    places["snow"] = tmp_path / "snow.tsv"  # signs that the tokenizer never saw
    places["snow"].write_text("\N{SNOWMAN}\t0\n\N{UMBRELLA}\t1\n")
    given = [text.format(**places) for text in overrides]
    if not any(text.startswith("task=") for text in given):
        given.append("task=sentiment")
    with pytest.raises(SettingsError) as caught:
        job = make(*given)
        meeting_of(job)
        OLoRA(job.delta).attach(model_of(job), "task2", [])
    for word in words:
        assert word in str(caught.value)


def test_images_are_read_by_the_processor_of_a_folder(make: Any, tmp_path: Path) -> None:
    made = CLIPImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.1, 0.2, 0.3],
    )
    made.save_pretrained(tmp_path / "clip")
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text(f"{part}.png\tx\n")
    node = (
        "+task={c:{instruction:{template:'[IMAGE:p] -> [TEXT:a]'},dataset:{train_data:TRAIN,"
        'valid_data:DEV,selected_cols:"0:p,1:a"},preprocess:{image:{processor:FOLDER}}}}'
    )
    for word, path in (("TRAIN", "train.tsv"), ("DEV", "dev.tsv"), ("FOLDER", "clip")):
        node = node.replace(word, str(tmp_path / path))
    job = make("model=unify_tiny", node)
    [plan] = planned(job).values()
    assert fitted(job.model, [plan]).side == 16
    image = Image.linear_gradient("L").convert("RGB").resize((40, 24))
    expected = AutoImageProcessor.from_pretrained(tmp_path / "clip")(image, return_tensors="np")
    pixels = image_pixels(image, plan.images["image"])
    np.testing.assert_array_equal(pixels, expected["pixel_values"][0])
    assert not np.allclose(pixels, image_pixels(image, ImagePreprocess(patch_image_size=16)))

    with pytest.raises(SettingsError, match=r"patch_image_size=32: processor=.* gives 16 pixels"):
        planned(make("model=unify_tiny", node, "task.c.preprocess.image.patch_image_size=32"))
    with pytest.raises(SettingsError, match="interpolation=nearest has no effect beside"):
        make("model=unify_tiny", node, "task.c.preprocess.image.interpolation=nearest")
    (tmp_path / "clip/preprocessor_config.json").write_text('{"size": {"shortest_edge": 16}}')
    with pytest.raises(SettingsError, match="models here read squares"):
        planned(make("model=unify_tiny", node))


def test_pieces_of_the_tasks_text_are_its_words_and_nothing_is_lost_or_unknown(
    make: Any, tmp_path: Path
) -> None:
    command = ["-m", "train.pieces", str(tmp_path / "words"), "task=sentiment", "--size=600"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = make("model=unify_tiny", f"model.tokenizer={tmp_path / 'words'}", "task=sentiment")
    made = meeting_of(job).vocabulary
    known = ["not", "very", "film", "terrible", "positive"]
    assert [len(made.encode(f" {word}")) for word in known] == [1] * 5
    strange = "Ünseen, 2 \N{SNOWMAN} words  and spaces"
    assert made.decode(made.encode(f" {strange}")) == strange
    assert (made.before, made.after) == ((0,), (2,)) and made.size == made.own + 1  # <image>
    with pytest.raises(SettingsError, match="is there already"):
        main([str(tmp_path / "words"), "task=sentiment"])


@pytest.mark.slow
def test_a_text_task_is_learned_from_words_by_the_commands_of_its_script(tmp_path: Path) -> None:
    """Chance is 0.5; at least 0.995 on rows not trained on when this was written, seeds 0 to 2."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    files = [str(ROOT / "scripts" / name) for name in ("sentiment.yaml", "words.yaml")]
    for command in (
        ["-m", "train.pieces", str(tmp_path / "words"), files[0]],
        ["train.py", *files, f"model.tokenizer={tmp_path / 'words'}", f"hydra.run.dir={tmp_path}"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["eval"]["sentiment"] > 0.9 and results["test"]["sentiment"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sentiment", "parity"])
def test_the_encoder_decoder_can_learn_sixteen_rows_by_heart(
    make: Any, tmp_path: Path, task: str
) -> None:
    """From bytes, by teacher forcing and in its answers: what it cannot do is not for want of that."""
    job = make("model=unify_tiny", f"task={task}", "trainer.learning_rate=3e-3",
               "+trainer.max_steps=400", "trainer.lr_scheduler_type=linear")  # fmt: skip
    rows = load(planned(job)[task], job.evaluation)
    order = np.random.default_rng(0).permutation(len(rows.train(0)))[:16]
    chosen = [rows.train(0)[i] for i in order]
    met, model = meeting_of(job), model_of(job)
    few = Rows(lambda epoch: chosen, chosen, rows.test)
    train(model, [Training(met, few, 16, (1,), 0)], OLoRA(job.delta), job, 0, tmp_path)
    batch = met.batch([read(met, row) for row in chosen])
    with torch.no_grad():
        best = met.logits(model.eval(), batch).argmax(-1)
    assert ((best == batch["labels"]) | (batch["labels"] == -100)).all()
    assert predict(model, met, few, "dev").logged["acc"] == 1.0


@pytest.mark.slow
def test_a_chain_on_a_folder_trains_by_the_command_line(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Three commands as a user types them, the last one without internet to ask a hub."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    parent: list[str] = []
    for place, task in enumerate(("sentiment", "parity", "sentiment"), start=1):
        command = [*of(folders("t5")), *QUICK, f"task={task}", f"hydra.run.dir={place}", *parent]
        if place == 3:
            command += ["task.sentiment.instruction.template='[TEXT:review] -> [TEXT:label]'"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *command],
            cwd=tmp_path, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        parent = [f"init_from={place}/checkpoint"]
    results = json.loads((tmp_path / "3/all_results.json").read_text())
    assert results["orthogonal_loss_first"] > 0 and set(results["eval"]) == {"sentiment", "parity"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "model=seq2seq", "model.path=nobody/has-this",
         "task=sentiment"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Without internet, bring the folder" in done.stderr
