"""Metrics: closed forms they must reproduce, floors, the split of an error."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given

import diffode
from diffode import metrics, solvers, testing
from diffode.errors import ArgumentError
from diffode.metrics import Measurement, Outcome, error_split, gaussian_split, gaussian_w2, measure


def outcome(target="ring8", spec="dpmpp:order=2", steps=8, points=256, path="edm", keep="all"):
    field = diffode.exact_field(target, path)
    x = field.prior(points, generator=1)
    return Outcome(field, x, diffode.solve(field, x, solver=spec, grid="karras", steps=steps, keep=keep), tolerance=1e-9)


def ending_at(run, x):
    """The same run, as if it had ended at other points."""
    return replace(run, solution=replace(run.solution, x=x, states=None))


def test_w2_of_gaussians():
    """Commuting covariances: |m - m'|^2 + sum (sqrt l - sqrt l')^2; and a rotated pair worked out by hand."""
    m, n = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 0.0], dtype=torch.float64)
    a, b = torch.diag(torch.tensor([4.0, 9.0])).double(), torch.diag(torch.tensor([1.0, 1.0])).double()
    assert gaussian_w2(m, a, n, b) == pytest.approx(math.sqrt(5 + 1 + 4))
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert gaussian_w2(n, a, n, turn @ a @ turn.T) == pytest.approx(math.sqrt(2) * 1.0)


def test_the_end_point_error_is_the_distance_to_the_exact_flow():
    run = outcome("gauss2d")
    expected = (run.solution.x - run.reference.x).norm(dim=1)
    assert measure("endpoint", run).value == pytest.approx(float(expected.mean()))
    assert measure("endpoint:reduction=max", run).value == pytest.approx(float(expected.max()))
    assert measure("endpoint", run).floor < 1e-12


@pytest.mark.parametrize("metric", ["endpoint", "trajectory"])
def test_a_run_that_drew_noise_has_no_coupled_error(metric):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(8, generator=1)
    solution = diffode.solve(field, x, solver="ddpm", grid="karras", steps=3, keep="all", generator=0)
    with pytest.raises(ArgumentError, match="does not follow since it draws noise"):
        measure(metric, Outcome(field, x, solution, tolerance=1e-9))
    assert measure("moments", Outcome(field, x, solution, tolerance=1e-9)).value > 0


def test_the_trajectory_error_ends_with_the_end_point_error():
    """Averaged over one step it is the end-point error."""
    run = outcome(steps=1, spec="euler")
    assert measure("trajectory", run).value == pytest.approx(measure("endpoint", run).value, rel=1e-6)
    with pytest.raises(ArgumentError, match='keep="all"'):
        measure("trajectory", outcome(keep="last"))


@pytest.mark.parametrize("spec", ["ddim", "edm_heun", "dpmpp:order=2"])
@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
def test_the_sampled_split_agrees_with_the_exact_one_on_a_gaussian(spec, path):
    """On a Gaussian all couplings are optimal, so root-mean-square distances are W2 up to sampling, 2 % at 4,000 x 64."""
    target = diffode.targets.get("gauss64-powerlaw")
    field = diffode.exact_field(target, path)
    table = solvers.get(spec).tableau(field.path, "karras", 8)
    exact = gaussian_split(table, 0.0, target.variance)
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = error_split(field, table, z)
    for part in exact._fields:
        assert getattr(sampled, part) == pytest.approx(getattr(exact, part), rel=0.03, abs=1e-7), part
    assert exact.total <= exact.prior + exact.truncation + exact.discretisation + 1e-12


def test_the_prior_error_of_a_gaussian_by_hand():
    """N(m, l) on EDM: the flow from N(0, T^2) arrives with mean m - m sqrt(l'/(l + T^2)) and variance T^2 l'/(l + T^2)."""
    m, variance, first, last = 2.0, 0.5, 80.0, 0.002
    table = solvers.get("ddim").tableau(diffode.paths.get("edm"), "karras", 4)
    gain = math.sqrt((variance + last**2) / (variance + first**2))
    expected = math.hypot(m * gain, math.sqrt(variance + last**2) - gain * first)
    assert gaussian_split(table, m, torch.tensor([variance])).prior == pytest.approx(expected, rel=1e-9)
    truncation = math.sqrt(variance + last**2) - math.sqrt(variance)
    assert gaussian_split(table, m, torch.tensor([variance])).truncation == pytest.approx(truncation, rel=1e-6)


def test_push_forward_divergence_of_a_gaussian_by_hand():
    """An affine run of gain G maps N(m, l + T^2) to a Gaussian: KL = (r - 1 - log r)/2 + shift^2/(2 l')."""
    run = outcome("gauss1d", "ddim", steps=10, points=4000)
    exact = run.solution.tableau.propagate(0.5, [0.64])
    last = 0.64 + 0.002**2
    ratio = float(exact.variance) / last
    expected = (ratio - 1 - math.log(ratio) + (float(exact.mean) - 0.5) ** 2 / last) / 2
    measured = measure("push_forward_kl", run)
    assert measured.low <= expected <= measured.high
    with pytest.raises(ArgumentError, match="dim <= 8"):
        measure("push_forward_kl", outcome("digits-gmm10", points=4, steps=2))


def test_exact_samples_score_their_floor():
    """With the end points replaced by an exact draw, every sampled metric is at its floor, and none calls that an error."""
    run = outcome(points=800)
    exact = run.field.marginal(800, run.times[-1], generator=99)
    fake = ending_at(run, exact)
    for name in ("moments", "mode_weights", "lost_modes", "sliced_w2", "mmd", "energy_distance"):
        measured = measure(name, fake)
        assert measured.value < 3 * measured.floor + 0.03, name


def test_a_lost_mode_is_counted():
    run = outcome("ring8", points=800)
    clipped = run.field.marginal(800, run.times[-1], generator=99)
    clipped[clipped[:, 0] > 4] = torch.tensor([-5.0, 0.0], dtype=torch.float64)
    fake = ending_at(run, clipped)
    assert measure("lost_modes", fake).value == 1
    assert measure("mode_weights", fake).value == pytest.approx(0.125, abs=0.05)
    assert measure("mode_weights", fake).above_floor


def test_sampled_metrics_see_a_shift():
    """A shift of 2 in every point: sliced W2 is 2/sqrt(2) in two dimensions, to sampling."""
    run = outcome("gauss2d", points=1000)
    exact = run.field.marginal(1000, run.times[-1], generator=99) + torch.tensor([2.0, 0.0], dtype=torch.float64)
    fake = ending_at(run, exact)
    measured = measure("sliced_w2", fake)
    assert measured.value == pytest.approx(math.sqrt(2), rel=0.15)
    assert measured.low <= measured.value <= measured.high
    assert measure("energy_distance", fake).above_floor
    assert measure("mmd", fake).above_floor


def test_failed_rows_are_not_averaged_away():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    solution = diffode.solve(field, x, solver="euler", grid="karras", steps=3)
    broken = type(solution)(solution.x, None, solution.times, 3, torch.tensor([0, 1, 0]), "row 1", solution.tableau)
    with pytest.raises(ArgumentError, match="would flatter"):
        measure("endpoint", Outcome(field, x, broken))


def test_a_user_metric_is_one_function():
    metrics.register(
        "largest_coordinate_for_a_test",
        lambda outcome, power=1: Measurement("largest", float(outcome.end.abs().max()) ** power),
    )
    run = outcome(points=16)
    assert measure("largest_coordinate_for_a_test:power=2", run).value == pytest.approx(float(run.solution.x.abs().max()) ** 2)


@given(testing.mixtures(max_dim=3), testing.mixtures(max_dim=3), testing.mixtures(max_dim=3))
def test_w2_of_gaussians_is_a_distance(one, two, three):
    """Symmetric, zero on itself, and with the triangle inequality."""
    dim = min(t.dim for t in (one, two, three))
    a, b, c = ((t.mean[:dim], t.covariance[:dim, :dim]) for t in (one, two, three))
    size = 1 + gaussian_w2(*a, *b) + gaussian_w2(*b, *c)
    # A root of a difference of traces: half the digits.
    assert gaussian_w2(*a, *a) < 1e-6 * (1 + float(a[1].trace().sqrt()))
    assert abs(gaussian_w2(*a, *b) - gaussian_w2(*b, *a)) < 1e-6 * size
    assert gaussian_w2(*a, *c) < gaussian_w2(*a, *b) + gaussian_w2(*b, *c) + 1e-6 * size
