"""Codebooks of samplers: batches of problems, their derivatives and training, and their files."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from published_members import like, random_members

import diffode
from diffode import GaussianMixture, paths
from diffode.errors import ArgumentError, FileFormatError
from diffode.learned.universal import codebook
from diffode.learned.universal.batches import UNITS, Setting, batches
from diffode.learned.universal.codebook import Assignment, Recipe, train_codebook
from diffode.learned.universal.family import wide_mixture
from diffode.solvers.trained.bespoke import FILE
from diffode.solvers.trained.checkpoints import load_codebooks, save_codebooks
from diffode.tableau.stages import noise_function
from diffode.tensor_files import read_tensors, write_tensors


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


@pytest.mark.parametrize("unit", [0, 2, 5])
def test_a_member_runs_as_the_table_that_it_is(problems, unit):
    members = random_members(4)
    batch = small(range(12), nfe=4)[0]
    at = Assignment(torch.full((len(batch),), 1), torch.full((len(batch),), unit))
    together = codebook.run(batch, codebook.numbers_of(members, at, batch)[:, None], 4)
    for row in range(len(batch)):
        first, last = float(batch.first[row]), float(batch.last[row])
        table = replace(like(4), coefficients=members[1]).stages(first / UNITS[unit], last / UNITS[unit], batch.start.shape[2])
        alone = table.scaled(UNITS[unit]).run(noise_function(exact_field(batch, row)), batch.start[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-8, atol=1e-10)


def test_gradients_by_the_coefficients_are_those_of_differences(problems):
    few = [b for b in problems if b.start.shape[2] <= 3][:2]
    members = random_members(3)
    training = codebook.Training(few, [replace(like(3), coefficients=m) for m in members], Recipe(begin=3, share=1), 0)
    training.members = members.clone()
    count = training.count
    chosen = Assignment(torch.arange(count) % 3, torch.arange(count) % 4)
    features, gradients, curvatures = training.equations(chosen)

    def loss(moved):
        own = chosen.member == 1
        return float(codebook.log_errors(moved, chosen, few, training.recipe.floor)[own].mean())

    system = codebook.system_of(features, gradients, curvatures, chosen.member == 1)
    gradient = (system.gradient * system.size).reshape(members[1].shape)
    # The weights are cut off for the smallest errors, which changes the gradient by little, and the sum over starts by none.
    for place in ((0, 0), (0, 4), (1, 5), (2, 8), (0, 10), (3, 9)):
        step = 1e-6
        up, down = members.clone(), members.clone()
        up[1][place] += step
        down[1][place] -= step
        assert float(gradient[place]) == pytest.approx((loss(up) - loss(down)) / (2 * step), rel=2e-2, abs=1e-6)
    assert torch.linalg.eigvalsh(system.curvature).min() > -1e-12
    torch.testing.assert_close(system.curvature.diagonal(), torch.ones_like(system.size))


def test_the_candidates_that_cover_best_are_chosen():
    errors = torch.tensor([[0.0, 9.0, 9.0, 5.0], [1.0, 1.0, 9.0, 9.0], [9.0, 9.0, 0.0, 9.0], [4.0, 4.0, 4.0, 4.0]])
    assert codebook.covering(errors.double(), 3) == [3, 1, 2]


@pytest.fixture(scope="module")
def trained(problems):
    recipe = Recipe(members=6, begin=3, grow=3, every=2, rounds=5, share=1)
    return train_codebook(problems, codebook.published(3, like(3)), recipe, seed=1)


def test_a_codebook_is_better_than_every_published_sampler_tuned_on_mixtures_it_has_not_seen(trained):
    held_out = small(range(200, 216))
    hand_made = torch.stack([t.coefficients for t in codebook.published(3, like(3))])
    learned = codebook.tuned(torch.stack([t.coefficients for t in trained]), held_out, 3e-5)
    assert len(trained) == 6
    assert float(learned.mean()) < float(codebook.tuned(hand_made, held_out, 3e-5).mean()) - 0.3


@pytest.mark.slow
def test_training_again_gives_the_same_codebook(problems, trained):
    recipe = Recipe(members=6, begin=3, grow=3, every=2, rounds=5, share=1)
    heard = []
    again = train_codebook(problems, codebook.published(3, like(3)), recipe, seed=1, progress=heard.append)
    assert all(torch.equal(a.coefficients, b.coefficients) for a, b in zip(again, trained, strict=True))
    assert [step.stage for step in heard] == ["train 3 members", *4 * ["train 6 members"]]
    assert all(later.error <= earlier.error + 0.05 for earlier, later in itertools.pairwise(heard))


def test_files_of_codebooks_are_checked(tmp_path, trained):
    file = tmp_path / "book.safetensors"
    save_codebooks({3: trained}, {"script": "none"}, file)
    (again,) = load_codebooks(file).values()
    for one, other in zip(again, trained, strict=True):
        torch.testing.assert_close(one.coefficients, other.coefficients, rtol=1e-6, atol=1e-6)
        assert (one.first, one.last, one.most) == (other.first, other.last, other.most)
    with pytest.raises(FileFormatError, match="schema"):
        load_codebooks(FILE)
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


def test_training_looks_at_other_units(problems):
    """Problems far from what published samplers are made for move to units of their own, and gain by it."""
    recipe = Recipe(members=3, begin=3, rounds=4, share=1)
    training = codebook.Training(problems, codebook.published(3, like(3)), recipe, 0)
    assert len(set(training.best().unit.tolist())) == 1
    before = float(training.known.amin((0, 1)).mean())
    for _ in range(6):
        training.look_again()
    assert len(set(training.best().unit.tolist())) > 2
    assert float(training.known.amin((0, 1)).mean()) < before - 0.2


def test_clones_differ_from_their_parents(problems):
    recipe = Recipe(members=6, begin=3, grow=3, every=1, rounds=1, share=1)
    training = codebook.Training(problems, codebook.published(3, like(3)), recipe, 0)
    training.grow(training.best(), 3)
    assert len(training.members) == 6
    for new in training.members[3:]:
        assert all(float((new - old).abs().max()) > 1e-4 for old in training.members[:3])


def test_clones_are_moved_by_problems_of_their_own_parent_which_no_other_clone_has(problems):
    recipe = Recipe(members=8, begin=3, grow=5, every=1, rounds=1, share=1)
    training = codebook.Training(problems, codebook.published(3, like(3)), recipe, 0)
    chosen, moved = training.best(), []
    parents = training.members.clone()
    training.step = lambda assignment: moved.append(assignment.member.clone())
    training.grow(chosen, 5)
    assert len(moved) > 1
    assert all(torch.equal(one, moved[0]) for one in moved)
    for clone in range(3, 8):
        origin = [k for k in range(3) if torch.equal(training.members[clone], parents[k])]
        own = moved[0] == clone
        assert set(chosen.member[own].tolist()) <= set(origin)
        assert int(own.sum()) <= (int((chosen.member == origin[0]).sum()) + 1) // 2


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
