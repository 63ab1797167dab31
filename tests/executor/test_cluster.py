"""hydra/launcher=ray: agents, and two Ray nodes on this machine. Runs where Ray is installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from support.bench import DEADLINE_S, REPOSITORY, Bench, alive, wait_until
from support.two_nodes import ON_LOOPBACK, TwoNodes
from support.virtual import Run, World

from autocl_sweeper.device.reservations import Used
from autocl_sweeper.errors import DeviceError
from autocl_sweeper.executor.ray import cluster as rays
from autocl_sweeper.executor.ray.cluster import ANSWER_S, RayExecutor
from autocl_sweeper.executor.simulated import SimulatedExecutor
from autocl_sweeper.hydra_sweep import learn_from
from autocl_sweeper.job.package import Order, command
from autocl_sweeper.job.pickles import dumps
from autocl_sweeper.journal import fold, outcome_to_json
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.types import Cause, DeviceUse, Job, Outcome, Report, State

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)
OURS = ("hydra/sweeper=autocl", "hydra/launcher=ray")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TwoNodes]:
    made = TwoNodes(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@needs_ray
def test_a_sweep_on_two_nodes_survives_its_own_death_and_that_of_a_node(
    chain: Bench, cluster: TwoNodes
) -> None:
    command = (
        *OURS,
        f"hydra.launcher.address={cluster.address}",
        "hydra.launcher.cpu_slots=2",
        "hydra.launcher.warm=true",
        "hydra.job.env_copy=[LEDGER,HOLD,REPORTS]",
        "task=a,b",
        "lr=1,2,3,4",
    )
    chain.start_held(4, *command, REPORTS="0", **ON_LOOPBACK).kill()
    pids = [event["pid"] for event in chain.ledger("start")]
    wait_until(lambda: not any(map(alive, pids)), "no job outlives its controller")

    sweep = chain.start_held(8, *command, REPORTS="1", **ON_LOOPBACK)
    wait_until(lambda: len(chain.events("report")) == 4, "and have reported")
    assert chain.printed(sweep).count("starting an agent on node 127.0.0.1/") == 2
    pids = [event["pid"] for event in chain.ledger("start")[4:]]
    cluster.switch_second_node()
    wait_until(lambda: sum(map(alive, pids)) == 2, "the jobs of the lost node are gone")
    chain.release(sweep)

    lost = [e for e in chain.events("attempt_failed") if "was lost" in e["reason"]]
    assert len(lost) == 2 and all(event["lost"] for event in lost)
    assert "node 127.0.0.1/" in lost[0]["reason"]
    # By hand: the score of a chain is the first lr minus 0.6 times the second.
    second_stage = {round(first - 0.6 * lr, 6) for first in (3, 4) for lr in (1, 2, 3, 4)}
    kept = {e["score"] for e in chain.finished().values() if e["state"] == "COMPLETE"}
    assert kept >= {1, 2, 3, 4} | second_stage
    assert chain.results()["chain"][-1]["score"] == max(second_stage)
    history = fold(chain.events()).history
    for number, end in chain.finished().items():  # of its last attempt alone
        if end["state"] != "COMPLETE":  # given up, maybe before it came so far
            continue
        assert [report.step for report in history.reports(number)] == [0, 1]
    pids = [event["pid"] for event in chain.ledger("start")]
    wait_until(lambda: not any(map(alive, pids)), "no job is left")


@pytest.mark.slow
@needs_ray
def test_on_two_nodes_trials_are_stopped_early_and_the_chain_is_that_of_one_machine(
    benches: Callable[..., Bench], cluster: TwoNodes
) -> None:
    """lr=9 holds one node before its last step; on the other, each that reaches step 1 is stopped."""
    sweep = ("hydra/sweeper=autocl", "task=a,b", "lr=9,1,2,3", "pace_s=0.3", "hydra.sweeper.top_k=1",
             "hydra/sweeper/prune=asha", "hydra.sweeper.prune.max_steps=9",
             "hydra.job.env_copy=[LEDGER,HOLD,HOLDS,PACE_S]")  # fmt: skip
    environment = {"HOLDS": "[9]", "PACE_S": '{"9": 0}', **ON_LOOPBACK}
    curve = benches("curve", "nodes")
    process = curve.start_held(
        4, *sweep, "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}",
        "hydra.launcher.cpu_slots=1", **environment,
    )  # fmt: skip
    wait_until(lambda: len(curve.finished()) == 3, "three trials were stopped")
    assert curve.printed(process).count("starting an agent on node 127.0.0.1/") == 2
    steps = [event["step"] for event in curve.events("report") if event["trial"] == 0]
    assert steps == [*range(1, 9)] and 0 not in curve.finished()  # told while it runs
    pids = {event["trial"]: event["pid"] for event in curve.ledger("start")}
    assert [number for number, pid in pids.items() if alive(pid)] == [0]
    curve.release(process)
    finished = curve.finished()
    causes = [(finished[number]["state"], finished[number]["cause"]) for number in range(4)]
    assert causes == [("COMPLETE", ""), *[("PRUNED", "early_stopped")] * 3]
    assert not {1, 2, 3} & {event["trial"] for event in curve.ledger("end")}

    local = benches("curve", "local")
    local.run(*sweep, "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2", **environment)
    there, here = (
        [(entry["task"], entry["score"], entry["params"]) for entry in bench.results()["chain"]]
        for bench in (curve, local)
    )
    assert there == here and [score for _, score, _ in here] == [9, 9]


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


def test_an_agent_whose_controller_is_gone_kills_its_jobs(chain: Bench) -> None:
    """An agent without Ray: its protocol is lines of JSON."""
    # Another sweep's package serves as what the controller wrote.
    sweep = chain.start_held(1, "hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a")
    package = (chain.sweep / ".autocl" / "package.pkl").read_bytes()
    sweep.kill()
    wait_until(chain.nothing_is_left, "the sweep is gone")
    folder = chain.folder / "other" / ".autocl"
    folder.mkdir(parents=True)
    (folder / "package.pkl").write_bytes(package)
    settings = {
        "folder": str(folder),
        "launcher": {**launcher_keys(), "jobs_per_device": 2},
    }
    agent = subprocess.Popen(
        command("autocl_sweeper.executor.ray.agent", json.dumps(settings)),
        env=chain.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdin is not None and agent.stdout is not None
    patience = threading.Timer(DEADLINE_S, agent.kill)  # else what it never tells is waited for
    patience.start()

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

    ask(learn=[Used(stage=1, sampled_mib=5000).to_json()])
    told = "jobs of stage 1 reserve 5500 MiB from now on: the largest of 1 used 5000"
    assert hear("log")["log"] == [logging.INFO, told]
    order = b64encode(order_of(chain.app, f"hydra.sweep.dir={folder.parent}", "lr=5")).decode()
    ask(slots=True)
    assert hear("slots")["slots"] == 1
    ask(submit=7, order=order, alone=False, stage=1, needs=[], memory={})
    assert hear("on") == {"on": 7, "devices": ["cpu-0"], "reserved": [None, ""]}
    wait_until(lambda: len(chain.ledger("start")) == 2, "the agent's job runs")
    ask(cancel=7)
    ended = hear("ended")
    assert ended["ended"] == 7
    assert ended["outcome"]["reason"] == "cancelled"  # type: ignore[index]
    ask(slots=True)
    hear("slots")
    ask(submit=8, order=order, alone=False, stage=1, needs=[], memory={})
    wait_until(lambda: len(chain.ledger("start")) == 3, "another job runs")
    patience.cancel()
    with agent:  # closes its pipes
        pass
    wait_until(chain.nothing_is_left, "its jobs and leases are gone")


def order_of(app: Path, *overrides: str) -> bytes:
    """What the controller of an app of tests/support/apps sends for a job."""
    version = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}
    with initialize_config_dir(str(app.parent / "conf"), **version):
        loader: Any = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(app.stem, [*overrides, "hydra.job.name=x"], RunMode.RUN)
    return dumps(Order(7, overrides, False, config))


def launcher_keys() -> dict[str, object]:
    """The defaults of hydra/launcher=ray, as the launcher gives them."""
    Plugins.instance()
    from hydra_plugins.hydra_autocl_sweeper._schema import RayLauncherConf

    return {**asdict(RayLauncherConf()), "cpu_slots": 2}


# -- without Ray: a cluster in virtual time ---------------------------------------------------------


class FakeAgent:
    """What an agent answers, by its protocol; its jobs are simulated."""

    def __init__(self, devices: int, run: Callable[[Job], Outcome]) -> None:
        self.executor = SimulatedExecutor(devices, run, grace_s=0.1)
        self.messages: list[Mapping[str, Any]] = []
        self.learned: list[tuple[int, int]] = []
        self.short: list[tuple[int, str]] = []
        self.cancelled: list[int] = []
        self.options = lambda **_: self
        self.tell = SimpleNamespace(remote=self.hear)
        self.told = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: self))

    def remote(self, argv: Sequence[str], environment: Mapping[str, str]) -> FakeAgent:
        return self

    def hear(self, request: Mapping[str, Any]) -> None:
        if "slots" in request:
            self.messages.append({"slots": min(1, self.executor.free_slots())})
        elif "submit" in request:
            overrides = json.loads(b64decode(request["order"]))
            job = Job(request["submit"], tuple(overrides), stage=request["stage"])
            self.executor.submit(job)
        elif "cancel" in request:
            self.cancelled.append(request["cancel"])
            self.executor.cancel(Job(request["cancel"], ()))
        elif "learn" in request:
            self.learned += [(used["stage"], used["sampled_mib"]) for used in request["learn"]]
        elif "short" in request:
            self.short.append((request["short"], request["memory"]["key"]))
        elif "close" in request:
            self.messages.append({"gone": 0})

    def move_to(self, clock_s: float) -> None:
        self.executor.clock_s = clock_s
        for job, outcome in self.executor.wait(0.0):
            told = outcome_to_json(outcome)
            self.messages.append({"ended": job.number, "outcome": told, "lost": outcome.lost})


class FakeRay:
    """As much of Ray as the controller needs; time goes by when it waits and nothing was told."""

    exceptions = SimpleNamespace(RayActorError=ConnectionError)
    home = "0"

    def __init__(self, *devices: int, run: Callable[[Job], Outcome]) -> None:
        self.agents = [FakeAgent(count, run) for count in devices]
        self.alive = len(devices)

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: self.home)

    def nodes(self) -> list[dict[str, Any]]:
        same = {"NodeManagerAddress": "here", "Resources": {"CPU": 1}}
        return [
            {**same, "NodeID": str(n), "Alive": n < self.alive} for n in range(len(self.agents))
        ]

    def remote(self, **_: Any) -> Callable[[type], Any]:
        return lambda _: SimpleNamespace(
            options=lambda scheduling_strategy, **_: self.agents[int(scheduling_strategy)]
        )

    def wait(
        self, told: list[FakeAgent], num_returns: int, timeout: float
    ) -> tuple[list[FakeAgent], None]:
        if timeout > ANSWER_S and not any(agent.messages for agent in told):
            busy = [agent.executor for agent in told if agent.executor._running]
            if busy:
                end = min(executor._next().end_s for executor in busy)
                for agent in told:
                    agent.move_to(end)
        return [agent for agent in told if agent.messages][:num_returns], None

    def get(self, agent: FakeAgent) -> list[Mapping[str, Any]]:
        messages, agent.messages = agent.messages, []
        return messages

    def shutdown(self) -> None:
        """Nothing was started."""


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RayExecutor]:
    """Executors over fake nodes: fake_ray(2, 3, run=...) has one of 2 devices and one of 3."""
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda key, soft: key)
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, strategies)
    monkeypatch.setattr(os, "fsync", lambda file: None)

    def make(*devices: int, run: Callable[[Job], Outcome], **keys: Any) -> RayExecutor:
        monkeypatch.setattr(rays, "connect", lambda address: FakeRay(*devices, run=run))
        package = SimpleNamespace(
            files=JobFiles.of(tmp_path / "sweep"),
            write=lambda: None,
            section=lambda job, name: {},
            order=lambda job, returns: json.dumps(job.overrides).encode(),
        )
        keys = {**launcher_keys(), **keys}
        return RayExecutor(keys, package, False, {})  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("seed", [6, 12, 16])
def test_on_a_cluster_too_the_tree_is_that_of_the_sweep_that_waits(
    seed: int, tmp_path: Path, fake_ray: Callable[..., RayExecutor]
) -> None:
    """Jobs of the next stage begin early on any node; those whose parent falls out end there."""
    world = World(seed)
    waiting = Run(world, tmp_path / "waits", pipeline=False)
    early = Run(world, tmp_path / "early", pipeline=True, make=lambda run: fake_ray(2, 3, run=run))
    assert early.table() == waiting.table()
    assert early.beams() == waiting.beams()
    over: set[int] = set()
    expected: list[int] = []  # those given up while their job ran
    for record in early.records():
        if record["event"] == "finish":
            over.add(record["trial"])
        elif record["event"] == "give_up" and record["trial"] not in over:
            expected.append(record["trial"])
    agents = early.executor._ray.agents
    assert sorted(n for agent in agents for n in agent.cancelled) == sorted(expected)
    assert all(agent.cancelled for agent in agents), "another seed proves more"
    early.executor.close()


def finished_with(peak_mib: int | None, state: State = State.COMPLETE) -> Outcome:
    return Outcome(state, seconds=1.0, device=DeviceUse(("GPU-0",), peak_mib))


def test_what_a_finished_job_used_is_known_on_every_node_and_to_those_that_join_later(
    fake_ray: Callable[..., RayExecutor],
) -> None:
    ends = {0: finished_with(7000), 1: finished_with(9999, State.FAIL), 2: finished_with(None)}
    executor = fake_ray(1, 1, 1, run=lambda job: ends[job.number])
    files = executor._package.files
    ray = executor._ray
    ray.alive = 2
    before = [(1, 5000), (1, 4000), (2, 300), (2, None)]  # of a sweep that is continued
    learn_from(((Job(n, (), stage=s), finished_with(mib)) for n, (s, mib) in enumerate(before)),
               executor)  # fmt: skip
    for number in ends:
        wait_until(executor.free_slots, "a slot")
        executor.submit(Job(number, (), stage=1))
        files.folder.mkdir(parents=True, exist_ok=True)
        files.reports(number).write_text('{"score": 0.5, "step": 1}\n')  # all nodes share it
        ((job, _),) = wait_until(lambda: executor.wait(None), "it ends")
        assert job.number == number
        assert executor.reports() == [Report(number, 1, 0.5)] and executor.reports() == []
    first, second, third = ray.agents
    on_first = first.executor.busy[0].number == 0
    told = [(1, 5000), (1, 4000), (2, 300)]
    # Who ran job 0 knows it by itself.
    assert (first if on_first else second).learned == told
    assert (second if on_first else first).learned == [*told, (1, 7000)]
    ray.alive, executor._met = 3, -rays.POLL_S
    executor.free_slots()
    assert third.learned == [*told, (1, 7000)]
    executor.close()


def test_a_job_that_ran_out_of_memory_on_one_node_keeps_its_kind_alone_on_all(
    fake_ray: Callable[..., RayExecutor],
) -> None:
    """The other node hears of it, one that joins later too, and what the job needs goes along."""
    short = Outcome(State.FAIL, "no room", seconds=1.0, cause=Cause.DEVICE_MEMORY, lost=True)
    executor = fake_ray(1, 1, 1, run=lambda job: short, jobs_per_device=2)
    executor._ray.alive = 2
    wait_until(executor.free_slots, "a slot")
    executor.submit(Job(5, (), params={"model": "large", "lr": 1}))
    ((job, outcome),) = wait_until(lambda: executor.wait(None), "it ends")
    assert (job.number, outcome.lost) == (5, True)
    told = [agent.short for agent in executor._ray.agents[:2]]
    assert sorted(told) == [[], [(5, 'model="large"')]], "who ran it knows it by itself"
    executor._ray.alive, executor._met = 3, -rays.POLL_S
    executor.free_slots()
    assert executor._ray.agents[2].short == [(5, 'model="large"')]
    executor.close()


def test_the_death_of_the_node_by_which_a_sweep_is_connected_stops_it(
    fake_ray: Callable[..., RayExecutor],
) -> None:
    """Ray starts nothing more for it: it would wait for ever."""
    executor = fake_ray(1, 1, run=lambda job: finished_with(None))
    wait_until(executor.free_slots, "a slot")
    executor._ray.alive, executor._met = 0, -rays.POLL_S
    with pytest.raises(DeviceError, match=r"node by which this sweep is connected .* died"):
        executor.free_slots()
    executor.close()


@needs_ray
@pytest.mark.slow
def test_a_sweep_whose_own_node_dies_ends_and_goes_on_later(
    chain: Bench, tmp_path: Path, cluster: TwoNodes
) -> None:
    command = (
        *OURS,
        "hydra.launcher.cpu_slots=2",
        "hydra.job.env_copy=[LEDGER,HOLD]",
        "lr=1,2,3,4",
    )

    def at(nodes: TwoNodes) -> tuple[str, ...]:
        return (*command, "task=a", f"hydra.launcher.address={nodes.address}")

    sweep = chain.start_held(4, *at(cluster), **ON_LOOPBACK)
    cluster.kill_first_node()
    output = chain.finish(sweep, 1)
    assert "DeviceError: The Ray node by which this sweep is connected" in output
    assert "Traceback" not in output
    pids = [event["pid"] for event in chain.ledger("start")]
    wait_until(lambda: not any(map(alive, pids)), "no job outlives its controller")
    chain.hold.unlink()
    (tmp_path / "again").mkdir()
    again = TwoNodes(tmp_path / "again")
    try:
        chain.run(*at(again), **ON_LOOPBACK)
    finally:
        again.close()
    assert sorted(event["score"] for event in chain.finished().values()) == [1, 2, 3, 4]


def test_submitit_runs_a_sweep_stage_by_stage(chain: Bench) -> None:
    """Its local executor, in place of SLURM: the same plugin code on the controller's side."""
    chain.run(
        "hydra/sweeper=autocl", "hydra/launcher=submitit_local", "task=a,b", "hydra.sweeper.top_k=1",
        "+hydra.sweeper.task_params.a=[{lr:1},{lr:2}]", "+hydra.sweeper.task_params.b=[{lr:3}]",
    )  # fmt: skip
    scores = {number: event["score"] for number, event in chain.finished().items()}
    assert scores == {0: 1, 1: 2, 2: 0.2}  # lr1 - 0.6 lr2, from the better first step


# -- who reaches a cluster of this machine ----------------------------------------------------------

LISTENING = """
import os
from pathlib import Path
from autocl_sweeper.executor.ray.connection import connect

ray = connect("local")

@ray.remote
def mode():
    return os.environ.get("RAY_AUTH_MODE"), len(os.environ.get("RAY_AUTH_TOKEN", ""))

print("mode", *ray.get(mode.remote()))
inodes = set()
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        if str(os.getsid(int(process))) != str(os.getsid(0)):
            continue
        for descriptor in os.listdir(f"/proc/{process}/fd"):
            inodes.add(os.readlink(f"/proc/{process}/fd/{descriptor}"))
    except OSError:
        pass
for kind in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
            print("listens", words[1])
ray.shutdown()
"""
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000")  # of /proc/net


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_this_machine_listens_on_loopback_alone_and_asks_for_a_token(
    tmp_path: Path,
) -> None:
    free = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        env=free | {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    assert ["mode", "token", "64"] in said
    places = [words[1].partition(":")[0] for words in said if words[0] == "listens"]
    assert len(places) > 2 and set(places) <= set(LOOPBACK)


@needs_ray
@pytest.mark.parametrize(("closed", "refused"), [("0", True), ("1", False)])
def test_ray_that_listens_to_other_machines_is_refused_unless_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, closed: str, refused: bool
) -> None:
    import ray

    from autocl_sweeper.errors import ConfigurationError
    from autocl_sweeper.executor.ray.connection import connect

    class Context:
        gcs_address = "192.0.2.2:4000"

    ended: list[bool] = []
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", closed)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray, "init", lambda **settings: None)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    if not refused:
        assert connect("local") is ray
        return
    with pytest.raises(
        ConfigurationError, match=r"Ray listens at 192\.0\.2\.2, where other machines"
    ):
        connect("local")
    assert ended == [True] and os.environ["RAY_AUTH_MODE"] == "disabled"
