"""Fixed points of consistency models: products of cosines on a Gaussian, quadrature on two modes, the law of their sampling."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import grids, solvers
from diffode.errors import ArgumentError
from diffode.verify.theory.consistency import (
    best_levels,
    consistency_ratio,
    sampling_errors,
    sampling_limit,
    two_mode_error,
)


def karras(count, first=80.0, last=0.002):
    """Levels of Karras et al., rho = 7."""
    ends = first ** (1 / 7), last ** (1 / 7)
    return [(ends[0] + k / (count - 1) * (ends[1] - ends[0])) ** 7 for k in range(count)]


@pytest.mark.parametrize(
    ("count", "training", "heun"),
    [
        (11, 0.767974060, 1.147423),
        (41, 0.936126307, 1.007985),
        (161, 0.983633715, 1.000481),
        (1281, 0.997939411, 1.0000074),
    ],
)
def test_slopes_on_a_gaussian(count, training, heun):
    assert consistency_ratio(0.7, karras(count)) == pytest.approx(training, abs=5e-10)
    assert consistency_ratio(0.7, karras(count), "heun") == pytest.approx(heun, abs=6e-7)


def test_training_is_first_order_in_the_steps_and_heun_second():
    few, many = karras(641), karras(1281)
    for steps, order in (("training", 0.9985), ("heun", 2.0)):
        errors = [abs(consistency_ratio(0.7, levels, steps) - 1) for levels in (few, many)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.01)


def test_the_product_of_cosines_is_the_recursion_of_the_fixed_point():
    """A_{n+1} = A_n (lam + t_n t_{n+1})/(lam + t_{n+1}^2), on any falling levels, to 0 too."""
    for lam, levels in ((0.7, karras(23)), (9.0, [50.0, 3.0, 2.9, 0.0]), (1e-3, [1.0, 0.5, 0.01])):
        slope = math.prod((lam + a * b) / (lam + a * a) for a, b in itertools.pairwise(levels))
        exact = math.sqrt((lam + levels[-1] ** 2) / (lam + levels[0] ** 2))
        assert consistency_ratio(lam, levels) == pytest.approx(slope / exact, rel=1e-12)


def test_training_compresses_the_sampler_that_steps_through_its_levels():
    """One evaluation of the fixed point is the run of DDIM with as many steps as it has levels, never better."""
    lam, levels = 0.7, torch.tensor(karras(12), dtype=torch.float64)
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [lam]), "edm")
    x = torch.ones(1, 1, dtype=torch.float64)
    end = float(solvers.solve(field, x, solver="ddim", grid=levels).x)
    exact = math.sqrt((lam + 0.002**2) / (lam + 80.0**2))
    assert end / exact == pytest.approx(consistency_ratio(lam, levels.tolist()), rel=1e-12)


@pytest.mark.parametrize("count", [3, 11, 40])
def test_equal_steps_of_the_angle_are_best(count):
    own = best_levels(0.7, 80.0, 0.002, count)
    best = consistency_ratio(0.7, own)
    assert best > consistency_ratio(0.7, karras(count))
    for place in range(1, count - 1):
        for factor in (0.95, 1.05):
            moved = [*own]
            moved[place] *= factor
            if moved == sorted(moved, reverse=True):
                assert consistency_ratio(0.7, moved) < best
    assert best == pytest.approx(1 - math.pi**2 / 8 / (count - 1), abs=2 / (count - 1) ** 2)


def test_no_grid_suits_two_variances():
    """Each eigenvalue has its own angle, so that the best levels of one are not those of another."""
    assert consistency_ratio(4.0, best_levels(0.25, 80.0, 0.002, 21)) < consistency_ratio(
        4.0, best_levels(4.0, 80.0, 0.002, 21)
    )


#: Mean errors over the scale: by number of levels and separation, of training and of distillation of Euler steps.
FIXED_POINTS = {
    (17, 1): (0.1256, 0.1123), (17, 2): (0.1866, 0.1114), (17, 3): (0.2390, 0.1009), (17, 4): (0.2696, 0.0871),
    (65, 1): (0.0341, 0.0294), (65, 2): (0.0629, 0.0284), (65, 3): (0.0958, 0.0251), (65, 4): (0.1162, 0.0211),
    (257, 1): (0.0088, 0.0074), (257, 2): (0.0196, 0.0071), (257, 3): (0.0376, 0.0063), (257, 4): (0.0501, 0.0052),
}  # fmt: skip


def test_training_is_worse_than_distillation_where_modes_are_apart():
    training, distillation = two_mode_error(3.0, karras(17)), two_mode_error(3.0, karras(17), "euler")
    assert training == pytest.approx(FIXED_POINTS[17, 3][0], abs=1e-4)
    assert distillation == pytest.approx(FIXED_POINTS[17, 3][1], abs=1e-4)
    assert training > distillation


def test_distillation_is_the_run_of_the_sampler():
    """An independent run: DDIM on the exact field from the quantiles of the noised law."""
    levels = karras(17)
    field = diffode.exact_field(diffode.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1 / 9, 1 / 9]), "edm")
    scores = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)[:, None]
    first = grids.get("karras", "edm", 16)[0]
    # The law at the first level is so nearly normal that its quantiles are taken from the exact flow backwards and forwards.
    start = scores * math.sqrt(float(first) ** 2 + 1 + 1 / 9)
    end = solvers.solve(field, start, solver="ddim", grid=torch.tensor(levels, dtype=torch.float64)).x
    exact = diffode.flow(field)(start, levels[0], levels[-1])
    found = float((end - exact).abs().mean()) / math.sqrt(1 + 1 / 9)
    assert found == pytest.approx(two_mode_error(3.0, levels, "euler"), rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "separation"), FIXED_POINTS)
def test_fixed_points_on_two_modes(count, separation):
    training, distillation = FIXED_POINTS[count, separation]
    assert two_mode_error(separation, karras(count)) == pytest.approx(training, abs=1e-4)
    assert two_mode_error(separation, karras(count), "euler") == pytest.approx(distillation, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("separation", "order"), [(1, 0.99), (2, 0.85), (3, 0.68), (4, 0.61)])
def test_orders_fall_to_a_half_as_modes_part(separation, order):
    errors = [two_mode_error(separation, karras(count)) for count in (129, 257)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.02)


def test_training_and_distillation_agree_where_the_map_is_a_line():
    """Modes that overlap are one Gaussian but for their means' variance: the gap between the two is gone with the bend."""
    gaps = [two_mode_error(r, karras(17)) / two_mode_error(r, karras(17), "euler") - 1 for r in (0.3, 1.0)]
    assert abs(gaps[0]) < 0.01 < gaps[1]


def test_the_law_of_errors_of_multistep_sampling():
    """The recursion against the variance itself, V <- A^2 (V + tau^2 - eps^2)."""
    lam, last, levels, slopes = 0.7, 0.002, [80.0, 5.0, 0.5, 0.1], [0.95, 1.02, 0.97, 0.9]
    found, size = [], lam + last**2
    variance = (slopes[0] ** 2) * size
    found.append(variance / size - 1)
    for tau, slope in zip(levels[1:], slopes[1:], strict=True):
        variance = slope**2 * size / (lam + tau**2) * (variance + tau**2 - last**2)
        found.append(variance / size - 1)
    assert sampling_errors(lam, levels, slopes, last) == pytest.approx(found, rel=1e-12)


def test_an_exact_map_keeps_the_variance():
    assert sampling_errors(1.0, [80.0, 3.0, 0.4, 0.05], [1.0] * 4, 0.002) == [0.0] * 4


@pytest.mark.parametrize(("level", "limit"), [(5.0, -0.0999), (1.0, -0.1552), (0.3, -0.4867)])
def test_further_steps_are_worse_where_errors_are_equal(level, limit):
    """Relative errors of -5 % at all levels: -.0975 after one evaluation, and worse after more, most at low levels."""
    errors = sampling_errors(0.7, [80.0] + [level] * 60, [0.95] * 61)
    assert errors[0] == pytest.approx(-0.0975)
    assert errors[-1] == pytest.approx(limit, abs=1e-4) == pytest.approx(sampling_limit(0.7, level, 0.95), abs=1e-4)
    assert errors[-1] < errors[0]


def test_sampling_diverges_where_the_map_is_too_steep():
    assert sampling_limit(0.7, 0.1, 1.05) == math.inf
    assert sampling_limit(0.7, 0.5, 1.05) < math.inf
    errors = sampling_errors(0.7, [80.0] + [0.1] * 200, [1.05] * 201)
    assert errors[-1] > 10
    assert errors[-1] / errors[-2] > 1.05


def test_training_s_own_map_gains_nothing_from_further_steps():
    """N = 41 levels: standard deviations .93613, .93515, .93409, .93242 after 1 to 4 evaluations, from 2.5, .74, ... down."""
    levels = karras(41)
    taus = [80.0, 2.5, 0.74]
    slopes = [consistency_ratio(0.7, [tau, *(level for level in levels if level < tau * 0.999)]) for tau in taus]
    deviations = [math.sqrt(1 + e) for e in sampling_errors(0.7, taus, slopes, 0.002)]
    assert deviations[0] == pytest.approx(0.93613, abs=1e-5)
    assert deviations == sorted(deviations, reverse=True)


def test_sampled_variances_follow_the_law():
    """A simulation with a million draws, whose standard error is .0014 of the variance."""
    lam, levels, slopes, last = 0.7, [80.0, 0.5, 0.5, 0.5], [0.95] * 4, 0.002
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1_000_000, generator=generator, dtype=torch.float64)  # noqa: E731
    size, x = lam + last**2, draw() * math.sqrt(lam + levels[0] ** 2)
    for k, (tau, slope) in enumerate(zip(levels, slopes, strict=True)):
        if k:
            x = x + math.sqrt(tau**2 - last**2) * draw()
        x = slope * math.sqrt(size / (lam + tau**2)) * x
    assert float(x.var()) / size - 1 == pytest.approx(sampling_errors(lam, levels, slopes, last)[-1], abs=5e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: consistency_ratio(0.0, [1.0, 0.5]),
        lambda: consistency_ratio(1.0, [0.5, 1.0]),
        lambda: consistency_ratio(1.0, [1.0, 0.5], "midpoint"),
        lambda: best_levels(1.0, 1.0, 0.5, 1),
        lambda: two_mode_error(-1.0, [1.0, 0.5]),
        lambda: two_mode_error(1.0, [1.0, 0.0]),
        lambda: sampling_errors(1.0, [1.0], []),
        lambda: sampling_errors(1.0, [1.0], [1.0], 2.0),
    ],
)
def test_wrong_arguments_are_named(call):
    with pytest.raises(ArgumentError, match=r"variance|levels|steps|count|separation|slope"):
        call()
