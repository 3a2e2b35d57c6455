"""``verify_field``: all checks of a field that apply to it, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from diffode.fields import ExactField, Field, Prediction
from diffode.verify.field.contract import contract
from diffode.verify.field.equations import (
    Density,
    Points,
    Residuals,
    continuity,
    jacobian,
    pointwise,
    precision,
    typical_points,
)
from diffode.verify.field.evolution import evolution_checks, mass_check
from diffode.verify.field.likelihood import likelihood_checks
from diffode.verify.field.weak import ETAS, sampled_check, weak
from diffode.verify.report import Check, Report

#: Largest dimension in which a density is followed along a flow.
_LIKELIHOOD_DIM = 64


def verify_field(
    field: Field,
    *,
    density: Density | None = None,
    data: Tensor | None = None,
    truth: ExactField | None = None,
    dim: int | Sequence[int] | None = None,
    seed: int = 5,
) -> Report:
    """Verify a field by all checks that apply to it.

    Args:
        field: an exact field, or any field with a path.
        density: log-density (x, t) -> (B,) of a field that does not know its own.
        data: draws of the data (n, *shape), for the weak forms by Monte Carlo; for an exact field they are drawn.
        truth: the exact field that it should equal, which gives density, draws and views to compare with.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        seed: seed of the points.

    A check in which the field raises is a failed check that says why.

    Returns:
        A report with the facts ``"path"``, the path's spec, and ``"residuals"``: the :class:`diffode.verify.Residuals` of the
        continuity equation, or without a density those of the symmetry of the score's Jacobian, or None.

    >>> import diffode
    >>> verify_field(diffode.exact_field("bimodal1d", "vp")).passed
    True
    """
    known = density
    if truth is not None:
        known = density if density is not None else truth.log_prob
        if field.source is None and truth.source is None and data is None:
            data = truth.target.sample(4096, generator=seed)
        dim = truth.target.dim if dim is None else dim
    path = field.require_path("its law")
    given = (dim,) if isinstance(dim, int) else tuple(dim or ())
    shape = given or field.shape or ((field.dim,) if field.dim else ())
    try:
        source = truth if truth is not None else field
        where = typical_points(source, dim=shape or None, seed=seed)
    except Exception as error:  # a user's code may raise anything
        start = field.first_noise((4, *shape), generator=seed)
        checks = contract(field, start, path.t_max)
        failed = Check("can be followed from noise to data", float("inf"), 0.0, str(error))
        return _report(field, [*checks, failed])
    middle = len(where.times) // 2
    checks = contract(field, where.points[middle][:3], where.times[middle])
    if not all(check.passed for check in checks[:2]):
        return _report(field, checks)
    for group in _groups(field, where, known, data, truth):
        checks += group
    return _report(field, checks, _residuals(field, where, known))


def _report(field: Field, checks: Sequence[Check], residuals: Residuals | None = None) -> Report:
    return Report(repr(field), tuple(checks), facts={"path": field.require_path("its law").spec, "residuals": residuals})


def _groups(
    field: Field, where: Points, density: Density | None, data: Tensor | None, truth: ExactField | None
) -> Iterator[list[Check]]:
    """The groups of checks that apply; a group that raises is one failed check."""
    steps: list[tuple[str, Callable[[], list[Check]]]] = [("pointwise equations", lambda: pointwise(field, where, density))]
    if truth is not None:
        steps.append(("against the exact field", lambda: [_against(field, truth, where)]))
    if isinstance(field, ExactField):
        exact: ExactField = field
        steps.append(("weak forms", lambda: weak(exact)))
        # A box that holds the law, and the SDE, are those of normal noise.
        if exact.target.dim <= 2 and exact.source is None:
            steps += [("mass", lambda: [mass_check(exact)]), ("finite volumes", lambda: evolution_checks(exact))]
        if exact.target.dim <= _LIKELIHOOD_DIM:
            steps.append(("likelihood", lambda: likelihood_checks(exact)))
    elif data is not None:
        draws, level = data, where.times[len(where.times) // 2]
        steps.append((
            "weak forms", lambda: [sampled_check(field, draws, level, eta=eta, generator=3) for eta in ETAS]
        ))  # fmt: skip
    for name, make in steps:
        try:
            yield make()
        except Exception as error:  # as above
            yield [Check(name, float("inf"), 0.0, f"could not be made: {error}")]


def _against(field: Field, truth: ExactField, where: Points) -> Check:
    """The check of the field's score against the exact one, relative to its root mean square at each level."""
    worst, at = 0.0, ""
    view: Prediction = "score" if truth.source is None and field.source is None else "velocity"
    with torch.no_grad():
        for t, x in zip(where.times, where.points, strict=True):
            exact = truth.predict(view, x, t).flatten(1)
            apart = field.predict(view, x, t).flatten(1) - exact
            error = apart.square().sum(1).mean().sqrt() / exact.square().sum(1).mean().sqrt()
            if not float(error) <= worst:
                worst, at = float(error), f"root mean square, at t={t:.4g}"
    tolerance = max(1e-10 if where.points[0].dtype == torch.float64 else 2e-4, precision(field, where))
    return Check(f"{view} against the exact one", worst, tolerance, at)


def _residuals(field: Field, where: Points, density: Density | None) -> Residuals | None:
    try:
        if density is not None or isinstance(field, ExactField):
            return continuity(field, where, density)
        few = Points(where.times, tuple(x[:4] for x in where.points))
        return jacobian(field, few)[0] if few.points[0][0].numel() <= _LIKELIHOOD_DIM else None
    except Exception:  # the checks name it
        return None
