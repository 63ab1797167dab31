"""`_include` and several files as one config, for every config that Hydra reads from a folder.

Hydra asks the class registered for the scheme `file` to read a config; ours takes its place. It reads
as Hydra's own class does unless a file has `_include` or a name joins several files by `+`.
"""

from __future__ import annotations

import os
from typing import Any

from hydra._internal.core_plugins import file_config_source as hydras
from hydra._internal.sources_registry import SourcesRegistry
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource


class FileConfigSource(hydras.FileConfigSource):
    """Hydra's, with `_include`. The name must be the same, or its registry refuses the scheme."""

    def load_config(self, config_path: str) -> ConfigResult:
        paths = self._paths(config_path)
        if not all(map(os.path.isfile, paths)):
            return super().load_config(config_path)  # Hydra's own message
        with open(paths[0], encoding="utf-8") as file:
            text = file.read()
        if len(paths) == 1 and "_include" not in text:
            return super().load_config(config_path)
        return self._layered(config_path, paths, text)

    def is_config(self, config_path: str) -> bool:
        return all(map(os.path.isfile, self._paths(config_path)))

    def _paths(self, config_path: str) -> list[str]:
        """The files of a config's name; a part that is an absolute path is just that."""
        whole = os.path.join(self.path, self._normalize_file_name(config_path))
        if "+" not in config_path or os.path.isfile(whole):
            return [whole]
        return [
            os.path.join(self.path, self._normalize_file_name(part))
            for part in config_path.split("+")
        ]

    def _layered(self, config_path: str, paths: list[str], text: str) -> ConfigResult:
        from omegaconf import OmegaConf

        from autocl_sweeper.errors import LayerError
        from autocl_sweeper.layers import load_layers, parse

        try:
            if len(paths) == 1 and "_include" not in parse(text):  # in a comment or a value
                return super().load_config(config_path)
            values = load_layers(paths)
        except LayerError as error:
            raise ConfigCompositionException(str(error)) from error
        if len(paths) > 1:
            values = _with_absolute_groups(values, os.path.dirname(config_path.split("+")[0]))
        # Hydra would put it where the slashes of its name say: a group that no one meant.
        header = ConfigSource._get_header_dict(text[:512])
        if header.get("package") is None:
            header["package"] = "_global_"
        return ConfigResult(
            config=OmegaConf.create(values),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=header,
        )


def _with_absolute_groups(values: dict[Any, Any], home: str) -> dict[Any, Any]:
    """The groups of the first file's defaults list, which Hydra would look for below the joined name.

    `home`: the group the first file is in; empty for a primary config.
    """
    defaults = values.get("defaults")
    if isinstance(defaults, list):
        values["defaults"] = [_absolute(entry, home) for entry in defaults]
    return values


def _absolute(entry: Any, home: str) -> Any:
    if isinstance(entry, dict):
        return {_absolute(key, home): value for key, value in entry.items()}
    if not isinstance(entry, str) or entry == "_self_":
        return entry
    *keywords, group = entry.split()
    if not group.startswith("/"):
        group = "/" + os.path.join(home, group)
    return " ".join([*keywords, group])


def register() -> None:
    """Make ours the class for `file`. May be called again, when singletons were restored."""
    # SourcesRegistry.register keeps what came first, and Hydra's own came first.
    SourcesRegistry.instance().types["file"] = FileConfigSource


register()
