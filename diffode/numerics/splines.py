"""Cubic splines over nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline


def spline(nodes: Tensor, values: Tensor) -> CubicSpline:
    """The cubic spline through values (n, E) at increasing nodes (n,), with third derivatives that do not jump at its ends.

    >>> float(spline(torch.arange(5.0), torch.arange(5.0)[:, None] ** 3)(1.5)[0])
    3.375
    """
    from scipy.interpolate import CubicSpline

    return CubicSpline(nodes.numpy(), values.numpy(), axis=0, bc_type="not-a-knot")


def derivative_at(nodes: Tensor, values: Tensor) -> Tensor:
    """The derivative at its nodes of the spline through values (n, E), (n, E)."""
    return torch.from_numpy(np.asarray(spline(nodes, values)(nodes.numpy(), 1)))
