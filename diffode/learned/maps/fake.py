"""The fake: a second network that learns the law of what a map generates, for methods that compare it with the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from diffode.learned.maps.identity import Generate, fake_score
from diffode.learned.maps.losses import loss_of
from diffode.learned.maps.optimisers import Optimisers
from diffode.learned.maps.residuals import Context
from diffode.learned.request import Request
from diffode.maps import AngleMap
from diffode.maps.networks import network


class Fake:
    """A network of the map's own size, trained by flow matching on what the map generates.

    Attributes:
        net: the network, whose diagonal is a velocity in the angle clock.
        optimisers: what trains it.
    """

    def __init__(self, context: Context, request: Request, generate: Generate):
        self.context, self.generate, options = context, generate, context.options
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(request.stream("fake").get_state())
            self.net = network(options["kind"], request.shape, width=options["width"], depth=options["depth"])
        self.net.to(context.sources.device)
        context.fake = AngleMap(self.net, "trig")
        self.optimisers = Optimisers([*self.net.parameters()], options["optimiser"], options["fake_rate"])

    def loss(self) -> Tensor:
        """The loss on points that the map makes as it is."""
        return loss_of(fake_score(self.context, self.context.options["batch"], self.generate), "squared", 1.0, None)
