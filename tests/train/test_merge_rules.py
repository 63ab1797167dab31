"""Merge rules against numbers worked out elsewhere, by hand, and against peft's own merge."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from train.merge import lora, rules
from train.merge.lora import LoRA
from train.merge.rules import MergeError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/merge.json").read_text())
MODERN, LORA = GOLDEN["modern"], GOLDEN["lora"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = [torch.float64, torch.float32]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tensor(values: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def state(values: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {key: tensor(value, dtype) for key, value in values.items()}


def close(found: torch.Tensor, wanted: Any, dtype: torch.dtype = torch.float64) -> None:
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(found, tensor(wanted, dtype), **tolerance)


def vectors(dtype: torch.dtype = torch.float64) -> list[dict[str, torch.Tensor]]:
    return [{"v": tensor(v, dtype)} for v in MODERN["task_vectors"]]


def loras(dtype: torch.dtype = torch.float64) -> list[Any]:
    made = []
    for name in GOLDEN["meta"]["source_order"]:
        pair = (tensor(LORA["A"][name], dtype), tensor(LORA["B"][name], dtype))
        made.append(LoRA({"m": pair}, LORA["scaling"]))
    return made


def delta(made: Any) -> torch.Tensor:
    a, b = made.modules["m"]
    return b @ a


@by_dtype
def test_averages_and_weighted_sums_have_the_reference_values(dtype: torch.dtype) -> None:
    space = GOLDEN["weight_space"]
    order = GOLDEN["meta"]["source_order"]
    of = {k: [state(space[k][name], dtype) for name in order] for k in ("sources", "tuned")}
    sources = of["sources"]
    third = rules.linear(sources, [1 / 3] * 3)
    manual = rules.linear([sources[0], sources[2]], [0.5, 0.5])
    for key in ("a", "b"):
        close(third[key], space["average"][key], dtype)
        close(manual[key], space["manual_division_s1_s3"][key], dtype)
    for case in [*space["cases"], *space["performance"]["cases"]]:
        found = rules.linear(of[case["merge_of"]], case["weights"])
        for key, wanted in case["merged"].items():
            close(found[key], wanted, dtype)


@by_dtype
def test_rules_on_task_vectors_have_the_reference_values(dtype: torch.dtype) -> None:
    taus = vectors(dtype)
    case = MODERN["task_arithmetic"]
    close(rules.linear(taus, case["weights"])["v"], case["out"], dtype)
    case = MODERN["magnitude_prune"]
    pruned = rules.magnitude_prune(taus, case["weights"], case["density"])
    close(pruned["v"], case["out"], dtype)
    [case] = MODERN["ties"]
    for tau, wanted in zip(taus, case["trimmed"], strict=True):
        close(rules.trimmed(tau["v"], case["density"]), wanted, dtype)
    close(rules.ties(taus, case["weights"], case["density"])["v"], case["out"], dtype)
    case = MODERN["dare_linear_given_mask"]
    masks = [{"v": tensor(m, dtype)} for m in case["keep_mask"]]
    found = rules.dare(taus, case["weights"], case["density"], masks)
    close(found["v"], case["out"], dtype)
    case = MODERN["slerp_0_2"]
    close(rules.slerp([taus[0], taus[2]], [case["t"]])["v"], case["out"], dtype)
    case = MODERN["model_stock"]
    assert rules.interpolation(torch.stack([t["v"].double() for t in vectors()])) == pytest.approx(
        case["t"], abs=1e-9
    )
    close(rules.model_stock(taus, clamp=False)["v"], case["out"], dtype)


@by_dtype
def test_regmean_has_the_reference_values(dtype: torch.dtype) -> None:
    case = MODERN["regmean"]
    inputs = [tensor(x, dtype) for x in case["X"]]
    layers = [tensor(w, dtype) for w in case["W"]]
    for scale, wanted in case["out_by_offdiag_scale"].items():
        close(rules.regmean(layers, [x.T @ x for x in inputs], float(scale)), wanted, dtype)


def test_regmean_minimises_the_distance_to_each_layers_answers() -> None:
    """Least squares over the rows of all inputs, by torch's own solver."""
    case = MODERN["regmean"]
    inputs, layers = [tensor(x) for x in case["X"]], [tensor(w) for w in case["W"]]
    wanted = torch.cat([x @ w.T for x, w in zip(inputs, layers, strict=True)])
    best = torch.linalg.lstsq(torch.cat(inputs), wanted).solution.T
    torch.testing.assert_close(rules.regmean(layers, [x.T @ x for x in inputs]), best)
    same = rules.regmean([layers[0]] * 2, [x.T @ x for x in inputs])
    torch.testing.assert_close(same, layers[0], rtol=0, atol=1e-12)
    few = [x[:1].T @ x[:1] for x in inputs]
    with pytest.raises(MergeError, match="singular"):
        rules.regmean(layers, few)
    assert torch.isfinite(rules.regmean(layers, few, 0.9)).all()


def test_lorahubs_objective_has_the_reference_value() -> None:
    case = MODERN["lorahub_objective"]
    found = rules.lorahub_objective(case["loss"], case["w"], case["alpha"])
    assert found == pytest.approx(case["value"], abs=1e-12)


@by_dtype
def test_lora_rules_have_the_reference_values(dtype: torch.dtype) -> None:
    sources, weights = loras(dtype), LORA["weights"]
    close(delta(lora.cat(sources, weights)), LORA["exact_delta"], dtype)
    by_factor = lora.factor(sources, weights)
    close(delta(by_factor), LORA["factor_average_delta"], dtype)
    by_svd = lora.svd(sources, weights)
    close(delta(by_svd), LORA["svd_rank_r_delta"], dtype)
    assert lora.rank_of(by_svd.modules) == LORA["r"]
    tolerance = TOLERANCE[dtype]
    assert by_factor.errors["m"] == pytest.approx(LORA["rel_err_factor_average"], abs=tolerance)
    assert by_svd.errors["m"] == pytest.approx(LORA["rel_err_svd_rank_r"], abs=tolerance)


def test_identical_modules_average_to_themselves_and_not_to_pefts_threefold() -> None:
    same, third = [loras()[0]] * 3, [1 / 3] * 3
    a, b = same[0].modules["m"]
    wanted = same[0].scaling * b @ a
    ratios = LORA["identical_modules_uniform_average_ratio"]
    for rule, key in ((lora.cat, "exact"), (lora.svd, "exact"), (lora.factor, "factor_average")):
        torch.testing.assert_close(delta(rule(same, third)), ratios[key] * wanted)
    # What peft's combination_type=linear does, written out: sqrt(w s) on both factors.
    root = math.sqrt(same[0].scaling / 3)
    pefts = (3 * root * b) @ (3 * root * a)
    torch.testing.assert_close(pefts, ratios["peft_linear"] * wanted)


def test_svd_of_energy_keeps_the_rank_that_its_share_of_squares_needs() -> None:
    exact = tensor(LORA["exact_delta"])
    squares = torch.linalg.svdvals(exact).square()
    share = (squares.cumsum(0) / squares.sum()).tolist()
    for rank in (1, 2, 3):
        made = lora.svd(loras(), LORA["weights"], energy=share[rank - 1] - 1e-6)
        assert lora.rank_of(made.modules) == rank
    whole = lora.svd(loras(), LORA["weights"], energy=1.0)
    assert lora.rank_of(whole.modules) == 3  # of a 3 x 4 matrix
    close(delta(whole), LORA["exact_delta"])


def test_a_rank_beyond_the_layers_own_is_filled_with_zeros() -> None:
    made = lora.svd(loras(), LORA["weights"], rank=5)
    a, b = made.modules["m"]
    assert a.shape == (5, 4) and b.shape == (3, 5)
    close(delta(made), LORA["exact_delta"])


RULES = ["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties", "slerp", "model_stock"]


def merged(rule: str, states: Sequence[dict[str, torch.Tensor]], weights: Sequence[float]) -> Any:
    """`rule` with nothing trimmed or dropped."""
    full = [{k: torch.ones_like(v) for k, v in one.items()} for one in states]
    n = len(states)
    return {
        "linear": lambda: rules.linear(states, weights),
        "magnitude_prune": lambda: rules.magnitude_prune(states, weights),
        "ties": lambda: rules.ties(states, [n * w for w in weights]),
        "dare_linear": lambda: rules.dare(states, weights, 1.0, full),
        "dare_ties": lambda: rules.dare(states, [n * w for w in weights], 1.0, full, "frequency"),
        "slerp": lambda: rules.slerp(states, rules.shares_to_steps(weights)),
        "model_stock": lambda: rules.model_stock(states),
    }[rule]()


@pytest.mark.parametrize("rule", RULES)
def test_identical_sources_give_the_same_delta(rule: str) -> None:
    [one, *_] = vectors()
    found = merged(rule, [one, one, one], [1 / 3] * 3)
    torch.testing.assert_close(found["v"], one["v"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "slerp"])
def test_permuted_sources_give_the_same_merge(rule: str) -> None:
    states, weights = vectors(), [0.5, 0.3, 0.2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Model Stock's bounds
        found = merged(rule, states, weights)
        turned = merged(rule, states[::-1], weights[::-1])
    torch.testing.assert_close(found["v"], turned["v"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["cat", "svd", "factor"])
def test_permuted_loras_give_the_same_delta_weight(rule: str) -> None:
    call = getattr(lora, rule)
    found, turned = call(loras(), LORA["weights"]), call(loras()[::-1], LORA["weights"][::-1])
    torch.testing.assert_close(delta(found), delta(turned), rtol=0, atol=1e-12)


def test_ties_by_frequency_counts_signs_and_by_total_their_sizes() -> None:
    states = [{"v": tensor([5.0])}, {"v": tensor([-1.0])}, {"v": tensor([-2.0])}]
    assert rules.ties(states, [1.0] * 3, majority="total")["v"].item() == 5.0
    assert rules.ties(states, [1.0] * 3, majority="frequency")["v"].item() == -1.5


def test_dares_masks_are_the_seeds_and_keep_the_share_they_should() -> None:
    one = {"v": torch.ones(20_000, dtype=torch.float64)}
    mask = rules.keep_mask(one, 0.3, seed=5)
    assert torch.equal(mask["v"], rules.keep_mask(one, 0.3, seed=5)["v"])
    assert not torch.equal(mask["v"], rules.keep_mask(one, 0.3, seed=6)["v"])
    # Mean 0.3, standard deviation 0.0032: six of them.
    assert mask["v"].mean().item() == pytest.approx(0.3, abs=0.02)
    found = rules.dare([one], [1.0], 0.3, [mask])["v"]
    assert set(found.unique().tolist()) == {0.0, 1 / 0.3}


def test_slerp_of_parallel_states_is_linear_and_of_equal_norms_stays_on_the_sphere() -> None:
    a, b = {"v": tensor([1.0, 0.0])}, {"v": tensor([0.0, 1.0])}
    half = math.sqrt(0.5)
    close(rules.slerp([a, b], [0.5])["v"], [half, half])
    close(rules.slerp([a, {"v": tensor([3.0, 0.0])}], [0.25])["v"], [1.5, 0.0])


def test_model_stock_without_clamp_may_turn_round_and_with_it_stops_at_zero() -> None:
    with pytest.warns(UserWarning, match=r"t is -0\.2466"):
        assert rules.model_stock(vectors())["v"].abs().sum() == 0


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"v": [1.0, 2.0, 3.0]}, r"'two' has shape \(3,\), 'one' has \(2,\)"),
        ({"v": [1.0, 2.0], "w": [0.0]}, "'two' has the tensor 'w'"),
        ({}, "'two' lacks the tensor 'v'"),
    ],
)
def test_states_that_differ_are_refused_by_name(other: dict[str, Any], words: str) -> None:
    with pytest.raises(MergeError, match=words):
        rules.refuse_different([{"v": tensor([1.0, 2.0])}, state(other)], ["one", "two"])


def test_dense_rules_on_loras_are_the_rule_on_their_delta_weights() -> None:
    """Of a sum, the best rank-r approximation is that of `svd`."""
    made = lora.dense(loras(), lambda taus: rules.linear(taus, LORA["weights"]))
    close(delta(made), LORA["svd_rank_r_delta"])


def test_svd_equals_pefts_own_merge_of_ranks_4_8_2() -> None:
    """peft 0.21's add_weighted_adapter with `svd`, whose SVD runs in float32."""

    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(20, 12, bias=False))
    names, weights, sources = [], [0.7, -0.4, 0.2], []
    for rank, alpha in ((4, 8), (8, 2), (2, 6)):
        name = f"r{rank}"
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])
        if names:
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
        names.append(name)
        layer = model.base_model.model[0]
        layer.lora_B[name].weight.data.normal_()
        pair = (layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach())
        sources.append(lora.LoRA({"m": pair}, alpha / rank))
    model.add_weighted_adapter(
        names, weights, "all", combination_type="svd", svd_rank=5, svd_full_matrices=False
    )
    layer = model.base_model.model[0]
    wanted = layer.get_delta_weight("all")
    made = lora.svd(sources, weights, rank=5)
    torch.testing.assert_close(delta(made), wanted, rtol=0, atol=1e-5)
    assert 0 < made.errors["m"] < 1
