"""Specs round-trip, and registries take users' things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffode.errors import ArgumentError
from diffode.specs import Registry, format_spec, parse_spec

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
reserved = {"true", "false", "none", "nan", "inf", "infinity"}
values = st.one_of(
    st.booleans(), st.none(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False),
    names.filter(lambda s: s not in reserved), st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple),
)  # fmt: skip


@given(names, st.dictionaries(names, values, max_size=4))
def test_a_formatted_spec_parses_back(name, options):
    assert parse_spec(format_spec(name, options)) == (name, options)


@pytest.mark.parametrize("spec", ["", ":", "a:", "a:b=", "a:=1", "a:1=2", "a b", "a:b=1,b=2", "../a"])
def test_malformed_specs_are_refused(spec):
    with pytest.raises(ArgumentError):
        parse_spec(spec)


def test_a_registry_refuses_a_taken_name():
    registry = Registry("thing")
    registry.register("one", dict)
    with pytest.raises(ArgumentError, match="registered already"):
        registry.register("one", dict)
    with pytest.raises(ArgumentError, match="must be letters"):
        registry.register("no spaces", dict)
