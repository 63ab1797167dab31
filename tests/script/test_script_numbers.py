"""Where numbers are found in what a command prints, and in its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocl_sweeper.script.numbers import Listener, NoNumberError, Source

PRINTED = b"""starting
{"epoch": 1, "eval": {"acc": 0.5}}
loss=0.5 loss=0.25
{"epoch": 2, "eval": {"acc": "0.75"}, "a.b": {"c.d": 7}}
{"epoch": 3}
{broken
10%\r50%\r{"last": [1, 2, {"x": 4}]}
\xff\xfe accuracy: 1e-3
[1, 2]
no newline: 12"""


def source(key: str | None = None, regex: str | None = None, file: str | None = None) -> Source:
    return Source("script.score", file, key, regex)


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (source("eval.acc"), 0.75),
        (source("epoch"), 3),
        (source("a.b.c.d"), 7),
        (source("last.-1.x"), 4),
        (source("last.0"), 1),
        (source(regex=r"loss=(\S+)"), 0.25),
        (source(regex=r"accuracy: (\S+)"), 1e-3),
        (source(regex=r"newline: (\d{2})"), 12),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_last_line_that_has_the_number_counts(asked: Source, number: float, size: int) -> None:
    listener = Listener([asked])
    for start in range(0, len(PRINTED), size):
        listener.feed(PRINTED[start : start + size])
    listener.close()
    assert listener.number(asked) == number
    assert listener.lines == 10


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (source("eval.f1"), "the last line of the output that is a JSON object with the key 'eval.f1'"),
        (source(regex="f1=(.*)"), "the last match of the regular expression 'f1=(.*)' in the output"),
        (source("eval"), "script.score is {'acc': '0.75'}, not a number"),
        (source(regex="^(start)ing"), "script.score is 'start', not a number"),
        (source("last.7"), "script.score was not found"),
    ],
)  # fmt: skip
def test_a_missing_number_says_what_was_searched(asked: Source, said: str) -> None:
    listener = Listener([asked])
    listener.feed(PRINTED)
    with pytest.raises(NoNumberError) as raised:
        listener.number(asked)
    assert said in str(raised.value) and "lines)" in str(raised.value)


def test_an_endless_line_takes_no_endless_memory() -> None:
    listener = Listener([source(regex=r"acc=(\d+)")])
    for _ in range(40):
        listener.feed(b"." * (1 << 16))
    listener.feed(b"acc=7\n")
    assert listener.number(source(regex=r"acc=(\d+)")) == 7


def test_numbers_in_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{\n "acc": {"b": [0.1, 0.9]}\n}')
    (tmp_path / "m.jsonl").write_text('{"acc": 1}\n{"acc": 2}\n{"loss": 3}\n')
    (tmp_path / "m.txt").write_text("acc 1\nacc 5\n")
    assert source("acc.b.-1", file="m.json").in_file(tmp_path) == 0.9
    assert source("acc", file="m.jsonl").in_file(tmp_path) == 2
    assert source(regex=r"^acc (\d)", file="m.txt").in_file(tmp_path) == 5
    for asked, said in [
        (source("acc", file="gone.json"), "gone.json cannot be read: No such file"),
        (source("f1", file="m.json"), "script.score was not found: the key 'f1' in m.json"),
        (source("acc", file="m.txt"), "m.txt is no JSON: "),
        (source("f1", file="m.jsonl"), "the last line of m.jsonl that is a JSON object with"),
    ]:
        with pytest.raises(NoNumberError) as raised:
            asked.in_file(tmp_path)
        assert said in str(raised.value)
