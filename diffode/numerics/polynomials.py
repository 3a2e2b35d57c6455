"""Interpolation polynomials, and the weights with which they are integrated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lagrange(nodes: Sequence[float]) -> list[np.ndarray]:
    """Coefficients, lowest power first, of the Lagrange polynomials of the nodes.

    >>> [coefficients.tolist() for coefficients in lagrange([0.0, 1.0])]
    [[1.0, -1.0], [0.0, 1.0]]
    """
    result = []
    for j, node in enumerate(nodes):
        coefficients = np.ones(1)
        for i, other in enumerate(nodes):
            if i != j:
                coefficients = np.convolve(coefficients, [-other, 1.0]) / (node - other)
        result.append(coefficients)
    return result


def weights_of(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of the values at the nodes in the integral of their interpolation polynomial.

    ``moments`` are the integrals of the powers 0, 1, ..., one for each node. Integrals over a step give Adams weights, and
    integrals with an exponential density give exponential Adams weights.

    >>> weights_of([0.0, -1.0], [1.0, 1 / 2])
    [1.5, -0.5]
    """
    return [float(np.dot(coefficients, moments)) for coefficients in lagrange(nodes)]
