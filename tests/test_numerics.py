"""Mathematics without diffusion: order conditions, integrated polynomials, reweighted and damped least squares."""

import itertools
import math

import numpy as np
import pytest
import torch

from diffode.errors import ArgumentError
from diffode.numerics import affine, butcher
from diffode.numerics.butcher import BOGACKI_SHAMPINE, DORMAND_PRINCE, EULER, HEUN, KUTTA, MIDPOINT, RALSTON, Butcher
from diffode.numerics.least_squares import NormalEquations, Scaled, reweighted
from diffode.numerics.polynomials import weights_of

METHODS = {
    "euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "ralston": RALSTON, "kutta": KUTTA,
    "bosh3": BOGACKI_SHAMPINE, "dopri5": DORMAND_PRINCE,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_stated_order_is_the_highest_whose_conditions_are_met(method):
    with pytest.raises(ArgumentError, match=f"is not of order {method.order + 1}"):
        Butcher(method.stages, method.weights, method.order + 1, method.source)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_stated_order_is_the_measured_one(method):
    """A driven pendulum against 50 times finer steps. Dormand and Prince made the term of fifth order small: beside it the
    next one still shows in 128 steps, as 0.27 of an order."""

    def rate(y, t):
        return np.array([y[1], math.cos(2 * t) - math.sin(y[0])])

    def end(steps):
        y, h = np.array([1.0, 0.5]), 3.0 / steps
        for k in range(steps):
            y = method.step(rate, y, k * h, h)
        return y

    true = end(6400)
    errors = [np.linalg.norm(end(steps) - true) for steps in (32, 64, 128)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(method.order, abs=0.3)


@pytest.mark.parametrize("method", [BOGACKI_SHAMPINE, DORMAND_PRINCE], ids=["bosh3", "dopri5"])
def test_the_embedded_method_is_one_order_lower(method):
    weights = tuple(b - e for b, e in zip((*method.weights, 0.0), method.error_weights, strict=True))
    stages = (*method.stages, method.weights)
    assert Butcher(stages, weights, method.order - 1, "embedded").order == method.order - 1
    with pytest.raises(ArgumentError, match=f"is not of order {method.order}"):
        Butcher(stages, weights, method.order, "embedded")


def test_slips_in_a_method_are_refused():
    for i, j in ((1, 0), (4, 2)):
        stages = [list(row) for row in DORMAND_PRINCE.stages]
        stages[i][j] += 1e-9
        with pytest.raises(ArgumentError, match="misses its condition"):
            Butcher(tuple(map(tuple, stages)), DORMAND_PRINCE.weights, 5, "a slip")
    for error_weights in ((0.5, -0.4), (0.0,) * 3, (math.nan, 0.0)):
        with pytest.raises(ArgumentError, match=r"that sum to 0|must be finite"):
            Butcher((), (1.0,), 1, "Euler", error_weights)
    for stages, weights in ((((0.5,),), (math.nan, 1.0)), (((math.nan,),), (0.0, 1.0)), (((0.5,),), (math.inf, -math.inf))):
        with pytest.raises(ArgumentError, match=r"misses its condition|must be finite"):
            Butcher(stages, weights, 1, "no numbers")
    for order in (0, -1, True, 2.0, "2"):
        with pytest.raises(ArgumentError, match="order must be an integer >= 1"):
            Butcher((), (1.0,), order, "Euler")
    for stages, weights in (((0.5,), (0.0, 1.0)), (None, (1.0,)), ((), None), ((), ("a",))):
        with pytest.raises(ArgumentError, match="must be rows of numbers"):
            Butcher(stages, weights, 1, "no rows")
    with pytest.raises(ArgumentError, match="one row less than weights"):
        Butcher(((0.5, 0.5),), (0.5, 0.5), 1, "implicit")


def test_densities_count_how_a_tree_can_be_grown():
    """Sums over trees of n nodes of n!/(gamma symmetry) are (n - 1)!: here without symmetries, from their definition."""
    chain: butcher.Tree = ()
    for size in range(1, 6):
        assert butcher.density(chain) == math.factorial(size)
        assert butcher.density(((),) * size) == size + 1
        chain = (chain,)


def test_integrated_polynomials_give_the_weights_of_adams_and_bashforth():
    """Hairer, Norsett, Wanner, III.1, table 1.1."""
    known = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    for count, weights in known.items():
        found = weights_of([-float(k) for k in range(count)], [1 / (k + 1) for k in range(count)])
        assert found == pytest.approx(weights, rel=1e-13)


def test_normal_equations_are_those_of_the_rows_in_any_blocks():
    generator = np.random.default_rng(0)
    rows, residual, weight = generator.normal(size=(2, 30, 4)), generator.normal(size=(2, 30)), generator.uniform(size=(2, 30))
    equations = NormalEquations(2, 4)
    for part in (slice(0, 7), slice(7, 30)):
        blocks = [torch.from_numpy(values[:, part].copy()) for values in (rows, weight * residual, weight)]
        equations.add(*blocks)
    for k in range(2):
        root = np.sqrt(weight[k])
        best = np.linalg.lstsq(root[:, None] * rows[k], root * residual[k], rcond=None)[0]
        step = Scaled.of(equations.gradient[k], equations.curvature[k]).step(0.0)
        np.testing.assert_allclose(step.numpy(), best, rtol=1e-10)


def test_reweighting_finds_the_point_of_least_distances():
    """Fermat's point of a triangle: all sides are seen under 120 degrees from it."""
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    point = corners.mean(0)
    for _ in range(200):
        errors = point - corners
        equations = NormalEquations(2)
        weight = reweighted(errors.norm(dim=1), 1e-3)[:, None].expand(3, 2)
        equations.add(torch.eye(2, dtype=torch.float64).repeat(3, 1), (weight * errors).flatten(), weight.flatten())
        point = point - Scaled.of(equations.gradient, equations.curvature).step(0.0)
    directions = (corners - point) / (corners - point).norm(dim=1, keepdim=True)
    assert float(directions.sum(0).norm()) < 1e-9


def test_an_error_of_zero_has_a_weight():
    weights = reweighted(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64), 0.1)
    torch.testing.assert_close(weights, torch.tensor([10.0, 1.0, 0.25], dtype=torch.float64))
    assert bool(torch.isfinite(reweighted(torch.zeros(3, dtype=torch.float64), 0.1)).all())


def test_a_damped_step_has_no_units_and_a_saddle_has_none():
    gradient = torch.tensor([1.0, -2.0], dtype=torch.float64)
    curvature = torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    units = torch.tensor([1e-6, 1e4], dtype=torch.float64)
    for damping in (1e-3, 1.0):
        one = Scaled.of(gradient, curvature).step(damping)
        other = Scaled.of(gradient / units, curvature / units / units[:, None]).step(damping)
        torch.testing.assert_close(other, one * units, rtol=1e-12, atol=0)
        diagonal = curvature + damping * curvature.diagonal().diag()
        torch.testing.assert_close(one, torch.linalg.solve(diagonal, gradient), rtol=1e-12, atol=0)
    assert Scaled.of(gradient, torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=torch.float64)).step(0.5) is None


def test_methods_are_values_however_their_numbers_are_given():
    one = Butcher([np.array([1])], [0.5, 0.5], 2, HEUN.source)
    assert (one, hash(one)) == (HEUN, hash(HEUN))


def test_affine_maps_are_told_from_those_that_bend():
    """A x + b is found to rounding far from 0; a bend of more than single precision is not affine, nor are infinite values."""
    generator = torch.Generator().manual_seed(1)
    matrix, offset, centre = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 3), (3,), (3,)))
    points = affine.probe_points(100 * centre, 2.0)
    assert float((points[1:4] - points[0]).sub(2 * torch.eye(3)).abs().max()) < 1e-12
    values = points @ matrix.T + offset
    slope, at_centre, bend = affine.affine_map(values, points, 2.0)
    torch.testing.assert_close(slope, matrix, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(at_centre, values[0], rtol=0, atol=0)
    assert bend < 1e-11
    size = float(values.abs().max())
    bent = (points - points[0]).square().sum(1, keepdim=True) / 1e4
    for factor, found in ((1e-9, True), (1e-2, False)):
        answer = affine.affine_map(values + factor * size * bent, points, 2.0)
        assert (answer is not None) == found
    assert affine.affine_map(values + 1e-2 * size * bent, points, 2.0, rounding=size) is not None
    assert affine.affine_map(values * torch.inf, points, 2.0) is None
    assert affine.affine_map(values[:-1], points, 2.0) is None


def test_a_method_of_one_number_is_computed_once_for_each(monkeypatch):
    """Of floats, for each object and each method apart, and for a bounded count of them."""
    from diffode.numerics import memory

    asked = []

    class Power:
        def __init__(self, exponent):
            self.exponent = exponent

        @memory.each_once
        def of(self, x):
            asked.append(x)
            return x**self.exponent

        @memory.each_once
        def twice(self, x):
            return 2 * self.of(x)

    square, cube = Power(2), Power(3)
    assert [square.of(3.0), square.of(3.0), cube.of(3.0), square.twice(3.0), square.of(2.0)] == [9.0, 9.0, 27.0, 18.0, 4.0]
    assert asked == [3.0, 3.0, 2.0]
    assert square.of(3) == square.of(3) == 9
    assert asked[3:] == [3, 3]
    monkeypatch.setattr(memory, "_MOST", 2)
    fresh = Power(2)
    assert [fresh.of(float(i)) for i in (1, 2, 3, 4, 1)] == [1.0, 4.0, 9.0, 16.0, 1.0]
    (answers,) = (held for held in vars(fresh).values() if isinstance(held, dict))
    assert len(answers) <= 3


@pytest.mark.parametrize("count", [3, 127, 128, 131, 300])
@pytest.mark.parametrize("side_by_side", [(), (2,)])
def test_normal_equations_are_the_products_that_they_are_named_after(count, side_by_side):
    generator = torch.Generator().manual_seed(count)
    equations, scaled = NormalEquations(*side_by_side, count), NormalEquations(*side_by_side, count)
    rows = torch.randn(*side_by_side, 50, count, generator=generator, dtype=torch.float64)
    residual = torch.randn(*side_by_side, 50, generator=generator, dtype=torch.float64)
    weight = 0.1 + torch.rand(*side_by_side, 50, generator=generator, dtype=torch.float64)
    for part in (slice(0, 30), slice(30, 50)):
        j, r, w = rows[..., part, :], residual[..., part], weight[..., part]
        equations.add(j, w * r, w)
        scaled.add_scaled(j * w.sqrt()[..., None], r * w.sqrt())
    whole = weight[..., None] * rows
    for found in (equations, scaled):
        torch.testing.assert_close(found.gradient, (whole.mT @ residual[..., None])[..., 0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found.curvature, whole.mT @ rows, rtol=1e-11, atol=1e-11)
