"""Configurations of YAML layers: recorded cases, the merge rule against a naive one, and errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support.files import written

from autocl_sweeper.command_line import rewrite
from autocl_sweeper.errors import LayerError
from autocl_sweeper.yaml.layers import below_files, load, load_layers, merge
from autocl_sweeper.yaml.resolve import expand_stars, resolve
from autocl_sweeper.yaml.text import parse

Plugins.instance()

GOLDEN = Path(__file__).parents[1] / "golden" / "layered_config"
INPUTS = GOLDEN / "inputs"
CASES = json.loads((GOLDEN / "cases.json").read_text())
ERRORS = (Exception, SystemExit)
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
CRASHES = (KeyError, TypeError, AttributeError, RecursionError)


def same(ours: Any, golden: Any) -> bool:
    """Plain values, where 1 is 1.0 and nan is nan, but True is not 1 and 1 is not "1"."""
    if isinstance(golden, dict):
        alike = isinstance(ours, dict) and ours.keys() == golden.keys()
        return alike and all(same(ours[key], golden[key]) for key in golden)
    if isinstance(golden, list):
        alike = isinstance(ours, list) and len(ours) == len(golden)
        return alike and all(map(same, ours, golden))
    if isinstance(golden, bool) or isinstance(ours, bool):
        return ours is golden
    if isinstance(golden, float) and isinstance(ours, float) and math.isnan(golden):
        return math.isnan(ours)
    return isinstance(ours, str) == isinstance(golden, str) and bool(ours == golden)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an app whose own config is empty; the shell is in `inputs/`."""
    (tmp_path / "config.yaml").touch()
    monkeypatch.chdir(INPUTS)
    yield tmp_path
    GlobalHydra.instance().clear()


def composed(argv: list[str], home: Path) -> tuple[Any, Any]:
    """What the files of a command line give, and what all of it gives."""
    arguments = get_args_parser().parse_args(rewrite(argv))
    _, *files = arguments.config_name.split("+")
    with initialize_config_dir(str(home), **VERSION_BASE):
        config = OmegaConf.to_container(compose(arguments.config_name, arguments.overrides))
    assert isinstance(config, dict)
    return load_layers(files), resolve(OmegaConf.create(expand_stars(config)))


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}/{case['id']}" for case in CASES])
def test_a_recorded_case_comes_out_as_recorded(
    case: dict[str, Any], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "error" in case:
        with pytest.raises(ERRORS) as caught:
            load(case["file"]) if case["kind"] == "load" else composed(case["argv"], home)
        assert not isinstance(caught.value, CRASHES)
        told = (str(caught.value) + capsys.readouterr().err).lower()
        assert all(word.lower() in told for word in case["error"]), told
        return
    if case["kind"] == "load":
        found = {"merged": load(case["file"])}
    else:
        found = dict(zip(("merged", "final"), composed(case["argv"], home), strict=True))
    for stage, values in found.items():
        assert same(values, case[stage]), f"{stage}: {values}"


# -- one file, as OmegaConf reads it ----------------------------------------------------------------

AS_WRITTEN = r"""
    1 1.5 1e-5 1.5e3 1.e+3 .5 1_000 010 0x1F 0b1 0o7 1:30 1:30.5 .inf -.INF .nan +1 -1 - ~ null
    Null true Yes on OFF n y 2023-01-07 2023-01-07T10:00:00 abc '1' "a\tb" ${x} '${x.y}/z' ???
    1e5 e5 .e5 1. . -.5e+3 1__0 _1 0. 00 08 0x 0.1e1
"""
SCALARS = AS_WRITTEN.split()
plain = st.sampled_from(SCALARS) | st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
documents = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_1 é"), inner, max_size=3)
    ),
    max_leaves=8,
)


def as_yaml(document: Any) -> str:
    """Flow style, with some of the scalars as they stand."""
    if isinstance(document, dict):
        inner = (f"{json.dumps(key)}: {as_yaml(one)}" for key, one in document.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(document, list):
        return "[" + ", ".join(as_yaml(one) for one in document) + "]"
    return document if document in SCALARS else json.dumps(document, ensure_ascii=False)


@settings(max_examples=150)
@given(st.dictionaries(st.text("abcdef", min_size=1), documents, max_size=4))
def test_a_file_is_read_as_omegaconf_reads_it(document: dict[str, Any]) -> None:
    text = "\n".join(f"{key}: {as_yaml(one)}" for key, one in document.items())
    try:
        theirs = OmegaConf.to_container(OmegaConf.load(StringIO(text)))
    except Exception:
        with pytest.raises(LayerError):
            parse(text)
    else:
        ours = parse(text)
        assert same(ours, theirs)
        assert repr(ours) == repr(theirs), "the same types, too"


def test_anchors_aliases_and_merge_keys_are_read_as_omegaconf_reads_them() -> None:
    text = """
        base: &base {x: 1, y: {z: [1, 2]}}
        own: {<<: *base, x: 2}
        both: {<<: [{w: 5}, *base]}
        again: *base
        path: !!python/object/apply:pathlib.PosixPath [a, b]
    """
    assert parse(text) == OmegaConf.to_container(OmegaConf.load(StringIO(text)))


def test_a_node_that_merges_and_is_merged_has_no_key_twice() -> None:
    text = "a: {inner: &m {<<: {x: 1}, x: 2}}\nb: {<<: *m}"
    assert parse(text) == {"a": {"inner": {"x": 2}}, "b": {"x": 2}}


# -- the rule ---------------------------------------------------------------------------------------


Path_ = tuple[str, ...]


def leaves(node: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every leaf with its path; an empty mapping is one."""
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from leaves(child, (*path, key))
    else:
        yield path, node


def at(node: Any, path: Path_) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def naive_merge(old: Any, new: Any) -> Any:
    """The rule leaf by leaf: whose leaves survive, and what each new text becomes."""

    def replaced(path: Path_) -> bool:
        """Whether the new side puts another thing at this path or above it."""
        for length in range(len(path) + 1):
            before, after = at(old, path[:length]), at(new, path[:length])
            stands = length == 0 or path[length - 1] in (at(new, path[: length - 1]) or {})
            if not stands:
                return False
            if not (isinstance(before, dict) and isinstance(after, dict)):
                return True
            if "_name" in before and "_name" in after and before["_name"] != after["_name"]:
                return True
        return False

    result: dict[str, Any] = {}

    def put(path: Path_, value: Any) -> None:
        node = result
        for key in path[:-1]:
            node = node.setdefault(key, {})
        if path and not (value == {} and isinstance(node.get(path[-1]), dict)):
            node[path[-1]] = json.loads(json.dumps(value))

    for path, value in leaves(old):
        if not replaced(path) or (value == {} and isinstance(at(new, path), dict)):
            put(path, value)
    for path, value in leaves(new):
        before = at(old, path)
        kept = path and not replaced(path[:-1])
        if kept and isinstance(value, str) and isinstance(before, str):
            value = before.join(value.split("${" + path[-1] + "}"))
        put(path, value)
    return result


keys = st.sampled_from(["a", "b", "_name"])
values = st.recursive(
    st.sampled_from([None, "???", 0, 1.5, True, "", "x", "${a}", "${b}/y", "<${a}${a}>"])
    | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)
layers = st.dictionaries(keys, values, max_size=3)


@settings(max_examples=250)
@given(layers, layers)
def test_the_merge_rule_agrees_with_a_naive_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = json.dumps([old, new])
    merged = merge(old, new)
    assert merged == naive_merge(old, new)
    assert json.dumps([old, new]) == before, "neither side is changed"


@settings(max_examples=100)
@given(layers, layers)
def test_a_merged_layer_shares_no_node_with_its_sides(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    def nodes(value: Any) -> set[int]:
        inner = value.values() if isinstance(value, dict) else value
        found = {id(value)} if isinstance(value, (dict, list)) else set()
        if isinstance(value, (dict, list)):
            found |= {one for child in inner for one in nodes(child)}
        return found

    assert not nodes(merge(old, new)) & (nodes(old) | nodes(new))


@pytest.mark.parametrize(
    "old, new, merged",
    [
        ({"a": {"x": 1}}, {"a": {}}, {"a": {"x": 1}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": "???"}, {"a": "???"}),
        ({"o": {"_name": "adam", "b": 1}}, {"o": {"_name": "sgd"}}, {"o": {"_name": "sgd"}}),
        ({"o": {"_name": "adam"}}, {"o": {"b": 1}}, {"o": {"_name": "adam", "b": 1}}),
        ({"d": "root"}, {"d": "${d}/tail"}, {"d": "root/tail"}),
        ({"d": "root"}, {"d": "${e}/tail"}, {"d": "${e}/tail"}),
        ({"d": 1}, {"d": "${d}/tail"}, {"d": "${d}/tail"}),
        ({"d": "root"}, {"d": "\\${d}/tail"}, {"d": "\\${d}/tail"}),
        ({"d": "\\1\\g<0>"}, {"d": "${d}"}, {"d": "\\1\\g<0>"}),
        ({"d.e": "x"}, {"d.e": "${d.e}!"}, {"d.e": "x!"}),
    ],
)
def test_the_rule_by_hand(old: dict[str, Any], new: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge(old, new) == merged


# -- mistakes ---------------------------------------------------------------------------------------

LAUGHS = "x0: &x0 [1]\n" + "\n".join(
    f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 10)}]" for n in range(7)
)
MISTAKES: dict[str, tuple[dict[str, str], list[str]]] = {
    "a file that is not there": (
        {"a": "x: 1\n_include: [base.yaml, gone.yaml k]", "base": ""},
        ["no file '{}/gone.yaml'", "_include: 'gone.yaml k' in '{}/a.yaml', line 2", "as it is written"],
    ),
    "not there, three files down": (
        {"a": "_include: b.yaml", "b": "_include: c.yaml", "c": "_include: ../$X/*.yaml"},
        ["'../$X/*.yaml' in '{}/c.yaml', line 1", "from '{}/b.yaml', line 1\n  included from '{}/a.yaml', line 1"],
    ),
    "a folder": ({"a": "_include: ."}, ["'{}' cannot be read: Is a directory", "_include: '.'"]),
    "not text": (
        {"a": "_include: b.yaml", "b": "x: \udcff"},
        ["'{}/b.yaml', line 1: the byte 0xff is not UTF-8", "'{}/a.yaml'"],
    ),
    "a cycle": (
        {"a": "_include: b.yaml", "b": "_include: c.yaml", "c": "_include: b.yaml"},
        [
            "in a cycle",
            "'{}/a.yaml'\n    includes '{}/b.yaml', line 1\n    includes '{}/c.yaml', line 1\n    incl",
        ],
    ),
    "itself": ({"a": "_include: ./a.yaml"}, ["in a cycle", "'{}/a.yaml'\n    includes '{}/a.yaml'"]),
    "a mapping": (
        {"a": "x: 1\n\n_include: {b.yaml: 1}"},
        ["_include: {\"b.yaml\": 1} in '{}/a.yaml', line 3 is not a text or a list", "Each entry is"],
    ),
    "a list of numbers": ({"a": "_include: [1]"}, ["_include: [1] in '{}/a.yaml'"]),
    "an empty entry": ({"a": "_include: ['']"}, ["'{}/a.yaml', line 1 has an empty entry"]),
    "below the top level": (
        {"a": "_include: b.yaml", "b": "x:\n- y: 1\n- z:\n    _include: c.yaml"},
        ["'{}/b.yaml', line 4: _include stands at 'x[1].z._include'", "included from '{}/a.yaml'"],
    ),
    "a key that is not there": (
        {"a": "_include: b.yaml x.y z", "b": "x: {y: 1}\nw: 2"},
        ["'b.yaml x.y z' in '{}/a.yaml', line 1 asks for 'x.y', 'z'", "are: x, w.", "whole top-level"],
    ),
    "a key of a file with spaces in its name": (
        {"a": "_include: my file.yaml"},
        ["no file '{}/my'", "_include: 'my file.yaml'"],
    ),
    "a key twice": (
        {"a": "_include: b.yaml", "b": "x:\n  y: 1\n  z: 2\n  y: 3"},
        ["'{}/b.yaml', line 4:", "'y' stands twice, first in line 2", "included from '{}/a.yaml'"],
    ),
    "bad YAML": ({"a": "x: 1\ny: [1"}, ["'{}/a.yaml', line 3: this is not valid YAML"]),
    "an unclosed ${": (
        {"a": "x: 1\ny: {z: ['${x']}"},
        ["'{}/a.yaml', line 2: 'y.z[0]' is '${x'", "cannot be read", "Close it"],
    ),
    "a list at the top": ({"a": "- x"}, ["'{}/a.yaml', line 1: its top level is a list, not a mapping"]),
    "a text at the top": ({"a": "x"}, ["top level is a text, not a mapping"]),
    "an alias of itself": ({"a": "x: &x {y: *x}"}, ["'{}/a.yaml', 'x.y' is an alias of a node"]),
    "a million laughs": ({"a": LAUGHS}, ["'{}/a.yaml', its values are more than"]),
    "a set": ({"a": "x: !!set {y}"}, ["'{}/a.yaml', line 1: 'x' is a set; a configuration holds"]),
    "a python object": ({"a": "x: !!python/name:os.system"}, ["line 1: this is not valid YAML", "tag"]),
    "a defaults list in an included file": (
        {"a": "_include: b.yaml", "b": "x: 1\ndefaults: [y]"},
        ["'{}/b.yaml', line 2 has a `defaults:` list and is included", "from '{}/a.yaml'", "primary"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("files, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_reported_with_file_line_rule_and_repair(
    tmp_path: Path, files: dict[str, str], words: list[str]
) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LayerError) as caught:
        load(str(tmp_path / "a.yaml"))
    told = str(caught.value).replace(str(tmp_path), "{}")
    assert [word for word in words if word not in told] == []


def test_only_the_first_of_several_files_has_a_defaults_list(tmp_path: Path) -> None:
    written(tmp_path, {"first": "defaults: [x]\na: 1", "second": "b: 1\ndefaults: [y]"})
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    assert load_layers([str(first)]) == {"defaults": ["x"], "a": 1}
    with pytest.raises(LayerError, match=r"second\.yaml', line 2 has a `defaults:` list"):
        load_layers([str(first), str(second)])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"p": {"d": "${p.d}/tail"}}, ["p.d: ${p.d}/tail", "refers to itself", "${d}"]),
        ({"a": "${b}", "b": "${a}"}, ["a: ${b}", "b: ${a}"]),
        ({"a": "${no.such}", "l": [1, "${gone}"]}, ["a: ${no.such}", "l[1]: ${gone}"]),
        ({"a": "${unheard_of:1}"}, ["a: ${unheard_of:1}"]),
        (
            {"a": "???", "b": {"c": "???"}, "d": "${a}"},
            ["  a\n", "  b.c\n", "d (${a})", "key=value"],
        ),
    ],
)
def test_all_that_cannot_be_resolved_is_reported_at_once(values: Any, words: list[str]) -> None:
    with pytest.raises(LayerError) as caught:
        resolve(OmegaConf.create(values))
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_can_be_resolved_keeps_its_type_and_its_place() -> None:
    config = OmegaConf.create(
        {"i": 3, "s": "${i}", "t": "n${i}", "m": {"x": [1, {"y": "${i}"}]}, "copy": "${m}"}
    )
    m = {"x": [1, {"y": 3}]}
    assert resolve(config) == {"i": 3, "s": 3, "t": "n3", "m": m, "copy": m}


@pytest.mark.parametrize(
    "values, word",
    [
        ({"g": {"*": 1, "a": {}}}, "'g.*' is 1, not a mapping"),
        ({"g": {"*": {"x": 1}, "a": {}, "b": 2}}, "'g.b' is 2, not a mapping"),
    ],
)
def test_a_star_that_cannot_be_expanded_is_named(values: Any, word: str) -> None:
    with pytest.raises(LayerError, match=re.escape(word)):
        expand_stars(values)


def test_a_group_chosen_on_the_command_line_below_a_file_is_reported(tmp_path: Path) -> None:
    base = "model: {arch: large, drop: 0.1}\ndb: {main: {host: x}}"
    written(tmp_path, {"base": base, "mine": "_include: base.yaml\ntask: {a: {}}"})
    typed = "model=tiny lr=1 model.arch=base ~task +db/main=pg task=a,b delta=no"
    chosen = typed.split()
    groups = ["model", "db/main", "task", "delta"]
    mine = tmp_path / "mine.yaml"
    told = below_files(f"config+{mine}", chosen, groups)
    over = f"chooses a group, and '{mine}' goes over it with what it says of"
    assert [sentence.partition("; ")[0] for sentence in told] == [
        f"model=tiny {over} model (arch, drop)",
        f"+db/main=pg {over} db.main (host)",
        f"task=a,b {over} task (a)",
    ]
    assert below_files("config", chosen, groups) == []
