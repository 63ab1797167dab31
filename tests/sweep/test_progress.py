"""What a person sees of a running sweep or launch: rich draws into text, and once into a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import threading

import pytest
from rich.console import Console
from support.bench import Bench
from support.plans import plan_of

from autocl_sweeper.device.probe import Device
from autocl_sweeper.display.progress import LaunchProgress, LiveLaunch, LiveProgress, Panel, watch
from autocl_sweeper.types import History, Job, Outcome, State, Suggestion, Trial

GIB = 1024
GPUS = [
    Device("GPU-aaaa1111-x", "A", total_mib=80 * GIB, free_mib=68 * GIB),
    Device("GPU-bbbb2222-x", "A", total_mib=80 * GIB, free_mib=80 * GIB),
]


class Executor:
    def __init__(self, running=(), devices=GPUS):
        self.running = dict(running)
        self._devices = devices
        self.asked = 0

    def devices(self):
        return self.running

    def readings(self):
        self.asked += 1
        return {device.id: device for device in self._devices}


def drawn(panel: Panel) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=150).print(panel.lines())
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def a_trial(number, state=None, score=None, **where):
    outcome = None if state is None else Outcome(state, score=score, seconds=10.0)
    params = {"lr": number}
    return Trial(number, 1, "a", Suggestion(number, params), None, f"1_a/{number}", 1, outcome)


def test_the_panel_of_a_sweep_counts_trials_and_shows_each_device_with_memory_and_job():
    history = History()
    progress = LiveProgress(Executor({2: ("GPU-aaaa1111-x",)}))
    progress.say = lambda text: None
    progress._panel.start = lambda: None
    progress.begin(plan_of("task=a,b", "lr=0,1,2,3"), history)
    for number, (state, score) in enumerate([(State.COMPLETE, 0.5), (State.FAIL, None)]):
        history.start(a_trial(number))
        progress.started(history[number])
        progress.finished(history.finish(number, Outcome(state, score=score, seconds=10.0)))
    history.start(a_trial(2))
    progress.started(history[2])
    figures, busy, idle = drawn(progress._panel)
    # 4 + 2 * 4 trials in all: two have ended and one runs.
    for told in ("stage 1/2 a", "1 running", "9 queued", "2 done", "1 failed", "best 0.5 (#0)"):
        assert told in figures
    assert "about 1:40 left" in figures  # ten trials of 10 s, one at a time
    assert busy == "GPU-aaaa1111 12.0/80.0 GiB 1_a/2 lr=2"
    assert idle == "GPU-bbbb2222 0.0/80.0 GiB -"


def test_the_panel_of_a_launch_counts_jobs_whatever_the_sweeper_is():
    executor = Executor()
    progress = LiveLaunch(executor, 5)
    progress.say = lambda text: None
    jobs = [Job(number, (f"lr={number}",)) for number in range(5)]
    for job in jobs[:3]:
        progress.started(job, f"lr={job.number}")
    progress.finished(jobs[0], Outcome(State.COMPLETE, seconds=4.0))
    progress.finished(jobs[1], Outcome(State.FAIL, reason="no", seconds=2.0))
    executor.running = {2: ("GPU-aaaa1111-x", "GPU-bbbb2222-x")}
    figures, *devices = drawn(progress._panel)
    for told in ("1 running", "2 queued", "2 done", "1 failed", "about 0:03 left"):
        assert told in figures
    assert devices == [
        "GPU-aaaa1111 12.0/80.0 GiB #2 lr=2",
        "GPU-bbbb2222 0.0/80.0 GiB #2 lr=2",
    ]
    progress.again(jobs[2], "its device is gone", 3.0)
    assert "0 running" in drawn(progress._panel)[0] and "3 queued" in drawn(progress._panel)[0]


def test_cpu_slots_have_a_line_while_they_are_busy_and_many_devices_do_not_fill_the_screen():
    slots = [Device(f"cpu-{i}", "CPU") for i in range(64)]
    progress = LiveLaunch(Executor({3: ("cpu-7",)}, slots), 9)
    progress.say = lambda text: None
    progress.started(Job(3, ()), "lr=3")
    assert drawn(progress._panel)[1:] == ["cpu-7 #3 lr=3"]
    many = [Device(f"GPU-{i:08}-x", "A", GIB, GIB) for i in range(20)]
    lines = drawn(LiveLaunch(Executor({}, many), 9)._panel)
    assert len(lines) == 1 + 16 + 1 and lines[-1] == "and 4 more devices"


def test_jobs_elsewhere_have_a_line_each_with_their_node():
    class Cluster:
        def devices(self):
            return {0: ("node-1", "GPU-aaaa1111-x"), 1: ("node-2", "GPU-aaaa1111-x")}

    progress = LiveLaunch(Cluster(), 2)
    assert drawn(progress._panel)[1:] == ["node-1 GPU-aaaa1111 #0", "node-2 GPU-aaaa1111 #1"]


def test_devices_are_not_asked_at_every_frame():
    executor = Executor()
    panel = LiveLaunch(executor, 1)._panel
    for _ in range(10):
        panel.lines()
    assert executor.asked == 1


def test_without_a_terminal_there_are_log_lines_alone(caplog):
    assert not isinstance(watch(Executor()), LiveProgress)  # pytest is no terminal
    caplog.set_level("INFO")
    progress = LaunchProgress(2)
    progress.started(Job(7, ()), "lr=1")
    progress.finished(Job(7, ()), Outcome(State.FAIL, reason="exit status 3", seconds=1.25))
    assert caplog.messages == ["#7 : lr=1", "#7 FAIL in 1.2 s exit status 3"]


@pytest.mark.parametrize("sweeper", ["basic", "autocl"])
def test_on_a_terminal_the_panel_is_drawn_and_elsewhere_no_escape_is_written(
    chain: Bench, sweeper: str
) -> None:
    command = (f"hydra/sweeper={sweeper}", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=1")
    if sweeper == "autocl":  # both ask the same of stderr
        assert "\x1b" not in chain.run(*command, "lr=1,2", "hydra.sweep.dir=plain")
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                seen.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    # Longer than a redraw takes to come, so that one of them shows a job that runs.
    process = chain.start(
        *command, "lr=1,2", terminal=theirs, TERM="xterm", COLUMNS="150", LASTS_S="0.6"
    )
    os.close(theirs)
    process.wait(60)
    reader.join()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(seen).decode())
    assert process.returncode == 0, text
    assert "1 running" in text and "1 queued" in text and "2 done" in text and "0 failed" in text
    assert re.search(r"cpu-0 +(#0|0) lr=1|cpu-0  0 +lr=1", text), text
