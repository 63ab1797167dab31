"""A model small enough to test with, and runs that train it for a few steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.folders import make_folder
from support.train_app import ROOT, SMALL

if str(ROOT) not in sys.path:  # the app lives beside its train.py and is not installed
    sys.path.insert(0, str(ROOT))

MakeJob = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # peft 0.21 calls what transformers 5.23 has renamed.
    mark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(mark)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    if find_spec("torch") is None:  # what is tested of the configuration needs none
        return
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def read() -> MakeJob:
    """A job as the app would read it; what jobs have in common is composed once, as in a sweep."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import open_dict

    from autocl_sweeper.job.compose import Composer
    from train.config.reading import read_run
    from train.main import CONF, VERSION_BASE

    composers: list[Composer] = []

    def composed(*overrides: str) -> Any:
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            if not composers:
                loader = GlobalHydra.instance().config_loader()
                name = ["hydra.job.name=test"]
                master = loader.load_configuration("base", name, RunMode.MULTIRUN)
                composers.append(Composer(loader, master))
            cfg = composers[0](overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        return read_run(cfg)

    return composed


@pytest.fixture(scope="session")
def make_job(read: MakeJob) -> MakeJob:
    """On a model of two layers, width 16; of digits_01 unless told."""

    def make(*overrides: str) -> Any:
        named = any(o.startswith(("task=", "+task=")) for o in overrides)
        return read(*([] if named else ["task=digits_01"]), *SMALL, *overrides)

    return make


Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def app_conf() -> Iterator[None]:
    """Hydra composes from the app's own files, with `_include` and names that have a '+'."""
    from hydra import initialize_config_dir
    from hydra.core.plugins import Plugins

    from train.main import CONF, VERSION_BASE

    Plugins.instance()
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        yield


@pytest.fixture
def composed(app_conf: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compose:
    """compose(*files, overrides=[...]): the settled values, as `python train.py` would have them."""
    from hydra import compose

    from train.check import checked_values
    from train.config.settle import as_written

    monkeypatch.chdir(tmp_path)

    def made(*texts: str, overrides: list[str] | None = None) -> dict[str, Any]:
        names = ["base"]
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.yaml"
            path.write_text(text)
            names.append(str(path))
        config = compose("+".join(names), overrides or [], return_hydra_config=True)
        return checked_values(as_written(config), config.hydra)

    return made


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny model of random weights and its tokenizer, by kind."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_folder(kind, tmp_path_factory.mktemp("families") / kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def make(read: MakeJob) -> MakeJob:
    """With the model it names; of sentiment unless told."""

    def job(*overrides: str) -> Any:
        named = any(o.startswith("task=") for o in overrides)
        return read(*([] if named else ["task=sentiment"]), *overrides)

    return job


DELTAS = ("trainer.max_steps=3", "trainer.learning_rate=3e-2", "evaluate_test=false")


@pytest.fixture(scope="session")
def deltas(
    make: Any, folders: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, str]]:
    """Overrides of a few-shot target, and LoRAs of different ranks of three tasks."""
    from support.runs import finish

    root = tmp_path_factory.mktemp("deltas")
    (root / "data/mc_taco").mkdir(parents=True)
    words = ["even", "odd", "not good praise", "review"]
    for part in ("train", "dev", "test"):
        lines = [
            f"{part} {'review ' * i}{i}\t{words[i % 4]}\t{words[(i + 1) % 4]}\n" for i in range(7)
        ]  # ragged, and with several answers each
        (root / f"data/mc_taco/mc_taco_7_42_{part}.tsv").write_text("".join(lines))
    model = ["model=pretrained", f"model.path={folders('t5')}"]
    where = {}
    for task, rank in (("sentiment", 2), ("parity", 4), ("arithmetic", 3)):
        finish(make(*model, f"task={task}", f"delta.lora_dim={rank}", *DELTAS), root / task)
        where[task] = str(root / task / "checkpoint")
    target = [
        *model,
        f"data_dir={root / 'data'}",
        "+task.mc_taco._name=few_shot",
        "~task.sentiment",
    ]
    return target, where
