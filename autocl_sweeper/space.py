"""The search space in Hydra's words: override text <-> distributions <-> override text.

Reading goes through Hydra's own parser, with one function of ours: `range` is expanded here, in
exact decimals and without its stop, because the Hydra lines differ (1.3 lists
`range(0.1,0.4,0.1)` as four values ending in 0.4). `shuffle` gives one fixed order per override,
since a resumed sweep must meet the same suggestions again.

Writing: every value of `types.Value` survives but

- text with lone surrogates (a file name that is not valid UTF-8): it cannot be written to a file;
- mapping keys with quotes, non-ASCII or control characters, empty keys, and keys Hydra reads as a
  number, a boolean or null: the override grammar has no quotes for keys;
- `literal("???")`: OmegaConf reads it as "missing", however it is quoted.

These raise ConfigurationError. Two habits of the hosts remain: a mapping is merged into the one
the config already has (`x={}` changes nothing), and an app that calls `OmegaConf.resolve(cfg)`
takes the escape off a literal `${`, so that reading it afterwards interpolates after all.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
)
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocl_sweeper.distributions import Choice, Distribution, Interval
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.types import Value

LONGEST_RANGE = 1_000_000

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Argument:
    """One override of a multirun's command line.

    `key` is as typed, with its prefix (+, ++, ~) and @package; `text` is the whole override,
    untouched; `distribution` is None when it is no sweep. `merges`: a mapping, which goes over what
    other overrides of its key set and replaces none of them.
    """

    key: str
    text: str
    distribution: Distribution | None
    merges: bool = False


# --- reading ------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str], config_loader: ConfigLoader | None) -> list[Argument]:
    """The overrides of a multirun in order; of two for the same key the later one counts.

    It counts in the place of the earlier one, as in Hydra's basic sweeper. `config_loader` is what
    `glob()` asks for the options of a group.
    """
    parser = _parser(config_loader)
    by_key: dict[str, Argument] = {}
    for text in arguments:
        override = _parse(parser, text, COMMAND_LINE, text.partition("=")[0], text)
        key = override.get_key_element()
        sweeps = override.is_sweep_override()
        distribution = _distribution(override, COMMAND_LINE, key, text) if sweeps else None
        merges = not sweeps and isinstance(override.value(), dict)
        by_key[text if merges else key] = Argument(key, text, distribution, merges)
    return list(by_key.values())


def parse_space(
    params: Mapping[str, Any], config_loader: ConfigLoader | None, where: str
) -> dict[str, Distribution]:
    """The search space a config describes: dotted override key -> distribution.

    Keys may be dotted, nested, or both; of two that flatten to the same the later one counts. A
    text is Hydra's sweep syntax, a list holds one choice per element (taken as they are, not
    parsed), any other scalar is a choice of one. `where` names the config in messages, for
    example "hydra.sweeper.params".
    """
    parser = _parser(config_loader)
    space: dict[str, Distribution] = {}
    try:
        params = _plain(params)
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{where}: a value cannot be read: {error}") from error
    for key, value in _flatten(params, where):
        sweep_text = value if isinstance(value, str) else "0"
        override = _parse(parser, f"{key}={sweep_text}", where, key, value)
        if override.get_key_element() != key or override.is_delete():
            raise _wrong(where, key, value, "the key is not an override key", _KEY_REMEDY)
        if value is None:
            raise _wrong(where, key, value, "the key has no value", _NULL_REMEDY)
        if isinstance(value, str) and override.is_sweep_override():
            space[key] = _distribution(override, where, key, value)
        elif isinstance(value, (list, tuple)):
            space[key] = _choice(value, where, key, value)
        else:
            alone = override.value() if isinstance(value, str) else value
            space[key] = _choice([alone], where, key, value)
    return space


_KEY_REMEDY = (
    "Write it as on the command line, without the value: 'optimizer.lr', '+new.key', 'group@pkg'; "
    "a prefix + or ++ comes before the whole key."
)
_CUT_REMEDY = (
    "Flow YAML cuts a text at its commas ({x: choice(0,1)} becomes {'x': 'choice(0', '1)': null}): "
    "quote it, {x: 'choice(0,1)'}, or write it in block style."
)
_NULL_REMEDY = (
    'To sweep over null write "null" in quotes or [null]; to take the key out, override it with '
    "~. " + _CUT_REMEDY
)
_SYNTAX_REMEDY = (
    "Values follow Hydra's override grammar "
    "(https://hydra.cc/docs/advanced/override_grammar/basic): put a text with special characters "
    "in quotes of its own, \"choice('it is','a,b')\", or give a YAML list, whose elements are "
    "taken as they are."
)
_INTERVAL_REMEDY = (
    "Intervals are written interval(0,1), tag(log, interval(1e-5,1e-2)) or int(interval(1,8))."
)


def _wrong(where: str, key: str, value: object, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{where}: {key!r}: {value!r}: {problem}\n{remedy}")


def _parser(config_loader: ConfigLoader | None) -> OverridesParser:
    functions = create_functions()
    del functions.definitions["range"]
    functions.register(name="range", func=_range)
    return OverridesParser(functions=functions, config_loader=config_loader)


# Hydra checks arguments against annotations at run time, and there an int is no float.
_Number: TypeAlias = int | float


def _range(start: _Number, stop: _Number | None = None, step: _Number = 1) -> ChoiceSweep:
    """Hydra's `range` as a choice, so that sort, shuffle, tag and casts work on its values."""
    if stop is None:
        start, stop = 0, start
    if not all(map(math.isfinite, (start, stop, step))):
        raise ValueError("a range needs finite numbers")
    if step == 0:
        raise ValueError("a range needs a step other than 0")
    # repr is the shortest decimal that reads back as the float: what the user typed.
    first, last, stride = (Fraction(repr(number)) for number in (start, stop, step))
    count = max(0, math.ceil((last - first) / stride))
    if count == 0:
        raise ValueError("a range without values: from start by step, the stop left out")
    if count > LONGEST_RANGE:
        raise ValueError(
            f"a range of {count} values, more than {LONGEST_RANGE}: take a larger step, or "
            "interval(low,high) with a search that can sample it"
        )
    whole = all(isinstance(number, int) for number in (start, stop, step))
    values = (first + place * stride for place in range(count))
    return ChoiceSweep(list=[int(value) if whole else float(value) for value in values])


def range_of(text: str) -> tuple[_Number, _Number, _Number] | None:
    """Start, stop and step of Hydra's `range(...)`, finite; None where Hydra does not read it."""
    try:
        sweep: Any = OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        return None
    found = (sweep.start, sweep.stop, sweep.step)
    return found if all(map(math.isfinite, found)) else None


def _parse(parser: OverridesParser, text: str, where: str, key: str, value: object) -> Override:
    try:
        return parser.parse_overrides([text])[0]
    except (HydraException, ValueError, RecursionError) as error:
        cut = isinstance(value, str) and any(
            value.count(opening) > value.count(closing) for opening, closing in ("()", "[]", "{}")
        )
        remedy = _CUT_REMEDY if cut or value is None else _SYNTAX_REMEDY
        raise _wrong(where, key, value, f"Hydra cannot read it: {error}", remedy) from error


def _distribution(override: Override, where: str, key: str, value: object) -> Distribution:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        if unknown := sorted(sweep.tags - {"log"}):
            problem = f"an interval knows the tag 'log', not {', '.join(map(repr, unknown))}"
            raise _wrong(where, key, value, problem, _INTERVAL_REMEDY)
        low, high = sweep.start, sweep.end
        assert low is not None and high is not None
        integer = isinstance(low, int) and isinstance(high, int)
        try:
            return Interval(float(low), float(high), log="log" in sweep.tags, integer=integer)
        except ConfigurationError as error:
            raise _wrong(where, key, value, str(error), _INTERVAL_REMEDY) from None
    if isinstance(sweep, ChoiceSweep):
        values = list(sweep.list)
        if sweep.shuffle:
            # Seeded by text: Python keeps that stable between versions, and a resume needs it.
            generator = random.Random(f"{key}={value}")
            values.sort(key=lambda _: generator.random())
        return _choice(values, where, key, value)
    try:
        options = list(override.sweep_iterator())
    except HydraException as error:
        raise _wrong(where, key, value, f"Hydra cannot list it: {error}", _SYNTAX_REMEDY) from error
    if not options:
        problem = f"no config of the group {override.key_or_group!r} matches"
        remedy = "Look at the group's folder on the config search path (--info searchpath)."
        raise _wrong(where, key, value, problem, remedy)
    return _choice(options, where, key, value)


def _choice(elements: Sequence[object], where: str, key: str, value: object) -> Choice:
    try:
        values = tuple(_value(element) for element in elements)
        for element in values:
            encode(element)
        return Choice(values)
    except ConfigurationError as error:
        raise _wrong(where, key, value, str(error), _SYNTAX_REMEDY) from None


def _value(element: object) -> Value:
    """A parsed element without Hydra's quotes."""
    if isinstance(element, QuotedString):
        return element.text
    if isinstance(element, (list, tuple)):
        return [_value(item) for item in element]
    if isinstance(element, Mapping):
        return {key: _value(item) for key, item in element.items()}
    return cast(Value, element)  # encode, next in line, refuses what is none


def _plain(node: Any) -> Any:
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    return node


def _flatten(
    params: Mapping[Any, Any], where: str, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if not isinstance(name, str):
            raise _wrong(where, str(name), value, "a key that is not text", _KEY_REMEDY)
        path = (*above, name)
        if isinstance(value, Mapping):
            yield from _flatten(value, where, path)
        else:
            yield ".".join(path), value


# --- writing ------------------------------------------------------------------------------------

# What Hydra's lexer reads back as the same text, in a value, a list or a mapping. Smaller than the
# whole truth on purpose: in doubt, quotes are right too.
_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*")
_BARE_BUT_NO_TEXT = {"null", "true", "false", "inf", "nan"}

# Mapping keys have no quotes. The characters the grammar knows, and those it wants escaped:
_KEY = re.compile(r"[A-Za-z0-9_/\-\\+.$%*@?|()\[\]{}:=, \t]+")
_KEY_ESCAPED = re.compile(r"[\\()\[\]{}:=, \t]")
_INT = r"(?:0|[1-9](?:_?\d)*)"
_POINT = rf"(?:{_INT}\.|{_INT}?\.\d(?:_?\d)*)"
_EXPONENT = rf"(?:{_POINT}|{_INT})[eE][+-]?\d(?:_?\d)*"
_KEY_BUT_NO_TEXT = re.compile(
    rf"null|true|false|[+-]?(?:{_EXPONENT}|{_POINT}|{_INT}|inf|nan)", re.ASCII | re.IGNORECASE
)


@cache  # asked at every trial, of keys of the settings
def is_key(text: str) -> bool:
    """Whether Hydra's grammar takes a text as the key of an override that sets a value."""
    try:
        parsed = _parser(None).parse_overrides([f"{text}=0"])[0]
    except (HydraException, ValueError, RecursionError):
        return False
    return parsed.get_key_element() == text and not parsed.is_delete()


def bare(key: str) -> str:
    """The key that `key`, `+key` and `++key` set; `~key` takes away what they set."""
    return key.lstrip("+")


def override(key: str, value: Value) -> str:
    """The override that gives `key` this value. Raises ConfigurationError naming the key."""
    try:
        return f"{key}={encode(value)}"
    except ConfigurationError as error:
        raise ConfigurationError(f"override of {key!r}: {error}") from None


def encode(value: Value) -> str:
    """The text that Hydra's override grammar reads as `value`.

    The value is OmegaConf's: a text may hold `${...}`, which interpolates; see `literal`.
    Raises ConfigurationError for what no text can say (the list is on top of this file).
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    # The types' own methods: numpy's float64 and text enums are float and str with another repr.
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, str):
        return _encode_text(str.__str__(value))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(encode, value)) + "]"
    if isinstance(value, Mapping):
        items = (f"{_encode_key(key)}:{encode(item)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if not getattr(value, "shape", True):  # a numpy scalar
        return encode(value.item())
    raise ConfigurationError(
        f"{value!r} is a {type(value).__name__}; an override can carry texts, numbers, booleans, "
        "null, and lists and mappings of them"
    )


def _encode_text(text: str) -> str:
    if _BARE.fullmatch(text) and text.lower() not in _BARE_BUT_NO_TEXT:
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{text!r} holds a lone surrogate, as file names do that are not valid UTF-8; it could "
            "not be written to a file: rename it"
        ) from None
    return QuotedString(text, Quote.single).with_quotes()


def _encode_key(key: object) -> str:
    if not isinstance(key, str):
        problem = f"is a {type(key).__name__}, not text, and would come back changed from a journal"
    elif not key:
        problem = "is empty"
    elif not _KEY.fullmatch(key):
        problem = "holds a character that Hydra's override grammar does not know in keys"
    elif _KEY_BUT_NO_TEXT.fullmatch(key):
        problem = "would be read as a number, a boolean or null, and keys cannot be quoted"
    else:
        return _KEY_ESCAPED.sub(r"\\\g<0>", key)
    raise ConfigurationError(
        f"the mapping key {key!r} {problem}: use another key, pass the mapping as JSON text, or "
        "write it to a config group and sweep over the group"
    )


_INTERPOLATION = re.compile(r"(\\*)\$\{")


def literal(value: Value) -> Value:
    """The value with its texts escaped, so that no `${...}` in them interpolates.

    For what is data, such as paths: `encode(literal(value))` composes to exactly `value`.
    """
    if isinstance(value, str):
        if value == "???":
            raise ConfigurationError(
                "'???' is OmegaConf's word for a missing value and cannot be passed as text"
            )
        # Backslashes before ${ escape each other; one more escapes the ${ itself.
        return _INTERPOLATION.sub(lambda match: rf"{match[1] * 2}\${{", value)
    if isinstance(value, (list, tuple)):
        return [literal(item) for item in value]
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    return value
