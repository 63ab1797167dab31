"""Mistakes in YAML and on the command line: each with its line, and a repair that is not refused next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from train.config.before import _override, overrides_of
from train.config.command import accept_yaml_files
from train.config.schema import CONF, VERSION_BASE, register
from train.data.rows import load
from train.data.specs import mix

TASK = "task: {a: {_name: digits, options: [0, 1]}}\n"
Said = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What `python train.py argv...` prints before it would train; files are written before."""
    from hydra import compose, initialize_config_dir
    from hydra.core.plugins import Plugins

    from train.check import Refused, checked, placing

    register()
    Plugins.instance()
    monkeypatch.chdir(tmp_path)

    def run(argv: str, **files: str | bytes) -> str:
        for name, text in files.items():
            file = tmp_path / (name.replace("_tsv", ".tsv") if "_tsv" in name else f"{name}.yaml")
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(argv)])
        try:
            accept_yaml_files()
        except SystemExit as refusal:
            return str(refusal)
        words = sys.argv[1:]
        name = words[words.index("--config-name") + 1] if "--config-name" in words else "base"
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            config = compose(name, overrides_of(words), return_hydra_config=True)
            try:
                found = checked(config, config.hydra)
                with placing(config.hydra):
                    for plan in found.plans.values():
                        load(plan, found.run.evaluation)
            except Refused as refusal:
                return str(refusal)
        return ""

    return run


SECTIONS = ("model", "trainer", "delta", "env", "evaluation", "memory", "task", "dataset", "hydra")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_null_is_refused_at_its_line(said: Said, section: str) -> None:
    text = f"seed: 1\n{section}: null\n"
    assert f": a.yaml:2: {section}=null: " in said("a.yaml trainer.max_steps=1", a=text)


FILES = {
    "null below a section": (
        TASK + "model: {hidden_size: null}",
        2,
        "model.hidden_size=null: must",
    ),
    "a null node": ("task:\n  a: {dataset: null}", 2, "task.a.dataset=null: null is no section"),
    "a dotted key": (TASK + "trainer.max_steps: 3", 2, "Nest it: trainer: {max_steps: 3}"),
    "a dotted key of a task": (
        "task:\n  a.dataset.header: true",
        2,
        "a: {dataset: {header: true}}",
    ),
    "a numeric key": (TASK + "1: {x: 2}", 2, "1: there is no section or key of this name"),
    "a numeric key below": (TASK + "trainer:\n  1: 2", 3, "trainer.1=2: there is no option '1'"),
    "a key that is a boolean": (TASK + "trainer:\n  on: 2", 3, "there is no option 'True'"),
    "include": (TASK + "include: b.yaml", 2, "did you mean _include?"),
    "a group chosen in a file": (TASK + "model: unify_tiny", 2, "command line: model=unify_tiny"),
    "no space behind a colon": (TASK + "trainer:\n  optim:sgd", 2, "behind it: optim: sgd"),
    "a typo below hydra": (TASK + "hydra:\n  run: {dri: x}", 3, "'dri'; did you mean dir?"),
    "a text where Hydra wants a number": (
        TASK + "hydra:\n  job: {num: many}",
        3,
        "hydra.job.num: Value 'many' of type 'str' could not be converted to Integer",
    ),
    "a section of Hydra that is null": (
        TASK + "hydra:\n  run:",
        3,
        "hydra.run=null: null is no sec",
    ),
    "a launcher that is null": (
        TASK + "hydra:\n  launcher: null",
        3,
        "hydra.launcher=null: null is",
    ),
    "a dotted key of Hydra": (
        TASK + "hydra.sweep.dir: x",
        2,
        "Nest it: hydra: {sweep: {dir: x}}",
    ),
    "a dotted key below hydra": (TASK + "hydra:\n  sweep.dir: x", 3, "Nest it: sweep: {dir: x}"),
    "a sweeper chosen in a file": (
        TASK + "hydra:\n  sweeper: autocl",
        3,
        "hydra.sweeper=autocl: must be a mapping of options. A file of the group is chosen on the"
        " command line: hydra/sweeper=autocl",
    ),
    "an override as a text": (TASK + "hydra:\n  sweeper:\n    top_k=2", 3, "behind it: top_k: 2"),
    "a key of a sweeper that is not chosen": (
        TASK + "hydra:\n  sweeper: {top_k: 2}",
        3,
        "'top_k'; it is one of hydra/sweeper=autocl, to be chosen on the command line",
    ),
    "fp16: 2": (TASK + "trainer:\n  fp16: 2", 3, "trainer.fp16=2: must be true or false"),
    "a hint that would be refused": (
        TASK + "optimization:\n  update_frq: 3",
        3,
        "the one most like it, update_freq, is not taken: gradient accumulation is a task's",
    ),
    "a refused name, misspelt": (TASK + "trainer:\n  outputdir: x", 3, "output_dir, is not taken"),
}


@pytest.mark.parametrize("text, line, words", FILES.values(), ids=FILES.keys())
def test_a_mistake_in_a_file_is_refused_at_its_line(
    said: Said, text: str, line: int, words: str
) -> None:
    told = said("a.yaml", a=text)
    assert f"a.yaml:{line}: " in told and words in told


def test_a_typo_below_hydra_in_an_included_file_names_the_chain(said: Said) -> None:
    below = "hydra:\n  sweeper:\n    top_kk: 1\n"
    told = said("a.yaml -m hydra/sweeper=autocl", a=TASK + "_include: b.yaml\n", b=below)
    assert "b.yaml:3, included from a.yaml: hydra.sweeper.top_kk: " in told
    assert told.endswith("did you mean top_k?")


@pytest.mark.parametrize("typed", ["hydra", "hydra.sweeper", "hydra/launcher"])
def test_a_section_without_which_hydra_does_not_start_is_not_taken_away(
    said: Said, typed: str
) -> None:
    assert f"the command line: {typed}=null: " in said(f"a.yaml {typed}=null", a=TASK)


WORDS = {
    "a template": (
        "'task.a.instruction.template=[TEXT:a] -> [TEXT:b]'",
        """'task.a.instruction.template="[TEXT:a] -> [TEXT:b]"'""",
    ),
    "a tuple": ("'optimizer.adam_betas=(0.9,0.98)'", """'optimizer.adam_betas="(0.9,0.98)"'"""),
    "an equals sign": ("data_dir=a=b", """'data_dir="a=b"'"""),
    "a list without commas": ("'delta.target_modules=[q v]'", "'delta.target_modules=[q,v]'"),
    "both quotes": ('"data_dir=it\'s \\"so\\""', """'data_dir="it'"'"'s \\"so\\""'"""),
    "a star": ("task.*.max_src_length=5", "'task={*:{max_src_length:5}}'"),
}


@pytest.mark.parametrize("typed, repair", WORDS.values(), ids=WORDS.keys())
def test_a_misquoted_override_is_refused_with_words_that_hydra_reads(
    said: Said, typed: str, repair: str
) -> None:
    told = said(f"a.yaml {typed}", a=TASK)
    assert f"train.py: the command line: {shlex.split(typed)[0]}: " in told and repair in told
    assert _override(shlex.split(repair)[0]).key_or_group in repair


def test_a_word_that_is_no_override_is_refused_with_what_was_meant(
    said: Said, tmp_path: Path
) -> None:
    (tmp_path / "d.yaml").mkdir()
    assert said("ok", ok=TASK) == "train.py: 'ok': did you mean the file ok.yaml?"
    assert "'d.yaml': this is a folder" in said("d.yaml")
    assert "group 'task' is chosen by task=digits_01" in said("digits_01")
    assert "neither a YAML file nor key=value" in said("trainer.optim = sgd")
    assert "no section or key 'trainr'; did you mean trainer?" in said("trainr.optim=sgd")
    assert "hydra.run.dri=x: there is no option 'dri'; did you mean dir?" in said("hydra.run.dri=x")


TABLE = """task:
  t:
    instruction: {template: "[TEXT:a] -> [TEXT:b]"}
    dataset:
      train_data: train.tsv ||| more.tsv
      valid_data: dev.tsv
      header: true
      selected_cols: a,b
"""
HEAD = "a\tb\n"
ROWS = {"train_tsv": HEAD + "1\t2\n", "more_tsv": HEAD + "3\t4\n", "dev_tsv": HEAD + "5\t6\n"}


@pytest.mark.parametrize(
    ("broken", "line", "words"),
    [
        ({"more_tsv": HEAD}, 5, "train_data: more.tsv has no rows, only its header"),
        ({"dev_tsv": ""}, 6, "valid_data: dev.tsv has no rows"),
        ({"train_tsv": HEAD + "\n\n"}, 5, "train_data: train.tsv has no rows"),
        ({"dev_tsv": "a\tc\n1\t2\n"}, 6, "dev.tsv has no column 'b': its header has a, c"),
        ({"train_tsv": (HEAD + "1\t2\n").encode("utf-16")}, 5, "train.tsv (from "),
    ],
)
def test_a_table_without_rows_is_refused_before_the_start(
    said: Said, broken: dict[str, str], line: int, words: str
) -> None:
    told = said("a.yaml model=unify_tiny", a=TABLE, **(ROWS | broken))
    assert told.startswith(f"a.yaml:{line}: ") and words in told


def test_a_file_in_two_parts_is_blamed_on_its_line_and_not_on_the_command_line(said: Said) -> None:
    text = TABLE.replace("dev.tsv", "train.tsv")
    told = said("a.yaml model=unify_tiny task.t.dataset.shuffle=false", a=text, **ROWS)
    assert told.startswith("a.yaml:6: task.t.dataset.valid_data: ")


@pytest.mark.parametrize(
    ("ratios", "refusal"),
    [
        ('"(1, 2)"', ""),
        ('"[1, 2]"', ""),
        ("[0, 1]", ""),
        ("[0, 0]", "a.yaml:9: task.t: dataset.sample_ratios=[0.0, 0.0]: a ratio must be"),
        ("[0.1, 0.1]", "a.yaml:9: task.t.dataset.sample_ratios=[0.1, 0.1]: leaves no row of"),
        ("[-1, 1]", "a.yaml:9: task.t: dataset.sample_ratios=[-1.0, 1.0]: a ratio must be"),
        ('"(1, 2, 3)"', "a.yaml:9: task.t: dataset.sample_ratios='(1, 2, 3)': 3 given for 2"),
    ],
)
def test_ratios_are_read_as_other_tuples_and_0_means_no_row_of_a_source(
    said: Said, ratios: str, refusal: str
) -> None:
    text = TABLE + f"      sample_ratios: {ratios}\n"
    told = said("a.yaml model=unify_tiny", a=text, **ROWS)
    assert told.startswith(refusal) and bool(told) == bool(refusal)


def test_a_source_with_ratio_0_gives_no_rows() -> None:
    assert mix([3, 2], [0, 1.5], False) == [(1, 0), (1, 1), (1, 0)]
