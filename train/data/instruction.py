"""Instruction templates: one line of text says what a task's model reads and what it answers.

    [IMAGE:image,preprocess=digits] what digit is this? -> [TEXT:label,closed_set]

    template : side "->" side                      exactly one "->"; the encoder side may be empty
    side     : ( text | slot )*                    text between slots is stripped, empty runs vanish
    slot     : "[" TYPE ( ":" NAME )? ( "," ATTR )* "]"       no white space inside
    TYPE     : TEXT | IMAGE                        IMAGE on the encoder side only
    NAME     : [_A-Za-z0-9]+                       a data column; default: the position in the template
    ATTR     : flag | key "=" [_A-Za-z0-9.]+

Literal brackets are `\\[` and `\\]`. `<BOS>` and `<EOS>` are accepted and dropped: every group of
text gets its begin and end marks anyway. Standard library only: a mistake in a template is found
when the configuration is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from train.config.typed import nearest

Side = Literal["encoder", "decoder"]
Value = str | int | float | bool

TYPES = ("TEXT", "IMAGE")
RESERVED_TYPES = ("BOX", "AUDIO", "MOTION", "PHONE", "VIDEO", "STRUCT", "CATEGORY")
DEFAULT_PREPROCESS = {"TEXT": "text", "IMAGE": "image"}

KEYS = {
    "TEXT": ("preprocess", "adaptor", "max_length", "mask_ratio", "noise_ratio"),
    "IMAGE": ("preprocess", "adaptor", "mask_ratio"),
}
FLAGS = {"TEXT": ("uncased", "no_punctuation", "verbatim", "no_loss", "closed_set"), "IMAGE": ()}
DECODER_FLAGS = ("no_loss", "closed_set")
RATIOS = ("mask_ratio", "noise_ratio")

SEPARATOR = re.compile(r"\s*\|\|\|\s*")  # between several templates, and between data sources
_MARKS = re.compile(r"(?:\s*<(?:BOS|EOS)>\s*)+")
_TOKENS = re.compile(r"\\[\[\]]|\[[^\[\]]*\]|[\[\]]|->")
_SLOT = re.compile(r"([A-Z_]+)(?::([_A-Za-z0-9]+))?((?:,[_A-Za-z0-9]+(?:=[_A-Za-z0-9.]+)?)*)")


class TemplateError(ValueError):
    """A template that cannot be read; the message marks the column and says the repair."""

    def __init__(self, template: str, column: int, what: str) -> None:
        """`column` counts characters of `template` from 0; messages count from 1."""
        line = "".join(" " if c.isspace() else c for c in template)
        self.column = column
        super().__init__(
            f"instruction template, column {column + 1}: {what}\n"
            f"    {line}\n    {' ' * _width(line[:column])}^"
        )


class FillError(ValueError):
    """A row lacks the value of a slot."""


@dataclass(frozen=True)
class Slot:
    """One place of a template: a run of plain text, or a slot that rows fill."""

    side: Side
    type: str
    position: int  # over both sides, runs of text counted
    name: str  # of the data column; plain text: its position
    text: str | None  # plain text; null: to be filled
    attributes: Mapping[str, Value]

    @property
    def preprocess(self) -> str:
        return str(self.attributes.get("preprocess", DEFAULT_PREPROCESS[self.type]))

    def has(self, flag: str) -> bool:
        return flag in self.attributes

    def __str__(self) -> str:
        if self.text is not None:
            return _escaped(self.text)
        attributes = [k if v is True else f"{k}={v}" for k, v in self.attributes.items()]
        return f"[{','.join([f'{self.type}:{self.name}', *attributes])}]"


@dataclass(frozen=True)
class Template:
    """A parsed template; `str` of it parses to the same slots."""

    slots: tuple[Slot, ...]
    target: Slot  # what is to be answered: the last decoder slot that is not `no_loss`

    def side(self, side: Side) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.side == side)

    def __str__(self) -> str:
        encoder, decoder = (" ".join(map(str, self.side(s))) for s in ("encoder", "decoder"))
        return f"{encoder} -> {decoder}".strip()


def parse_all(templates: str | Sequence[str]) -> tuple[Template, ...]:
    """One or several templates: a text, or a list, each split at ` ||| `.

    Raises TemplateError, also where they do not share their target's name and type.
    """
    texts = [templates] if isinstance(templates, str) else list(templates)
    sources = [part for text in texts for part in SEPARATOR.split(text.strip())]
    parsed = tuple(parse(source) for source in sources)
    if not parsed:
        raise TemplateError("", 0, "no template given; write at least one")
    first = parsed[0].target
    for source, other in zip(sources, parsed, strict=True):
        if (other.target.name, other.target.type) != (first.name, first.type):
            raise TemplateError(
                source,
                source.index("->") + 2,
                f"its target is {other.target}, that of the first template is {first}; "
                "templates of one task must share their target's name and type",
            )
    return parsed


def parse(template: str) -> Template:
    """The slots of one template. Raises TemplateError."""
    tokens = list(_TOKENS.finditer(template))
    if stray := next((token for token in tokens if token[0] in ("[", "]")), None):
        raise TemplateError(template, stray.start(), _stray(template, stray))
    arrows = [token.start() for token in tokens if token[0] == "->"]
    if len(arrows) != 1:
        raise TemplateError(
            template,
            arrows[1] if arrows else len(template),
            f"exactly one '->' divides what is read from what is answered, not {len(arrows)}",
        )
    slots: list[Slot] = []
    side: Side = "encoder"
    run, begin = "", 0  # plain text so far, and where what follows the last token begins
    for token in [*tokens, None]:
        run += template[begin : token.start() if token else None]
        begin = token.end() if token else 0
        if token and token[0].startswith("\\"):
            run += token[0][1]
            continue
        if text := _MARKS.sub(" ", run).strip():
            slots.append(Slot(side, "TEXT", len(slots), str(len(slots)), text, {}))
        run = ""
        if token and token[0] == "->":
            side = "decoder"
        elif token:
            slots.append(_slot(template, token, side, len(slots)))
    answers = [s for s in slots if s.side == "decoder" and s.text is None]
    targets = [s for s in answers if not s.has("no_loss")]
    if not targets:
        raise TemplateError(
            template,
            len(template),
            "the decoder side needs a slot to answer in, such as [TEXT:label]"
            + ("; all of those there are no_loss" if answers else ""),
        )
    return Template(tuple(slots), targets[-1])


Filled = Sequence[tuple[Slot, Any]]  # each slot with its value; null only on the decoder side


def fill(template: Template, row: Mapping[str, Any], where: str = "row") -> Filled:
    """The slots of a template with the values of `row`, a mapping from slot names to values.

    A decoder slot without value stays null: it is to be generated. `""` and 0 are values.
    Raises FillError, which calls the row `where`, for a missing or null value on the encoder side.
    """
    filled: list[tuple[Slot, Any]] = []
    for slot in template.slots:
        value = slot.text if slot.text is not None else row.get(slot.name)
        if value is None and slot.side == "encoder":
            state = "is null" if slot.name in row else "is missing"
            raise FillError(
                f"{where}: column '{slot.name}' {state}, but {slot} of the instruction needs it. "
                f"Columns there: {', '.join(map(str, row)) or 'none'}; name them by "
                "dataset.selected_cols, or change the template"
            )
        filled.append((slot, value))
    return filled


def _slot(template: str, token: re.Match[str], side: Side, position: int) -> Slot:
    """The slot that `token`, text between brackets, is."""

    def wrong(what: str) -> TemplateError:
        return TemplateError(template, token.start(), what)

    found = _SLOT.fullmatch(token[0][1:-1])
    if not found:
        raise wrong(_not_a_slot(token[0]))
    kind, name, attributes = found.groups()
    if kind in RESERVED_TYPES:
        raise wrong(f"slot type {kind} is not supported; there are {' and '.join(TYPES)}")
    if kind not in TYPES:
        raise wrong(
            f"'{token[0]}': unknown slot type {kind}{nearest(kind, TYPES)} (there are "
            f"{' and '.join(TYPES)}); as plain text it is {_escaped(token[0])}"
        )
    if kind == "IMAGE" and side == "decoder":
        raise wrong("IMAGE is not supported on the decoder side: models here answer text")
    values: dict[str, Value] = {}
    for attribute in re.finditer("[^,]+", attributes):
        try:
            key, value = _attribute(kind, side, attribute[0])
            if key in values:
                raise ValueError(f"attribute {key} is given twice")
        except ValueError as error:
            column = token.start() + 1 + found.start(3) + attribute.start()
            raise TemplateError(template, column, f"{token[0]}: {error}") from None
        values[key] = value
    return Slot(side, kind, position, name or str(position), None, values)


def _attribute(kind: str, side: Side, attribute: str) -> tuple[str, Value]:
    """Key and value of one attribute. Raises ValueError with the rule that it breaks."""
    key, equals, text = attribute.partition("=")
    known = (*KEYS[kind], *FLAGS[kind])
    if key not in known:
        raise ValueError(
            f"{kind} has no attribute {key}{nearest(key, known)} (it has {', '.join(known)})"
        )
    if key in FLAGS[kind]:
        if equals:
            raise ValueError(f"{key} is a flag and takes no value; write {key} alone")
        if key in DECODER_FLAGS and side == "encoder":
            raise ValueError(f"{key} belongs on the decoder side, right of '->'")
        return key, True
    if not equals:
        raise ValueError(f"{key} needs a value: {key}=...")
    if key == "max_length":
        if not re.fullmatch("[0-9]+", text) or int(text) < 1:
            raise ValueError(f"max_length={text}: must be a whole number of at least 1")
        return key, int(text)
    if key in RATIOS:
        if not re.fullmatch(r"[0-9]*\.?[0-9]+|[0-9]+\.", text) or not float(text) <= 1:
            raise ValueError(f"{key}={text}: must be a number and lie in [0, 1]")
        return key, float(text)
    return key, text


def _not_a_slot(bracket: str) -> str:
    """The mistake in text in brackets that is no slot, and the repair where it is clear."""
    inside = bracket[1:-1]
    if re.search(r"\s", inside):
        reason = "a slot has no white space inside"
    elif not inside.isascii():
        reason = "names and attributes are made of A-Z, a-z, 0-9 and _"
    else:
        reason = "a slot is [TYPE:NAME,ATTRIBUTE,...]"
    bare = re.sub(r"\s*([:,=])\s*", r"\1", inside.strip())
    bare = re.sub(r"[:,]+(?=,|$)", "", bare)  # empty names and attributes
    kind = re.match("[A-Za-z]*", bare)
    assert kind is not None
    bare = kind[0].upper() + bare[kind.end() :]
    clear = _SLOT.fullmatch(bare) and kind[0].upper() in (*TYPES, *RESERVED_TYPES)
    repair = f"write [{bare}], or " if clear else "write "
    return f"'{bracket}' is not a slot: {reason}; {repair}{_escaped(bracket)} for literal brackets"


def _stray(template: str, token: re.Match[str]) -> str:
    """The message about a bracket without its partner."""
    if token[0] == "[":
        rest = re.match(r"[A-Z]+(?::[_A-Za-z0-9]+)?(?:,[_A-Za-z0-9=.]+)*", template[token.end() :])
        clear = rest and rest[0].partition(":")[0].partition(",")[0] in TYPES
        repair = f"close it, [{rest[0]}], or write " if rest and clear else "write "
        return f"'[' is not a slot: no ']' follows before the next '['; {repair}\\[ for a bracket"
    before = re.search(r"(?:TEXT|IMAGE)[^\s\[\]]*$", template[: token.start()])
    repair = f"open it, [{before[0]}], or write " if before else "write "
    return f"']' closes nothing; {repair}\\] for a bracket"


def _escaped(text: str) -> str:
    return re.sub(r"[\[\]]", r"\\\g<0>", text)


def _width(text: str) -> int:
    """Terminal columns of `text`: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
