"""The codec against independent oracles: Hydra's parser, Hydra's compose, tables made by hand."""

import enum
import math
import re
import warnings

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from autocl_sweeper.distributions import Choice, Interval, Space
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.search.grid import GridSearch
from autocl_sweeper.space import (
    Argument,
    encode,
    literal,
    override,
    parse_arguments,
    parse_space,
)

WHERE = "hydra.sweeper.params"


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    """Hydra's config loader of a small app with the groups `group1` and `optim`."""
    root = tmp_path_factory.mktemp("conf")
    (root / "config.yaml").write_text(
        "defaults: [{group1: file1}, {optim: null}, _self_]\nx: null\ny: 7\nopt: {lr: 0.1, wd: 0}\n"
    )
    for group, names in {"group1": ["file1", "file2", "abc"], "optim": ["sgd", "adam"]}.items():
        (root / group).mkdir()
        for name in names:
            (root / group / f"{name}.yaml").write_text(f"{group}_is: {name}\n")
    GlobalHydra.instance().clear()
    # 1.4 has deprecated the parameter that 1.3 warns about when it is missing.
    base = {"version_base": None} if hydra.__version__.startswith("1.3") else {}
    with initialize_config_dir(str(root), **base):
        yield GlobalHydra.instance().config_loader()


def composed(*overrides):
    return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


def read(text):
    """What Hydra's parser makes of one override's value."""
    parsed = OverridesParser.create().parse_override(text)
    assert not parsed.is_sweep_override()
    return parsed.value()


def same(one, other):
    """Equal and of equal types, all the way down; nan equals nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


# --- writing: whatever the value, Hydra reads the same ------------------------------------------

PIECES = [
    *"'\"\\,=()[]{}:;$~#!+-./|?*@%&^`<>",
    *["${", "${y}", "\\${", "}", " ", "\t", "\n", "\r\n", "\0", "\x1b", "\x7f", "\x85", "\u2028"],
    *["a", "Z", "_", "0", "1", "é", "日本", "\U0001f600", "\ufeff", "???"],
    *["null", "True", "nan", "-inf", "1e-3", "1_0", "choice(", "interval(0,1)", "oc.env:HOME"],
]
texts = (
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
).filter(lambda text: text != "???")
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
KEY_PIECES = [*"abZ_09/-\\+.$%*@?|()[]{}:=, \t", "null", "1e3", "${y}"]


def can_be_a_key(text):
    """By Hydra's own parser: escape what its grammar lets us escape and look."""
    escaped = "".join(f"\\{c}" if c in "\\()[]{}:=, \t" else c for c in text)
    try:
        return read(f"x={{{escaped}:1}}") == {text: 1}
    except hydra.errors.HydraException:
        return False


key_texts = st.lists(st.sampled_from(KEY_PIECES), min_size=1, max_size=5).map("".join)
keys = key_texts.filter(can_be_a_key)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100)
@given(values)
def test_the_parser_reads_back_the_value_that_was_written(value):
    assert same(read(override("x", value)), value)


# Composing takes 50 ms, so many values share one config.
@settings(max_examples=15)
@given(st.lists(values, min_size=1, max_size=12), st.lists(texts, min_size=1, max_size=6))
def test_a_literal_value_survives_composition_whatever_it_holds(loader, many, lines):
    added = [override(f"+new.v{place}", literal(value)) for place, value in enumerate(many)]
    config = compose(
        "config",
        [*added, override("x", literal(lines[0])), override("++whole", literal(lines))],
    )
    plain = OmegaConf.to_container(config, resolve=True)
    for place, value in enumerate(many):
        assert same(plain["new"][f"v{place}"], value)
    assert same(config.x, lines[0]) and same(list(config.whole), lines)  # plain access, too


@settings(max_examples=100)
@given(key_texts | texts)
def test_a_mapping_key_is_written_exactly_when_hydra_can_read_it(text):
    if can_be_a_key(text):
        assert same(read(override("x", {text: 1})), {text: 1})
    else:
        with pytest.raises(ConfigurationError, match=re.escape(f"mapping key {text!r}")):
            override("x", {text: 1})


@pytest.mark.parametrize(
    "value, text",
    [
        ("file1", "file1"),
        ("digits_01", "digits_01"),
        ("vit-base", "vit-base"),
        ("/data/run.1/checkpoint", "/data/run.1/checkpoint"),
        ("org/model", "org/model"),
        ("", "''"),
        ("a b", "'a b'"),
        ("a,b", "'a,b'"),
        ("it's", r"'it\'s'"),
        ("ends in \\", r"'ends in \\'"),
        ("1", "'1'"),
        ("01", "'01'"),
        ("1e-3", "'1e-3'"),
        ("NULL", "'NULL'"),
        ("True", "'True'"),
        ("nan", "'nan'"),
        ("Inf", "'Inf'"),
        ("infinity", "infinity"),
        ("${y}", "'${y}'"),
        ("größe", "'größe'"),
        ("~x", "'~x'"),
        (0, "0"),
        (-3, "-3"),
        (100, "100"),
        (1e-05, "1e-05"),
        (0.1, "0.1"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (None, "null"),
        (True, "true"),
        ([], "[]"),
        ({}, "{}"),
        ([1, "a", "b c", None], "[1,a,'b c',null]"),
        ({"a b": {"c=d": [True]}}, r"{a\ b:{c\=d:[true]}}"),
    ],
)
def test_values_are_written_as_in_this_table(value, text):
    assert encode(value) == text
    assert same(read(f"x={text}"), value)


def test_scalars_of_other_libraries_are_written_as_the_numbers_they_are():
    numpy = pytest.importorskip("numpy")
    assert encode(numpy.float64(0.1)) == "0.1"
    assert encode(numpy.float32(0.5)) == "0.5"
    assert encode(numpy.int64(3)) == "3"
    assert encode(numpy.bool_(True)) == "true"
    assert encode(numpy.str_("vit")) == "vit"
    assert encode(enum.Enum("Kind", {"A": "alpha"}, type=str).A) == "alpha"
    with pytest.raises(ConfigurationError, match="ndarray"):
        encode(numpy.zeros(2))


@pytest.mark.parametrize(
    "value, escaped",
    [
        ("plain", "plain"),
        ("$HOME", "$HOME"),
        ("{x}", "{x}"),
        ("${x}", r"\${x}"),
        (r"\${x}", r"\\\${x}"),
        (r"a\b${x}", r"a\b\${x}"),
        ("$${x}${", r"$\${x}\${"),
        (["${x}", {"${k}": "${v}"}], [r"\${x}", {"${k}": r"\${v}"}]),
        (3, 3),
        (None, None),
    ],
)
def test_literals_escape_what_would_interpolate_and_nothing_else(value, escaped):
    assert literal(value) == escaped


def test_text_that_is_not_literal_interpolates(loader):
    config = composed("x=" + encode("is ${y}"), override("+z", ["${y}", r"\${y}", {"a": "${y}"}]))
    assert config["x"] == "is 7"
    assert config["z"] == [7, "${y}", {"a": 7}]


def test_a_config_group_takes_a_written_choice_bare_or_quoted(loader):
    assert composed(override("group1", "file2"))["group1"] == {"group1_is": "file2"}
    assert composed("group1='file2'")["group1"] == {"group1_is": "file2"}
    assert composed(override("+optim@opt", "adam"))["opt"]["optim_is"] == "adam"


@pytest.mark.parametrize(
    "value, words",
    [
        ("a\ud800", ["x.y", "lone surrogate", "rename"]),
        ({"": 1}, ["x.y", "''", "empty", "JSON text"]),
        ({"it's": 1}, ["x.y", '"it\'s"', "character"]),
        ({"ключ": 1}, ["x.y", "'ключ'", "character"]),
        ({"a\nb": 1}, ["x.y", r"'a\nb'", "character"]),
        ({"10": 1}, ["x.y", "'10'", "number"]),
        ({"null": 1}, ["x.y", "'null'", "null"]),
        ({1: 1}, ["x.y", "mapping key 1", "int", "config group"]),
        ([{"ok": {"1e3": 1}}], ["x.y", "'1e3'", "number"]),
        (object, ["x.y", "type", "texts, numbers"]),
        ({1, 2}, ["x.y", "set"]),
        (b"x", ["x.y", "bytes"]),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(value, words):
    with pytest.raises(ConfigurationError) as caught:
        override("x.y", value)
    for word in words:
        assert word in str(caught.value)


def test_the_word_for_missing_cannot_be_a_literal():
    with pytest.raises(ConfigurationError, match="missing"):
        literal({"a": ["???"]})


# --- reading -------------------------------------------------------------------------------------

SWEEPS = {
    "1,2": (1, 2),
    "1e-3,3e-4": (0.001, 0.0003),
    "a,b": ("a", "b"),
    "choice(1)": (1,),
    "choice(a,'a,b',\"it's\")": ("a", "a,b", "it's"),
    "choice('1',1,1.0,true,'null')": ("1", 1, 1.0, True, "null"),
    "null,'null',NULL": (None, "null", None),
    "[1,2],[3,'4']": ([1, 2], [3, "4"]),
    "{a:1,b:'x y'},{a:{c:[null]}}": ({"a": 1, "b": "x y"}, {"a": {"c": [None]}}),
    r"'${y}',\$\{y\}": ("${y}", r"\${y}"),
    "${y},'is ${y}'": ("${y}", "is ${y}"),
    "vit base,org/model:1": ("vit base", "org/model:1"),
    "'',a": ("", "a"),
    "nan,inf,-inf": (float("nan"), float("inf"), float("-inf")),
    "range(3)": (0, 1, 2),
    "range(1,4)": (1, 2, 3),
    "range(10,1,-3)": (10, 7, 4),
    "range(start=1,stop=6,step=2)": (1, 3, 5),
    "range(0.1,0.4,0.1)": (0.1, 0.2, 0.3),
    "range(0,1,0.25)": (0.0, 0.25, 0.5, 0.75),
    "range(0.3,0,-0.1)": (0.3, 0.2, 0.1),
    "range(1e-3,4e-3,1e-3)": (0.001, 0.002, 0.003),
    "range(1.0,4)": (1.0, 2.0, 3.0),
    "float(range(1,4))": (1.0, 2.0, 3.0),
    "int(range(1.0,4.0))": (1, 2, 3),
    "str(range(1,3))": ("1", "2"),
    "int(1.5,2.5)": (1, 2),
    "str(1,2)": ("1", "2"),
    "bool(choice(0,1))": (False, True),
    "sort(3,1,2)": (1, 2, 3),
    "sort(choice(3,1,2),reverse=true)": (3, 2, 1),
    "sort(range(0,10,3),reverse=true)": (9, 6, 3, 0),
    "sort(range(10,0,-4))": (2, 6, 10),
    "tag(log,choice(1,2))": (1, 2),
    "tag(a,b,range(2))": (0, 1),
}


@pytest.mark.parametrize("text, expected", SWEEPS.items())
def test_a_sweep_text_lists_the_values_of_this_table(loader, text, expected):
    for choice in (
        parse_space({"x": text}, loader, WHERE)["x"],
        parse_arguments([f"x={text}"], loader)[0].distribution,
    ):
        assert isinstance(choice, Choice)
        assert same(list(choice.values), list(expected))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 99, 1000])
def test_a_range_of_tenths_has_no_stop_and_no_rounding_error(count):
    values = parse_space({"x": f"range(0,{count / 10},0.1)"}, None, WHERE)["x"].values
    assert values == tuple(int(place) / 10 for place in range(count))


INTERVALS = {
    "interval(0,1)": Interval(0.0, 1.0),
    "interval(-1.5,2)": Interval(-1.5, 2.0),
    "tag(log, interval(1e-5,1e-2))": Interval(1e-5, 1e-2, log=True),
    "int(interval(1,8))": Interval(1, 8, integer=True),
    "tag(log,int(interval(1,64)))": Interval(1, 64, log=True, integer=True),
    "int(tag(log,interval(1,64)))": Interval(1, 64, log=True, integer=True),
    "float(int(interval(1,8)))": Interval(1, 8),
    "interval(start=2,end=2)": Interval(2, 2),
}


@pytest.mark.parametrize("text, expected", INTERVALS.items())
def test_an_interval_text_gives_the_interval_of_this_table(text, expected):
    assert parse_space({"x": text}, None, WHERE) == {"x": expected}
    assert parse_arguments([f"x={text}"], None) == [Argument("x", f"x={text}", expected)]


@pytest.mark.parametrize(
    "text, options",
    [
        ("glob(*)", ("abc", "file1", "file2")),
        ("glob(file*)", ("file1", "file2")),
        ("glob([*],exclude=abc)", ("file1", "file2")),
    ],
)
def test_a_glob_chooses_among_the_options_of_the_group(loader, text, options):
    assert parse_space({"group1": text}, loader, WHERE)["group1"] == Choice(options)
    assert parse_arguments([f"group1={text}"], loader)[0].distribution == Choice(options)


@pytest.mark.parametrize("text", ["shuffle(range(20))", "shuffle(choice(a,b,c,d,e,f,g,h))"])
def test_a_shuffle_is_a_permutation_and_the_same_every_time(text):
    first, again = (parse_space({"x": text}, None, WHERE)["x"].values for _ in range(2))
    plain = parse_space({"x": text[8:-1]}, None, WHERE)["x"].values
    assert first == again != plain
    assert sorted(first) == sorted(plain)


def test_keys_are_flattened_and_the_later_one_counts(loader):
    params = {
        "opt.lr": "1,2",
        "+opt.new": 3,
        "x": [1, "a,b", "${y}", None, {"k": [1]}],
        "y": "tag(log,interval(1,2))",
        "opt": {"wd": "0,1", "lr": 5, "deep": {"er": "a"}, "none": {}},
        "++z": True,
        "optim@opt": "sgd",
    }
    expected = {
        "opt.lr": Choice((5,)),
        "+opt.new": Choice((3,)),
        "x": Choice((1, "a,b", "${y}", None, {"k": [1]})),
        "y": Interval(1, 2, log=True),
        "opt.wd": Choice((0, 1)),
        "opt.deep.er": Choice(("a",)),
        "++z": Choice((True,)),
        "optim@opt": Choice(("sgd",)),
    }
    space = parse_space(params, loader, WHERE)
    assert space == expected
    assert list(space) == list(expected)


def test_a_space_from_a_config_is_resolved_first():
    config = OmegaConf.create(
        {"top": 3, "params": {"x": "choice(${top},4)", "opt": {"lr": ["${top}", 1.5]}}}
    )
    expected = {"x": Choice((3, 4)), "opt.lr": Choice((3, 1.5))}
    assert parse_space(config.params, None, WHERE) == expected
    assert parse_space({"x": "3,4", "opt": config.params.opt}, None, WHERE) == expected


def test_arguments_that_are_no_sweeps_keep_their_text_and_the_later_of_two_counts(loader):
    texts = ["a=1", "+b='x y'", "c=1,2", "~d", "e@f=g", "h=[1,2]", "a=${y}", "c=int(3.5)", "i="]
    assert parse_arguments(texts, loader) == [
        Argument("a", "a=${y}", None),
        Argument("+b", "+b='x y'", None),
        Argument("c", "c=int(3.5)", None),
        Argument("~d", "~d", None),
        Argument("e@f", "e@f=g", None),
        Argument("h", "h=[1,2]", None),
        Argument("i", "i=", None),
    ]


@pytest.mark.parametrize(
    "params, words",
    [
        ({"x": "choice(0", "1": None}, ["'x'", "'choice(0'", "Flow YAML", "quote it"]),
        ({"x": 0.001, "3e-4": None}, ["'3e-4'", "None", "Flow YAML", "quote it"]),
        ({"x": "a", "b": None}, ["'b'", "no value", "[null]", "Flow YAML", "~"]),
        ({"x": "it's"}, ["'x'", '"it\'s"', "quotes of its own", "YAML list"]),
        ({"x": "größe,b"}, ["'x'", "'größe,b'", "quotes of its own"]),
        ({"x": "coice(1,2)"}, ["'x'", "'coice(1,2)'", "Unknown function"]),
        ({"x": "range(3,1)"}, ["'x'", "range(3,1)", "without values"]),
        ({"x": "range(0,1,0)"}, ["'x'", "step other than 0"]),
        ({"x": "range(0,inf)"}, ["'x'", "finite"]),
        ({"x": "range(0,1,1e-7)"}, ["'x'", "10000000 values", "larger step", "interval"]),
        ({"x": "interval(1,0)"}, ["'x'", "'interval(1,0)'", "empty", "interval(0,1)"]),
        ({"x": "interval(0,inf)"}, ["'x'", "finite"]),
        ({"x": "interval(nan,1)"}, ["'x'", "finite"]),
        ({"x": "tag(log,interval(0,1))"}, ["'x'", "logarithmic", "above 0"]),
        ({"x": "tag(lgo,interval(1,2))"}, ["'x'", "'lgo'", "'log'", "tag(log"]),
        ({"x": "choice(interval(0,1),2)"}, ["'x'", "interval(0,1)"]),
        ({"x": "1,range(3)"}, ["'x'", "ChoiceSweep"]),
        ({"x": "choice({1:a},2)"}, ["'x'", "mapping key 1", "config group"]),
        ({"x": []}, ["'x'", "[]", "at least one"]),
        ({"x": [{"ключ": 1}]}, ["'x'", "ключ"]),
        ({"a=b": "1"}, ["'a=b'"]),
        ({"a b": "1"}, ["'a b'", "Hydra cannot read it"]),
        ({"": "1,2", " ": 1}, ["' '"]),
        ({"~x": "1,2"}, ["'~x'", "'optimizer.lr'"]),
        ({"opt": {"+lr": "1,2"}}, ["'opt.+lr'"]),
        ({"opt": {1: "1,2"}}, ["'1'", "not text"]),
        ({"nothere": "glob(*)"}, ["'nothere'", "'glob(*)'", "no config", "searchpath"]),
        ({"group1": "glob(zz*)"}, ["'group1'", "no config"]),
    ],
)
def test_a_wrong_space_is_refused_with_key_value_rule_and_remedy(loader, params, words):
    with pytest.raises(ConfigurationError) as caught:
        parse_space(params, loader, WHERE)
    for word in [WHERE, *words]:
        assert word in str(caught.value)


def test_a_missing_or_unresolvable_value_is_refused():
    for value in ("${nowhere}", "???"):
        config = OmegaConf.create({"x": value})
        with pytest.raises(ConfigurationError, match=WHERE):
            parse_space(config, None, WHERE)


@pytest.mark.parametrize("text", ["x=(1", "x=interval(2,1)", "group1=glob(zz)", "x=1,'", "é=1"])
def test_a_wrong_argument_is_refused_and_quoted(loader, text):
    with pytest.raises(ConfigurationError, match="command line") as caught:
        parse_arguments([text], loader)
    assert repr(text.partition("=")[0]) in str(caught.value)


def test_a_glob_without_a_config_loader_is_refused():
    with pytest.raises(ConfigurationError, match="ConfigLoader"):
        parse_space({"group1": "glob(*)"}, None, WHERE)


def test_hydra_still_has_the_range_function_that_ours_stands_in_for():
    functions = create_functions()
    assert "range" in functions.definitions and "range" in functions.functions


# --- the same sweep as Hydra's own ---------------------------------------------------------------

COMMAND_LINES = [
    [],
    ["group1=file1"],
    ["+a=0"],
    ["group1=file1,file2", "+bar=100,200,300"],
    ["group1=glob(*)", "x=a,b"],
    ["+a=range(3)", "+b=range(4,0,-2)"],
    ["x=1e-3,3e-4,nan", "y=true,false,null"],
    ["x='a,b',\"it's\",'1',1"],
    ["x=[1,'2'],[],[a b]", "+z={a:1},{a:'null'}"],
    ["x='${y}',is ${y}", "y=1,2"],
    ["++opt.lr=0.1,0.2", "opt.wd=1"],
    ["x=1,2", "y=3,4", "x=5,6"],
    ["x=1,2", "x=7"],
    ["+optim@opt=sgd,adam"],
    ["x=choice(1)", "y=sort(3,2,1)", "+z=int(1.5,2.5)"],
    ["x=/tmp/a,C:/b"],
    ["x=a\\,b,c\\ d"],
]


def our_overrides(line, loader):
    """The jobs of a multirun, put together from this room's parts."""
    arguments = parse_arguments(line, loader)
    axes = {a.key: a.distribution for a in arguments if a.distribution is not None}
    search = GridSearch(Space(axes))
    for index in range(search.size):
        params = search.suggestion(index).params
        yield [override(a.key, params[a.key]) if a.distribution else a.text for a in arguments]


def hydras_overrides(line, loader):
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(line)
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


@pytest.mark.parametrize("line", COMMAND_LINES, ids=str)
def test_jobs_compose_to_the_configs_of_hydras_basic_sweeper_in_its_order(loader, line):
    ours, hydras = list(our_overrides(line, loader)), hydras_overrides(line, loader)
    assert len(ours) == len(hydras)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for our, theirs in zip(ours, hydras, strict=True):
            assert [*our] == [*theirs] or same(composed(*our), composed(*theirs))


@pytest.mark.parametrize("line", COMMAND_LINES[:6], ids=str)
def test_simple_jobs_are_spelt_as_hydras_basic_sweeper_spells_them(loader, line):
    assert list(our_overrides(line, loader)) == hydras_overrides(line, loader)


def test_a_number_cast_to_text_stays_text_unlike_in_hydras_basic_sweeper(loader):
    jobs = our_overrides(["x=str(1,2)"], loader)
    assert [composed(*job)["x"] for job in jobs] == ["1", "2"]
    assert [composed(*job)["x"] for job in hydras_overrides(["x=str(1,2)"], loader)] == [1, 2]


def test_a_deletion_beside_a_sweep_deletes_also_where_hydras_basic_sweeper_fails(loader):
    # The basic sweeper writes it as `~opt.wd=null`, which 1.4 compares with the value.
    jobs = list(our_overrides(["y=1,2", "~opt.wd"], loader))
    assert jobs == [["y=1", "~opt.wd"], ["y=2", "~opt.wd"]]
    assert composed(*jobs[0])["opt"] == {"lr": 0.1}
