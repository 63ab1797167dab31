"""Fixtures of all tests: an app to run, fake GPUs, leases of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from hypothesis import HealthCheck, settings
from support.bench import APPS, Bench, Gpus
from support.fake_nvml import build as fake

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in the background by a script, which processes we start would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Neither how busy the machine is nor a new draw decides whether a commit passes.
# --hypothesis-profile=default draws anew.
settings.register_profile(
    "repeated", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeated")


@pytest.fixture(autouse=True)
def own_version_base() -> Iterator[None]:
    """Hydra keeps an app's `version_base` for the whole process; the next test is another app."""
    yield
    Singleton._instances.pop(VersionBase, None)


@pytest.fixture(autouse=True)
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU slots are leased by the machine: tests side by side must not wait for each other."""
    monkeypatch.setenv("AUTOCL_LEASE_DIR", str(tmp_path / "leases"))


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For many sweeps in virtual time: nothing there is about a machine that loses its power."""
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches: benches("chain") runs tests/support/apps/chain.py; each further one is separate."""
    made: list[Bench] = []

    def make(app: str | Path, name: str = "bench") -> Bench:
        path = APPS / f"{app}.py" if isinstance(app, str) else app
        folder = tmp_path / name
        folder.mkdir()
        made.append(Bench(folder, path))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def chain(benches: Callable[..., Bench]) -> Bench:
    return benches("chain")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(library: Path, tmp_path: Path) -> Gpus:
    return Gpus(library, tmp_path / "figures")


@pytest.fixture
def on_gpus(chain: Bench, gpus: Gpus) -> Bench:
    return gpus.seen_by(chain)
