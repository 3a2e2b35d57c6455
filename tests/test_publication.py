"""Rankings for papers: the same numbers in every format, texts that LaTeX can print, pictures of what is best."""

import csv
import io
import json
import math
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from small_suite import small

from diffode.cli import bench_command, report_command
from diffode.errors import ArgumentError
from diffode.studies import run_suite
from diffode.studies.publication import as_csv, as_latex, as_markdown, chosen_methods, in_latex, publish
from diffode.studies.ranking import Curve, mean_curves, standings, unranked

SPEC = "dpmpp:order=2,lower_order_final=never @ log_snr"


def curve(target, method, errors, nfe=(4, 8)):
    solver, _, grid = method.partition(" @ ")
    return Curve(target, "edm", grid or "karras", solver, nfe, tuple(errors), 0.0, nfe)


CURVES = [
    *(curve(t, "ddim", (0.4 * f, 0.2 * f)) for t, f in (("a", 1.0), ("b", 4.0), ("c|d", 2.0))),
    *(curve(t, SPEC, (0.9 * f, 0.01 * f)) for t, f in (("a", 1.0), ("b", 4.0), ("c|d", 2.0))),
]


def test_the_mean_over_problems_is_geometric_and_needs_all_of_them():
    means = mean_curves(CURVES)
    assert means["ddim"][0] == [4, 8]
    assert means["ddim"][1] == pytest.approx([0.8, 0.4])
    assert [s.error for s in standings(CURVES, 8)] == pytest.approx([0.02, 0.4])
    assert means[SPEC][1] == pytest.approx([1.8, 0.02])
    short = [*CURVES, curve("a", "more", (0.1, 0.1)), curve("a", "ddim", (1,), (5,))]
    assert "more" not in mean_curves(short)
    assert mean_curves(short)["ddim"][0] == [4, 8]


def test_tables_say_the_same_numbers_with_the_best_in_bold():
    markdown = as_markdown(CURVES, chosen_methods(CURVES), "caption", "diffode bench s")
    assert "| `ddim` | **0.8** | 0.4 |" in markdown
    assert f"| `{SPEC}` | 1.8 | **0.02** |" in markdown
    latex = as_latex(CURVES, chosen_methods(CURVES), "100 % of it", "diffode bench s")
    assert r"\texttt{ddim} & \textbf{0.8} & 0.4 \\" in latex
    assert r"\texttt{dpmpp:order=2,lower\_order\_final=never @ log\_snr} & 1.8 & \textbf{0.02} \\" in latex
    assert r"\caption{100 \% of it}" in latex
    rows = list(csv.DictReader(io.StringIO(as_csv(CURVES))))
    assert [(r["nfe"], r["rank"], r["solver"], r["grid"]) for r in rows] == [
        ("4", "1", "ddim", "karras"), ("4", "2", "dpmpp:order=2,lower_order_final=never", "log_snr"),
        ("8", "1", "dpmpp:order=2,lower_order_final=never", "log_snr"), ("8", "2", "ddim", "karras"),
    ]  # fmt: skip
    assert [float(r["error"]) for r in rows] == pytest.approx([0.8, 1.8, 0.02, 0.4])
    assert all(float(r["low"]) < float(r["error"]) < float(r["high"]) for r in rows)


def test_latex_prints_every_letter():
    assert in_latex(r"a_b&c%d#e$f{g}h~i^j\k") == (
        r"a\_b\&c\%d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_the_table_is_latex(tmp_path):
    publish("s", CURVES, tmp_path, ["latex"], command="diffode bench s --import a_b.py")
    text = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{ranking}\end{document}"
    (tmp_path / "all.tex").write_text(text)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, check=True)


def test_a_solver_is_meant_by_any_spelling_of_it():
    made = [
        Curve("a", "edm", grid, solver, (4,), (error,), 0.0, (4,))
        for error, (solver, grid) in enumerate(
            [(f"ddim:eta={k / 10}", "karras") for k in range(1, 12)]
            + [("ipndm:order=3,jump=auto", "karras"), ("ipndm:jump=auto,order=3", "log_snr"), ("dpmpp:order=2", "karras")],
            start=1,
        )
    ]
    best = chosen_methods(made)
    for asked, found in (
        ("ipndm:jump=auto,order=3", ["ipndm:order=3,jump=auto", "ipndm:jump=auto,order=3 @ log_snr"]),
        ("ipndm:order=3,jump=auto @ log_snr", ["ipndm:jump=auto,order=3 @ log_snr"]),
        ("dpmpp:order=2,analytic_first_step=false", ["dpmpp:order=2"]),
    ):
        assert chosen_methods(made, [asked]) == best + found
    with pytest.raises(ArgumentError, match="nothing of solver 'ipndm:order=2'"):
        chosen_methods(made, ["ipndm:order=2"])


def test_pictures_are_drawn_for_all_and_for_each_target(tmp_path):
    files = publish("s", CURVES, tmp_path / "new", ["svg", "pdf"], command="x")
    assert [f.name for f in files][:4] == ["curves.svg", "curves-a.svg", "curves-b.svg", "curves-c_d.svg"]
    assert len(files) == 8
    drawn = (tmp_path / "new" / "curves.svg").read_text()
    assert "dpmpp:order=2" in drawn
    assert "mean end-point error / scale" in drawn
    assert (tmp_path / "new" / "curves.pdf").read_bytes().startswith(b"%PDF")
    again = (tmp_path / "new" / "curves.svg").read_bytes()
    publish("s", CURVES, tmp_path / "new", ["svg"], command="x")
    assert (tmp_path / "new" / "curves.svg").read_bytes() == again


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="format must be one of pdf, svg"):
        publish("s", CURVES, tmp_path, ["docx"], command="x")
    with pytest.raises(ArgumentError, match="no result that could be ranked"):
        publish("s", [], tmp_path, ["csv"], command="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="folder of the exports"):
        publish("s", CURVES, tmp_path / "file" / "x", ["csv"], command="x")


def test_the_command_writes_what_is_asked_and_no_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = small(study=[{"targets": ["gauss1d"], "solvers": ["ddim", "heun"]}])
    (tmp_path / "diffode-report").mkdir()
    run_suite(suite, tmp_path / "diffode-report" / "results.sqlite", jobs=1)
    (tmp_path / "small.toml").write_text(
        'name = "small"\n[defaults]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4, 8]\nseeds = [0]\npoints = 16\n'
        'tolerance = 1e-6\n[[study]]\ntargets = ["gauss1d"]\nsolvers = ["ddim", "heun"]\n'
    )
    done = CliRunner().invoke(report_command.command, ["small.toml", "--format", "markdown", "--format", "csv", "--json"])
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["files"]
    assert files == ["diffode-report/small-export/ranking.md", "diffode-report/small-export/ranking.csv"]
    table = (tmp_path / files[0]).read_text()
    assert "geometric mean over 1 problem (1 target, 1 path) of the suite small" in table
    assert "`diffode bench small.toml`" in table
    shown = re.search(r"\| `heun` \| (.*?) \| (.*?) \|", table)
    assert all(math.isfinite(float(cell.strip("*"))) for cell in shown.groups())
    assert not (tmp_path / "diffode-report" / "small").exists()
    plain = CliRunner().invoke(report_command.command, ["small.toml", "--format", "png"])
    assert plain.stdout.split() == ["diffode-report/small-export/curves.png", "diffode-report/small-export/curves-gauss1d.png"]


APART = [curve("a", "ddim", (0.4, 0.2)), curve("b", "heun", (0.9, 0.1))]


@pytest.mark.parametrize("format", ["pdf", "svg", "png", "csv", "latex", "markdown"])
def test_a_ranking_in_which_no_method_would_stand_is_refused_with_what_does_work(tmp_path, format):
    """The solvers of one problem are not those of the other, so that no mean over both exists."""
    with pytest.raises(ArgumentError, match=r"no method has a result on all 2 problems .*the same solvers.*diffode export"):
        publish("s", APART, tmp_path / "new", [format], command="x")
    assert not (tmp_path / "new").exists()
    assert publish("s", APART[:1], tmp_path / "new", [format], command="x")


def test_pictures_that_would_show_nothing_are_refused(tmp_path):
    """A method that has a run within each budget on both paths, at other numbers of evaluations."""
    other = Curve("a", "vp", "karras", "ddim", (3, 7), (0.3, 0.1), 0.0, (4, 8))
    with pytest.raises(ArgumentError, match="no method has the same number of evaluations"):
        publish("s", [curve("a", "ddim", (0.4, 0.2)), other], tmp_path, ["svg"], command="x")
    assert not list(tmp_path.iterdir())


def test_the_reason_of_an_empty_ranking_is_told():
    assert unranked(CURVES) == ""
    assert unranked([*CURVES, curve("d", "ddim", (1.0, 1.0))]) == ""
    assert "all 4 problems" in unranked([*CURVES, curve("d", "heun", (1.0, 1.0))])
    assert "no run has a result" in unranked([])


def test_bench_says_in_words_that_none_can_be_ranked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    studies = "".join(
        f'[[study]]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\npoints = 4\ntolerance = 1e-5\n'
        f'targets = ["{target}"]\nsolvers = ["{solver}"]\n'
        for target, solver in (("gauss1d", "ddim"), ("bimodal1d", "heun"))
    )
    (tmp_path / "two.toml").write_text(f'name = "two"\n{studies}')
    done = CliRunner().invoke(bench_command.command, ["two.toml", "--no-report", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("Best solver at each NFE"))
    assert line.endswith("no method has a result on all 2 problems (pairs of target and path), so that none can be ranked")
    assert "second" not in done.stdout
    assert "heun" in done.stdout, "the prices are still told"
    asked = CliRunner().invoke(report_command.command, ["two.toml", "--format", "png"])
    assert isinstance(asked.exception, ArgumentError)
    assert asked.exception.exit_code == 2
    assert asked.stdout == ""


MANY = [curve(t, f"m{k}", (0.1 + k, 0.1 + k)) for t in ("a", "b", "c|d") for k in range(12)]


def test_all_of_a_few_methods_are_shown_and_of_many_the_best_and_those_asked_for(tmp_path):
    assert chosen_methods(MANY[:1]) == ["m0"]
    eight = [c for c in MANY if int(c.solver[1:]) < 8]
    assert chosen_methods(eight) == [f"m{k}" for k in range(8)]
    assert chosen_methods(MANY) == ["m0", "m1", "m2"]
    assert chosen_methods(MANY, ["m11", "m1"]) == ["m0", "m1", "m2", "m11"]
    grids = [*MANY, curve("a", "m11:order=2 @ log_snr", (1.0, 1.0))]
    assert chosen_methods(grids, ["m11"])[-2:] == ["m11", "m11:order=2 @ log_snr"]
    with pytest.raises(ArgumentError, match="nothing of solver 'mm' is stored"):
        chosen_methods(MANY, ["mm"])
    publish("s", MANY, tmp_path, ["markdown", "svg"], command="diffode bench s", shown=["m11"])
    assert "Shown are 4 of 12 methods" in (tmp_path / "ranking.md").read_text()
    assert "m11" in (tmp_path / "curves.svg").read_text()
    assert "m11" not in publish("s", MANY, tmp_path, ["markdown"], command="diffode bench s")[0].read_text()


def test_a_solver_to_show_goes_with_a_format():
    found = CliRunner().invoke(report_command.command, ["quick", "--solver", "ddim"])
    assert found.exit_code == 2
    assert "--solver goes with --format" in found.output


def test_a_run_without_an_evaluation_is_no_point_of_a_picture(tmp_path):
    """A jump on a single Gaussian is exact, at no cost."""
    free = [Curve("a", "edm", "karras", "jumped", (0, 4), (1e-9, 1e-9), 0.0, (2, 4)), curve("a", "ddim", (0.5, 0.25))]
    publish("s", free, tmp_path, ["svg", "markdown"], command="diffode bench s")
    assert "jumped" in (tmp_path / "curves-a.svg").read_text()
