"""Couplings of data and source: transport costs, entropic transport, plans between mixtures, and refusals."""

import math

import pytest
import torch

import diffode
from diffode import bridges
from diffode.errors import ArgumentError, UnknownNameError
from diffode.metrics import gaussian_w2
from diffode.numerics.gaussian_transport import bures_costs, cross_covariance, optimal_map


def spd(dim, seed, floor=0.05):
    factor = torch.randn(dim, 2 * dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T / (2 * dim) + floor * torch.eye(dim).double()


def gaussian(dim, seed, shift=0.0):
    mean = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return diffode.GaussianMixture([1.0], mean + shift, spd(dim, seed)[None])


def mixture(count, dim, seed):
    draws = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=draws, dtype=torch.float64) + 0.2
    means = 3 * torch.randn(count, dim, generator=draws, dtype=torch.float64)
    covariances = torch.stack([spd(dim, seed + k) for k in range(count)])
    return diffode.GaussianMixture(weights / weights.sum(), means, covariances)


def test_brenier_s_map_carries_one_covariance_to_the_other():
    for dim, seed in ((1, 0), (4, 1), (16, 2)):
        one, two = spd(dim, seed), spd(dim, seed + 50, 0.01)
        transport = optimal_map(one, two)
        assert float((transport @ one @ transport - two).abs().max()) < 1e-13 * float(two.abs().max())
        assert float(torch.linalg.eigvalsh(transport).min()) > 0
        assert float((cross_covariance(one, two) - one @ transport).abs().max()) < 1e-13


@pytest.mark.parametrize("dim", [1, 5])
def test_the_energy_of_the_optimal_coupling_is_the_squared_distance(dim):
    data, source = gaussian(dim, 1), gaussian(dim, 9, 2.0)
    coupling = bridges.optimal(data, source)
    square = gaussian_w2(data.mean, data.covariance, source.mean, source.covariance) ** 2
    assert abs(coupling.energy / square - 1) < 1e-12
    assert coupling.energy < bridges.independent(data, source).energy
    # The kinetic energy of the flow is the same at every time.
    bridge = diffode.Bridge(coupling)
    for t in (0.0, 0.4, 1.0):
        mean, covariance = bridge.law(t).mean, bridge.law(t).covariance
        at_mean = bridge.velocity(mean[None], t)[0]
        steps = torch.eye(dim).double()
        slope = bridge.velocity(mean + steps, t) - at_mean
        energy = at_mean.square().sum() + (slope.T @ covariance @ slope).trace()
        assert abs(float(energy) / square - 1) < 1e-12
        assert float((slope - slope.T).abs().max()) < 1e-12


@pytest.mark.parametrize("variance", [0.013, 0.4, 3.0, 70.0])
def test_the_entropic_coupling_has_the_precision_of_its_process(variance):
    """The joint density is a(x_0) b(x_1) exp(-|x_0 - x_1|^2/(2 s^2)), so that the precision's corner is -I/s^2."""
    data, source = gaussian(4, 3), gaussian(4, 5, 1.0)
    coupling = bridges.schroedinger(data, source, math.sqrt(variance))
    corner = torch.linalg.inv(coupling.joint[0])[:4, 4:]
    assert float((corner * variance + torch.eye(4).double()).abs().max()) < 1e-11
    # Forward, the drift of its SDE is that of bridges towards the source.
    bridge, t = diffode.Bridge(coupling), 0.3
    assert bridge.coefficients.spec == f"foellmer:sigma={math.sqrt(variance)!r}"
    x, law = bridge.marginal(16, t, generator=0), bridge.law(t)
    with_source = (1 - t) * coupling.cross[0].T + t * source.covariance
    ahead = source.mean + (x - law.mean) @ torch.linalg.solve(law.covariance, with_source.T)
    expected = (ahead - x) / (1 - t)
    found = bridge.sde(math.sqrt(variance)).drift(x, t)
    assert float((found - expected).abs().max()) < 1e-11 * float(expected.abs().max())


def test_the_limits_of_entropic_transport():
    data, source = gaussian(3, 7), gaussian(3, 8, 1.0)
    best = bridges.optimal(data, source).cross
    for sigma, power in ((1e-2, 2), (1e-3, 2)):
        near = bridges.schroedinger(data, source, sigma).cross
        # X = C T - s^2/2 I + O(s^4).
        assert float((near - best + sigma**power / 2 * torch.eye(3).double()).abs().max()) < 20 * sigma**4 + 1e-14
    far = bridges.schroedinger(data, source, 1e3).cross[0]
    first_order = data.covariance @ source.covariance / 1e6
    assert float((far - first_order).abs().max()) < 1e-5 * float(first_order.abs().max())


def test_the_best_plan_between_mixtures():
    data, source = mixture(5, 2, 20), mixture(4, 2, 40)
    coupling = bridges.optimal(data, source)
    costs, _ = bures_costs((data.means, source.means), (data.covariances, source.covariances))
    assert coupling.count <= 5 + 4 - 1
    assert coupling.energy <= bridges.independent(data, source).energy
    for law, means in ((data, coupling.data_means), (source, coupling.source_means)):
        sums = torch.stack([coupling.weights[(means == mean).all(1)].sum() for mean in law.means])
        assert float((sums - law.weights).abs().max()) < 1e-15
    # Duality: the plan is optimal since potentials fit below the costs and touch them where it has weight.
    pairs = [[int((law.means == mean).all(1).nonzero()) for mean in means] for law, means in
             ((data, coupling.data_means), (source, coupling.source_means))]  # fmt: skip
    matrix = torch.zeros(coupling.count, 9).double()
    for row, (i, j) in enumerate(zip(*pairs, strict=True)):
        matrix[row, i] = matrix[row, 5 + j] = 1.0
    wanted = torch.stack([costs[i, j] for i, j in zip(*pairs, strict=True)])
    potentials = torch.linalg.lstsq(matrix, wanted[:, None], driver="gelsd").solution[:, 0]
    assert float((potentials[:5, None] + potentials[None, 5:] - costs).max()) < 1e-9
    value = potentials[:5] @ data.weights + potentials[5:] @ source.weights
    assert abs(float(value) / coupling.energy - 1) < 1e-12
    # The energy of the flow is at most the cost, and that of the independent plan is more.
    bridge, path = diffode.Bridge(coupling), diffode.Bridge("independent", data=data, source=source)
    spent = [float(b.velocity(b.marginal(4000, 0.5, generator=1), 0.5).square().sum(1).mean()) for b in (bridge, path)]
    assert spent[0] < 1.05 * coupling.energy
    assert spent[0] < spent[1]


def test_a_distance_between_equal_mixtures_is_nothing():
    law = mixture(4, 3, 60)
    assert bridges.optimal(law, law).energy < 1e-12


def test_pairs_have_the_joint_law():
    coupling = bridges.schroedinger(gaussian(2, 1), gaussian(2, 2, 1.0), 0.7)
    data, source = coupling.sample(8000, generator=0)
    joint = torch.cov(torch.cat([data, source], 1).T)
    assert float((joint - coupling.joint[0]).abs().max()) < 0.06 * float(joint.abs().max())
    energy = (data - source).square().sum(1)
    assert abs(float(energy.mean()) - coupling.energy) < 4 * float(energy.std()) / 8000**0.5


def test_a_given_plan_keeps_the_weights_or_is_refused():
    data, source = mixture(3, 2, 1), mixture(2, 2, 5)
    product = data.weights[:, None] * source.weights[None]
    assert abs(bridges.planned(data, source, product).energy) > bridges.optimal(data, source).energy
    with pytest.raises(ArgumentError, match="plan gives component 0 of data the weight"):
        bridges.planned(data, source, torch.tensor([[0.5, 0.1], [0.1, 0.1], [0.1, 0.1]]))
    with pytest.raises(ArgumentError, match="its columns must sum to the weights of source"):
        bridges.planned(data, source, data.weights[:, None] * torch.tensor([[0.99, 0.01]]))
    with pytest.raises(ArgumentError, match="plan must have weights >= 0"):
        bridges.planned(data, source, product - 1)
    with pytest.raises(ArgumentError, match=r"plan must have shape \(K_0, K_1\) = \(3, 2\)"):
        bridges.planned(data, source, product.T)


def test_wrong_ends_are_named():
    with pytest.raises(ArgumentError, match="source has 1 dimensions and data 2"):
        bridges.independent("ring8", "gauss1d")
    points = diffode.GaussianMixture.from_points(torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="source must have a density"):
        bridges.optimal("ring8", points)
    with pytest.raises(ArgumentError, match="data must be a mixture of Gaussians"):
        bridges.independent(3.0, "ring8")
    with pytest.raises(UnknownNameError, match="ring8"):
        bridges.independent("ring9", "ring8")
    with pytest.raises(ArgumentError, match="known between two Gaussians, and data has 8 components"):
        bridges.schroedinger("ring8", "gauss2d", 1.0)
    for sigma in (0.0, -1.0, math.nan, "a", True):
        with pytest.raises(ArgumentError, match="sigma must be a finite number > 0"):
            bridges.schroedinger("gauss2d", "gauss2d", sigma)
    with pytest.raises(ArgumentError, match="take coupling independent"):
        bridges.schroedinger("gauss2d", "gauss2d", 1e8)


def test_wrong_numbers_of_a_coupling_are_named():
    one, zero = torch.eye(2).double()[None], torch.zeros(1, 2)
    cases = {
        "weights must sum to 1": ([0.5], zero, zero, one, one),
        "data_means and source_means must have one shape": ([1.0], zero, torch.zeros(1, 3), one, one),
        r"source_covariances must have shape \(K, D, D\)": ([1.0], zero, zero, one, torch.ones(1, 2)),
        r"data_covariances\[0\] is not symmetric": ([1.0], zero, zero, one + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), one),
        r"data_covariances\[0\] is not positive": ([1.0], zero, zero, -one, one),
        r"cross\[0\] is no cross-covariance": ([1.0], zero, zero, one, one, 1.5 * one),
        "cross has non-finite": ([1.0], zero, zero, one, one, math.nan * one),
    }
    for message, arguments in cases.items():
        with pytest.raises(ArgumentError, match=message):
            bridges.explicit(*arguments)
    with pytest.raises(ArgumentError, match="coupling must be"):
        diffode.Bridge(3)
    with pytest.raises(ArgumentError, match="needs data="):
        diffode.Bridge("optimal")
    with pytest.raises(ArgumentError, match="data and source go with the spec"):
        diffode.Bridge(bridges.independent("ring8"), data="ring8")
    with pytest.raises(UnknownNameError, match="linear"):
        diffode.Bridge("optimal", "linaer", data="ring8", source="ring8")
    with pytest.raises(ArgumentError, match="coefficients must be"):
        diffode.Bridge("optimal", 3.0, data="ring8", source="ring8")


def test_pairs_of_components_are_as_many_as_the_bound_allows(monkeypatch):
    monkeypatch.setattr("diffode.bridges.coupling._MOST_PAIRS", 6)
    two, three = (diffode.GaussianMixture([1 / n] * n, torch.arange(float(n))[:, None], [1.0] * n) for n in (2, 3))
    assert len(bridges.independent(two, three).weights) == 6
    with pytest.raises(ArgumentError, match="3 x 3 pairs of components, more than 6"):
        bridges.independent(three, three)
