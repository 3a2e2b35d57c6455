"""The random mixtures that tables are trained on."""

import numpy as np
import pytest

from diffode.learned.universal import family
from diffode.learned.universal.family import random_mixture


def test_mixtures_of_the_family_lie_on_lattices_too():
    """Points within a few hundredths of whole numbers, as many a side as give every mode a place."""

    class Drawn:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def __getattr__(self, name):
            return (lambda *_: "lattice") if name == "choice" else getattr(self.rng, name)

    for modes, dim, side in ((8, 1, 8), (20, 2, 5), (27, 3, 3), (2, 40, 2)):
        means = family.random_means(Drawn(3), modes, dim)
        assert means.shape == (modes, dim)
        assert 0 < np.abs(means - means.round()).max() < 0.06
        assert 0 <= means.round().min() <= means.round().max() <= side - 1


def test_the_family_is_reproducible_and_of_unit_scale():
    for seed in range(20):
        target = random_mixture(seed)
        assert target.scale == pytest.approx(1, rel=1e-9)
        assert 1 <= target.dim <= 64
        assert 1 <= target.count <= 40
    assert random_mixture(7).content() == random_mixture(7).content()
    assert len({random_mixture(s).content() for s in range(20)}) == 20
