"""Instruction templates: what is read as what, and what is refused where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.instruction import (
    FillError,
    Slot,
    Template,
    TemplateError,
    fill,
    parse,
    parse_all,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/layered_config/instruction_slots.json").read_text()
)


def as_golden(slot: Slot) -> dict[str, Any]:
    return {
        "side": slot.side,
        "type": slot.type,
        "plain_text": slot.text is not None,
        "value": slot.text,
        "position": slot.position,
        "name": slot.name,
        "attributes": dict(slot.attributes),
        "preprocess": slot.preprocess,
    }


@pytest.mark.parametrize("case", GOLDEN["grammar"], ids=lambda c: c["id"])
def test_a_recorded_template_gives_its_slots_or_is_refused(case: dict[str, Any]) -> None:
    expected = case["expected"]
    if "error" in expected:
        with pytest.raises(TemplateError):
            parse(case["template"])
        return
    template = parse(case["template"])
    if "slots" in expected:
        wanted = [{k: v for k, v in one.items() if k != "adaptor"} for one in expected["slots"]]
        assert [as_golden(slot) for slot in template.slots] == wanted
    assert template.target.name == expected["target"]


@pytest.mark.parametrize("case", GOLDEN["fill"], ids=lambda c: c["id"])
def test_a_recorded_row_fills_its_template(case: dict[str, Any]) -> None:
    template = parse(case["template"])
    names = list(dict.fromkeys(slot.name for slot in template.slots if slot.text is None))
    row = dict(zip(names, case["args"], strict=False)) | case["kwargs"]
    if "error" in case["expected"]:
        with pytest.raises(FillError, match="column 'review' is missing"):
            fill(template, row)
        return
    assert [value for _, value in fill(template, row)] == case["expected"]["values"]


@pytest.mark.parametrize("case", GOLDEN["templates"], ids=lambda c: c["id"])
def test_recorded_lists_of_templates_are_divided_or_refused(case: dict[str, Any]) -> None:
    if "error" in case["expected"]:
        with pytest.raises(TemplateError, match="must share their target"):
            parse_all(case["template"])
    else:
        assert [str(t) for t in parse_all(case["template"])] == case["expected"]["templates"]


@pytest.mark.parametrize(
    ("template", "column", "words"),
    [
        (
            "[TEXT: a] -> [TEXT:t]",
            1,
            ["'[TEXT: a]'", "no white space", "write [TEXT:a]", r"\[TEXT"],
        ),
        ("see [image:i] -> [TEXT:t]", 5, ["'[image:i]'", "write [IMAGE:i]"]),
        ("[FOO:a] -> [TEXT:t]", 1, ["unknown slot type FOO", "TEXT and IMAGE"]),
        ("[TEXTS:a] -> [TEXT:t]", 1, ["unknown slot type TEXTS", "did you mean TEXT?"]),
        ("[VIDEO:v] -> [TEXT:t]", 1, ["VIDEO is not supported", "TEXT and IMAGE"]),
        ("[TEXT:a,] -> [TEXT:t]", 1, ["write [TEXT:a]"]),
        ("[TEXT:] -> [TEXT:t]", 1, ["write [TEXT]"]),
        ("[TEXT:文] -> [TEXT:t]", 1, ["A-Z, a-z, 0-9 and _"]),
        ("文 [bad] -> [TEXT:t]", 3, ["'[bad]' is not a slot", r"\[bad\]"]),
        ("[TEXT:a -> [TEXT:t]", 1, ["no ']' follows", "[TEXT:a]"]),
        ("TEXT:a] -> [TEXT:t]", 7, ["closes nothing", "[TEXT:a]"]),
        ("[TEXT:a,max_lenght=3] -> [TEXT:t]", 9, ["max_lenght", "did you mean max_length?"]),
        ("[TEXT:a,uncased,uncased] -> [TEXT:t]", 17, ["uncased is given twice"]),
        ("[TEXT:a,uncased=1] -> [TEXT:t]", 9, ["uncased is a flag", "write uncased alone"]),
        ("[TEXT:a,max_length] -> [TEXT:t]", 9, ["max_length needs a value"]),
        ("[TEXT:a,max_length=0] -> [TEXT:t]", 9, ["max_length=0", "at least 1"]),
        ("[TEXT:a,mask_ratio=1.5] -> [TEXT:t]", 9, ["mask_ratio=1.5", "[0, 1]"]),
        ("[TEXT:a,mask_ratio=nan] -> [TEXT:t]", 9, ["mask_ratio=nan", "[0, 1]"]),
        ("[IMAGE:a,noise_ratio=0.5] -> [TEXT:t]", 10, ["IMAGE has no attribute noise_ratio"]),
        ("[TEXT:a,closed_set] -> [TEXT:t]", 9, ["closed_set belongs on the decoder side"]),
        ("[TEXT:a] -> [IMAGE:i]", 13, ["IMAGE is not supported on the decoder side"]),
        ("a -> b -> [TEXT:t]", 8, ["exactly one '->'", "not 2"]),
        ("a [TEXT:t]", 11, ["exactly one '->'", "not 0"]),
        ("[TEXT:a] -> b", 14, ["needs a slot to answer in"]),
        ("[TEXT:a] -> [TEXT:b,no_loss]", 29, ["needs a slot", "no_loss"]),
    ],
)
def test_a_mistake_is_shown_under_its_column_with_the_repair(
    template: str, column: int, words: list[str]
) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(template)
    message, line, caret = str(caught.value).split("\n")
    assert f"column {column}:" in message and line == f"    {template}"
    for word in words:
        assert word in message
    wide = sum(c == "文" for c in template[: column - 1])
    assert caret == " " * (4 + column - 1 + wide) + "^"


def test_marks_of_begin_and_end_are_dropped_and_leave_one_space() -> None:
    with_marks = parse("<BOS> what <EOS>  <BOS> now? [TEXT:a] <EOS> -> <BOS>[TEXT:t]<EOS>")
    assert with_marks == parse("what now? [TEXT:a] -> [TEXT:t]")


def test_empty_text_and_zero_are_values_and_null_is_none() -> None:
    template = parse("[TEXT:a] [TEXT:b] -> [TEXT:t]")
    assert [value for _, value in fill(template, {"a": "", "b": 0})] == ["", 0, None]
    with pytest.raises(FillError, match=r"line 3: column 'b' is null.*Columns there: a, b"):
        fill(template, {"a": "x", "b": None}, "line 3")


NAMES = st.from_regex("[_A-Za-z0-9]{1,6}", fullmatch=True)
RATIOS = st.sampled_from(["0", "1", "0.5", ".25", "1."])
# Anything but the arrow and the dropped marks; brackets and backslashes as they come.
TEXTS = (
    st.text(st.sampled_from(list("ab ->[]\\:,=<文\n")), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda t: t and "->" not in t)
)


def attributes(side: str, kind: str) -> st.SearchStrategy[str]:
    values: dict[str, st.SearchStrategy[str]] = {
        "preprocess": NAMES,
        "adaptor": NAMES,
        "mask_ratio": RATIOS,
    }
    flags: list[str] = []
    if kind == "TEXT":
        values |= {"max_length": st.integers(1, 99).map(str), "noise_ratio": RATIOS}
        flags = ["uncased", "no_punctuation"]
        flags += ["closed_set", "no_loss"] if side == "decoder" else []
    keys = st.lists(st.sampled_from([*values, *flags]), unique=True, max_size=4)

    def written(chosen: list[str]) -> st.SearchStrategy[str]:
        one = [values[k].map(f"{k}={{}}".format) if k in values else st.just(k) for k in chosen]
        return st.tuples(*one).map(lambda parts: "".join(f",{p}" for p in parts))

    return keys.flatmap(written)


def slots(side: str) -> st.SearchStrategy[str]:
    kinds = st.sampled_from(["TEXT", "IMAGE"] if side == "encoder" else ["TEXT"])
    return kinds.flatmap(
        lambda kind: st.tuples(st.one_of(st.just(""), NAMES.map(":{}".format)), attributes(side, kind))
        .map(lambda parts: f"[{kind}{parts[0]}{parts[1]}]")
    )  # fmt: skip


ESCAPED = TEXTS.map(lambda t: re.sub(r"[\[\]]", r"\\\g<0>", t))


@st.composite
def templates(draw: st.DrawFn) -> str:
    encoder = draw(st.lists(st.one_of(ESCAPED, slots("encoder")), max_size=4))
    decoder = draw(st.lists(st.one_of(ESCAPED, slots("decoder")), max_size=3))
    return f"{' '.join(encoder)} -> {' '.join([*decoder, '[TEXT:target]'])}"


@settings(max_examples=150)
@given(templates())
def test_what_was_parsed_renders_to_a_template_that_parses_alike(source: str) -> None:
    template = parse(source)
    assert parse(str(template)) == template
    assert str(parse(str(template))) == str(template)


@settings(max_examples=150)
@given(templates(), st.data())
def test_every_stray_bracket_is_an_error_at_a_column(source: str, data: st.DataObject) -> None:
    # Not inside of a slot, nor behind a backslash: there a bracket closes or is text.
    places = [m.end() for m in re.finditer(r"(?:^|(?<=[ \]]))(?<!\\\])", source)]
    place = data.draw(st.sampled_from(places or [0]))
    bracket = data.draw(st.sampled_from("[]"))
    with pytest.raises(TemplateError) as caught:
        parse(source[:place] + bracket + " " + source[place:])
    assert 0 <= caught.value.column <= len(source) + 2


@settings(max_examples=200)
@given(st.text(st.sampled_from(list("[]TEXIMAG:,=ab ->\\")), max_size=24))
def test_any_text_is_a_template_or_a_template_error(source: str) -> None:
    try:
        template = parse(source)
    except TemplateError as error:
        assert 0 <= error.column <= len(source)
    else:
        assert isinstance(template, Template)
        brackets = re.sub(r"\\[\[\]]", "", source)
        n_slots = sum(slot.text is None for slot in template.slots)
        assert brackets.count("[") == brackets.count("]") == n_slots
