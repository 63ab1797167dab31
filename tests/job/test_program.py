"""A job is the user's program: what an app sees in a job of ours is what it sees under Hydra's basic launcher.

Each app writes what it sees, job by job, as JSON lines. The oracle is the same command with Hydra's launcher.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import hydra
import pytest
from support.bench import REPOSITORY

from autocl_sweeper.job.program import interpreter_options

Ours = tuple[str, ...]
BASIC = ("hydra/launcher=basic",)
FRESH = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=2")
WARM = (*FRESH, "hydra.launcher.warm=true")
HOWS = pytest.mark.parametrize("ours", [FRESH, WARM], ids=["fresh", "forked"])

SEE = """
import json, os
def see(x, **seen):
    with open(os.environ["SEEN"], "a") as file:
        file.write(json.dumps({"x": x, **seen}) + "\\n")
"""
# Above each app, indented as they are.
START = """
        import hydra
        from see import see
        VERSION = {"version_base": "1.3"} if hydra.__version__ < "1.4" else {}
        MAIN = hydra.main(**VERSION, config_path=None)
"""
# Below it.
GUARD = """
        if __name__ == "__main__":
            main()
"""


class App:
    """An app in a folder of its own; `run` gives what its jobs saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(see=SEE)

    def write_main(self, text: str) -> None:
        self.write(app=START + text + GUARD)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.folder / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(dedent(text))

    def start(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        seen = self.folder / "seen"
        seen.unlink(missing_ok=True)
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env={
                **os.environ,
                "AUTOCL_LEASE_DIR": str(self.folder / "leases"),
                "CUDA_VISIBLE_DEVICES": "",
                "HYDRA_FULL_ERROR": "0",
                "PYTHONPATH": str(REPOSITORY),
                "SEEN": str(seen),
                **environment,
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )

    def run(self, *command: str, status: int = 0) -> list[dict[str, Any]]:
        done = self.start(*command)
        logs = [log.read_text() for log in self.folder.glob("multirun/*/*/*/job.log")]
        assert done.returncode == status, "\n".join([done.stdout, done.stderr, *logs])
        lines = (self.folder / "seen").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda seen: str(seen["x"]))

    def compare(self, *program: str, jobs: str, ours: Sequence[Ours]) -> Any:
        """What the jobs see under each of our launchers, which is what they see under Hydra's."""
        expected = self.run(*program, "-m", *BASIC, jobs)
        for launcher in ours:
            assert self.run(*program, "-m", *launcher, jobs) == expected
        return expected


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def test_the_main_file_is_there_as_it_is_under_basic(app: App) -> None:
    app.write_main("""
        import os, pickle, random, sys
        from concurrent.futures import ProcessPoolExecutor
        from dataclasses import dataclass
        from multiprocessing import get_context
        from hydra.core.config_store import ConfigStore
        from omegaconf import OmegaConf

        os.environ["SET_AT_THE_TOP"] = "yes"
        random.seed(7)
        REGISTRY = {}
        OmegaConf.register_new_resolver("double", lambda number: 2 * number)

        @dataclass
        class Conf:
            size: int = 3
            twice: int = "${double:${size}}"
            x: int = 0

        class Net:
            def __reduce__(self):
                return Net, ()

        def registered(function):
            REGISTRY[function.__name__] = function
            return function

        @registered
        def square(number):
            return number * number

        ConfigStore.instance().store("config", Conf)

        @hydra.main(**VERSION, config_path=None, config_name="config")
        def main(cfg):
            main_module = sys.modules["__main__"]
            with get_context("spawn").Pool(1) as pool, ProcessPoolExecutor(1) as executor:
                spawned = pool.map(square, [3])
                executed = executor.submit(square, 4).result()
            see(
                cfg.x,
                twice=cfg.twice,
                conf=isinstance(OmegaConf.to_object(cfg), Conf),
                copy=type(pickle.loads(pickle.dumps(Net()))) is Net,
                made=type(hydra.utils.instantiate({"_target_": "__main__.Net"})) is main_module.Net,
                by_class=isinstance(hydra.utils.instantiate({"_target_": Net}), Net),
                guarded=isinstance(hydra.utils.get_class("__main__.Net")(), Net),
                file=os.path.samefile(main_module.__file__, "app.py"),
                argv=[os.path.basename(sys.argv[0]), sys.argv[1]],
                registry=sorted(REGISTRY),
                top=os.environ["SET_AT_THE_TOP"],
                spawned=[*spawned, executed],
                below=LATER,
            )
            return Net() and cfg.x

        if __name__ == "__main__":
            def guarded(number):
                return number + 1
            OmegaConf.register_new_resolver("guarded", guarded)
        LATER = True
        """)
    found = app.compare("app.py", jobs="x=1,2", ours=[FRESH, WARM])
    assert found[0] == {
        "x": 1, "twice": 6, "conf": True, "copy": True, "made": True, "by_class": True,
        "guarded": True, "file": True, "argv": ["app.py", "-m"], "registry": ["square"], "top": "yes",
        "spawned": [9, 16], "below": True,
    }  # fmt: skip


@HOWS
def test_what_is_seeded_at_the_top_is_seeded_in_every_job(app: App, ours: Ours) -> None:
    numpy = pytest.importorskip("numpy")
    app.write_main("""
        import random, numpy
        random.seed(7)
        numpy.random.seed(7)

        @MAIN
        def main(cfg):
            see(cfg.x, drawn=random.random(), numpy=float(numpy.random.rand()))
        """)
    expected = random.Random(7).random()
    legacy = float(numpy.random.RandomState(7).rand())
    for seen in app.run("app.py", "-m", *ours, "+x=1,2"):
        assert (seen["drawn"], seen["numpy"]) == (expected, legacy)


RESOLVER = """
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("plus", lambda a, b: a + b)
def build(a, b):
    return OmegaConf.create({"sum": "${plus:%d,%d}" % (a, b)}).sum
"""


@HOWS
def test_a_resolver_registered_while_importing_is_registered_once(app: App, ours: Ours) -> None:
    app.write(
        mylib=RESOLVER,
        proj__in____init__="",
        proj__in__prog=START
        + """
        import threading
        from omegaconf import OmegaConf
        OmegaConf.register_new_resolver("minus", lambda a, b: a - b)
        LOCK = threading.Lock()  # cannot be pickled

        def decorated(function):
            return lambda: function()

        @decorated
        @MAIN
        def main(cfg):
            with LOCK:
                value = OmegaConf.create({"a": "${minus:5,3}"}).a
            see(cfg.x, minus=value, plus=hydra.utils.instantiate({"_target_": "mylib.build", "a": 1, "b": 2}))
        """,
        app="""
        from proj.prog import main
        if __name__ == "__main__":
            import mylib  # the jobs import it again, some through their configuration
            main()
        """,
        late="""
        from proj.prog import main
        if __name__ == "__main__":
            main()
        """,
    )
    for program in ("app.py", "late.py"):
        assert app.run(program, "-m", *ours, "+x=1,2") == [
            {"x": x, "minus": 2, "plus": 3} for x in (1, 2)
        ]


def test_an_app_is_started_in_its_jobs_as_the_user_started_it(app: App) -> None:
    app.write(
        pkg__in____init__="",
        pkg__in__helper="VALUE = 4\n",
        pkg__in__main=START
        + """
        import functools, sys, warnings
        from .helper import VALUE

        def decorated(function):
            @functools.wraps(function)
            def wrapper():
                return function()
            return wrapper

        @decorated
        @MAIN
        def main(cfg):
            spec = sys.modules["__main__"].__spec__
            see(cfg.x, value=VALUE, name=spec.name, package=spec.parent, optimize=sys.flags.optimize,
                utf8=sys.flags.utf8_mode, dev=sys.flags.dev_mode, warnings=sys.warnoptions)

        if __name__ == "__main__":
            main()
        """,
        pkg__in____main__="""
        from pkg import main
        main.main()
        """,
        folder__in__see=SEE,
        folder__in____main__=START
        + """
        import sys

        @MAIN
        def main(cfg):
            see(cfg.x, name=sys.modules["__main__"].__spec__.name)

        main()
        """,
    )  # fmt: skip
    flags = ("-O", "-W", "ignore::UserWarning", "-Xutf8=1")
    (first, _) = app.compare(*flags, "-m", "pkg.main", jobs="+x=1,2", ours=[FRESH, WARM])
    assert (first["name"], first["package"], first["optimize"]) == ("pkg.main", "pkg", 1)
    (alone,) = app.run("-m", "pkg", "-m", *WARM, "+x=1")
    assert (alone["name"], alone["package"]) == ("pkg.__main__", "pkg")
    (alone,) = app.run("folder", "-m", *FRESH, "+x=1")
    assert alone["name"] == "__main__"


@HOWS
def test_a_main_file_without_a_guard_does_not_start_again_in_its_jobs(app: App, ours: Ours) -> None:
    app.write(app=START + """
        import sys
        see("start", argv=sys.argv[1])

        class Net:
            pass

        @MAIN
        def main(cfg):
            see(cfg.x, net=sys.modules["__main__"].Net is Net, below="BELOW" in globals())

        main()
        BELOW = True
        """)  # fmt: skip
    found = app.run("app.py", "-m", *ours, "+x=1,2")
    jobs = [seen for seen in found if seen["x"] != "start"]
    assert jobs == [{"x": x, "net": True, "below": False} for x in (1, 2)]
    # The app itself, and the processes that import it: two jobs, or the one they are forked from.
    assert len(found) - len(jobs) == (2 if ours is WARM else 3)


def test_values_resolved_once_in_the_sweep_are_the_same_in_every_job(app: App) -> None:
    app.write_main("""
        import os, random, time
        from hydra.core.config_store import ConfigStore
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf
        OmegaConf.register_new_resolver("id", lambda: random.getrandbits(64), use_cache=True)
        ConfigStore.instance().store("config", {"x": 0, "id": "${id:}", "when": "${now:%H-%M-%S-%f}",
                                                "hydra": {"sweep": {"dir": "runs/${id:}"}}})

        @hydra.main(**VERSION, config_path=None, config_name="config")
        def main(cfg):
            hydra = HydraConfig.get()
            folder = os.path.dirname(hydra.runtime.output_dir)
            see(cfg.x, when=cfg.when, id=cfg.id, there=os.path.samefile(folder, hydra.sweep.dir),
                named=folder.endswith(str(cfg.id)), when2=OmegaConf.select(cfg, "when"))
        """)
    for launcher in (FRESH, WARM):
        seen = app.run("app.py", "-m", *launcher, "x=1,2")
        assert all(one["there"] and one["named"] and one["when"] == one["when2"] for one in seen)
        assert seen[0]["id"] == seen[1]["id"]


@HOWS
def test_a_job_that_spoils_its_streams_keeps_its_result(app: App, ours: Ours) -> None:
    app.write_main("""
        import atexit, os, sys

        @MAIN
        def main(cfg):
            if cfg.x == "closed":
                sys.stdout = open(os.devnull, "w")
                sys.stdout.close()
            elif cfg.x == "none":
                sys.stdout = sys.stderr = None
            elif cfg.x == "mute":
                sys.stdout = type("Stream", (), {"write": lambda self, text: None})()
            elif cfg.x == "full":
                sys.stdout = open("/dev/full", "w")
                print("no room for this")
            elif cfg.x == "no_descriptors":
                os.close(1), os.close(2)
            elif cfg.x == "bad_exit":
                atexit.register(lambda: 1 / 0)
            see(cfg.x)
            return 1.5
        """)
    jobs = "+x=closed,none,mute,full,no_descriptors,bad_exit"
    sweep = ("hydra/sweeper=autocl", "hydra.sweep.dir=sweep", *ours)
    assert len(app.run("app.py", "-m", *sweep, jobs)) == 6
    ends = [
        json.loads(line) for line in (app.folder / "sweep/journal.jsonl").read_text().splitlines()
    ]
    states = [(end["state"], end["score"]) for end in ends if end["event"] == "finish"]
    assert states == [("COMPLETE", 1.5)] * 6


@HOWS
def test_an_error_of_a_job_shows_its_source_lines_and_what_led_to_it(app: App, ours: Ours) -> None:
    app.write_main("""
        @MAIN
        def main(cfg):
            try:
                {}["no such key"]  # what led to it
            except KeyError as error:
                raise ValueError("the job failed") from error  # the line that raised
        """)
    done = app.start("app.py", "-m", *ours, "+x=1", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    for printed in (done.stderr, next(app.folder.glob("multirun/*/*/0/job.log")).read_text()):
        assert 'app.py", line' in printed
        for line in ("# what led to it", "# the line that raised", "KeyError: 'no such key'"):
            assert line in printed, printed


@pytest.mark.skipif(hydra.__version__ >= "1.4", reason="Hydra 1.4 has no such callback")
def test_what_callbacks_pickle_can_be_run_again(app: App) -> None:
    app.write_main("""
        from hydra.core.config_store import ConfigStore
        SAVE = {"_target_": "hydra.experimental.callbacks.PickleJobInfoCallback"}
        ConfigStore.instance().store("config", {"x": 0, "hydra": {"callbacks": {"save": SAVE}}})

        @hydra.main(version_base="1.3", config_path=None, config_name="config")
        def main(cfg):
            see(cfg.x)
            return cfg.x
        """)
    for folder, command in (("one", FRESH), ("two", ("hydra/sweeper=autocl", *WARM))):
        app.run("app.py", "-m", *command, "x=3", f"hydra.sweep.dir={folder}")
        pickled = app.folder / folder / "0/.hydra/config.pickle"
        assert (pickled.parent / "job_return.pickle").stat().st_size > 1000
        assert app.run("app.py", "--experimental-rerun", str(pickled)) == [{"x": 3}]


def test_an_app_without_a_main_file_is_refused_with_the_way_out(app: App) -> None:
    text = f"{dedent(START)}\n@MAIN\ndef main(cfg):\n    see(cfg.x)\nmain()"
    for sweeper in ((), ("hydra/sweeper=autocl",)):
        done = app.start("-c", text, "-m", *sweeper, *FRESH, "+x=1")
        assert done.returncode == 1
        assert "ConfigurationError: The app's main module has no file" in done.stderr
        assert "run `python app.py`" in done.stderr and "Traceback" not in done.stderr
    assert app.run("-c", text, "-m", *BASIC, "+x=1") == [{"x": 1}]


@HOWS
def test_a_main_file_that_no_job_can_import_is_reported_and_its_function_sent(
    app: App, ours: Ours
) -> None:
    app.write_main("""
        if __name__ != "__main__":
            raise RuntimeError("for users alone")

        @MAIN
        def main(cfg):
            see(cfg.x)
        """)
    done = app.start("app.py", "-m", *ours, "+x=1,2")
    assert done.returncode == 0, done.stderr
    assert len((app.folder / "seen").read_text().splitlines()) == 2
    assert done.stdout.count("RuntimeError: for users alone") == 1
    assert not list(app.folder.glob("multirun/**/.autocl"))


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("python app.py -O", []),
        ("python -O -W error -Xdev -X utf8 app.py -i", "-O -W error -X dev -X utf8"),
        ("python -OO -u -m pkg.main -B", "-O -O -u"),
        ("python -Im pkg", "-I"),
        ("python -i -Bc code -x", "-B"),
        ("python --check-hash-based-pycs always app.py", "--check-hash-based-pycs always"),
        ("python -", []),
        ("python", []),
    ],
)
def test_the_options_of_an_interpreter_stand_before_its_program(line: str, options: Any) -> None:
    wanted = options.split() if options else []
    assert interpreter_options(line.split()) == wanted
