"""Wasserstein distances: quantiles against closed forms, Kantorovich's dual, assignments with their proof, entropic ones."""

import itertools
import math

import pytest
import scipy.stats
import torch

import diffode
from diffode import metrics
from diffode.errors import ArgumentError, NumericalError
from diffode.metrics import LineLaw, assigned, sinkhorn, wasserstein, wasserstein_dual
from diffode.numerics.entropic_transport import entropic_value


def gaussian(mean, deviation):
    return diffode.GaussianMixture([1.0], [[mean]], [deviation**2])


def two_modes(gap, width):
    return diffode.GaussianMixture([0.3, 0.7], [[-gap], [gap]], [width**2, 4 * width**2])


@pytest.mark.parametrize(("mean", "deviation"), [(0.7, 1.0), (-2.0, 3.5), (0.0, 1e-3), (1e-6, 1.0)])
def test_gaussians_on_a_line(mean, deviation):
    """W2^2 = m^2 + (s - 1)^2; W1 = E|m + (s - 1) Z|, a folded normal."""
    one, two = gaussian(0.0, 1.0), gaussian(mean, deviation)
    assert wasserstein(one, two) == pytest.approx(math.hypot(mean, deviation - 1), rel=1e-12)
    scale = abs(deviation - 1)
    folded = abs(mean)
    if scale:
        folded = scale * math.sqrt(2 / math.pi) * math.exp(-((mean / scale) ** 2) / 2)
        folded += mean * math.erf(mean / scale / math.sqrt(2))
    assert wasserstein(one, two, 1) == pytest.approx(folded, rel=1e-11)


def test_a_shift_moves_narrow_modes_by_itself():
    for order in (1, 2):
        one, two = two_modes(1.0, 0.01), diffode.GaussianMixture([0.3, 0.7], [[-0.75], [1.25]], [1e-4, 4e-4])
        assert wasserstein(one, two, order) == pytest.approx(0.25, rel=1e-11)


def test_mass_that_crosses_a_gap_is_counted():
    """A tenth of the mass goes from -1 to 1 between narrow modes: W1 = 0.2 and W2 = sqrt(0.4), up to their widths."""
    one, two = (diffode.GaussianMixture([w, 1 - w], [[-1.0], [1.0]], [1e-12, 1e-12]) for w in (0.5, 0.4))
    assert wasserstein(one, two, 1) == pytest.approx(0.2, abs=1e-5)
    assert wasserstein(one, two, 2) == pytest.approx(math.sqrt(0.4), abs=1e-5)


def test_samples_of_any_numbers():
    x, y = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([5.0, 6.0, 8.0])
    assert wasserstein(x, y, 1) == pytest.approx(5.0)
    assert wasserstein(x, y, 2) == pytest.approx(math.sqrt((25 + 25 + 25) / 3))
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, generator=draws, dtype=torch.float64) for n in (7, 5))
    repeated = a.repeat_interleave(5).sort().values, b.repeat_interleave(7).sort().values
    for order in (1, 2):
        by_hand = (repeated[0] - repeated[1]).double().abs().pow(order).mean() ** (1 / order)
        assert wasserstein(a, b, order) == pytest.approx(float(by_hand), rel=1e-12)
    assert wasserstein(a, b, 1) == pytest.approx(scipy.stats.wasserstein_distance(a.numpy(), b.numpy()), rel=1e-6)


def test_a_sample_against_a_law():
    """A point against N(0, 1): E|x - Z| and E(x - Z)^2; three quartiles' worth against the sum over their parts."""
    one = torch.tensor([0.4], dtype=torch.float64)
    folded = math.sqrt(2 / math.pi) * math.exp(-0.08) + 0.4 * math.erf(0.4 / math.sqrt(2))
    assert wasserstein(one, gaussian(0.0, 1.0), 1) == pytest.approx(folded, rel=1e-11)
    assert wasserstein(one, gaussian(0.0, 1.0), 2) == pytest.approx(math.sqrt(1.16), rel=1e-12)
    pair = torch.tensor([2.0, -2.0], dtype=torch.float64)
    assert wasserstein(pair, gaussian(0.0, 1.0), 2) == pytest.approx(math.sqrt(5 - 8 / math.sqrt(2 * math.pi)), rel=1e-12)


def test_laws_with_a_distribution_function():
    """Uniform against uniform, exponential against exponential: T is linear."""
    uniform = [LineLaw(scipy.stats.uniform(a, b - a).cdf, a, b) for a, b in ((0, 1), (2, 5))]
    # x -> 2 + 3x: E(2 + 2x)^2 = 4 + 4 + 4/3.
    assert wasserstein(*uniform, 2) == pytest.approx(math.sqrt(28 / 3), rel=1e-10)
    assert wasserstein(*uniform, 1) == pytest.approx(3.0, rel=1e-10)
    waits = [LineLaw(scipy.stats.expon(scale=s).cdf, 0, 900 * s, scipy.stats.expon(scale=s).sf) for s in (1.0, 2.5)]
    assert wasserstein(*waits, 2) == pytest.approx(1.5 * math.sqrt(2), rel=1e-10)
    assert wasserstein(*waits, 1) == pytest.approx(1.5, rel=1e-10)
    normal = LineLaw(scipy.stats.norm.cdf, -40, 40, scipy.stats.norm.sf)
    assert wasserstein(normal, gaussian(1.0, 2.0)) == pytest.approx(math.sqrt(2), rel=1e-10)


def test_the_dual_is_below_and_meets_the_distance():
    laws = [gaussian(0.3, 1.2), two_modes(1.5, 0.4), torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64), gaussian(2.0, 0.3)]
    for one, two in itertools.combinations(laws, 2):
        primal, dual = wasserstein(one, two, 1), wasserstein_dual(one, two)
        assert dual <= primal * (1 + 1e-6)
        assert dual == pytest.approx(primal, rel=2e-4)
        assert primal <= wasserstein(one, two, 2) * (1 + 1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_an_assignment_is_proved_by_its_potentials(order):
    draws = torch.Generator().manual_seed(3)
    x, y = (torch.randn(60, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    found = assigned(x, y + 0.5, order)
    costs = torch.cdist(x, y + 0.5) ** order
    f, g = found.potentials
    assert found.excess < 1e-12
    assert float((f[:, None] + g - costs).max()) < 1e-12
    assert float((f + g[found.partner] - costs[torch.arange(60), found.partner]).abs().max()) < 1e-12
    assert found.distance**order == pytest.approx(float(f.mean() + g.mean()), rel=1e-12)
    assert sorted(found.partner.tolist()) == list(range(60))
    flat = assigned(x[:, :1], y[:, :1], order).distance
    assert flat == pytest.approx(wasserstein(x[:, 0], y[:, 0], order), rel=1e-12)


def test_entropic_distances_lie_between_their_limits():
    draws = torch.Generator().manual_seed(4)
    x, y = (shift + torch.randn(40, 2, generator=draws, dtype=torch.float64) for shift in (0, 1))
    assert sinkhorn(x, x[torch.randperm(40, generator=draws)], 0.3) < 1e-4
    means = float((x.mean(0) - y.mean(0)).norm())
    assert sinkhorn(x, y, 1e4) == pytest.approx(means, rel=1e-3)
    assert sinkhorn(x, y, 0.1) == pytest.approx(assigned(x, y).distance, rel=0.05)
    # Two points each: the plan is known, a 2 x 2 matrix with one number.
    a, b, eps = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.2], [1.4]]).double(), 0.5

    def value(one, two):
        costs = torch.cdist(one, two) ** 2
        p = torch.linspace(0, 0.5, 200_001).double()[1:-1]
        plan = torch.stack([p, 0.5 - p, 0.5 - p, p])
        total = (plan * costs.reshape(4, 1)).sum(0) + eps * (plan * (4 * plan).log()).sum(0)
        return float(total.min())

    expected = value(a, b) - (value(a, a) + value(b, b)) / 2
    assert sinkhorn(a, b, eps) == pytest.approx(math.sqrt(expected), rel=1e-7)


@pytest.mark.parametrize("epsilon", [1e6, 1e9, 1e14, 1e308])
def test_the_entropic_distance_goes_to_that_of_the_means_without_losing_digits(epsilon):
    """S = |mean x - mean y|^2 up to O(1/epsilon)."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=draws, dtype=torch.float64)
    y = (x + 1)[:7]
    means = float((x.mean(0) - y.mean(0)).norm())
    assert sinkhorn(x, y, epsilon) == pytest.approx(means, abs=1 / epsilon + 1e-14)
    assert sinkhorn(x, x + 1, epsilon) == pytest.approx(math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize("epsilon", [0.3, 0.1, 0.05, 1e-3, 1e-8])
def test_a_shift_has_its_length_for_every_epsilon(epsilon):
    """The debiased distance of a shift is its length, also where Sinkhorn's iterations would crawl for days."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sinkhorn(x, x + 1, epsilon) == pytest.approx(math.sqrt(2), rel=1e-9)
    with pytest.raises(NumericalError, match="less than the rounding of costs"):
        sinkhorn(x, x + 1, 1e-300)


def test_entropic_plans_have_the_marginals_and_the_value_of_a_linear_programme():
    """For small epsilon the value is the cost of the best assignment plus at most epsilon log n."""
    draws = torch.Generator().manual_seed(8)
    x, y = (torch.randn(40, 2, generator=draws, dtype=torch.float64) for _ in range(2))
    costs = torch.cdist(x, 2 * y + 1) ** 2
    best = assigned(x, 2 * y + 1).distance ** 2
    for epsilon in (0.2, 0.02):
        assert best - 1e-12 < entropic_value(costs, epsilon) < best + epsilon * math.log(40)
    assert entropic_value(costs[:, :30], 0.1) == pytest.approx(entropic_value(costs[:, :30].T, 0.1), rel=1e-12)


def test_distances_of_huge_and_tiny_samples():
    one, none = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for size in (1e200, 1e-200, 1e300):
        assert wasserstein(size * one, none) == pytest.approx(size * math.sqrt(0.5), rel=1e-14)
        assert wasserstein(size * one, none, 1) == pytest.approx(size / 2, rel=1e-14)
    with pytest.raises(ArgumentError, match="rescale them"):
        wasserstein(1.5e308 * torch.ones(2).double(), -1.5e308 * torch.ones(2).double())
    with pytest.raises(ArgumentError, match="beyond float64: rescale them"):
        assigned(1e160 * torch.ones(2, 1).double(), torch.zeros(2, 1).double())


def test_laws_with_a_source_are_those_of_their_noise():
    """w2 of exact draws is small beside w2 of draws with normal noise; Student's noise has no quantiles here."""
    field = diffode.exact_field("bimodal1d", "rectified_flow", source="gauss1d")
    x = field.prior(400, generator=0)
    half = diffode.solve(field, x, solver="heun", grid="time_uniform", steps=100, between=(0.999, 0.5))
    run = metrics.Outcome(field, x, half)
    found = metrics.measure("w2", run)
    draws = torch.sort(field.marginal(200_000, 0.5, generator=3)[:, 0]).values
    assert found.value == pytest.approx(wasserstein(half.x[:, 0], draws), abs=0.01)
    student = diffode.exact_field("bimodal1d", "rectified_flow", source="student:dof=3")
    x = student.prior(8, generator=0)
    with pytest.raises(ArgumentError, match="take assigned_w2"):
        metrics.measure("w1", metrics.Outcome(student, x, diffode.solve(student, x, solver="heun", nfe=4)))


@pytest.mark.parametrize(
    ("cdf", "message"),
    [
        (lambda x: x * math.nan, "probabilities in"),
        (lambda x: 1 - (x + 1) / 2, "low and high must hold all of the mass"),
        (lambda x: 0.5, "low and high must hold all of the mass"),
        (lambda x: "a", "can't be asked at an array of points"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: (x + 1) / 2 + 0.2 * (x > 0) * (x < 0.5), "must not fall"),
    ],
)
def test_functions_that_are_no_distribution_function_are_named(cdf, message):
    with pytest.raises(ArgumentError, match=message):
        LineLaw(cdf, -1, 1)


def test_metrics_of_a_run_see_a_shift_and_have_a_floor():
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.prior(60, generator=0)
    solution = diffode.solve(field, x, solver="dpmpp:order=2", nfe=20)
    run = metrics.Outcome(field, x, solution)
    for name in ("w1", "w2", "assigned_w2", "sinkhorn_w2:epsilon=0.3"):
        found = metrics.measure(name, run)
        assert 0 < found.value < 8 * found.floor
    shifted = metrics.Outcome(field, x, type(solution)(solution.x + 5, *list(vars(solution).values())[1:]))
    assert metrics.measure("w1", shifted).value == pytest.approx(5, abs=4 * metrics.measure("w1", run).floor)


def test_a_bridge_has_the_metrics_of_samples():
    bridge = diffode.Bridge("independent", data="bimodal1d", source="gauss1d")
    x = bridge.prior(100, generator=0)
    run = metrics.Outcome(bridge, x, diffode.solve(bridge, x, solver="heun", nfe=40))
    for name in ("endpoint", "w1", "w2", "assigned_w2", "sliced_w2"):
        assert math.isfinite(metrics.measure(name, run).value)
    assert metrics.measure("endpoint", run).value < 0.05


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="order must be 1 or 2"):
        wasserstein("gauss1d", "gauss1d", 3)
    with pytest.raises(ArgumentError, match="two must be samples"):
        wasserstein("gauss1d", "ring8")
    with pytest.raises(ArgumentError, match="one has samples that are not finite"):
        wasserstein(torch.tensor([math.nan]), torch.ones(2))
    with pytest.raises(ArgumentError, match=r"one must be samples \(n,\)"):
        wasserstein(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(ArgumentError, match="low and high"):
        LineLaw(scipy.stats.norm.cdf, 0, math.inf)
    with pytest.raises(ArgumentError, match="low and high must be finite"):
        LineLaw(scipy.stats.norm.cdf, "a", 1)
    with pytest.raises(ArgumentError, match="order must be 1 or 2"):
        wasserstein(torch.ones(2), torch.ones(2), torch.ones(2))
    with pytest.raises(ArgumentError, match="x and y must have one shape"):
        assigned(torch.ones(2, 2), torch.ones(3, 2))
    with pytest.raises(ArgumentError, match="up to 4096 points"):
        assigned(torch.ones(4097, 1), torch.ones(4097, 1))
    for epsilon in (0.0, -1.0, math.nan, "a"):
        with pytest.raises(ArgumentError, match="epsilon must be a number > 0"):
            sinkhorn(torch.ones(2, 2), torch.ones(2, 2), epsilon)
    with pytest.raises(ArgumentError, match="y must be samples"):
        sinkhorn(torch.ones(2, 2), [1.0], 1.0)


def test_iterations_that_do_not_end_are_an_error(monkeypatch):
    monkeypatch.setattr("diffode.numerics.entropic_transport.MOST_ITERATIONS", 3)
    with pytest.raises(NumericalError, match="raise it, or take assigned"):
        sinkhorn(torch.randn(5, 1, generator=torch.Generator().manual_seed(0)), torch.ones(4, 1), 1e-3)
