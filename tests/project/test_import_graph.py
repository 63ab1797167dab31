"""The floors of the house: imports go down only, and what is heavy is imported where it is used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = "autocl_sweeper"

# A room is a module, or a package with all that is in it. It may import from the floors below.
CORE_FLOORS = [
    set(names.split())
    for names in (
        "types view ranks curves protocols distributions errors disk reporter metrics "
        "command_line plain made_with private",
        "job device yaml journal outcome retries space manual objective",
        "search prune selection order executor budget folder",
        "strategy retention verdict compare overview",
        "plan results display rounds export page notices",
        "sweep",
        "hydra_sweep hydra_launch cli finetune script",
        "__main__ integrations",
    )
]
TRAIN_FLOORS = [
    {"config", "chain"},
    {"data", "merge"},
    {"model", "delta"},
    {"loop", "memory"},
    {"job", "check", "info", "processes", "score", "sizes", "start"},
    {"main", "worker", "pieces", "export", "final", "models", "sample", "starts", "transfer"},
]
# Doors between rooms of one floor: room -> those it may import. Each of them is in use.
DOORS = {
    "view": {"types"},
    "distributions": {"types", "errors"},
    "disk": {"errors"},
    "curves": {"ranks"},
    "protocols": {"types", "view", "curves"},
    "outcome": {"journal"},  # it crosses the process boundary as the journal writes it
    "job": {"outcome"},
    "yaml": {"journal"},
    "compare": {"overview"},
    "results": {"plan"},
    "page": {"results"},
    "display": {"plan", "results"},
    "private": {"errors"},
    "export": {"plan"},
    "rounds": {"plan", "display"},
    "hydra_sweep": {"hydra_launch"},
    "cli": {"finetune"},
    "finetune": {"script"},
}
TRAIN_DOORS = {
    "config": {"chain"},  # which tasks a run has seen is in the checkpoints before it
    "model": {"delta"},  # a checkpoint is a base and its deltas
    "start": {"score"},
    "job": {"start", "sizes"},
}
OF_HYDRA = {"space", "job", "hydra_sweep", "hydra_launch", "yaml", "finetune", "script"}
# Who may import what does not come with Python. Not here, not allowed: torch, above all.
OTHERS = {
    "hydra": OF_HYDRA,
    "omegaconf": OF_HYDRA | {"plan"},
    "yaml": {"results", "yaml", "job", "plan", "rounds"},
    "optuna": {"search", "export", "page"},
    "cma": {"search"},
    "cmaes": {"search"},
    "scipy": {"search", "compare"},
    "numpy": {"search"},  # comes with scipy
    "rich": {"display", "hydra_sweep", "cli"},
    "pynvml": {"device"},
    "cloudpickle": {"job"},
    "ray": {"executor"},
    "transformers": {"integrations"},
    "lightning": {"integrations"},
    "pytorch_lightning": {"integrations"},
    "tensorboardX": {"rounds", "export"},
    "mlflow": {"export"},
    "jinja2": {"page"},
    "markupsafe": {"page"},
    "vl_convert": {"page"},
    "argcomplete": {"cli"},
}
OF_USERS = {"integrations"}  # a room that training code imports, and nothing here does
AT_THE_TOP = {"hydra", "omegaconf"}  # all others are imported inside functions


@dataclass(frozen=True)
class Import:
    module: str  # full name of what is imported
    late: bool  # inside a function, or for type checkers alone
    line: int


def imports(tree: ast.AST, package: str, late: bool = False) -> Iterator[Import]:
    """Every import below `tree`; `package` is what relative ones are relative to."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, late, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*(base if node.level else ()), *filter(None, [node.module])])
            # `from a import b` may mean the module a.b: both are given.
            yield from (Import(f"{module}.{alias.name}", late, node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(node.body, []), package, late=True)
            yield from imports(ast.Module(node.orelse, []), package, late)
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, package, late or function)


def modules(folder: str) -> dict[str, list[Import]]:
    """Module name -> its imports, for every file below a top-level folder."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        found[name] = list(imports(ast.parse(path.read_text()), package))
    return found


GRAPH = modules(CORE)


def room(module: str) -> str:
    """The room a module is in; empty for the __init__ of the whole tree."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def top(module: str) -> str:
    return module.split(".")[0]


@dataclass(frozen=True)
class House:
    """A tree of packages with its floors, and the doors between rooms of one floor."""

    folder: str
    floors: Sequence[set[str]]
    doors: Mapping[str, set[str]]

    @property
    def floor_of(self) -> dict[str, int]:
        return {name: number for number, floor in enumerate(self.floors) for name in floor}

    def rooms_imported(self) -> dict[str, set[str]]:
        reached: dict[str, set[str]] = {}
        for module, found in modules(self.folder).items():
            own = {room(i.module) for i in found if top(i.module) == self.folder}
            reached[room(module)] = reached.get(room(module), set()) | own
        return {name: others - {name} for name, others in reached.items() if name}

    def picture(self) -> str:
        """Mermaid's text of the graph. An arrow that a longer way stands for is left out."""
        imported = self.rooms_imported()

        def below(name: str) -> set[str]:
            return {deep for other in imported.get(name, ()) for deep in {other} | below(other)}

        lines = ["flowchart TD"]
        for number, floor in reversed(list(enumerate(self.floors))):
            lines += [
                f"    subgraph {self.folder}_{number}[floor {number}]",
                "        direction LR",
            ]
            lines += [f"        {name.strip('_')}" for name in sorted(floor)] + ["    end"]
        for name, others in sorted(imported.items()):
            far = {deep for other in others for deep in below(other)}
            lines += [f"    {name.strip('_')} --> {other}" for other in sorted(others - far)]
        return "\n".join(lines)


HOUSES = [House(CORE, CORE_FLOORS, DOORS), House("train", TRAIN_FLOORS, TRAIN_DOORS)]
of_both = pytest.mark.parametrize("house", HOUSES, ids=lambda house: house.folder)


@of_both
def test_every_room_has_its_floor_and_every_floor_its_rooms(house: House) -> None:
    rooms = {room(module) for module in modules(house.folder)} - {""}
    assert rooms == set(house.floor_of), "a new room needs a floor above, a removed one loses it"


@of_both
def test_imports_go_down_only(house: House) -> None:
    floor = house.floor_of
    up = [
        f"{name} (floor {floor[name]}) imports {other} (floor {floor[other]})"
        for name, others in house.rooms_imported().items()
        for other in others
        if floor[other] > floor[name]
    ]
    assert up == []


@of_both
def test_doors_between_rooms_of_a_floor_are_the_listed_ones(house: House) -> None:
    floor = house.floor_of
    doors = {
        name: {other for other in others if floor[other] == floor[name]}
        for name, others in house.rooms_imported().items()
    }
    assert {name: others for name, others in doors.items() if others} == house.doors


@of_both
def test_no_rooms_import_each_other_in_a_circle(house: House) -> None:
    TopologicalSorter(house.rooms_imported()).prepare()  # raises CycleError


@of_both
def test_the_picture_in_the_documentation_is_that_of_the_code(house: House) -> None:
    """After a change: `python tests/project/test_import_graph.py` prints both pictures."""
    page = (ROOT / "docs/structure.md").read_text()
    assert f"```mermaid\n{house.picture()}\n```" in page


def test_the_packages_first_import_brings_the_reporter_alone() -> None:
    paid = [imported.module for imported in GRAPH[CORE]]
    assert paid == [f"{CORE}.reporter.report", f"{CORE}.reporter.report_final_result"], (
        "whoever imports one module would pay for it"
    )
    assert {top(one.module) for one in GRAPH[f"{CORE}.reporter"]} <= sys.stdlib_module_names


def test_packages_of_others_are_imported_in_their_rooms_alone() -> None:
    strangers = [
        f"{module}:{imported.line} imports {imported.module}"
        for module, found in GRAPH.items()
        for imported in found
        if top(imported.module) not in {CORE, *sys.stdlib_module_names}
        and room(module) not in OTHERS.get(top(imported.module), set())
    ]
    assert strangers == []


def test_heavy_packages_are_imported_inside_functions() -> None:
    early = [
        f"{module}:{imported.line} imports {imported.module} at the top"
        for module, found in GRAPH.items()
        for imported in found
        if top(imported.module) in OTHERS.keys() - AT_THE_TOP
        and not imported.late
        and room(module) not in OF_USERS
    ]
    assert early == []


def test_the_core_does_not_import_what_is_there_for_training_code_alone() -> None:
    users = [
        f"{module}:{imported.line} imports {imported.module}"
        for module, found in GRAPH.items()
        for imported in found
        if top(imported.module) == CORE
        and room(imported.module) in OF_USERS
        and room(module) not in OF_USERS
    ]
    assert users == []


def test_the_training_app_takes_from_the_core_what_serves_any_app() -> None:
    found = [imported.module for one in modules("train").values() for imported in one]
    known = {room(module) for module in found if top(module) == CORE}
    assert known <= {
        "command_line", "device", "errors", "metrics", "private", "reporter", "yaml"
    }  # fmt: skip
    assert "hydra_plugins" not in {top(module) for module in found}
    # That the core does not import train/ is in the table of OTHERS.


def test_the_plugin_imports_the_core_inside_functions() -> None:
    plugin = modules("hydra_plugins")
    assert len(plugin) > 1
    cheap = {"hydra", "omegaconf", "hydra_plugins", *sys.stdlib_module_names}
    early = [
        f"{module}:{imported.line} imports {imported.module} at the top"
        for module, found in plugin.items()
        for imported in found
        if not imported.late and top(imported.module) not in cheap
    ]
    assert early == [], "Hydra imports these modules at every start of every app"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", [("torch", False)]),
        ("import a.b as c, d", [("a.b", False), ("d", False)]),
        ("from a.b import c, d", [("a.b.c", False), ("a.b.d", False)]),
        ("from . import c", [("core.sub.c", False)]),
        ("from ..b import c", [("core.b.c", False)]),
        ("def f():\n  import torch", [("torch", True)]),
        ("class C:\n  import torch", [("torch", False)]),
        ("class C:\n  def f(self):\n    with a:\n      import torch", [("torch", True)]),
        ("try:\n  import a\nexcept ImportError:\n  import b", [("a", False), ("b", False)]),
        ("if TYPE_CHECKING:\n  import a\nelse:\n  import b", [("a", True), ("b", False)]),
        ("if typing.TYPE_CHECKING:\n  from a import b", [("a.b", True)]),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: list[tuple[str, bool]]) -> None:
    seen = imports(ast.parse(source), "core.sub")
    assert [(one.module, one.late) for one in seen] == found


if __name__ == "__main__":
    for drawn in HOUSES:
        print(f"```mermaid\n{drawn.picture()}\n```")
