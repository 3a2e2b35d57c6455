"""The law that a solver leaves where guidance mixes two Gaussians, exactly, beside the laws that it is held against.

Bradley and Nakkiran, arXiv 2408.09000: with one weight w the guided flow and the guided SDE lead to different laws, and neither
to p(x|c)^w p(x)^(1-w).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field, GuidedField, Prediction
from diffode.fields.guidance import GridWeight
from diffode.flows import reference
from diffode.flows.guided import SharedBasis, shared_basis
from diffode.metrics.gaussian import diagonal_w2
from diffode.paths import Path
from diffode.tableau import Propagated, Tableau
from diffode.tableau.propagation import affine_view, carried_back

Start = Literal["prior", "conditional", "unconditional"]


class GuidedLaw(NamedTuple):
    """Laws at the last time along the directions that both covariances share: pairs of mean and variance, (E,) each.

    Attributes:
        shared: the directions, with the means and variances of both data.
        sampled: what the table leaves.
        flow: what the guided flow makes of the same start; None for CFG++, which follows no flow.
        conditional: the conditional law, noised to the last time.
        tilted: p(x|c)^w p(x)^(1-w) there, with the weight in force at the last time; None where it can't be normalised.
    """

    shared: SharedBasis
    sampled: Propagated
    flow: tuple[Tensor, Tensor] | None
    conditional: tuple[Tensor, Tensor]
    tilted: tuple[Tensor, Tensor] | None

    def distance(self, other: tuple[Tensor, Tensor] | None) -> float:
        """W2 of what the table leaves from another law; NaN for None."""
        return float("nan") if other is None else diagonal_w2(self.sampled.mean, self.sampled.variance, *other)


def guided_law(table: Tableau, field: Field, start: Start = "prior") -> GuidedLaw:
    """The exact law of a table's output on a field guided between two commuting Gaussians, without sampling.

    Args:
        table: of a deterministic solver, or of one that draws noise.
        field: made by ``diffode.guide`` with kind ``cfg``, ``auto`` or ``cfg++`` of the exact fields of two Gaussians whose
            covariances share eigenvectors; the weight may change with the noise level.
        start: N(0, sigma^2), or the conditional or unconditional law at the first time.

    Returns:
        :class:`GuidedLaw`.

    Raises:
        ArgumentError: for another field or another start, and for tables of another path or of directions of data.

    >>> import diffode
    >>> narrow, wide = (diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [c]), "edm") for c in (1.0, 2.0))
    >>> field = diffode.guide(narrow, wide, 3.0)
    >>> law = guided_law(diffode.solvers.get("edm_heun").tableau(narrow.path, "karras", 200), field)
    >>> round(law.sampled.variance.item(), 3), round(law.tilted[1].item(), 3)
    (0.25, 0.5)
    """
    shared = shared_basis(field)
    if not isinstance(field, GuidedField) or shared is None:
        raise ArgumentError(
            "guided_law needs a field made by diffode.guide (cfg, auto or cfg++) of the exact fields of two Gaussians whose "
            "covariances commute"
        )
    if start not in ("prior", "conditional", "unconditional"):
        raise ArgumentError(f"start must be 'prior', 'conditional' or 'unconditional', got {start!r:.60}")
    path = field.require_path("a law")
    if table.path is None or table.path.spec != path.spec:
        raise ArgumentError(f"table must be written for the path of the field, {path.spec}")
    table.one_for_all("guided_law")
    table.numbers_alone("guided_law")
    first, last = table.ends
    mean, variance = {
        "prior": (torch.zeros_like(shared.conditional[0]), torch.full_like(shared.conditional[1], path.sigma(first) ** 2)),
        "conditional": noised(shared.conditional, path, first),
        "unconditional": noised(shared.unconditional, path, first),
    }[start]

    def view(time: float) -> tuple[Tensor, Tensor]:
        return _view(field, shared, path, table.prediction, time)

    rows = table.rows[: table.outputs[-1] + 1]
    constant, spread, gain = carried_back(rows, view, torch.zeros_like(mean), None)
    sampled = Propagated(constant + gain * mean, gain.square() * variance + spread, gain)
    weight = field.weight.at(path.rho(last)) if not isinstance(field.weight, GridWeight) else None
    return GuidedLaw(
        shared,
        sampled,
        None if weight is None else _flowed(field, shared, mean, variance, first, last),
        noised(shared.conditional, path, last),
        None if weight is None else tilted_gaussian(shared, path, last, float(weight)),
    )


def noised(law: tuple[Tensor, Tensor], path: Path, t: float) -> tuple[Tensor, Tensor]:
    """Mean and variance, (E,) each, of alpha x_0 + sigma eps at a time."""
    mean, variance = law
    return path.alpha(t) * mean, path.alpha(t) ** 2 * variance + path.sigma(t) ** 2


def tilted_gaussian(shared: SharedBasis, path: Path, t: float, weight: float) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of p_t(x|c)^w p_t(x)^(1-w), a Gaussian again; None where its precision is not positive.

    With precisions 1/c and 1/u it has the precision w/c + (1 - w)/u, and the mean that these weights make of both means.
    """
    (one, own), (two, other) = (noised(law, path, t) for law in (shared.conditional, shared.unconditional))
    precision = weight / own + (1 - weight) / other
    if float(precision.min()) <= 0:
        return None
    return (weight * one / own + (1 - weight) * two / other) / precision, 1 / precision


def _view(field: GuidedField, shared: SharedBasis, path: Path, prediction: Prediction, time: float) -> tuple[Tensor, Tensor]:
    """The slope and the offset of the guided view along each direction."""
    weight = float(field.weight.at(path.rho(time)))
    (slope, offset), (base_slope, base_offset) = (
        affine_view(path, prediction, time, *law) for law in (shared.conditional, shared.unconditional)
    )
    return base_slope + weight * (slope - base_slope), base_offset + weight * (offset - base_offset)


def _flowed(
    field: GuidedField, shared: SharedBasis, mean: Tensor, variance: Tensor, first: float, last: float
) -> tuple[Tensor, Tensor]:
    """What the guided flow makes of a Gaussian start, from the flow of its mean and of a deviation along all directions."""
    points = shared.back(torch.stack([mean, mean + variance.sqrt()]))
    centre, moved = shared.into(reference(field, points, first, last, 1e-12).x)
    return centre, (moved - centre).square()
