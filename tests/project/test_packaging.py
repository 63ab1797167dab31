"""What an installation holds, and that Hydra finds the plugins in it, away from the repository."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.installed import (
    HOWS,
    REQUIRES,
    ROOT,
    Environment,
    copy_of_the_checkout,
    installed,
    wheel,
)

APP = """
import hydra
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path=".", config_name="app")
def main(cfg: DictConfig) -> float:
    return float(cfg.task)

main()
"""
PACKAGES = {"autocl_sweeper", "hydra_plugins"}
PLUGINS = {
    "hydra_plugins.hydra_autocl_sweeper.sweeper:AutoCLSweeper",
    "hydra_plugins.hydra_autocl_sweeper.launcher:GPULauncher",
    "hydra_plugins.hydra_autocl_sweeper.launcher:RayLauncher",
    "hydra_plugins.hydra_autocl_sweeper.include:FileConfigSource",
    "hydra_plugins.hydra_autocl_sweeper.guard:StartGuard",
}


@pytest.fixture(scope="module", params=HOWS)
def environment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    return installed(request.param, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (found,) = (installed("wheel", tmp_path_factory.getbasetemp()).source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def in_wheel(built: Path) -> list[str]:
    return zipfile.ZipFile(built).namelist()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text("task: 0")
    return tmp_path


def printed_by(environment: Environment, code: str, cwd: Path) -> object:
    done = environment.run("-W", "error", "-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- installed ------------------------------------------------------------------------------------


def test_hydra_finds_our_plugins_and_those_of_others(
    environment: Environment, tmp_path: Path
) -> None:
    code = (
        "import json\n"
        "from hydra.core.plugins import Plugins\n"
        "found = Plugins.instance().discover()\n"
        "print(json.dumps([f'{c.__module__}:{c.__qualname__}' for c in found]))"
    )
    found = printed_by(environment, code, tmp_path)
    assert isinstance(found, list)
    ours = {name for name in found if "autocl" in name}
    assert ours == PLUGINS
    assert any(name.endswith(":JoblibLauncher") for name in found)


def test_every_plugin_has_its_entry_point(environment: Environment, tmp_path: Path) -> None:
    code = (
        "import json; from importlib.metadata import distribution as d\n"
        "points = d('autocl-sweeper').entry_points\n"
        "print(json.dumps([p.value for p in points if p.group == 'hydra.plugins' and p.load()]))"
    )
    found = printed_by(environment, code, tmp_path)
    assert isinstance(found, list) and set(found) == PLUGINS and len(found) == len(PLUGINS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("devices --json", '"lease_folder"'),
        ("docs hydra.launcher.grace_s", "key: `grace_s`"),
    ],
)
def test_the_command_shows_devices_and_documentation(
    environment: Environment, tmp_path: Path, arguments: str, words: str
) -> None:
    command = environment.folder / "bin/autocl"
    done = environment.run(command, *arguments.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


@pytest.mark.parametrize("launcher", ["gpu", pytest.param("joblib", marks=pytest.mark.slow)])
def test_an_app_in_another_folder_is_swept(
    environment: Environment, app: Path, launcher: str
) -> None:
    done = environment.run(
        "app.py", "-m", "hydra/sweeper=autocl", f"hydra/launcher={launcher}",
        "hydra.sweeper.handover={init_from:null}", "hydra.sweep.dir=swept", "task=1,2", cwd=app,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (app / "swept/trials.csv").read_text().splitlines()
    assert [row.split(",")[2:5] for row in rows[1:]] == [
        ["1", "COMPLETE", "1.0"],
        ["2", "COMPLETE", "2.0"],
    ]


def test_the_core_comes_from_the_installation(environment: Environment, tmp_path: Path) -> None:
    code = "import json, autocl_sweeper as a; print(json.dumps(a.__file__))"
    home = Path(str(printed_by(environment, code, tmp_path))).parent.parent
    assert home in (environment.site_packages, environment.source)


def test_every_module_of_the_core_can_be_imported_without_the_training_packages(
    environment: Environment, tmp_path: Path
) -> None:
    code = (
        "import autocl_sweeper, importlib, importlib.util, json, pkgutil, sys\n"
        "walk = pkgutil.walk_packages(autocl_sweeper.__path__, 'autocl_sweeper.')\n"
        "names = [module.name for module in walk if '.integrations.' not in module.name]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(json.dumps([m for m in ('torch', 'transformers') if importlib.util.find_spec(m)]))"
    )
    assert printed_by(environment, code, tmp_path) == []


# -- the wheel and the source distribution --------------------------------------------------------


def test_the_wheel_holds_the_two_packages_and_all_of_them(in_wheel: list[str]) -> None:
    files = {name for name in in_wheel if ".dist-info/" not in name}
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    pages = {f"autocl_sweeper/docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    kinds = ("*.j2", "*.css", "*.js")  # what a report is made of
    parts = {
        f"autocl_sweeper/page/parts/{path.name}"
        for kind in kinds
        for path in (ROOT / "autocl_sweeper/page/parts").glob(kind)
    }
    assert files == modules | pages | parts | {"autocl_sweeper/py.typed"}


def test_hydra_plugins_stays_a_namespace(in_wheel: list[str]) -> None:
    # With an __init__.py an editable installation would hide everybody else's plugins.
    assert "hydra_plugins/__init__.py" not in in_wheel
    assert not (ROOT / "hydra_plugins/__init__.py").exists()


def test_the_source_distribution_holds_the_training_app_and_makes_the_same_wheel(
    in_wheel: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = copy_of_the_checkout(tmp_path / "copy")
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    done = installed("wheel", tmp_path_factory.getbasetemp()).run("-c", code, cwd=copy)
    assert done.returncode == 0, done.stderr
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    wanted = {"train.py", "setup.py", "pyproject.toml", "Makefile", "constraints.txt", "LICENSE"}
    for folder in ("conf", "train", "tests", "examples"):
        files = [path for path in (copy / folder).rglob("*") if path.is_file()]
        wanted |= {str(path.relative_to(copy)) for path in files}
    assert wanted - names == set()
    assert sorted(zipfile.ZipFile(wheel(archive)).namelist()) == sorted(in_wheel)


# -- metadata, requirements and their pins --------------------------------------------------------


@pytest.fixture(scope="module")
def metadata(built: Path) -> Metadata:
    """What the wheel says about itself, validated as package indexes do."""
    with zipfile.ZipFile(built) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name), validate=True)


def test_the_wheel_says_what_it_is_and_carries_its_licence(
    metadata: Metadata, in_wheel: list[str]
) -> None:
    assert (metadata.author, metadata.license_expression) == ("autocl-sweeper contributors", "MIT")
    assert metadata.description == (ROOT / "README.md").read_text()
    assert metadata.description_content_type == "text/markdown"
    assert not metadata.home_page and not metadata.project_urls
    assert any(name.endswith("/licenses/LICENSE") for name in in_wheel)
    pythons = {text for text in metadata.classifiers or () if "Python :: 3." in text}
    assert pythons == {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)}
    assert metadata.requires_python == ">=3.10"


@pytest.fixture(scope="module")
def requirements(metadata: Metadata) -> dict[str, list[Requirement]]:
    """Extra -> what it requires; "" is the core."""
    found: dict[str, list[Requirement]] = {}
    for requirement in metadata.requires_dist or ():
        extra = str(requirement.marker or "").partition("extra == ")[2].strip("'\"")
        found.setdefault(extra, []).append(requirement)
    return found


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line[:1] not in ("", "#")]
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def test_the_core_requires_ten_packages(requirements: dict[str, list[Requirement]]) -> None:
    assert {requirement.name for requirement in requirements[""]} == set(REQUIRES)


def test_only_hydra_has_an_upper_bound(requirements: dict[str, list[Requirement]]) -> None:
    for requirement in (r for extra in requirements.values() for r in extra):
        bounds = {specifier.operator for specifier in requirement.specifier}
        assert bounds <= ({">=", "<"} if requirement.name == "hydra-core" else {">="})


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        (
            "constraints.txt",
            [
                "",
                "train",
                "families",
                "ray",
                "report",
                "completion",
                "test",
                "bench",
                "check",
                "docs",
            ],
        ),
        ("constraints-hydra14.txt", ["", "test", "test14"]),
    ],
)
def test_every_requirement_has_a_pin_that_satisfies_it(
    requirements: dict[str, list[Requirement]], file: str, extras: list[str]
) -> None:
    pinned = pins(file)
    for requirement in (r for extra in extras for r in requirements[extra]):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_the_oldest_set_is_made_of_the_lower_bounds(
    requirements: dict[str, list[Requirement]],
) -> None:
    bounds = {
        canonicalize_name(requirement.name): specifier.version
        for requirement in requirements[""] + requirements["test"]
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert pins("constraints-oldest.txt") == bounds


def test_the_two_hydra_lines_differ_in_hydra_alone() -> None:
    line13, line14 = pins("constraints.txt"), pins("constraints-hydra14.txt")
    different = {name for name, version in line14.items() if line13.get(name) != version}
    plugins = {"joblib-launcher", "optuna-sweeper", "submitit-launcher"}
    assert different == {"hydra-core", "omegaconf", *(f"hydra-{name}" for name in plugins)}
    assert line13["hydra-core"].startswith("1.3.") and line14["hydra-core"].startswith("1.4.")
