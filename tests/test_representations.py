"""What objects print of themselves: one short line that says what they are; and a mixture's parameters by their names."""

import pytest
import torch

import diffode
from diffode import targets
from diffode.studies import load_suite

FIELD = diffode.exact_field("ring8", "edm")
RUN = diffode.solve(FIELD, FIELD.prior(4, generator=0), solver="dpmpp:order=2", nfe=10)
LINES = {
    "GaussianMixture(8 components in 2 dimensions, isotropic)": targets.get("ring8"),
    "GaussianMixture(1 component in 1 dimension, isotropic)": targets.get("gauss1d"),
    "ExactField(GaussianMixture(8 components in 2 dimensions, isotropic) on edm)": FIELD,
    "Field(noise on vp)": diffode.Field.from_noise(lambda x, t: x, "vp"),
    "Field(velocity on no path)": diffode.Field.from_velocity(lambda x, t: x),
    "Solution(x of shape (4, 2), nfe=10, 11 times from 80 to 0.002, success)": RUN,
    "Tableau(dpmpp on edm, nfe=10, 11 times from 80.0 to 0.002)": RUN.tableau,
    "DataChart(edm)": diffode.charts.DataChart("edm"),
    "Grid()": diffode.grids.karras(),
}


@pytest.mark.parametrize("line", LINES)
def test_an_object_says_what_it_is_in_one_line(line):
    assert repr(LINES[line]) == line


@pytest.mark.parametrize("thing", [
    load_suite("quick"), diffode.reference(FIELD, RUN.x, 0.002, 1.0, 1e-6), targets.registry, diffode.solvers.registry,
    diffode.paths.get("ddpm"), diffode.solvers.get("unipc"), targets.card("ring8"),
], ids=lambda thing: type(thing).__name__)  # fmt: skip
def test_nothing_prints_pages_or_addresses(thing):
    assert len(repr(thing)) < 300
    assert "\n" not in repr(thing)
    assert " at 0x" not in repr(thing)


def test_a_mixtures_parameters_are_its_attributes():
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    means = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    root = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    forms = {"isotropic": torch.tensor([0.5, 2.0]).double(), "diagonal": root[:, 0].square() + 0.1, "full": root @ root.mT}
    for kind, covariances in forms.items():
        mixture = diffode.GaussianMixture(weights, means, covariances)
        assert kind in repr(mixture)
        assert torch.equal(mixture.weights, weights)
        assert torch.equal(mixture.means, means)
        torch.testing.assert_close(mixture.covariances, covariances, rtol=1e-13, atol=1e-13)
        again = diffode.GaussianMixture(mixture.weights, mixture.means, mixture.covariances)
        torch.testing.assert_close(again.log_prob(means + 1), mixture.log_prob(means + 1), rtol=1e-9, atol=1e-9)
    low = diffode.GaussianMixture(weights, means, diffode.LowRank(root[:, :, :2], torch.tensor([0.1, 0.2])))
    found = low.covariances
    wanted = root[:, :, :2] @ root[:, :, :2].mT
    torch.testing.assert_close(found.factors @ found.factors.mT, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.noise, torch.tensor([0.1, 0.2]).double())
    assert diffode.GaussianMixture.from_points(means).covariances.tolist() == [0, 0]
