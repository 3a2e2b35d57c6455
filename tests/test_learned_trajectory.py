"""Training on whole trajectories, on images, from the universal table; wrong arguments."""

import pytest
import torch

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError, BudgetError, FieldError
from diffode.learned import limit, train_table
from diffode.learned.fitting import gauss_newton
from diffode.learned.fitting.parameters import Table
from diffode.learned.fitting.problems import problem_for, starts_for
from diffode.learned.fitting.trajectory import exact_trajectory
from diffode.learned.tables import training
from diffode.randomness import keyed
from diffode.tableau.stages import Stages, noise_function

EDM = paths.get("edm")


def test_the_gradient_counts_the_trajectory(monkeypatch):
    """Weights 1/|r| make the normal equations' gradient that of the loss itself: against central differences."""
    monkeypatch.setattr(gauss_newton, "LEAST_WEIGHT", 1e-9)
    field = diffode.exact_field("ring8", "edm")
    problem = problem_for(field, EDM, 2, 40, 3, 0.5)
    table = Table(Stages.of(solvers.get("ipndm:order=3").within(EDM, "karras", 4)).scaled(1 / field.scale))
    values = table.start
    gradient, _ = gauss_newton.normal_equations(table, values, [problem], "mean", 0.0, 4, torch.Generator().manual_seed(0))
    for k in range(len(values)):
        shift = torch.zeros_like(values)
        shift[k] = 1e-5
        both = [problem.error(table.stages(values + s * shift, problem.first, problem.last)) for s in (1, -1)]
        assert float(gradient[k]) == pytest.approx((both[0] - both[1]) / 2e-5, rel=2e-5, abs=1e-8)


def test_the_exact_trajectory_is_the_flow_of_a_gaussian():
    field = diffode.exact_field("gauss1d", "vp")
    x = field.prior(5, generator=0)
    flow = exact_trajectory(field, field.path, noise_function(field), x)
    for level in (90.0, 3.3, 0.4, 0.02):
        t = field.path.time_from_rho(level)
        exact = diffode.reference(field, x, field.path.t_max, t).x / field.path.alpha(t)
        state, rate = flow.at(level)
        torch.testing.assert_close(state, exact, rtol=1e-5, atol=1e-5)
        noise = level * noise_function(field)(exact, level)
        torch.testing.assert_close(rate, noise, rtol=2e-3, atol=2e-3)


def test_training_on_the_trajectory_brings_the_states_in_between_near_it():
    field = diffode.exact_field("ring8", "edm")
    found = [train_table("ring8", 5, trajectory=share, points=256, start="ddim @ log_snr") for share in (0.0, 0.3)]
    fresh = problem_for(field, EDM, 2, 300, 99, 1.0)
    ends = problem_for(field, EDM, 2, 300, 99)
    between = [fresh.error(t.content.stages) - ends.error(t.content.stages) for t in found]
    assert between[1] < between[0] / 2
    assert ends.error(found[1].content.stages) < found[1].content.start_error / 2
    # What is reported is the error of the end alone, on the starts that are kept for testing.
    test = problem_for(field, EDM, 2, 192, keyed(0, "train_table", "test"))
    assert found[1].content.held_out_error == pytest.approx(test.error(found[1].content.stages), rel=1e-9)


def test_first_steps_count_the_trajectory_on_a_part_of_the_starts(monkeypatch):
    """Six candidates are looked at so; then the end alone counts, on all starts; what is held out is always the end."""
    seen, original = [], training.fit

    def noting(table, problems, held_out, **options):
        seen.append((problems[0], held_out[0]))
        return original(table, problems, held_out, **options)

    monkeypatch.setattr(training, "fit", noting)
    train_table("ring8", 4, points=1000)
    looks, rest = seen[:6], seen[6:]
    assert rest
    assert all(problem.trajectory and problem.share == 1.0 and len(problem.start) == 250 for problem, _ in looks)
    assert all(problem.trajectory is None and len(problem.start) == 1000 for problem, _ in rest)
    assert all(held.trajectory is None and len(held.start) == 500 for _, held in seen)
    # PyTorch fills the last draws of a tensor in another order.
    assert all(torch.isin(problem.start[:200], rest[0][0].start).all() for problem, _ in looks)
    assert not any(torch.isin(held.start, problem.start).any() for problem, held in seen)


def test_the_end_of_an_exact_trajectory_is_that_of_the_flow():
    field = diffode.exact_field("ring8", "vp:t_min=0.3")
    ends = [problem_for(field, field.path, (2,), 20, 5, share).end for share in (0.0, 0.5)]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-4 * field.scale)


def test_how_many_starts_are_taken_is_a_rule_of_counts(monkeypatch):
    """Fewer for more evaluations, coordinates and components, between bounds; the clock is not asked."""
    monkeypatch.setattr(limit.time, "perf_counter", None)

    def count(target, nfe, longer=1.0):
        field = diffode.exact_field(target, "edm")
        return starts_for(field, field.dim, nfe, longer)

    assert count("ring8", 6) == 4096
    assert count("digits-empirical", 6) == 192
    # 10 components in 64 dimensions at NFE 6, four directions: 1.2e6/(6 * 7)/sqrt(640).
    assert count("digits-gmm10", 6) == 1129
    assert count("digits-gmm10", 6) > count("digits-gmm10", 12) > count("images-mfa", 12)
    assert count("digits-gmm10", 6, 3.0) == 3388
    own = diffode.Field.from_noise(lambda x, t: x, EDM)
    assert [starts_for(own, dim, 6) for dim in (2, 3072)] == [894, 192]


def test_fields_on_images_are_trained_in_their_own_shape():
    """The same field on rows (4,) and on rows (2, 2) gives the same table."""
    exact = diffode.exact_field(diffode.GaussianMixture([0.5, 0.5], [[1.0] * 4, [-1.0] * 4], [[0.1] * 4] * 2), "edm")

    def denoised(x, t):
        assert x.shape[1:] == (2, 2)
        return exact.denoised(x.flatten(1), t).reshape(x.shape)

    images = diffode.Field.from_denoised(denoised, EDM, scale=exact.scale)
    tables = [train_table(f, 3, dim=d, points=64, start="ddim @ karras") for f, d in ((exact, None), (images, (2, 2)))]
    assert tables[1].content.held_out_error == pytest.approx(tables[0].content.held_out_error, rel=0.05)
    with pytest.raises(FieldError, match=r"lambda x, t: net\(x.float"):
        train_table(diffode.Field.from_denoised(torch.nn.Linear(4, 4), EDM), 3, dim=4, points=64)


def test_wrong_arguments_of_training_are_named():
    field = diffode.exact_field("ring8", "edm")
    for wrong, match in (
        ({"dim": 3}, "dim must be"), ({"seed": -1}, "seed must be"), ({"seed": 1.0}, "seed must be"),
        ({"trajectory": -0.1}, "trajectory must be"), ({"trajectory": True}, "trajectory must be"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            train_table(field, 4, points=64, **wrong)
    with pytest.raises(BudgetError, match="no universal table for nfe=40"):
        train_table(field, 40, points=64, start="universal")
    assert train_table(field, 4, points=64, start="universal").content.begun_from == "universal"
