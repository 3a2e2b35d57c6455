"""Interpolation polynomials, and the weights with which they are integrated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lagrange(nodes: Sequence[float]) -> list[np.ndarray]:
    """Coefficients, lowest power first, of the Lagrange polynomials of the nodes.

    >>> [coefficients.tolist() for coefficients in lagrange([0.0, 1.0])]
    [[1.0, -1.0], [0.0, 1.0]]
    """
    return [np.array(coefficients) for coefficients in _lagrange(nodes)]


def _lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """As numbers of Python: of the few that there are, arrays would take most of the time of writing a table."""
    result = []
    for j, node in enumerate(nodes):
        coefficients = [1.0]
        for i, other in enumerate(nodes):
            if i != j:
                # (c_0 + c_1 u + ...)(u - other)/(node - other), power by power.
                width, lower, product = node - other, 0.0, []
                for c in coefficients:
                    product.append((lower - c * other) / width)
                    lower = c
                product.append(lower / width)
                coefficients = product
        result.append(coefficients)
    return result


def weights_of(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of the values at the nodes in the integral of their interpolation polynomial.

    ``moments`` are the integrals of the powers 0, 1, ..., one for each node. Integrals over a step give Adams weights, and
    integrals with an exponential density give exponential Adams weights.

    >>> weights_of([0.0, -1.0], [1.0, 1 / 2])
    [1.5, -0.5]
    """
    weights = []
    for coefficients in _lagrange(nodes):
        # Term by term: what ``sum`` gives depends on the version of Python.
        total = 0.0
        for c, moment in zip(coefficients, moments, strict=True):
            total += c * moment
        weights.append(total)
    return weights
