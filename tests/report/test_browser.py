"""The report in a real headless Chromium: it draws, refreshes by itself, and breaks no policy."""

from __future__ import annotations

import threading

import pytest
from support.browser import CHROMIUM, browser
from support.journals import Written
from support.sweeps import crossed

from autocl_sweeper.overview import look
from autocl_sweeper.page import server as served
from autocl_sweeper.page.document import write
from autocl_sweeper.page.server import ReportServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
NODES = "[...document.querySelectorAll('#tree [aria-label^=\"trial \"]')].length"
SPOKEN = "document.querySelector('#spoken').textContent"
PANEL = "document.querySelector('#panel').hidden ? '' : document.querySelector('#panel').innerText"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_file_draws_all_charts_and_the_table_and_nothing_is_wider_than_the_page(
    tmp_path, width, scheme
):
    path = write(look(crossed(tmp_path / "s")))
    with browser(tmp_path) as page:
        page.open(path.as_uri(), width, scheme)
        assert page.value(NODES) == 10
        assert page.value("document.querySelectorAll('[data-chart] svg').length") == 3
        assert page.value("document.querySelectorAll('#trials tbody tr').length") == 10
        assert page.value("document.documentElement.scrollWidth") <= width
        colour = page.value("getComputedStyle(document.body).backgroundColor")
        assert colour == {"light": "rgb(252, 252, 250)", "dark": "rgb(17, 21, 26)"}[scheme]
        assert page.errors == []


def test_arrows_walk_the_tree_enter_opens_a_trial_and_escape_returns(tmp_path):
    path = write(look(crossed(tmp_path / "s")))
    with browser(tmp_path) as page:
        page.open(path.as_uri())
        page.value("document.querySelector('#tree').focus()")
        page.press("ArrowRight")  # enters at the first trial of the best chain
        assert page.value(SPOKEN).startswith("trial 1, stage 1 a, done, score 1.000, rank 1")
        page.press("ArrowRight")
        assert page.value(SPOKEN).startswith("trial 2, stage 2 b, done, score 0.900, rank 1")
        page.press("ArrowDown")
        assert ", rank 2" in page.value(SPOKEN)
        page.press("ArrowUp")
        page.press("Enter")
        assert "Trial 2" in page.value(PANEL) and "1 \u203a 2" in page.value(PANEL)
        page.press("Escape")
        assert page.value(PANEL) == "" and page.value("document.activeElement.id") == "tree"


# Pairs of texts of the tree that lie on each other, and texts that reach out of it.
CROWDED = """(() => {
  const svg = document.querySelector("#tree svg").getBoundingClientRect();
  const texts = [...document.querySelectorAll("#tree svg text")].filter((one) => one.textContent)
    .map((one) => [one.textContent, one.getBoundingClientRect()]);
  const out = texts.filter(([, r]) => r.left < svg.left || r.right > svg.right + 0.5 || r.bottom > svg.bottom);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
  const pairs = texts.flatMap(([said, a], n) => texts.slice(n + 1).filter(([, b]) => meet(a, b))
    .map(([other]) => said + " / " + other));
  return [...pairs, ...out.map(([said]) => said)];
})()"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("best", [0.97, -0.004009, 123456.7])
def test_no_text_of_the_tree_is_cut_or_lies_on_another(tmp_path, width, best):
    sweep = Written(tmp_path)
    for number in range(240):  # the later, the better
        stage = 1 + number // 120
        sweep.start(number, stage=stage, parent=119 if stage == 2 else None)
        sweep.finish(number, best - abs(best) * (240 - number) / 500)
        if number % 120 == 119:
            sweep.journal.append("select", stage=stage, beam=[number, number - 1])
    sweep.journal.close()
    with browser(tmp_path) as page:
        page.open(write(look(tmp_path)).as_uri(), width)
        assert page.value("document.querySelectorAll('#tree svg text').length") > 30
        assert page.value(CROWDED) == []


def test_the_table_filters_by_words_and_comparisons_and_sorts(tmp_path):
    path = write(look(crossed(tmp_path / "s")))
    shown = "[...document.querySelectorAll('#trials tbody tr')].map(row => Number(row.dataset.row))"
    with browser(tmp_path) as page:
        page.open(path.as_uri())

        def filtered(text: str) -> list[int]:
            page.value(
                f"{{ const f = document.querySelector('#filter'); f.value = {text!r};"
                " f.dispatchEvent(new Event('input', {bubbles: true})) }"
            )
            return list(page.value(shown))

        assert filtered("stage=1") == [0, 1]
        assert filtered("stage>=2 lr=2 stage<3") == [
            t.number
            for t in look(tmp_path / "s").history.stage(2)
            if t.suggestion.params["lr"] == 2
        ]
        assert filtered("failed") == []
        assert len(filtered("")) == 10
        page.value(
            "[...document.querySelectorAll('#trials th button')].find(b => b.textContent == 'score').click()"
        )
        scores = [look(tmp_path / "s").history[number].score for number in page.value(shown)]
        assert scores == sorted(scores, reverse=True)


def test_markup_of_jobs_makes_no_element(tmp_path):
    sweep = Written(tmp_path)
    sweep.start(0, {"lr": 0.1, "name": "<img src=x onerror=document.title='broken'>"})
    sweep.finish(0, 0.5)
    sweep.journal.close()
    with browser(tmp_path) as page:
        page.open(write(look(tmp_path)).as_uri())
        page.value("document.querySelector('[data-trial]').click()")
        assert "<img src=x" in page.value(PANEL)
        assert (
            page.value("document.images.length") == 0 and page.value("document.title") != "broken"
        )


def test_a_served_page_shows_what_happens_while_it_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(served, "LOOK_S", 0.2)
    sweep = Written(tmp_path)
    sweep.start(0)
    with ReportServer(tmp_path, (), "127.0.0.1", 0) as server, browser(tmp_path) as page:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page.open(server.url)
            assert "0.750" not in page.value("document.querySelector('#main').innerText")
            page.value("document.querySelector('#trials [data-trial]').click()")
            sweep.finish(0, 0.75)
            page.until("document.documentElement.dataset.updates > 0")
            assert "So far the best trial scores 0.750." in page.value("document.body.innerText")
            assert "0.750" in page.value(PANEL)  # which stayed open
            assert page.errors == []
        finally:
            server.shutdown()
            thread.join()
    sweep.journal.close()
