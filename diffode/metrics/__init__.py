"""Errors against a reference or a distribution, each with its noise floor, the most trustworthy first.

Coupled errors (same start, exact flow) come first, then errors of moments and densities, and sampled distances last.
A new one is a function of an outcome in a file of this room, named in the tuple below, with its floor;
``tests/test_metrics.py`` holds all of them to what they are on laws that are known.
"""

from diffode.metrics.chunked import Streamed, streamed, streamed_names
from diffode.metrics.coupled import endpoint, model, total, trajectory
from diffode.metrics.density import lost_modes, mode_weights, push_forward_kl
from diffode.metrics.frechet import frechet
from diffode.metrics.gaussian import ErrorSplit, gaussian_error, gaussian_split, gaussian_w2, moments
from diffode.metrics.guided import shrinkage, tilted, tilted_law
from diffode.metrics.measurement import (
    Measurement,
    Needs,
    Outcome,
    check_fits,
    check_options,
    measure,
    names,
    needs,
    needs_of,
    register,
    registry,
)
from diffode.metrics.sampled import energy_distance, mmd, sliced_w2
from diffode.metrics.split import error_split
from diffode.metrics.transport import (
    Assigned,
    LineLaw,
    assigned,
    assigned_w2,
    sinkhorn,
    sinkhorn_w2,
    w1,
    w2,
    wasserstein,
    wasserstein_dual,
)

for _metric in (
    endpoint,
    trajectory,
    model,
    total,
    gaussian_error,
    moments,
    push_forward_kl,
    mode_weights,
    lost_modes,
    sliced_w2,
    mmd,
    energy_distance,
    w1,
    w2,
    assigned_w2,
    sinkhorn_w2,
    tilted,
    shrinkage,
    frechet,
):
    register(_metric.__name__, _metric)

__all__ = [
    "Assigned",
    "ErrorSplit",
    "LineLaw",
    "Measurement",
    "Needs",
    "Outcome",
    "Streamed",
    "assigned",
    "check_fits",
    "check_options",
    "error_split",
    "gaussian_split",
    "gaussian_w2",
    "measure",
    "names",
    "needs",
    "needs_of",
    "register",
    "registry",
    "sinkhorn",
    "streamed",
    "streamed_names",
    "tilted_law",
    "wasserstein",
    "wasserstein_dual",
]
