"""The compiled kernels against the torch code they stand in for, against formulas, and where they step aside."""

import os
import subprocess
import sys
import warnings

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import diffode
from diffode import GaussianMixture, native, targets
from diffode.targets import compiled as compiled_module

pytestmark = pytest.mark.skipif(not native.is_on(), reason="there are no compiled kernels here")

SMALL = [name for name in targets.names() if targets.get(name).dim <= native.MOST_DIMENSIONS]
KINDS = {
    "isotropic": [0.5, 0.02],
    "diagonal": [[0.5, 0.1], [0.02, 3.0]],
    "full": [[[0.5, 0.2], [0.2, 0.3]], [[0.02, 0.0], [0.0, 3.0]]],
}


def by_torch(mixture):
    """The same mixture, evaluated by torch alone."""
    other = mixture.__class__.__new__(mixture.__class__)
    other.__dict__.update(mixture.__dict__)
    other.__dict__["_compiled"] = None
    return other


def evaluations(mixture, x, alpha, sigma):
    """Everything that a mixture is asked for, as terms of one size: the weights belong to a velocity of VP."""
    yield "denoised", mixture.noised_view(x, alpha, sigma, 1.0, 0.0)
    yield "noise", mixture.noised_view(x, alpha, sigma, 0.0, -sigma)
    yield "velocity", mixture.noised_view(x, alpha, sigma, 0.7 * sigma, 0.3 * sigma)
    yield "log_prob", mixture.noised_log_prob(x, alpha, sigma)
    yield "responsibilities", mixture.responsibilities(x, alpha, sigma)
    yield "divergence", mixture.noised_score_divergence(x, alpha, sigma)


def test_small_targets_and_full_covariances_are_compiled_and_no_others():
    assert {targets.get(name).dim for name in SMALL} == {1, 2}
    compiled = {name for name in targets.names() if targets.get(name).arithmetic == "native"}
    assert compiled - set(SMALL) == {"line16", "digits-gmm10", "patches-gmm"}


#: Mixtures with a kernel of each kind: in one and two dimensions, along the axes and rotated, and in tens of dimensions.
EACH_KIND = ["bimodal1d", "ring8", "pinwheel", "line16", "digits-gmm10"]


@pytest.mark.parametrize("own", [False, True], ids=["one level", "a level for every row"])
@pytest.mark.parametrize("name", EACH_KIND)
def test_kernels_stay_within_the_room_that_they_ask_for(name, own, monkeypatch):
    """What lies behind that room belongs to others."""
    behind, places = 4096, []

    def room_before_marks(room):
        places.append(torch.full((room + behind,), 0.125, dtype=torch.float64))
        return places[-1].data_ptr()

    monkeypatch.setattr(compiled_module, "_workplace", room_before_marks)
    mixture = targets.get(name)
    x = mixture.sample(70, generator=0)
    level = torch.full((70, 1), 0.5, dtype=torch.float64) if own else 0.5
    for _, answer in evaluations(mixture, x, 1.0, level):
        assert bool(answer.isfinite().all())
    # In tens of dimensions rows with levels of their own are torch's.
    assert bool(places) is not (own and mixture.dim > native.MOST_DIMENSIONS)
    assert all(bool((place[-behind:] == 0.125).all()) for place in places)


@pytest.mark.parametrize("own", [False, True], ids=["one level", "a level for every row"])
@pytest.mark.parametrize("name", SMALL)
def test_kernels_agree_with_torch_on_every_target(name, own):
    """To 1e-12 of the largest term where samplers go, from much noise to little; far out to the rounding of the distances."""
    mixture = targets.get(name)
    reference = by_torch(mixture)
    for alpha, sigma in ((1.0, 80.0), (1.0, 1.0), (0.3, 0.95), (0.999, 0.02)):
        noise = torch.randn(60, mixture.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        near = alpha * mixture.sample(60, generator=0) + sigma * noise
        a, s = alpha, sigma
        if own:
            spread = torch.linspace(0.9, 1.1, 60, dtype=torch.float64)[:, None]
            a, s = alpha * spread, sigma / spread
        for x in (near, 20 * near):
            size = float(x.abs().max()) + float(mixture.means.abs().max())
            distance = (size / sigma) ** 2 if x is not near else 0.0
            for (what, found), (_, known) in zip(evaluations(mixture, x, a, s), evaluations(reference, x, a, s), strict=True):
                scale = {"responsibilities": 1.0, "divergence": (size / sigma) ** 2}.get(
                    what, max(size, float(known.abs().max()))
                )
                error = float((found - known).abs().max())
                assert error < (1e-12 + 4 * 2.0**-53 * distance) * scale, (what, alpha, sigma, error / scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_kernels_agree_with_the_formulas_in_many_digits(kind, dim):
    """Against sums in 40 digits: log p, the score by its derivative, and the divergence by the score's."""
    generator = torch.Generator().manual_seed(dim)
    roots = torch.randn(3, dim, dim, generator=generator, dtype=torch.float64)
    covariances = {
        "isotropic": torch.tensor([0.5, 0.02, 1e-4], dtype=torch.float64),
        "diagonal": torch.tensor([[0.5, 0.1, 2.0], [0.02, 3.0, 1.0], [1e-4, 1.0, 0.3]], dtype=torch.float64)[:, :dim],
        "full": roots @ roots.mT + 1e-3 * torch.eye(dim),
    }[kind]
    if kind == "diagonal" and dim == 3:
        covariances = torch.cat([covariances, covariances[:1]])
    count = len(covariances)
    weights = torch.arange(1.0, count + 1, dtype=torch.float64)
    means = 2 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture(weights / weights.sum(), means, covariances)
    assert mixture.arithmetic == "native"
    x = torch.randn(6, dim, generator=generator, dtype=torch.float64) * 2
    alpha, sigma = 0.8, 0.3
    found = dict(evaluations(mixture, x, alpha, sigma))
    score = mixture.noised_view(x, alpha, sigma, 0.0, 1.0)
    full = mixture.covariances
    matrices = [
        (c * torch.eye(dim, dtype=torch.float64) if c.ndim == 0 else torch.diag(c) if c.ndim == 1 else c).tolist() for c in full
    ]
    with mpmath.workdps(40):
        for row in range(len(x)):
            point = mpmath.matrix(x[row].tolist())
            densities, pulls, traces = [], [], []
            for w, mu, c in zip(mixture.weights.tolist(), means.tolist(), matrices, strict=True):
                total = mpmath.mpf(alpha) ** 2 * mpmath.matrix(c) + mpmath.mpf(sigma) ** 2 * mpmath.eye(dim)
                y = point - mpmath.mpf(alpha) * mpmath.matrix(mu)
                solved = mpmath.lu_solve(total, y)
                norm = mpmath.sqrt((2 * mpmath.pi) ** dim * mpmath.det(total))
                densities.append(w * mpmath.exp(-(y.T * solved)[0] / 2) / norm)
                pulls.append(-solved)
                inverse = total**-1
                traces.append(sum(inverse[d, d] for d in range(dim)))
            whole = mpmath.fsum(densities)
            r = [one / whole for one in densities]
            exact = [mpmath.fsum(r[k] * pulls[k][d] for k in range(count)) for d in range(dim)]
            laplacian = mpmath.fsum(
                r[k] * (mpmath.fsum((pulls[k][d] - exact[d]) ** 2 for d in range(dim)) - traces[k]) for k in range(count)
            )
            assert float(found["log_prob"][row]) == pytest.approx(float(mpmath.log(whole)), rel=1e-13, abs=1e-13)
            assert score[row].tolist() == pytest.approx([float(v) for v in exact], rel=1e-12, abs=1e-12)
            assert float(found["divergence"][row]) == pytest.approx(float(laplacian), rel=1e-11, abs=1e-11)
            assert found["responsibilities"][row].tolist() == pytest.approx([float(v) for v in r], rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [False, True])
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(kind, own):
    mixture = GaussianMixture([0.3, 0.7], [[0.0, 1.0], [2.0, -1.0]], KINDS[kind])
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.linspace(0.2, 0.9, 200, dtype=torch.float64)[:, None] if own else 0.6
    s = torch.linspace(0.9, 0.1, 200, dtype=torch.float64)[:, None] if own else 0.5
    whole = dict(evaluations(mixture, x, a, s))
    for rows in (slice(0, 1), slice(7, 8), slice(3, 70), slice(63, 65), slice(130, 200)):
        part = evaluations(mixture, x[rows], *((v[rows] if own else v) for v in (a, s)))
        for what, found in part:
            assert torch.equal(found, whole[what][rows]), (what, rows)


def test_rows_shared_between_threads_are_the_same_rows(monkeypatch):
    mixture, x = targets.get("ring8"), torch.randn(1001, 2, dtype=torch.float64)
    known = dict(evaluations(mixture, x, 0.6, 0.5))
    monkeypatch.setattr(compiled_module, "_ROWS_OF_A_THREAD", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for what, found in evaluations(mixture, x, 0.6, 0.5):
        assert torch.equal(found, known[what])


def test_exponential_and_logarithm_keep_their_digits():
    """Against NumPy: to two units in the last place, from the largest to the smallest arguments that occur."""
    import numba

    from diffode.native import elementary

    @numba.vectorize(["float64(float64)"])
    def exponential(v):
        return elementary.exponential(v)

    @numba.vectorize(["float64(float64)"])
    def logarithm(v):
        return elementary.logarithm(v)

    below = -np.concatenate([np.linspace(0, 708, 200_001), np.geomspace(1e-300, 1, 1000)])
    assert float(np.abs(exponential(below) / np.exp(below) - 1).max()) < 3e-16
    assert exponential(0.0) == 1.0
    assert 0 < exponential(-1e5) == exponential(-709.0) < 1e-307
    with np.errstate(invalid="ignore"):
        assert np.isnan(exponential(np.nan))
    positive = np.concatenate([np.geomspace(1e-290, 1e290, 100_001), np.linspace(0.5, 2.0, 100_001)])
    error = np.abs(logarithm(positive) - np.log(positive)) / np.maximum(np.abs(np.log(positive)), 1e-300)
    assert float(error[np.log(positive) != 0].max()) < 5e-16
    assert logarithm(1.0) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [False, True])
def test_components_are_told_apart_far_out(kind, own):
    """Against sums in 40 digits, where the squares of the distances are rounded by more than their differences."""
    alike = {"isotropic": [0.3, 0.3], "diagonal": [[0.3, 0.2], [0.3, 0.2]], "full": [[[0.5, 0.2], [0.2, 0.3]]] * 2}[kind]
    sigma = 0.5
    for covariances in (alike, KINDS[kind]):
        mixture = GaussianMixture([0.3, 0.7], [[0.25, 1.0], [0.5, 0.5]], covariances)
        assert mixture.arithmetic == "native"
        # On the line of equal densities, beside which a distance of 1/|x| changes the odds, and beyond it.
        x = torch.tensor([[3e8, 1.5e8], [1e6, 5e5], [2e5, 1e5 + 0.3], [-1e5, -5e4], [1e140, -1e140]], dtype=torch.float64)
        level = torch.full((len(x), 1), sigma, dtype=torch.float64) if own else sigma
        found = mixture.responsibilities(x, 1.0, level)
        exact = torch.tensor([responsibilities_in_digits(mixture, row, 1.0, sigma) for row in x.tolist()], dtype=torch.float64)
        # Of the exponent, which is (x - midpoint) . (difference of the means)/u, a rounding of each term is left.
        size = x.abs().amax(1, keepdim=True) if covariances is alike else 0.0 * x[:, :1]
        tolerance = 4 * 2.0**-53 * size.clamp(max=1e9) + 1e-14
        assert bool(((found - exact).abs() < tolerance).all()), (kind, found - exact)
        assert torch.equal(found[2:3], mixture.responsibilities(x[2:3], 1.0, level[2:3] if own else level))


def responsibilities_in_digits(mixture, point, alpha, sigma):
    covariances = mixture.covariances
    with mpmath.workdps(320):
        exponents = []
        for w, mu, c in zip(mixture.weights.tolist(), mixture.means.tolist(), covariances, strict=True):
            matrix = c if c.ndim == 2 else torch.diag(c.expand(mixture.dim))
            total = mpmath.mpf(alpha) ** 2 * mpmath.matrix(matrix.tolist()) + mpmath.mpf(sigma) ** 2 * mpmath.eye(mixture.dim)
            y = mpmath.matrix(point) - mpmath.mpf(alpha) * mpmath.matrix(mu)
            exponents.append(mpmath.log(w) - mpmath.log(mpmath.det(total)) / 2 - (y.T * total**-1 * y)[0] / 2)
        highest = max(exponents)
        parts = [mpmath.exp(e - highest) for e in exponents]
        return [float(part / mpmath.fsum(parts)) for part in parts]


def test_squares_that_overflow_are_left_to_torch():
    mixture = targets.get("ring8")
    x = torch.tensor([[1.0, 2.0], [1e160, 1.0], [float("nan"), 1.0], [0.5, -1e200]], dtype=torch.float64)
    for own in (False, True):
        level = torch.full((4, 1), 0.5, dtype=torch.float64) if own else 0.5
        for (what, found), (_, known), (_, alone) in zip(
            evaluations(mixture, x, 1.0, level),
            evaluations(by_torch(mixture), x, 1.0, level),
            evaluations(mixture, x[:1], 1.0, level[:1] if own else level),
            strict=True,
        ):
            torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12, equal_nan=True, msg=what)
            assert torch.equal(found[:1], alone), what
    assert bool(mixture.responsibilities(x, 1.0, 0.5)[[0, 1, 3]].isfinite().all())


def test_numbers_that_are_none_stay_none():
    mixture = targets.get("ring8")
    x = torch.tensor([[float("nan"), 0.0], [1.0, 2.0], [float("inf"), 0.0]], dtype=torch.float64)
    for what, found in evaluations(mixture, x, 1.0, 1.0):
        finite = torch.isfinite(found.reshape(3, -1)).all(1).tolist()
        assert finite == [False, True, False], what


def test_point_masses_and_data_far_from_zero():
    masses = GaussianMixture.from_points([[1e6, 1.0], [1e6 + 1, 2.0]])
    assert masses.arithmetic == "native"
    x = torch.tensor([[1e6 + 0.4, 1.5]], dtype=torch.float64)
    for (what, found), (_, known) in zip(
        evaluations(masses, x, 1.0, 0.1), evaluations(by_torch(masses), x, 1.0, 0.1), strict=True
    ):
        torch.testing.assert_close(found, known, rtol=1e-11, atol=1e-12, msg=what)
    with pytest.raises(diffode.errors.ArgumentError, match="no field at sigma = 0"):
        masses.noised_view(x, 1.0, 0.0, 0.0, 1.0)


def test_torch_takes_over_where_more_than_numbers_is_asked(monkeypatch):
    """Gradients, transforms, forward derivatives, wrong shapes and extreme levels; never a kernel."""
    mixture, x = targets.get("moons"), torch.randn(3, 2, dtype=torch.float64)
    monkeypatch.setattr(compiled_module.Compiled, "_run", lambda *_: pytest.fail("a kernel ran"))

    def score(points, sigma=0.5):
        return mixture.noised_view(points, 1.0, sigma, 0.0, 1.0)

    with_gradient = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mixture.noised_log_prob(with_gradient, 1.0, 0.5).sum(), with_gradient)
    monkeypatch.undo()
    torch.testing.assert_close(slope, score(x), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(compiled_module.Compiled, "_run", lambda *_: pytest.fail("a kernel ran"))
    level = torch.full((3, 1), 0.5, dtype=torch.float64, requires_grad=True)
    assert mixture.noised_view(x, torch.ones_like(level), level, 0.0, 1.0).requires_grad
    with warnings.catch_warnings(), torch.autograd.forward_ad.dual_level():
        # torch warns of a part of its own when it first derives forwards.
        warnings.simplefilter("ignore", DeprecationWarning)
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(score(dual)).tangent is not None
    assert bool(torch.isfinite(targets.get("gauss2d").noised_view(x, 1.0, 1e145, 0.0, 1.0)).all())
    with pytest.raises(diffode.errors.ArgumentError, match="x must be"):
        mixture.noised_view(torch.zeros(2, 3, dtype=torch.float64), 1.0, 1.0, 0.0, 1.0)


def test_tensors_whose_memory_does_not_hold_their_numbers_and_traces_are_left_to_torch():
    """Negated views, zeros without memory, empty batches, and traces, also as the first thing that is asked of a mixture."""
    mixture = GaussianMixture([0.3, 0.7], [[0.0, 1.0], [2.0, -1.0]], [0.5, 0.02])
    with warnings.catch_warnings():
        # torch warns that traces of this kind go out of use, and of every decision that one takes for granted.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            lambda x: mixture.noised_view(x, 0.9, 0.5, 0.7, 0.3), torch.ones(3, 2, dtype=torch.float64), check_trace=False
        )
    x = torch.randn(70, 2, dtype=torch.float64)
    torch.testing.assert_close(traced(x), mixture.noised_view(x, 0.9, 0.5, 0.7, 0.3), rtol=1e-12, atol=1e-12)
    recorded = torch.fx.experimental.proxy_tensor.make_fx(lambda x: mixture.noised_view(x, 0.9, 0.5, 0.7, 0.3))(x + 1)
    torch.testing.assert_close(recorded(x), mixture.noised_view(x, 0.9, 0.5, 0.7, 0.3), rtol=1e-12, atol=1e-12)
    for odd in (torch._neg_view(x), torch._efficientzerotensor((3, 2), dtype=torch.float64)):
        plain = odd.resolve_neg() + 0
        for (what, found), (_, known) in zip(
            evaluations(mixture, odd, 0.9, 0.5), evaluations(mixture, plain, 0.9, 0.5), strict=True
        ):
            torch.testing.assert_close(found, known, rtol=1e-11, atol=1e-12, msg=what)
    level = torch.zeros(0, 1, dtype=torch.float64)
    for what, found in evaluations(mixture, x[:0], 0.9, level):
        assert len(found) == 0, what


def test_single_precision_goes_in_and_comes_out():
    mixture = targets.get("spiral")
    x = torch.randn(50, 2)
    for (what, found), (_, known) in zip(
        evaluations(mixture, x, 1.0, 0.4), evaluations(mixture, x.double(), 1.0, 0.4), strict=True
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, known.float()), what
    strided = torch.randn(2, 50, dtype=torch.float64).T
    torch.testing.assert_close(
        mixture.noised_log_prob(strided, 1.0, 1.0), mixture.noised_log_prob(strided.contiguous(), 1.0, 1.0), rtol=0, atol=0
    )


def test_the_environment_switches_kernels_off():
    code = (
        "from diffode import native, targets; from diffode.studies.cell_keys import environment; "
        "print(native.version(), targets.get('ring8').arithmetic, environment()['fields'])"
    )
    for value, said in (("0", "torch torch torch"), ("1", f"{native.version()} native {native.version()}")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "DIFFODE_NATIVE": value},
        )
        assert done.stdout.strip() == said


def test_results_of_kernels_have_keys_of_their_own(monkeypatch):
    from diffode.studies import Cell
    from diffode.studies.cell_keys import cell_key

    cell = Cell("ring8", "edm", 0, "karras", "ddim", 4, 4, "float64", ("endpoint",), 1e-6)
    key = cell_key(cell)
    monkeypatch.setattr(GaussianMixture, "arithmetic", "torch")
    assert cell_key(cell) != key


def test_a_weight_of_the_denoised_point_that_is_zero_in_one_row_is_not_so_in_others():
    """Velocities of paths with alpha' = 0 at one time ask for such weights."""
    mixture, x = targets.get("moons"), torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.full((5, 1), 0.7, dtype=torch.float64)
    weight = torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0], dtype=torch.float64)[:, None]
    found = mixture.noised_view(x, level, level, weight, 0.3 * level)
    known = by_torch(mixture).noised_view(x, level, level, weight, 0.3 * level)
    torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12)


# PyTorch compiles its own rules for this mode when they are first needed, and warns of how it does.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_derivatives_in_forward_mode_are_torchs():
    """Of numbers with a tangent, which a kernel would drop."""
    mixture, step = targets.get("ring8"), 1e-6
    x, along = mixture.sample(5, generator=0), torch.tensor([[0.6, -0.8]], dtype=torch.float64).expand(5, 2)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(mixture.noised_view(forward_ad.make_dual(x, along), 1.0, 0.5, 1.0, 0.0)).tangent
    ahead, behind = (mixture.noised_view(x + side * step * along, 1.0, 0.5, 1.0, 0.0) for side in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
