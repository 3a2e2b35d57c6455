"""Errors against the exact flow from the same start: no sampling noise, and a floor set by the reference alone."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.flows import reference
from diffode.metrics.measurement import Measurement, Outcome, approximates, law_of, needs

Reduction = Literal["mean", "rms", "max", "median"]


def reduce(distances: Tensor, reduction: Reduction) -> float:
    """Mean, root mean square, maximum or median of distances (B,); ArgumentError for another reduction."""
    check_reduction(reduction)
    if reduction == "mean":
        return float(distances.mean())
    if reduction == "rms":
        return float(distances.square().mean().sqrt())
    if reduction == "max":
        return float(distances.max())
    return float(distances.median())


def check_reduction(reduction: object = "mean") -> None:
    """Raise ArgumentError unless a reduction is one of :func:`reduce`."""
    if reduction not in get_args(Reduction):
        raise ArgumentError(f"reduction must be mean, rms, max or median, got {reduction!r:.60}")


def check_deterministic(outcome: Outcome, metric: str) -> None:
    """Raise ArgumentError for a run that drew noise, since it does not follow the flow that these metrics compare with."""
    table = outcome.solution.tableau
    if table is not None and table.draws:
        raise ArgumentError(
            f"{metric} compares with the exact flow, which {table.solver!r} does not follow since it draws noise; "
            "measure its samples: moments, mode_weights, ..."
        )


@needs(flow=True, options=check_reduction)
def endpoint(outcome: Outcome, reduction: Reduction = "mean") -> Measurement:
    """Euclidean distance of each end point to that of the field's own flow: the error of the solver."""
    check_deterministic(outcome, "endpoint")
    exact = outcome.reference
    distances = (outcome.end - exact.x.reshape(outcome.end.shape)).norm(dim=1)
    return Measurement("endpoint", reduce(distances, reduction), reduce(exact.errors, reduction))


@needs(fits=approximates, options=check_reduction)
def model(outcome: Outcome, reduction: Reduction = "mean") -> Measurement:
    """Distance between the ends of a field's own flow and of the exact flow: the error that no solver removes."""
    own, true = outcome.reference, outcome.true_reference
    distances = (own.x.reshape(outcome.end.shape) - true.x.reshape(outcome.end.shape)).norm(dim=1)
    return Measurement("model", reduce(distances, reduction), reduce(own.errors, reduction) + reduce(true.errors, reduction))


@needs(flow=True, fits=law_of, options=check_reduction)
def total(outcome: Outcome, reduction: Reduction = "mean") -> Measurement:
    """Distance of each end point to that of the exact flow: the error of the solver and the field together."""
    check_deterministic(outcome, "total")
    true = outcome.true_reference
    distances = (outcome.end - true.x.reshape(outcome.end.shape)).norm(dim=1)
    return Measurement("total", reduce(distances, reduction), reduce(true.errors, reduction))


@needs(flow=True, states=True, options=check_reduction)
def trajectory(outcome: Outcome, reduction: Reduction = "mean") -> Measurement:
    """Distance to the exact flow at the grid's inner and last times, averaged over them; needs ``keep="all"``."""
    check_deterministic(outcome, "trajectory")
    states = outcome.solution.states
    if states is None:
        raise ArgumentError('the trajectory error needs solutions made with keep="all"')
    times = outcome.times
    point, total, floor = outcome.start.to(torch.float64), 0.0, 0.0
    for before, after, state in zip(times[:-1], times[1:], states[1:], strict=True):
        exact = reference(outcome.field, point, before, after, outcome.tolerance)
        point = exact.x
        total += reduce((state.to(torch.float64) - point).reshape(len(point), -1).norm(dim=1), reduction)
        floor += exact.error_estimate
    steps = len(times) - 1
    return Measurement("trajectory", total / steps, floor / steps)
