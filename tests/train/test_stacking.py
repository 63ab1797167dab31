"""The ancestors of an adapter, as one frozen pair of factors a layer, against stock peft's separate adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from train.config.sections import DeltaSettings
from train.delta.lora import ANCESTORS, add_adapter, stack
from train.delta.olora import OLoRA

NAMES = ("task1", "task2", "task3")
RANKS = ((4, 32), (8, 3), (2, 10))  # and alpha
# The second lacks a layer that the others have, and has one alone.
LAYERS = {
    "t5": (("q", "v"), ("q", "k"), ("q", "v", "wi")),
    "llama": (("q_proj", "v_proj"), ("q_proj", "k_proj"), ("q_proj", "v_proj", "up_proj")),
    "gpt2": (("c_attn",), ("c_attn", "c_fc"), ("c_attn",)),
}


def base_of(folder: Path, kind: str) -> Any:
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return auto.from_pretrained(folder).eval()


def chain_on(base: Any, kind: str) -> Any:
    """Stock peft with three trained adapters, all of them active, with dropout."""
    model: Any = None
    torch.manual_seed(3)
    for name, (rank, alpha), layers in zip(NAMES, RANKS, LAYERS[kind], strict=True):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers), lora_dropout=0.1,
                            fan_in_fan_out=kind == "gpt2")  # fmt: skip
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.1)
    model.base_model.set_adapter([*NAMES])
    return model.eval()


def logits(model: Any, kind: str) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) + 3
    more = {"decoder_input_ids": ids[:, :5]} if kind == "t5" else {}
    found: torch.Tensor = model(input_ids=ids, **more).logits.detach()
    return found


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_stacked_ancestors_of_ranks_4_8_2_give_the_logits_of_the_separate_adapters(
    folders: Any, kind: str, dtype: torch.dtype, within: float
) -> None:
    model = chain_on(base_of(folders(kind), kind).to(dtype), kind).to(dtype)
    separate = logits(model, kind)
    with model.disable_adapter():
        untouched = logits(model, kind)
    stack(model, NAMES)
    assert [*model.peft_config] == [ANCESTORS]
    assert (separate - untouched).abs().max() > 0.01, "the adapters change nothing"
    torch.testing.assert_close(logits(model, kind), separate, rtol=0, atol=within)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".lora_" in name)


def test_a_new_adapter_sees_the_plain_rows_of_all_ancestors_and_draws_what_it_always_drew(
    folders: Any,
) -> None:
    """The penalty by the separate adapters, and the new A from the generator as it was before."""
    model = chain_on(base_of(folders("llama"), "llama"), "llama")
    rows = {
        path: [m.lora_A[n].weight.detach().clone() for n in NAMES if n in m.lora_A]
        for path, m in model.named_modules()
        if hasattr(m, "lora_A") and "task1" in m.lora_A
    }
    alone = copy.deepcopy(model)
    delta = OLoRA(DeltaSettings(lora_dim=3, lamda_1=1.0))
    torch.manual_seed(5)
    new = delta.attach(model, "task4", NAMES)
    expected = 0.0
    for path, old in rows.items():
        a_new = new.get_submodule(path).lora_A["task4"].weight.detach()
        expected += sum(float((a @ a_new.T).abs().sum()) for a in old)
    assert float(delta.penalty().parts["orthogonal_loss"].detach()) == pytest.approx(expected)
    torch.manual_seed(5)
    unstacked = add_adapter(alone, "task4", NAMES, DeltaSettings(lora_dim=3))
    drawn = {k: v for k, v in unstacked.state_dict().items() if ".task4." in k}
    assert all(torch.equal(new.state_dict()[key], value) for key, value in drawn.items())


def test_ancestors_have_no_dropout_while_the_new_adapter_trains(folders: Any) -> None:
    model = chain_on(base_of(folders("llama"), "llama"), "llama")
    was = logits(model, "llama")
    new = OLoRA(DeltaSettings(lora_dropout=0.5)).attach(model, "task4", NAMES).train()
    torch.testing.assert_close(logits(new, "llama"), was, rtol=0, atol=1e-5)  # B of task4 is 0
