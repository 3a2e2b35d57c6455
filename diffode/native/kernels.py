r"""Kernels for mixtures: responsibilities, log-density, views and the divergence of the score, to be compiled by Numba.

The Gaussians are those of :mod:`diffode.targets.components`: component k is :math:`N(\alpha\mu_k, S_k)` with
:math:`S_k = B_k\,\mathrm{diag}(u_k)B_k^T`, :math:`u_{kd} = \alpha^2 c_{kd} + \sigma^2`. All is computed from the differences
:math:`y = x - \alpha\mu_k`, so that no digit is lost however narrow a component is. Far from all components, where even their
squares would differ by less than they are rounded, the squares are compared without being formed (:func:`_compare`).

Rows are computed in blocks of a fixed length, a short last block being filled up with its last row. The innermost loops run
over the rows of a block, which the compiler turns into vector instructions without a remainder: so a row's answer is the same,
bit for bit, in any batch.
"""

# The kernels are compiled from their source, in which annotations mean nothing and loops are what is fast.
# mypy: disable-error-code="attr-defined,no-untyped-def,no-untyped-call,untyped-decorator,call-arg,var-annotated,unreachable"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from diffode.native.elementary import INNER, exponential, logarithm

#: What a kernel computes, as numbers: the places of the words of ``native.Wanted``, and then the size of its workplace.
VIEW, LOG_PROB, RESPONSIBILITIES, DIVERGENCE, ROOM = range(5)
#: Rows of an array of levels: alpha, sigma, and the weights of the denoised point and of the negative score.
ALPHA, SIGMA, P, G = range(4)
#: Number of rows of a block.
BLOCK = 64
#: Logarithm of a row's largest density below which its components are compared, as squares lose 1e-12 by then.
_FAR = -5000.0
#: Relative density below which a component has none: more than the smallest value of the exponential.
_NOTHING = 1e-307

LOG_2PI = math.log(2 * math.pi)


@intrinsic
def after(context, pointer, count):
    """The address that lies ``count`` numbers after another."""

    def generate(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return types.CPointer(types.float64)(pointer, types.intp), generate


# A kernel is specialised by the types of its arguments: ``axes`` is a tuple of as many numbers as a point has coordinates,
# ``basis`` is None for components along the axes, and ``own`` is None where all rows share one level. In arrays with a last
# axis for levels, that axis has a column for each row of the block, or one for all.


@numba.njit(inline="always", **INNER)
def _column(own, r):
    """The column that belongs to a row of the block."""
    return 0 if own is None else r


@numba.njit(inline="always", **INNER)
def _along(axes, basis, own, points, scaled_means, k, d, r):
    """The coordinate of x - alpha mu_k along the d-th eigenvector, for a row of the block."""
    at = _column(own, r)
    if basis is None:
        return points[d, r] - scaled_means[k, d, at]
    total = 0.0
    for f in range(len(axes)):
        total += basis[k, f, d] * (points[f, r] - scaled_means[k, f, at])
    return total


@numba.njit(**INNER)
def _prepare(axes, several, means, eigenvalues, log_weights, level, scaled_means, inverse, factor, bias):
    """What does not depend on x: alpha mu_k, 1/u, (p alpha c + g)/u, and the logarithm of the density at its centre."""
    dim, width = len(axes), level.shape[1]
    repeated = 1 if several else dim
    for k in range(len(means)):
        for r in range(width):
            bias[k, r] = log_weights[k] - 0.5 * dim * LOG_2PI
        for d in range(dim):
            for r in range(width):
                scaled_means[k, d, r] = level[ALPHA, r] * means[k, d]
        for d in range(inverse.shape[1]):
            c = eigenvalues[k, d]
            for r in range(width):
                u = level[ALPHA, r] * level[ALPHA, r] * c + level[SIGMA, r] * level[SIGMA, r]
                inverse[k, d, r] = 1.0 / u
                factor[k, d, r] = (level[P, r] * level[ALPHA, r] * c + level[G, r]) / u
                bias[k, r] -= 0.5 * repeated * logarithm(u)


@numba.njit(**INNER)
def _weigh(axes, basis, own, several, points, scaled_means, inverse, bias, weights, top, shift, mass):
    """Densities of the components times their weights, relative to the largest of each row; its logarithm, and their sum.

    Returns the number of rows whose squared distances overflow; their weights are not numbers.
    """
    lost = 0
    for r in range(BLOCK):
        top[r] = -np.inf
        mass[r] = 0.0
    for k in range(len(weights)):
        joint = weights[k]
        for r in range(BLOCK):
            distance = 0.0
            for d in range(len(axes)):
                y = _along(axes, basis, own, points, scaled_means, k, d, r)
                distance += y * y * inverse[k, d * several, _column(own, r)]
            value = bias[k, _column(own, r)] - 0.5 * distance
            joint[r] = value
            top[r] = value if value > top[r] else top[r]
    nearest = np.inf
    for r in range(BLOCK):
        shift[r] = top[r]
        nearest = top[r] if top[r] < nearest else nearest
    if nearest < _FAR:
        for r in range(BLOCK):
            if top[r] < _FAR:
                _compare(axes, basis, own, several, points, scaled_means, inverse, bias, weights, r, top, shift)
                lost += 0 if top[r] > -np.inf else 1
    for k in range(len(weights)):
        joint = weights[k]
        for r in range(BLOCK):
            value = exponential(joint[r] - shift[r])
            joint[r] = value
            mass[r] += value
    return lost


@numba.njit(**INNER)
def _compare(axes, basis, own, several, points, scaled_means, inverse, bias, weights, r, top, shift):
    """Logarithms of a far row's densities relative to that of the likeliest component j, without the squares that cancel.

    With y_k = x - alpha mu_k and S_k^-1 for the k-th form, y_k^T S_k^-1 y_k - y_j^T S_j^-1 y_j is
    (y_k - y_j)^T S_k^-1 (y_k + y_j) + y_j^T (S_k^-1 - S_j^-1) y_j: y_k - y_j holds no x, and equal forms cancel exactly.
    """
    at, j = _column(own, r), 0
    for k in range(len(weights)):
        j = k if weights[k, r] == top[r] else j
    for k in range(len(weights)):
        form = 0.0
        for d in range(len(axes)):
            y = _turned(axes, basis, own, points, scaled_means, k, j, j, 1.0, 0.0, d, r)
            form += y * y * inverse[k, d * several, at]
        weights[k, r] = form
    own_form, highest = weights[j, r], -np.inf
    for k in range(len(weights)):
        difference = weights[k, r] - own_form
        for d in range(len(axes)):
            apart = _turned(axes, basis, own, points, scaled_means, k, j, k, 0.0, 1.0, d, r)
            both = _turned(axes, basis, own, points, scaled_means, k, j, k, 2.0, 1.0, d, r)
            difference += apart * both * inverse[k, d * several, at]
        value = (bias[k, at] - bias[j, at]) - 0.5 * difference
        # A component whose own squares overflow, where the likeliest one's do not, has no weight.
        value = value if value > -np.inf else -np.inf
        weights[k, r] = value
        highest = value if value > highest else highest
    shift[r] = highest
    top[r] += highest


@numba.njit(inline="always", **INNER)
def _turned(axes, basis, own, points, scaled_means, k, j, other, near, apart, d, r):
    """The coordinate of near y_j + apart (y_other - y_j) along the d-th eigenvector of component k, for a row."""
    at = _column(own, r)
    if basis is None:
        return near * (points[d, r] - scaled_means[j, d, at]) + apart * (scaled_means[j, d, at] - scaled_means[other, d, at])
    total = 0.0
    for f in range(len(axes)):
        y = near * (points[f, r] - scaled_means[j, f, at]) + apart * (scaled_means[j, f, at] - scaled_means[other, f, at])
        total += basis[k, f, d] * y
    return total


@numba.njit(**INNER)
def _pull(axes, basis, own, several, points, scaled_means, scale, k, share, total):
    """Add share (BLOCK,) times S_k^-1 (x - alpha mu_k), or with another ``scale`` in place of 1/u, to total (dim, BLOCK)."""
    for d in range(len(axes)):
        for r in range(BLOCK):
            w = share[r] * scale[k, d * several, _column(own, r)]
            w *= _along(axes, basis, own, points, scaled_means, k, d, r)
            if basis is None:
                total[d, r] += w
            else:
                for f in range(len(axes)):
                    total[f, r] += w * basis[k, f, d]


@numba.njit(**INNER)
def _view(axes, basis, own, several, points, scaled_means, means, centre, level, factor, weights, mass, total):
    """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)] of every row of the block, in total (dim, BLOCK)."""
    total[:] = 0.0
    for k in range(len(weights)):
        if basis is None:
            # One loop for all that is summed, so that a row's numbers are read and written once.
            for r in range(BLOCK):
                share, at = weights[k, r], _column(own, r)
                for d in range(len(axes)):
                    w = share * factor[k, d * several, at]
                    w *= _along(axes, basis, own, points, scaled_means, k, d, r)
                    total[d, r] = (total[d, r] + w) + share * (level[P, at] * means[k, d])
            continue
        _pull(axes, basis, own, several, points, scaled_means, factor, k, weights[k], total)
        if own is None and level[P, 0] == 0.0:
            continue
        for d in range(len(axes)):
            for r in range(BLOCK):
                total[d, r] += weights[k, r] * (level[P, _column(own, r)] * means[k, d])
    for d in range(len(axes)):
        for r in range(BLOCK):
            total[d, r] = total[d, r] / mass[r] + level[P, _column(own, r)] * centre[d]


@numba.njit(**INNER)
def _diverge(axes, basis, own, several, points, scaled_means, inverse, weights, mass, total, apart, ones, answer):
    """The divergence of the score, sum_k r_k (|g_k - score|^2 - tr S_k^-1): unexpanded, so that nothing cancels."""
    total[:] = 0.0
    for k in range(len(weights)):
        _pull(axes, basis, own, several, points, scaled_means, inverse, k, weights[k], total)
    for d in range(len(axes)):
        for r in range(BLOCK):
            total[d, r] /= mass[r]
    answer[:] = 0.0
    for k in range(len(weights)):
        for d in range(len(axes)):
            for r in range(BLOCK):
                apart[d, r] = -total[d, r]
        _pull(axes, basis, own, several, points, scaled_means, inverse, k, ones, apart)
        for d in range(len(axes)):
            for r in range(BLOCK):
                part = apart[d, r] * apart[d, r] - inverse[k, d * several, _column(own, r)]
                # The square of a component without weight may overflow.
                part = part if weights[k, r] > _NOTHING else 0.0
                answer[r] += weights[k, r] * part
    for r in range(BLOCK):
        answer[r] /= mass[r]


@numba.njit(**INNER)
def _evaluate(wanted, axes, basis, own, x, centre, means, eigenvalues, log_weights, levels, out, work):
    """Compute what is wanted of every row of x and write it to ``out``.

    Args:
        wanted: the place of a word of ``native.Wanted``.
        axes: any tuple of dim numbers.
        basis: (K, dim, dim) with the eigenvectors in columns, or None.
        own: None if all rows share one level, else anything.
        x: (B, dim).
        centre: (dim,), which is subtracted from the data.
        means: (K, dim), less the centre.
        eigenvalues: (K, dim), or (K, 1) for isotropic components.
        log_weights: (K,).
        levels: alpha, sigma, and the weights p of the denoised point and g of the negative score, (4, 1) or (4, B).
        out: (B, dim), (B, K), or (B, 1).
        work: room for the numbers that it works with.

    Returns the number of rows whose squared distances overflow; what is written for them is not a number. Asked for ``ROOM``,
    it returns the count of numbers that it works with.
    """
    rows, count, dim = x.shape[0], means.shape[0], len(axes)
    width = 1 if own is None else BLOCK
    kinds = eigenvalues.shape[1]
    if wanted == ROOM:
        return width * (4 + count * (dim + 1 + 2 * kinds)) + BLOCK * (3 * dim + count + 4)
    several = 0 if kinds == 1 else 1
    level, work = carray(work, (4, width)), after(work, 4 * width)
    scaled_means, work = carray(work, (count, dim, width)), after(work, count * dim * width)
    bias, work = carray(work, (count, width)), after(work, count * width)
    inverse, work = carray(work, (count, kinds, width)), after(work, count * kinds * width)
    factor, work = carray(work, (count, kinds, width)), after(work, count * kinds * width)
    points, work = carray(work, (dim, BLOCK)), after(work, dim * BLOCK)
    total, work = carray(work, (dim, BLOCK)), after(work, dim * BLOCK)
    apart, work = carray(work, (dim, BLOCK)), after(work, dim * BLOCK)
    weights, work = carray(work, (count, BLOCK)), after(work, count * BLOCK)
    top, work = carray(work, (BLOCK,)), after(work, BLOCK)
    shift, work = carray(work, (BLOCK,)), after(work, BLOCK)
    mass, work = carray(work, (BLOCK,)), after(work, BLOCK)
    ones = carray(work, (BLOCK,))
    ones[:] = 1.0
    lost = 0
    for start in range(0, rows, BLOCK):
        length = min(BLOCK, rows - start)
        if own is not None or start == 0:
            for r in range(width):
                for i in range(4):
                    level[i, r] = levels[i, start + min(r, length - 1)]
            _prepare(axes, several, means, eigenvalues, log_weights, level, scaled_means, inverse, factor, bias)
        for r in range(BLOCK):
            for d in range(dim):
                points[d, r] = x[start + min(r, length - 1), d] - level[ALPHA, _column(own, r)] * centre[d]
        lost += _weigh(axes, basis, own, several, points, scaled_means, inverse, bias, weights, top, shift, mass)
        if wanted == LOG_PROB:
            for r in range(length):
                out[start + r, 0] = top[r] + math.log(mass[r])
        elif wanted == RESPONSIBILITIES:
            for r in range(length):
                for k in range(count):
                    out[start + r, k] = weights[k, r] / mass[r]
        elif wanted == DIVERGENCE:
            _diverge(axes, basis, own, several, points, scaled_means, inverse, weights, mass, total, apart, ones, top)
            for r in range(length):
                out[start + r, 0] = top[r]
        else:
            _view(axes, basis, own, several, points, scaled_means, means, centre, level, factor, weights, mass, total)
            for r in range(length):
                for d in range(dim):
                    out[start + r, d] = total[d, r]
    return lost


def kernel(dim: int, rotated: bool, own: bool) -> Callable[..., Any]:
    """:func:`_evaluate` for one kind of mixture, as a function with the signature ``SIGNATURE``.

    It takes what is wanted, the numbers of rows, of components and of eigenvalues of each (1 or dim); the addresses of the
    points, of all parameters one after the other (centre, means, eigenvalues, logarithms of weights, bases), of the levels, of
    the answer, and of its workplace.
    """
    axes, mark = (0,) * dim, True if own else None
    basis_at = _basis_at if rotated else _no_basis

    def evaluate(wanted, rows, count, kinds, x, parameters, levels, out, work):
        columns = dim if wanted == VIEW else count if wanted == RESPONSIBILITIES else 1
        centre, means = carray(parameters, (dim,)), carray(after(parameters, dim), (count, dim))
        eigenvalues = carray(after(parameters, dim * (1 + count)), (count, kinds))
        log_weights = carray(after(parameters, dim * (1 + count) + count * kinds), (count,))
        basis = basis_at(after(parameters, dim * (1 + count) + count * (kinds + 1)), count, dim)
        level = carray(levels, (4, rows if own else 1))
        points, answer = carray(x, (rows, dim)), carray(out, (rows, columns))
        return _evaluate(wanted, axes, basis, mark, points, centre, means, eigenvalues, log_weights, level, answer, work)

    return evaluate


@numba.njit(inline="always", **INNER)
def _basis_at(pointer, count, dim):
    return carray(pointer, (count, dim, dim))


@numba.njit(inline="always", **INNER)
def _no_basis(pointer, count, dim):
    return None


#: Types of a kernel's result, of its four counts, and of its five addresses.
SIGNATURE = types.int64(*[types.int64] * 4, *[types.CPointer(types.float64)] * 5)
