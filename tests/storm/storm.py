"""Everything that can go wrong, at random: kills, full disks, damage, hostile jobs, leases fought over.

    make storm SECONDS=1800           until the time is over, with a fresh seed
    make storm SEED=7 EPISODE=12      the 12th episode of seed 7 again

Each episode draws its kind and all it does from `<seed>/<number>`, so one that failed can be repeated:
its last line says how. Timing is the machine's own, so a rare race may take several repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from episode import MODES, OURS, Episode, Tally, a_tree, no_traceback
from killed import kills, ray
from support.bench import Gpus, wait_until
from support.broken_disk.breaking import Breaking
from support.damaged import Killed, damage, run
from support.endings import FAULTS
from support.fake_nvml import build as fake

from autocl_sweeper.disk import BROKEN
from autocl_sweeper.errors import AutoCLError, JournalDamagedError
from autocl_sweeper.journal import NAME, read

# -- kinds of episodes ------------------------------------------------------------------------------


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
    command += (*OURS, *MODES[dice.choice(["fresh", "warm"])])
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


def breaks(episode: Episode) -> None:
    """A disk on which every change fails from some moment on, with any error that disks have."""
    dice = episode.dice
    tree, command = a_tree(episode)
    command += (*OURS, *MODES[dice.choice(["fresh", "warm"])])
    bench = episode.bench("chain")
    disk = Breaking(episode.folder, bench.sweep)
    bench.environment |= disk.environment
    for _ in range(dice.randint(1, 4)):
        disk.after(int(10 ** dice.uniform(0, 2.8)), dice.choice(BROKEN))
        output = bench.finish(process := bench.start(*command))
        no_traceback(output)
        if process.returncode:
            assert "DiskError" in output and str(bench.sweep) in output, output
            episode.tally["stops by a broken disk"] += 1
            wait_until(bench.nothing_is_left, "nothing is left")
    disk.repair()
    bench.run(*command)
    tree.check(bench)


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
        "hydra/sweeper=autocl", *OURS, *MODES[mode], "task=a", f"fault=fine,{','.join(names)},fine",
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
        "hydra/sweeper=autocl",
        "hydra/launcher=gpu",
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
    "ray": (ray, 2),
    "disks": (disks, 4),
    "breaks": (breaks, 2),
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
    scratch = tempfile.mkdtemp(prefix="storm-")
    episode = Episode(name, Path(scratch), tally)
    try:
        with episode.close:
            os.environ["AUTOCL_LEASE_DIR"] = f"{scratch}/leases"
            KINDS[chosen][0](episode)
    except BaseException:
        print(f"\nepisode {number} ({chosen}) failed; what it left is in {scratch}")
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"episode {number} ({chosen}): well, {time.monotonic() - begin:.1f} s", flush=True)


def storm(
    seed: int,
    seconds: float,
    kinds: list[str],
    first: int = 1,
    most: int = 10**9,
    counts: Path | None = None,
) -> Tally:
    """Episodes until `seconds` are over; what they counted. Raises what the first bad one raised.

    What each episode counted is appended to the file `counts`, a JSON object a line.
    """
    total: Tally = Counter()
    until = time.monotonic() + seconds
    print(f"storm of {seconds:g} s, seed {seed}", flush=True)
    for number in range(first, first + most):
        if time.monotonic() > until and number > first:
            break
        tally: Tally = Counter()
        well = False
        try:
            episode_of(seed, number, tally, kinds)
            well = True
        except BaseException:
            more = "" if kinds == list(KINDS) else f" KINDS='{' '.join(kinds)}'"
            print(f"Again: make storm SEED={seed} EPISODE={number}{more}", flush=True)
            raise
        finally:
            total += tally
            if counts:
                with open(counts, "a") as file:
                    line = {"seed": seed, "episode": number, "well": well, **tally}
                    file.write(json.dumps(line) + "\n")
    for what, count in sorted(total.items()):
        print(f"{count:6} {what}")
    return total


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, help="by default another one each time")
    parser.add_argument("--episode", type=int, help="only this one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--counts", type=Path, help="a file to append what each episode counted to")
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    only = {} if chosen.episode is None else {"first": chosen.episode, "most": 1}
    return storm(seed, chosen.seconds, chosen.kinds, counts=chosen.counts, **only)


if __name__ == "__main__":
    main()
