"""Compiled kernels for Gaussian mixtures: what the torch code of a target computes, several times faster.

There are some for all mixtures in few dimensions, and one for full covariances in tens of them.

They are written in Python and compiled by Numba when they are first used on a machine, which takes some seconds and no
compiler; what was compiled is kept (:mod:`diffode.native.objects`). Without Numba, or with ``DIFFODE_NATIVE=0`` in the
environment, everything runs in torch.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from typing import Literal

#: What the kernels compute.
Wanted = Literal["view", "log_prob", "responsibilities", "divergence"]
#: Largest number of coordinates of a point for which there are kernels for all kinds of covariance.
MOST_DIMENSIONS = 3
#: Largest number for which there is one for full covariances. It makes a matrix for each component at every level.
MOST_DIMENSIONS_OF_FULL = 128
#: Largest count of numbers, 32 MB, in all these matrices.
MOST_NUMBERS_OF_FULL = 2**22
#: Value of ``DIFFODE_NATIVE`` that switches the kernels off.
_OFF = "0"


@functools.cache
def version() -> str:
    """What computes mixtures that have kernels: ``"numba VERSION"``, or ``"torch"`` where there are no kernels.

    A target's own ``arithmetic`` says whether these kernels compute it.
    """
    if os.environ.get("DIFFODE_NATIVE", "") == _OFF or importlib.util.find_spec("numba") is None:
        return "torch"
    return f"numba {importlib.metadata.version('numba')}"


def is_on() -> bool:
    """Whether kernels are used."""
    return version() != "torch"
