"""`autocl watch` on a terminal, beside a sweep that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from support.bench import Bench, wait_until
from support.terminal import Terminal

ARGUMENTS = (
    "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=2", "task=a", "lr=1,2"
)  # fmt: skip


def watch(bench: Bench, terminal: Terminal) -> subprocess.Popen[bytes]:
    """As a shell would start it: what is typed there reaches it."""
    command = ["setsid", "--ctty", sys.executable, "-m", "autocl_sweeper", "watch", bench.sweep]
    end = terminal.theirs
    environment = {**bench.environment, "TERM": "xterm"}
    process = subprocess.Popen(command, env=environment, stdin=end, stdout=end, stderr=end)
    os.close(end)
    bench.started.append(process)
    return process


def test_ctrl_c_ends_the_panel_and_leaves_the_sweep_running_and_a_cursor(chain: Bench) -> None:
    sweep = chain.start_held(2, *ARGUMENTS)
    first = Terminal(80)
    watching = watch(chain, first)
    wait_until(lambda: first.shows(" cpu-1  #1  lr=2"), "the panel shows both jobs")
    assert first.cursor_hidden
    first.type("\x03")
    assert watching.wait(60) == 130
    shown = [line for line in first.close() if line]
    assert shown[0].startswith("stage 1/1 a  ") and shown[0].endswith(" 0/2 jobs")
    assert shown[2:4] == [" cpu-0  #0  lr=1", " cpu-1  #1  lr=2"]
    assert not any("Traceback" in line for line in shown)
    assert not first.cursor_hidden and sweep.poll() is None

    second = Terminal(80)  # again, until the sweep is over
    watching = watch(chain, second)
    wait_until(lambda: second.shows(" cpu-1  #1  lr=2"), "the panel is back")
    chain.release(sweep)
    assert watching.wait(60) == 0
    last = [line for line in second.close() if line]
    assert last[-3:-1] == ["finished", "  best 2.0000, trial 1    2 of 2 done"]
    assert not second.cursor_hidden
    for frame in second.frames:
        assert sum(line.endswith("/2 jobs") for line in frame) <= 1, frame  # no copy of the panel
    told = [re.sub(r"^[\d-]+ [\d:]+ ", "", line) for line in last]
    assert "stage 1 a done, beam 1 (2.0000) 0 (1.0000)" in told
    assert "the sweep is over" in told


def test_the_panel_ends_when_the_sweep_is_killed_and_says_so(chain: Bench) -> None:
    sweep = chain.start_held(2, *ARGUMENTS)
    terminal = Terminal(80)
    watching = watch(chain, terminal)
    wait_until(lambda: terminal.shows(" cpu-1  #1  lr=2"), "the panel shows both jobs")
    chain.kill(sweep)
    assert watching.wait(60) == 0
    assert any(re.match("stopped, stage 1 of 1", line) for line in terminal.close())
    assert not terminal.cursor_hidden
