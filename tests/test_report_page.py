"""The page of a report: answers that are those of the numbers, and a browser that draws, filters, points and remembers."""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import results_of

from diffode.cli.bench_command import print_ranking
from diffode.metrics import Measurement
from diffode.studies import Result, Suite
from diffode.studies.answer import alike, answers, in_a_sentence
from diffode.studies.cell import Cell
from diffode.studies.failures import grouped
from diffode.studies.page import page_of
from diffode.studies.ranking import Curve, curves, curves_of_note, price_table, standings
from diffode.studies.report import write_report

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
SOLVERS = ("ddim", "dpmpp:order=2", "dpmpp:order=3 ", "unipc:order=3<b>")
TARGETS = ("ring8", "moons", "digits-gmm10", "patches-gmm")


def curve(target, solver, errors, path="edm", nfe=(4, 8, 20)):
    return Curve(target, path, "karras", solver, nfe, tuple(errors), 0.0, nfe)


#: unipc wins at 4, dpmpp 2 at 8 and 20; ddim is best nowhere.
CURVES = [
    curve(t, s, [factor * e for e in errors])
    for t, factor in zip(TARGETS, (1.0, 2.0, 0.5, 3.0), strict=True)
    for s, errors in zip(SOLVERS, ((0.9, 0.5, 0.2), (0.6, 0.1, 0.01), (0.61, 0.2, 0.03), (0.5, 0.3, 0.1)), strict=True)
]


def test_one_order_of_the_nfe_needed_stands_on_the_page_and_in_the_terminal(capsys):
    """Of methods that cost the same to the first level, the one that costs least to the next stands first."""
    made = [curve("a", s, e) for s, e in (("x", (1, 9e-3, 5e-3)), ("y", (1, 8e-3, 5e-4)), ("z", (9e-3, 8e-3, 7e-3)))]
    _, rows = price_table(made)
    assert [row[0] for row in rows] == ["z", "y", "x"]
    known = results()
    print_ranking(Suite("s", "", tuple(r.cell for r in known)), known, None, False)
    told = capsys.readouterr().out.partition("NFE needed")[2]
    page = page_of(Suite("s", "", tuple(r.cell for r in known)), known, curves(known), Path("nowhere"), {}, "x")
    needed = page.partition("<h2>NFE needed")[2].partition("<h2>")[0]
    shown = [html.unescape(name) for name in re.findall(r"<tr><td>(.*?)</td>", needed)]
    assert shown == [row[0] for row in price_table(curves(known))[1]] == sorted(shown, key=told.index)
    assert len(shown) == 4


# -- answers -------------------------------------------------------------------------------------------------------------


def test_the_sentence_says_what_is_best_at_eight_evaluations_and_what_may_be_as_good():
    found = answers(CURVES)
    assert [(a.nfe, a.best.method) for a in found] == [(4, SOLVERS[3]), (8, SOLVERS[1]), (20, SOLVERS[1])]
    error = 0.1 * (1.0 * 2.0 * 0.5 * 3.0) ** 0.25
    assert found[1].best.error == pytest.approx(error)
    assert in_a_sentence(found) == (
        f"At 8 evaluations take dpmpp:order=2: an error of {error:.2g} of the scale on 4 problems; "
        "no other is as good when the problems are drawn anew."
    )
    near = [curve(t, "near", (1, 0.09 * f, 1)) for t, f in zip(TARGETS, (1.0, 2.0, 0.5, 6.0), strict=True)]
    assert in_a_sentence(answers([*CURVES, *near])).endswith("near is within its interval.")
    assert in_a_sentence(answers(CURVES[:4])).endswith("which says little of others.")
    assert answers([curve("a", "x", (1, 1, 1)), curve("b", "y", (1, 1, 1))]) == []


def test_targets_of_a_kind_have_answers_of_their_own():
    """Where images prefer another solver than points in the plane, the rows of their tags say so."""
    other = [c for c in CURVES if c.target in ("ring8", "moons")]
    images = [curve(t, s, (e, e, e)) for t in TARGETS[2:] for s, e in zip(SOLVERS, (0.1, 0.2, 0.3, 0.4), strict=True)]
    rows = {tag: (count, [a.best.method for a in found]) for tag, count, found in alike([*other, *images])}
    assert rows["2d"] == (2, [SOLVERS[3], SOLVERS[1], SOLVERS[1]])
    assert rows["images"] == (2, ["ddim"] * 3)
    # Tags that all of the targets have tell them from nothing.
    assert alike([curve(t, "ddim", (0.1, 0.1, 0.1)) for t in ("ring8", "moons", "rare")]) == []
    assert alike(CURVES[:4]) == []


def test_failures_that_differ_in_numbers_are_one_line():
    results = results_of("ring8", "gauss1d")
    failed = [
        Result("k", r.cell, "failed", f"3{i} of 64 rows became non-finite at t=0.{i}e-3" if i % 4 else "another")
        for i, r in enumerate(results)
    ]
    most, least = grouped(failed)
    assert (most.runs, least.runs) == (6, 2)
    assert most.reason == "31 of 64 rows became non-finite at t=0.1e-3"
    assert (set(most.targets), most.nfe, most.paths) == ({"ring8", "gauss1d"}, (4, 8), ("edm",))
    assert set(most.solvers) == {"ddim", "dpmpp:order=2"}


def test_a_large_suite_shows_its_best_methods():
    kept = curves_of_note(CURVES, 9)
    assert {c.solver for c in kept} == {SOLVERS[1], SOLVERS[3]}
    assert curves_of_note(CURVES, 16) == CURVES
    assert standings(CURVES, 4)[0].method in {c.method for c in kept}


# -- the page ------------------------------------------------------------------------------------------------------------


def results():
    made = []
    for c in CURVES:
        for nfe, error in zip(c.nfe, c.error, strict=True):
            cell = Cell(c.target, "edm", 0, "karras", c.solver, nfe, 4, "float64", ("endpoint",), 1e-6)
            made.append(Result("k", cell, "ok", "", nfe, nfe, 0.1, 1.0, 1, {}, (Measurement("endpoint", error),)))
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page without pictures of samples, which other tests draw."""
    known, folder = results(), tmp_path_factory.mktemp("page")
    suite = Suite("tried", "a <suite> & more", tuple(r.cell for r in known))
    text = page_of(suite, known, curves(known), folder, {}, "diffode bench tried")
    file = folder / "index.html"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_page_answers_first_and_asks_no_network(page):
    text = page.read_text(encoding="utf-8")
    assert text.index("At 8 evaluations take") < text.index('id="plot"')
    assert "http" not in text.replace("http-equiv", "")
    assert "a &lt;suite&gt; &amp; more" in text
    assert "unipc:order=3<b>" not in text
    data = json.loads(re.search(r"const DATA = (.*);\n", text)[1])
    assert len(data["curves"]) == 16
    assert data["methods"][3] == {
        "name": SOLVERS[3], "family": "unipc", "colour": "#CC79A7", "dash": "", "marker": "D"
    }  # fmt: skip
    assert data["tags"][2] == ["high-dimensional", "images", "full"]
    assert len(text) < 60_000


def test_a_page_with_pictures_stays_small(tmp_path, monkeypatch):
    """Beyond a size pictures are read from the folder beside the page, which is as far offline."""
    from diffode.studies import page

    monkeypatch.setattr(page, "_MOST_PICTURES", 10)
    made = write_report(
        Suite("s", "", tuple(r.cell for r in results_of("ring8"))), results_of("ring8"), tmp_path, command="x", jobs=1
    )
    assert 'src="figures/clouds-ring8.png"' in made.read_text()
    assert (tmp_path / "figures" / "clouds-ring8.png").is_file()


def browsed(page, script="", *, fragment="", width=1200, folder):
    """What a browser makes of a page after a script, and what it says to its console."""
    file = folder / "tried.html"
    told = f"<script>try {{ {script} }} catch (error) {{ console.error(String(error)); }}</script></body>"
    file.write_text(page.read_text(encoding="utf-8").replace("</body>", told), encoding="utf-8")
    words = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000",
        # Windows are 500 wide at least, screens are not.
        f"--screen-info={{{width}x900}}", "--start-maximized", f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{file}{fragment}",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    if "<html" not in done.stdout:
        pytest.skip(f"the browser does not run here: {done.stderr[-300:]}")
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def front(dom):
    return re.findall(r"</span>([^<]*)</li>", re.search(r'<ul id="key">(.*?)</ul>', dom)[1])


@needs_browser
def test_a_browser_draws_the_winners_in_front_and_says_nothing_to_its_console(page, tmp_path):
    dom, console = browsed(page, folder=tmp_path)
    assert console == []
    assert front(dom) == ["dpmpp:order=2", "unipc:order=3&lt;b&gt;"]
    plot = re.search(r'<div id="plot".*?</svg>', dom, re.DOTALL)[0]
    assert plot.count('class="front"') == 2
    assert plot.count('class="rest"') == 2
    assert "Best at some NFE: 2 of 4 methods, 4 problems." in dom
    assert dom.count('<button type="button" data-target="') == 5, "four targets, and the script that writes them"
    row = re.search(r"<tr><td>dpmpp:order=2</td>(.*?)</tr>", dom)[1]
    mean = 0.1 * math.prod((1.0, 2.0, 0.5, 3.0)) ** 0.25
    assert f"<td>{mean:.1e}</td>".replace("e-0", "e-") in row


@needs_browser
def test_choices_filter_and_stand_in_the_address_and_keys_walk_along_curves(page, tmp_path):
    script = """
      byId("target").value = "tag:2d"; byId("target").onchange();
      const check = byId("families").querySelector('input[value="0"]');
      check.checked = true; check.dispatchEvent(new Event("change", {bubbles: true}));
      const press = key => byId("plot").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      press("ArrowRight"); press("ArrowRight");
      document.title = [location.hash, byId("said").textContent].join(" | ");
      byId("others").checked = false; byId("others").onchange();
    """
    dom, console = browsed(page, script, folder=tmp_path)
    assert console == []
    hashed, said = re.search(r"<title>(.*?)</title>", dom)[1].split(" | ")
    assert hashed == "#target=tag%3A2d&amp;method=ddim"
    # Best of all four methods at the smallest NFE is unipc; one key to the right lies its error at 8, of two targets.
    assert said == f"unipc:order=3&lt;b&gt;, NFE 8: {0.3 * 2**0.5:.2e}".replace("e-0", "e-")
    assert front(dom) == ["ddim"]
    assert 'class="rest"' not in re.search(r'<div id="plot".*?</svg>', dom, re.DOTALL)[0]


@needs_browser
@pytest.mark.parametrize("width", [420, 1200])
def test_an_address_brings_a_selection_back_and_nothing_is_wider_than_the_window(page, tmp_path, width):
    script = """
      const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest("svg, table") &&
        e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + e.id);
      const root = document.documentElement;
      for (const e of document.querySelectorAll(".small span")) if (e.scrollWidth > e.clientWidth) wide.push(e.textContent);
      document.title = JSON.stringify([wide, root.scrollWidth - root.clientWidth, innerWidth]);
    """
    dom, console = browsed(
        page, script, fragment="#target=moons&path=edm&method=ddim&method=nothing&others=no", width=width, folder=tmp_path
    )
    assert console == []
    assert front(dom) == ["ddim"]
    assert "Chosen: 1 of 4 methods, 1 problem." in dom
    assert json.loads(re.search(r"<title>(.*?)</title>", dom)[1]) == [[], 0, width]


@needs_browser
def test_captions_of_small_multiples_may_break_after_marks(page, tmp_path):
    """The name of the best method of the first target, dpmpp:order=2, has two places."""
    script = 'document.title = document.querySelector(".small .note").innerHTML;'
    dom, console = browsed(page, script, folder=tmp_path)
    assert console == []
    shown = html.unescape(re.search(r"<title>(.*?)</title>", dom)[1])
    assert shown.startswith("dpmpp:<wbr>order=<wbr>2 ")
