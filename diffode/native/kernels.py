r"""Kernels for mixtures: responsibilities, log-density, views and the divergence of the score, compiled by Numba.

The Gaussians are those of :mod:`diffode.targets.components`: component k is :math:`N(\alpha\mu_k, S_k)` with
:math:`S_k = B_k\,\mathrm{diag}(u_k)B_k^T`, :math:`u_{kd} = \alpha^2 c_{kd} + \sigma^2`. All is computed from the differences
:math:`y = x - \alpha\mu_k`, so that no digit is lost however narrow a component is.

Rows are computed in blocks of a fixed length, a short last block being filled up with its last row. The innermost loops run
over the rows of a block, which the compiler turns into vector instructions without a remainder: so a row's answer is the same,
bit for bit, in any batch.
"""

# The kernels are compiled from their source, in which annotations mean nothing and loops are what is fast.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,call-arg,var-annotated,unreachable"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

#: What a kernel computes, as numbers: the places of the words of ``native.Wanted``.
_VIEW, _LOG_PROB, _RESPONSIBILITIES, _DIVERGENCE = range(4)
#: Rows of an array of levels: alpha, sigma, and the weights of the denoised point and of the negative score.
_ALPHA, _SIGMA, _P, _G = range(4)
#: Number of rows of a block.
BLOCK = 64

_LOG_2PI = math.log(2 * math.pi)
#: Addend of 1.5 * 2^52 that rounds a float64 to an integer and leaves it in the low bits.
_ROUNDER = 6755399441055744.0
#: Lowest argument of the exponential; beyond it the value would be subnormal.
_LOWEST = -708.0
_LOG2_E = 1.4426950408889634
#: The logarithm of 2 as a sum: the first part times an exponent is exact.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_MANTISSA_BITS, _MANTISSA, _ONE_BITS = 52, (1 << 52) - 1, 1023 << 52
_ROOT2 = math.sqrt(2)
#: exp(y) = 1 + y (e_0 + e_1 y + ...) for |y| <= log(2)/2, interpolated at Chebyshev's nodes: relative error 1e-17.
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10 = (
    1.0, 0.5000000000000006, 0.1666666666666667, 0.04166666666657314, 0.008333333333326141, 0.0013888888932488848,
    0.00019841269874800683, 2.4801504346680997e-05, 2.75572554255029e-06, 2.7626357373278975e-07, 2.5105206475334834e-08,
)  # fmt: skip

#: Settings of the compiler: products may be fused with sums, as they then are for every row alike.
_SETTINGS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}


@intrinsic
def _bits_of(context, number):
    """The bits of a float64 as an int64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.int64))

    return types.int64(types.float64), generate


@intrinsic
def _of_bits(context, bits):
    """The float64 with the bits of an int64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float64))

    return types.float64(types.int64), generate


@numba.njit(inline="always", **_SETTINGS)
def exponential(v):
    """exp(v) for v <= 0, to a unit in the last place; exp(-708) for all below, which no sum with 1 notices."""
    # What is no number stays none.
    v = _LOWEST if v < _LOWEST else v
    shifted = v * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    y = (v - n * _LN2_HIGH) - n * _LN2_LOW
    q = _E10
    q = q * y + _E9
    q = q * y + _E8
    q = q * y + _E7
    q = q * y + _E6
    q = q * y + _E5
    q = q * y + _E4
    q = q * y + _E3
    q = q * y + _E2
    q = q * y + _E1
    q = q * y + _E0
    q = q * y + 1.0
    # The low bits of ``shifted`` are n; moved to the exponent, on top of that of 1, they are 2^n.
    return q * _of_bits((_bits_of(shifted) << _MANTISSA_BITS) + _ONE_BITS)


@numba.njit(inline="always", **_SETTINGS)
def logarithm(v):
    """log(v) of a normal positive v, to two units in the last place, as 2 artanh((m - 1)/(m + 1)) + e log 2 with v = m 2^e."""
    bits = _bits_of(v)
    exponent = float((bits >> _MANTISSA_BITS) - 1023)
    mantissa = _of_bits((bits & _MANTISSA) | _ONE_BITS)
    large = mantissa > _ROOT2
    mantissa = mantissa * 0.5 if large else mantissa
    exponent = exponent + 1.0 if large else exponent
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    q = 1.0 / 23.0
    q = q * z + 1.0 / 21.0
    q = q * z + 1.0 / 19.0
    q = q * z + 1.0 / 17.0
    q = q * z + 1.0 / 15.0
    q = q * z + 1.0 / 13.0
    q = q * z + 1.0 / 11.0
    q = q * z + 1.0 / 9.0
    q = q * z + 1.0 / 7.0
    q = q * z + 1.0 / 5.0
    q = q * z + 1.0 / 3.0
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + 2.0 * (s + s * z * q))


# A kernel is specialised by the types of its arguments: ``axes`` is a tuple of as many numbers as a point has coordinates,
# ``basis`` is None for components along the axes, and ``own`` is None where all rows share one level. In arrays with a last
# axis for levels, that axis has a column for each row of the block, or one for all.


@numba.njit(inline="always", **_SETTINGS)
def _column(own, r):
    """The column that belongs to a row of the block."""
    return 0 if own is None else r


@numba.njit(inline="always", **_SETTINGS)
def _along(axes, basis, own, points, scaled_means, k, d, r):
    """The coordinate of x - alpha mu_k along the d-th eigenvector, for a row of the block."""
    at = _column(own, r)
    if basis is None:
        return points[d, r] - scaled_means[k, d, at]
    total = 0.0
    for f in range(len(axes)):
        total += basis[k, f, d] * (points[f, r] - scaled_means[k, f, at])
    return total


@numba.njit(**_SETTINGS)
def _prepare(axes, several, means, eigenvalues, log_weights, level, scaled_means, inverse, factor, bias):
    """What does not depend on x: alpha mu_k, 1/u, (p alpha c + g)/u, and the logarithm of the density at its centre."""
    dim, width = len(axes), level.shape[1]
    repeated = 1 if several else dim
    for k in range(len(means)):
        for r in range(width):
            bias[k, r] = log_weights[k] - 0.5 * dim * _LOG_2PI
        for d in range(dim):
            for r in range(width):
                scaled_means[k, d, r] = level[_ALPHA, r] * means[k, d]
        for d in range(inverse.shape[1]):
            c = eigenvalues[k, d]
            for r in range(width):
                u = level[_ALPHA, r] * level[_ALPHA, r] * c + level[_SIGMA, r] * level[_SIGMA, r]
                inverse[k, d, r] = 1.0 / u
                factor[k, d, r] = (level[_P, r] * level[_ALPHA, r] * c + level[_G, r]) / u
                bias[k, r] -= 0.5 * repeated * logarithm(u)


@numba.njit(**_SETTINGS)
def _weigh(axes, basis, own, several, points, scaled_means, inverse, bias, weights, top, mass):
    """Densities of the components times their weights, relative to the largest of each row; its logarithm, and their sum."""
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
    for k in range(len(weights)):
        joint = weights[k]
        for r in range(BLOCK):
            value = exponential(joint[r] - top[r])
            joint[r] = value
            mass[r] += value


@numba.njit(**_SETTINGS)
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


@numba.njit(**_SETTINGS)
def _view(axes, basis, own, several, points, scaled_means, means, centre, level, factor, weights, mass, total):
    """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)] of every row of the block, in total (dim, BLOCK)."""
    total[:] = 0.0
    for k in range(len(weights)):
        _pull(axes, basis, own, several, points, scaled_means, factor, k, weights[k], total)
        if own is None and level[_P, 0] == 0.0:
            continue
        for d in range(len(axes)):
            for r in range(BLOCK):
                total[d, r] += weights[k, r] * (level[_P, _column(own, r)] * means[k, d])
    for d in range(len(axes)):
        for r in range(BLOCK):
            total[d, r] = total[d, r] / mass[r] + level[_P, _column(own, r)] * centre[d]


@numba.njit(**_SETTINGS)
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
                square = apart[d, r] * apart[d, r]
                answer[r] += weights[k, r] * (square - inverse[k, d * several, _column(own, r)])
    for r in range(BLOCK):
        answer[r] /= mass[r]


def _evaluate(wanted, axes, basis, own, x, centre, means, eigenvalues, log_weights, levels, out):
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
    """
    rows, count, dim = x.shape[0], means.shape[0], len(axes)
    width = 1 if own is None else BLOCK
    several = 0 if eigenvalues.shape[1] == 1 else 1
    level, scaled_means, bias = np.empty((4, width)), np.empty((count, dim, width)), np.empty((count, width))
    inverse = np.empty((count, eigenvalues.shape[1], width))
    factor = np.empty((count, eigenvalues.shape[1], width))
    points, total, apart = np.empty((dim, BLOCK)), np.empty((dim, BLOCK)), np.empty((dim, BLOCK))
    weights, top, mass, ones = np.empty((count, BLOCK)), np.empty(BLOCK), np.empty(BLOCK), np.ones(BLOCK)
    for start in range(0, rows, BLOCK):
        length = min(BLOCK, rows - start)
        if own is not None or start == 0:
            for r in range(width):
                for i in range(4):
                    level[i, r] = levels[i, start + min(r, length - 1)]
            _prepare(axes, several, means, eigenvalues, log_weights, level, scaled_means, inverse, factor, bias)
        for r in range(BLOCK):
            for d in range(dim):
                points[d, r] = x[start + min(r, length - 1), d] - level[_ALPHA, _column(own, r)] * centre[d]
        _weigh(axes, basis, own, several, points, scaled_means, inverse, bias, weights, top, mass)
        if wanted == _LOG_PROB:
            for r in range(length):
                out[start + r, 0] = top[r] + math.log(mass[r])
        elif wanted == _RESPONSIBILITIES:
            for r in range(length):
                for k in range(count):
                    out[start + r, k] = weights[k, r] / mass[r]
        elif wanted == _DIVERGENCE:
            _diverge(axes, basis, own, several, points, scaled_means, inverse, weights, mass, total, apart, ones, top)
            for r in range(length):
                out[start + r, 0] = top[r]
        else:
            _view(axes, basis, own, several, points, scaled_means, means, centre, level, factor, weights, mass, total)
            for r in range(length):
                for d in range(dim):
                    out[start + r, d] = total[d, r]


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """The function, compiled when it is first called and kept in a cache on disk, if there is a place for one."""
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **_SETTINGS)(function)
    except RuntimeError:
        # Numba found no folder that can be written.
        compiled = numba.njit(**_SETTINGS)(function)
    return compiled


evaluate = _compiled(_evaluate)
