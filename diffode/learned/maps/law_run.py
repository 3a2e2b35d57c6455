"""A training of a map that is to have the law of the data, whatever noise it couples with which point: IMM and SiD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.fields import ExactField, GuidedField
from diffode.learned.maps.identity import fake_score
from diffode.learned.maps.losses import loss_of
from diffode.learned.maps.optimisers import Optimisers
from diffode.learned.maps.run import LARGEST_GRADIENT, Run
from diffode.learned.maps.table import MapMethod
from diffode.maps import AngleMap
from diffode.maps.networks import network
from diffode.numerics.projections import directions, projected_mean

#: Number of held-out starts and of held-out points, and of test starts and points.
_HELD_OUT = 4096
#: Number of directions along which laws are compared.
_DIRECTIONS = 32


class LawRun(Run):
    """A training that is judged by the law of what it generates, against exact draws that it has not seen.

    The distance is the mean over directions of W1, W1 itself in one dimension: two sets of draws of one law with two modes are
    nearer by it than by W2, which counts a point in the wrong mode by its squared distance.
    """

    held_out_count = _HELD_OUT

    def __init__(self, row: MapMethod, *given: Any):
        super().__init__(row, *given)
        if row.one_jump:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self.request.stream("fake").get_state())
                self.fake = network(
                    self.options["kind"], self.request.shape, width=self.options["width"], depth=self.options["depth"]
                )
            self.fake.to(self.sources.device)
            self.context.fake = AngleMap(self.fake, "trig")
            self.fake_optimisers = Optimisers([*self.fake.parameters()], self.options["optimiser"], self.options["fake_rate"])
            self.modules["fake"] = self.fake
            self.all_optimisers += self.fake_optimisers.all

    @override
    def _problem(self, count: int, stream: str) -> tuple[Tensor, Tensor]:
        """States at the first angle, from the normal prior, and draws of the law at the last, both (B, D) float64.

        Of a field whose law is unknown, the draws are ends of its flow, from other starts.
        """
        field, path, clock = self.request.field, self.request.path, self.sources.clock
        exact = field if isinstance(field, ExactField) else None if isinstance(field, GuidedField) else field.truth
        if exact is None:
            return super()._problem(count, stream)[0], super()._problem(count, f"{stream} points")[1]
        start = path.prior((count, *self.request.shape), generator=self.request.stream(stream))
        points = exact.marginal(count, path.t_min, generator=self.request.stream(f"{stream} points"))
        return clock.state(start, path, path.t_max), clock.state(points, path, path.t_min)

    @override
    def _distance(self, found: Tensor, wanted: Tensor) -> float:
        """The distance of the laws of two sets of points."""
        dim = found.shape[1]
        return projected_mean(found, wanted, directions(dim, _DIRECTIONS if dim > 1 else 1))

    @override
    def _prepare(self, number: int) -> None:
        """Let the fake learn of the generator as it is."""
        for _ in range(self.options["fake_steps"] if self.context.fake is not None else 0):
            loss = loss_of(fake_score(self.context, self.options["batch"]), "squared", 1.0, self.weigher)
            self._check_finite(float(loss.detach()), number)
            self.fake_optimisers.step(loss, self._rate(number), LARGEST_GRADIENT)
