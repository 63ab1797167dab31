"""The floors of the house: imports go down only, and what is heavy is imported where it is used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = "autocl_sweeper"

# A room is a module, or a package with all that is in it. It may import from the floors below.
CORE_FLOORS = [
    {"types", "errors", "metrics", "command_line"},
    {"job", "device", "yaml", "journal", "outcome", "retries", "space", "manual"},
    {"search", "selection", "order", "executor"},
    {"strategy"},
    {"plan", "results", "report"},
    {"sweep"},
    {
        "hydra_sweep",
        "hydra_launch",
        "cli",
    },  # what the plugin classes call, and the command `autocl`
    {"__main__"},
]
TRAIN_FLOORS = [
    {"config", "chain"},
    {"data"},
    {"model", "delta"},
    {"loop"},
    {"job", "info"},
    {"main", "worker", "pieces"},
]
# Doors between rooms of one floor: room -> those it may import. Each of them is in use.
DOORS = {
    "outcome": {"journal"},  # it crosses the process boundary as the journal writes it
    "job": {"outcome", "yaml"},
    "yaml": {"journal"},
    "results": {"plan"},
    "report": {"plan", "results"},
    "hydra_sweep": {"hydra_launch"},
}
# Who may import what does not come with Python. Not here, not allowed: torch, above all.
OTHERS = {
    "hydra": {"space", "job", "hydra_sweep", "hydra_launch", "yaml"},
    "omegaconf": {"space", "job", "hydra_sweep", "hydra_launch", "yaml"},
    "yaml": {"results", "yaml", "job"},
    "optuna": {"search"},
    "rich": {"report", "hydra_sweep", "cli"},
    "pynvml": {"device"},
    "cloudpickle": {"job"},
    "joblib": {"job"},
    "ray": {"executor"},
}
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
    """The room a module of the core is in; empty for the core's own __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def rooms_imported(graph: Mapping[str, list[Import]]) -> dict[str, set[str]]:
    reached: dict[str, set[str]] = {}
    for module, found in graph.items():
        for imported in found:
            if imported.module.split(".")[0] == CORE:
                reached.setdefault(room(module), set()).add(room(imported.module))
    return {name: others - {name} for name, others in reached.items()}


def top(module: str) -> str:
    return module.split(".")[0]


FLOOR_OF = {name: number for number, floor in enumerate(CORE_FLOORS) for name in floor}


def test_every_room_has_its_floor_and_every_floor_its_rooms() -> None:
    rooms = {room(module) for module in GRAPH} - {""}
    assert rooms == set(FLOOR_OF), "a new room needs a floor in CORE_FLOORS, a removed one loses it"


def test_imports_go_down_only() -> None:
    up = [
        f"{name} (floor {FLOOR_OF[name]}) imports {other} (floor {FLOOR_OF[other]})"
        for name, others in rooms_imported(GRAPH).items()
        for other in others
        if FLOOR_OF[other] > FLOOR_OF[name]
    ]
    assert up == []


def test_doors_between_rooms_of_a_floor_are_the_listed_ones() -> None:
    doors = {
        name: {other for other in others if FLOOR_OF[other] == FLOOR_OF[name]}
        for name, others in rooms_imported(GRAPH).items()
    }
    assert {name: others for name, others in doors.items() if others} == DOORS


def test_no_rooms_import_each_other_in_a_circle() -> None:
    TopologicalSorter(rooms_imported(GRAPH)).prepare()  # raises CycleError


def test_the_packages_first_import_brings_nothing() -> None:
    assert GRAPH[CORE] == [], "whoever imports one module would pay for it"


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
        if top(imported.module) in OTHERS.keys() - AT_THE_TOP and not imported.late
    ]
    assert early == []


def test_the_training_app_knows_of_the_core_only_how_configurations_are_read() -> None:
    found = [imported.module for one in modules("train").values() for imported in one]
    known = {room(module) for module in found if top(module) == CORE}
    assert known <= {"command_line", "errors", "yaml"}, (
        "they serve any Hydra app, with or without sweeps"
    )
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
