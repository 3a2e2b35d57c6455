"""The kernel of the trapezoid rule as S4 computes it: Cauchy sums at roots of unity, for comparison.

:func:`diffode.hippo.scan.kernel` gives the same numbers from any matrix, sooner and with more digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffode.hippo.arguments import number_of, numbers_of, order_of
from diffode.hippo.memory import Memory

Array = np.ndarray[Any, Any]

#: Numbers of the Cauchy matrix that are held at once.
_AT_ONCE = 2**22
#: Logarithm of the damping of the last term. On the unit circle itself an undamped eigenvalue may lie at a root.
_INSIDE = 2.0


def cauchy_kernel(memory: Memory, weights: Any, step: Any, length: Any) -> Array:
    """C M^j G for j < length, where M and G are the trapezoid rule with a held input: (length,).

    M = (1 - h A/2)^{-1} (1 + h A/2), G = (1 - h A/2)^{-1} h B. For ``legs`` the clock is ln t (or plain time, as in S4, where
    that matrix is used on it). The generating function at the L-th roots of unity, on a circle a little smaller, is a sum
    over the eigenvalues of the diagonal part, put right for the low rank (Gu, Goel and Re, arXiv 2111.00396).

    Args:
        memory: the memory.
        weights: C, (N,).
        step: h, a length of the clock.
        length: L.
    """
    h, count = number_of(step, "step", 0.0), order_of(length, "length", 1, 2**31)
    c = memory.checked_weights(numbers_of(weights, "weights").reshape(1, -1))[0]
    form, unit = memory.dplr(), np.eye(memory.order)
    moved = np.linalg.solve(unit - h / 2 * memory.A, unit + h / 2 * memory.A)
    # The sum ends after L terms: C (1 - (radius M)^L) takes the place of C.
    radius = np.exp(-_INSIDE / count)
    whole = c - np.exp(-_INSIDE) * (c @ np.linalg.matrix_power(moved, count))
    left = np.vstack([whole, form.factor.T]) @ form.vectors
    right = form.vectors.conj().T @ np.column_stack([memory.B, form.factor])
    products = left[:, None, :] * right.T[None]
    roots = radius * np.exp(-2j * np.pi * np.arange(count) / count)
    found = np.empty(count, complex)
    many = max(1, _AT_ONCE // memory.order)
    for k in range(0, count, many):
        z = roots[k : k + many]
        s = 2 / h * (1 - z) / (1 + z)
        sums = np.tensordot(products, 1 / (s - form.eigenvalues[:, None]), axes=1)
        # Woodbury: (s - S + P P^T)^{-1} = R - R P (1 + P^T R P)^{-1} P^T R.
        inner = np.linalg.solve(np.eye(len(left) - 1) + sums[1:, 1:].transpose(2, 0, 1), sums[1:, 0].T[..., None])[..., 0]
        value = sums[0, 0] - (sums[0, 1:].T * inner).sum(axis=1)
        found[k : k + many] = 2 / (1 + z) * value
    return np.asarray(np.fft.ifft(found).real / radius ** np.arange(count))
