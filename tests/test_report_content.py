"""Reports that are up to date: left as they are, and made again when anything that they are made of has changed."""

import dataclasses

from matplotlib.figure import Figure
from test_report import results_of

from diffode.studies import Suite, figures, report, report_content
from diffode.studies.report import write_report
from diffode.studies.report_content import current_report


def test_a_report_that_is_up_to_date_is_left_as_it_is(tmp_path, monkeypatch):
    """It is made again if a result, the command, the code or a file of it has changed, or a picture was missing."""
    drawn = []
    monkeypatch.setattr(figures, "draw_clouds", lambda *_: Figure(figsize=(1, 1)))
    original = report.draw_figures
    monkeypatch.setattr(report, "draw_figures", lambda *arguments: drawn.append(1) or original(*arguments))
    results = results_of("ring8")

    known_suite = Suite("small", "for the tests", tuple(r.cell for r in results))

    def made(results=results, command="diffode bench x", suite=known_suite):
        before = len(drawn)
        known = current_report(suite, results, tmp_path, command=command)
        page = write_report(suite, results, tmp_path, command=command, jobs=1)
        assert page == tmp_path / "index.html"
        assert (known is None) == (len(drawn) > before)
        return len(drawn) > before

    assert made()
    assert not made()
    assert made(results_of("ring8", value=0.125))
    assert made()
    assert made(command="diffode bench y")
    assert made()
    assert made(suite=dataclasses.replace(known_suite, summary="another"))
    assert made()
    for name in ("index.html", "results.csv", "figures/clouds-ring8.png"):
        file = tmp_path / name
        kept = file.read_bytes()
        file.write_bytes(kept + b" ")
        assert made(), name
        file.unlink()
        assert made(), name
        assert not made()
    monkeypatch.setattr(report_content, "_code", lambda: "other code")
    assert made()
    monkeypatch.setattr(report, "draw_figures", lambda *_: drawn.append(1) or {"clouds-ring8.png": "no memory"})
    assert made(command="diffode bench z")
    assert made(command="diffode bench z")
