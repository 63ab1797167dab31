"""Scores and weights of single blocks, temperatures chosen on dev, and what scoring costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.scores import oracle, scored
from transformers import T5ForConditionalGeneration

from train.config.merging import MergeSettings
from train.merge.apply import merge, write_merged
from train.merge.plan import make_plan
from train.merge.rules import MergeError
from train.score.formulas import token_sums
from train.score.matrix import CELL, MARGIN, SIDE, grouped, heat_map, read_scores

Deltas = tuple[list[str], dict[str, str]]


def test_hidden_states_are_compared_block_by_block_over_the_positions_that_count(
    make: Any, deltas: Deltas, tmp_path: Path
) -> None:
    """Against rows one by one, without padding, through peft and transformers alone."""
    values = {"method": "hidden_cos", "target_tuned": deltas[1]["sentiment"], "reduction": "sum"}
    told = scored(make, deltas, tmp_path, batch_size=4, **values)["targets"]["mc_taco"]
    target, rows = oracle(make, deltas, "sentiment")
    source, _ = oracle(make, deltas, "parity")
    wanted: dict[str, float] = {}
    for inputs, _ in rows:
        with torch.no_grad():
            one, two = (m(**inputs, output_hidden_states=True) for m in (target, source))
        for stack in ("encoder", "decoder"):
            pairs = zip(one[f"{stack}_hidden_states"], two[f"{stack}_hidden_states"], strict=True)
            for place, (a, b) in enumerate(pairs):
                block = f"{stack}.{place - 1 if place else 'embedding'}"
                cosine = (a * b).sum() / (a.norm() * b.norm())
                wanted[block] = wanted.get(block, 0.0) + float(cosine)
    found = {block: row["parity"] for block, row in told["blocks"].items()}
    assert found == {block: pytest.approx(value, rel=1e-5) for block, value in wanted.items()}
    assert found["encoder.embedding"] == pytest.approx(len(rows))  # no delta changes it
    assert told["blocks"]["decoder.1"]["sentiment"] == pytest.approx(len(rows))  # with itself
    trained = [value for block, value in wanted.items() if "embedding" not in block]
    assert told["scores"]["hidden_cos"]["parity"] == pytest.approx(sum(trained) / 4, rel=1e-5)
    names = {path.name for path in (tmp_path / "blocks").iterdir()}
    assert {"encoder_block_0_result.tsv", "decoder_block_embedding_result.tsv"} <= names
    assert (tmp_path / "blocks.png").stat().st_size > 100


def test_kl_leaves_out_what_both_models_rule_out() -> None:
    """P = (1/2, 1/2, 0), p = (1/4, 3/4, 0): 1/2 ln 2 + 1/2 ln(2/3)."""
    out = float("-inf")
    target, source = torch.tensor([[0.0, 0.0, out]]), torch.tensor([[1.0, 3.0, 0.0]]).log()
    found = token_sums(source, torch.tensor([0]), target)["kl"]
    assert found == pytest.approx(0.5 * torch.tensor(4 / 3).log().item(), abs=1e-7)


def test_blocks_are_merged_by_their_own_scores_and_the_rest_by_the_whole(
    make: Any, deltas: Deltas, tmp_path: Path
) -> None:

    values = {"method": "grand", "grand_mode": "eval"}
    told = scored(make, deltas, tmp_path, **values)["targets"]["mc_taco"]
    settings = MergeSettings(
        sources=deltas[1], target="mc_taco", method="grand", temperature=0.5, rule="cat",
        blocks=["encoder.0"],
    )  # fmt: skip
    scores = read_scores(str(tmp_path / "result.json"), "mc_taco", "grand")
    plan, sources = make_plan(settings, scores)
    block = torch.tensor([told["blocks"]["encoder.0"][name] for name in deltas[1]])
    wanted = (-block / 0.5).softmax(0).tolist()
    assert [*plan.block_weights["encoder.0"].values()] == pytest.approx(wanted)
    write_merged(merge(plan, sources), plan, tmp_path / "merged")
    made = load_file(tmp_path / "merged/adapter_model.safetensors")
    states = [
        load_file(Path(path) / "task1/adapter_model.safetensors") for path in deltas[1].values()
    ]
    for key in [one for one in made if ".lora_A." in one]:
        weights = wanted if "encoder.block.0" in key else [*plan.weights.values()]
        partner = key.replace("lora_A", "lora_B")
        exact = sum(
            w * 32 / len(state[key]) * (state[partner] @ state[key])
            for w, state in zip(weights, states, strict=True)
        )
        torch.testing.assert_close(made[partner] @ made[key], exact, rtol=0, atol=1e-5)
    every = make_plan(MergeSettings(**{**vars(settings), "blocks": "all"}), scores)[0]
    assert {*every.block_weights} == {"encoder.0", "encoder.1", "decoder.0", "decoder.1"}
    with pytest.raises(MergeError, match=r"merge.method=average has no scores of single blocks"):
        make_plan(MergeSettings(sources=deltas[1], blocks="all"))
    with pytest.raises(MergeError, match=r"'encoder.9' is no block of these deltas that grand has"):
        make_plan(MergeSettings(**{**vars(settings), "blocks": ["encoder.9"]}), scores)


def test_of_several_temperatures_the_merge_with_the_lowest_dev_loss_decides(
    make: Any, deltas: Deltas, tmp_path: Path
) -> None:
    """The losses are those of the merges, scored as sources by themselves."""
    grid = [0.001, 0.1, 10.0]
    told = scored(make, deltas, tmp_path / "1", method="loss", temperature=grid)
    losses = told["targets"]["mc_taco"]["dev_losses"]
    settings = MergeSettings(sources=deltas[1], target="mc_taco", method="loss", temperature=grid)
    scores = read_scores(str(tmp_path / "1/result.json"), "mc_taco", "loss")
    merged = {}
    for temperature in grid:
        plan, sources = make_plan(
            MergeSettings(
                sources=deltas[1], target="mc_taco", method="loss", temperature=temperature
            ),
            scores,
        )
        write_merged(merge(plan, sources), plan, tmp_path / str(temperature))
        merged[str(temperature)] = str(tmp_path / str(temperature))
    own = scored(make, (deltas[0], merged), tmp_path / "2", method="loss")
    by_itself = own["targets"]["mc_taco"]["scores"]["loss"]
    assert losses == {t: pytest.approx(loss, rel=1e-6) for t, loss in by_itself.items()}
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    plan, _ = make_plan(settings, scores)
    assert str(plan.temperature) == min(losses, key=lambda t: losses[t])
    assert plan.dev_losses == losses
    with pytest.raises(MergeError, match=r"has no dev loss of 0.2: run"):
        make_plan(MergeSettings(**{**vars(settings), "temperature": [0.1, 0.2]}), scores)


def test_a_pass_costs_a_forward_of_every_batch_and_source_and_no_more(
    make: Any, deltas: Deltas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N sources, 3 batches: three methods in 3 N forwards, kl with them in 3 more."""
    forwards = 0
    plain = T5ForConditionalGeneration.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(T5ForConditionalGeneration, "forward", counted)
    told = scored(make, deltas, tmp_path / "1", method="el2n", batch_size=3)
    assert told["targets"]["mc_taco"]["batches"] == 3 and len(deltas[1]) == 3
    assert forwards == 3 * 3
    forwards = 0
    scored(
        make, deltas, tmp_path / "2", method="kl", batch_size=3,
        target_tuned=deltas[1]["parity"],
    )  # fmt: skip
    assert forwards == 3 * 3 + 3


def test_rows_of_a_heat_map_stand_by_group_with_a_line_between(tmp_path: Path) -> None:

    groups = {"x": ["c", "a"], "y": ["b"]}
    assert grouped(["a", "b", "c", "d"], groups) == [["a", "c"], ["b"], ["d"]]
    weights = {"a": {"b": 1.0}, "b": {"a": 1.0}, "c": {"b": 0.0}}
    heat_map(tmp_path / "w.png", weights, ["a", "b"], dict.fromkeys(weights, 1.0), groups)
    image = Image.open(tmp_path / "w.png")
    shades = [
        image.getpixel((MARGIN + SIDE + CELL + 5, MARGIN + SIDE + row * CELL + 5))
        for row in range(3)
    ]
    assert shades == [(0, 0, 255), (255, 255, 255), (255, 255, 255)]  # a, c, b
    assert image.getpixel((MARGIN + 2, MARGIN + SIDE + 2 * CELL - 1)) == (0, 0, 0)
