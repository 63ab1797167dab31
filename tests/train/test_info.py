"""`python train.py --info`: the options of a section, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from train.config.schema import KINDS
from train.config.typed import options
from train.info import answer, describe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--info"], "Sections (python train.py"),
        (["--info", "task=digits_01"], "Sections (python train.py"),
        (["--info", "trainer"], "learning_rate = 0.001"),
        (["--info=delta"], "lora_dim = 8"),
        (["-i", "task.dataset"], 'separator = "\\t"'),
        (["task=a", "--info", "optimization"], "trainer.learning_rate"),
    ],
)
def test_info_lists_the_options_of_a_section(argv: list[str], words: str) -> None:
    assert words in (answer(argv) or "")


@pytest.mark.parametrize("value", ["all", "config", "defaults", "defaults-tree", "plugins"])
def test_hydras_own_info_stays_hydras(value: str) -> None:
    assert answer(["--info", value]) is None and answer(["task=a"]) is None


def test_every_section_and_every_option_has_help() -> None:
    for name, kind in KINDS.items():
        assert all(one.metadata["help"] for one in options(kind).values()), name
        assert all(key in describe(name) for key in options(kind))


def test_info_of_a_section_loads_neither_torch_nor_transformers() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['train.py', '--info', 'trainer']\n"
        "import runpy\n"
        f"try: runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally: print('LOADED', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "num_train_epochs = 5.0 [epochs]" in done.stdout and "LOADED []" in done.stdout


def test_an_unknown_section_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no section 'trainr'; did you mean trainer"):
        answer(["--info", "trainr"])
