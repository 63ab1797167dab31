"""Scores of sources: golden numbers, plain loops on a tiny T5, files, and the command line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.deltas import change
from support.folders import make_folder
from support.runs import loaded, meeting_of, planned
from support.scores import oracle, scored
from support.train_app import transfer
from transformers import T5ForConditionalGeneration

from train.config.merging import MergeSettings
from train.data.rows import load as load_rows
from train.loop.evaluation import predict
from train.merge.plan import Scores, make_plan
from train.merge.rules import MergeError
from train.score.formulas import added, cosine, euclidean, gradient_norms, token_sums
from train.score.matrix import CELL, MARGIN, SIDE, heat_map, write_tsv

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/merge.json").read_text())
DATA, SPACE = GOLDEN["data_space"], GOLDEN["weight_space"]
ORDER = GOLDEN["meta"]["source_order"]


def space(name: str) -> list[dict[str, torch.Tensor]]:
    own = SPACE[name]
    made = [own[one] for one in ORDER] if ORDER[0] in own else [own]
    return [{k: torch.tensor(v, dtype=torch.float64) for k, v in one.items()} for one in made]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scores_of_logits_have_the_reference_values(dtype: torch.dtype) -> None:
    labels = torch.tensor(DATA["labels"])
    logits = {name: torch.tensor(v, dtype=dtype) for name, v in DATA["logits"].items()}
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for place, name in enumerate(ORDER):
        found = token_sums(logits[name], labels, logits["target"])
        wanted = {key: values[place] for key, values in DATA["scores"].items()}
        assert found["loss"] / DATA["n_tokens"] == pytest.approx(wanted["loss"], abs=tolerance)
        assert found["el2n"] == pytest.approx(wanted["el2n_sum"], abs=tolerance)
        cos = found["logits_labels_cos"]
        assert cos == pytest.approx(wanted["logits_labels_cos_sum"], abs=tolerance)
        assert found["kl"] == pytest.approx(wanted["kl_target_source_sum"], abs=tolerance)


def test_gradient_norms_are_summed_over_batches() -> None:
    own = DATA["grand"]
    for name, wanted in zip(ORDER, own["score_sum_over_batches"], strict=True):
        parts = [
            gradient_norms({k: torch.tensor(v, dtype=torch.float64) for k, v in batch.items()})
            for batch in own["grads"][name]
        ]
        assert added(parts)["all"] == pytest.approx(wanted, abs=1e-9)


def test_gradients_are_also_normed_by_block_and_sub_layer() -> None:
    gradients = {
        "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.x": 3.0,
        "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo.delta_adapter.A": 4.0,
        "base_model.model.decoder.block.1.layer.0.SelfAttention.q.lora_A.x": 12.0,
        "model.layers.7.self_attn.q_proj.lora_A.x": 84.0,
    }
    assert gradient_norms({name: torch.tensor([g]) for name, g in gradients.items()}) == {
        "all": 85, "encoder.0": 5, "encoder.0.0": 3, "encoder.0.1": 4,
        "decoder.1": 12, "decoder.1.0": 12, "7": 84, "7.self_attn": 84,
    }  # fmt: skip


def test_scores_of_weights_have_the_reference_values() -> None:
    [target] = space("target")
    sources, tuned = space("sources"), space("tuned")
    close = {"abs": 1e-9}
    assert [cosine(target, s) for s in sources] == pytest.approx(
        SPACE["cosine_mean_over_tensors"], **close
    )
    assert [euclidean(s, t) for s, t in zip(sources, tuned, strict=True)] == pytest.approx(
        SPACE["euclid_sum_over_tensors"], **close
    )


# -- a tiny T5 -------------------------------------------------------------------------------------


def test_forward_scores_equal_a_plain_loop_over_rows_and_tokens(
    make: Any, deltas: Any, tmp_path: Path
) -> None:
    told = scored(make, deltas, tmp_path, method="loss", batch_size=3)["targets"]["mc_taco"]
    for name in deltas[1]:
        model, rows = oracle(make, deltas, name)
        loss, el2n, cos, tokens = 0.0, 0.0, 0.0, 0
        for inputs, labels in rows:
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            for token, y in zip(logits.double().tolist(), labels, strict=True):
                raised = [math.exp(value) for value in token]
                p = [value / sum(raised) for value in raised]
                loss -= math.log(p[y])
                el2n += math.sqrt(sum((value - (i == y)) ** 2 for i, value in enumerate(p)))
                cos += p[y] / math.sqrt(sum(value**2 for value in p))
                tokens += 1
        assert told["tokens"] == tokens and told["batches"] == 3
        for method, total in (("loss", loss), ("el2n", el2n), ("logits_labels_cos", cos)):
            found = told["scores"][method][name]
            assert found == pytest.approx(total / tokens, rel=1e-5), method


def test_the_batch_size_changes_no_score_and_a_rerun_no_byte(
    make: Any, deltas: Any, tmp_path: Path
) -> None:
    values = {"method": "kl", "target_tuned": deltas[1]["sentiment"], "temperature": 1.0}
    one, two = (
        scored(make, deltas, tmp_path / name, batch_size=size, **values)["targets"]["mc_taco"][
            "scores"
        ]
        for name, size in (("1", 7), ("2", 2))
    )
    assert one.keys() == {"loss", "el2n", "logits_labels_cos", "kl"}
    for method, row in one.items():
        for name, value in row.items():
            assert two[method][name] == pytest.approx(value, abs=1e-6), (method, name)
    assert one["kl"]["sentiment"] == pytest.approx(0, abs=1e-9)
    assert one["kl"]["parity"] > 1e-3
    files = ("result.tsv", "result.json", "weights.tsv", "weights.png")
    before = {name: (tmp_path / "2" / name).read_bytes() for name in files}
    scored(make, deltas, tmp_path / "2", batch_size=2, **values)
    assert before == {name: (tmp_path / "2" / name).read_bytes() for name in files}


def test_grand_is_the_norm_of_the_gradient_of_each_batchs_mean_loss(
    make: Any, deltas: Any, tmp_path: Path
) -> None:
    values = {"method": "grand", "grand_mode": "eval", "reduction": "sum"}
    told = scored(make, deltas, tmp_path, batch_size=7, **values)["targets"]["mc_taco"]
    model, rows = oracle(make, deltas, "parity")
    own = {n: p.requires_grad_(True) for n, p in model.named_parameters() if "lora_" in n}
    losses = []
    for inputs, labels in rows:
        loss_of = torch.nn.functional.cross_entropy
        losses.append(loss_of(model(**inputs).logits[0], torch.tensor(labels), reduction="none"))
    torch.cat(losses).mean().backward()
    wanted = math.sqrt(sum(float(p.grad.square().sum()) for p in own.values()))
    assert told["scores"]["grand"]["parity"] == pytest.approx(wanted, rel=1e-4)
    blocks = [value for key, value in told["blocks"].items() if key.count(".") == 1]
    squares = sum(row["parity"] ** 2 for row in blocks)
    assert len(blocks) == 4 and math.sqrt(squares) == pytest.approx(wanted, rel=1e-4)


def test_grand_gives_every_source_the_same_dropout(make: Any, deltas: Any, tmp_path: Path) -> None:
    """The same delta under two names has one score, although dropout is on; its own in eval mode."""
    shutil.copytree(deltas[1]["parity"], tmp_path / "x/checkpoint")
    config = tmp_path / "x/checkpoint/task1/adapter_config.json"
    # Another alpha and B of the other size: another delta that does the same.
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "lora_alpha": 2 * told["lora_alpha"]}))

    state = load_file(config.parent / "adapter_model.safetensors")
    for key, value in state.items():
        if ".lora_B." in key:
            change(config.parent, key, value / 2)
    own = {"parity": deltas[1]["parity"], "copy": str(tmp_path / "x/checkpoint")}
    found = scored(make, (deltas[0], own), tmp_path / "train", method="loss")
    row = found["targets"]["mc_taco"]["scores"]["loss"]
    assert row["copy"] == pytest.approx(row["parity"], rel=1e-5)
    for mode in ("train", "eval"):
        values = {"method": "grand", "grand_mode": mode, "batch_size": 4}
        told = scored(make, (deltas[0], deltas[1]), tmp_path / mode, **values)
        again = scored(
            make, (deltas[0], dict(reversed(deltas[1].items()))), tmp_path / "r", **values
        )
        one, two = (t["targets"]["mc_taco"]["scores"]["grand"] for t in (told, again))
        assert one == pytest.approx(two, rel=1e-6), mode


def test_performance_is_the_gain_of_the_tune_pass_on_dev(
    make: Any, deltas: Any, tmp_path: Path
) -> None:

    own = {"parity": deltas[1]["parity"], "sentiment": deltas[1]["sentiment"]}
    turned = {"parity": own["sentiment"], "sentiment": own["sentiment"]}
    run = make("model=pretrained", *deltas[0][1:2], "task=sentiment")
    told = scored(
        make, (["model=pretrained", deltas[0][1], "task=sentiment"], own), tmp_path,
        method="performance", tuned=turned, full_diagonal=True,
    )  # fmt: skip
    task, [plan] = meeting_of(run), planned(run).values()
    rows = load_rows(plan, run.evaluation)
    after, before = (
        predict(loaded(run, Path(own[name])).model, task, rows, "dev").logged["acc"]
        for name in ("sentiment", "parity")
    )
    found = told["targets"]["sentiment"]["scores"]["performance"]
    assert found == {"parity": pytest.approx(after - before), "sentiment": 0}


def test_methods_that_need_other_deltas_say_so(make: Any, deltas: Any, tmp_path: Path) -> None:
    other: dict[str, Any] = {"target_tuned": deltas[1]["parity"]}
    for method, values, words in (
        ("kl", {}, "needs merge.target_tuned"),
        ("cosine", {}, "needs merge.target_tuned"),
        ("cosine", other, r"merge.target_tuned and 'sentiment': .* has the shapes \(2, 16\) and"),
        ("euclidean", {}, "it lacks 'sentiment'"),
        ("average", {}, "needs no scores; those that do are loss"),
    ):
        with pytest.raises(MergeError, match=words):
            scored(make, deltas, tmp_path, method=method, **values)


def test_a_source_of_another_base_model_is_refused(make: Any, deltas: Any, tmp_path: Path) -> None:

    other = make_folder("t5", tmp_path / "other")
    model = T5ForConditionalGeneration.from_pretrained(other)
    with torch.no_grad():
        model.shared.weight.add_(1)
    model.save_pretrained(other)
    target = [deltas[0][0], f"model.path={other}", *deltas[0][2:]]
    with pytest.raises(
        MergeError, match=r"source 'sentiment' is for the base model .* has other we"
    ):
        scored(make, (target, deltas[1]), tmp_path / "1", method="loss")


# -- files -----------------------------------------------------------------------------------------


def test_the_file_of_a_matrix_has_nan_where_a_source_was_left_out(
    tmp_path: Path,
) -> None:
    matrix = {"a": {"b": 1 / 3, "c": -2e-9}, "b": {"a": 4.0, "c": 0.5}}
    write_tsv(tmp_path / "m.tsv", matrix, ["a", "b", "c"])
    text = (tmp_path / "m.tsv").read_text()
    assert text == "target\ta\tb\tc\na\tnan\t0.333333333333\t-2e-09\nb\t4\tnan\t0.5\n"


def test_the_heat_map_is_darker_where_a_weight_is_larger(tmp_path: Path) -> None:

    weights = {"a": {"b": 0.8, "c": 0.2}, "b": {"a": 0.5, "c": 0.5}}
    heat_map(tmp_path / "w.png", weights, ["a", "b", "c"], {"a": 1.2, "b": 2.0})
    image = Image.open(tmp_path / "w.png")

    def shade(row: int, column: int) -> Any:
        at = (MARGIN + SIDE + column * CELL + 5, MARGIN + SIDE + row * CELL + 5)
        return image.getpixel(at)

    assert shade(0, 0) == (255, 255, 255)  # the target's own source
    assert shade(0, 1) == (51, 51, 255) and shade(0, 2) == (204, 204, 255)


# -- the command line ------------------------------------------------------------------------------


def test_scores_become_weights_and_a_merged_delta_from_the_command_line(
    deltas: Any, tmp_path: Path
) -> None:
    def printed(*words: str) -> str:
        done = transfer(tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    given = "merge.sources={" + ",".join(f"{k}:{v}" for k, v in deltas[1].items()) + "}"
    model = deltas[0][:2]
    weighed = ("merge.method=loss", "merge.temperature=0.1")
    told = printed("score", "task=[sentiment,parity]", *model, given, "hydra.run.dir=1", *weighed)
    assert "effective sources: sentiment" in told
    rows: dict[str, dict[str, float]] = {}
    weights: dict[str, dict[str, float]] = {}
    for name, matrix in (("result", rows), ("weights", weights)):
        with open(tmp_path / "1" / f"{name}.tsv", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                target = row.pop("target")
                matrix[target] = {s: float(v) for s, v in row.items() if v != "nan"}
    assert {t: {*row} for t, row in rows.items()} == {
        "sentiment": {"parity", "arithmetic"}, "parity": {"sentiment", "arithmetic"},
    }  # fmt: skip
    scores = ("merge.target=sentiment", "merge.scores=1/result.json", *weighed)
    printed("merge", given, *scores, "hydra.run.dir=2")
    plan = json.loads((tmp_path / "2/merged/merge_plan.json").read_text())
    assert plan["excluded"] == ["sentiment"] and plan["scores"] == pytest.approx(rows["sentiment"])
    assert plan["weights"] == pytest.approx(weights["sentiment"])


def test_scores_of_a_delta_that_has_changed_are_refused(deltas: Any, tmp_path: Path) -> None:
    settings = MergeSettings(sources=deltas[1], method="loss", temperature=1.0, scores="r.json")
    known = Scores("loss", "mean", -1, dict.fromkeys(deltas[1], 0.5), {"parity": "other"})
    with pytest.raises(MergeError, match=r"'parity' .* is not the delta that merge.scores=r.json"):
        make_plan(settings, known)
    assert make_plan(settings, replace(known, hashes={}))[0].ess == pytest.approx(3)
