"""O-LoRA's penalties against numbers worked out elsewhere, its chains against peft's own merge."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import model_of
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from train.config.sections import DeltaSettings
from train.delta.lora import activate, add_adapter, concatenated
from train.delta.olora import Factors, by_shape, factors, l2_loss, orthogonal_loss

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/olora.json").read_text())
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

by_case = pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def modules_of(case: dict[str, Any], dtype: torch.dtype) -> list[Any]:
    def tensor(m: dict[str, Any], key: str) -> torch.Tensor:
        return torch.tensor(m[key], dtype=dtype, requires_grad=key.endswith("new"))

    return [
        Factors(tensor(m, "A_old"), tensor(m, "A_new"), tensor(m, "B_new"))
        for m in case["inputs"]["modules"]
    ]


@by_case
@by_dtype
def test_penalties_and_total_have_the_reference_values(
    case: dict[str, Any], dtype: torch.dtype
) -> None:
    modules, expected = modules_of(case, dtype), case["expected"]
    orthogonal, l2 = orthogonal_loss(by_shape(modules)), l2_loss(by_shape(modules))
    total = case["inputs"]["task_loss"] + case["lamda_1"] * orthogonal + case["lamda_2"] * l2
    rel = TOLERANCE[dtype]
    assert orthogonal.item() == pytest.approx(expected["orthogonal_loss"], rel=rel)
    assert l2.item() == pytest.approx(expected["l2_loss"], rel=rel)
    assert total.item() == pytest.approx(expected["total_loss"], rel=rel)
    for mistake in ("wrong_variant_sum_of_squares", "wrong_variant_sum_of_frobenius_norms"):
        assert orthogonal.item() != pytest.approx(expected[mistake], rel=1e-3)


@by_case
@by_dtype
def test_penalties_have_the_reference_gradients(case: dict[str, Any], dtype: torch.dtype) -> None:
    modules = modules_of(case, dtype)
    groups = by_shape(modules)
    (case["lamda_1"] * orthogonal_loss(groups) + case["lamda_2"] * l2_loss(groups)).backward()
    for module, expected in zip(modules, case["expected"]["gradient_of_regulariser"], strict=True):
        for factor, key in ((module.a_new, "A_new"), (module.b_new, "B_new")):
            reference = torch.tensor(expected[key], dtype=dtype)
            torch.testing.assert_close(factor.grad, reference, rtol=TOLERANCE[dtype], atol=1e-12)


def test_the_norm_of_a_zero_b_has_gradient_zero() -> None:
    a, b = torch.ones(2, 3, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    l2_loss(by_shape([Factors(torch.zeros(0, 3), a, b)])).backward()
    assert b.grad is not None and torch.equal(b.grad, torch.zeros(4, 2))


def test_bfloat16_factors_are_summed_in_float32() -> None:
    # In bfloat16 the running sum would stick at 256: the next representable number is 258.
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    total = orthogonal_loss(by_shape([Factors(one, one, one)] * 300))
    assert total.dtype == torch.float32 and total.item() == 300


@pytest.mark.parametrize("name", GOLDEN["at_initialisation"])
def test_a_new_adapter_starts_with_the_expected_penalties(name: str) -> None:
    """36 to 144 modules of the real width, initialised by peft, after 16 tasks of rank 8.

    One such task is too few terms for 1 %; the loss is linear in the ancestors' ranks.
    """
    torch.manual_seed(0)
    expected = GOLDEN["at_initialisation"][name]
    # Only A counts at the start (B = 0), so one output per module is enough.
    count, width = expected["lora_modules"], expected["d_in"]
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(torch.nn.Linear(width, 1) for _ in range(count))
    new = DeltaSettings(
        lora_dim=8,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=tuple(f"layers.{i}" for i in range(count)),
        lamda_1=0.5,
        lamda_2=0.0,
    )
    old = replace(new, lora_dim=16 * 8)
    adapted = add_adapter(add_adapter(model, "old", [], old), "new", ["old"], new)  # type: ignore[arg-type]
    modules = factors(adapted, "new", ["old"])
    assert len(modules) == count
    orthogonal, l2 = orthogonal_loss(by_shape(modules)).item(), l2_loss(by_shape(modules)).item()
    reference = 16 * expected["expected_orthogonal_loss_r8_second_task"]
    assert orthogonal == pytest.approx(reference, rel=0.01)
    assert l2 == pytest.approx(expected["expected_l2_loss_r8_step0"], rel=0.01)


def published_shape(name: str) -> Any:
    """A model of the size of a published one, on the meta device: shapes without values."""
    sizes = {"t5-small": (512, 6, 8), "t5-base": (768, 12, 12), "t5-large": (1024, 24, 16)}
    with torch.device("meta"):
        if name == "llama-7b":
            return LlamaForCausalLM(LlamaConfig())  # its defaults are those of 7B
        width, layers, heads = sizes[name]
        return T5ForConditionalGeneration(
            T5Config(d_model=width, d_kv=64, d_ff=4 * width, num_layers=layers, num_heads=heads)
        )


@pytest.mark.parametrize(
    ("name", "trainable"),
    [("t5-small", 294_912), ("t5-base", 884_736), ("t5-large", 2_359_296), ("llama-7b", 4_194_304)],
)
def test_the_default_adapter_of_a_published_model_has_the_published_size(
    name: str, trainable: int
) -> None:
    expected = GOLDEN["at_initialisation"][name]
    model = add_adapter(published_shape(name), "task1", [], DeltaSettings())
    modules = factors(model, "task1", [])
    assert len(modules) == expected["lora_modules"]
    assert {m.a_new.shape for m in modules} == {(8, expected["d_in"])}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_forward_and_concatenated_factors_have_the_reference_values() -> None:
    """One layer with two adapters of peft, one scaling for both, against numbers worked out in numpy."""
    [case] = [c for c in GOLDEN["cases"] if "forward_check_module_0" in c]
    check, given = case["forward_check_module_0"], case["inputs"]["modules"][0]

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    model: Any = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False)).double()
    model[0].weight.data = tensor(check["W"])
    states, names = [], []
    for part in ("old", "new"):
        a, b = tensor(given[f"A_{part}"]), tensor(given[f"B_{part}"])
        delta = DeltaSettings(
            lora_dim=len(a), lora_alpha=check["scaling"] * len(a), target_modules=("0",)
        )
        model = add_adapter(model, part, names, delta)
        layer = model.base_model.model[0]
        layer.lora_A[part].weight.data, layer.lora_B[part].weight.data = a, b
        states.append({"0.lora_A.weight": a, "0.lora_B.weight": b})
        names.append(part)
    activate(model, names)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(
        model.eval()(tensor(check["x"])), tensor(check["y_eval_mode"]), **close
    )
    whole = concatenated(
        states, [len(s["0.lora_A.weight"]) for s in states], [check["scaling"]] * 2
    )
    torch.testing.assert_close(whole["0.lora_A.weight"], tensor(check["saved_lora_A"]), **close)
    # As published, B is saved without its scaling; here it is in B.
    expected = check["scaling"] * tensor(check["saved_lora_B"])
    torch.testing.assert_close(whole["0.lora_B.weight"], expected, **close)


def test_a_chain_of_ranks_4_8_2_equals_the_weights_peft_merges(make_job: Any) -> None:
    model = model_of(make_job())
    images = torch.randn(5, 1, 8, 8)
    before = model.eval()(pixel_values=images).logits
    names: list[str] = []
    for rank in (4, 8, 2):
        delta = make_job(f"delta.lora_dim={rank}", f"delta.lora_alpha={3 * rank + 1}").delta
        new = f"rank{rank}"
        model = add_adapter(model, new, names, delta)
        # A new adapter changes nothing: B is zero.
        torch.testing.assert_close(model.eval()(pixel_values=images).logits, before, rtol=0, atol=0)
        for module in factors(model, new, names):
            assert module.a_new.shape == (rank, 16)
            assert len(module.a_old) == sum(int(name[4:]) for name in names)
            with torch.no_grad():
                module.b_new.normal_(std=0.1)
        names.append(new)
        before = model(pixel_values=images).logits
    activate(model, names)
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=names)
    torch.testing.assert_close(merged(pixel_values=images).logits, before, rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
