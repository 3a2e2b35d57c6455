"""Guidance in texts, studies, keys and commands."""

import json

import numpy as np
import pytest
import torch
from commandline import diffode as command

import diffode
from diffode.errors import ArgumentError
from diffode.fields import Guidance
from diffode.fields.problem_text import field_of_text, guidance_of, parts_of, problem_text, unguided
from diffode.studies import keyed_cells, load_suite, parse_suite, run_suite
from diffode.studies.cell_keys import cell_key
from diffode.studies.guided_ranking import by_weight, sentence
from diffode.studies.problem import content_of, field_of, starts
from diffode.studies.ranking import Curve, curves
from diffode.studies.store import Store

STUDY = {
    "targets": ["ring8"], "paths": ["edm"], "grids": ["karras"], "solvers": ["ddim", "dpmpp:order=2"],
    "nfe": [16], "seeds": [0], "points": 32, "metrics": ["endpoint", "tilted:part=moments"],
}  # fmt: skip
GUIDED = "ring8 guided label=three,weight=7.5"


def suite(**study):
    return parse_suite({"name": "guided", "study": [{**STUDY, **study}]})


def test_a_text_names_a_guided_field():
    text = problem_text("ring8", None, "weight=7.5, label=three")
    assert text == GUIDED
    assert (parts_of(text), unguided(text)) == (("ring8", None), "ring8")
    both = problem_text("ring8", "student:dof=8", "label=three,weight=2")
    assert both == "ring8 from student:dof=8 guided label=three,weight=2.0"
    assert (parts_of(both), guidance_of(both).weight) == (("ring8", "student:dof=8"), 2.0)
    ring = diffode.targets.get("ring8")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for source in (None, "student:dof=8"):
        one, other = (diffode.exact_field(law, "edm", source) for law in (ring.given("three"), ring))
        expected = diffode.guide(one, other, 3.0, interval=(0.5, 20.0)).velocity(x, 1.0)
        found = field_of_text(problem_text("ring8", source, "label=three,weight=3,low=0.5,high=20"), "edm").velocity(x, 1.0)
        assert torch.equal(found, expected)


def test_every_key_of_a_text_reaches_the_field():
    digits = diffode.targets.get("digits-gmm10")
    one, other, eight = (diffode.exact_field(law, "vp") for law in (digits.given(3), digits, digits.given(8)))
    x, t = one.marginal(3, 0.4, generator=0), 0.4
    for text, expected in (
        ("label=3,weight=4,kind=projected,eta=0.2,norm=1.5",
         diffode.guide(one, other, 4.0, kind="projected", eta=0.2, norm=1.5)),
        ("label=3,weight=4,kind=rescaled,phi=0.4,view=velocity",
         diffode.guide(one, other, 4.0, kind="rescaled", phi=0.4, view="velocity")),
        ("label=3,weight=4,negative=8", diffode.guide(one, eight, 4.0)),
        ("label=3,weight=4,kind=auto,blur=0.2", diffode.guide(one, weight=4.0, kind="auto", blur=0.2)),
        ("weight=4,kind=auto", diffode.guide(other, weight=4.0, kind="auto")),
        ("weight=4,kind=auto", diffode.guide(other, weight=4.0, kind="auto", blur=0.5)),
    ):  # fmt: skip
        made = Guidance.read(text)
        assert Guidance.read(made.text) == made
        assert torch.equal(made.field(digits, one.path).denoised(x, t), expected.denoised(x, t))


def test_wrong_texts_are_named():
    for text, message in (
        ("label=three", "needs weight="),
        ("weight=2", "needs label="),
        ("label=three,weigth=2", "did you mean 'weight'"),
        ("three", "of the form label=three,weight=7.5"),
        ("", "must be a text such as"),
        ("label=three,weight=2,kind=cfgg", "did you mean 'cfg'"),
        ("label=three,weight=2,kind=cfg++", "depends on the times of one run"),
        ("label=three,weight=2,negative=three", "the label itself"),
        ("weight=2,kind=auto,negative=three", "leave negative out"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Guidance.read(text)
    for text, message in (
        ("ring8 guided label=four,weight=2.0", "target 'ring8': label 'four' is none of the mixture"),
        ("gauss2d guided label=a,weight=2.0", "has no labels"),
        ("ring8 guided label=three,weight=2.0,blur=0.3", "blur goes with kind='auto'"),
        ("ring8 guided label=three,weight=many", "weight"),
        ("trained:ring8 guided label=three,weight=2.0", "goes with a target that has labels"),
        ("bridge:two_gaussians guided label=three,weight=2.0", "goes with a target that has labels"),
    ):
        with pytest.raises(ArgumentError, match=message):
            field_of(text, None)
    with pytest.raises(ArgumentError, match="names a guidance already"):
        problem_text(GUIDED, None, "label=three,weight=2")


def test_none_is_the_target_alone_wherever_guidance_is_given():
    assert problem_text("ring8", None, "none") == "ring8"
    assert problem_text("ring8", "student:dof=8", "none") == "ring8 from student:dof=8"
    plain = suite()
    from diffode.cli.bench_command import guided

    assert {cell.target for cell in guided(plain, "none").cells} == {cell.target for cell in plain.cells}


def test_a_study_runs_on_guided_fields(tmp_path):
    chosen = suite(guidance=["label=three,weight=2", "label=three,weight=7.5"])
    summary = run_suite(chosen, tmp_path / "results.sqlite", jobs=1)
    assert (summary.computed, summary.failed) == (4, 0)
    with Store(tmp_path / "results.sqlite") as store:
        found = store.get(summary.cells)
    field = field_of_text(GUIDED, "edm")
    x = starts(GUIDED, "edm", 0, 32, 80.0)
    # All weights start from the same points, those of the target without guidance.
    assert torch.equal(x, starts("ring8", "edm", 0, 32, 80.0))
    end = diffode.solve(field, x, solver="ddim", grid="karras", steps=8).x
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-9).x
    ddim = next(r for r in found if r.cell.solver == "ddim" and r.cell.target == GUIDED)
    assert (ddim.nfe_counted, ddim.steps) == (16, 8)
    assert ddim.value("endpoint") == pytest.approx(float((end - exact).norm(dim=1).mean()), rel=1e-6)
    ranked = by_weight(curves(found))
    assert [(one.weight, one.nfe, one.evaluations) for one in ranked] == [(2.0, 16, 8), (7.5, 16, 8)]
    assert sentence(ranked).startswith("With 8 evaluations at weight 7.5 (NFE 16) ddim errs least")


def test_cells_and_contents_without_guidance_are_what_they_were():
    plain, none = suite(), suite(guidance=["none"])
    assert plain.cells == none.cells
    assert plain.cells[0].target == "ring8"
    assert content_of("ring8", "edm") == diffode.targets.get("ring8").content()
    keys = {cell_key(suite(guidance=[text]).cells[0]) for text in ("none", "label=three,weight=2", "label=five,weight=2")}
    assert len(keys) == 3


def test_the_key_of_a_guided_cell_changes_with_the_labels(monkeypatch):
    """Labels are no part of a target's content, but the laws that they give are part of a guided field's."""
    means = [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]
    monkeypatch.setattr(diffode.targets.registry, "_entries", dict(diffode.targets.registry._entries))
    for name, labels in (("first-labels", ["a", "a", "b"]), ("other-labels", ["a", "b", "b"])):
        made = diffode.GaussianMixture([0.2, 0.3, 0.5], means, [0.1] * 3, labels=labels)
        diffode.targets.register(name, lambda made=made: made)
    plain = {content_of(name, "edm") for name in ("first-labels", "other-labels")}
    guided = {content_of(f"{name} guided label=a,weight=2.0", "edm") for name in ("first-labels", "other-labels")}
    assert (len(plain), len(guided)) == (1, 2)


def test_wrong_lists_of_guidance_are_named():
    for guidance, message in (
        ("label=three,weight=2", "must be a list"),
        ([], "must not be empty"),
        ([3], "list of texts"),
        (["label=four,weight=2"], "none of the mixture"),
    ):
        with pytest.raises(ArgumentError, match=message):
            suite(guidance=guidance)


def test_a_suite_is_run_with_guidance():
    from diffode.cli.bench_command import guided

    other = guided(suite(), "label=three,weight=7.5")
    assert other.cells == suite(guidance=["label=three,weight=7.5"]).cells
    assert other.name == "guided-guided-label_three_weight_7.5"


def test_standings_under_guidance_answer_for_each_weight():
    def curve(target, method, errors):
        return Curve(target, "edm", "karras", method, (8, 16), errors, 0.0, (8, 16))

    moons = "moons guided label=upper,weight=7.5"
    own = [
        curve(GUIDED, "a", (1.0, 0.1)), curve(GUIDED, "b", (0.5, 0.4)),
        curve(moons, "a", (1.0, 0.9)), curve(moons, "b", (0.5, 0.1)),
        curve("ring8 guided label=three,weight=1.0", "a", (1.0, 0.1)), curve("ring8", "a", (1.0, 0.1)),
    ]  # fmt: skip
    found = {(one.weight, one.nfe): one for one in by_weight(own)}
    assert found.keys() == {(1.0, 8), (1.0, 16), (7.5, 8), (7.5, 16)}
    assert [found[key].evaluations for key in ((1.0, 8), (7.5, 8))] == [8, 4]
    best = found[7.5, 16].best[0]
    assert (best.method, best.error, best.wins) == ("b", pytest.approx(0.2), 1)
    assert "weight 7.5 (NFE 16) b errs least: 0.2 of" in sentence(by_weight(own))
    assert sentence(by_weight(own[-2:])) == ""
    assert by_weight(own[-1:]) == []


def test_the_shipped_suite_has_all_weights_and_budgets():
    cells = load_suite("guidance").cells
    weights = {guidance_of(cell.target).weight for cell in cells}
    assert weights == {1.0, 2.0, 4.0, 7.5, 15.0}
    assert {cell.nfe for cell in cells} == {8, 16, 32, 64}
    assert len({cell.grid for cell in cells}) == 3


def test_tables_are_trained_on_guided_fields_and_maps_of_data_are_not():
    """A jump table learns the guided flow; a map would learn the conditional law from its data, which is another one."""
    trained = diffode.learned.train("jump", GUIDED, 3, points=32, steps=4, seed=0)
    assert trained.errors.after < 0.5 * trained.errors.before
    field, x = field_of_text(GUIDED, "edm"), starts("ring8", "edm", 5, 32, 80.0)
    # Its evaluations are counted in evaluations, the budget of a run in network calls.
    run = diffode.solve(field, x, solver=trained.solver, nfe=trained.nfe * field.calls)
    exact = diffode.reference(field, x, 80.0, float(run.times[-1]), 1e-7).x
    error = float((run.x - exact).norm(dim=1).mean()) / field.scale
    assert run.nfe == 6
    assert error < 0.5 * float((diffode.solve(field, x, solver="ddim", nfe=6).x - exact).norm(dim=1).mean()) / field.scale
    for method in ("meanflow", "cd"):
        with pytest.raises(ArgumentError, match="trains on data, which this field does not tell"):
            diffode.learned.train(method, GUIDED, (1,), steps=2)


def test_commands_take_guidance(tmp_path):
    file = tmp_path / "points.npy"
    sample = ["sample", "ring8", "--output", str(file), "-n", "64", "--json"]
    told = command(*sample, "--guide", "label=three,weight=7.5", "--solver", "ddim", "--nfe", "16", "--metric", "moments")
    facts = json.loads(told.stdout)
    assert facts["nfe"] == 16
    assert 0 < facts["mean_endpoint_error"] < 1
    assert facts["metrics"]["moments"]["value"] > 2
    assert np.load(file).shape == (64, 2)
    assert "did you mean 'three'" in command(*sample, "--guide", "label=thre,weight=2", code=2).stderr
    listed = json.loads(command("show", "ring8", "--json").stdout)
    assert listed["labels"] == ["three (3)", "five (5)"]
    place = tmp_path / "guided.toml"
    place.write_text(
        'name = "guided"\n[[study]]\ntargets = ["ring8"]\npaths = ["edm"]\ngrids = ["karras"]\n'
        'solvers = ["ddim", "lms:order=4"]\nnfe = [16]\nseeds = [0]\npoints = 16\n', encoding="utf-8",
    )  # fmt: skip
    told = command("bench", str(place), "--guide", "label=three,weight=7.5", "--output", str(tmp_path / "out"), "--jobs", "1")
    assert "Best solver by weight of guidance" in told.stdout
    page = (tmp_path / "out" / "guided-guided-label_three_weight_7.5" / "index.html").read_text(encoding="utf-8")
    assert "Guidance: the best solver by weight" in page
    assert "--guide label=three,weight=7.5" in page


def test_a_recommendation_for_a_weight_counts_both_networks(tmp_path):
    chosen = suite(guidance=["label=three,weight=2", "label=three,weight=7.5"], grids=["karras", "log_snr"])
    (tmp_path / "mine.toml").write_text(
        'summary = "guided"\n[[study]]\ntargets = ["ring8"]\npaths = ["edm"]\ngrids = ["karras", "log_snr"]\n'
        'solvers = ["ddim", "dpmpp:order=2"]\nnfe = [16]\nseeds = [0]\npoints = 32\n'
        'metrics = ["endpoint", "tilted:part=moments"]\n'
        'guidance = ["label=three,weight=2", "label=three,weight=7.5"]\n'
    )
    run_suite(chosen, tmp_path / "results.sqlite", jobs=1)
    asked = ("recommend", "--suite", "mine.toml", "--store", "results.sqlite")
    found = json.loads(command(*asked, "--guidance", "7.5", "--steps", "8", "--json", cwd=tmp_path).stdout)
    assert (found["nfe"], found["guidance"]) == (16, 7.5)
    assert "guided with weight 7.5" in found["covers"]
    # Diffode counts calls of networks; a pipeline counts steps.
    assert "nfe=16" in found["programs"]["diffode"][0]
    assert "num_inference_steps=8" in found["programs"]["diffusers"][-1]
    standings = {}
    with Store(tmp_path / "results.sqlite") as store:
        for curve in curves(store.get(keyed_cells(chosen))):
            if curve.target == GUIDED:
                standings[curve.method] = curve.error[0]
    assert {one["method"]: one["error"] for one in found["ranking"]} == pytest.approx(standings, rel=1e-9)
    both = json.loads(command(*asked, "--nfe", "16", "--json", cwd=tmp_path).stdout)
    assert "several weights" in both["covers"]
    assert "weights that it has: 2, 7.5" in command(*asked, "--guidance", "3", "--steps", "8", cwd=tmp_path, code=2).stderr
    wrong = command("recommend", "--guidance", "3", "--steps", "8", "--field", "mine.py:f", cwd=tmp_path, code=2).stderr
    assert "guided where it is made" in wrong


def test_the_page_answers_for_the_weight_that_people_ask_about(tmp_path):
    from diffode.studies.page import page_of

    chosen = suite(guidance=["label=three,weight=2", "label=three,weight=7.5"])
    summary = run_suite(chosen, tmp_path / "results.sqlite", jobs=1)
    with Store(tmp_path / "results.sqlite") as store:
        results = store.get(summary.cells)
    page = page_of(chosen, results, curves(results), tmp_path, {}, "diffode bench guided")
    assert "<p class=answer>With 8 evaluations at weight 7.5 (NFE 16)" in page
    assert "4 runs: 2 solvers on 2 targets and 1 path," in page
