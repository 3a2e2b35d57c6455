"""Shared set-up: deterministic hypothesis, one torch thread a worker, a cache folder of the tests' own."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from hypothesis import settings

import diffode

settings.register_profile("diffode", derandomize=True, deadline=None, max_examples=40, print_blob=False)
settings.load_profile("diffode")
torch.set_num_threads(1)
os.environ["DIFFODE_CACHE"] = tempfile.mkdtemp(prefix="diffode-tests-")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20240229)


@pytest.fixture
def exact() -> diffode.fields.ExactField:
    """The exact field of two modes on a line."""
    return diffode.exact_field("bimodal1d", "vp")
