"""The YAML files of a sweep as they were when it began.

Hydra reads the app's files again for every job, so an edit would reach some trials of a sweep and not
others. While a snapshot is installed, `include.FileConfigSource` reads from it instead: in the
controller, and in every process that a launcher gives the state of Hydra's singletons, as all do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

from autocl_sweeper.errors import LayerError
from autocl_sweeper.journal import NAME as JOURNAL
from autocl_sweeper.journal import read
from autocl_sweeper.yaml.layers import load
from autocl_sweeper.yaml.text import INCLUDE, read_text

log = logging.getLogger(__name__)

FOLDER = "configuration"  # below the sweep folder: a copy of each file under its absolute path
# A search path can be a whole project with its data: looking through it must not cost a sweep's start.
MOST_ENTRIES = 10_000
MOST_BYTES = 4 * 2**20


class Snapshot:
    """Texts by absolute path. Composing notes what it reads; a complete snapshot takes nothing in.

    A folder of the search path that is small enough is known as a whole: what is not in it is not
    there, as Hydra's messages then say. A file elsewhere that no planned job needed is read from disk
    when a job asks for it, with a warning.
    """

    def __init__(self, folders: Sequence[str] = ()) -> None:
        self.texts: dict[str, str] = {}
        self.used: dict[str, None] = {}  # in the order composing read them
        self.composed: dict[Any, Any] = {}  # what composing made of the texts, for who reads again
        self._known: dict[str, set[str]] = {}  # folder -> names in it, all of its YAML and folders
        self.is_complete = False
        self._kept: Path | None = None  # the sweep folder with the copies
        self._seen: dict[str, str | None] = {}  # what `edits` has found last
        for folder in folders:
            self._look_through(os.path.abspath(folder))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "composed": {}}

    def __deepcopy__(self, memo: Any) -> Snapshot:
        return self  # Hydra copies its singletons to pickle them

    # -- what a source of configs asks --

    def text(self, path: str) -> str:
        """Raises OSError or UnicodeDecodeError, as reading the file would."""
        path = os.path.abspath(path)
        if path not in self.texts:
            if self._is_missing(path):
                raise FileNotFoundError(f"'{path}' was not there when the sweep began")
            if self.is_complete:
                log.warning(
                    "'%s' is not in the snapshot that the sweep took of its configuration; it is read"
                    " as it is now",
                    path,
                )
            self.texts[path] = read_text(path)
        if not self.is_complete:
            self.used[path] = None
        elif self._kept is not None and path not in self.used:
            _copy(self._kept, path, self.texts[path])  # a job needs what no planned job did
        return self.texts[path]

    def is_file(self, path: str) -> bool:
        path = os.path.abspath(path)
        return path in self.texts or (not self._is_missing(path) and os.path.isfile(path))

    def is_folder(self, path: str) -> bool:
        path = os.path.abspath(path)
        return path in self._known or (not self._is_missing(path) and os.path.isdir(path))

    def names(self, folder: str) -> Sequence[str]:
        known = self._known.get(os.path.abspath(folder))
        return os.listdir(folder) if known is None else sorted(known)

    def _is_missing(self, path: str) -> bool:
        """Whether it was not there when its folder was looked through."""
        folder, name = os.path.split(path)
        known = self._known.get(folder)
        return known is not None and name not in known and not _passed_over(name)

    # -- taking it --

    def _look_through(self, root: str) -> None:
        seen: dict[str, set[str]] = {}
        texts: dict[str, str] = {}
        entries = size = 0
        for folder, folders, files in os.walk(root, followlinks=True):
            entries += len(folders) + len(files)
            looked_at = (name for name in folders if not _passed_over(name))
            folders[:] = [n for n in looked_at if not os.path.exists(f"{folder}/{n}/{JOURNAL}")]
            names = {name for name in files if name.endswith(".yaml")}
            for name in sorted(names):
                path = os.path.join(folder, name)
                if (text := _readable(path)) is not None:
                    texts[path] = text
                    size += len(text)
            seen[folder] = names | set(folders)
            if entries > MOST_ENTRIES or size > MOST_BYTES:
                log.info("'%s' is too big to keep a copy of: only what jobs need is kept", root)
                return
        self._known.update(seen)
        self.texts.update(texts)

    def complete(self, sweep_folder: Path) -> None:
        """Take in what files nobody composed yet would include, and nothing after that.

        Where an earlier session of the sweep kept other copies of such files, those count.
        """

        def peek(path: str) -> str:
            if path not in self.texts:
                self.texts[path] = read_text(path)
            return self.texts[path]

        for path, text in list(self.texts.items()):
            if path not in self.used and INCLUDE in text:
                with suppress(LayerError):  # who chooses it will be told
                    load(path, peek)
        if _is_open(sweep_folder):
            self._adopt(sweep_folder)
            self._kept = sweep_folder
        self.is_complete = True

    # -- on disk --

    def record(self, configuration: Any) -> dict[str, Any]:
        """For the journal: the files that made the configuration, and a hash of that."""
        composed = json.dumps(configuration, sort_keys=True, default=str)
        files = {path: _hash(self.texts[path]) for path in self.used}
        return {"files": files, "composed": _hash(composed)}

    def keep(self, sweep_folder: Path) -> None:
        """Copy what the sweep reads into its folder, now and later; no copy may be read by more people."""
        self._kept = sweep_folder
        for path in self.used:
            copy_of(sweep_folder, path).unlink(missing_ok=True)
            _copy(sweep_folder, path, self.texts[path])

    def _adopt(self, sweep_folder: Path) -> None:
        """What this session has read itself is compared when the journal is opened."""
        kept = sweep_folder / FOLDER
        for copy in kept.rglob("*.yaml"):
            path = "/" + str(copy.relative_to(kept))
            if path not in self.used and (text := _readable(str(copy))) is not None:
                self.texts[path] = text
                if os.path.dirname(path) in self._known:
                    self._known[os.path.dirname(path)].add(copy.name)

    def changes(self, recorded: Mapping[str, str]) -> list[str]:
        """What an earlier session's files (path -> hash) have become, one line a changed file.

        A file with the same content at another path has moved with its project: no change.
        """
        moved = {_hash(self.texts[path]) for path in self.used}
        changes = []
        for path, digest in recorded.items():
            if path not in self.used and digest in moved:
                continue
            text = self.texts[path] if path in self.used else _readable(path)
            if text is None:
                changes.append(f"{path}: was deleted")
            elif _hash(text) != digest:
                changes.append(f"{path}: was edited")
        return changes

    def edits(self) -> Iterator[str]:
        """The files in use that were edited or removed since, each of them once an edit."""
        for path in self.used:
            now, read = _readable(path), self.texts[path]
            if now not in (read, self._seen.get(path, read)):
                yield path
            self._seen[path] = now


def _is_open(sweep_folder: Path) -> bool:
    """Whether a sweep was begun there and has not come to its end."""
    try:
        events = [record["event"] for record in read(sweep_folder)]
    except OSError:
        return False
    return bool(events) and events[-1] != "end"


def _copy(sweep_folder: Path, path: str, text: str) -> None:
    copy = copy_of(sweep_folder, path)
    if copy.exists():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    closed = partial(os.open, mode=0o600)
    with open(copy, "w", encoding="utf-8", newline="", opener=closed) as file:
        file.write(text)
        with suppress(OSError):
            original, made = os.stat(path), os.fstat(file.fileno())
            readers = 0o044 if original.st_gid == made.st_gid else 0o004
            os.fchmod(file.fileno(), 0o600 | (original.st_mode & readers))


def copy_of(sweep_folder: Path, path: str) -> Path:
    """Where a sweep keeps its copy of the file at an absolute path."""
    return sweep_folder / FOLDER / path.lstrip("/")


def _readable(path: str) -> str | None:
    """The text of a file; None where there is none to read."""
    with suppress(OSError, UnicodeDecodeError):
        return read_text(path)
    return None


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# -- in this process --------------------------------------------------------------------------------


class Installed(metaclass=Singleton):
    """Which snapshot configs are read from; travels to jobs with Hydra's other singletons."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None


def installed() -> Snapshot | None:
    found: Installed = Installed.instance()
    return found.snapshot


@contextmanager
def install(snapshot: Snapshot) -> Iterator[Snapshot]:
    """Read configs from `snapshot` until the end of the block."""
    found: Installed = Installed.instance()
    before, found.snapshot = found.snapshot, snapshot
    try:
        yield snapshot
    finally:
        found.snapshot = before
