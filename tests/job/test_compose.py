"""What the controller composes for a job is what Hydra composes. The oracle is Hydra's own loader."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from support.files import written

from autocl_sweeper.job.compose import Composer, flat_configuration
from autocl_sweeper.yaml.snapshot import Snapshot, install

FILES = {
    "config": """
        defaults:
          - task: boolq
          - model: small
          - optional extra: null
          - shape@wide: round
          - _self_
        seed: 0
        name: ${task.name}-${model.width}-${seed}
        when: ${now:%H-%M-%S-%f}
        items: [1, 2]
        open: {}
        alias: ${task}
        hydra:
          job:
            config:
              override_dirname:
                exclude_keys: [seed]
        """,
    "task/boolq": "name: boolq\nrows: 10\nmetric: {kind: acc}\n",
    "task/copa": "defaults: [base]\nname: copa\nlabels: [a, b]\n",
    "task/base": "rows: 7\nmetric: {kind: f1, k: 3}\n",
    "model/small": "width: 8\n",
    "model/big": "width: ${oc.decode:'64'}\nlayers: 4\n",
    "extra/more": "# @package _global_\nseed: 5\nmore: true\n",
    "shape/round": "r: 1\n",
    "shape/square": "a: 2\nb: ${seed}\n",
    "shape/wrapped": "_include: square.yaml\nc: 3\n",
    "by_environment": "defaults:\n  - task: ${oc.env:TASK_FOR_TEST,boolq}\n",
}  # fmt: skip


@dataclass
class ShapeConf:
    name: str = "typed"
    sizes: list[int] = field(default_factory=lambda: [1])


class Both:
    """Hydra's loader and ours, for one app; Hydra composes each job once, ours gets copies of that."""

    def __init__(self, folder: Path) -> None:
        self.hydras: Any = GlobalHydra.instance().config_loader()
        before = [f"hydra.sweep.dir={folder}/${{now:%f}}", "hydra.job.name=app"]
        self.master = self.hydras.load_configuration("config", before, RunMode.MULTIRUN)
        assert self.master.hydra.sweep.dir  # resolved now, so that its time is remembered
        self.answers: dict[tuple[str, ...], Any] = {}
        self.loads = 0
        self.ours = Composer(self, self.master)
        # Hydra's loader, as the composer sees it.
        self.get_group_options = self.hydras.get_group_options

    def load_sweep_config(self, master: Any, overrides: list[str]) -> Any:
        self.loads += 1
        answer = self.hydras_answer(tuple(overrides))
        if isinstance(answer, Exception):
            raise answer
        return deepcopy(answer)

    def hydras_answer(self, overrides: tuple[str, ...]) -> Any:
        if overrides not in self.answers:
            self.answers[overrides] = _result(
                lambda: self.hydras.load_sweep_config(self.master, list(overrides))
            )
        return self.answers[overrides]

    def compare(self, *overrides: str) -> Any:
        """What both compose, which must be the same in every respect; or the error of both."""
        expected = self.hydras_answer(overrides)
        for _ in range(2):
            loads = self.loads
            found = _result(lambda: self.ours(overrides))
            same(expected, found)
            if self.loads == loads:  # this was a copy, which is all that a second one would show
                break
        return found


def _result(compose: Any) -> Any:
    try:
        return compose()
    except Exception as error:
        return error


def same(expected: Any, found: Any) -> None:
    if isinstance(expected, Exception):
        assert type(found) is type(expected), found
        assert str(found) == str(expected)
        return
    assert not isinstance(found, Exception), found
    assert described(found) == described(expected)
    assert OmegaConf.get_cache(found) == OmegaConf.get_cache(expected)


def described(node: Any, key: Any = None) -> Any:
    """All that a node is: value as written, its type, flags, and children in their order."""
    flags = {k: v for k, v in (node._metadata.flags or {}).items() if v is not None}
    facts = [key, type(node), node._metadata.ref_type, node._metadata.optional, flags]
    kind = getattr(node._metadata, "object_type", None)
    if OmegaConf.is_config(node) and not isinstance(node._value(), (str, type(None))):
        keys = list(node) if OmegaConf.is_dict(node) else range(len(node))
        return [*facts, kind, [described(node._get_node(key), key) for key in keys]]
    return [*facts, kind, node._value()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("conf"), FILES)


@pytest.fixture
def app(folder: Path) -> Iterator[Path]:
    Plugins.instance()
    version = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}
    with initialize_config_dir(str(folder), **version):
        setup_globals()
        if "typed.yaml" not in ConfigStore.instance().repo.get("shape", {}):
            ConfigStore.instance().store(group="shape", name="typed", node=ShapeConf)
        if not OmegaConf.has_resolver("joined_for_test"):
            old = hydra.__version__.startswith("1.3.")
            register: Any = getattr(OmegaConf, f"register{'_new' * old}_resolver")
            register("joined_for_test", lambda *parts: "-".join(parts))
        yield folder


JOBS = [
    (),
    ("seed=1",),
    ("seed=2", "model.width=9"),
    ("task=copa", "seed=3", "task.rows=1"),
    ("task.metric={k: 4}", "items=[7]"),
    ("model=big", "task=copa", "model.layers=1"),
    ("~model", "seed=1"),
    ("+extra=more",),
    ("shape@wide=square", "wide.a=5"),
    ("+shape@high=square", "+high.z=1"),
    ("shape@wide=wrapped", "wide.c=4"),
    ("+shape@typed=typed", "typed.sizes=[3,4]"),
    ("+open.new={a: {b: 1}}", "++open.other=2"),
    ("~open", "~seed"),
    ("name='it''s ${seed}'",),
    ("hydra.sweep.subdir=1_boolq/3", "hydra.job.name=other"),
    ("+hydra.job.env_set.X=1", "hydra.job.chdir=true"),
    ("hydra/job_logging=disabled", "seed=1"),
    ("hydra/job_logging=disabled", "seed=2"),
    ("hydra.job.env_copy=[HOME]",),
    ("hydra.verbose=true", "hydra.output_subdir=null"),
    ("seed=1", "seed=2", "seed=3"),
    ("items=[7,8]", "items.0=9"),
    ("task.metric={k: 5}", "task.metric.k=6", "~task.metric.kind"),
    ("+open.a=1", "+open.b=2"),
    ("seed=${task.rows}", "name=${hydra.job.name}"),
    ("alias.rows=3",),  # through an interpolation, into another place
    ("alias.rows=3", "task.rows=4"),
    ("alias={rows: 5}", "task.metric={k: ${seed}}"),
    ("alias=${hydra.job}", "alias.name=app"),
    ("++seed=4", "+name=x"),
    ("hydra.sweep.subdir=a", "hydra.sweep={subdir: b}"),
    ("hydra.job.config.override_dirname.kv_sep=:", "seed=1"),
    ("hydra.job.name=${name}", "name=n"),
    ("hydra.job.env_copy=${open}", "seed=1"),
    ("hydra.job={env_copy: [HOME]}",),
    ("+hydra.none=1",),
    ("name=${joined_for_test:${task.name},x}", "alias=${joined_for_test:a}"),
    ("hydra.sweeper.max_batch_size=3",),  # which Hydra 1.4 refuses
    ("hydra.sweeper.max_batch_size=3", "seed=1"),
    # What cannot be composed cannot be composed by ours either, in the same words.
    ("sed=1",),
    ("task=none",),
    ("task=boolq,copa",),
    ("seed=choice(1,2)",),
    ("task.rows=x y=(",),
    ("+seed=3",),
    ("~nothing",),
    ("task.none.deep=1",),
    ("+typed.sizes=1", "shape@wide=nothing"),
    ("task={rows: 8}",),
    ("seed=",),
    ("hydra/launcher=basic",),
    ("hydra.sweep={dir: x}",),
]


def test_every_job_gets_the_configuration_that_hydra_composes(app: Path) -> None:
    both = Both(app)
    for overrides in JOBS:
        both.compare(*overrides)


def test_jobs_that_differ_in_plain_values_are_copies_with_those_values_set(app: Path) -> None:
    both = Both(app)
    for place in range(9):
        job = both.compare(
            "task=copa",
            f"seed={place}",
            f"model.width={place / 7}",
            f"name='it is {place}, \\'all\\''",
            f"hydra.sweep.subdir='2_copa/{place}'",
            f"+hydra.job.env_set.X=x{place}",
        )
        assert (job.seed, job.hydra.job.num if place > 99 else place) == (place, place)
    assert both.loads == 1


SAID = st.sampled_from(
    ["seed=1", "seed=null", "task.rows=3", "items=[]", "items=[4,5]", "model.width=1e-3", "+new=1",
     "+open.k={a: 1}", "task.metric={k: 2}", "~items", "name='x,y'", "hydra.job.name=n",
     "hydra.sweep.subdir=s", "+hydra.job.env_set.A=b", "task=copa", "task=boolq", "model=big",
     "~model", "+extra=more", "shape@wide=square", "+shape@x.y=typed", "hydra/job_logging=none",
     "alias.rows=2", "~task.metric", "items.0=1", "hydra.job.config.override_dirname.item_sep=;"]
)  # fmt: skip
TEXTS = st.text("ab1 .,:/-_=${}[]()'\\%é\n", max_size=8)
VALUES = SAID | st.builds(
    "{}={}".format,
    st.sampled_from(
        ["seed", "+seed", "name", "items", "task.rows", "task.metric.kind", "task.metric", "+open.x",
         "open", "alias", "alias.rows", "hydra.sweep.subdir", "hydra.job.name", "wide.r"]
    ),
    st.integers() | st.floats() | TEXTS.map(repr) | TEXTS | st.lists(st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(st.lists(VALUES, max_size=4), min_size=2, max_size=4))
def test_any_order_of_any_jobs_is_composed_as_hydra_does(app: Path, jobs: list[list[str]]) -> None:
    both = Both(app)
    for overrides in jobs:
        both.compare(*overrides)
    both.compare(*jobs[0])


KEYS = ("seed", "name", "task.rows", "task.metric.kind", "alias.rows", "model.width", "wide.r", "+open.x",
        "hydra.sweep.subdir", "hydra.job.name", "hydra.job.config.override_dirname.kv_sep")  # fmt: skip


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
    rows=st.lists(st.lists(st.integers() | st.floats() | st.booleans() | TEXTS.map(repr), min_size=4,
                           max_size=4), min_size=2, max_size=4),
)  # fmt: skip
def test_the_same_keys_with_any_values_are_composed_as_hydra_does(
    app: Path, keys: list[str], rows: list[list[Any]]
) -> None:
    both = Both(app)
    for values in rows:
        both.compare(*(f"{key}={value}" for key, value in zip(keys, values, strict=False)))


def test_a_copy_shares_nothing_with_the_others(app: Path) -> None:
    both = Both(app)
    for _ in range(3):
        first = both.compare("task=copa", "seed=1")
        first.task.metric.kind = "spoiled"
        first["items"].append(9)
        first.hydra.overrides.task.append("spoiled")
        OmegaConf.get_cache(first)["spoiled"] = {"by": "the job"}
        OmegaConf.set_readonly(first.task, True)
        OmegaConf.set_struct(first.hydra, False)


def test_the_time_is_that_of_the_sweep_in_every_job(app: Path) -> None:
    both = Both(app)
    whens = {both.compare(f"seed={n}").hydra.sweep.dir for n in range(3)}
    assert whens == {both.master.hydra.sweep.dir}


def test_a_sweep_composes_from_its_snapshot_whatever_becomes_of_the_files(app: Path) -> None:
    snapshot = Snapshot([str(app)])
    with install(snapshot):
        both = Both(app)
        snapshot.complete(app)
        try:
            written(app, dict.fromkeys(("task/base", "shape/square"), "broken: ["))
            job = both.compare("task=copa", "shape@wide=wrapped", "seed=2")
            assert (job.task.rows, job.wide.a) == (7, 2)
        finally:
            written(app, FILES)


def test_a_searchpath_is_searched(app: Path, tmp_path: Path) -> None:
    written(tmp_path, {"task/elsewhere": "name: elsewhere", "more/one": "deep: 1"})
    both = Both(app)
    path = f"hydra.searchpath=['file://{tmp_path}']"
    for seed in (1, 2):
        assert both.compare(path, "task=elsewhere", f"seed={seed}").task.name == "elsewhere"
        assert both.compare(path, "+more=one", f"seed={seed}").more.deep == 1
        both.compare("+more=one", f"seed={seed}")  # a plain value, without the path


def test_a_flat_configuration_has_dotted_keys_and_what_json_can_say() -> None:
    config = OmegaConf.create(
        {"a": {"b": [1, "${c}"], "e": {}}, "c": float("nan"), "hydra": {"x": 1}}
    )
    found, besides = flat_configuration(lambda overrides: config, [], "The job")
    assert found == {"a.b": [1, "${c}"], "a.e": {}, "c": "NaN"} and besides == {}


def test_what_the_app_s_check_returns_is_flat_beside_the_configuration() -> None:
    config = OmegaConf.create({"a": 1})

    def check(composed: DictConfig, meant_for: str) -> dict[str, Any]:
        return {"b": {"c": composed.a + 1, "d": (1, 2)}, "said": meant_for}

    found, besides = flat_configuration(lambda overrides: config, [], "The job", check)
    assert found == {"a": 1} and besides == {"b.c": 2, "b.d": [1, 2], "said": "The job"}
