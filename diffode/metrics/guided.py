"""What guidance does to a law: the distance to the tilted law that it is believed to sample, and the shrinkage of variance.

The end-point error to the guided flow is ``endpoint``; ``moments``, ``sliced_w2``, ``mode_weights`` and the other metrics of
laws compare a guided run with the conditional law.
"""

from __future__ import annotations

import weakref
from typing import Literal, get_args

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field, GuidedField
from diffode.fields.exact import mixture_of
from diffode.metrics.density import mixture_of as conditional_mixture
from diffode.metrics.density import responsibilities
from diffode.metrics.gaussian import gaussian_w2
from diffode.metrics.measurement import Measurement, Outcome, law_of, needs
from diffode.numerics.projections import directions, projected_distance
from diffode.targets import GaussianMixture, TiltedLaw

Part = Literal["sliced_w2", "moments", "mode_weights"]
#: Number of directions of a sliced distance in two dimensions.
_PROJECTIONS = 128
#: Tilted laws by field: cells of a study that differ in their solver alone ask for the same one.
_laws: weakref.WeakKeyDictionary[Field, dict[float, TiltedLaw]] = weakref.WeakKeyDictionary()


def tilted_law(field: Field, t: float) -> TiltedLaw:
    """The law p_t(x|c)^w p_t(x)^(1-w) of a guided field at a time.

    Raises:
        ArgumentError: unless the field is guided by the linear rule between exact fields of mixtures in one or two dimensions.

    >>> import diffode
    >>> ring = diffode.targets.get("ring8")
    >>> one, two = diffode.exact_field(ring.given("three"), "edm"), diffode.exact_field(ring, "edm")
    >>> [round(weight, 3) for weight in tilted_law(diffode.guide(one, two, 7.5), 0.002).mode_weights.tolist()]
    [0.333, 0.333, 0.333]
    """
    one, other = guided_mixtures(field)
    known = _laws.setdefault(field, {})
    if t not in known:
        path = field.require_path("a tilted law")
        weight = float(field.weight.at(path.rho(t)))  # type: ignore[attr-defined]
        known[t] = TiltedLaw(one, other, weight, path.alpha(t), path.sigma(t))
    return known[t]


def guided_mixtures(field: Field) -> tuple[GaussianMixture, GaussianMixture]:
    """The two mixtures that a tilted law is made of; ArgumentError for a field that has none."""
    laws = [mixture_of(member) for member in field.members] if isinstance(field, GuidedField) else []
    if not isinstance(field, GuidedField) or not field.rule.linear or field.path is None or None in laws:
        raise ArgumentError(
            "a tilted law needs a field that diffode.guide makes, with kind cfg or auto, of mixtures' exact fields"
        )
    one, other = (law for law in laws if law is not None)
    if one.dim > 2:
        raise ArgumentError(
            f"a tilted law is normalised in one or two dimensions, got {one.dim}: compare moments with the conditional law"
        )
    return one, other


def check_part(part: object = "sliced_w2") -> None:
    """Raise ArgumentError unless a part is one of :func:`tilted`."""
    if part not in get_args(Part):
        raise ArgumentError(f"part must be sliced_w2, moments or mode_weights, got {part!r:.60}")


@needs(fits=guided_mixtures, options=check_part)
def tilted(outcome: Outcome, part: Part = "sliced_w2") -> Measurement:
    """Distance of the end points to p(x|c)^w p(x)^(1-w), normalised by quadrature: one or two dimensions, kinds cfg and auto.

    ``part`` is ``sliced_w2`` (in one dimension W2 itself) between as many points, ``moments``, the W2 between the Gaussians of
    equal moments, or ``mode_weights``, the total variation distance. The floor is that of as many draws of the tilted law.
    """
    check_part(part)
    law, count = tilted_law(outcome.field, outcome.times[-1]), len(outcome.end)
    outcome.check_points(2, "tilted")
    drawn, other = (law.sample(count, generator=outcome.stream(stream)) for stream in (21, 22))
    along = directions(law.dim, _PROJECTIONS if law.dim > 1 else 1)

    def distance(x: Tensor) -> float:
        if part == "moments":
            return gaussian_w2(x.mean(0), torch.cov(x.T).reshape(law.covariance.shape), law.mean, law.covariance)
        if part == "mode_weights":
            found = law.conditional.responsibilities(x, law.alpha, max(law.sigma, 1e-6 * outcome.field.scale)).mean(0)
            return float((found - law.mode_weights).abs().sum()) / 2
        return projected_distance(x, drawn, along)

    return Measurement("tilted", distance(outcome.end.cpu()), distance(other))


def check_within(within: object = False) -> None:
    """Raise ArgumentError unless ``within`` says yes or no."""
    if not isinstance(within, bool):
        raise ArgumentError(f"within must be true or false, got {within!r:.60}")


def has_widths(field: Field, within: bool = False) -> None:
    """Raise ArgumentError for a field of no known law, or of one without the modes that ``within`` asks for."""
    law = law_of(field)
    if within:
        conditional_mixture(law)


@needs(length=False, fits=has_widths, options=check_within)
def shrinkage(outcome: Outcome, within: bool = False) -> Measurement:
    """The share of the conditional law's total variance that the end points have lost; negative where they have gained.

    With ``within`` it is that of the variance inside the modes: each end point belongs to its likeliest component, and a
    component's loss counts by its number of points. The floor is the size of the same number for as many exact draws.
    """
    check_within(within)
    outcome.check_points(2, "shrinkage")
    law, last = outcome.law, outcome.times[-1]
    alpha, sigma = law.path.alpha(last), law.path.sigma(last)

    def lost(x: Tensor) -> float:
        if not within:
            whole = alpha**2 * float(law.target.variance.sum()) + sigma**2 * law.target.dim
            return 1 - float(x.var(0).sum()) / whole
        mixture = conditional_mixture(law)
        nearest = responsibilities(law, outcome.field.scale, last, x).argmax(1).cpu()
        widths = alpha**2 * mixture.components.variances().expand(mixture.count, mixture.dim).sum(1) + sigma**2 * mixture.dim
        found = expected = 0.0
        for k in sorted(set(nearest.tolist())):
            own = x[nearest == k]
            if len(own) > 1:
                found += float(own.var(0).sum()) * len(own)
                expected += float(widths[k]) * len(own)
        if not expected:
            raise ArgumentError("shrinkage within modes needs two end points in some mode: run more starts")
        return 1 - found / expected

    return Measurement("shrinkage", lost(outcome.end.cpu()), abs(lost(outcome.exact_draws(len(outcome.end), 5).cpu())))
