"""`autocl plot`, and every chart of a report: vl-convert renders what Vega would."""

from __future__ import annotations

import re
import struct

import pytest
import vl_convert
from support.journals import Written, written_anew
from support.sweeps import crossed, failing

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.journal import read as events
from autocl_sweeper.overview import look
from autocl_sweeper.page.influence import influence
from autocl_sweeper.page.parallel import parallel
from autocl_sweeper.page.pictures import CHARTS, draw
from autocl_sweeper.page.scale import DARK, LIGHT, painted
from autocl_sweeper.page.timeline import timeline
from autocl_sweeper.page.tree import tree

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("chart", [tree, timeline, parallel])
def test_every_chart_is_valid_and_has_no_colour_left_open(tmp_path, chart):
    svg = vl_convert.vega_to_svg(painted(chart(look(crossed(tmp_path / "s"))), LIGHT))
    assert "var(--" not in svg and svg.startswith("<svg")


def test_the_tree_has_a_node_a_trial_and_a_link_a_parent(tmp_path):
    spec = tree(look(crossed(tmp_path / "s")))
    tables = {table["name"]: table["values"] for table in spec["data"]}
    assert len(tables["nodes"]) == 10 and len(tables["links"]) == 8
    assert sorted(node["t"] for node in tables["nodes"] if node["b"]) == [
        trial.number for trial in look(tmp_path / "s").chain
    ]
    assert [link["t"] for link in tables["links"] if link["b"]] == [
        trial.number for trial in look(tmp_path / "s").chain[1:]
    ]
    assert [head["title"] for head in tables["heads"]] == ["1 · a", "2 · b", "3 · c"]


def test_the_night_in_which_a_sweep_was_stopped_takes_no_room_in_its_timeline(tmp_path):
    folder = crossed(tmp_path / "s")
    lines = events(folder)
    third = [n for n, line in enumerate(lines) if line["event"] == "start"][2]
    begun = lines[0]["time"]
    for n, line in enumerate(lines):  # an event a second, and a night before the third trial
        line["time"] = begun + n + (36_000 if n >= third else 0)
    again = {"event": "session", "pid": 1, "host": "h", "time": lines[third]["time"] - 0.5}
    written_anew(folder, [*lines[:third], again, *lines[third:]])
    spec = timeline(look(folder))
    tables = {table["name"]: table["values"] for table in spec["data"]}
    assert max(job["x2"] for job in tables["jobs"]) < len(lines)
    assert tables["pauses"] == [{"x": third - 1}]
    assert spec["scales"][1]["domain"][1] == len(lines) - 1.5
    assert spec["axes"][0]["title"] == "seconds since the sweep began, without pauses (dashed)"


def test_the_matrix_is_drawn_with_its_numbers(tmp_path):
    path = draw(look(crossed(tmp_path / "s")), "matrix", tmp_path / "m.svg")
    assert re.findall(r">([01]\.\d{3})<", path.read_text()) == [
        "1.000", "0.900", "0.900", "0.800", "0.800", "0.900"
    ]  # fmt: skip


def test_importances_find_the_parameter_that_decides(tmp_path):
    # The score is x alone; y is noise that has nothing to do with it, and z says the same as y.
    sweep = Written(tmp_path)
    for number in range(40):
        y = (number * 7) % 10
        sweep.start(number, {"x": number / 40, "y": y, "z": f"as {y}"})
        sweep.finish(number, number / 40)
    sweep.journal.close()
    found = influence(look(tmp_path))
    shares = {key: values[0] for key, values in found.importances.rows}
    assert shares["x"] > 0.8 and shares["x"] + shares["y + z"] == pytest.approx(1.0)
    assert list(found.sentences) == ["y and z vary only together: they count as one."]
    assert b"y + z" in draw(look(tmp_path), "importances", tmp_path / "i.svg").read_bytes()


def test_a_png_is_a_png_and_dark_pictures_are_dark(tmp_path):
    sweep = look(crossed(tmp_path / "s"))
    png = draw(sweep, "tree", tmp_path / "tree.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", png[16:20])[0] > 400
    dark = draw(sweep, "tree", tmp_path / "dark.svg", dark=True).read_text()
    assert DARK["best"] in dark and LIGHT["best"] not in dark


def test_what_cannot_be_drawn_is_refused_with_the_reason(tmp_path):
    sweep = look(failing(tmp_path / "s"))
    with pytest.raises(ConfigurationError, match="no scores by task"):
        draw(sweep, "matrix", tmp_path / "m.svg")
    with pytest.raises(ConfigurationError, match="8 suggestions or more"):
        draw(sweep, "importances", tmp_path / "m.svg")
    with pytest.raises(ConfigurationError, match=r"neither \.svg nor \.png"):
        draw(sweep, "tree", tmp_path / "m.pdf")
    assert set(CHARTS) == {"tree", "matrix", "timeline", "importances"}
