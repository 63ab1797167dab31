"""What a user types, and what Hydra then gets to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from autocl_sweeper.command_line import CommandLineError, rewrite

A, B = "A.yaml", "sub/b.yaml"

CASES = {
    "nothing": ("", ""),
    "a file over the app's own config": ("A.yaml", "--config-name config+@/A.yaml"),
    "several files in their order": (
        "sub/b.yaml A.yaml",
        "--config-name config+@/sub/b.yaml+@/A.yaml",
    ),
    "options among the files": (
        "--x.y=1 A.yaml x.z=2 sub/b.yaml",
        "--config-name config+@/A.yaml+@/sub/b.yaml x.y=1 x.z=2",
    ),
    "dashes before a dotted key mean nothing": ("--a.b=c=d --+a.new=1", "a.b=c=d +a.new=1"),
    "what else begins with a dash is Hydra's": ("--foo=1 -model.arch=x", "--foo=1 -model.arch=x"),
    "an option whose value stands apart is Hydra's": ("--a.b c", "--a.b c"),
    "flags come first": ("a=1 -m b=2 --cfg job", "-m --cfg job a=1 b=2"),
    "the value of a flag is no file": (
        "--config-dir sub/b.yaml A.yaml",
        "--config-name config+@/A.yaml --config-dir sub/b.yaml",
    ),
    "another config of the app": (
        "A.yaml -cn other",
        "--config-name other+@/A.yaml",
    ),
    "another config, spelled with =": ("--config-name=other a=1", "--config-name other a=1"),
    "--info without its value": ("--info a.b=1", "--info=all a.b=1"),
    "--info with its value": ("a.b=1 --info defaults", "--info=defaults a.b=1"),
    "a value that ends like a file": ("data=A.yaml", "data=A.yaml"),
    "a deletion": ("~a.b A.yaml", "--config-name config+@/A.yaml ~a.b"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / A).touch()
    (tmp_path / B).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("typed, read", CASES.values(), ids=CASES.keys())
def test_what_is_typed_becomes_what_hydra_reads(here: Path, typed: str, read: str) -> None:
    assert rewrite(typed.split()) == read.replace("@", str(here)).split()


@pytest.mark.parametrize(
    "word, told",
    [
        ("gone.yaml", "there is no such file"),
        ("old.yml", "Rename the file"),
        ("a+b.yaml", "has a '+' in it"),
    ],
)
def test_a_file_that_cannot_be_a_config_is_refused(here: Path, word: str, told: str) -> None:
    (here / "a+b.yaml").touch()
    with pytest.raises(CommandLineError) as caught:
        rewrite([word])
    assert word in str(caught.value) and told in str(caught.value)


words = st.sampled_from(
    [*["a=1", "+b.c=2", "~d", "e/f=g", "--x.y=z", "-m", "--multirun", "--resolve"], A, B]
) | st.sampled_from([["--cfg", "job"], ["-cd", "sub"], ["-p", "x"], ["--info", "config"]])


@settings(max_examples=200)
@given(st.lists(words, max_size=8))
def test_hydra_reads_every_override_and_flag_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, typed: list[str | list[str]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "typed"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / A).touch()
    (folder / B).touch()
    flat = [
        str(folder / word) if word in (A, B) else word
        for one in typed
        for word in ([one] if isinstance(one, str) else one)
    ]
    read = rewrite(flat)
    arguments = get_args_parser().parse_args(read)
    # Each of these words says by itself what it is.
    single = [one for one in typed if isinstance(one, str)]
    files = [str(folder / word) for word in single if word in (A, B)]
    assert arguments.overrides == [
        word.removeprefix("--")
        for word in single
        if word not in (A, B) and ("=" in word or word.startswith("~"))
    ]
    assert arguments.config_name == ("+".join(["config", *files]) if files else None)
    assert arguments.multirun == any(word in ("-m", "--multirun") for word in single)
    assert arguments.cfg == ("job" if ["--cfg", "job"] in typed else None)
