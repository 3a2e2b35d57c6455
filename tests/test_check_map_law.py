"""The law of a map's points in the verdict on it: moments, modes and sliced distances, apart from how they are coupled."""

import planted_maps as planted
import pytest
import torch
from test_check_map import SMALL, generator_of

import diffode
from diffode.maps import FunctionMap
from diffode.verify import check_map


def test_the_right_law_with_another_coupling_is_called_that():
    field = diffode.exact_field(planted.EVEN, "edm")
    report = check_map(planted.mirrored(field), field, **SMALL)
    assert "has the law of the data, not the coupling of the flow" in report.facts["verdict"]
    assert not report.passed
    for name in ("moments", "weights of modes", "sliced W2"):
        assert report.check(name).passed


def test_a_map_made_for_a_law_is_judged_by_its_law():
    field = diffode.exact_field(planted.EVEN, "edm")
    flow, ends = diffode.flow(field), (field.path.t_max, field.path.t_min)
    # The law of the data is even, so that turning the noise over keeps the law and no point.
    for function, good in ((lambda x: flow(-x, *ends), True), (lambda x: flow(x.abs(), *ends), False)):
        report = check_map(generator_of(field, function, law_only=True), field, **SMALL)
        assert report.passed is good
        assert report.check("pairs").passed is None
        assert report.check("pairs").value > 0.5
        assert ("has the law of the data, all that it was made for" in report.facts["verdict"]) is good
    assert "loses the mode" in report.facts["verdict"]
    whole = planted.mirrored(field)
    several = FunctionMap(whole, "edm")
    several.law_only = True
    report = check_map(several, field, **SMALL)
    assert report.check("semigroup").passed is None
    assert report.check("boundary").passed is False


@pytest.mark.slow
def test_a_lost_mode_of_weight_one_in_a_thousand_is_named():
    field = diffode.exact_field(planted.RARE, "edm")
    report = check_map(planted.drops_a_mode(field), field, points=64)
    assert "loses the mode of weight 0.001" in report.facts["verdict"]
    assert report.check("weights of modes").passed is False
    # Its mean error is small, since few starts go there.
    assert report.check("pairs").passed
    assert check_map(diffode.flow(field), field, points=64).passed


def test_of_many_lost_modes_the_first_are_named():
    """Whatever the noise, the points are those of one of eight modes."""
    field = diffode.exact_field(diffode.GaussianMixture([1 / 8] * 8, [[2.0 * k] for k in range(8)], [[0.04]] * 8), "edm")
    flow = diffode.flow(field)

    def phi(x, s, t):
        return torch.where((s == t)[:, None], x, flow(torch.full_like(x, -200.0), s, t))

    found = check_map(phi, field, **SMALL).check("weights of modes")
    assert "loses the modes of weight 0.125, 0.125, 0.125, 0.125 ..." in found.detail


def test_the_sliced_distance_of_a_shift_in_the_plane_is_its_length():
    field = diffode.exact_field("gauss2d", "edm")
    flow, shift = diffode.flow(field), torch.tensor([0.3, -0.4], dtype=torch.float64) * field.scale
    report = check_map(lambda x, s, t: flow(x, s, t) + shift * (s != t)[:, None], field, points=32, draws=4000)
    assert report.check("sliced W2").value == pytest.approx(0.5, abs=0.03)
    assert report.check("moments").value == pytest.approx(0.5, abs=0.03)


def test_weights_that_are_off_by_a_tenth_fail_and_no_mode_is_lost():
    """Starts that are moved over the border between the modes change their weights."""
    field = diffode.exact_field(planted.EVEN, "edm")
    flow = diffode.flow(field)
    report = check_map(lambda x, s, t: flow(x + 0.4 * (s[:, None] ** 2 + 1).sqrt() * (s != t)[:, None], s, t), field, **SMALL)
    found = report.check("weights of modes")
    # Phi(.4) - 1/2 of the points are in the other mode.
    assert found.passed is False
    assert "loses" not in found.detail
    assert found.value == pytest.approx(2 * (0.1554 - 5 * (0.25 / 2000) ** 0.5), abs=0.03)
