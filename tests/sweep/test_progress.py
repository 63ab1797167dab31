"""What a person sees of a running sweep or launch: rich draws into text, and once into a terminal."""

from __future__ import annotations

import os
import re
import signal

import pytest
from support.bench import Bench, wait_until
from support.plans import plan_of
from support.terminal import Terminal

from autocl_sweeper.device.probe import Device
from autocl_sweeper.display.panel import Glance, JobLine, Panel
from autocl_sweeper.display.progress import LaunchProgress, LiveLaunch, LiveProgress, watch
from autocl_sweeper.types import History, Job, Outcome, Report, State, Suggestion, Trial

GIB = 1024
GPUS = [
    Device("GPU-aaaa1111-x", "A", total_mib=80 * GIB, free_mib=68 * GIB, utilisation=93),
    Device("GPU-bbbb2222-x", "A", total_mib=80 * GIB, free_mib=80 * GIB, utilisation=0),
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


def drawn(panel: Panel, width: int = 150) -> list[str]:
    return [line.plain.rstrip() for line in panel.lines(width)]


def squeezed(panel: Panel) -> list[str]:
    return [" ".join(line.split()) for line in drawn(panel)]


def a_trial(number, state=None, score=None, **where):
    outcome = None if state is None else Outcome(state, score=score, seconds=10.0)
    params = {"lr": number}
    return Trial(number, 1, "a", Suggestion(number, params), None, f"1_a/{number}", 1, outcome)


def begun(executor: Executor, history: History, stages: str = "a,b") -> LiveProgress:
    progress = LiveProgress(executor)
    progress._panel.start = lambda: None
    progress._panel._readings = executor.readings()
    progress.begin(plan_of(f"task={stages}", "lr=0,1,2,3"), history)
    return progress


def test_the_panel_of_a_sweep_counts_trials_and_shows_each_device_with_load_memory_and_job():
    history = History()
    progress = begun(Executor({2: ("GPU-aaaa1111-x",)}), history)
    for number, (state, score) in enumerate([(State.COMPLETE, 0.5), (State.FAIL, None)]):
        history.start(a_trial(number))
        progress.started(history[number])
        outcome = Outcome(state, "exit status 3" * (score is None), score=score, seconds=10.0)
        progress.finished(history.finish(number, outcome))
    history.start(a_trial(2))
    progress.started(history[2])
    history.report(Report(2, 40, 0.75))
    first, second, busy, idle, failure = squeezed(progress._panel)
    # 4 + 2 * 4 trials in all: two have ended and one runs.
    assert first.startswith("stage 1/2 a ━") and first.endswith("2/12 jobs")
    for told in ("best 0.5 #0", "1 running, 9 queued, 2 done, 1 failed"):
        assert told in second
    assert "about 1:40 left" in second  # ten trials of 10 s, one at a time
    assert busy == "GPU-aaaa1111 93% 12.0/80.0 GiB #2 lr=2 step 40 0.750"
    assert idle == "GPU-bbbb2222 0% 0.0/80.0 GiB -"
    assert failure == "last failure #1: exit status 3 autocl show 1"


WIDTHS = (40, 60, 80, 120)


@pytest.mark.parametrize("task", ["digits_45", "多任务学习情感分类" * 4])
@pytest.mark.parametrize("width", WIDTHS)
def test_at_any_width_score_failures_and_time_stay_and_no_line_is_wider(width, task):
    gpus = [Device(f"GPU-{n:08}-x", "A", 143000, 128000, utilisation=93) for n in range(2)]
    running = {n: (gpus[n - 16].id,) for n in (16, 17)}
    shown = Glance(
        14, 34, 2, 1, 16.0, 18, 14.0, "3/5", task, "0.9852", (0, 9, 14), 0, 0,
        "#11: CUDA out of memory: tried to allocate 2 GiB (2 alike)", "autocl show 11",
    )  # fmt: skip
    settings = "learning_rate=0.004 num_train_epochs=4 lamda_1=3 lamda_2=0.01 名前=漢字漢字"
    executor = Executor(running, gpus)
    panel = Panel(executor, lambda: shown, lambda n: JobLine(f"#{n} from 9", settings, "step 40"))
    panel._readings = executor.readings()
    lines = panel.lines(width)
    assert max(line.cell_len for line in lines) <= width
    assert len(lines) == 5 and not any("\n" in line.plain for line in lines)
    first, second, gpu, _, failure = (line.plain for line in lines)
    assert first.startswith(f"stage 3/5 {task[:1]}") and "14/34" in first
    assert "best 0.9852 #14" in second and "1 failed" in second and "0:16" in second
    assert "#16" in gpu and failure.endswith("autocl show 11")
    told = {
        60: "best 0.9852 #14   1 failed   0:16 elapsed, about 0:14 left",
        80: "best 0.9852 #14 from 9   2 running, 18 queued, 1 failed   0:16, about 0:14 left",
        120: "best 0.9852 #14 (0 > 9 > 14)   2 running, 18 queued, 14 done, 1 failed   "
        "0:16 elapsed, about 0:14 left",
    }
    assert second == told.get(width, second)


def test_before_the_first_job_the_panel_says_what_is_imported_and_at_the_end_that_it_stops():
    executor = Executor()
    executor.doing = lambda: "importing torch, transformers (7 s)"
    progress = begun(executor, History())
    assert drawn(progress._panel) == ["importing torch, transformers (7 s)"]
    executor.running = {0: ("GPU-aaaa1111-x",)}
    progress._history.start(a_trial(0))
    executor.doing = lambda: "stopping: 1 job gets 10 s to save"
    assert drawn(progress._panel)[-1] == "stopping: 1 job gets 10 s to save"


def test_the_panel_of_a_launch_counts_jobs_whatever_the_sweeper_is():
    executor = Executor()
    progress = LiveLaunch(executor, 5)
    progress._panel._readings = executor.readings()
    jobs = [Job(number, (f"lr={number}",)) for number in range(5)]
    for job in jobs[:3]:
        progress.started(job, f"lr={job.number}")
    progress.finished(jobs[0], Outcome(State.COMPLETE, seconds=4.0))
    progress.finished(jobs[1], Outcome(State.FAIL, reason="no", seconds=2.0))
    executor.running = {2: ("GPU-aaaa1111-x", "GPU-bbbb2222-x")}
    _, figures, *devices = squeezed(progress._panel)
    for told in ("1 running, 2 queued, 2 done, 1 failed", "about 0:03 left"):
        assert told in figures
    assert devices == [
        "GPU-aaaa1111 93% 12.0/80.0 GiB #2 lr=2",
        "GPU-bbbb2222 0% 0.0/80.0 GiB #2 lr=2",
    ]
    progress.again(jobs[2], "its device is gone", 3.0)
    assert "0 running, 3 queued" in drawn(progress._panel)[1]


def test_cpu_slots_have_a_line_while_they_are_busy_and_many_devices_do_not_fill_the_screen():
    executor = Executor({3: ("cpu-7",)}, [Device(f"cpu-{i}", "CPU") for i in range(64)])
    progress = LiveLaunch(executor, 9)
    progress._panel._readings = executor.readings()
    progress.started(Job(3, ()), "lr=3")
    assert squeezed(progress._panel)[2:] == ["cpu-7 #3 lr=3"]
    many = Executor({}, [Device(f"GPU-{i:08}-x", "A", GIB, GIB) for i in range(20)])
    panel = LiveLaunch(many, 9)._panel
    panel._readings = many.readings()
    lines = squeezed(panel)
    assert len(lines) == 2 + 16 + 1 and lines[-1] == "and 4 more lines"


def test_jobs_elsewhere_have_a_line_each_with_their_node():
    class Cluster:
        def devices(self):
            return {0: ("node-1", "GPU-aaaa1111-x"), 1: ("node-2", "GPU-aaaa1111-x")}

    progress = LiveLaunch(Cluster(), 2)
    assert squeezed(progress._panel)[2:] == ["node-1 GPU-aaaa1111 #0", "node-2 GPU-aaaa1111 #1"]


def test_devices_are_not_asked_at_every_frame():
    executor = Executor()
    panel = LiveLaunch(executor, 1)._panel
    for _ in range(10):
        panel.lines(80)
    assert executor.asked == 0


def test_without_a_terminal_there_are_log_lines_alone(caplog):
    assert not isinstance(watch(Executor()), LiveProgress)  # pytest is no terminal
    caplog.set_level("INFO")
    progress = LaunchProgress(2)
    progress.started(Job(7, ()), "lr=1")
    progress.finished(Job(7, ()), Outcome(State.FAIL, reason="exit status 3", seconds=1.25))
    assert caplog.messages == ["#7 : lr=1", "#7 FAIL in 1.2 s exit status 3"]


@pytest.mark.parametrize(("sweeper", "columns"), [("basic", 80), ("autocl", 60)])
def test_on_a_terminal_the_panel_stays_below_the_log_and_leaves_no_copies(
    chain: Bench, sweeper: str, columns: int
) -> None:
    terminal = Terminal(columns)
    chain.hold.touch()
    process = chain.start(
        f"hydra/sweeper={sweeper}", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=1", "lr=1,2",
        terminal=terminal.theirs, TERM="xterm",
    )  # fmt: skip
    os.close(terminal.theirs)
    wait_until(lambda: terminal.shows(" cpu-0  #"), "a redraw shows a job that runs")
    chain.release(process)
    last = terminal.close()
    for frame in terminal.frames:
        assert sum(line.endswith(("/2", "/2 jobs")) for line in frame) <= 1, frame
        assert sum(bool(re.match(r" cpu-0  #", line)) for line in frame) <= 1, frame
    running = [frame for frame in terminal.frames if any(" cpu-0  #" in line for line in frame)]
    assert running, terminal.frames[-5:]
    for frame in running:
        shown = [line for line in frame if line]
        assert shown[-1].startswith(" cpu-0  #"), frame  # nothing comes below or into the panel
    assert any("2/2" in line for line in last), last


def test_a_first_ctrl_c_is_answered_in_a_line_that_stays_until_the_end(chain: Bench) -> None:
    terminal = Terminal(80)
    chain.hold.touch()
    process = chain.start(
        "hydra/sweeper=autocl", "hydra/launcher=gpu", "task=a", "lr=1",
        "hydra.launcher.grace_s=1000", terminal=terminal.theirs, TERM="xterm",
        ANSWERS='{"1": "ignore"}',
    )  # fmt: skip
    os.close(terminal.theirs)
    wait_until(lambda: chain.ledger("start"), "the job runs")
    process.send_signal(signal.SIGINT)
    said = "stopping: 1 job gets 1000 s to save; Ctrl-C again kills it."
    wait_until(lambda: terminal.shows(said), "it says so")
    for _ in range(3):  # redraws
        seen = len(terminal.frames)
        wait_until(lambda seen=seen: len(terminal.frames) > seen, "another redraw")
    assert [line for line in terminal.frames[-1] if line][-1].startswith(said)
    process.send_signal(signal.SIGINT)
    chain.finish(process)
    terminal.close()


def test_where_there_is_no_terminal_lines_have_their_time_and_no_escape(chain: Bench) -> None:
    told = chain.run("hydra/sweeper=autocl", "hydra/launcher=gpu", "lr=1", "hydra.sweep.dir=plain")
    assert "\x1b" not in told
    assert re.search(r"\[\d{4}-\d\d-\d\d [\d:,]+\].* 0 complete score=", told), told
