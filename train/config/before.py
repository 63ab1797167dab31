"""Mistakes that Hydra would report without their place, found before it starts.

Words of the command line that Hydra cannot read, sections that are no mapping, and keys below `hydra`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocl_sweeper.command_line import CONFIG_NAME, FOLDERS, OTHERS_WITH_VALUE, CommandLineError
from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.layers import load_layers
from autocl_sweeper.yaml.origins import TYPED, Layer, keys_of, layers_of_file, origin
from train.config.schema import CONF, KINDS, VERSION_BASE, TopLevel, not_a_section
from train.config.typed import nearest, nested, options, shown

OTHER_CONFIGS = (*FOLDERS, "hydra.searchpath")  # whose keys are known to Hydra alone
WORDS_IN_A_LIST = re.compile(r"[\[,]\s*([\w.-]+(?:\s+[\w.-]+)+)\s*[,\]]")


def check_words(words: Sequence[str]) -> None:
    """Raise CommandLineError for a mistake in `words`, Hydra's arguments, or in the files they name."""
    typed = [_override(word) for word in overrides_of(words)]
    files = _files(words)
    if files is None or any(word.partition("=")[0] in OTHER_CONFIGS for word in words):
        return
    _refuse_unknown(typed)
    try:
        values = load_layers(files)
    except LayerError as error:
        raise CommandLineError(str(error)) from error
    layers = [layer for file in files for layer in layers_of_file(file)]
    plain = [override for override in typed if not override.is_sweep_override()]
    for key, value, told in _misshapen(values, plain):
        raise CommandLineError(f"{origin(layers, key)}: {key}={shown(value)}: {told}")
    _refuse_hydras(files, plain, layers)


def overrides_of(words: Sequence[str]) -> list[str]:
    """The overrides among Hydra's arguments."""
    found, before = [], ""
    for word in words:
        is_value = before in (*CONFIG_NAME, *FOLDERS, *OTHERS_WITH_VALUE)
        apart = before.startswith("-") and "=" not in before and before not in ("-m", "--multirun")
        if not (word.startswith("-") or is_value or (apart and "=" not in word)):
            found.append(word)
        before = word
    return found


# -- words -----------------------------------------------------------------------------------------


def _override(word: str) -> Override:
    """`word` as Hydra reads it. Raises CommandLineError, with what can be read instead."""
    key, equals, value = word.partition("=")
    if not equals and not word.startswith("~"):
        raise CommandLineError(f"{TYPED}: {word}: {_no_override(word)}")
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise CommandLineError(f"{TYPED}: {word}: {_quoting(key, value, error)}") from None
    found = WORDS_IN_A_LIST.search(value)
    if value.startswith("[") and found and not {'"', "'"} & set(value):
        listed = value.replace(found[1], ",".join(found[1].split()))
        quoted = value.replace(found[1], f'"{found[1]}"')
        raise CommandLineError(
            f"{TYPED}: {word}: elements of a list are divided by commas, and one with a space in it wants"
            f" quotes.\n  Write {shlex.quote(f'{key}={listed}')} or {shlex.quote(f'{key}={quoted}')}"
        )
    return override


def _no_override(word: str) -> str:
    groups = sorted(path.parent.name for path in CONF.glob(f"*/{word}.yaml")) if word else []
    if groups:
        return f"a file of the group '{groups[0]}' is chosen by {groups[0]}={word}"
    if found := re.fullmatch(r"([\w.]+):\s*(\S.*)", word):
        return f"an override has an equals sign: {shlex.quote(f'{found[1]}={found[2]}')}"
    return "is neither a YAML file nor key=value (without spaces around the equals sign)"


def _quoting(key: str, value: str, error: HydraException) -> str:
    """What is wrong with an override that cannot be read, and how to write it."""
    if "*" in key:
        first, *below = key.split(".")
        node = value
        for name in reversed(below):
            node = f"{{{name}:{node}}}"
        if _reads(f"{first}={node}"):
            return f"a key has no star in it. Write {shlex.quote(f'{first}={node}')}"
    if value[:1] == "{":
        example = shlex.quote(key + '={name: "a text"}')
        return f"the mapping cannot be read. Its }} is missing, or a text in it wants quotes: {example}"
    text = f'{key}="' + re.sub(r'(\\*)"', r'\1\1\\"', value) + '"'
    if _reads(text, value):
        return f"as a text the value wants quotes. Write {shlex.quote(text)}"
    return str(error).replace("\n", "\n  ")


def _reads(word: str, value: str | None = None) -> bool:
    try:
        found = OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return value is None or found.value() == value


def _refuse_unknown(typed: Iterable[Override]) -> None:
    """Keys that are nowhere; Hydra would say that a plus adds them, and a plus does not."""
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    known = [*KINDS, *options(TopLevel), "hydra", *groups]
    for override in typed:
        top = re.split(r"[./@\[]", override.key_or_group)[0]
        if top not in known:
            near = nearest(top, known) or ". python train.py --info lists those there are"
            raise CommandLineError(
                f"{TYPED}: {override.input_line}: there is no section or key '{top}'{near}"
            )


# -- files -----------------------------------------------------------------------------------------


def _files(words: Sequence[str]) -> list[str] | None:
    """The YAML files that go over the app's own; None where the app's own is not what is composed."""
    if words[:1] != ["--config-name"]:
        return []
    first, *files = words[1].split("+")
    return files if first == "base" else None


Wrong = Iterator[tuple[str, Any, str]]
"""Key, value, and what is wrong with them."""


def _misshapen(values: Mapping[Any, Any], words: Sequence[Override]) -> Wrong:
    """Sections that are no mapping, and dotted keys below `hydra`; Hydra would fail far from them."""
    for name, node in values.items():
        if (name in KINDS or name == "hydra") and node != "???" and not isinstance(node, dict):
            yield str(name), node, not_a_section(str(name), node)
    if isinstance(values.get("hydra"), dict):
        try:
            found = _composed("base", words).hydra
        except ConfigCompositionException:
            return  # a word is wrong; the whole is composed next
        yield from _below("hydra", values["hydra"], OmegaConf.to_container(found, resolve=False))


def _below(above: str, given: Mapping[Any, Any], known: Any) -> Wrong:
    for name, value in given.items():
        key, below = f"{above}.{name}", known.get(name)
        if "." in str(name) and str(name).partition(".")[0] in known:
            yield key, value, nested(str(name), value)
        if not isinstance(below, dict):
            continue
        if isinstance(value, Mapping):
            yield from _below(key, value, below)
        elif isinstance(value, str) and value != "???":
            yield key, value, _no_mapping(key, value)
        elif value is None and not re.match(r"hydra\.(hydra|job)_logging\.", key):
            # Of those two Python reads what is below.
            told = "null is no section. Remove it to have the defaults, or give it options"
            yield key, value, told


def _no_mapping(key: str, value: str) -> str:
    if found := re.fullmatch(r"(\w+)=(.*)", value):
        return f"a key in a file has a colon and a space behind it: {found[1]}: {found[2]}"
    choice = value if re.fullmatch(r"\w+", value) else "<name>"
    return (
        "must be a mapping of options. A file of the group is chosen on the command line:"
        f" {key.replace('.', '/')}={choice}"
    )


def _chosen_by(keys: Sequence[Any]) -> str:
    """What to choose on the command line so that an option of the sweeper or the launcher exists."""
    group, store = "/".join(map(str, keys[:-1])), ConfigStore.instance()
    if group not in ("hydra/sweeper", "hydra/launcher"):
        return ""
    files = [name for name in store.list(group) if name.endswith(".yaml")]
    names = [name for name in files if keys[-1] in store.load(f"{group}/{name}").node]
    listed = " and of ".join(f"{group}={name.removesuffix('.yaml')}" for name in sorted(names))
    return f"; it is one of {listed}, to be chosen on the command line" if listed else ""


def _composed(name: str, words: Sequence[Override]) -> Any:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose(name, [str(one.input_line) for one in words], return_hydra_config=True)


def _refuse_hydras(
    files: Sequence[str], words: Sequence[Override], layers: Sequence[Layer]
) -> None:
    """Keys of Hydra, the sweeper and the launcher that are not there, or have a wrong value."""
    told_hydra = any(re.match("hydra[./]", override.key_or_group) for override in words)
    if not told_hydra and not any("hydra" in layer.values for layer in layers):
        return
    try:
        _composed("+".join(["base", *files]), words)
    except ConfigCompositionException as error:
        cause = error.__cause__ or error.__context__
        key = getattr(cause, "full_key", None)
        if not isinstance(cause, OmegaConfBaseException) or not str(key).startswith("hydra"):
            return  # Hydra's own report has the place
        known = getattr(cause.object_type, "__dataclass_fields__", {})
        last = str(keys_of(str(key))[-1])
        if dataclasses.is_dataclass(cause.object_type) and last not in known:
            others = f". There are: {', '.join(known)}"
            near = nearest(last, known) or _chosen_by(keys_of(str(key))) or others
            told = f"there is no option '{last}'{near}"
        else:
            told = str(cause.msg or cause).partition("\n")[0]
        at = [one for one in words if one.key_or_group == key]
        place = f"{TYPED}: " + str(at[0].input_line) if at else f"{origin(layers, str(key))}: {key}"
        raise CommandLineError(f"{place}: {told}") from error
