"""The choice of a member of the universal codebooks for a field: in unit and dimension too, judged on other starts."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from commandline import diffode as command
from published_members import like, random_members

import diffode
from diffode import Field, GaussianMixture, paths, solvers
from diffode.errors import ArgumentError, BudgetError, NumericalError, TrainedElsewhereWarning
from diffode.learned import request, tune_universal
from diffode.learned.fitting.problems import problem_for
from diffode.learned.tables import tuning
from diffode.learned.tables.published import candidates
from diffode.learned.universal import choice
from diffode.learned.universal.batches import UNITS
from diffode.solvers.trained.bespoke import shipped_members


def test_the_shipped_codebooks_are_whole():
    books = shipped_members()
    assert sorted(books) == list(range(3, 13))
    for nfe, book in books.items():
        assert len({tuple(t.coefficients.flatten().tolist()) for t in book}) == len(book) >= 40
        assert all(t.nfe == nfe for t in book)


@functools.cache
def of_few_directions():
    """What is chosen for a Gaussian of few directions in a large space, which takes longest."""
    field = diffode.exact_field("gauss1024-lowrank", "edm")
    field.nfe = 7
    found = tune_universal(field, 4, points=16)
    assert field.nfe == 7, "tuning is not counted"
    return found


# "line16" takes the longest, between targets of fewer dimensions and of more.
@pytest.mark.parametrize(
    "target", ["moons", "gmm40-50d", *(pytest.param(name, marks=pytest.mark.slow) for name in ("line16", "gauss1024-lowrank"))]
)
def test_a_member_for_a_field_beats_the_one_table_for_all(target):
    nfe = 4 if target == "gauss1024-lowrank" else 6
    found = of_few_directions() if target == "gauss1024-lowrank" else tune_universal(target, nfe, points=64)
    assert found.errors.after < found.errors.before
    assert found.solver.budgets == (nfe,)


def test_rescaling_data_and_noise_together_changes_nothing():
    found = []
    for unit in (1.0, 4.0):
        target = GaussianMixture([0.4, 0.6], [[0.0, unit], [2 * unit, 0.0]], [0.01 * unit**2, 0.03 * unit**2])
        path = paths.get(f"edm:sigma_min={0.002 * unit},sigma_max={80 * unit}")
        found.append(tune_universal(diffode.exact_field(target, path), 5, points=32))
    assert found[0].solver.member == found[1].solver.member
    assert found[1].solver.scale == pytest.approx(4 * found[0].solver.scale)
    assert found[1].errors.after == pytest.approx(found[0].errors.after, rel=1e-4)


def test_fields_of_ones_own_are_tuned_for_images_and_without_gradients_too():
    exact = diffode.exact_field("ring8", "vp")
    own = Field.from_noise(
        lambda x, t: torch.from_numpy(exact.predict("noise", x.flatten(1), t).numpy()).reshape(x.shape),
        exact.path,
        scale=exact.scale,
    )
    heard = []
    found = tune_universal(own, 4, dim=(1, 2), points=16, progress=heard.append)
    known = tune_universal(exact, 4, points=16)
    assert found.solver == known.solver
    assert heard[-1].number == heard[-1].total == len(heard) == found.history.steps
    x = own.path.prior((3, 1, 2), generator=0)
    assert diffode.solve(own, x, solver=found.solver, nfe=4).nfe == 4


def test_what_is_chosen_is_the_best_in_unit_and_dimension_too():
    """A Gaussian of few directions in a large space: neither the scale nor the dimension is what matters there."""
    field = diffode.exact_field("gauss1024-lowrank", "edm")
    found = of_few_directions()
    assert found.solver.dim < 1024
    assert found.solver.scale > 2 * field.scale
    x = field.prior(64, generator=9)
    exact = diffode.reference(field, x, 80.0, 0.002).x

    def error(solver):
        return float((diffode.solve(field, x, solver=solver, nfe=4).x - exact).norm(dim=1).mean())

    assert error(found.solver) < 0.5 * error(replace(found.solver, dim=1024))
    assert error(found.solver) < 0.5 * error(replace(found.solver, scale=field.scale))


def test_the_choice_is_made_on_all_starts_and_judged_on_others(monkeypatch):
    """gmm40-50d: an error that a few rows make, so that 48 starts choose otherwise than 256."""
    made = []
    original = request.problem_for

    def noting(*arguments, **options):
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(request, "problem_for", noting)
    found = tune_universal("gmm40-50d", 4, points=200)
    problem, held_out = made
    assert not torch.equal(problem.start, held_out.start)
    book, solver = shipped_members()[4], found.solver
    chosen = choice.Choice(solver.member, solver.scale / problem.unit, solver.dim)
    assert found.errors.after == pytest.approx(held_out.error(choice.table_of(book, held_out, chosen)))
    # No other member is better on the same 200 starts in the same unit and dimension.
    others = [chosen._replace(member=k) for k in range(len(book))]
    finalists = choice.ranked(book, replace(problem, start=problem.start[:48], end=problem.end[:48]), others)[:5]
    assert min(problem.error(choice.table_of(book, problem, one)) for _, one in finalists) >= (
        problem.error(choice.table_of(book, problem, chosen)) * (1 - 1e-9)
    )


def test_members_are_only_tried_between_levels_they_know():
    table = replace(like(4), coefficients=random_members(4)[0])
    for first, last, inside in ((80.0, 0.002, True), (1.0, 0.002, False), (80.0, 0.05, False), (900.0, 0.002, False)):
        assert table.covers(first, last) is inside
    field = diffode.exact_field("ring8", "edm:sigma_min=0.05")
    found = tune_universal(field, 4, points=16)
    assert found.solver.scale >= 0.05 / 0.04 * (1 - 1e-9)


def test_choices_lie_between_the_levels_that_members_know():
    field = diffode.exact_field("ring8", "edm")
    problem = problem_for(field, field.path, (2,), 8, 0, differentiated=False)
    book = [replace(like(4), coefficients=random_members(4)[0])]
    for first, last, least, most in ((80.0, 0.03, 0.03 / 0.04, 40.0), (3.0, 0.001, 0.1, 1.5), (80.0, 0.002, 0.1, 40.0)):
        units = {one.unit for one in choice.choices(book, replace(problem, first=first, last=last), (2,))}
        assert units == {unit for unit in UNITS if least <= unit <= most}


def test_dimensions_in_between_are_tried():
    """A power-law spectrum in 64 dimensions is like neither 64 equal directions nor one."""
    assert tune_universal("gauss64-powerlaw", 6, points=64).solver.dim not in (1, 64)


def test_training_begins_from_members_too():
    field = diffode.exact_field("moons", "edm")
    problem = problem_for(field, field.path, (2,), 64, 0)
    found = candidates(problem, field.path, 6, None)
    assert found[0].name.startswith("universal:member=")
    end = found[0].stages.scaled(field.scale).run(problem.noise, problem.start)
    assert float((end - problem.end).norm(dim=1).mean()) / field.scale == pytest.approx(found[0].error)


def test_a_choice_is_for_one_number_of_evaluations():
    found = tune_universal("ring8", 6, points=16)
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    assert "nfe=6" in found.solver.spec
    assert solvers.get(found.solver.spec) == found.solver
    with pytest.warns(TrainedElsewhereWarning, match="not trained for nfe=10; it runs with 6"):
        assert diffode.solve(field, x, solver=found.solver, nfe=10).nfe == 6
    with pytest.raises(BudgetError, match="none fits nfe=5"):
        diffode.solve(field, x, solver=found.solver, nfe=5)


def test_members_are_named_by_specs():
    solver = solvers.get("universal:member=2,scale=1.5,dim=3")
    assert solvers.get(solver.spec) == solver
    assert solver.content() != solvers.get("universal").content() != solvers.get("universal:member=3").content()
    wide = diffode.exact_field("gauss1024-lowrank", "edm")
    assert diffode.solve(wide, wide.prior(2, generator=0), solver="universal:member=0", nfe=6).nfe == 6
    for wrong, words in (
        ("member=-1", "member must be"), ("member=true", "member must be"), ("member=500", "members 0 to"),
        ("nfe=40", "nfe must be"), ("scale=a", "scale must be"), ("dim=0", "dim must be"), ("member=2,nfe=2", "nfe must be"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            solvers.get(f"universal:{wrong}")


def test_what_cannot_be_tuned_says_why():
    ring = diffode.exact_field("ring8", "edm")
    for nfe in (2, 40):
        with pytest.raises(BudgetError, match=f"3, 4, 5.*not for {nfe}"):
            tune_universal(ring, nfe)
    for points in (3, 10**9, 64.0):
        with pytest.raises(ArgumentError, match="points must be an integer from 8 to"):
            tune_universal(ring, 4, points=points)
    with pytest.raises(ArgumentError, match="progress must be a function"):
        tune_universal(ring, 4, progress=1)
    for dim in (2.0, "2", torch.tensor(2), {2}, 0):
        with pytest.raises(ArgumentError, match="dim must be"):
            tune_universal(ring, 4, dim=dim, points=8)
    with pytest.raises(ArgumentError, match=r"first noise level is 0\.16 of the data's scale"):
        tune_universal(diffode.exact_field("stiff-pair", "edm"), 4, points=8)
    with pytest.raises(ArgumentError, match="t_max and t_min inside"):
        tune_universal(diffode.exact_field("ring8", "rectified_flow:t_max=1"), 4, points=8)
    lost = Field.from_noise(lambda x, t: x / t + (1e3 / t) ** 9 * (t < 60), paths.get("edm"), scale=1.0)
    with pytest.raises(NumericalError, match=r"reference could not be integrated from t=80 to t=0\.002: "):
        tune_universal(lost, 4, dim=2, points=8)


def test_members_that_all_overflow_are_an_error(monkeypatch):
    numbers = random_members(4)[0].clone()
    numbers[:, : 4 + 10] *= 1e150
    monkeypatch.setattr(tuning, "shipped_members", lambda: {4: [replace(like(4), coefficients=numbers)] * 2})
    assert tune_universal("ring8", 4, points=8).solver.member is None, "the single table does not overflow"
    monkeypatch.setattr(tuning, "shipped_tables", dict)
    with pytest.raises(NumericalError, match="no universal member gives finite states with nfe=4"):
        tune_universal("ring8", 4, points=8)


def test_the_command_prints_the_solver(tmp_path):
    shown = command("train", "universal", "--target", "ring8", "--nfe", "3", "--points", "16", "--json", cwd=tmp_path)
    facts = json.loads(shown.stdout)
    assert facts["held-out error"] < facts["its error"]
    sampled = command("sample", "ring8", "--solver", facts["solver"], "--nfe", "3", "--json", cwd=tmp_path)
    assert json.loads(sampled.stdout)["nfe"] == 3
    assert not list(tmp_path.glob("*.safetensors"))
    wrong = command("train", "universal:x=1", "--target", "ring8", "--nfe", "3", cwd=tmp_path, code=2).stderr
    assert "does not take" in wrong
    refused = command("train", "universal", "--target", "ring8", "--nfe", "3", "--force", cwd=tmp_path, code=2).stderr
    assert "universal writes no file unless --output names one" in refused
    how = ("--points", "8", "--output", "a.safetensors", "--json")
    facts = json.loads(command("train", "universal", "--target", "ring8", "--nfe", "3", *how, cwd=tmp_path).stdout)
    field = diffode.exact_field("ring8", "edm")
    x = field.path.prior((4, 2), generator=0)
    table = solvers.get(facts["file"].replace("a.safetensors", str(tmp_path / "a.safetensors")))
    ends = [diffode.solve(field, x, solver=solver, nfe=3).x for solver in (facts["solver"], table)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
