"""Chains of checkpoints on disk: what each holds, what loads again, what damage is reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.runs import loaded, model_of

from train.chain import CheckpointError
from train.delta.olora import OLoRA
from train.model.checkpoints import delta_name, save
from train.model.family import family_of

Grown = tuple[Path, list[torch.Tensor]]  # checkpoints, the logits of each
IMAGES = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(pixel_values=IMAGES).logits
    return result


def grow(make_job: Any, parent: Path | None, folder: Path, rank: int = 4) -> torch.Tensor:
    """Save a checkpoint with random weights on top of `parent`; the logits of its model."""
    run = make_job(f"delta.lora_dim={rank}", f"delta.lora_alpha={5 * rank}")
    family, delta = family_of(run.model), OLoRA(run.delta)
    if parent is None:
        model = model_of(run)
        save(model, folder, ["digits_01"], None, family, None)
        return logits(model)
    chain = loaded(run, parent)
    model = delta.attach(chain.model, delta_name(len(chain.nodes) + 1), chain.deltas)
    for module in delta.modules:
        torch.nn.init.normal_(module.b_new, std=0.1)
    save(model, folder, [f"task_at_{folder.name}"], chain, family, delta)
    return logits(model)


@pytest.fixture(scope="module")
def grown(make_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Checkpoints a, b, c, d: the base and adapters of ranks 4, 8, 2; the logits of each."""
    made, parent, folder = [], None, tmp_path_factory.mktemp("grown")
    for name, rank in (("a", 1), ("b", 4), ("c", 8), ("d", 2)):
        made.append(grow(make_job, parent, folder / name, rank))
        parent = folder / name
    return folder, made


@pytest.fixture
def chain_of_four(grown: Grown, tmp_path: Path) -> Grown:
    """A copy of them, to damage."""
    folder, made = grown
    return shutil.copytree(folder, tmp_path / "sweep"), made


def test_every_checkpoint_of_a_chain_loads_to_the_same_logits(
    make_job: Any, chain_of_four: Grown
) -> None:
    folder, made = chain_of_four
    assert not torch.allclose(made[2], made[3], atol=1e-3)  # the adapters do something
    for name, expected in zip("abcd", made, strict=True):
        chain = loaded(make_job(), folder / name)
        torch.testing.assert_close(logits(chain.model), expected, rtol=0, atol=1e-5)
        assert not any(p.requires_grad for p in chain.model.parameters())
    assert [node.task for node in chain.nodes] == ["digits_01", *(f"task_at_{n}" for n in "bcd")]


def test_a_checkpoint_holds_its_own_weights_only_and_no_pickle(chain_of_four: Grown) -> None:
    folder, _ = chain_of_four
    files = {path for path in folder.rglob("*.*") if path.suffix not in (".json", ".md")}
    binary = {path.relative_to(folder).as_posix() for path in files}
    assert binary == {
        "a/base/model.safetensors",
        "b/task2/adapter_model.safetensors",
        "c/task3/adapter_model.safetensors",
        "d/task4/adapter_model.safetensors",
    }
    with safe_open(folder / "d/task4/adapter_model.safetensors", "pt") as weights:
        shapes = {tuple(weights.get_slice(key).get_shape()) for key in sorted(weights.keys())}
    assert shapes == {(2, 16), (16, 2)}


def test_a_chain_survives_moving_the_whole_folder(
    make_job: Any, chain_of_four: Grown, tmp_path: Path
) -> None:
    folder, made = chain_of_four
    moved = shutil.move(folder, tmp_path / "elsewhere")
    torch.testing.assert_close(
        logits(loaded(make_job(), Path(moved) / "d").model), made[3], rtol=0, atol=1e-5
    )


def without_folder(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def without_weights(checkpoint: Path) -> None:
    (checkpoint / "task3" / "adapter_model.safetensors").unlink()


def with_a_pickle_instead(checkpoint: Path) -> None:
    without_weights(checkpoint)
    (checkpoint / "task3" / "adapter_model.bin").write_bytes(b"not looked at")


def with_half_the_weights(checkpoint: Path) -> None:
    weights = checkpoint / "task3" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def with_a_torn_node(checkpoint: Path) -> None:
    (checkpoint / "node.json").write_text('{"task": "dig')


def with_weights_of_another_model(checkpoint: Path) -> None:
    weights = checkpoint / "task3" / "adapter_model.safetensors"
    save_file({k.replace("layers", "blocks"): v for k, v in load_file(weights).items()}, weights)


@pytest.mark.parametrize(
    "damage",
    [
        without_folder,
        without_weights,
        with_a_pickle_instead,
        with_half_the_weights,
        with_a_torn_node,
        with_weights_of_another_model,
    ],
)
def test_a_damaged_ancestor_is_named_together_with_the_chain_that_needs_it(
    make_job: Any, chain_of_four: Grown, damage: Callable[[Path], None]
) -> None:
    folder, _ = chain_of_four
    damage(folder / "c")
    with pytest.raises(CheckpointError) as caught:
        loaded(make_job(), folder / "d")
    message = str(caught.value)
    assert message.startswith(f"checkpoint {folder.resolve() / 'c'} is missing or damaged")
    assert f"needed by task_at_d: {folder.resolve() / 'd'}" in message


def test_a_base_without_its_weights_is_named(make_job: Any, chain_of_four: Grown) -> None:
    folder, _ = chain_of_four
    (folder / "a/base/model.safetensors").unlink()
    missing = r"(?s)sweep/a is missing or damaged.*needed by task_at_b"
    with pytest.raises(CheckpointError, match=missing):
        loaded(make_job(), folder / "d")


def test_a_chain_that_points_back_to_itself_is_an_error(
    make_job: Any, chain_of_four: Grown
) -> None:
    folder, _ = chain_of_four
    (folder / "a/node.json").write_text('{"task": "digits_01", "parent": "../c"}')
    with pytest.raises(CheckpointError, match="comes back to itself"):
        loaded(make_job(), folder / "d")


def test_a_chain_does_not_go_on_with_a_model_of_another_family(
    make_job: Any, chain_of_four: Grown
) -> None:
    folder, _ = chain_of_four
    with pytest.raises(CheckpointError, match=r"holds a model of type vit; .*_name is unify"):
        loaded(make_job("model=unify_tiny"), folder / "d")
