"""Text models from folders, by their kind: what they read, how they are scored, one step of O-LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from support.runs import (
    finish,
    meeting_of,
    model_of,
    of,
    planned,
    read,
    second_task,
    trainings,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from train.chain import CheckpointError
from train.config.typed import SettingsError
from train.data.rows import Rows
from train.data.rows import load as load_rows
from train.delta.olora import OLoRA
from train.export import export
from train.loop.batches import Training
from train.loop.trainer import train
from train.model.family import IGNORED, family_of
from train.model.fit import check_loaded
from train.model.text_choice import directions

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("t5", "llama", "gpt2", "bert")
CHAINS = ("t5", "llama", pytest.param("gpt2", marks=pytest.mark.slow), "bert")  # three jobs each
CPU = torch.device("cpu")
REVIEWS = [
    ("a fine film", "positive"),
    ("not a very good story and not a good cast", "negative"),
    ("dull", "negative"),
    ("the music was lovely , the story was not bad", "positive"),
]


def rows(answers: tuple[str, ...] = ("positive", "negative")) -> list[dict[str, str]]:
    return [{"review": text, "label": label} for text, label in REVIEWS if label in answers]


def examples(task: Any) -> list[Any]:
    return [read(task, row, training=True) for row in rows()]


def shaken(model: Any) -> Any:
    """The model with other random weights, so large that rows get different answers."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


TEMPLATE = "task.sentiment.instruction.template='review: [TEXT:review] -> [TEXT:label,closed_set]'"
FREE = "task.sentiment.instruction.template='review: [TEXT:review] -> [TEXT:label]'"


@pytest.mark.parametrize(
    ("kind", "family"),
    [("t5", "Seq2Seq"), ("llama", "Causal"), ("gpt2", "Causal"), ("bert", "Encoder")],
)
def test_the_family_is_that_of_the_model_type_whatever_the_folder_is_called(
    make: Any, folders: Any, tmp_path: Path, kind: str, family: str
) -> None:
    misleading = tmp_path / "t5-bert-llama"
    misleading.symlink_to(folders(kind))
    assert type(family_of(make(*of(misleading)).model)).__name__ == family


def test_a_decoder_reads_one_begin_mark_and_learns_the_answer_and_its_end_alone(
    make: Any, folders: Any
) -> None:
    """Against the tokenizer itself, on the instruction and on the answer apart."""
    for kind in ("llama", "gpt2"):
        own = AutoTokenizer.from_pretrained(folders(kind))
        task = meeting_of(make(*of(folders(kind)), TEMPLATE))
        batch = task.batch(examples(task)[:1])
        plain = {"add_special_tokens": False}
        text, answer = "review: a fine film", "positive"
        if kind == "gpt2":  # LLaMA's tokenizer brings the blank itself
            ids = [*own(" review:", **plain).input_ids, *own(" a fine film", **plain).input_ids]
            target = own(f" {answer}", **plain).input_ids
        else:
            ids = [1, *own("review:", **plain).input_ids, *own("a fine film", **plain).input_ids]
            target = own(answer, **plain).input_ids
            assert own(text).input_ids[0] == own.bos_token_id == 1
        assert batch["input_ids"][0].tolist() == [*ids, *target], kind
        assert batch["labels"][0].tolist() == [*target, own.eos_token_id]
        assert own.decode([*ids, *target]).removeprefix("<s>").strip() == f"{text} {answer}"


def test_padding_is_known_by_its_place_also_where_it_is_the_end_mark(
    make: Any, folders: Any
) -> None:
    task = meeting_of(make(*of(folders("gpt2")), TEMPLATE))
    assert task.vocabulary.pad == task.vocabulary.eos  # GPT-2 has no pad; no id is added
    assert model_of(make(*of(folders("gpt2")))).config.vocab_size == 400
    batch = task.batch(examples(task))
    lengths = [len(e.source) + len(e.decoder) - 1 for e in examples(task)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for mask, places in zip(batch["attention_mask"], batch["position_ids"], strict=True):
        assert places[mask == 1].tolist() == [*range(int(mask.sum()))]
        assert mask.tolist() == sorted(mask.tolist())  # padding is on the left


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_and_in_a_padded_batch_has_the_same_scores_and_answer(
    make: Any, folders: Any, kind: str
) -> None:
    job = make(*of(folders(kind)), TEMPLATE)
    task, model = meeting_of(job), model_of(job).eval()
    together = examples(task)
    batch = task.batch(together)
    with torch.no_grad():
        scores = task.logits(model, batch)
        for i, one in enumerate(together):
            single = task.batch([one])
            alone = task.logits(model, single)[0]
            if kind == "bert":
                torch.testing.assert_close(scores[i], alone, rtol=0, atol=1e-5)
                continue
            assert single["labels"].ne(IGNORED).all()
            torch.testing.assert_close(
                scores[i][batch["labels"][i] != IGNORED], alone, rtol=0, atol=1e-5
            )
        answers = task.answers(model, together, CPU)
        assert answers == [task.answers(model, [one], CPU)[0] for one in together]


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_generation_of_a_row_does_not_depend_on_its_batch(
    make: Any, folders: Any, kind: str
) -> None:
    job = make(
        *of(folders(kind)), FREE, "+task.sentiment.evaluation={generator_args:{max_len_b:6}}"
    )
    task, model = meeting_of(job), shaken(model_of(job))
    together = examples(task)
    answers = task.answers(model, together, CPU)
    assert answers == [task.answers(model, [one], CPU)[0] for one in together]
    assert len(set(answers)) > 1 and all(answers)


def test_a_generated_answer_is_the_likeliest_id_step_by_step(make: Any, folders: Any) -> None:
    """Greedy, by forward passes of the plain model without padding, cache or `generate`."""
    job = make(*of(folders("llama")), FREE)
    task, model = meeting_of(job), model_of(job).eval()
    assert task.generation == {"num_beams": 1, "max_new_tokens": 50}
    made = examples(task)
    answers = task.answers(model, made, CPU)
    for one, answer in zip(made, answers, strict=True):
        ids = [*one.source]
        for _ in range(50):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == task.vocabulary.eos:
                break
        assert answer == task.vocabulary.decode(ids[len(one.source) :])


def test_a_decoder_may_have_more_layers_than_its_encoder(make: Any) -> None:
    """Greedy, by forward passes without a cache; transformers' own has the encoder's layers."""
    sizes = ("model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=16")
    layers = ("model.num_hidden_layers=1", "model.num_decoder_layers=3")
    greedy = "+task.sentiment.evaluation={generator_args:{beam:1,max_len_b:6}}"
    job = make("model=unify_tiny", *sizes, *layers, FREE, greedy)
    task, model = meeting_of(job), model_of(job).eval()
    assert len(model.decoder.block) == 3
    made = examples(task)
    for one, answer in zip(made, task.answers(model, made, CPU), strict=True):
        ids = [*one.prefix]
        for _ in range(task.generation["max_new_tokens"]):
            source, given = torch.tensor([one.source]), torch.tensor([ids])
            with torch.no_grad():
                made_of = model(input_ids=source, decoder_input_ids=given, use_cache=False)
            ids.append(int(made_of.logits[0, -1].argmax()))
            if ids[-1] == task.vocabulary.eos:
                break
        assert answer == task.vocabulary.decode(ids[len(one.prefix) :])


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_an_option_scores_the_log_probability_of_all_its_ids_and_the_end_mark(
    make: Any, folders: Any, kind: str
) -> None:
    """Against the loss transformers itself computes for each option, times its number of ids."""
    job = make(*of(folders(kind)), TEMPLATE,
               "+task.sentiment.preprocess.text.ans2label={good:2,not very good:3}")  # fmt: skip
    task, model = meeting_of(job), shaken(model_of(job))
    made = [read(task, {"review": text}) for text, _ in REVIEWS]
    answers = task.answers(model, made, CPU)
    for one, answer in zip(made, answers, strict=True):
        scores = {}
        for option in task.plan.answers:
            ids = [*task.vocabulary.encode(f" {option}"), task.vocabulary.eos]
            if kind == "t5":
                source, labels = torch.tensor([one.source]), torch.tensor([ids])
            else:
                source = torch.tensor([[*one.source, *ids]])
                labels = torch.tensor([[*[-100] * len(one.source), *ids]])
            with torch.no_grad():
                scores[option] = -model(input_ids=source, labels=labels).loss.item() * len(ids)
        assert answer == max(scores, key=scores.__getitem__)


@pytest.mark.parametrize(
    ("kind", "folder", "words"),
    [
        ("causal", "bert", ["holds a bert", "BERT, RoBERTa", "model=encoder"]),
        ("encoder", "gpt2", ["holds a gpt2", "model=causal"]),
        ("seq2seq", "llama", ["holds a llama", "no encoder-decoder", "model=causal"]),
        ("causal", "t5", ["holds a t5", "model=seq2seq"]),
    ],
)
def test_a_folder_of_another_family_is_refused_with_the_family_to_take(
    make: Any, folders: Any, kind: str, folder: str, words: list[str]
) -> None:
    job = make(f"model={kind}", f"model.path={folders(folder)}")
    with pytest.raises(SettingsError) as caught:
        planned(job)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_model_type_asks_for_the_family(make: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "perceiver"}')
    with pytest.raises(SettingsError, match=r"'perceiver'; say which one it is: model=seq2seq"):
        planned(make(*of(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "length", "words"),
    [("gpt2", 226, "together 255 is the most"), ("bert", 160, "positions for 160 ids")],
)
def test_texts_longer_than_a_model_has_positions_for_are_refused(
    make: Any, folders: Any, kind: str, length: int, words: str
) -> None:
    """225 ids and 30 of the answer with a begin mark are 256; 159 with a begin mark are 160."""
    model = model_of(make(*of(folders(kind))))
    longest, over = (
        make(*of(folders(kind)), f"+task.sentiment.max_src_length={n}")
        for n in (length - 1, length)
    )
    check_loaded(model, longest.model, planned(longest).values())
    with pytest.raises(SettingsError, match=words):
        check_loaded(model, over.model, planned(over).values())


def test_an_encoder_wants_a_closed_set(make: Any, folders: Any) -> None:
    with pytest.raises(SettingsError, match="model=encoder chooses one answer of a closed_set"):
        planned(make(*of(folders("bert")), FREE))


@pytest.mark.parametrize(
    ("kind", "names"),
    [("t5", "q v"), ("llama", "q_proj v_proj"), ("gpt2", "c_attn"), ("bert", "query value")],
)
def test_the_default_targets_are_q_and_v_as_the_family_calls_them(
    make: Any, folders: Any, kind: str, names: str
) -> None:
    job = make(*of(folders(kind)))
    model = OLoRA(job.delta).attach(model_of(job), "task1", [])
    found = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert found == set(names.split())


STEP = ("+trainer.optim=sgd", "+trainer.max_steps=1", "trainer.max_grad_norm=0",
        "trainer.learning_rate=0.1", "delta.lamda_1=0.5", "delta.lamda_2=0.1")  # fmt: skip
UNEVEN = "+task.sentiment.preprocess.text.ans2label={not very good at all:2}"


def one_step(job: Any, folder: Path) -> dict[str, torch.Tensor]:
    model, delta = second_task(job)
    labels = ["positive", "not very good at all", "negative", "positive"]
    own = [{"review": t, "label": a} for (t, _), a in zip(REVIEWS * 2, labels * 2, strict=True)]
    [training] = trainings(job)
    eight = Training(training.task, Rows(lambda e: own, own, []), training.micro_batch_size,
                     training.update_freq, 0)  # fmt: skip
    report = train(model, [eight], delta, job, 0, folder)
    assert report.steps == 1 and report.delta["orthogonal_loss_first"] > 0
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_eight_rows_at_once_and_two_by_two_make_the_same_step(
    make: Any, folders: Any, tmp_path: Path, kind: str
) -> None:
    """Answers of different length: micro-batches weigh their target ids, the penalties count once."""
    off = "+model.config={dropout_rate:0.0}" if kind == "t5" else "+model.config={}"
    own = of(folders(kind), TEMPLATE, UNEVEN, off, *STEP)
    sizes = ("trainer.per_device_train_batch_size=", "trainer.gradient_accumulation_steps=")
    whole, parts = (
        one_step(make(*own, f"{sizes[0]}{n}", f"{sizes[1]}{8 // n}"), tmp_path) for n in (8, 2)
    )
    assert whole.keys() == parts.keys() and all("task3" in name for name in whole)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-5, atol=1e-6)


QUICK = ("+trainer.max_steps=3", "trainer.per_device_train_batch_size=4",
         "evaluation.dev_share=0.02", "evaluation.test_share=0.02")  # fmt: skip
Chain = Callable[[str], Path]


@pytest.fixture(scope="session")
def chain(make: Any, folders: Any, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The last job of a chain of three adapters of ranks 4, 8, 2 on a model of this kind."""
    made: dict[str, Path] = {}

    def last(kind: str) -> Path:
        if kind not in made:
            folder, parent = tmp_path_factory.mktemp(f"chain_{kind}"), "null"
            for place, (task, rank) in enumerate(
                (("sentiment", 4), ("parity", 8), ("sentiment", 2)), start=1
            ):
                job = make(*of(folders(kind)), *QUICK, f"task={task}", f"delta.lora_dim={rank}",
                           "trainer.learning_rate=0.03", f"init_from={parent}")  # fmt: skip
                parent = finish(job, folder / str(place))["checkpoint"]
            made[kind] = folder / "3"
        return made[kind]

    return last


AUTO = {"t5": AutoModelForSeq2SeqLM, "bert": AutoModel, "llama": AutoModelForCausalLM,
        "gpt2": AutoModelForCausalLM}  # fmt: skip


def stock(folders: Any, kind: str, last: Path) -> Any:
    """The chain as plain peft reads it: base, three adapters, all active."""
    model = AUTO[kind].from_pretrained(folders(kind))
    names = [f"task{i}" for i in (1, 2, 3)]
    checkpoints = [last.parent / str(i) / "checkpoint" for i in (1, 2, 3)]
    model = PeftModel.from_pretrained(model, str(checkpoints[0] / names[0]), adapter_name=names[0])
    for checkpoint, name in zip(checkpoints[1:], names[1:], strict=True):
        model.load_adapter(str(checkpoint / name), adapter_name=name)
    model.base_model.set_adapter(names)
    return model.eval()


@pytest.mark.parametrize("kind", CHAINS)
def test_every_task_of_a_chain_on_pretrained_weights_has_an_adapter_and_none_a_base(
    chain: Chain, kind: str
) -> None:
    last = chain(kind)
    results = json.loads((last / "all_results.json").read_text())
    assert results["orthogonal_loss_first"] > 0 and results["l2_loss"] > 0
    for place, rank in ((1, 4), (2, 8), (3, 2)):
        checkpoint = last.parent / str(place) / "checkpoint"
        assert not (checkpoint / "base").exists()
        with safe_open(checkpoint / f"task{place}/adapter_model.safetensors", "pt") as weights:
            own = [key for key in sorted(weights.keys()) if "lora_A" in key]
            assert {weights.get_slice(key).get_shape()[0] for key in own} == {rank}
        saved = json.loads((checkpoint / f"task{place}/adapter_config.json").read_text())
        assert saved["lora_alpha"] == 32  # its own scaling 32 / r, whatever came before


@pytest.mark.parametrize("kind", CHAINS)
def test_the_loss_of_a_job_is_that_of_its_base_and_saved_adapters_in_stock_peft(
    make: Any, folders: Any, chain: Chain, kind: str
) -> None:
    """Teacher-forced, per target id, one row after the other by transformers' own loss."""
    last = chain(kind)
    results = json.loads((last / "all_results.json").read_text())
    model = stock(folders, kind, last)
    sums = {}
    for name in ("sentiment", "parity"):
        job = make(*of(folders(kind)), *QUICK, f"task={name}")
        sums[name] = teacher_forced(job, kind, model)
        expected = sums[name][0] / sums[name][1]
        assert results["test_metrics"][name]["loss"] == pytest.approx(expected, rel=1e-5)
    pooled = json.loads((last / "predict_results.json").read_text())["predict_loss"]
    total, counted = (sum(part) for part in zip(*sums.values(), strict=True))
    assert pooled == pytest.approx(total / counted, rel=1e-5)


def teacher_forced(job: Any, kind: str, model: Any) -> tuple[float, int]:
    """Loss of a model over the test rows of a job's task, and the number of target ids."""
    [plan] = planned(job).values()
    task = meeting_of(job)
    total, counted = 0.0, 0
    for i, row in enumerate(load_rows(plan, job.evaluation).test):
        one = task.example(row, np.random.default_rng([7, i]), False, "row")
        with torch.no_grad():
            if kind == "bert":
                hidden = model(torch.tensor([one.content])).last_hidden_state[0].mean(0)
                rows = directions([*plan.answers], len(hidden))
                cosines = torch.nn.functional.cosine_similarity(rows, hidden[None])
                loss, n = -(20 * cosines).log_softmax(0)[one.label], 1
            elif kind == "t5":
                labels = torch.tensor([one.decoder[1:]])
                loss = model(input_ids=torch.tensor([one.source]), labels=labels).loss
                n = labels.shape[1]
            else:
                ids = [*one.source, *one.decoder]
                labels = torch.tensor([[*[-100] * len(one.source), *one.decoder]])
                loss = model(input_ids=torch.tensor([ids]), labels=labels).loss
                n = len(one.decoder)
        total, counted = total + loss.item() * n, counted + n
    return total, counted


def test_a_chain_of_adapters_does_not_go_on_with_another_base_model(
    make: Any, folders: Any, chain: Chain, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(folders("llama")).save_pretrained(other)
    torch.manual_seed(99)
    config = AutoModelForCausalLM.from_pretrained(folders("llama")).config
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    begun = f"init_from={chain('llama') / 'checkpoint'}"
    with pytest.raises(CheckpointError) as caught:
        finish(make(*of(other), *QUICK, begun), tmp_path / "job")
    for word in ("another base model", str(folders("llama")), str(other)):
        assert word in str(caught.value)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", CHAINS)
def test_an_exported_chain_gives_the_logits_of_its_adapters_in_plain_peft(
    folders: Any, chain: Chain, tmp_path: Path, kind: str, merged: bool
) -> None:
    auto, last = AUTO[kind], chain(kind)
    export(last / "checkpoint", tmp_path / "out", merged)
    if merged:
        model = auto.from_pretrained(tmp_path / "out").eval()
    else:
        base = auto.from_pretrained(folders(kind))
        model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
        saved = json.loads((tmp_path / "out/adapter_config.json").read_text())
        assert saved["r"] == saved["lora_alpha"] == 4 + 8 + 2
    ids = torch.tensor([[5, 9, 17, 30, 8], [6, 40, 3, 2, 11]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :3]} if kind == "t5" else {})
    with torch.no_grad():
        expected, found = stock(folders, kind, last)(**inputs)[0], model(**inputs)[0]
        untouched = auto.from_pretrained(folders(kind)).eval()(**inputs)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(untouched, expected, atol=1e-3)  # the adapters do something


def test_the_concatenated_adapter_keeps_every_a_as_it_was(chain: Chain, tmp_path: Path) -> None:
    """The scaling goes into B alone: an orthogonal loss against it is that against the chain."""
    last = chain("bert")
    export(last / "checkpoint", tmp_path / "out", merged=False)
    whole = load_file(tmp_path / "out/adapter_model.safetensors")
    parts = [
        load_file(last.parent / f"{i}/checkpoint/task{i}/adapter_model.safetensors")
        for i in (1, 2, 3)
    ]
    for key, value in whole.items():
        own = [part[key] for part in parts]
        if "lora_A" in key:
            assert torch.equal(value, torch.cat(own))
        else:
            scaled = [32 / rank * b for rank, b in zip((4, 8, 2), own, strict=True)]
            torch.testing.assert_close(value, torch.cat(scaled, dim=1))
