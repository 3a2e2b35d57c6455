"""Low-rank components against mpmath: nothing is lost where a component is much narrower across its factors than along."""

import mpmath
import numpy as np
import pytest
import torch

import diffode
from diffode import GaussianMixture, LowRank


def exact_views(weights, means, factors, noise, x, sigma):
    """log p, score, denoised and the divergence of the velocity on EDM at x (D,), with 60 digits."""
    with mpmath.workdps(60):
        dim = len(x)
        logs, scores, traces = [], [], []
        for w, m, f, n in zip(weights, means, factors, noise, strict=True):
            f = mpmath.matrix(f.tolist())
            law = f * f.T + (mpmath.mpf(float(n)) + mpmath.mpf(sigma) ** 2) * mpmath.eye(dim)
            offset = mpmath.matrix([mpmath.mpf(float(a)) - mpmath.mpf(float(b)) for a, b in zip(x, m, strict=True)])
            inverse = law**-1
            pulled = inverse * offset
            logs.append(mpmath.log(float(w)) - (dim * mpmath.log(2 * mpmath.pi) + mpmath.log(mpmath.det(law))
                                                + (offset.T * pulled)[0]) / 2)  # fmt: skip
            scores.append(-pulled)
            traces.append(sum(inverse[i, i] for i in range(dim)))
        largest = max(logs)
        total = mpmath.fsum(mpmath.exp(v - largest) for v in logs)
        shares = [mpmath.exp(v - largest) / total for v in logs]
        score = [mpmath.fsum(r * s[i] for r, s in zip(shares, scores, strict=True)) for i in range(dim)]
        spread = mpmath.fsum(
            r * (mpmath.fsum((s[i] - score[i]) ** 2 for i in range(dim)) - trace)
            for r, s, trace in zip(shares, scores, traces, strict=True)
        )
        denoised = [mpmath.mpf(float(x[i])) + mpmath.mpf(sigma) ** 2 * score[i] for i in range(dim)]
        return (
            float(largest + mpmath.log(total)),
            np.array([float(v) for v in score]),
            np.array([float(v) for v in denoised]),
            float(-sigma * spread),
        )


def relative(found, exact):
    return float(np.linalg.norm(np.atleast_1d(found) - exact) / np.linalg.norm(np.atleast_1d(exact)))


def drawn(seed):
    """A mixture of three components in six dimensions, a noise level and a point: scales over many decades."""
    draw = np.random.default_rng([5, seed])
    weights = draw.dirichlet(np.ones(3))
    along, noise, sigma = 10.0 ** draw.uniform(-2, 3), 10.0 ** draw.uniform(-10, 0), 10.0 ** draw.uniform(-5, 1)
    factors, noises = draw.normal(size=(3, 6, 2)) * along, noise * draw.uniform(0.5, 2, 3)
    means = draw.normal(size=(3, 6)) * min(along, 1.0)
    law = means[0] + factors[0] @ draw.normal(size=2) + (noises[0] + sigma**2) ** 0.5 * draw.normal(size=6)
    return weights, means, factors, noises, law, sigma


def narrow(seed, on_plane=True):
    """Factors near 1e3, noise 1e-10, sigma 1e-5: at a draw of the law itself, and at a point that is none."""
    draw = np.random.default_rng([6, seed])
    weights, means, factors = draw.dirichlet(np.ones(3)), draw.normal(size=(3, 8)), draw.normal(size=(3, 8, 2)) * 1e3
    law = means[0] + factors[0] @ draw.normal(size=2) + (2e-10) ** 0.5 * draw.normal(size=8)
    return weights, means, factors, np.full(3, 1e-10), law if on_plane else draw.normal(size=8), 1e-5


@pytest.mark.parametrize(
    "case",
    [narrow(0), narrow(1), narrow(2, on_plane=False), *(drawn(seed) for seed in range(10))],
    ids=["narrow 0", "narrow 1", "narrow, off the planes", *(f"random {seed}" for seed in range(10))],
)
def test_low_rank_components_keep_their_digits(case):
    """To 1e-9, and to what moving x by half a unit in its last place does to the exact answer, where that is more.

    It is more for the score of draws a thousand long and 1e-5 off their plane: there x has eight digits of that distance.
    """
    weights, means, factors, noise, x, sigma = case
    log_density, score, denoised, divergence = exact_views(*case)
    field = diffode.exact_field(GaussianMixture(weights, means, LowRank(factors, noise)), "edm")
    point = torch.from_numpy(x)[None]
    off_plane = np.linalg.norm(score) * (noise.min() + sigma**2)
    rounding = 2.0**-53 * np.linalg.norm(x) / off_plane
    assert relative(field.score(point, sigma)[0].numpy(), score) < 1e-9 + 4 * rounding
    shift = rounding * (score @ score) * (noise.min() + sigma**2) / abs(log_density)
    assert relative(field.log_prob(point, sigma).numpy(), log_density) < 1e-9 + 4 * shift
    assert relative(field.denoised(point, sigma)[0].numpy(), denoised) < 1e-9
    assert relative(field.divergence(point, sigma).numpy(), divergence) < 1e-9


def test_a_flow_of_low_rank_gaussians_keeps_its_digits_across():
    """Component by component the flow stretches by sqrt(variance after/variance before): here 1e4 across, 1 along."""
    factors = torch.tensor([[[1e3], [0.0], [0.0]]], dtype=torch.float64)
    target = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], LowRank(factors, [1e-12]))
    x = torch.tensor([[700.0, 1e-6, -2e-6]], dtype=torch.float64)
    end = diffode.reference(diffode.exact_field(target, "edm"), x, 0.0, 0.01).x
    gain = ((1e-12 + 1e-4) / 1e-12) ** 0.5
    along = 700.0 * ((1e6 + 1e-12 + 1e-4) / (1e6 + 1e-12)) ** 0.5
    expected = torch.tensor([[along, 1e-6 * gain, -2e-6 * gain]], dtype=torch.float64)
    torch.testing.assert_close(end, expected, rtol=1e-13, atol=0)
