"""Codebooks of samplers: batches of problems, their derivatives and training, and the choice of a member for a field."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from commandline import diffode as command

import diffode
from diffode import Field, GaussianMixture, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, NumericalError, TrainedElsewhereWarning
from diffode.learned import choice, codebook, tune_universal, tuning
from diffode.learned.batches import UNITS, Setting, batches
from diffode.learned.codebook import Assignment, Recipe, train_codebook
from diffode.learned.family import wide_mixture
from diffode.learned.problems import problem_for
from diffode.learned.published import candidates
from diffode.solvers.bespoke import shipped_members
from diffode.solvers.checkpoints import load_codebooks, save_codebooks
from diffode.solvers.ranged import Ranged
from diffode.tableau.stages import count_of, noise_function
from diffode.tensor_files import read_tensors, write_tensors

FIRST, LAST = (2.0, 800.0), (3e-6, 0.04)


def like(nfe):
    return Ranged(nfe, FIRST, LAST, 256, torch.zeros(9, count_of(nfe), dtype=torch.float64))


def small(seeds, nfe=3, most=8):
    settings = [Setting(wide_mixture(s), 80.0 / (1 + s % 5), 0.002, s) for s in seeds]
    return batches([one for one in settings if one.parts.means.shape[1] <= most], lambda dim: 8, like(nfe))


def exact_field(batch, row):
    """The same problem through the library's own mixture and path."""
    real = batch.log_weights[row].isfinite()
    target = GaussianMixture(batch.log_weights[row, real].exp(), batch.means[row, real], batch.variances[row, real])
    path = paths.EDM(t_min=float(batch.last[row]), t_max=float(batch.first[row]))
    return diffode.exact_field(target, path)


@pytest.fixture(scope="module")
def problems():
    return small(range(40))


def test_a_batch_is_the_mixtures_it_is_made_of(problems):
    assert sum(map(len, problems)) == len([s for s in range(40) if wide_mixture(s).means.shape[1] <= 8])
    assert any(bool(torch.isinf(b.log_weights).any()) for b in problems), "some are padded with components of no weight"
    for batch in problems:
        for row in {0, len(batch) - 1}:
            noise = noise_function(exact_field(batch, row))
            for level in (50.0, 0.7, 0.01):
                z = batch.means[row, :1] + level * torch.randn(5, batch.means.shape[2], dtype=torch.float64)
                together = batch.noise(z.expand(len(batch), *z.shape), torch.full((len(batch), 1), level, dtype=torch.float64))
                torch.testing.assert_close(together[row], noise(z, level), rtol=1e-9, atol=1e-11)


def test_exact_ends_are_those_of_the_reference(problems):
    for batch in problems[:4]:
        field = exact_field(batch, 0)
        known = diffode.reference(field, batch.start[0], field.path.t_max, field.path.t_min, 1e-9).x
        # The method's own error, on mixtures of widths down to 1/100: ten times below the floor of the training.
        assert float((batch.end[0] - known).norm(dim=1).mean()) < 3e-6


def random_members(nfe, count=3):
    """Published samplers, moved a little in every coefficient."""
    chosen = codebook.published(nfe, like(nfe))[:: max(1, len(codebook.published(nfe, like(nfe))) // count)][:count]
    generator = torch.Generator().manual_seed(3)
    moved = [t.coefficients + 1e-3 * torch.randn(t.coefficients.shape, generator=generator).double() for t in chosen]
    return torch.stack(moved)


@pytest.mark.parametrize("unit", [0, 2, 5])
def test_a_member_runs_as_the_table_that_it_is(problems, unit):
    members = random_members(4)
    batch = small(range(12), nfe=4)[0]
    at = Assignment(torch.full((len(batch),), 1), torch.full((len(batch),), unit))
    together = codebook.run(batch, codebook._numbers(members, at, batch)[:, None], 4)
    for row in range(len(batch)):
        first, last = float(batch.first[row]), float(batch.last[row])
        table = replace(like(4), coefficients=members[1]).stages(first / UNITS[unit], last / UNITS[unit], batch.start.shape[2])
        alone = table.scaled(UNITS[unit]).run(noise_function(exact_field(batch, row)), batch.start[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-8, atol=1e-10)


def test_gradients_by_the_coefficients_are_those_of_differences(problems):
    few = [b for b in problems if b.start.shape[2] <= 3][:2]
    members = random_members(3)
    training = codebook._Training(few, [replace(like(3), coefficients=m) for m in members], Recipe(begin=3, share=1), 0)
    training.members = members.clone()
    count = training.count
    chosen = Assignment(torch.arange(count) % 3, torch.arange(count) % 4)
    features, gradients, curvatures = training.equations(chosen)

    def loss(moved):
        own = chosen.member == 1
        return float(codebook.log_errors(moved, chosen, few, training.recipe.floor)[own].mean())

    gradient, curvature, size = codebook._system(features, gradients, curvatures, chosen.member == 1)
    gradient = (gradient * size).reshape(members[1].shape)
    # The weights are cut off for the smallest errors, which changes the gradient by little, and the sum over starts by none.
    for place in ((0, 0), (0, 4), (1, 5), (2, 8), (0, 10), (3, 9)):
        step = 1e-6
        up, down = members.clone(), members.clone()
        up[1][place] += step
        down[1][place] -= step
        assert float(gradient[place]) == pytest.approx((loss(up) - loss(down)) / (2 * step), rel=2e-2, abs=1e-6)
    assert torch.linalg.eigvalsh(curvature).min() > -1e-12
    torch.testing.assert_close(curvature.diagonal(), torch.ones_like(size))


def test_the_candidates_that_cover_best_are_chosen():
    errors = torch.tensor([[0.0, 9.0, 9.0, 5.0], [1.0, 1.0, 9.0, 9.0], [9.0, 9.0, 0.0, 9.0], [4.0, 4.0, 4.0, 4.0]])
    assert codebook._cover(errors.double(), 3) == [3, 1, 2]


@pytest.fixture(scope="module")
def trained(problems):
    recipe = Recipe(members=6, begin=3, grow=3, every=2, rounds=5, share=1)
    return train_codebook(problems, codebook.published(3, like(3)), recipe, seed=1)


def test_a_codebook_is_better_than_every_published_sampler_tuned_on_mixtures_it_has_not_seen(trained):
    held_out = small(range(200, 240))
    hand_made = torch.stack([t.coefficients for t in codebook.published(3, like(3))])
    learned = codebook.tuned(torch.stack([t.coefficients for t in trained]), held_out, 3e-5)
    assert len(trained) == 6
    assert float(learned.mean()) < float(codebook.tuned(hand_made, held_out, 3e-5).mean()) - 0.3


def test_training_again_gives_the_same_codebook(problems, trained):
    recipe = Recipe(members=6, begin=3, grow=3, every=2, rounds=5, share=1)
    heard = []
    again = train_codebook(problems, codebook.published(3, like(3)), recipe, seed=1, progress=lambda *row: heard.append(row))
    assert all(torch.equal(a.coefficients, b.coefficients) for a, b in zip(again, trained, strict=True))
    assert [members for _, members, _ in heard] == [3, 6, 6, 6, 6]
    assert all(later <= earlier + 0.05 for (*_, earlier), (*_, later) in itertools.pairwise(heard))


def test_files_of_codebooks_are_checked(tmp_path, trained):
    file = tmp_path / "book.safetensors"
    save_codebooks({3: trained}, {"script": "none"}, file)
    (again,) = load_codebooks(file).values()
    for one, other in zip(again, trained, strict=True):
        torch.testing.assert_close(one.coefficients, other.coefficients, rtol=1e-6, atol=1e-6)
        assert (one.first, one.last, one.most) == (other.first, other.last, other.most)
    with pytest.raises(FileFormatError, match="schema"):
        load_codebooks(solvers.bespoke.FILE)
    with pytest.raises(ArgumentError, match="same ranges"):
        save_codebooks({3: [*trained[:1], replace(trained[0], most=64)]}, {}, file)
    for empty in ({}, {3: []}):
        with pytest.raises(ArgumentError, match="no table to write"):
            save_codebooks(empty, {}, file)
    description, tensors = read_tensors(file, "diffode-codebooks-1")
    for wrong in (
        {"nfe_3": tensors["nfe_3"].double()}, {"nfe_3": tensors["nfe_3"][0]}, {"nfe_3": tensors["nfe_3"][:0]},
        {"nfe_4": tensors["nfe_3"]}, {"nfe_3": tensors["nfe_3"][:, :8].contiguous()}, {"nfe_3": tensors["nfe_3"] * math.nan},
        {},
    ):  # fmt: skip
        write_tensors(tmp_path / "wrong.safetensors", wrong, description)
        with pytest.raises(FileFormatError):
            load_codebooks(tmp_path / "wrong.safetensors")
    content = file.read_bytes()
    for spoilt in (content[: len(content) // 2], content[:8] + b"x" + content[9:], b""):
        file.write_bytes(spoilt)
        with pytest.raises(FileFormatError):
            load_codebooks(file)


def test_the_shipped_codebooks_are_whole():
    books = shipped_members()
    assert sorted(books) == list(range(3, 13))
    for nfe, book in books.items():
        assert len({tuple(t.coefficients.flatten().tolist()) for t in book}) == len(book) >= 40
        assert all(t.nfe == nfe for t in book)


@pytest.mark.parametrize("target", ["moons", "line16", "gauss1024-lowrank", "gmm40-50d"])
def test_a_member_for_a_field_beats_the_one_table_for_all(target):
    found = tune_universal(target, 6, points=16 if target == "gauss1024-lowrank" else 128)
    assert found.held_out_error < found.untuned_error
    assert found.solver.budgets == (6,)


def test_rescaling_data_and_noise_together_changes_nothing():
    found = []
    for unit in (1.0, 4.0):
        target = GaussianMixture([0.4, 0.6], [[0.0, unit], [2 * unit, 0.0]], [0.01 * unit**2, 0.03 * unit**2])
        path = paths.get(f"edm:sigma_min={0.002 * unit},sigma_max={80 * unit}")
        found.append(tune_universal(diffode.exact_field(target, path), 5, points=32))
    assert found[0].solver.member == found[1].solver.member
    assert found[1].solver.scale == pytest.approx(4 * found[0].solver.scale)
    assert found[1].held_out_error == pytest.approx(found[0].held_out_error, rel=1e-4)


def test_fields_of_ones_own_are_tuned_for_images_and_without_gradients_too():
    exact = diffode.exact_field("ring8", "vp")
    own = Field.from_noise(
        lambda x, t: torch.from_numpy(exact.predict("noise", x.flatten(1), t).numpy()).reshape(x.shape),
        exact.path,
        scale=exact.scale,
    )
    heard = []
    found = tune_universal(own, 4, dim=(1, 2), points=16, progress=lambda *at: heard.append(at))
    known = tune_universal(exact, 4, points=16)
    assert found.solver == known.solver
    assert heard[-1][0] == heard[-1][1] == len(heard)
    x = own.path.prior((3, 1, 2), generator=0)
    assert diffode.solve(own, x, solver=found.solver, nfe=4).nfe == 4


def test_what_is_chosen_is_the_best_in_unit_and_dimension_too():
    """A Gaussian of few directions in a large space: neither the scale nor the dimension is what matters there."""
    field = diffode.exact_field("gauss1024-lowrank", "edm")
    field.nfe = 7
    found = tune_universal(field, 6, points=16)
    assert field.nfe == 7, "tuning is not counted"
    assert found.solver.dim < 1024
    assert found.solver.scale > 2 * field.scale
    x = field.prior(64, generator=9)
    exact = diffode.reference(field, x, 80.0, 0.002).x

    def error(solver):
        return float((diffode.solve(field, x, solver=solver, nfe=6).x - exact).norm(dim=1).mean())

    assert error(found.solver) < 0.5 * error(replace(found.solver, dim=1024))
    assert error(found.solver) < 0.5 * error(replace(found.solver, scale=field.scale))


def test_the_choice_is_made_on_all_starts_and_judged_on_others(monkeypatch):
    """gmm40-50d: an error that a few rows make, so that 48 starts choose otherwise than 256."""
    made = []
    original = tuning.problem_for

    def noting(*arguments, **options):
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(tuning, "problem_for", noting)
    found = tune_universal("gmm40-50d", 4, points=200)
    problem, held_out = made
    assert not torch.equal(problem.start, held_out.start)
    book, solver = shipped_members()[4], found.solver
    chosen = choice.Choice(solver.member, solver.scale / problem.unit, solver.dim)
    assert found.held_out_error == pytest.approx(held_out.error(choice.table_of(book, held_out, chosen)))
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


def test_training_looks_at_other_units(problems):
    """Problems far from what published samplers are made for move to units of their own, and gain by it."""
    recipe = Recipe(members=3, begin=3, rounds=4, share=1)
    training = codebook._Training(problems, codebook.published(3, like(3)), recipe, 0)
    assert len(set(training.best().unit.tolist())) == 1
    before = float(training.known.amin((0, 1)).mean())
    for _ in range(6):
        training.look_again()
    assert len(set(training.best().unit.tolist())) > 2
    assert float(training.known.amin((0, 1)).mean()) < before - 0.2


def test_clones_differ_from_their_parents(problems):
    recipe = Recipe(members=6, begin=3, grow=3, every=1, rounds=1, share=1)
    training = codebook._Training(problems, codebook.published(3, like(3)), recipe, 0)
    training.grow(training.best(), 3)
    assert len(training.members) == 6
    for new in training.members[3:]:
        assert all(float((new - old).abs().max()) > 1e-4 for old in training.members[:3])


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
    with pytest.raises(NumericalError, match="reference could not be integrated"):
        tune_universal(lost, 4, dim=2, points=8)


def test_members_that_all_overflow_are_an_error(monkeypatch):
    numbers = random_members(4)[0].clone()
    numbers[:, : 4 + 10] *= 1e150
    monkeypatch.setattr(tuning, "shipped_members", lambda: {4: [replace(like(4), coefficients=numbers)] * 2})
    with pytest.raises(NumericalError, match="no universal member gives finite states with nfe=4"):
        tune_universal("ring8", 4, points=8)


def test_wrong_arguments_of_a_codebooks_training_are_named(problems):
    origins, recipe = codebook.published(3, like(3)), Recipe(members=2, begin=1, grow=1, rounds=1)
    for wrong, match in (
        ((problems, [], recipe), "at least one of each"), (([], origins, recipe), "at least one of each"),
        ((problems, [*origins, *codebook.published(4, like(4))], recipe), "one number of evaluations"),
        ((problems, [origins[0], replace(origins[1], most=3)], recipe), "the same ranges of levels and dimensions"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            train_codebook(*wrong)
    with pytest.raises(ArgumentError, match="seed must be"):
        train_codebook(problems, origins, recipe, seed=-1)
    for wrong in (
        {"members": 0},
        {"every": 0},
        {"rounds": 1.0},
        {"share": True},
        {"floor": -1.0},
        {"floor": math.nan},
        {"floor": "x"},
    ):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} of a recipe must be"):
            Recipe(**wrong)


def test_the_command_prints_the_solver(tmp_path):
    shown = command("train", "universal", "--target", "ring8", "--nfe", "5", "--points", "32", "--json", cwd=tmp_path)
    facts = json.loads(shown.stdout)
    assert facts["held-out error"] < facts["universal, untuned"]
    sampled = command("sample", "ring8", "--solver", facts["solver"], "--nfe", "5", "--json", cwd=tmp_path)
    assert json.loads(sampled.stdout)["nfe"] == 5
    assert not list(tmp_path.glob("*.safetensors"))
    wrong = command("train", "universal:x=1", "--target", "ring8", "--nfe", "5", cwd=tmp_path, code=2).stderr
    assert "does not take" in wrong
    for option in (("--output", "a.safetensors"), ("--force",)):
        refused = command("train", "universal", "--target", "ring8", "--nfe", "5", *option, cwd=tmp_path, code=2).stderr
        assert "writes no file: leave --output and --force out" in refused
