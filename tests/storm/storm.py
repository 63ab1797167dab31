"""Everything that can go wrong, at random: kills, full disks, damage, hostile jobs, leases fought over.

    make storm SECONDS=1800           until the time is over, with a fresh seed
    make storm SEED=7 EPISODE=12      the 12th episode of seed 7 again

Each episode draws its kind and all it does from `<seed>/<number>`, so one that failed can be repeated:
its last line says how. Timing is the machine's own, so a rare race may take several repetitions.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.bench import APPS, Bench, Gpus, wait_until
from support.damaged import Killed, damage, run
from support.endings import FAULTS
from support.fake_nvml import build as fake

from autocl_sweeper.errors import AutoCLError, JournalDamagedError
from autocl_sweeper.journal import NAME, read

OURS = ("hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2")
MODES = {
    "fresh": ("hydra.launcher.warm=false",),
    "warm": ("hydra.launcher.warm=true",),
    "finish": ("hydra.launcher.warm=true", "hydra.launcher.on_controller_death=finish"),
}
PATIENT = ("hydra.sweeper.retries=50", "hydra.sweeper.retry_delay_s=0")  # killed jobs run again
Tally = Counter[str]


class Episode:
    """One run of some kind, in a folder of its own, with dice of its own."""

    def __init__(self, name: str, folder: Path, tally: Tally) -> None:
        self.dice = random.Random(name)
        self.folder = folder
        self.tally = tally
        self.close = ExitStack()

    def bench(self, app: str, name: str = "bench") -> Bench:
        (self.folder / name).mkdir()
        made = Bench(self.folder / name, APPS / f"{app}.py")
        self.close.callback(made.close)
        return made


def no_traceback(output: str) -> None:
    ours = [line for line in output.splitlines() if not line.lstrip().startswith("|")]
    assert "Traceback (most recent call last)" not in ours, output


# -- the oracle -------------------------------------------------------------------------------------


class Tree:
    """What a sweep of the app `chain` comes to: every lineage is scored, level by level."""

    def __init__(self, rates: list[int], tasks: list[str], top_k: int) -> None:
        self.scores: dict[tuple[int, ...], float] = {}
        self.beams: dict[int, list[tuple[int, ...]]] = {}
        beam: list[tuple[int, ...]] = [()]
        for stage in range(1, len(tasks) + 1):
            level = [(*parent, rate) for parent in beam for rate in rates]
            for chain in level:
                score = sum(rate * (-0.6) ** place for place, rate in enumerate(chain))
                self.scores[chain] = round(score, 6)
            # Ties go to the earlier suggestion, then to the better parent.
            rank = {parent: place for place, parent in enumerate(beam)}
            level.sort(key=lambda c: (-self.scores[c], rates.index(c[-1]), rank[c[:-1]]))
            beam = self.beams[stage] = level[:top_k]

    def check(self, bench: Bench) -> None:
        trials = {event["trial"]: event for event in bench.events("start")}

        def chain(number: int) -> tuple[int, ...]:
            event = trials[number]
            above = () if event["parent"] is None else chain(event["parent"])
            return (*above, event["params"]["lr"])

        counted = {n: e for n, e in bench.finished().items() if e["state"] != "PRUNED"}
        assert {chain(n): e["score"] for n, e in counted.items()} == self.scores
        assert {e["state"] for e in counted.values()} == {"COMPLETE"}
        told = bench.results()["beams"]
        assert {stage: [chain(n) for n in beam] for stage, beam in told.items()} == self.beams
        kept = {int(path.parent.name) for path in bench.sweep.glob("*/*/checkpoint")}
        last = bench.results()["beams"][len(self.beams)]
        needed = {chain(number)[:length] for number in last for length in range(1, 9)}
        assert {chain(number) for number in kept} == needed
        wait_until(bench.nothing_is_left, "no process and no lease is left")


def a_tree(episode: Episode) -> tuple[Tree, tuple[str, ...]]:
    dice = episode.dice
    rates = dice.sample(range(1, 9), dice.randint(2, 4))
    tasks = ["a", "b"][: dice.randint(1, 2)]
    top_k = dice.randint(1, 2)
    pipeline = dice.choice(["true", "false"])
    command = (
        *OURS, *PATIENT, f"task={','.join(tasks)}", f"lr={','.join(map(str, rates))}",
        f"hydra.sweeper.top_k={top_k}", f"hydra.sweeper.pipeline={pipeline}",
        "hydra/sweeper/search=grid",
    )  # fmt: skip
    return Tree(rates, tasks, top_k), command


# -- kinds of episodes ------------------------------------------------------------------------------


def victims(bench: Bench, controller: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {
        "controller": [controller],
        "guardian": [],
        "template": [],
        "job": [],
    }
    for pid in bench.processes():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if pid == controller:
                continue
            if b"guardian.py" in words:
                found["guardian"].append(pid)
            elif b"forkserver" in words and os.getpgid(pid) == pid and _is_child(pid, controller):
                found["template"].append(pid)
            elif b"AUTOCL_JOB=" in environment:
                found["job"].append(pid)
    return found


def _is_child(pid: int, parent: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(stat[1]) == parent


def kills(episode: Episode) -> None:
    """kill -9 of whatever belongs to a sweep, again and again."""
    dice, tree_and_command = episode.dice, a_tree(episode)
    tree, command = tree_and_command
    mode = dice.choice(sorted(MODES))
    command += MODES[mode]
    bench = episode.bench("chain")
    left, lasts = dice.randint(2, 8), f"{dice.uniform(0.05, 0.6):.2f}"
    done: set[int] = set()
    while True:
        starts = len(bench.ledger("start"))
        process = bench.start(*command, LASTS_S=lasts)
        while left and process.poll() is None:
            time.sleep(dice.uniform(0.0, 2.5))
            kind = dice.choice(["controller", "controller", "guardian", "template", "job", "job"])
            pids = victims(bench, process.pid)[kind]
            if pids and process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(dice.choice(pids), signal.SIGKILL)
                episode.tally[f"kills of a {kind}"] += 1
                episode.tally["kills"] += 1
                left -= 1
            if kind == "controller":
                break
        output = bench.finish(process)
        no_traceback(output)
        again = {event["trial"] for event in bench.ledger("start")[starts:]} & done
        assert not again, f"trials {again} had finished and ran again ({mode})"
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


def disks(episode: Episode) -> None:
    """A disk that is filled at any moment, and emptied after each stop."""
    disk = episode.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        episode.tally["disks that could not be mounted"] += 1
        return
    episode.close.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
    dice = episode.dice
    tree, command = a_tree(episode)
    command += MODES[dice.choice(["fresh", "warm"])]
    bench = episode.bench("chain")
    bench.sweep = disk / "sweep"
    filler = disk / "filler"
    for _ in range(dice.randint(1, 4)):
        delay, leave = dice.uniform(0, 4), dice.choice([0, 0, 1, 100, 4096, 70_000])
        over = threading.Event()
        filling = threading.Thread(target=_fill, args=(filler, delay, leave, over))
        filling.start()
        process = bench.start(*command, LASTS_S=f"{dice.uniform(0, 0.4):.2f}")
        output = bench.finish(process)
        over.set()
        filling.join()
        filled = filler.exists()
        filler.unlink(missing_ok=True)
        episode.tally["disk fills"] += filled
        no_traceback(output)
        if process.returncode:
            assert "DiskError" in output and str(disk) in output, output
            episode.tally["stops by a full disk"] += 1
            wait_until(bench.nothing_is_left, "nothing is left")
    bench.run(*command)
    tree.check(bench)
    starts = Counter(event["trial"] for event in bench.ledger("end"))
    done = [number for number, count in starts.items() if count > 1]
    for number in done:  # a job that ended may run again only if its model did not fit
        lost = [e for e in bench.events("attempt_failed") if e["trial"] == number]
        assert lost and all(e["lost"] for e in lost), (number, lost)


def _fill(path: Path, delay_s: float, leave: int, over: threading.Event) -> None:
    if over.wait(delay_s):
        return
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while not over.is_set():
            try:
                file.write(b"f" * 4096)
            except OSError:
                break
        file.truncate(max(0, path.stat().st_size - leave))


def damages(episode: Episode) -> None:
    """Damage to any file of a folder that a kill has left."""
    dice = episode.dice
    whole = run(episode.folder / "whole")
    for number in range(25):
        folder = episode.folder / str(number)
        with suppress(Killed):
            run(folder, dice.randrange(18))
        what = damage(folder, dice)
        episode.tally["damaged folders"] += 1
        try:
            found = run(folder)
        except AutoCLError as error:
            assert str(folder) in str(error), f"{what}: {error}"
            episode.tally["damaged folders refused by name"] += 1
            continue
        assert found == whole, what


def flips(episode: Episode) -> None:
    """Flipped bits of a journal: none is believed."""
    dice = episode.dice
    run(episode.folder / "sweep")
    journal = episode.folder / "sweep" / NAME
    data, records = journal.read_bytes(), read(journal.parent)
    for _ in range(500):
        flipped = bytearray(data)
        flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        journal.write_bytes(flipped)
        episode.tally["flipped bits"] += 1
        with suppress(JournalDamagedError):
            # A flip of the line end between the last two makes one line of them.
            assert read(journal.parent) in (records[:-1], records[:-2])


def endings(episode: Episode) -> None:
    """Jobs that end in hostile ways, and their siblings."""
    dice = episode.dice
    bench = episode.bench("faults")
    names = dice.sample(sorted(set(FAULTS) - {"fine"}), 6)
    mode = dice.choice(["fresh", "warm"])
    output = bench.run(
        *OURS, *MODES[mode], "task=a", f"fault=fine,{','.join(names)},fine",
        "hydra/sweeper/search=grid", JOURNAL=str(bench.sweep / NAME),
    )  # fmt: skip
    no_traceback(output)
    faults = {event["trial"]: event["params"]["fault"] for event in bench.events("start")}
    states = {faults[trial]: event["state"] for trial, event in bench.finished().items()}
    expected = {name: "COMPLETE" if FAULTS[name] is None else "FAIL" for name in names}
    assert states == {**expected, "fine": "COMPLETE"}
    wait_until(bench.nothing_is_left, "no process and no lease is left")
    episode.tally["hostile endings"] += len(names)


def leases(episode: Episode) -> None:
    """Sweeps that fight for two GPUs of a fake driver: no device has two jobs at a time."""
    dice = episode.dice
    gpus = Gpus(fake.build(episode.folder), episode.folder / "figures")
    gpus.gpus = gpus.gpus[:2]
    gpus.write()
    benches = [gpus.seen_by(episode.bench("chain", f"sweep{n}")) for n in range(3)]
    for bench in benches:
        bench.leases = benches[0].leases
        bench.environment["AUTOCL_LEASE_DIR"] = str(bench.leases)
    rates = ",".join(map(str, range(1, dice.randint(5, 12))))
    lasts = f"{dice.uniform(0, 0.1):.2f}"
    command = (
        OURS[0],
        OURS[1],
        *MODES["warm"],
        "task=a",
        f"lr={rates}",
        "hydra/sweeper/search=grid",
    )
    started = [bench.start(*command, LASTS_S=lasts) for bench in benches]
    for bench, process in zip(benches, started, strict=True):
        no_traceback(bench.finish(process, 0))
    spans: dict[str, list[tuple[float, float]]] = {}
    for bench in benches:
        begun = {event["trial"]: event["time"] for event in bench.ledger("start")}
        for event in bench.ledger("end"):
            spans.setdefault(event["devices"], []).append((begun[event["trial"]], event["time"]))
            episode.tally["jobs on leased devices"] += 1
    for device, held in spans.items():
        held.sort()
        for (_, end), (begin, _) in pairwise(held):
            assert end <= begin, f"{device} had two jobs at a time"
    wait_until(benches[0].nothing_is_left, "no process and no lease is left")


KINDS: dict[str, tuple[Callable[[Episode], None], int]] = {  # and how often, of the sum
    "kills": (kills, 8),
    "disks": (disks, 4),
    "damages": (damages, 2),
    "flips": (flips, 1),
    "endings": (endings, 3),
    "leases": (leases, 3),
}


# -- the storm --------------------------------------------------------------------------------------


def episode_of(seed: int, number: int, tally: Tally, kinds: list[str]) -> None:
    """Run one episode. Raises what it finds wrong."""
    name = f"{seed}/{number}"
    chosen = random.Random(f"kind of {name}").choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        episode = Episode(name, Path(scratch), tally)
        with episode.close:
            os.environ["AUTOCL_LEASE_DIR"] = f"{scratch}/leases"
            KINDS[chosen][0](episode)
    print(f"episode {number} ({chosen}): well, {time.monotonic() - begin:.1f} s", flush=True)


def storm(seed: int, seconds: float, kinds: list[str], first: int = 1, most: int = 10**9) -> Tally:
    """Episodes until `seconds` are over; what they counted. Raises what the first bad one raised."""
    tally: Tally = Counter()
    until = time.monotonic() + seconds
    print(f"storm of {seconds:g} s, seed {seed}", flush=True)
    for number in range(first, first + most):
        if time.monotonic() > until and number > first:
            break
        try:
            episode_of(seed, number, tally, kinds)
        except BaseException:
            more = "" if kinds == list(KINDS) else f" KINDS='{' '.join(kinds)}'"
            print(
                f"\nepisode {number} failed. Again: make storm SEED={seed} EPISODE={number}{more}"
            )
            raise
    for what, count in sorted(tally.items()):
        print(f"{count:6} {what}")
    return tally


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, help="by default another one each time")
    parser.add_argument("--episode", type=int, help="only this one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    only = {} if chosen.episode is None else {"first": chosen.episode, "most": 1}
    return storm(seed, chosen.seconds, chosen.kinds, **only)


if __name__ == "__main__":
    main()
