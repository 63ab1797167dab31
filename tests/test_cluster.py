"""hydra/launcher=ray: agents, and two Ray nodes on this machine. Runs where Ray is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import APPS, REPOSITORY, Bench, wait_until

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)
# Ray asks for the machine's own address and listens there; this makes it the loopback's.
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
OURS = ("hydra/sweeper=autocl", "hydra/launcher=ray")


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(APPS / "ray_cluster.py"), str(folder)],
            env={
                **os.environ,
                **ON_LOOPBACK,
                "HOME": str(folder),  # Ray keeps a token there
                "PYTHONPATH": str(REPOSITORY),
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the cluster did not start"

    def lose_a_node(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        with self.process:  # closes the pipes, which ends it
            pass


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.close()


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_ray
def test_a_sweep_on_two_nodes_survives_its_own_death_and_that_of_a_node(
    chain: Bench, cluster: Cluster
) -> None:
    hold = chain.folder / "hold"
    hold.touch()
    command = (
        *OURS,
        f"hydra.launcher.address={cluster.address}",
        "hydra.launcher.cpu_slots=2",
        "hydra.job.env_copy=[LEDGER,HOLD]",
        "task=a,b",
        "lr=1,2,3,4",
    )
    killed = chain.start(*command, HOLD=str(hold), **ON_LOOPBACK)
    wait_until(lambda: len(chain.ledger("start")) == 4, "both nodes run two jobs each")
    killed.kill()
    pids = [event["pid"] for event in chain.ledger("start")]
    wait_until(lambda: not any(map(alive, pids)), "no job outlives its controller")

    sweep = chain.start(*command, HOLD=str(hold), **ON_LOOPBACK)
    wait_until(lambda: len(chain.ledger("start")) == 8, "the same four run again")
    assert chain.printed(sweep).count("starting an agent on node 127.0.0.1/") == 2
    pids = [event["pid"] for event in chain.ledger("start")[4:]]
    cluster.lose_a_node()
    wait_until(lambda: sum(map(alive, pids)) == 2, "the jobs of the lost node are gone")
    hold.unlink()
    output = chain.finish(sweep)
    assert sweep.returncode == 0, output

    lost = [e for e in chain.events("attempt_failed") if "was lost" in e["reason"]]
    assert len(lost) == 2 and all(event["lost"] for event in lost)
    assert "node 127.0.0.1/" in lost[0]["reason"]
    # By hand: the score of a chain is the first lr minus 0.6 times the second.
    second_stage = {round(first - 0.6 * lr, 6) for first in (3, 4) for lr in (1, 2, 3, 4)}
    kept = {e["score"] for e in chain.finished().values() if e["state"] == "COMPLETE"}
    assert kept >= {1, 2, 3, 4} | second_stage
    assert chain.results()["chain"][-1]["score"] == max(second_stage)
    pids = [event["pid"] for event in chain.ledger("start")]
    wait_until(lambda: not any(map(alive, pids)), "no job is left")


@needs_ray
def test_a_cluster_that_does_not_answer_is_named_with_the_command_that_starts_one(
    chain: Bench,
) -> None:
    output = chain.run(*OURS, "hydra.launcher.address=127.0.0.1:9", "task=a", status=1)
    assert "No Ray cluster answers at hydra.launcher.address=127.0.0.1:9" in output
    assert "ray start --head" in output
    assert not chain.ledger("start")


def test_without_ray_the_launcher_says_how_to_install_it(chain: Bench) -> None:
    stub = chain.folder / "no_ray"
    stub.mkdir()
    (stub / "ray.py").write_text("raise ImportError('no module named ray')\n")
    path = os.pathsep.join([str(stub), chain.environment["PYTHONPATH"]])
    output = chain.run(*OURS, "task=a", status=1, PYTHONPATH=path)
    assert "pip install 'autocl-sweeper[ray]'" in output
    assert "Traceback" not in output
    assert not chain.ledger("start")


def test_jobs_that_should_outlive_their_controller_are_refused_on_a_cluster(chain: Bench) -> None:
    output = chain.run(*OURS, "hydra.launcher.on_controller_death=finish", "task=a", status=1)
    assert "hydra.launcher.on_controller_death=finish" in output
    assert not chain.ledger("start")


def test_an_agent_whose_controller_is_gone_kills_its_jobs(chain: Bench) -> None:
    """An agent without Ray: its protocol is lines of JSON."""
    hold = chain.folder / "hold"
    hold.touch()
    # Another sweep's package serves as what the controller wrote.
    sweep = chain.start("hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a", HOLD=str(hold))
    wait_until(lambda: chain.ledger("start"), "the job that brings the package runs")
    package = (chain.sweep / ".autocl" / "package.pkl").read_bytes()
    sweep.kill()
    wait_until(chain.nothing_is_left, "the sweep is gone")
    folder = chain.folder / "other" / ".autocl"
    folder.mkdir(parents=True)
    (folder / "package.pkl").write_bytes(package)
    settings = {
        "folder": str(folder),
        "holder": "a test",
        "returns": False,
        "launcher": launcher_keys(),
    }
    agent = subprocess.Popen(
        [sys.executable, "-m", "autocl_sweeper.executor.agent", json.dumps(settings)],
        env={**chain.environment, "HOLD": str(hold)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdin is not None and agent.stdout is not None

    def ask(**request: object) -> None:
        assert agent.stdin is not None
        agent.stdin.write(json.dumps(request) + "\n")
        agent.stdin.flush()

    def hear(key: str) -> dict[str, object]:
        assert agent.stdout is not None
        for line in agent.stdout:
            message: dict[str, object] = json.loads(line)
            if key in message:
                return message
        raise AssertionError(f"the agent left without a word about {key}")

    overrides = [f"hydra.sweep.dir={folder.parent}", "lr=5"]
    ask(slots=True)
    assert hear("slots")["slots"] == 1
    ask(submit=7, overrides=overrides, alone=False)
    assert hear("on") == {"on": 7, "devices": ["cpu-0"]}
    wait_until(lambda: len(chain.ledger("start")) == 2, "the agent's job runs")
    ask(cancel=7)
    ended = hear("ended")
    assert ended["ended"] == 7
    assert ended["outcome"]["reason"] == "cancelled"  # type: ignore[index]
    ask(slots=True)
    hear("slots")
    ask(submit=8, overrides=overrides, alone=False)
    wait_until(lambda: len(chain.ledger("start")) == 3, "another job runs")
    with agent:  # closes its pipes
        pass
    wait_until(chain.nothing_is_left, "its jobs and leases are gone")


def launcher_keys() -> dict[str, object]:
    """The defaults of hydra/launcher=ray, as the launcher gives them."""
    from dataclasses import asdict

    from hydra.core.plugins import Plugins

    Plugins.instance()
    from hydra_plugins.hydra_autocl_sweeper.config import RayLauncherConf

    return {**asdict(RayLauncherConf()), "cpu_slots": 2}


def test_submitit_runs_a_sweep_stage_by_stage(chain: Bench) -> None:
    """Its local executor, in place of SLURM: the same plugin code on the controller's side."""
    chain.run(
        "hydra/sweeper=autocl", "hydra/launcher=submitit_local", "task=a,b", "lr=1,2", "hydra.sweeper.top_k=1"
    )  # fmt: skip
    scores = {number: event["score"] for number, event in chain.finished().items()}
    assert scores == {0: 1, 1: 2, 2: 1.4, 3: 0.8}  # lr1 - 0.6 lr2, from the better first step
