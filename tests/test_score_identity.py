"""Score identity distillation on a Gaussian: the identity, values, frozen gradients, where training leads."""

import pytest
import torch

from diffode.errors import ArgumentError
from diffode.verify.theory.score_identity import identity_losses, identity_path

CASES = [(0.5, 1.0, 3.0, 0.3, 0.7), (-1.0, 2.0, 0.4, 2.5, 1.5), (0.0, 0.5, 0.0, 0.9, 0.2)]


def draws(b, s, sigma, count=64):
    """Generated points and noise with exact second moments, and with b and s that can be differentiated."""
    base = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    both = (base[None] * signs[:, None]).reshape(-1, 2)
    both = both / both.square().mean(0).sqrt()
    clean = b + s * both[:, 0]
    return clean, clean + sigma * both[:, 1]


def denoisers(m, lam, b, s, sigma):
    """Those of the data and of the generator, exact; numbers of the latter are frozen."""
    mean, deviation = (float(torch.as_tensor(v).detach()) for v in (b, s))
    k, q = lam / (lam + sigma**2), deviation**2 / (deviation**2 + sigma**2)

    return (lambda x: m + k * (x - m)), (lambda x: mean + q * (x - mean))


@pytest.mark.parametrize("case", CASES)
def test_the_identity_holds_at_the_generator_s_own_score(case):
    """E<f(x_t), D_psi> = E<f(x_t), x_0> for any f of x_t: for f = 1 and x here, which give all lines."""
    m, lam, b, s, sigma = case
    clean, x = draws(torch.tensor(b), torch.tensor(s), sigma)
    _, fake = denoisers(m, lam, b, s, sigma)
    for f in (torch.ones_like(x), x):
        assert float((f * fake(x)).mean()) == pytest.approx(float((f * clean).mean()), abs=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_values_and_frozen_gradients(case, alpha):
    m, lam, b, s, sigma = case
    b, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (b, s))
    clean, x = draws(b, s, sigma)
    real, fake = denoisers(m, lam, b, s, sigma)
    apart = real(x) - fake(x)
    fisher, identity = apart.square().mean(), (apart * (real(x) - clean)).mean()
    known = identity_losses(m, lam, float(b.detach()), float(s.detach()), sigma, alpha)
    assert float(fisher.detach()) == pytest.approx(known.fisher, rel=1e-9)
    assert float(identity.detach()) == pytest.approx(known.identity, rel=1e-9)
    # The value is (1 - alpha) L1, negative at 1.2: it says nothing of progress.
    assert float((identity - alpha * fisher).detach()) == pytest.approx((1 - alpha) * known.fisher, rel=1e-8, abs=1e-12)
    gradients = torch.autograd.grad(identity - alpha * fisher, (b, s), retain_graph=True)
    assert [float(g) for g in gradients] == pytest.approx([known.by_mean, known.by_deviation], rel=1e-9, abs=1e-12)
    naive = torch.autograd.grad(fisher, (b, s))
    assert [float(g) for g in naive] == pytest.approx([known.naive_by_mean, known.naive_by_deviation], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_the_gradient_vanishes_at_the_data_only(alpha):
    at = identity_losses(0.3, 0.8, 0.3, 0.8**0.5, 0.6, alpha)
    assert (at.by_mean, at.by_deviation) == pytest.approx((0.0, 0.0), abs=1e-15)
    for b, s in ((0.4, 0.8**0.5), (0.3, 0.7), (0.3, 1.0)):
        away = identity_losses(0.3, 0.8, b, s, 0.6, alpha)
        assert abs(away.by_mean) + abs(away.by_deviation) > 1e-3


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_score_identity_leads_to_the_data(alpha):
    b, s = identity_path((3.0, 0.3), alpha)[-1]
    assert (b, s) == pytest.approx((0.0, 1.0), abs=5e-5)


def test_the_frozen_fisher_divergence_diverges():
    """From a narrow start the mean runs off and the variance collapses; from a wide one it creeps towards the data."""
    b, s = identity_path((3.0, 0.3), None)[-1]
    assert b > 1e5
    assert s < 1e-30
    b, s = identity_path((3.0, 2.0), None)[-1]
    assert (b, s) == pytest.approx((0.144, 1.118), abs=1e-3)


def test_the_frozen_fisher_divergence_never_widens():
    for s in (0.1, 1.0, 5.0):
        assert identity_losses(0.0, 1.0, 0.0, s, 0.5).naive_by_deviation >= 0
    # Where the generator is too narrow, its mean is pushed away from that of the data.
    assert identity_losses(0.0, 1.0, 2.0, 0.3, 0.5).naive_by_mean < 0 < identity_losses(0.0, 1.0, 2.0, 3.0, 0.5).naive_by_mean


def test_a_large_alpha_has_a_region_of_the_wrong_sign():
    """1 - k < alpha (q - k): at s = 3, sigma = .5 a generator that is too wide is widened by alpha = 1.2, not by 1."""
    wrong, right = (identity_losses(0.0, 1.0, 0.0, 3.0, 0.5, alpha) for alpha in (1.2, 1.0))
    assert wrong.by_deviation < 0 < right.by_deviation


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="variance and sigma"):
        identity_losses(0.0, 1.0, 0.0, 1.0, 0.0)
