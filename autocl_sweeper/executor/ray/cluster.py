"""Jobs on the machines of a Ray cluster: an agent a node, holding its devices and its warm process.

Ray tells which nodes there are, starts the agents and carries their messages. It schedules no job: a
Ray task per job would start an interpreter each, and would choose devices by their number alone.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autocl_sweeper import errors
from autocl_sweeper.device.reservations import used_by
from autocl_sweeper.errors import AutoCLError, ConfigurationError, DeviceError
from autocl_sweeper.executor.ends import not_composed
from autocl_sweeper.executor.process.groups import exit_reason
from autocl_sweeper.executor.ray import agent
from autocl_sweeper.executor.ray.connection import connect
from autocl_sweeper.executor.reports import ReportFiles
from autocl_sweeper.executor.settings import check, needs_of
from autocl_sweeper.job.package import Package, command
from autocl_sweeper.job.returned import unpacked
from autocl_sweeper.journal import outcome_from_json
from autocl_sweeper.types import OUT_OF_DEVICE_MEMORY, Job, Need, Outcome, Report, State

log = logging.getLogger(__name__)

POLL_S = 1.0  # how often devices that others hold, and nodes that may have come, are looked at
ANSWER_S = 0.05  # how long one look for a free slot waits; later answers count at the next look
LATE_S = 60.0  # an agent that has not said a word for so long is reported, once
STARTS = 3  # agents a node gets: one that lost so many is left alone
CLOSE_S = 30.0  # for an agent to end, above the grace of its jobs


@dataclass
class _Node:
    """One node of the cluster and its agent."""

    key: str
    name: str
    actor: Any
    told: Any  # the future of what the agent tells next
    starts: int
    begin: float
    answered: bool = False
    asked: bool = False  # whether it has a free slot; one question at a time
    free: bool = False
    jobs: dict[int, Job] = field(default_factory=dict)
    # Job -> its devices; MiB it reserves on each, and where the figure is from.
    places: dict[int, tuple[tuple[str, ...], tuple[int | None, str]]] = field(default_factory=dict)
    stopped: bool = False


class RayExecutor:
    """An Executor over all nodes of a cluster; nodes may come and go while it runs.

    `settings` are the launcher's keys; each node's agent applies them to its own machine. Their
    `address` is Ray's: 'auto' for the cluster this machine belongs to, 'host:port', or 'local' to
    start one on this machine. `environment` comes on top of the one in which a node joined.

    Raises ConfigurationError when Ray is not installed or cannot be reached.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        package: Package,
        returns: bool,
        environment: Mapping[str, str],
    ) -> None:
        check(settings)
        self._needs = needs_of(settings, package)
        self._shares = settings["jobs_per_device"] > 1 or settings["memory_per_job_mib"] is not None
        if settings["on_controller_death"] == "finish":
            raise ConfigurationError(
                "hydra.launcher.on_controller_death=finish is not possible on a Ray cluster: jobs end"
                " with the\n  agent of their node, and it with the sweep. Leave it at 'kill'. No job"
                " was started."
            )
        self._ray: Any = connect(settings["address"])
        self._home = self._ray.get_runtime_context().get_node_id()
        self._package = package
        self._returns = returns
        self._grace_s = float(settings["grace_s"])
        request = {"folder": str(package.files.folder), "launcher": dict(settings)}
        self._argv = command(agent.__name__, json.dumps(request))
        self._environment = dict(environment)
        self._nodes: dict[str, _Node] = {}
        self._refused: dict[str, str] = {}  # node -> why it gets no agent any more
        self._ended: list[tuple[Job, Outcome]] = []
        # The sweep folder lies in a file system that all nodes share.
        self._reports = ReportFiles(package.files)
        self._used: list[dict[str, Any]] = []  # by jobs that are over
        self._short: list[dict[str, Any]] = []  # jobs that ran out of memory beside others
        self._met = -POLL_S
        self._stop_by: float | None = None  # when to give up on agents that should stop

    # -- what an executor does --

    def free_slots(self) -> int:
        """1 when some node keeps a device for the next job, else 0.

        Raises DeviceError when no node has a device to give, now or ever, and ConfigurationError
        when what should be preloaded does not exist.
        """
        self._meet_nodes()
        for node in self._nodes.values():
            if not (node.free or node.asked):
                node.asked = True
                node.actor.tell.remote({"slots": True})
        deadline = time.monotonic() + ANSWER_S
        while self._free() is None and self._listen(deadline - time.monotonic()):
            pass
        return int(self._free() is not None)

    def submit(self, job: Job) -> None:
        node = self._free()
        if node is None:
            raise RuntimeError(f"job {job.number} submitted without a free slot")
        self._package.files.forget(job.number)
        try:
            order = self._package.order(job, self._returns)
            need = self._needs.of(job) if self._shares else Need()
        except Exception as error:
            self._ended.append(not_composed(job, error, self._returns))
            return
        self._reports.begin(job.number)
        node.free = False
        node.jobs[job.number] = job
        # Should the node be lost before it hears of it, the job is among those that run again.
        needs = {"alone": job.alone, "stage": job.stage, "needs": self._paths_of(job)}
        needs["memory"] = asdict(need)
        node.actor.tell.remote({"submit": job.number, "order": b64encode(order).decode(), **needs})

    def _paths_of(self, job: Job) -> list[str]:
        """Paths below the sweep folder in what a job gets, such as its parent's checkpoint."""
        sweep = f"{self._package.files.folder.parent}{os.sep}"
        values = (text.partition("=")[2].strip("'\"") for text in job.overrides)
        return [value for value in values if value.startswith(sweep)]

    def wait(self, timeout_s: float | None) -> list[tuple[Job, Outcome]]:
        """Jobs that ended; at the latest after `POLL_S`, when free devices are looked for again.

        After `stop` and with None: until one ends or none runs.
        """
        for node in self._nodes.values():
            if node.free:  # asked for and not used: others may want the device
                node.free = False
                node.actor.tell.remote({"release": True})
        if not self._ended:
            self._listen(POLL_S if timeout_s is None else min(timeout_s, POLL_S))
        while self._listen(0.0) or (timeout_s is None and self._still_stopping()):
            pass
        ended, self._ended = self._ended, []
        for job, _ in ended:
            self._reports.end(job.number)
        return ended

    def reports(self) -> list[Report]:
        return self._reports.new()

    def _still_stopping(self) -> bool:
        """Whether a node had jobs that were to stop, and no end to report; listens to it once."""
        late = self._stop_by is None or time.monotonic() >= self._stop_by
        if late or self._ended or all(node.stopped for node in self._nodes.values()):
            return False
        self._listen(POLL_S)
        return True

    def cancel(self, job: Job) -> None:
        for node in self._nodes.values():
            if job.number in node.jobs:
                node.actor.tell.remote({"cancel": job.number})

    def devices(self) -> dict[int, tuple[str, ...]]:
        """Trial number -> the node and the devices it runs on."""
        return {number: (node.name, *ids) for node, number, ids, _ in self._places()}

    def reserved(self) -> dict[int, tuple[int | None, str]]:
        """Trial number -> MiB it reserves on each of its devices, and where the figure is from."""
        return {number: share for _, number, _, share in self._places() if share[1]}

    def _places(self) -> list[tuple[_Node, int, tuple[str, ...], tuple[int | None, str]]]:
        nodes = list(self._nodes.values())  # a display may ask meanwhile
        return [(node, n, *place) for node in nodes for n, place in list(node.places.items())]

    def learn(self, job: Job, outcome: Outcome, known_to: _Node | None = None) -> None:
        """What an ended job used says, on every node, what the next ones reserve."""
        need, told = self._needs.known(job), []
        if outcome.lost and outcome.cause in OUT_OF_DEVICE_MEMORY:
            self._short.append({"short": job.number, "memory": asdict(need)})
            told.append(self._short[-1])
        folder = Path(job.folder) if job.folder else None
        used = used_by(job.number, job.stage, need, outcome, folder)
        if used is not None and used.says_something:
            self._used.append(used.to_json())
            told.append({"learn": self._used[-1:]})
        for node in self._nodes.values():
            for message in told if node is not known_to else ():
                node.actor.tell.remote(message)

    def adopt(self, job: Job) -> bool:
        """Jobs on a cluster never outlive their controller."""
        return False

    def stop(self) -> None:
        """As `LocalExecutor.stop`, on all nodes at once."""
        self._stop_by = time.monotonic() + self._grace_s + CLOSE_S
        for node in self._nodes.values():
            node.actor.tell.remote({"stop": True})

    def close(self) -> None:
        if self._ray is None:
            return
        self._stop_by = time.monotonic() + CLOSE_S
        try:
            for node in self._nodes.values():
                node.actor.tell.remote({"close": True})
            while self._nodes and time.monotonic() < self._stop_by:
                self._listen(POLL_S)
            for node in self._nodes.values():
                log.warning("the agent of %s did not end within %g s", node.name, CLOSE_S)
        finally:
            # Agents that are left are killed with their actors, and their jobs with them.
            self._nodes.clear()
            self._ray.shutdown()
            self._ray = None

    # -- nodes --

    def _meet_nodes(self) -> None:
        """Start an agent on every node that has none. Others work while it imports."""
        if time.monotonic() - self._met < POLL_S:
            return
        self._met = time.monotonic()
        nodes = self._ray.nodes()
        if any(node["NodeID"] == self._home and not node["Alive"] for node in nodes):
            self._nodes.clear()  # Ray ends what its driver started, and starts nothing more
            raise DeviceError(
                "The Ray node by which this sweep is connected to its cluster died, and its jobs with it.\n"
                "  Start it again (`ray start`), then rerun the same command: what finished is kept."
            )
        for node in nodes:
            key, resources = node["NodeID"], node["Resources"]
            # A node without CPUs is Ray's way to say: nothing is to run there.
            if node["Alive"] and resources.get("CPU") and key not in {*self._nodes, *self._refused}:
                self._start_agent(key, f"{node['NodeManagerAddress']}/{key[:6]}", resources, 1)
        if self._refused and not self._nodes:
            listed = "\n".join(f"    {why}" for why in self._refused.values())
            raise DeviceError(
                f"No node of the Ray cluster can run jobs:\n{listed}\n"
                "  `ray status` lists the nodes; `autocl devices` on a node lists its devices."
            )
        for agents in self._nodes.values():
            if not agents.answered and time.monotonic() - agents.begin > LATE_S:
                agents.answered = True
                log.warning(
                    f"the agent on {agents.name} has not started for {LATE_S:g} s: another program may"
                    " hold what Ray counts there (see `ray status`)"
                )

    def _start_agent(
        self, key: str, name: str, resources: Mapping[str, float], starts: int
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._package.write()
        gpus = resources.get("GPU", 0)
        actor = (
            # What there is to tell is waited for in a thread of its own.
            self._ray.remote(concurrency_groups={"told": 1})(_agent_class())
            .options(
                # What the agent may lease, Ray must not give to anybody else.
                num_gpus=gpus,
                num_cpus=0 if gpus else resources["CPU"],
                scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False),
            )
            .remote(self._argv, self._environment)
        )
        log.info("starting an agent on node %s", name)
        for message in (*self._short, {"learn": self._used}):
            actor.tell.remote(message)
        told = _next(actor)
        self._nodes[key] = _Node(key, name, actor, told, starts, time.monotonic())

    def _lose(self, node: _Node, reason: str) -> None:
        """Its jobs run again elsewhere, or there if the node itself is still alive."""
        del self._nodes[node.key]
        for job in node.jobs.values():
            why = f"node {node.name} was lost: {reason}"
            self._ended.append((job, Outcome(State.FAIL, reason=why, lost=True)))
        if self._stop_by is not None:
            return
        log.warning("node %s: %s", node.name, reason)
        if node.starts >= STARTS:
            self._refused[node.key] = f"{node.name}: its agent died {STARTS} times ({reason})"
        elif node.key not in self._refused:
            for other in self._ray.nodes():
                if other["NodeID"] == node.key and other["Alive"]:
                    self._start_agent(node.key, node.name, other["Resources"], node.starts + 1)

    # -- messages --

    def _free(self) -> _Node | None:
        """The node with a free slot that runs the fewest jobs."""
        free = [node for node in self._nodes.values() if node.free]
        return min(free, key=lambda node: len(node.jobs), default=None)

    def _listen(self, timeout_s: float) -> bool:
        """Act on what agents tell within the time; whether one told anything."""
        nodes = {node.told: node for node in self._nodes.values()}
        if not nodes:
            time.sleep(min(max(timeout_s, 0.0), POLL_S))
            return False
        ready, _ = self._ray.wait(list(nodes), num_returns=1, timeout=max(timeout_s, 0.0))
        for future in ready:
            node = nodes[future]
            try:
                messages = self._ray.get(future)
            except self._ray.exceptions.RayActorError as error:
                self._lose(node, str(error).partition("\n")[0])
                continue
            node.told = _next(node.actor)
            node.answered = True
            for message in messages:
                self._hear(node, message)
        return bool(ready)

    def _hear(self, node: _Node, message: Mapping[str, Any]) -> None:
        if "slots" in message:
            node.asked, node.free = False, bool(message["slots"])
        elif "on" in message:
            mib, source = message["reserved"]
            node.places[message["on"]] = tuple(message["devices"]), (mib, source)
        elif "ended" in message:
            job = node.jobs.pop(message["ended"])
            node.places.pop(job.number, None)
            outcome = replace(outcome_from_json(message["outcome"]), lost=message["lost"])
            self.learn(job, outcome, known_to=node)
            if self._returns and "return" in message:
                outcome = replace(outcome, job_return=unpacked(b64decode(message["return"])))
            self._ended.append((job, outcome))
        elif "stopped" in message:
            node.stopped = True
        elif "log" in message:
            level, text = message["log"]
            log.log(level, "%s: %s", node.name, text)
        elif "error" in message:
            name, text = message["error"]
            if name != DeviceError.__name__:
                kind: type[AutoCLError] = getattr(errors, name)
                raise kind(text)
            self._refused[node.key] = f"{node.name}: {text}"
        elif "gone" in message:
            self._lose(node, f"its agent ended ({exit_reason(message['gone'])})")


def _next(actor: Any) -> Any:
    return actor.told.options(concurrency_group="told").remote()


def _agent_class() -> type:
    """The actor. Made in a function, so that Ray sends its code: a node may not have the module."""

    class AgentActor:
        """Passes messages between the controller and an agent process of its node."""

        def __init__(self, argv: list[str], more: dict[str, str]) -> None:
            # Jobs are to find the environment in which the node joined the cluster: what Ray sets
            # for its workers (thread counts, devices) and for its own daemon (preloads) stays out.
            with open(f"/proc/{os.environ['RAY_RAYLET_PID']}/environ", "rb") as file:
                pairs = (entry.partition(b"=") for entry in file.read().split(b"\0") if entry)
                joined = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
            environment = {key: value for key, value in joined.items() if key in os.environ}
            self.messages: Any = queue.SimpleQueue()
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment | more,
                start_new_session=True,
            )
            threading.Thread(target=self.read, daemon=True).start()

        def read(self) -> None:
            for line in self.process.stdout:  # type: ignore[union-attr]
                self.messages.put(json.loads(line))
            self.messages.put({"gone": self.process.wait()})

        def tell(self, message: dict[str, Any]) -> None:
            with suppress(BrokenPipeError):  # it is gone, and `told` says so
                self.process.stdin.write(json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]
                self.process.stdin.flush()  # type: ignore[union-attr]

        def told(self) -> list[dict[str, Any]]:
            first = self.messages.get()
            return [first, *(self.messages.get() for _ in range(self.messages.qsize()))]

    return AgentActor
