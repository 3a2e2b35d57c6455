"""The optimiser of heads' networks: Adam in the axes of each matrix's own gradients."""

import torch

from diffode.learned.heads.soap import SOAP


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soap_is_adam_on_vectors_and_knows_no_axes_on_matrices():
    """Rotating both sides of a matrix rotates every step of SOAP; Adam's steps change."""
    vector = normal(5)
    own, other = vector.clone(), vector.clone().requires_grad_(True)
    soap, adam = SOAP([own], [1.0], 0.9, 0.95), torch.optim.Adam([other], lr=0.1, betas=(0.9, 0.95), eps=0.0)
    for step in range(5):
        gradient = normal(5, seed=step + 1)
        soap.step([gradient], 0.1)
        other.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(own, other.detach(), rtol=1e-6, atol=1e-6)
    left, right = (torch.linalg.qr(normal(n, n, seed=n))[0] for n in (4, 3))
    plain, turned = normal(4, 3), left @ normal(4, 3) @ right.T
    first, second = SOAP([plain], [1.0], every=2), SOAP([turned], [1.0], every=2)
    for step in range(7):
        gradient = normal(4, 3, seed=10 + step)
        first.step([gradient], 0.1)
        second.step([left @ gradient @ right.T], 0.1)
    torch.testing.assert_close(turned, left @ plain @ right.T, rtol=1e-6, atol=1e-6)


def test_soap_finds_the_least_of_an_ill_conditioned_square():
    """A quadratic in a matrix whose curvature has ratios of 1e4 and no axes: a thousandth of the start in 300 steps."""
    left, right = (torch.linalg.qr(normal(6, 6, seed=n))[0] for n in (1, 2))
    a = left @ torch.diag(torch.logspace(0, -2, 6, dtype=torch.float64)) @ right
    own, wanted = torch.zeros(6, 6, dtype=torch.float64), normal(6, 6, seed=3)
    soap = SOAP([own], [1.0], every=10)
    first = float((a @ (own - wanted) @ a.T).square().sum())
    for step in range(300):
        soap.step([a.T @ (a @ (own - wanted) @ a.T) @ a], 0.1 * (1 - step / 300))
    assert float((a @ (own - wanted) @ a.T).square().sum()) < 1e-3 * first
