"""Metrics: closed forms they must reproduce, floors, the split of an error."""

import math
import re
import resource
from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import given

import diffode
from diffode import Field, fields, metrics, paths, solvers, testing
from diffode.errors import ArgumentError, UnknownNameError
from diffode.metrics import Measurement, Outcome, error_split, gaussian_split, gaussian_w2, measure
from diffode.metrics.coupled import reduce
from diffode.tableau import Row, Tableau


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


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6])
def test_w2_of_singular_gaussians_keeps_its_digits(gap):
    """Rank 3 in 300 dimensions, widths larger by a share: W2 is that share of the root of the trace."""
    factors = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance, nowhere = factors @ factors.T, torch.zeros(300, dtype=torch.float64)
    found = gaussian_w2(nowhere, covariance, nowhere, covariance * (1 + gap) ** 2)
    assert found == pytest.approx(gap * float(covariance.trace()) ** 0.5, rel=1e-6)


def test_w2_of_singular_gaussians_that_span_other_planes_is_that_of_mpmath():
    """|F|^2 + |G|^2 - 2 (sum of the singular values of G'F), with 50 digits, at a distance of 1e-6 of the scale."""
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    two = one + 1e-6 * torch.randn(30, 2, generator=generator, dtype=torch.float64)
    with mpmath.workdps(50):
        f, g = mpmath.matrix(one.tolist()), mpmath.matrix(two.tolist())
        squares = mpmath.fsum(v**2 for v in f) + mpmath.fsum(v**2 for v in g)
        expected = float(mpmath.sqrt(squares - 2 * mpmath.fsum(mpmath.svd_r(g.T * f, compute_uv=False))))
    nowhere = torch.zeros(30, dtype=torch.float64)
    assert gaussian_w2(nowhere, one @ one.T, nowhere, two @ two.T) == pytest.approx(expected, rel=1e-6)


def pairwise(x, y, kernel):
    """The unbiased squared discrepancy of two samples, from the definition, difference by difference."""

    def mean(a, b, same):
        values = kernel((a[:, None] - b[None]).norm(dim=2))
        return float(values.fill_diagonal_(0).sum() / (len(a) * (len(a) - 1)) if same else values.mean())

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_sampled_distances_are_their_definitions_also_far_from_0(offset):
    """At 1e6 distances by matrix products were off by 3e-4."""
    target = diffode.GaussianMixture([0.5, 0.5], [[offset, -offset], [offset + 3, 2 - offset]], [0.3, 0.3])
    field = diffode.exact_field(target, "edm")
    x = field.prior(60, generator=1)
    run = Outcome(field, x, diffode.solve(field, x, solver="ddim", grid="karras", steps=5), seed=3)
    exact = run.exact_draws(60, 3)
    widths = [target.scale * 2**0.5 * factor for factor in (0.25, 0.5, 1, 2)]
    mixed = pairwise(run.end, exact, lambda d: sum((-(d**2) / (2 * w * w)).exp() for w in widths) / 4)
    assert measure("mmd:resamples=0", run).value == pytest.approx(mixed**0.5, rel=1e-9)
    energy = pairwise(run.end, exact, lambda d: -d)
    assert measure("energy_distance:resamples=0", run).value == pytest.approx(energy**0.5, rel=1e-9)


def test_the_interval_of_a_sampled_distance_is_that_of_resampled_points():
    run = outcome(points=40, steps=5)
    found = measure("energy_distance:resamples=3", run)
    exact, generator = run.exact_draws(40, 3), torch.Generator().manual_seed(run.seed)
    values = []
    for _ in range(3):
        left, right = (torch.randint(40, (40,), generator=generator) for _ in range(2))
        values.append(max(pairwise(run.end[left], exact[right], lambda d: -d), 0.0) ** 0.5)
    half = 1.96 * float(torch.tensor(values, dtype=torch.float64).std())
    assert found.high - found.value == pytest.approx(half, rel=1e-8)


def test_sampled_distances_hold_no_matrix_of_all_pairs():
    """8,000 points: all distances would be 512 MB, and a block is 8 MB."""
    from diffode.metrics.sampled import pair_sums

    x, ones = torch.zeros(8000, 1, dtype=torch.float64), torch.ones(8000, 1, dtype=torch.float64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert float(pair_sums(x, x, ones, ones, lambda d: d + 1)) == 8000.0**2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 150


ONE_IS_FEW = ("moments", "mmd", "energy_distance", "push_forward_kl")


@pytest.mark.parametrize("name", metrics.names()[:12])
@pytest.mark.parametrize("points", [0, 1])
def test_metrics_of_too_few_points_say_how_many_they_need(name, points):
    full = outcome("gauss2d", points=2, steps=2)
    rows = replace(
        full.solution, x=full.solution.x[:points], states=full.solution.states[:, :points], status=torch.zeros(points)
    )
    few = Outcome(full.field, full.start[:points], rows)
    if points and name not in ONE_IS_FEW:
        assert math.isfinite(measure(name, few).value)
        return
    with pytest.raises(ArgumentError, match=r"needs at least [12] points"):
        measure(name, few)


@pytest.mark.parametrize("spec", ["mmd:resamples=1", "sliced_w2:resamples=-1", "sliced_w2:projections=0", "mmd:resamples=1.5"])
def test_wrong_numbers_of_resamples_and_projections_are_named(spec):
    with pytest.raises(ArgumentError, match="must be"):
        measure(spec, outcome(points=4, steps=2))


@pytest.mark.parametrize("seed", [2**63, 10**13, 2**64 - 1])
def test_a_seed_may_have_64_bits(seed):
    run = replace(outcome("gauss2d", points=8, steps=2), seed=seed)
    for name in ("moments", "mmd", "push_forward_kl"):
        assert math.isfinite(measure(name, run).value)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_push_forward_is_differentiated_whatever_is_switched_off(off):
    run = outcome("gauss2d", points=16, steps=3)
    expected = measure("push_forward_kl", run).value
    with off():
        assert measure("push_forward_kl", run).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mean", [0.0, 30.0, -1e4])
def test_the_sampled_prior_error_is_exact_where_the_mean_is_not_0(mean):
    """On a Gaussian the flow is affine: from infinite noise z goes to a m + sqrt(a^2 c + s^2) z at a level (a, s)."""
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[mean, mean]], [0.5]), "edm")
    table = solvers.get("ddim").tableau(field.path, "karras", 4)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = math.sqrt((0.5 + 0.002**2) / (0.5 + 80.0**2))
    gap = gain * ((mean + math.sqrt(0.5 + 80.0**2) * z) - 80.0 * z)
    expected = float(gap.square().sum(1).mean().sqrt())
    assert error_split(field, table, z).prior == pytest.approx(expected, rel=1e-8)


def test_reductions_are_what_they_are_called():
    distances = torch.tensor([3.0, 4.0, 0.0, 5.0, 1.0], dtype=torch.float64)
    assert [reduce(distances, name) for name in ("mean", "max", "median")] == [2.6, 5.0, 3.0]
    assert reduce(distances, "rms") == pytest.approx((51 / 5) ** 0.5)


def of_a_run(field, solver="ddim", **options):
    x = field.prior(4, generator=0) if isinstance(field, fields.ExactField) else field.path.prior((4, 2), generator=0)
    return Outcome(field, x, diffode.solve(field, x, solver=solver, **({"nfe": 4} | options)))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: reduce(torch.ones(3), "sum"), "reduction must be mean, rms, max or median", id="a reduction that is none"
        ),
        pytest.param(
            lambda: measure(
                "push_forward_kl", of_a_run(diffode.exact_field("ring8", "edm"), "rk_adaptive", nfe=None, grid=[80.0, 0.002])
            ),
            "needs a solver with a tableau",
            id="KL of an adaptive run",
        ),
        pytest.param(
            lambda: measure("lost_modes", of_a_run(Field.from_denoised(lambda x, t: 0 * x, paths.get("edm")))),
            "needs the exact law of the data",
            id="modes of what has none",
        ),
        pytest.param(
            lambda: measure("gaussian_error", of_a_run(diffode.exact_field("ring8", "edm"))),
            "a target of one Gaussian",
            id="a Gaussian's error on a mixture",
        ),
        pytest.param(
            lambda: measure(
                "gaussian_error", of_a_run(diffode.exact_field("gauss2d", "edm"), "rk_adaptive", nfe=None, grid=[80.0, 0.002])
            ),
            "a solver that writes a table",
            id="a Gaussian's error of an adaptive run",
        ),
        pytest.param(
            lambda: measure("gaussian_error:part=all", of_a_run(diffode.exact_field("gauss2d", "edm"))),
            "part must be one of prior, truncation",
            id="a part that is none",
        ),
        pytest.param(
            lambda: gaussian_split(Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5})), (0, 1)), 0.0, torch.ones(2)),
            "written for a path",
            id="a split without a path",
        ),
    ],
)
def test_metrics_that_a_run_does_not_have_are_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


def test_metrics_say_what_they_need_of_a_run():
    needs = {name: metrics.needs_of(name) for name in metrics.names()}
    assert {name for name, one in needs.items() if one.flow} == {"endpoint", "trajectory", "total"}
    assert {name for name, one in needs.items() if one.states} == {"trajectory"}
    assert metrics.needs_of("trajectory:reduction=max")[:3] == metrics.Needs(flow=True, states=True)[:3]

    @metrics.needs(states=True)
    def own(outcome):
        return metrics.Measurement("own", float(len(outcome.solution.states)))

    assert own.needs == metrics.Needs(states=True)
    with pytest.raises(UnknownNameError):
        metrics.needs_of("nothing")


def test_exact_draws_that_are_kept_are_those_of_their_stream_and_no_one_elses():
    """Another number, time, seed or stream gives others, and who changes the draws changes none of the kept ones."""
    run = outcome(points=50)
    law = run.law
    fresh = law.marginal(50, run.times[-1], generator=run.stream(2))
    first = run.exact_draws(50, 2)
    assert torch.equal(first, fresh)
    first.zero_()
    assert torch.equal(run.exact_draws(50, 2), fresh)
    assert torch.equal(replace(run).exact_draws(50, 2), fresh)
    assert not torch.equal(run.exact_draws(50, 3), fresh)
    assert not torch.equal(replace(run, seed=1).exact_draws(50, 2), fresh)
    assert run.exact_draws(49, 2).shape == (49, 2)
    for stream in range(4, 20):
        run.exact_draws(50, stream)
    assert torch.equal(run.exact_draws(50, 2), fresh)


def test_a_target_of_a_users_own_is_asked_for_draws_each_time(monkeypatch):
    class Own(diffode.GaussianMixture):
        pass

    field = diffode.exact_field(Own([1.0], [[0.0, 0.0]], [1.0]), "edm")
    x = field.prior(8, generator=0)
    run = Outcome(field, x, diffode.solve(field, x, solver="ddim", steps=2, grid="karras"))
    asked, marginal = [], type(field).marginal
    monkeypatch.setattr(type(field), "marginal", lambda *given, **more: asked.append(1) or marginal(*given, **more))
    for _ in range(2):
        run.exact_draws(8, 1)
    assert len(asked) == 2
