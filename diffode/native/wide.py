r"""Kernels for mixtures of Gaussians with full covariances in tens of dimensions, to be compiled by Numba.

At a level the matrices :math:`S_k^{-1}` of :math:`S_k = \alpha^2 C_k + \sigma^2 I` are put together from the eigenvectors once;
then **one** product :math:`S_k^{-1} y`, :math:`y = x - \alpha\mu_k`, gives a component's exponent
:math:`y \cdot S_k^{-1} y` and its part in every view, where work in the eigenbasis needs one product there and one back. Where
noise is larger than the data this would cancel in the denoised point, :math:`(y - \sigma^2 S_k^{-1} y)/\alpha`; the product is
then :math:`\alpha C_k S_k^{-1} y`, of which :math:`S_k^{-1} y = (y - \alpha\,\alpha C_k S_k^{-1} y)/\sigma^2` loses nothing.

The rounding of :math:`y \cdot S_k^{-1} y` grows with the condition of :math:`S_k`, so that these kernels are for moderate ones
(:mod:`diffode.targets.compiled` holds the bound). Rows are computed in blocks as in :mod:`diffode.native.kernels`, and a row's
answer is the same, bit for bit, in any batch.
"""

# The kernels are compiled from their source, in which annotations mean nothing and loops are what is fast.
# mypy: disable-error-code="attr-defined,no-untyped-def,no-untyped-call,untyped-decorator,call-arg,var-annotated,unreachable"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from diffode.native.elementary import INNER, exponential, logarithm
from diffode.native.kernels import ALPHA, DIVERGENCE, LOG_2PI, LOG_PROB, RESPONSIBILITIES, ROOM, SIGMA, VIEW, G, P, after

#: Number of rows of a block.
BLOCK = 32
#: Rows and outputs of a tile of a matrix product, whose sums fit the registers of a processor: 12 vectors of 4.
_LANES, _OUTPUTS = 8, 6


@intrinsic
def _tile(context, matrix, points, length, out):
    """Write sum_j matrix[j, i] points[j, r] to out[i, r], for the _OUTPUTS columns i of a panel and _LANES rows r of a block.

    ``matrix`` is (length, _OUTPUTS); ``points`` and ``out`` are the addresses of the first of the rows in arrays (., BLOCK).
    """

    def generate(context, builder, signature, arguments):
        matrix, points, length, out = arguments
        fused, lanes = ("contract",), ir.VectorType(ir.DoubleType(), _LANES)
        first, every = ir.Constant(ir.IntType(32), 0), ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        undefined = ir.Constant(lanes, ir.Undefined)

        def at(pointer, place):
            return builder.gep(pointer, [place])

        def vector(pointer):
            return builder.bitcast(pointer, lanes.as_pointer())

        sums = [cgutils.alloca_once(builder, lanes) for _ in range(_OUTPUTS)]
        for total in sums:
            builder.store(ir.Constant(lanes, [0.0] * _LANES), total)
        with cgutils.for_range(builder, length) as loop:
            row = builder.load(vector(at(points, builder.mul(loop.index, loop.index.type(BLOCK)))), align=8)
            panel = builder.mul(loop.index, loop.index.type(_OUTPUTS))
            for i, total in enumerate(sums):
                number = builder.load(at(matrix, builder.add(panel, panel.type(i))))
                number = builder.shuffle_vector(builder.insert_element(undefined, number, first), undefined, every)
                product = builder.fmul(number, row, flags=fused)
                builder.store(builder.fadd(builder.load(total), product, flags=fused), total)
        for i, total in enumerate(sums):
            builder.store(builder.load(total), vector(at(out, length.type(i * BLOCK))), align=8)
        return context.get_dummy_value()

    numbers = types.CPointer(types.float64)
    return types.void(numbers, numbers, types.intp, numbers), generate


@numba.njit(inline="always", **INNER)
def _multiply(matrix, points, length, panels, rows, out):
    """Products of a packed matrix, (panels, length, _OUTPUTS), with rows of a block, (length, BLOCK).

    The answer is (panels _OUTPUTS, BLOCK), of which no more than ``rows`` rows are wanted.
    """
    for panel in range(panels):
        for r in range(0, rows, _LANES):
            _tile(after(matrix, panel * length * _OUTPUTS), after(points, r), length, after(out, panel * _OUTPUTS * BLOCK + r))


@numba.njit(**INNER)
def _prepare(dim, noisy, alpha, sigma, eigenvalues, log_weights, basis, work, matrices, bias, traces):
    """The matrix of each component, packed, the logarithm of its density at its centre, and the trace of S_k^-1.

    ``noisy`` chooses the matrix: alpha C_k S_k^-1 rather than S_k^-1.
    """
    panels = matrices.shape[1]
    packed_at, columns_at = work, after(work, panels * dim * _OUTPUTS)
    product_at = after(columns_at, dim * BLOCK)
    packed, columns = carray(packed_at, (panels, dim, _OUTPUTS)), carray(columns_at, (dim, BLOCK))
    product = carray(product_at, (panels * _OUTPUTS, BLOCK))
    for k in range(len(log_weights)):
        bias[k], traces[k] = log_weights[k] - 0.5 * dim * LOG_2PI, 0.0
        for d in range(dim):
            u = alpha * alpha * eigenvalues[k, d] + sigma * sigma
            bias[k] -= 0.5 * logarithm(u)
            traces[k] += 1.0 / u
            factor = (alpha * eigenvalues[k, d] if noisy else 1.0) / u
            for panel in range(panels):
                for i in range(_OUTPUTS):
                    f = panel * _OUTPUTS + i
                    packed[panel, d, i] = basis[k, f, d] * factor if f < dim else 0.0
        for start in range(0, dim, BLOCK):
            width = min(BLOCK, dim - start)
            for r in range(width):
                for d in range(dim):
                    columns[d, r] = basis[k, start + r, d]
            _multiply(packed_at, columns_at, dim, panels, width, product_at)
            for panel in range(panels):
                for r in range(width):
                    for i in range(_OUTPUTS):
                        matrices[k, panel, start + r, i] = product[panel * _OUTPUTS + i, r]


@numba.njit(inline="always", **INNER)
def _subtract(points, scaled_means, k, y):
    """The differences of a block from the centre of component k."""
    for d in range(len(points)):
        mean = scaled_means[k, d]
        for r in range(BLOCK):
            y[d, r] = points[d, r] - mean


@numba.njit(inline="always", **INNER)
def _distances(y, h, of_y, of_h, distance):
    """y . (of_y y + of_h h), which is y . S_k^-1 y."""
    distance[:] = 0.0
    for d in range(len(y)):
        for r in range(BLOCK):
            distance[r] += y[d, r] * (of_y * y[d, r] + of_h * h[d, r])


@numba.njit(**INNER)
def _form(alpha, sigma, p, g, eigenvalues):
    """Whether h is alpha C_k S_k^-1 y rather than S_k^-1 y, and what S_k^-1 y and a view are of y and h.

    That is: S_k^-1 y = solved_y y + solved_h h, and a component's view is p mu_k + view_y y + view_h h.
    """
    widest = 0.0
    for k in range(eigenvalues.shape[0]):
        for d in range(eigenvalues.shape[1]):
            widest = max(widest, eigenvalues[k, d])
    noise = sigma * sigma
    if noise > alpha * alpha * widest:
        return True, 1.0 / noise, -alpha / noise, g / noise, p - g * alpha / noise
    # Without noise alpha is not 0, as takes() sees to.
    return False, 0.0, 1.0, p / alpha, g - p * noise / alpha


@numba.njit(**INNER)
def _spread(y, h, of_y, of_h, mean, distance):
    """|of_y y + of_h h - mean|^2: unexpanded, so that nothing cancels."""
    distance[:] = 0.0
    for d in range(len(y)):
        for r in range(BLOCK):
            apart = of_y * y[d, r] + of_h * h[d, r] - mean[d, r]
            distance[r] += apart * apart


@numba.njit(**INNER)
def _evaluate(wanted, x, centre, means, eigenvalues, log_weights, basis, levels, out, work):
    """As in :mod:`diffode.native.kernels`, with arrays of the same shapes, for full covariances and one level."""
    (rows, dim), count = x.shape, len(means)
    panels = -(-dim // _OUTPUTS)
    padded = panels * _OUTPUTS
    block = 2 * dim * BLOCK + padded * BLOCK
    if wanted == ROOM:
        return (
            count * (padded * dim + dim + 2)
            + max(block + dim * BLOCK, padded * dim + dim * BLOCK + padded * BLOCK)
            + (BLOCK * (count + 5))
        )
    alpha, sigma, p, g = levels[ALPHA, 0], levels[SIGMA, 0], levels[P, 0], levels[G, 0]
    if wanted == DIVERGENCE:
        p, g = 0.0, 1.0
    noisy, solved_y, solved_h, view_y, view_h = _form(alpha, sigma, p, g, eigenvalues)
    matrices_at, work = work, after(work, count * padded * dim)
    matrices = carray(matrices_at, (count, panels, dim, _OUTPUTS))
    scaled_means, work = carray(work, (count, dim)), after(work, count * dim)
    bias, work = carray(work, (count,)), after(work, count)
    traces, work = carray(work, (count,)), after(work, count)
    joint, work = carray(work, (count, BLOCK)), after(work, count * BLOCK)
    top, work = carray(work, (BLOCK,)), after(work, BLOCK)
    mass, work = carray(work, (BLOCK,)), after(work, BLOCK)
    kept, work = carray(work, (BLOCK,)), after(work, BLOCK)
    weight, work = carray(work, (BLOCK,)), after(work, BLOCK)
    distance, work = carray(work, (BLOCK,)), after(work, BLOCK)
    _prepare(dim, noisy, alpha, sigma, eigenvalues, log_weights, basis, work, matrices, bias, traces)
    points, work = carray(work, (dim, BLOCK)), after(work, dim * BLOCK)
    total, work = carray(work, (dim, BLOCK)), after(work, dim * BLOCK)
    y_at, h_at = work, after(work, dim * BLOCK)
    y, h = carray(y_at, (dim, BLOCK)), carray(h_at, (padded, BLOCK))
    for k in range(count):
        for d in range(dim):
            scaled_means[k, d] = alpha * means[k, d]
    size = panels * dim * _OUTPUTS
    for start in range(0, rows, BLOCK):
        length = min(BLOCK, rows - start)
        for r in range(BLOCK):
            row = start + min(r, length - 1)
            for d in range(dim):
                points[d, r] = x[row, d] - alpha * centre[d]
        # Rows beyond the last tile of a short block hold anything, and are not looked at.
        total[:] = 0.0
        top[:] = -np.inf
        mass[:] = 0.0
        for k in range(count):
            _subtract(points, scaled_means, k, y)
            _multiply(after(matrices_at, k * size), y_at, dim, panels, length, h_at)
            _distances(y, h, solved_y, solved_h, distance)
            # Sums so far are relative to the largest density so far, and follow it.
            for r in range(BLOCK):
                value = bias[k] - 0.5 * distance[r]
                joint[k, r] = value
                highest = value if value > top[r] else top[r]
                kept[r], weight[r] = exponential(top[r] - highest), exponential(value - highest)
                top[r] = highest
                mass[r] = mass[r] * kept[r] + weight[r]
            if wanted in (VIEW, DIVERGENCE):
                for d in range(dim):
                    shift = p * means[k, d]
                    for r in range(BLOCK):
                        part = shift + view_y * y[d, r] + view_h * h[d, r]
                        total[d, r] = total[d, r] * kept[r] + weight[r] * part
        if wanted == VIEW:
            for d in range(dim):
                shift = p * centre[d]
                for r in range(BLOCK):
                    total[d, r] = total[d, r] / mass[r] + shift
            for r in range(length):
                for d in range(dim):
                    out[start + r, d] = total[d, r]
        elif wanted == LOG_PROB:
            for r in range(length):
                out[start + r, 0] = top[r] + math.log(mass[r])
        elif wanted == RESPONSIBILITIES:
            for k in range(count):
                for r in range(BLOCK):
                    joint[k, r] = exponential(joint[k, r] - top[r]) / mass[r]
                for r in range(length):
                    out[start + r, k] = joint[k, r]
        else:
            for d in range(dim):
                for r in range(BLOCK):
                    total[d, r] /= mass[r]
            kept[:] = 0.0
            for k in range(count):
                _subtract(points, scaled_means, k, y)
                _multiply(after(matrices_at, k * size), y_at, dim, panels, length, h_at)
                _spread(y, h, view_y, view_h, total, distance)
                for r in range(BLOCK):
                    kept[r] += exponential(joint[k, r] - top[r]) * (distance[r] - traces[k])
            for r in range(length):
                out[start + r, 0] = kept[r] / mass[r]
    # Rows whose squares overflow have no numbers in torch either.
    return 0


def kernel() -> Callable[..., Any]:
    """:func:`_evaluate` as a function with the signature of :func:`diffode.native.kernels.kernel`'s; ``kinds`` is dim."""

    def evaluate(wanted, rows, count, kinds, x, parameters, levels, out, work):
        dim = kinds
        columns = dim if wanted == VIEW else count if wanted == RESPONSIBILITIES else 1
        centre, means = carray(parameters, (dim,)), carray(after(parameters, dim), (count, dim))
        eigenvalues = carray(after(parameters, dim * (1 + count)), (count, dim))
        log_weights = carray(after(parameters, dim * (1 + 2 * count)), (count,))
        basis = carray(after(parameters, dim * (1 + 2 * count) + count), (count, dim, dim))
        points, answer = carray(x, (rows, dim)), carray(out, (rows, columns))
        return _evaluate(wanted, points, centre, means, eigenvalues, log_weights, basis, carray(levels, (4, 1)), answer, work)

    return evaluate
