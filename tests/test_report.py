"""Reports: put in their place whole, at the cost of no file but their own, and written whatever a picture does."""

import csv
import json
import re
from pathlib import Path

import pytest
from commandline import program
from matplotlib.figure import Figure
from small_suite import report_page, small

from diffode.errors import ArgumentError, FileFormatError
from diffode.metrics import Measurement
from diffode.studies import (
    Result,
    Store,
    Suite,
    figures,
    keyed_cells,
    parse_suite,
    report_folder,
    run_suite,
)
from diffode.studies.ranking import curves
from diffode.studies.report import write_report
from diffode.studies.report_content import figure_names
from diffode.studies.suite import Cell, plain_name


def results_of(*targets, solvers=("ddim", "dpmpp:order=2"), value=0.5):
    """Results as a store would hand them out, without a run."""
    cells = [
        Cell(target, "edm", 0, "karras", solver, nfe, 4, "float64", ("endpoint",), 1e-6)
        for target in targets
        for solver in solvers
        for nfe in (4, 8)
    ]
    return [
        Result(str(i), cell, "ok", "", cell.nfe, 4, 0.1, 1.0, 1, {}, (Measurement("endpoint", value / cell.nfe),))
        for i, cell in enumerate(cells)
    ]


def write(place, results, name="small"):
    suite = Suite(name, "for the tests", tuple(r.cell for r in results))
    return write_report(suite, results, place, command="diffode bench small", jobs=1)


@pytest.fixture
def plain_pictures(monkeypatch):
    """Pictures of samples take a second each; most tests need none of what they show."""
    monkeypatch.setattr(figures, "draw_clouds", lambda *_: Figure(figsize=(1, 1)))


def content(place):
    return {f.relative_to(place).as_posix(): f.read_bytes() for f in sorted(place.rglob("*")) if f.is_file()}


# -- whose files ---------------------------------------------------------------------------------------------------------


def test_only_what_a_report_has_listed_is_replaced_or_deleted(tmp_path, plain_pictures):
    place = tmp_path / "report"
    write(place, results_of("ring8", "moons"))
    (place / "notes.txt").write_text("mine")
    (place / "figures" / "mine.png").write_text("mine")
    (place / "figures" / "clouds-old.png").write_text("mine, whatever its name")
    (place / ".hidden").write_text("mine")
    assert "figures/clouds-moons.png" in json.loads((place / "report.json").read_text())["files"]
    write(place, results_of("ring8", value=0.25))
    left = content(place)
    assert [name for name in left if left[name].startswith(b"mine")] == [
        ".hidden", "figures/clouds-old.png", "figures/mine.png", "notes.txt"
    ]  # fmt: skip
    assert set(left) - {".hidden", "figures/clouds-old.png", "figures/mine.png", "notes.txt"} == {
        "index.html", "results.csv", "report.json", "figures/clouds-ring8.png"
    }  # fmt: skip
    with (place / "results.csv").open() as handle:
        assert {row["target"] for row in csv.DictReader(handle)} == {"ring8"}


@pytest.mark.parametrize("name", ["index.html", "results.csv", "figures/clouds-ring8.png", "figures/images-ring8.png"])
def test_a_file_that_no_report_made_is_in_the_way(tmp_path, name):
    place = tmp_path / "report"
    (place / name).parent.mkdir(parents=True)
    (place / name).write_text("mine")
    with pytest.raises(ArgumentError, match="in the way of the report"):
        write(place, results_of("ring8"))
    assert content(place) == {name: b"mine"}


@pytest.mark.parametrize("link", ["figures", "index.html"])
def test_links_are_not_followed_out_of_the_folder(tmp_path, plain_pictures, link):
    place, victim = tmp_path / "report", tmp_path / "victim"
    write(place, results_of("ring8", "moons"))
    victim.mkdir()
    (victim / "clouds-moons.png").write_text("mine")
    if link == "figures":
        (place / "figures").rename(place / "aside")
        (place / "figures").symlink_to(victim)
        with pytest.raises(ArgumentError, match="no folder of its own"):
            write(place, results_of("ring8"))
    else:
        (place / "index.html").unlink()
        (place / "index.html").symlink_to(victim / "clouds-moons.png")
        write(place, results_of("ring8"))
        assert not (place / "index.html").is_symlink()
    assert content(victim) == {"clouds-moons.png": b"mine"}


@pytest.mark.parametrize("listed", [
    "", "{", "[]", "[" * 100_000, '{"schema": "diffode-report-1"}', '{"schema": "x", "files": []}',
    '{"schema": "diffode-report-1", "files": ["../victim.txt"]}', '{"schema": "diffode-report-1", "files": ["notes.txt"]}',
    '{"schema": "diffode-report-1", "files": ["figures/../../victim.png"]}', '{"schema": "diffode-report-1", "files": [3]}',
])  # fmt: skip
def test_a_list_that_no_report_made_is_refused(tmp_path, listed):
    place = tmp_path / "report"
    place.mkdir()
    (tmp_path / "victim.txt").write_text("mine")
    (place / "notes.txt").write_text("mine")
    (place / "report.json").write_text(listed)
    with pytest.raises(FileFormatError, match=r"report\.json is not the list of a report"):
        write(place, results_of("ring8"))
    assert set(content(tmp_path)) == {"victim.txt", "report/notes.txt", "report/report.json"}


def test_a_report_that_fails_leaves_no_folder_behind(tmp_path):
    (tmp_path / "file").write_text("")
    for place, reason in (
        (tmp_path / "file", "something of this name is"),
        (tmp_path / "file" / "x", "a file is"),
        (tmp_path / ("x" * 300), "shorter"),
    ):
        with pytest.raises(ArgumentError, match=reason):
            write(place, results_of("ring8"))
    assert set(content(tmp_path)) == {"file"}


# -- whole ---------------------------------------------------------------------------------------------------------------

ENDED = """
import os, shutil, signal, sys, warnings
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_report import results_of, write
from diffode.studies import report
from diffode.errors import ArgumentError

# Pictures are taken as drawn: what is tried is what happens to files.
def draw(curves, folder, *rest):
    folder.mkdir()
    for curve in curves:
        (folder / f"clouds-{{curve.target}}.png").write_text(str(curve))
    return {{}}


report.draw_figures = draw
folder = Path({folder!r})


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise OSError(28, "No space left on device")


def child(place, moment, end):
    left = moment

    def counted(function):
        def call(*args, **options):
            nonlocal left
            left -= 1
            if left == 0:
                end()
            return function(*args, **options)
        return call

    for name in ("replace", "link", "mkdir", "unlink", "rmdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        write(place, results_of("ring8", value=0.25))
    except (ArgumentError, OSError):
        pass
    # An error while folders are removed at the end is no error of the report.
    os._exit(left <= 0)


write(folder / "old", results_of("ring8", "moons"))
(folder / "old" / "figures" / "mine.png").write_text("mine")
(folder / "old" / "notes.txt").write_text("mine")
write(folder / "new", results_of("ring8", value=0.25))
warnings.simplefilter("ignore")
for end in (kill, fail):
    moment, status = 0, 1
    while status:
        moment += 1
        place = folder / end.__name__ / str(moment)
        shutil.copytree(folder / "old", place)
        started = os.fork()
        if not started:
            child(place, moment, end)
        status = os.waitpid(started, 0)[1]
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Folders with a report, in which a new one was ended at each of the calls that change the folder."""
    folder = tmp_path_factory.mktemp("ended")
    code = ENDED.format(tests=str(Path(__file__).parent), folder=str(folder))
    program(code)
    return folder


@pytest.mark.parametrize("end", ["kill", "fail"])
def test_an_end_at_any_moment_leaves_the_old_page_or_the_new_one(ended, end):
    old, new = content(ended / "old"), content(ended / "new")
    mine = {name: old.pop(name) for name in ("notes.txt", "figures/mine.png")}
    new.pop("report.json")
    old.pop("report.json")
    pages = []
    for moment in range(1, 1 + len(list((ended / end).iterdir()))):
        left = content(ended / end / str(moment))
        listed = json.loads(left.pop("report.json"))["files"]
        unfinished = [name for name in left if name.startswith(".diffode-new-")]
        left = {name: data for name, data in left.items() if name not in unfinished}
        # The user's files are as they were, each of the report's is whole, and all are on its list for the next report.
        assert {name: left.pop(name) for name in mine} == mine
        assert set(left) <= set(listed)
        assert all(data in (old.get(name), new.get(name)) for name, data in left.items())
        pages.append(left["index.html"] == new["index.html"])
        if pages[-1]:
            assert all(left[name] == new[name] for name in new)
        else:
            assert set(left) >= set(old)
            # An error, as opposed to a kill, puts back what was moved already.
            assert end == "kill" or left == old
    # Some errors are none: a folder that can't be made since it is there already.
    assert end == "fail" or pages == sorted(pages)
    assert set(pages) == {True, False}
    assert len(pages) > 15


def test_the_next_report_clears_away_what_a_killed_one_left(tmp_path, plain_pictures):
    place = tmp_path / "report"
    (place / ".diffode-new-0123456789ab" / "figures").mkdir(parents=True)
    (place / ".diffode-new-0123456789ab" / "results.csv").write_text("half")
    (place / ".diffode-new-mine").mkdir()
    write(place, results_of("ring8"))
    assert sorted(f.name for f in place.iterdir()) == [
        ".diffode-new-mine", "figures", "index.html", "report.json", "results.csv"
    ]  # fmt: skip


def test_a_report_in_the_making_is_no_abandoned_one(tmp_path, plain_pictures):
    place = tmp_path / "report"
    with report_folder.new_report(place) as made:
        write(place, results_of("ring8"))
        assert made.is_dir()
        (made / "index.html").write_text("the later one")
    assert (place / "index.html").read_text() == "the later one"
    assert {f.name for f in place.iterdir()} == {"index.html", "report.json"}


# -- pictures ------------------------------------------------------------------------------------------------------------


def test_solvers_that_draw_noise_are_drawn(tmp_path):
    write(tmp_path, results_of("ring8", solvers=("seeds_2", "ddim:eta=1")))
    assert (tmp_path / "figures" / "clouds-ring8.png").stat().st_size > 10_000
    figures.draw_images("patches-gmm", "edm", ["ddpm"], [4])


@pytest.mark.parametrize(
    "error", [ArgumentError("no <b>such</b> thing"), ZeroDivisionError("by 0"), MemoryError(), OSError(28, "full")]
)
def test_a_picture_that_can_not_be_drawn_is_a_line(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(figures, "draw_clouds", fails)
    page = write(tmp_path, results_of("ring8")).read_text()
    assert f"Figure clouds-ring8.png could not be drawn: {type(error).__name__}" in page
    assert "<b>such" not in page
    assert '"targets":["ring8"]' in page
    with (tmp_path / "results.csv").open() as handle:
        assert len(list(csv.DictReader(handle))) == 4
    assert {f.name for f in tmp_path.iterdir()} == {"index.html", "results.csv", "report.json"}


def test_targets_that_exist_no_more_have_curves_only(tmp_path):
    page = write(tmp_path, results_of("gone", "gone_module:field,kind=noise,dim=2")).read_text()
    assert "could not be drawn" not in page
    assert '"targets":["gone",' in page
    assert not (tmp_path / "figures").exists()


def test_pictures_of_different_targets_have_different_plain_names():
    targets = ["ring8", "a:b=1", "a_b=1", "A_b=1", "../../x", "x" * 300, "x" * 299 + "y", "\u00e9:x", "\u00e8:x"]
    names = figure_names(targets)
    assert names["ring8"] == "ring8"
    assert names["a:b=1"] == "a_b=1"
    assert len({name.lower() for name in names.values()}) == len(targets)
    assert all(report_folder.LISTED.match(f"figures/clouds-{name}.png") and len(name) < 140 for name in names.values())


# -- names of suites -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "../victim", "/tmp/x", "a/b", "a\\b", "", ".", "..", ".hidden", "-rf", "a b", "a\n", "\u00e9", "a:b", "x" * 101, "con",
    "NUL.txt", "com1", "a.", "results.sqlite", "results.sqlite-wal", "a\0b", 3, None, ["x"],
])  # fmt: skip
def test_names_of_suites_are_plain_or_refused(name):
    with pytest.raises(ArgumentError, match="name"):
        Suite(name, "", ())
    study = {"targets": ["ring8"], "paths": ["edm"], "grids": ["karras"], "nfe": [4], "seeds": [0], "solvers": ["ddim"]}
    with pytest.raises(ArgumentError, match="name"):
        parse_suite({"name": name, "study": [study]})


@pytest.mark.parametrize("name", ["quick", "my_suite-2.v1", "7", "_x", "console"])
def test_plain_names_are_taken(name):
    assert Suite(name, "", ()).name == plain_name(name) == name


def test_names_are_made_plain_where_they_come_from_attributes():
    for text in ("quick-\u00e9.field", "../x", "", "x" * 300, "..", "a/"):
        assert Suite(plain_name(text), "", ())


def test_the_report_is_complete_and_offline(tmp_path):
    suite = small()
    run_suite(suite, tmp_path / "s.sqlite", jobs=1)
    page = report_page(suite, tmp_path)
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "http" not in own.replace("data:image", "")
    for expected in ("diffode bench small", "Best solver at each NFE", "NFE needed", 'alt="ring8"', "torch"):
        assert expected in page
    names = {f.name for f in (tmp_path / "report" / "figures").iterdir()}
    assert {"clouds-ring8.png"} == names
    with (tmp_path / "report" / "results.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(suite))
    assert len(rows) == sum(len(r.measurements) for r in results) == 8
    assert float(rows[0]["value"]) == results[0].value("endpoint")
    assert len(curves(results)) == 4


def test_an_unwritable_report_says_so(tmp_path):
    suite = small()
    run_suite(suite, tmp_path / "s.sqlite", jobs=1)
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(suite))
    with pytest.raises(ArgumentError, match="can't be written"):
        write_report(suite, results, "/proc/nowhere", command="x")
    with pytest.raises(ArgumentError, match="nothing is stored"):
        write_report(suite, [], tmp_path, command="x")
