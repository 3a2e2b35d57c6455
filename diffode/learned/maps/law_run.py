"""A training of a map that is to have the law of the data, whatever noise it couples with which point: IMM and SiD."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from diffode.fields import ExactField, GuidedField
from diffode.learned.maps.run import Run
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
