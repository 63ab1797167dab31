"""Configurations of YAML layers: recorded cases, the merge rule against a naive one, and errors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from autocl_sweeper.command_line import rewrite
from autocl_sweeper.layers import expand_stars, load, load_layers, resolve

Plugins.instance()

GOLDEN = Path(__file__).with_name("golden") / "layered_config"
INPUTS = GOLDEN / "inputs"
CASES = json.loads((GOLDEN / "cases.json").read_text())
ERRORS = (Exception, SystemExit)
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
CRASHES = (KeyError, TypeError, AttributeError, RecursionError)


def same(ours: Any, golden: Any) -> bool:
    """Plain values, where 1 is 1.0 and nan is nan, but True is not 1 and 1 is not "1"."""
    if isinstance(golden, dict):
        alike = isinstance(ours, dict) and ours.keys() == golden.keys()
        return alike and all(same(ours[key], golden[key]) for key in golden)
    if isinstance(golden, list):
        alike = isinstance(ours, list) and len(ours) == len(golden)
        return alike and all(map(same, ours, golden))
    if isinstance(golden, bool) or isinstance(ours, bool):
        return ours is golden
    if isinstance(golden, float) and isinstance(ours, float) and math.isnan(golden):
        return math.isnan(ours)
    return isinstance(ours, str) == isinstance(golden, str) and bool(ours == golden)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an app whose own config is empty; the shell is in `inputs/`."""
    (tmp_path / "config.yaml").touch()
    monkeypatch.chdir(INPUTS)
    yield tmp_path
    GlobalHydra.instance().clear()


def composed(argv: list[str], home: Path) -> tuple[Any, Any]:
    """What the files of a command line give, and what all of it gives."""
    arguments = get_args_parser().parse_args(rewrite(argv))
    _, *files = arguments.config_name.split("+")
    with initialize_config_dir(str(home), **VERSION_BASE):
        config = OmegaConf.to_container(compose(arguments.config_name, arguments.overrides))
    assert isinstance(config, dict)
    return load_layers(files), resolve(OmegaConf.create(expand_stars(config)))


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}/{case['id']}" for case in CASES])
def test_a_recorded_case_comes_out_as_recorded(
    case: dict[str, Any], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "error" in case:
        with pytest.raises(ERRORS) as caught:
            load(case["file"]) if case["kind"] == "load" else composed(case["argv"], home)
        assert not isinstance(caught.value, CRASHES)
        told = (str(caught.value) + capsys.readouterr().err).lower()
        assert all(word.lower() in told for word in case["error"]), told
        return
    if case["kind"] == "load":
        found = {"merged": load(case["file"])}
    else:
        found = dict(zip(("merged", "final"), composed(case["argv"], home), strict=True))
    for stage, values in found.items():
        assert same(values, case[stage]), f"{stage}: {values}"
