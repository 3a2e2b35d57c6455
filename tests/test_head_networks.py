"""Heads that are perceptrons: the gradient that trains them is that of the error, also by the table's numbers."""

import torch

from diffode.learned.heads import networks
from diffode.learned.heads.jump_fit import ddim_numbers
from diffode.learned.heads.pairs import pairs_of
from diffode.learned.limit import Limit
from diffode.learned.request import Request
from diffode.maps import AngleClock


def test_the_gradient_of_a_training_is_that_of_the_error(monkeypatch):
    """By every kept share, weight and level of two evaluations, against central differences of the error itself."""
    asked = Request.of("test", "ring8", seed=0)
    pairs = pairs_of(asked, AngleClock.of(asked.field, 2), 64, "training").single()
    numbers = ddim_numbers(pairs, torch.tensor([0.9, 0.4], dtype=torch.float64))
    begun = networks.begun(numbers, 2, 6, 1, torch.Generator().manual_seed(1))
    # Heads that answer 0 would hide what comes through them.
    for head in begun.heads:
        head[-1][0].copy_(0.2 * torch.randn(6, 2, generator=torch.Generator().manual_seed(2)))
    noted = []

    class Noting(networks.SOAP):
        def step(self, gradients, rate):
            noted.append(gradients[0])
            return super().step(gradients, rate)

    monkeypatch.setattr(networks, "SOAP", Noting)
    rows = torch.Generator().manual_seed(3)
    networks.train_together(begun, pairs, pairs, networks.Descent(1, 500, 1e-3), rows, Limit(), None)
    drawn = pairs.part(torch.randint(64, (500,), generator=torch.Generator().manual_seed(3)))

    def error(place, shift):
        vector = begun.vector.clone()
        vector[place] += shift
        return networks.error_of(begun._replace(vector=vector), drawn)

    # The derivative by a level is a difference over 0.01 in its logarithm itself.
    found = [(error(k, 0.01) - error(k, -0.01)) / 0.02 for k in range(len(begun.vector))]
    assert len(found) == 2 + 3 + 2
    assert min(map(abs, found[-2:])) > 1e-3
    torch.testing.assert_close(noted[0], torch.tensor(found), rtol=0.02, atol=2e-4)
