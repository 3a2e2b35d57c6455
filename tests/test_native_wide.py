"""The compiled kernel for full covariances in tens of dimensions: against formulas in many digits, and where it steps aside."""

import mpmath
import pytest
import torch

from diffode import GaussianMixture, native, targets
from diffode.targets import compiled as compiled_module

pytestmark = pytest.mark.skipif(not native.is_on(), reason="there are no compiled kernels here")


def mixture_of(count, dim, narrowest=1e-2, seed=0):
    """Random components, whose variances lie between the narrowest and a few."""
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    weights = torch.arange(1.0, count + 1, dtype=torch.float64)
    means = torch.randn(count, dim, generator=generator, dtype=torch.float64) + 1
    covariances = roots @ roots.mT + narrowest * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, covariances)


def evaluations(mixture, x, alpha, sigma):
    yield "denoised", mixture.noised_view(x, alpha, sigma, 1.0, 0.0)
    yield "score", mixture.noised_view(x, alpha, sigma, 0.0, 1.0)
    yield "velocity", mixture.noised_view(x, alpha, sigma, 0.7, 0.3 * sigma)
    yield "log_prob", mixture.noised_log_prob(x, alpha, sigma)
    yield "responsibilities", mixture.responsibilities(x, alpha, sigma)
    yield "divergence", mixture.noised_score_divergence(x, alpha, sigma)


@pytest.fixture
def only_kernels(monkeypatch):
    """Torch fails where it is asked for anything."""
    monkeypatch.setattr(compiled_module.TorchEvaluation, "_chunks", lambda *_, **__: pytest.fail("torch computed something"))


# Levels without noise, on both sides of the widest deviation (about 1.9), where the form changes, and with little data left.
@pytest.mark.parametrize(
    ("alpha", "sigma"), [(1.0, 0.0), (0.9, 0.05), (1.0, 1.5), (1.0, 2.5), (1.0, 80.0), (1e-3, 1.0), (1.0, 1e6), (0.0, 1.0)]
)
def test_answers_agree_with_the_formulas_in_many_digits(alpha, sigma, only_kernels):
    """Against sums in 60 digits, of which no difference cancels: 1e-12 of what the data is, whatever the noise."""
    count, dim = 3, 5
    mixture = mixture_of(count, dim)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, dim, generator=generator, dtype=torch.float64)
    x = alpha * mixture.sample(4, generator=0) + sigma * noise
    found = dict(evaluations(mixture, x, alpha, sigma))
    with mpmath.workdps(60):
        a, s = mpmath.mpf(alpha), mpmath.mpf(sigma)
        for row in range(len(x)):
            point, parts = mpmath.matrix(x[row].tolist()), []
            for k in range(count):
                mean, c = mpmath.matrix(mixture.means[k].tolist()), mpmath.matrix(mixture.covariances[k].tolist())
                total = a**2 * c + s**2 * mpmath.eye(dim)
                y = point - a * mean
                solved = mpmath.lu_solve(total, y)
                density = mixture.weights[k].item() * mpmath.exp(-(y.T * solved)[0] / 2)
                density /= mpmath.sqrt((2 * mpmath.pi) ** dim * mpmath.det(total))
                inverse = total**-1
                parts.append((density, mean + a * c * solved, solved, sum(inverse[d, d] for d in range(dim))))
            whole = mpmath.fsum(part[0] for part in parts)
            r = [part[0] / whole for part in parts]
            denoised, pull = ([mpmath.fsum(r[k] * parts[k][i][d] for k in range(count)) for d in range(dim)] for i in (1, 2))
            laplacian = mpmath.fsum(
                r[k] * (mpmath.fsum((parts[k][2][d] - pull[d]) ** 2 for d in range(dim)) - parts[k][3]) for k in range(count)
            )
            known = {
                "denoised": denoised, "score": [-v for v in pull],
                "velocity": [0.7 * d - 0.3 * s * v for d, v in zip(denoised, pull, strict=True)],
                "log_prob": [mpmath.log(whole)], "responsibilities": r, "divergence": [laplacian],
            }  # fmt: skip
            for what, values in known.items():
                exact = torch.tensor([float(v) for v in values], dtype=torch.float64)
                error = (found[what][row].reshape(-1) - exact).abs().max() / exact.abs().max()
                assert float(error) < 2e-13, (what, row, float(error))


@pytest.mark.parametrize("sigma", [0.3, 5.0])
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(sigma, only_kernels):
    mixture = mixture_of(3, 13)
    x = 2 * torch.randn(150, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = dict(evaluations(mixture, x, 0.8, sigma))
    for rows in (slice(0, 1), slice(7, 8), slice(3, 70), slice(31, 33), slice(130, 150)):
        for what, found in evaluations(mixture, x[rows], 0.8, sigma):
            assert torch.equal(found, whole[what][rows]), (what, rows)


def test_rows_shared_between_threads_are_the_same_rows(monkeypatch, only_kernels):
    mixture, x = mixture_of(3, 13), torch.randn(1001, 13, dtype=torch.float64)
    known = dict(evaluations(mixture, x, 0.6, 0.5))
    monkeypatch.setattr(compiled_module, "_WIDE_ROWS_OF_A_THREAD", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for what, found in evaluations(mixture, x, 0.6, 0.5):
        assert torch.equal(found, known[what])


@pytest.mark.parametrize("name", ["line16", "digits-gmm10", "patches-gmm"])
@pytest.mark.parametrize("sigma", [80.0, 1.0, 0.02])
def test_answers_agree_with_torch_on_the_targets(name, sigma):
    """To 1e-12 of the largest number."""
    mixture = targets.get(name)
    noise = torch.randn(40, mixture.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = mixture.sample(40, generator=0) + sigma * noise
    found = dict(evaluations(mixture, x, 1.0, sigma))
    by_torch = mixture._by_torch
    known = {
        "denoised": by_torch.view(x, 1.0, sigma, 1.0, 0.0), "score": by_torch.view(x, 1.0, sigma, 0.0, -1.0),
        "velocity": by_torch.view(x, 1.0, sigma, 0.7, -0.3 * sigma), "log_prob": by_torch.log_prob(x, 1.0, sigma),
        "responsibilities": by_torch.responsibilities(x, 1.0, sigma), "divergence": by_torch.score_divergence(x, 1.0, sigma),
    }  # fmt: skip
    for what, values in known.items():
        assert float((found[what] - values).abs().max()) < 1e-12 * float(values.abs().max()), what


def test_narrow_covariances_and_levels_of_the_rows_own_are_left_to_torch(monkeypatch):
    """A covariance whose exponents the kernel would round by more than 1e-12 becomes one for it with enough noise."""
    turned = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    variances = torch.tensor([1e-9, 0.1, 0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    mixture = GaussianMixture([1.0], torch.zeros(1, 6), ((turned * variances) @ turned.T)[None])
    x, taken = torch.randn(5, 6, dtype=torch.float64), mixture._compiled.takes
    # The trace, 3.8 and six times the noise, may be 1e4 times the noise.
    enough = (3.8 / (1e4 - 6)) ** 0.5
    assert not taken(x, 1.0, 0.99 * enough)
    assert taken(x, 1.0, 1.01 * enough)
    assert taken(x, 0.1, 0.101 * enough)
    level = torch.ones(5, dtype=torch.float64)
    assert not taken(x, level, level)
    assert not taken(x, 1.0, 1.0, level, level)
    monkeypatch.setattr(native, "MOST_NUMBERS_OF_FULL", 71)
    assert mixture_of(2, 6).arithmetic == "torch"


def test_numbers_that_are_none_stay_none():
    """So do rows whose squares overflow, of which torch makes no number in these dimensions; other rows do not notice."""
    mixture = mixture_of(2, 6)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = dict(evaluations(mixture, x, 1.0, 0.5))
    odd = x.clone()
    odd[1, 2], odd[3, 0] = float("nan"), 1e160
    for what, found in evaluations(mixture, odd, 1.0, 0.5):
        rows = found.reshape(5, -1)
        assert torch.equal(rows[[0, 2, 4]], known[what].reshape(5, -1)[[0, 2, 4]]), what
        assert not bool(rows[[1, 3]].isfinite().all(1).any()), what
    assert not bool(mixture._by_torch.view(odd, 1.0, 0.5, 1.0, 0.0)[3].isfinite().any())
