"""Deltas of our own and IA3: where they are put in, what they compute, chains, and merged starts."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import finish, loaded, meeting_of, model_of, of, planned, trainings
from transformers import DynamicCache, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from train.config.merging import MergeSettings
from train.config.sections import DeltaSettings, ModelSettings
from train.config.typed import SettingsError
from train.data.rows import load as load_rows
from train.delta.delta import delta_of
from train.loop.evaluation import predict
from train.loop.trainer import train
from train.merge.apply import merge, write_merged
from train.merge.plan import make_plan
from train.model.family import family_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/merge.json").read_text())
KINDS = ("adapter", "prefix", "ia3")
FAMILIES = ("t5", "llama", "bert")
QUICK = ("trainer.max_steps=2", "trainer.learning_rate=1e-1", "evaluate_test=false")
SMALL = {
    "adapter": ("delta=adapter", "delta.size=3"),
    "prefix": ("delta=prefix", "delta.num_tokens=4", "delta.bottleneck=3"),
    "ia3": ("delta=ia3",),
    "lora": ("delta=lora", "delta.lora_dim=4"),
}
# Every kind and every family once; the other pairs take minutes together.
QUICK_PAIRS = {("adapter", "t5"), ("prefix", "llama"), ("ia3", "bert")}
by_pair = pytest.mark.parametrize(
    ("kind", "family"),
    [
        pytest.param(*pair, marks=() if pair in QUICK_PAIRS else pytest.mark.slow)
        for pair in product(KINDS, FAMILIES)
    ],
)
by_family = pytest.mark.parametrize("family", FAMILIES)


def attached(folder: Path, kind: str, seed: int = 0) -> Any:
    """A model with a fresh delta, as a job's first task has it."""
    torch.manual_seed(seed)
    model = family_of(ModelSettings(kind="pretrained", path=str(folder))).build()
    settings = DeltaSettings(kind=kind, size=3, num_tokens=4, bottleneck=3)  # type: ignore[arg-type]
    delta = delta_of(settings)
    return model, delta, delta.attach(model, "task1", [])


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("adapter", "adapter_houlsby_r12"),
        ("olora", "lora_qv_r10"),
        ("prefix", "prefix_r24_num120_two_stacks"),
    ],
)
def test_a_delta_of_t5_base_has_the_published_number_of_parameters(kind: str, key: str) -> None:
    with torch.device("meta"):
        base = T5ForConditionalGeneration(
            T5Config(
                d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        settings = DeltaSettings(kind=kind, lora_dim=10, lora_alpha=16)  # type: ignore[arg-type]
        model = delta_of(settings).attach(base, "task1", [])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == GOLDEN["t5_base_delta_sizes"][key] == 1_105_920


@by_family
def test_an_adapter_stands_behind_every_sub_layer(family: str, folders: Any) -> None:
    """Two blocks each; T5's decoder blocks have three sub-layers, all others two."""
    model, _, _ = attached(folders(family), "adapter")
    found = [path for path, m in model.named_modules() if path.endswith("delta_adapter")]
    assert len(found) == {"t5": 10, "llama": 4, "bert": 4}[family]


def test_the_output_of_an_adapted_sub_layer_is_x_plus_silu_of_x_a_times_b(folders: Any) -> None:
    model, _, _ = attached(folders("t5"), "adapter")
    layer = model.encoder.block[0].layer[0].SelfAttention.o
    x = torch.randn(2, 5, 16)
    plain = x @ layer.weight.T
    inner = plain @ layer.delta_adapter.A
    wanted = plain + (inner / (1 + torch.exp(-inner))) @ layer.delta_adapter.B
    torch.testing.assert_close(layer(x), wanted)
    for factor in (layer.delta_adapter.A, layer.delta_adapter.B):
        assert 0.01 < factor.std().item() < 0.03


def test_a_prefix_of_a_decoder_is_what_a_cache_of_its_keys_and_values_does(folders: Any) -> None:
    """LLaMA with a cache of transformers that holds them; positions are those of the text."""
    _, _, made = attached(folders("llama"), "prefix")
    ids = torch.randint(3, 200, (2, 6))
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = torch.arange(6).expand(2, 6)
    stack = made.delta_prefix["model"]
    cache = DynamicCache()
    for number in range(2):
        both = torch.tanh(stack.table @ stack.down.weight.T) @ stack.up.weight.T
        pair = both.view(4, 2, 2, 1, 8)
        keys, values = (pair[:, number, i].permute(1, 0, 2).expand(2, 1, 4, 8) for i in (0, 1))
        cache.update(keys, values, number)
    plain = LlamaForCausalLM.from_pretrained(folders("llama")).eval()
    longer = torch.cat([torch.ones(2, 4, dtype=torch.long), mask], dim=1)
    with torch.no_grad():
        found = made.eval()(ids, attention_mask=mask, position_ids=positions).logits
        given = {"attention_mask": longer, "past_key_values": cache}
        wanted = plain(ids, position_ids=positions, **given).logits
        without = plain(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found[:, 1:], wanted[:, 1:], rtol=0, atol=1e-5)
    assert (found - without)[:, 1:].abs().max() > 1e-3


def test_a_prefix_of_t5_is_attended_to_without_position_and_without_mask(folders: Any) -> None:
    """The first encoder layer, written out."""
    _, _, model = attached(folders("t5"), "prefix")
    model.eval()
    attention = model.encoder.block[0].layer[0].SelfAttention
    x, mask = torch.randn(1, 5, 16), torch.tensor([0.0, 0, 0, 0, -1e9])
    found = attention(x, mask=mask.view(1, 1, 1, 5))[0]

    def heads(value: torch.Tensor) -> torch.Tensor:
        return value.view(-1, 2, 8).transpose(0, 1)

    stack = model.delta_prefix["encoder"]
    pair = (torch.tanh(stack.table @ stack.down.weight.T) @ stack.up.weight.T)[:, :32]
    keys = torch.cat([pair[:, :16], attention.k(x[0])])
    values = torch.cat([pair[:, 16:], attention.v(x[0])])
    bias = torch.nn.functional.pad(attention.compute_bias(5, 5)[0] + mask, (4, 0))
    scores = heads(attention.q(x[0])) @ heads(keys).transpose(1, 2) + bias
    wanted = attention.o((scores.softmax(-1) @ heads(values)).transpose(0, 1).reshape(5, 16))
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)


@by_pair
def test_a_chain_trains_on_saves_and_loads_the_delta(
    kind: str, family: str, make: Any, folders: Any, tmp_path: Path
) -> None:
    own = (*of(folders(family)), *SMALL[kind], *QUICK)
    finish(make(*own), tmp_path / "1")
    first = tmp_path / "1/checkpoint"
    assert json.loads((first / "node.json").read_text())["base"]["fingerprint"]
    second = make(*own, "task=parity", f"init_from={first}")
    finish(second, tmp_path / "2")
    saved = "checkpoint/task{0}/adapter_model.safetensors"
    states = [load_file(tmp_path / str(n) / saved.format(n)) for n in (1, 2)]
    assert states[0].keys() == states[1].keys()
    assert any(not torch.equal(states[0][k], states[1][k]) for k in states[0])
    model = loaded(second, tmp_path / "2/checkpoint").model.eval()
    assert not any(p.requires_grad for p in model.parameters())
    # The second task began where the first ended: without a step, it is the first.
    stays = ("task=parity", f"init_from={first}", "trainer.learning_rate=0")
    finish(make(*own, *stays), tmp_path / "3")
    still = load_file(tmp_path / "3" / saved.format(2))
    for key, value in states[0].items():
        torch.testing.assert_close(still[key], value, rtol=0, atol=0)
    # What was loaded answers as what was trained did.
    task, plan = meeting_of(second), planned(second)["parity"]
    rows = load_rows(plan, second.evaluation)
    told = json.loads((tmp_path / "2/all_results.json").read_text())
    found = predict(model, task, rows, "dev", None, True).logged
    assert found["loss"] == pytest.approx(told["metrics"]["parity"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "kind", ["adapter", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("prefix", "ia3"))]
)
def test_early_stopping_gives_what_a_run_that_ends_at_the_best_update_gives(
    kind: str, make: Any, folders: Any, tmp_path: Path
) -> None:
    """Validations are given: the second is the best, and after two worse ones training ends."""

    def trained(folder: Path, told: list[float], *more: str) -> tuple[int, dict[str, Any]]:
        run = make(*of(folders("t5")), *SMALL[kind], "trainer.learning_rate=1e-2", *more)
        torch.manual_seed(0)
        delta = delta_of(run.delta)
        model = delta.attach(family_of(run.model).build(), "task1", [])
        given = iter([{"loss": value} for value in told])
        done = train(model, trainings(run, 24), delta, run, 0, folder, lambda _: next(given))
        return done.steps, {n: p for n, p in model.named_parameters() if p.requires_grad}

    small = ("trainer.per_device_train_batch_size=4",)
    watch = (
        "trainer.eval_strategy=steps", "trainer.eval_steps=1", "trainer.patience=2",
        "trainer.metric_for_best_model=loss", "trainer.max_steps=6",
    )  # fmt: skip
    steps, stopped = trained(tmp_path / "1", [3.0, 1.0, 2.0, 2.0], *small, *watch)
    assert steps == 4
    _, wanted = trained(tmp_path / "2", [], *small, "trainer.max_steps=2")
    _, other = trained(tmp_path / "3", [], *small, "trainer.max_steps=3")
    assert all(torch.equal(p, wanted[n]) for n, p in stopped.items())
    assert any(not torch.equal(p, other[n]) for n, p in stopped.items())


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_computes_nearly_what_float32_does_and_leaves_the_gradients_in_float32(
    kind: str, folders: Any
) -> None:
    _, _, model = attached(folders("t5"), kind)
    model.eval()
    ids = torch.randint(3, 100, (3, 6), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, enabled in (("bf16", True), ("float32", False)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(input_ids=ids, labels=ids).logits
        assert logits.dtype == (torch.bfloat16 if enabled else torch.float32)
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
        own = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert all(g is not None and g.dtype == torch.float32 for g in own.values())
        found[name] = torch.cat([g.flatten() for g in own.values() if g is not None])
    cosine = torch.nn.functional.cosine_similarity(found["bf16"], found["float32"], dim=0)
    assert 0.99 < float(cosine) < 1 - 1e-12  # rounded, and in the same direction


@pytest.mark.parametrize(
    "kind", ["lora", "adapter", pytest.param("prefix", marks=pytest.mark.slow)]
)
def test_a_delta_is_trained_saved_merged_and_is_the_start_of_another(
    kind: str, make: Any, folders: Any, tmp_path: Path
) -> None:
    own = (*of(folders("t5")), *SMALL[kind], *QUICK)
    for task in ("sentiment", "parity"):
        finish(make(*own, f"task={task}"), tmp_path / task)
    where = {task: str(tmp_path / task / "checkpoint") for task in ("sentiment", "parity")}
    plan, sources = make_plan(MergeSettings(sources=where, target="arithmetic"))
    write_merged(merge(plan, sources), plan, tmp_path / "merged")
    (tmp_path / "plan.json").write_text(plan.text())
    merged = load_file(tmp_path / "merged/adapter_model.safetensors")
    for name, given in (("folder", "merged"), ("plan", "plan.json")):
        start = (f"delta.start_from={tmp_path / given}", "trainer.learning_rate=0")
        finish(make(*own, "task=sentiment", *start), tmp_path / name)
        begun = load_file(tmp_path / name / "checkpoint/task1/adapter_model.safetensors")
        if kind != "lora":
            for key, value in merged.items():
                torch.testing.assert_close(begun[key], value, rtol=0, atol=1e-6)
            continue
        for key in [one for one in merged if ".lora_A." in one]:
            partner = key.replace("lora_A", "lora_B")
            made = 32 / 4 * begun[partner] @ begun[key]  # alpha / r of the new adapter
            torch.testing.assert_close(made, merged[partner] @ merged[key], rtol=0, atol=1e-5)


def test_a_start_of_higher_rank_or_of_another_kind_is_refused(
    make: Any, folders: Any, tmp_path: Path
) -> None:
    own = (*of(folders("t5")), *QUICK)
    finish(make(*own, *SMALL["lora"]), tmp_path / "1")
    start = f"delta.start_from={tmp_path / '1/checkpoint'}"
    with pytest.raises(SettingsError, match=r"rank 4, the new adapter delta.lora_dim=2"):
        finish(make(*own, "delta.lora_dim=2", start), tmp_path / "2")
    with pytest.raises(SettingsError, match="it is a LoRA, and delta"):
        finish(make(*own, *SMALL["adapter"], start), tmp_path / "3")
    # A higher rank does what the start does: the loss is that of the first run's end.
    finish(make(*own, "delta.lora_dim=6", start, "trainer.learning_rate=0"), tmp_path / "4")
    told = [json.loads((tmp_path / n / "all_results.json").read_text()) for n in "14"]
    losses = [one["metrics"]["sentiment"]["loss"] for one in told]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_type_that_no_table_has_is_refused_with_those_there_are(make_job: Any) -> None:
    for kind in ("adapter", "prefix"):
        with pytest.raises(SettingsError, match="in a model of type vit; known are bart, bert"):
            delta_of(DeltaSettings(kind=kind)).attach(model_of(make_job()), "task1", [])  # type: ignore[arg-type]
