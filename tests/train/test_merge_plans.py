"""Merge plans: made, read, applied; what is refused; the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.deltas import MODULES, change, lora
from support.train_app import transfer
from transformers import T5ForConditionalGeneration

from train.config.merging import MergeSettings
from train.merge.apply import merge, write_merged
from train.merge.plan import Scores, make_plan, read_plan, reread_sources
from train.merge.rules import MergeError
from train.merge.weights import ess, softmax, temperature_for

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/merge.json").read_text())
ORDER = GOLDEN["meta"]["source_order"]


def library(root: Path, *ranks: int, **config: Any) -> dict[str, str]:
    """Task -> folder; each with its own factors."""
    ranks = ranks or (2, 2, 2)
    return {
        f"s{i}": str(lora(root / f"s{i}", rank, 2 * rank, seed=i, **config))
        for i, rank in enumerate(ranks, start=1)
    }


def plan_of(**values: Any) -> Any:
    return make_plan(MergeSettings(**values))


def scores(method: str, by_source: dict[str, float], sign: int) -> Any:
    return Scores(method, "mean", sign, by_source, {})


# -- weights ---------------------------------------------------------------------------------------


def test_weights_and_ess_of_scores_have_the_reference_values() -> None:
    space, data = GOLDEN["weight_space"], GOLDEN["data_space"]
    known = {
        "cosine": space["cosine_mean_over_tensors"],
        "euclidean": space["euclid_sum_over_tensors"],
        "euclidean_tuned_deltas": space["euclid_sum_over_tensors"],
        "loss": data["scores"]["loss"],
        "el2n": data["scores"]["el2n_sum"],
        "kl": data["scores"]["kl_target_source_sum"],
        "logits_labels_cos": data["scores"]["logits_labels_cos_sum"],
        "performance": space["performance"]["gap"],
        "grand": data["grand"]["score_sum_over_batches"],
    }
    cases = [*space["cases"], *data["cases"]]
    cases += [{"method": "performance", **c} for c in space["performance"]["cases"]]
    cases += [{"method": "grand", **c} for c in data["grand"]["cases"]]
    assert len(cases) == 9
    for case in cases:
        own = dict(zip(ORDER, known[case["method"]], strict=True))
        found = softmax(own, case["sign"], case["temperature"])
        assert [*found.values()] == pytest.approx(case["weights"], abs=1e-9), case["method"]
        if "ess" in case:
            assert ess([*found.values()]) == pytest.approx(case["ess"], abs=1e-9)


def test_a_cold_softmax_takes_the_best_and_a_hot_one_the_average() -> None:
    own = {"a": 0.3, "b": 0.1, "c": 0.7}
    assert softmax(own, -1, 1e-9) == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert softmax(own, 1, 1e-9) == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert [*softmax(own, -1, 1e9).values()] == pytest.approx([1 / 3] * 3, abs=1e-8)
    found = [ess([*softmax(own, -1, 10**e).values()]) for e in (-3, -2, -1, 0, 1, 2)]
    assert found == sorted(found) and found[0] == 1.0 and found[-1] == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("wanted", [1.01, 1.7, 2.5, 2.99])
def test_the_temperature_solved_for_an_ess_gives_that_ess(wanted: float) -> None:
    own = {"a": 0.3, "b": 0.1, "c": 0.7}
    t = temperature_for(own, -1, wanted)
    assert ess([*softmax(own, -1, t).values()]) == pytest.approx(wanted, abs=1e-6)


def test_manual_is_the_average_of_the_targets_group_without_the_target(tmp_path: Path) -> None:
    groups = {"one": ["t", "s1", "s3"], "two": ["s2"]}
    plan, _ = plan_of(
        sources=library(tmp_path), method="manual", target="t", groups=groups
    )  # fmt: skip
    assert plan.weights == {"s1": 0.5, "s2": 0.0, "s3": 0.5} and plan.ess == 2


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written_and_applied_without_scores(tmp_path: Path) -> None:
    asked = MergeSettings(
        sources=library(tmp_path), target="t", method="loss", temperature=0.5, scores="given"
    )
    plan, sources = make_plan(asked, scores("loss", {"s1": 0.1, "s2": 0.4, "s3": 0.2}, -1))
    (tmp_path / "plan.json").write_text(plan.text())
    again = read_plan(tmp_path / "plan.json")
    assert again == plan and again.text() == plan.text()
    found, wanted = merge(again, reread_sources(again)), merge(plan, sources)
    assert found.result == wanted.result
    raised = [math.exp(-s / 0.5) for s in (0.1, 0.4, 0.2)]
    assert [*plan.weights.values()] == pytest.approx([r / sum(raised) for r in raised])


def test_permuted_sources_permute_the_weights_and_leave_the_delta(tmp_path: Path) -> None:
    where, own = library(tmp_path, 2, 4, 3), {"s1": 0.1, "s2": 0.4, "s3": 0.2}
    products = []
    for order in (["s1", "s2", "s3"], ["s3", "s1", "s2"]):
        asked = MergeSettings(
            sources={n: where[n] for n in order}, method="loss", temperature=0.3, rank=9
        )
        plan, sources = make_plan(asked, scores("loss", own, -1))
        assert [*plan.weights] == order
        state = merge(plan, sources).state
        pairs = [[state[f"{m}.lora_{f}.weight"].double() for f in "BA"] for m in MODULES]
        products.append((plan.weights, [b @ a for b, a in pairs]))
    assert products[0][0] == pytest.approx(products[1][0])
    for one, other in zip(products[0][1], products[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # factors are saved in float32


@pytest.mark.parametrize("rule", ["dare_linear", "dare_ties"])
def test_dare_drops_the_same_entries_whatever_the_order_of_sources(
    rule: str, tmp_path: Path
) -> None:
    where, found = library(tmp_path), []
    for order in (["s1", "s2", "s3"], ["s2", "s3", "s1"]):
        plan, sources = plan_of(
            sources={n: where[n] for n in order}, rule=rule, density=0.5, rank=5, seed=3
        )
        state = merge(plan, sources).state
        found.append(
            state[f"{MODULES[0]}.lora_B.weight"] @ state[f"{MODULES[0]}.lora_A.weight"]
        )  # fmt: skip
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_poisoned_delta_of_the_target_itself_changes_nothing(tmp_path: Path) -> None:
    where = library(tmp_path)
    before = plan_of(sources=where, target="s2")
    change(
        Path(where["s2"]), f"{MODULES[0]}.lora_A.weight", torch.full((2, 6), float("nan"))
    )  # fmt: skip
    after = plan_of(sources=where, target="s2")
    assert before[0].text() == after[0].text() and before[0].excluded == ["s2"]
    assert merge(*before).result == merge(*after).result


@pytest.mark.parametrize(
    "rule", ["svd", "factor", "cat", "ties", "dare_ties", "slerp", "model_stock"]
)
def test_weight_one_on_one_source_copies_its_files(rule: str, tmp_path: Path) -> None:

    where = library(tmp_path)
    weights = {"s1": 0.0, "s2": 1.0, "s3": 0.0}
    plan, sources = plan_of(sources=where, method="given", weights=weights, rule=rule, density=0.5)
    write_merged(merge(plan, sources), plan, tmp_path / "out")
    for name, value in load_file(Path(where["s2"]) / "adapter_model.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "out/adapter_model.safetensors")[name])
    told = [
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (Path(where["s2"]), tmp_path / "out")
    ]
    assert told[0] == told[1]


def test_merging_again_gives_the_same_bytes(tmp_path: Path) -> None:
    where, out, bytes_of = library(tmp_path, 4, 8, 2), tmp_path / "out", []
    for _ in range(2):
        plan, sources = plan_of(sources=where, target="t")
        write_merged(merge(plan, sources), plan, out)
        bytes_of.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert bytes_of[0] == bytes_of[1]
    assert {*bytes_of[0]} == {"adapter_config.json", "adapter_model.safetensors", "merge_plan.json"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_ties_of_identical_weights_is_the_mean_of_what_agrees(tmp_path: Path) -> None:
    """Shares of a softmax are scaled to a mean of 1, which TIES' own division expects."""
    where = library(tmp_path)
    shutil.copytree(where["s1"], tmp_path / "copy")
    change(
        tmp_path / "copy", f"{MODULES[0]}.lora_A.weight", torch.ones(2, 6) * 1e-3
    )  # not the same delta
    plan, sources = plan_of(
        sources={"a": where["s1"], "b": str(tmp_path / "copy")}, rule="ties", rank=5
    )
    state, old = merge(plan, sources).state, sources[0].state
    a, b = (f"{MODULES[1]}.lora_{f}.weight" for f in "AB")
    torch.testing.assert_close(state[b] @ state[a], 2 * old[b] @ old[a], rtol=0, atol=1e-5)


def test_the_average_of_ia3_and_of_named_tensors_is_entry_by_entry(tmp_path: Path) -> None:
    space = GOLDEN["weight_space"]
    where = {}
    for name in ORDER:
        state = {k: torch.tensor(v, dtype=torch.float64) for k, v in space["sources"][name].items()}
        torch.save(state, tmp_path / f"{name}.pt")
        where[name] = str(tmp_path / f"{name}.pt")
    made = merge(*plan_of(sources=where)).state
    for key, wanted in space["average"].items():
        assert made[key].tolist() == pytest.approx(wanted, abs=1e-9)
    for name in ORDER:  # the same as task arithmetic, where the start is subtracted and added again
        config = {"peft_type": "IA3", "base_model_name_or_path": "base"}
        folder = tmp_path / f"ia3_{name}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(torch.load(where[name], weights_only=True), folder / "adapter_model.safetensors")
        where[name] = str(folder)
    made = merge(*plan_of(sources=where, rule="task_arithmetic")).state
    for key, wanted in space["average"].items():
        assert made[key].tolist() == pytest.approx(wanted, abs=1e-9)


# -- refusals --------------------------------------------------------------------------------------

by_config = pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_rslora": True}, r"source 's1': use_rslora=True: its scaling is alpha / sqrt\(r\)"),
        ({"use_dora": True}, "use_dora=True: it has magnitudes"),
        ({"lora_bias": True}, "lora_bias=True: it has a bias"),
        ({"bias": "all"}, "bias=all: it trained biases"),
        ({"rank_pattern": {"q": 3}}, "rank_pattern={'q': 3}: its modules have different ranks"),
        ({"alpha_pattern": {"q": 3}}, "alpha_pattern"),
        ({"modules_to_save": ["head"]}, r"modules_to_save=\['head'\]: it trained whole layers"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"peft_type": "ADALORA"}, "of type ADALORA, which cannot be merged"),
    ],
)


@by_config
@pytest.mark.parametrize("several", [True, False], ids=["several", "one"])
def test_adapters_that_no_rule_can_merge_are_refused_by_name(
    config: dict[str, Any], words: str, several: bool, tmp_path: Path
) -> None:
    where = library(tmp_path, *((2, 2) if several else (2,)), **config)
    with pytest.raises(MergeError, match=words):
        plan_of(sources=where)


def test_tensors_beside_the_factors_are_refused_by_name(tmp_path: Path) -> None:
    where = library(tmp_path)
    for folder in where.values():
        change(Path(folder), "base_model.model.head.weight", torch.ones(2))
    with pytest.raises(
        MergeError, match=r"'s1': tensor 'base_model.model.head.weight'.*modules_to"
    ):
        merge(*plan_of(sources=where))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (torch.full((2, 6), float("nan")), "lora_A.weight' of 's2' holds a NaN"),
        (torch.ones(2, 7), r"q': source 2 is for a layer of \(5, 7\), source 1"),
        (None, "has no partner"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    damage: Any, words: str, tmp_path: Path
) -> None:
    where = library(tmp_path)
    change(Path(where["s2"]), f"{MODULES[0]}.lora_A.weight", damage)
    with pytest.raises(MergeError, match=words):
        merge(*plan_of(sources=where))


def test_a_module_only_one_source_has_is_refused_by_name(tmp_path: Path) -> None:
    where = library(tmp_path)
    for factor in "AB":
        change(Path(where["s3"]), f"{MODULES[0]}.lora_{factor}.weight", None)
    with pytest.raises(MergeError, match=f"only one of them has '{MODULES[0]}'"):
        merge(*plan_of(sources=where))


def test_tensor_types_that_differ_are_refused_under_entry_rules(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(2, dtype=torch.float64)}, tmp_path / "b.pt")
    where = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    with pytest.raises(MergeError, match=r"'b' has dtype torch.float64, 'a' has torch.float32"):
        merge(*plan_of(sources=where))


def test_a_file_that_is_more_than_tensors_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(MergeError, match=r"a\.pt cannot be read as tensors"):
        plan_of(sources=[str(tmp_path / "a.pt")])


def test_other_base_models_other_ranks_and_other_flags_are_refused_by_name(tmp_path: Path) -> None:
    one = str(lora(tmp_path / "one", seed=1))
    for name, config, words in (
        ("base", {"base_model_name_or_path": "else"}, r"base model base.*'base' for else"),
        ("flags", {"fan_in_fan_out": True}, r"'flags' has {'fan_in_fan_out': True}"),
    ):
        other = str(lora(tmp_path / name, seed=2, **config))
        with pytest.raises(MergeError, match=words):
            plan_of(sources={"one": one, name: other})
    other = str(lora(tmp_path / "rank", rank=3, alpha=6, seed=2))
    with pytest.raises(MergeError, match=r"'one' has r=2, alpha=4, 'rank' has r=3, alpha=6"):
        merge(*plan_of(sources={"one": one, "rank": other}, rule="factor"))


def test_factors_that_began_differently_are_averaged_with_a_warning(tmp_path: Path) -> None:
    plan, sources = plan_of(sources=library(tmp_path, 2, 2), rule="factor")
    with pytest.warns(UserWarning, match="the A of 's1' and 's2'.*began differently"):
        merge(plan, sources)


def test_the_same_delta_twice_is_refused_and_another_alpha_makes_it_another(
    tmp_path: Path,
) -> None:
    one = lora(tmp_path / "one")
    two = lora(tmp_path / "two")
    with pytest.raises(MergeError, match=r"'one' .*one\) and 'two' .*two\) are the same delta"):
        plan_of(sources={"one": str(one), "two": str(two)})
    shutil.rmtree(two)
    lora(two, alpha=8)
    assert plan_of(sources={"one": str(one), "two": str(two)})[0].ess == 2


def test_the_target_among_the_sources_is_refused_also_under_another_name(tmp_path: Path) -> None:
    where = library(tmp_path)
    with pytest.raises(MergeError, match="delta of the target 't' itself"):
        plan_of(sources={**where, "t": where["s1"]}, target="t")
    with pytest.raises(MergeError, match="no delta but that of the target 's1'"):
        plan_of(sources={"s1": where["s1"]}, target="s1")
    told = json.loads(plan_of(sources=where, target="t")[0].text())
    (tmp_path / "plan.json").write_text(json.dumps({**told, "target": "s2"}))
    with pytest.raises(MergeError, match="target 's2' is among the sources s1, s2, s3"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused_by_its_source(bad: float, tmp_path: Path) -> None:
    asked = MergeSettings(sources=library(tmp_path), method="loss", temperature=1.0)
    with pytest.raises(MergeError, match=f"score of source 's2' is {bad}"):
        make_plan(asked, scores("loss", {"s1": 0.1, "s2": bad, "s3": 0.2}, -1))


def test_a_source_that_changed_since_the_plan_was_made_is_refused(tmp_path: Path) -> None:
    where = library(tmp_path)
    plan, _ = plan_of(sources=where)
    change(Path(where["s2"]), f"{MODULES[0]}.lora_A.weight", torch.ones(2, 6))
    with pytest.raises(MergeError, match=r"source 's2' .* is not what the plan has: sha256="):
        reread_sources(plan)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "given", "weights": {"s1": 1.0}}, "'s2' is in one of them only"),
        (
            {"method": "given", "weights": {"s1": 1.0, "s2": math.inf, "s3": 0.0}},
            "inf is not a finite number",
        ),
        ({"method": "loss"}, "needs scores"),
        ({"method": "manual", "target": "t", "groups": {"g": ["s1"]}}, "'t' is in 0 of the groups"),
        ({"rule": "linear"}, "rule=linear: not for deltas of kind lora"),
        ({"sources": None}, "merge.sources is empty"),
        ({"sources": {"a": "nowhere"}}, "source 'a': there is no nowhere"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    asked: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=words):
        plan_of(**{"sources": library(tmp_path), **asked})


def test_a_folder_that_is_no_merge_is_not_overwritten(tmp_path: Path) -> None:
    plan, sources = plan_of(sources=library(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    with pytest.raises(MergeError, match="holds something that is no merge"):
        write_merged(merge(plan, sources), plan, tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "kept"


# -- peft ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["svd", "cat"])
def test_a_merged_lora_of_ranks_4_8_2_gives_pefts_model_the_summed_weights(
    rule: str, folders: Any, tmp_path: Path
) -> None:
    """Logits of the reloaded adapter against the base with sum w_j dW_j in its weights."""

    def base() -> Any:
        return T5ForConditionalGeneration.from_pretrained(folders("t5")).eval()

    torch.manual_seed(0)
    weights = {"a": 0.7, "b": -0.2, "c": 0.5}
    where, summed = {}, base()
    layers = dict(summed.named_modules())
    for (name, weight), rank in zip(weights.items(), (4, 8, 2), strict=True):
        config = LoraConfig(r=rank, lora_alpha=3 * rank - 1, target_modules=["q", "v"])
        model = get_peft_model(base(), config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        for path, module in model.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                layers[path].weight.data += weight * module.get_delta_weight("default").detach()
        model.save_pretrained(tmp_path / name)
        where[name] = str(tmp_path / name)
    plan, sources = plan_of(
        sources=where,
        method="given",
        weights=weights,
        rule=rule,
        rank=14 if rule == "svd" else None,
    )
    done = write_merged(merge(plan, sources), plan, tmp_path / "out")
    assert done.result is not None and done.result["rank"] == 14
    loaded = PeftModel.from_pretrained(base(), tmp_path / "out").eval()
    given = {
        "input_ids": torch.arange(3, 13).reshape(2, 5),
        "labels": torch.tensor([[5, 6], [7, 1]]),
    }
    with torch.no_grad():
        found, wanted = loaded(**given).logits, summed(**given).logits
        plain = base()(**given).logits
    assert (wanted - plain).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_merge_and_inspect_work_from_the_command_line(tmp_path: Path) -> None:
    library(tmp_path / "deltas", 4, 8, 2)
    made = transfer(tmp_path, "plan", "merge.sources=deltas", "merge.target=s3", "hydra.run.dir=1")
    assert made.returncode == 0, made.stderr
    assert "without s3" in made.stdout and (tmp_path / "1/merge_plan.json").is_file()
    done = transfer(tmp_path, "merge", "merge.plan=1/merge_plan.json", "hydra.run.dir=2")
    assert done.returncode == 0, done.stderr
    assert "result  rank 8" in done.stdout
    first = {p.name: p.read_bytes() for p in (tmp_path / "2/merged").iterdir()}
    again = transfer(tmp_path, "merge", "merge.plan=1/merge_plan.json", "hydra.run.dir=2")
    assert again.returncode == 0
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "2/merged").iterdir()}
    change(tmp_path / "deltas/s1", f"{MODULES[0]}.lora_A.weight", torch.ones(4, 6))
    shown = transfer(tmp_path, "inspect", "merge.plan=2/merged/merge_plan.json")
    assert shown.returncode == 1 and "source 's1' (deltas/s1) is not what" in shown.stdout


def test_a_mistake_on_the_command_line_is_one_message(tmp_path: Path) -> None:
    done = transfer(tmp_path, "merge", "merge.sources=[a]", "merge.tempratur=1")
    assert done.returncode == 1 and "did you mean temperature?" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert transfer(tmp_path, "mix").returncode == 2
