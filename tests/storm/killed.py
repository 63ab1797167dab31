"""kill -9 of whatever belongs to a sweep, on this machine and on the nodes of a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from episode import MODES, OURS, Episode, Tree, a_tree, no_traceback
from support.bench import APPS, Bench, alive, held_in
from support.two_nodes import ON_LOOPBACK, TwoNodes

AGENTS = 2  # kills in one session; a node whose agent died three times gets no other


class Here:
    """A sweep's processes on this machine, by what they are."""

    pause_s = 2.5  # between kills, at most: a sweep starts in about this time

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def victims(self, controller: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {kind: [] for kind in ("guardian", "template", "job")}
        for pid in self.bench.processes():
            with suppress(OSError):
                words = _words(pid)
                if pid == controller:
                    continue
                if b"guardian.py" in words:
                    found["guardian"].append(pid)
                elif b".forkserver" in words:  # what it forked has its command line
                    forked = b".forkserver" in _words(_parent(pid))
                    found["job" if forked else "template"].append(pid)
                elif b"AUTOCL_JOB=" in _environment(pid):
                    found["job"].append(pid)
        return found | {"controller": [controller]}

    def kill(self, kind: str, pid: int) -> bool:
        """Whether this killed anything."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False


class OnRay(Here):
    """The same on two nodes, with their agents, the actors that speak for them, and the second node."""

    bench: RayBench
    pause_s = 6.0

    def __init__(self, bench: RayBench) -> None:
        super().__init__(bench)
        self.session, self.agents = 0, 0

    def victims(self, controller: int) -> dict[str, list[int]]:
        if controller != self.session:
            self.session, self.agents = controller, AGENTS
        found = super().victims(controller) | {"agent": [], "actor": [], "node": [controller]}
        for pid in self.bench.processes() if self.agents else ():
            with suppress(OSError):
                words = _words(pid)
                if b"ray::AgentActor" in words:
                    found["actor"].append(pid)
                elif b".ray.agent" in words:
                    found["agent"].append(pid)
        return found

    def kill(self, kind: str, pid: int) -> bool:
        if kind == "node":  # or another one comes in its place
            return self.bench.nodes.switch_second_node()
        self.agents -= kind in ("agent", "actor")
        return super().kill(kind, pid)


def kills(episode: Episode) -> None:
    """Kills where all runs on this machine."""
    tree, command = a_tree(episode)
    mode = episode.dice.choice(sorted(MODES))
    command += (*OURS, *MODES[mode])
    _again_and_again(episode, tree, Here(episode.bench("chain")), command)


def ray(episode: Episode) -> None:
    """Kills on two Ray nodes: also of agents, of the actors that speak for them, and of a whole node."""
    if importlib.util.find_spec("ray") is None:
        episode.tally["episodes without Ray"] += 1
        return
    tree, command = a_tree(episode)
    nodes = TwoNodes(episode.folder)
    episode.close.callback(nodes.close)
    (episode.folder / "bench").mkdir()
    bench = RayBench(episode.folder / "bench", nodes)
    episode.close.callback(bench.close)
    command += (
        "hydra/launcher=ray", f"hydra.launcher.address={nodes.address}", "hydra.launcher.cpu_slots=2",
        f"hydra.launcher.warm={episode.dice.choice(['true', 'false'])}",
        "hydra.job.env_copy=[LEDGER,HOLD,LASTS_S]",
    )  # fmt: skip
    _again_and_again(episode, tree, OnRay(bench), command)


def _again_and_again(episode: Episode, tree: Tree, place: Here, command: tuple[str, ...]) -> None:
    """Start the sweep, kill, start it again, until it ends by itself as `tree` says."""
    dice, bench = episode.dice, place.bench
    left, lasts = dice.randint(2, 8), f"{dice.uniform(0.05, 0.6):.2f}"
    done: set[int] = set()
    while True:
        starts = len(bench.ledger("start"))
        process = bench.start(*command, LASTS_S=lasts)
        waits = left and dice.random() < 0.7  # else it may well be killed before it has jobs
        while waits and process.poll() is None and len(bench.ledger("start")) == starts:
            time.sleep(0.05)
        while left and process.poll() is None:
            time.sleep(dice.uniform(0.0, place.pause_s))
            found = place.victims(process.pid)
            kind = dice.choice(["controller", "job", *found])
            runs = process.poll() is None
            killed = runs and found[kind] and place.kill(kind, dice.choice(found[kind]))
            if killed:
                episode.tally[f"kills of {kind}"] += 1
                episode.tally["kills"] += 1
                left -= 1
            if kind == "controller":
                break
        output = bench.finish(process)
        no_traceback(output)
        again = {event["trial"] for event in bench.ledger("start")[starts:]} & done
        assert not again, f"trials {again} had finished and ran again: {command}"
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
        told = {int(path.stem) for path in (bench.sweep / ".autocl").glob("[0-9]*.json")}
        done = {n for n in told | set(bench.finished()) if _is_result(bench, n)}
    tree.check(bench)
    episode.tally["sweeps"] += 1


def _is_result(bench: Bench, number: int) -> bool:
    """Whether a trial needs no further run: it is complete, in the journal or beside it."""
    from autocl_sweeper.outcome import JobFiles

    finished = bench.finished().get(number)
    if finished is not None:
        return bool(finished["state"] == "COMPLETE")
    outcome = JobFiles.of(bench.sweep).read_outcome(number)
    return outcome is not None and outcome.state.value == "COMPLETE"


def _words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class RayBench(Bench):
    """A bench whose jobs run on two nodes, each with an environment and a lease folder of its own."""

    def __init__(self, folder: Path, nodes: TwoNodes) -> None:
        super().__init__(folder, APPS / "chain.py")
        self.nodes = nodes
        self.environment |= ON_LOOPBACK

    def processes(self) -> list[int]:
        """The controller, agents with their actors and jobs; not what Ray runs for itself."""
        found = super().processes()
        marks = {f"AUTOCL_LEASE_DIR={place}".encode() for place in self.nodes.leases}
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with suppress(OSError):
                words, environment = _words(pid), _environment(pid).split(b"\0")
                ours = any(word in words for word in (b"autocl_sweeper", b"ray::AgentActor"))
                if ours and marks & set(environment) and alive(pid):
                    found.append(pid)
        return found

    def leased(self) -> list[str]:
        return [device for place in (self.leases, *self.nodes.leases) for device in held_in(place)]
