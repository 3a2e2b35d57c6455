"""The exponential and the logarithm, so that loops over them become vector instructions, and how all kernels are compiled."""

# These are compiled from their source, in which annotations mean nothing.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,call-arg,var-annotated,unreachable"

from __future__ import annotations

import math
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

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

#: How sums and products are compiled: they may be fused, as they then are for every row alike.
SETTINGS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
#: What is compiled for other kernels alone, which takes less time without an entry for Python.
INNER: dict[str, Any] = {**SETTINGS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


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


@numba.njit(inline="always", **INNER)
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


@numba.njit(inline="always", **INNER)
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
