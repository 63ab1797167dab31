"""Texts that are no YAML: the line that is wrong, and how to write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.layers import load

BROKEN: dict[str, tuple[str | bytes, str, str]] = {
    # text, place, repair
    "a tab": ("a:\n\tb: 1", "line 2: ", "Replace it by spaces"),
    "a tab behind spaces": ("a:\n  b: 1\n\tc: 2", "line 3: ", "Replace it by spaces"),
    "indented deeper": ("a:\n  b: 1\n   c: 2", "line 3: ", "deeper than the line above"),
    "indented less": ("a:\n    b: 1\n  c: 2", "line 3: ", "begins in another"),
    "two colons": ("a:\n  b: x: y", "line 2: ", "quotes: b: 'x: y'"),
    "two colons and a quote": ("a: it's: y", "line 1: ", "quotes: a: 'it''s: y'"),
    "text behind a bracket": ("a: 1\nb: [X:y] -> [Z]", "line 2: ", "quotes: b: '[X:y] -> [Z]'"),
    "a star": ("a:\n  *: {b: 1}", "line 2: ", 'quotes: "*":'),
    "an at sign": ("a: @b", "line 1: ", "quotes: a: '@b'"),
    "a backslash": (
        'a: 1\nb: "C:\\new\\data"',
        "line 2: ",
        "single quotes, or write each \\ twice",
    ),
    "an open quote": ("a: 'b\nc: 1\nd: 2", "line 1: ", "never closed"),
    "an open brace": ("a: {b: 1\nc: 2", "line 2: ", "is not closed"),
    "no space": ("a: 1\nb:c\n", "line 2: ", "before a value: b: c"),
    "an equals sign": ("a: 1\nb=c\n", "line 2: ", "before a value: b: c"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: ", "one document"),
    "a no-break space": ("a:\n\u00a0\u00a0b: 1", "line 2: ", "plain space"),
    "a key that is null": ("a:\n  null: 1", "line 2: ", "the key null"),
    "a control character": ("a: 1\nb: \a", "line 2: ", "'\\x07'"),
    "Latin-1": ("a: 1\nb: ü".encode("latin1"), "line 2: ", "iconv -f latin1 -t utf-8 a.yaml"),
    "UTF-16": ("a: 1".encode("utf-16"), "is UTF-16, not", "iconv -f utf-16 -t utf-8 a.yaml"),
    "UTF-16 without its mark": ("a: 1".encode("utf-16-le"), "is UTF-16, not", "-f utf-16-le "),
}


@pytest.mark.parametrize("text, place, repair", BROKEN.values(), ids=BROKEN.keys())
def test_a_text_that_is_no_yaml_is_refused_with_its_line_and_the_repair(
    tmp_path: Path, text: str | bytes, place: str, repair: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LayerError) as caught:
        load(str(file))
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"'{file}'") and place in first
    assert repair in str(caught.value)


@pytest.mark.parametrize(
    "text", [one for one in BROKEN.values() if "quotes: " in one[2] or "value: " in one[2]]
)
def test_the_repair_that_is_printed_is_yaml(tmp_path: Path, text: tuple[str, str, str]) -> None:
    file = tmp_path / "a.yaml"
    repair = text[2].partition("quotes: ")[2] or text[2].partition("value: ")[2]
    file.write_text(repair + " {}" if repair.endswith(":") else repair)
    assert len(load(str(file))) == 1


def test_an_entry_of_an_include_list_is_refused_at_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("x: 1\n")
    for entry, words in (
        ("gone.yaml", "line 4"),
        ("b.yaml y", "line 4 asks for 'y'"),
        ("3", "line 4 is not a text"),
        ("''", "line 4 has an empty entry"),
        ("a.yaml", "a.yaml', line 4"),
    ):
        (tmp_path / "a.yaml").write_text(f"x: 1\n_include:\n- b.yaml\n- {entry}\n- b.yaml\n")
        with pytest.raises(LayerError, match=words):
            load(str(tmp_path / "a.yaml"))
