"""Jobs of a chain whose delta starts as a merge of earlier tasks' deltas."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import finish

from autocl_sweeper.errors import SkippedError
from train.config.typed import SettingsError
from train.delta.delta import delta_of
from train.merge.plan import read_plan
from train.start import is_asked_for, pool_of

QUICK = ("trainer.max_steps=2", "trainer.learning_rate=3e-2", "evaluate_test=false")
DELTAS = {
    "seqlora": ("delta=seqlora", "delta.lora_dim=3"),
    "adapter": ("delta=adapter", "delta.size=3"),
}
STILL = "trainer.learning_rate=0"


def of(folders: Any, kind: str) -> list[str]:
    return ["model=pretrained", f"model.path={folders('t5')}", *DELTAS[kind], *QUICK]


@pytest.fixture(scope="module", params=["seqlora", pytest.param("adapter", marks=pytest.mark.slow)])
def chain(
    request: Any, make: Any, folders: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """Overrides of a job, and a folder with a chain of two tasks."""
    root = tmp_path_factory.mktemp("chain")
    own = of(folders, request.param)
    finish(make(*own, "task=sentiment"), root / "1")
    finish(make(*own, "task=parity", f"init_from={root / '1/checkpoint'}"), root / "2")
    return own, root


def state(folder: Path, place: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint/task{place}/adapter_model.safetensors")


def products(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of LoRA the delta weights, up to the scaling that all share; others as they are."""
    made = {k: v for k, v in tensors.items() if ".lora_" not in k}
    for key in [k for k in tensors if ".lora_A." in k]:
        made[key] = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    return made


def test_a_job_starts_as_the_average_of_its_lineage_and_writes_its_plan(
    chain: Any, make: Any, tmp_path: Path
) -> None:
    own, root = chain
    more = ("task=arithmetic", f"init_from={root / '2/checkpoint'}", "merge.init=average", STILL)
    told = finish(make(*own, *more, "delta.lora_dim=6"), tmp_path / "3")
    assert told["weight_sentiment"] == told["weight_parity"] == 0.5 and told["merge_ess"] == 2
    plan = json.loads((tmp_path / "3/merge_plan.json").read_text())
    assert [one["name"] for one in plan["sources"]] == ["sentiment", "parity"]
    start = products(state(tmp_path / "3", 3))
    one, two = (products(state(root / str(n), n)) for n in (1, 2))
    # A LoRA of rank 6 holds the sum of two of rank 3; its alpha / rank is half of theirs.
    factor = 2 if any("lora" in key for key in start) else 1
    for key, value in start.items():
        wanted = factor * (one[key] + two[key]) / 2
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)
    # The same job again has the same plan and the same start.
    finish(make(*own, *more, "delta.lora_dim=6"), tmp_path / "4")
    plans = {(tmp_path / n / "merge_plan.json").read_bytes() for n in "34"}
    again = state(tmp_path / "4", 3)
    assert len(plans) == 1
    assert all(torch.equal(v, again[k]) for k, v in state(tmp_path / "3", 3).items())


def test_a_score_weighs_the_lineage_and_one_source_is_taken_as_it_is(
    chain: Any, make: Any, tmp_path: Path
) -> None:
    own, root = chain
    more = (*own, f"init_from={root / '2/checkpoint'}", STILL)
    loss = ("task=arithmetic", "merge.init=loss", "merge.temperature=0.5")
    told = finish(make(*more, *loss), tmp_path / "3")
    weights = [told["weight_sentiment"], told["weight_parity"]]
    assert sum(weights) == pytest.approx(1) and weights[0] != weights[1]
    # Blocks by their own scores, at the temperature whose merge is best on dev.
    grid = ("merge.init=grand", "merge.temperature=[0.01,10.0]", "merge.blocks=all")
    finish(make(*more, "task=arithmetic", *grid, "delta.lora_dim=6"), tmp_path / "5")
    plan = read_plan(tmp_path / "5/merge_plan.json")
    assert {*plan.dev_losses} == {"0.01", "10.0"} and "encoder.1" in plan.block_weights
    assert str(plan.temperature) == min(plan.dev_losses, key=lambda t: plan.dev_losses[t])
    assert plan.text() == (tmp_path / "5/merge_plan.json").read_text()
    # The target's own delta is never in its pool: one is left.
    alone = ("task=parity", "merge.init=loss", "merge.target_ess=1")
    told = finish(make(*more, *alone), tmp_path / "4")
    assert told["weight_sentiment"] == 1 and "weight_parity" not in told
    start, source = state(tmp_path / "4", 3), state(root / "1", 1)
    for key, value in products(start).items():
        torch.testing.assert_close(value, products(source)[key], rtol=0, atol=1e-6)


def test_a_beam_gives_its_own_deltas_once_each_and_none_of_another_base(
    chain: Any, make: Any, tmp_path: Path, caplog: Any
) -> None:
    own, root = chain
    finish(make(*own, "delta.first=full", "task=sentiment"), tmp_path / "whole")
    begun = f"init_from={tmp_path / 'whole/checkpoint'}"
    finish(make(*own, "task=parity", begun), tmp_path / "other")
    for place in "12":  # with its parent
        shutil.copytree(root / place, tmp_path / place)
    places = [root / "2", tmp_path / "2", tmp_path / "other", root / "1"]
    beam = [f"{place}/checkpoint" for place in places]
    more = (f"init_from={beam[0]}", f"merge.sources=[{','.join(beam)}]", "merge.pool=beam", STILL)
    with caplog.at_level(logging.INFO, logger="train.start"):
        pool = pool_of(make(*own, "task=arithmetic", *more))
    assert pool == {"parity_1": beam[0], "sentiment_4": beam[3]}  # a copy counts once
    assert "other/checkpoint is for another base model" in caplog.text
    assert pool_of(make(*own, "task=parity", *more)) == {"sentiment_4": beam[3]}
    # An extra start is the merge; any other job of the same sweep goes on from its parent.
    extra = (*own, "task=arithmetic", *more, "merge.init=[random,average]", "merge.extra_parents=2")
    told = finish(make(*extra, "merge.extra=2"), tmp_path / "merged")
    assert told["weight_parity_1"] == told["weight_sentiment_4"] == 0.5
    assert told["merged_from"] == {"parity_1": 0.5, "sentiment_4": 0.5}  # of no sweep
    assert told["seconds_merge"] > 0
    told = finish(make(*extra), tmp_path / "parents")
    assert "merge_ess" not in told
    start, parent = state(tmp_path / "parents", 3), state(root / "2", 2)
    assert all(torch.equal(value, parent[key]) for key, value in start.items())
    # An extra start with one delta or none in its pool would repeat another job.
    extra = (*own, "merge.init=average", "merge.extra_parents=1", "merge.extra=1")
    with pytest.raises(SkippedError, match=r"merge.pool=lineage has only the delta of sentiment"):
        finish(make(*extra, "task=parity", more[0]), tmp_path / "lone")
    with pytest.raises(SkippedError, match=r"has no delta at this stage, so that .* random"):
        finish(make(*extra, "task=sentiment"), tmp_path / "first")


def test_given_weights_are_evaluated_without_training(
    chain: Any, make: Any, tmp_path: Path
) -> None:
    own, root = chain
    run = make(
        *own, "task=arithmetic", "merge.init=given", "merge.pool=library", "trainer.do_train=false",
        f"merge.sources={{sentiment:{root}/1/checkpoint,parity:{root}/2/checkpoint}}",
        "merge.weights={sentiment:-0.5,parity:1.2}",
        "delta.lora_dim=6" if "seqlora" in own[2] else "delta.size=3",
    )  # fmt: skip
    told = finish(run, tmp_path / "3")
    assert told["steps"] == 0 and told["weight_parity"] == 1.2
    results = json.loads((tmp_path / "3/all_results.json").read_text())
    loss = results["metrics"]["arithmetic"]["loss"]
    assert told["lorahub"] == pytest.approx(loss + 0.05 * (0.5 + 1.2) / 2)
    start = products(state(tmp_path / "3", 1))
    one, two = (products(state(root / str(n), n)) for n in (1, 2))
    factor = 2 if any("lora" in key for key in start) else 1
    for key, value in start.items():
        wanted = factor * (-0.5 * one[key] + 1.2 * two[key])
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)


def test_a_random_start_is_not_the_parents(chain: Any, make: Any, tmp_path: Path) -> None:
    own, root = chain
    begun = f"init_from={root / '2/checkpoint'}"
    finish(make(*own, "task=arithmetic", begun, "merge.init=random", STILL), tmp_path / "3")
    start, parent = state(tmp_path / "3", 3), state(root / "2", 2)
    assert any(not torch.allclose(v, parent[k]) for k, v in start.items())
    assert not (tmp_path / "3/merge_plan.json").exists()


def test_an_empty_pool_is_explained_and_starts_at_random(
    make: Any, folders: Any, tmp_path: Path, caplog: Any
) -> None:
    own = of(folders, "adapter")
    with caplog.at_level(logging.INFO, logger="train.start"):
        told = finish(make(*own, "task=sentiment", "merge.init=average"), tmp_path / "1")
    assert "no earlier delta in the pool" in caplog.text and "merge_ess" not in told


def test_starts_that_mean_nothing_are_refused_and_olora_is_warned(
    make: Any, folders: Any, caplog: Any
) -> None:
    def refused(*more: str) -> None:
        run = make(*own, *more)
        run.merge.refuse_for_a_job(run.delta.kind, run.delta.start_from, has_parent=True)

    own = of(folders, "adapter")

    def asked(*more: str) -> bool:
        run = make(*own, "merge.init=average", *more)
        return is_asked_for(run, delta_of(run.delta))

    average, beam = "merge.init=average", ("merge.init=manual", "merge.pool=beam")
    for more, words in (
        ((average, "delta=seqft"), r"merge.init=average: delta._name=seqft goes on"),
        ((average, "delta.start_from=x"), r"delta.start_from=x says the start as well"),
        (("merge.init=loss",), r"merge.init=loss: a temperature has to be given"),
        (("merge.extra_parents=1",), r"merge.extra_parents=1: merge.init=None says what 0 of them"),
        (("merge.init=[last,random]",), r"merge.extra_parents=0: .* says what 2 of them"),
        ((average, "merge.extra=1"), r"merge.extra=1: there are merge.extra_parents=0 in all"),
        ((average, "merge.pool=beam"), r"pool=beam: merge.sources has .*handover.merge.sources"),
        ((*beam, "merge.sources=[x]"), r"merge.init=manual: .* are all of one task"),
        (("merge.density=0.5",), r"merge.density=0.5: has no effect on a job without merge.init"),
    ):
        with pytest.raises(SettingsError, match=words):
            refused(*more)
    refused("merge.init=loss", "merge.target_ess=2")
    assert asked("delta=lora", "delta.lamda_1=0") and caplog.text == ""
    assert asked("delta=lora", "delta.lamda_1=0.5")
    assert "the orthogonal loss starts high" in caplog.text
    run = make(*own, "merge.init=last")
    assert not is_asked_for(run, delta_of(run.delta))
