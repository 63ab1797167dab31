"""`_include` and several files as one config, for every config that Hydra reads from a folder.

Hydra asks the class registered for the scheme `file` to read a config; ours takes its place. It reads
as Hydra's own class does unless a file has `_include` or a name joins several files by `+`.
"""

from __future__ import annotations

import builtins  # a method is called list
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hydra._internal.core_plugins import file_config_source as hydras
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource


class FileConfigSource(hydras.FileConfigSource):
    """Hydra's, with `_include`. The name must be the same, or its registry refuses the scheme."""

    @staticmethod
    def scheme() -> str:
        # Hydra asks when it registers the plugins it has found. 1.4 imports them only once, so for
        # who restored older singletons (a test that is to leave none behind) it is all that is heard.
        register()
        return "file"

    def load_config(self, config_path: str) -> ConfigResult:
        snapshot = _snapshot()
        paths = self._paths(config_path)
        if snapshot is None:
            with _addressed(paths):
                layered = None
                if all(map(os.path.isfile, paths)):
                    with open(paths[0], encoding="utf-8") as file:
                        layered = self._layered(config_path, paths, file.read())
                return super().load_config(config_path) if layered is None else layered
        key = (self.path, config_path)
        if key not in snapshot.composed:
            with _addressed(paths, snapshot.text):
                result = self._recorded(config_path, paths, snapshot)
            if not snapshot.is_complete:
                return result
            snapshot.composed[key] = result
        # Hydra takes the defaults list out of what it gets.
        known: ConfigResult = snapshot.composed[key]
        return replace(known, config=deepcopy(known.config), header=dict(known.header))

    def is_config(self, config_path: str) -> bool:
        return all(map(_is_file, self._paths(config_path)))

    def is_group(self, config_path: str) -> bool:
        snapshot = _snapshot()
        if snapshot is None:
            return super().is_group(config_path)
        return bool(snapshot.is_folder(os.path.join(self.path, config_path)))

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        snapshot = _snapshot()
        if snapshot is None:
            return super().list(config_path, results_filter)
        found: builtins.list[str] = []
        for name in snapshot.names(os.path.join(self.path, config_path)):
            self._list_add_result(found, os.path.join(config_path, name), name, results_filter)
        return sorted(set(found))

    def _paths(self, config_path: str) -> Sequence[str]:
        """The files of a config's name; a part that is an absolute path is just that."""
        whole = os.path.join(self.path, self._normalize_file_name(config_path))
        if "+" not in config_path or _is_file(whole):
            return [whole]
        return [
            os.path.join(self.path, self._normalize_file_name(part))
            for part in config_path.split("+")
        ]

    def _recorded(self, config_path: str, paths: Sequence[str], snapshot: Any) -> ConfigResult:
        """As without a snapshot, from the texts it has."""
        from io import StringIO

        from omegaconf import OmegaConf

        from autocl_sweeper.errors import LayerError
        from autocl_sweeper.yaml.text import parse

        if not self.is_config(config_path):
            path = os.path.join(self.path, self._normalize_file_name(config_path))
            raise ConfigLoadError(f"Config not found : {os.path.realpath(path)}")
        text = snapshot.text(paths[0])
        layered = self._layered(config_path, paths, text, snapshot.text)
        if layered is not None:
            return layered
        try:
            config: Any = OmegaConf.create(dict(parse(text)))
        except LayerError:  # if it is an error to Hydra too
            config = OmegaConf.load(StringIO(text))
        return self._result(config, ConfigSource._get_header_dict(text[:512]))

    def _layered(
        self,
        config_path: str,
        paths: Sequence[str],
        text: str,
        read: Callable[[str], str] | None = None,
    ) -> ConfigResult | None:
        """Several files, or one that includes; None for one that does not, whatever it looks like."""
        if len(paths) == 1 and "_include" not in text:
            return None
        from omegaconf import OmegaConf

        from autocl_sweeper.errors import LayerError
        from autocl_sweeper.yaml.layers import load_layers
        from autocl_sweeper.yaml.text import includes, read_text

        if len(paths) == 1 and not includes(text):
            return None
        try:
            values = load_layers(paths, read or read_text)
        except LayerError as error:
            raise ConfigCompositionException(str(error)) from error
        if len(paths) > 1 and isinstance(values.get("defaults"), list):
            # Hydra would look for these groups below the joined name.
            home = os.path.dirname(config_path.split("+")[0])
            values["defaults"] = [_absolute(entry, home) for entry in values["defaults"]]
        header = ConfigSource._get_header_dict(text[:512])
        if header.get("package") is None:
            # Hydra would put it where the slashes of its name say: below a group that nobody meant.
            header["package"] = "_global_"
        return self._result(OmegaConf.create(values), header)

    def _result(self, config: Any, header: dict[str, str | None]) -> ConfigResult:
        return ConfigResult(
            config=config,
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=header,
        )


@contextmanager
def _addressed(paths: Sequence[str], read: Callable[[str], str] | None = None) -> Iterator[None]:
    """What is no UTF-8 or no YAML in the block is raised with its file and line."""
    try:
        yield
    except Exception as error:
        import yaml

        from autocl_sweeper.errors import LayerError
        from autocl_sweeper.yaml.layers import load
        from autocl_sweeper.yaml.text import read_text

        if not isinstance(error, UnicodeDecodeError | yaml.YAMLError):
            raise
        try:
            for path in paths:
                load(path, read or read_text)
        except LayerError as told:
            raise ConfigCompositionException(str(told)) from error
        raise


def _snapshot() -> Any:
    """The files of the sweep that this process works for (`autocl_sweeper.yaml.snapshot`), if any."""
    module = sys.modules.get("autocl_sweeper.yaml.snapshot")  # only a sweep imports it
    return None if module is None else module.installed()


def _is_file(path: str) -> bool:
    snapshot = _snapshot()
    return bool(os.path.isfile(path) if snapshot is None else snapshot.is_file(path))


def _absolute(entry: Any, home: str) -> Any:
    """An entry of a defaults list, its group from the root; `home`: the group of its file, or empty."""
    if isinstance(entry, dict):
        return {_absolute(key, home): value for key, value in entry.items()}
    if not isinstance(entry, str) or entry == "_self_":
        return entry
    *keywords, group = entry.split()
    return " ".join([*keywords, os.path.join("/", home, group)])


def register() -> None:
    """Make ours the class for `file`."""
    # SourcesRegistry.register keeps what came first, and Hydra's own came first.
    SourcesRegistry.instance().types["file"] = FileConfigSource


register()
