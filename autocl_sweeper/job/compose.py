"""The configurations of a sweep's jobs, composed in the controller through Hydra's loader.

Hydra takes nearly all of its time for what jobs of a sweep have in common: which files are read and how they
merge. So jobs that differ in plain values alone are set in a copy of an earlier job's configuration.
Whatever else a job's overrides do is Hydra's: choosing files, deleting, interpolations, lists, mappings.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from autocl_sweeper.errors import ConfigurationError

# A configuration takes about 300 kB; a search over what is chosen may have thousands.
MOST_FRAMES = 64

Frame = Callable[[], DictConfig]
"""Makes copies of one configuration."""


class Composer:
    """Composes the jobs of one sweep, as Hydra's `load_sweep_config` does; for one thread."""

    def __init__(self, config_loader: Any, master: DictConfig) -> None:
        self._loader = config_loader
        self._master = master
        self._frames: dict[Any, Frame] = {}
        self._parse = lru_cache(4096)(self._parsed)
        self._is_group = lru_cache(4096)(self._asked_whether_group)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """A job's own configuration, the `hydra` node included. Raises what Hydra does."""
        key, plain = self._split(overrides)
        if plain and key in self._frames:
            # What fails here fails below too, where Hydra explains it.
            with suppress(OmegaConfBaseException, ValueError):
                return self._filled(self._frames[key](), overrides, plain)
        config: DictConfig = self._loader.load_sweep_config(self._master, list(overrides))
        if plain and key not in self._frames:
            if len(self._frames) == MOST_FRAMES:
                del self._frames[next(iter(self._frames))]
            self._frames[key] = _copies(config)
        return config

    def _split(self, overrides: Sequence[str]) -> tuple[Any, list[Any]]:
        """What jobs share that can be copied from each other, and the overrides that set plain values."""
        try:
            parsed = [self._parse(text) for text in overrides]
        except HydraException:  # composing reports it
            return None, []
        keys = [override.key_or_group for override in parsed]
        if "hydra.searchpath" in keys:  # it changes what is a group
            return None, []
        plain = [o for o in parsed if _is_plain(o) and not self._is_group(o.key_or_group)]
        for override in plain:
            own = override.key_or_group
            around = [k for k in keys if f"{k}.".startswith(f"{own}.") or own.startswith(f"{k}.")]
            if len(around) > 1:
                return None, []  # the order in which they are set may matter
        set_later = {id(override) for override in plain}
        shared = tuple(
            (o.type, o.key_or_group) if id(o) in set_later else o.input_line for o in parsed
        )
        return shared, plain

    def _filled(
        self, config: DictConfig, overrides: Sequence[str], plain: Sequence[Any]
    ) -> DictConfig:
        OmegaConf.copy_cache(from_config=self._master, to_config=config)
        for override in plain:
            force = override.is_add() or override.is_force_add()
            OmegaConf.update(
                config, override.key_or_group, override.value(), merge=True, force_add=force
            )
        parsed: dict[str, list[Any]] = {"hydra": [], "task": []}
        for one in map(self._parse, overrides):
            parsed["hydra" if one.is_hydra_override() else "task"].append(one)
        with read_write(config.hydra), open_dict(config.hydra):
            for whose, found in parsed.items():
                node = config.hydra.overrides[whose]
                for place, one in enumerate(found, start=len(node) - len(found)):
                    node[place] = one.input_line
            job = config.hydra.job
            if not OmegaConf.is_interpolation(job, "override_dirname"):  # Hydra 1.3 notes a text
                options = job.config.override_dirname
                job.override_dirname = _override_dirname(parsed["task"], options)
        return config

    def _parsed(self, text: str) -> Any:
        return OverridesParser.create(config_loader=self._loader).parse_overrides([text])[0]

    def _asked_whether_group(self, key: str) -> bool:
        overrides = OmegaConf.to_container(self._master.hydra.overrides.hydra, resolve=False)
        name = self._master.hydra.job.config_name
        return bool(self._loader.get_group_options(key, config_name=name, overrides=overrides))


def _is_plain(override: Any) -> bool:
    """Whether an override sets a number, a truth value or a text in which nothing is put."""
    if override.package is not None or override.is_delete() or override.is_sweep_override():
        return False
    value = override.value()
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return isinstance(value, (bool, int, float))


def _copies(config: DictConfig) -> Frame:
    try:
        data = pickle.dumps(config)
    except (pickle.PicklingError, TypeError, AttributeError):
        # A class that its module does not lead to.
        kept = deepcopy(config)
        return lambda: deepcopy(kept)
    return lambda: pickle.loads(data)


def _override_dirname(overrides: Sequence[Any], options: Any) -> str:
    """`hydra.job.override_dirname` of Hydra 1.3, as its documentation describes it."""
    lines = sorted(o.input_line for o in overrides if o.key_or_group not in options.exclude_keys)
    return re.sub("[=]", options.kv_sep, options.item_sep.join(lines))


# -- checking ahead -----------------------------------------------------------------------------------


Check = Callable[[DictConfig, str], Mapping[str, Any]]
"""(composed configuration, what it is meant for) -> values that the app has besides."""


def flat_configuration(
    compose: Callable[[Sequence[str]], DictConfig],
    overrides: Sequence[str],
    meant_for: str,
    check: Check | None = None,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The flat configuration a job would get, and what the app's check returns of it, flat too.

    Raises ConfigurationError where Hydra or the check refuses the job.
    """
    try:
        composed = compose(overrides)
        tree = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
        assert isinstance(tree, dict)
        found = flat({str(key): node for key, node in tree.items() if key != "hydra"})
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(
            f"{meant_for} cannot be composed: {error}\n"
            f"  with: {' '.join(text for text in overrides if not text.startswith('hydra.'))}\n"
            "  Every key must exist in the app's configuration (prefix a new one with '+') and every"
            "\n  choice must name a file of its group. No job was started."
        ) from error
    return found, {} if check is None else flat(check(composed, meant_for))


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value as written, as JSON has it."""
    found: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping) and node:
            for key, child in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            found[prefix] = node

    walk("", tree)
    # Bytes, paths, nan and inf are legal in a config and unknown to JSON: their text tells as much.
    return json.loads(json.dumps(found, default=str), parse_constant=str) if found else {}
