"""Errors: what they carry from one process to another."""

import pickle

import pytest

from diffode import solvers
from diffode.errors import UnknownNameError


def test_errors_cross_borders_between_processes():
    with pytest.raises(UnknownNameError) as caught:
        solvers.get("dpmp")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert type(again) is UnknownNameError
    assert str(again) == str(caught.value)
    assert "did you mean" in str(again)
