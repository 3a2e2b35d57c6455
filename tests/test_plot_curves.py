"""Curves in pictures: every NFE a tick, labels that can be read, ranges that failures don't stretch, looks and sizes."""

import itertools
import math
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.transforms import Bbox
from PIL import Image

from diffode import plot
from diffode.errors import ArgumentError
from diffode.learned.trained import History
from diffode.plot.appearance import MARKERS
from diffode.plot.labels import EndLabels, in_lines, spread
from diffode.plot.scales import robust_limits

matplotlib.use("Agg")

CURVES = {
    "ddim": ([4, 5, 6, 8, 50], [0.3, 0.2, 0.15, 0.1, 0.01]),
    "heun": ([4, 6, 8, 50], [7.0, 3.0, 0.8, 0.0100001]),
    "unipc:order=3": ([5, 6, 8, 50], [0.2, 0.18, 0.15, 0.0099999]),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def labels_of(ax):
    """The boxes of the labels at the ends of curves, at the size that the picture has."""
    figure = ax.get_figure()
    figure.draw_without_rendering()
    found = [artist for artist in ax.get_children() if isinstance(artist, EndLabels)]
    assert len(found) == 1
    return found[0], found[0].boxes(figure.canvas.get_renderer())


# Curves


def test_every_nfe_is_a_tick_and_no_other_number():
    ax = plot.error_curves(CURVES)
    assert ax.get_xticks().tolist() == [4, 5, 6, 8, 50]
    ax.get_figure().draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "5", "6", "8", "50"]
    assert len(ax.xaxis.get_minorticklocs()) == 0


def test_labels_of_ticks_that_would_touch_are_left_out_and_the_ends_stay():
    nfe = list(range(4, 40))
    ax = plot.error_curves({"a": (nfe, [1 / n for n in nfe])}, size=(3, 2))
    figure = ax.get_figure()
    figure.draw_without_rendering()
    boxes = [t.get_window_extent(figure.canvas.get_renderer()) for t in ax.get_xticklabels() if t.get_text()]
    texts = [t.get_text() for t in ax.get_xticklabels() if t.get_text()]
    assert ax.get_xticks().tolist() == nfe
    assert (texts[0], texts[-1]) == ("4", "39")
    assert 4 <= len(texts) < len(nfe)
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("size", [(3.4, 2.6), (7, 4.2), (4, 1.6)], ids=str)
@pytest.mark.parametrize("count", [3, 12])
def test_labels_beside_curves_do_not_overlap_and_lie_in_the_picture(size, count):
    """All curves end at one error: labels that stayed there would lie on each other."""
    curves = {f"solver {i}": ([4, 8], [0.1 * (i + 1), 0.01 * (1 + 1e-9 * i)]) for i in range(count)}
    ax = plot.error_curves(curves, size=size)
    figure = ax.get_figure()
    own, boxes = labels_of(ax)
    assert [label.text for label in own.labels] == list(curves)
    for a, b in itertools.combinations(boxes, 2):
        assert Bbox.intersection(a, b) is None or Bbox.intersection(a, b).height < 0.5
    whole = figure.bbox
    assert all(b.x0 > ax.get_window_extent().x1 and b.x1 <= whole.x1 + 1 for b in boxes)
    if size[1] > 2:
        assert all(whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes)


def test_labels_stand_at_the_ends_of_curves_that_end_apart():
    ax = plot.error_curves({"a": ([4, 8], [1, 1e-1]), "b": ([4, 8], [1, 1e-3])})
    _, boxes = labels_of(ax)
    for box, error in zip(boxes, (1e-1, 1e-3), strict=True):
        assert abs((box.y0 + box.y1) / 2 - ax.transData.transform((8, error))[1]) < 3


def test_places_of_labels_are_the_nearest_that_keep_apart():
    """Against the quadratic programme, solved by projecting onto each constraint in turn (Dykstra)."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        wanted, gap = generator.uniform(0, 4, 6), 0.7
        order = np.argsort(wanted)
        x, memory = wanted[order].copy(), np.zeros((5, 6))
        for _ in range(1500):
            for k in range(5):
                y = x + memory[k]
                excess = max(0.0, gap - (y[k + 1] - y[k])) / 2
                x = y.copy()
                x[k] -= excess
                x[k + 1] += excess
                memory[k] = y - x
        assert np.abs(np.array(spread(wanted, gap))[order] - x).max() < 1e-6


def test_one_failure_does_not_stretch_the_range_and_is_shown_at_its_edge():
    broken = {**CURVES, "broken": ([4, 6, 8, 50], [1e30, math.nan, 0.5, math.inf])}
    whole, ax = plot.error_curves(CURVES), plot.error_curves(broken)
    assert ax.get_ylim()[1] < 2 * whole.get_ylim()[1]
    assert ax.get_ylim()[0] > whole.get_ylim()[0] / 2
    shown = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_gid() == "off range")
    assert shown == [4, 6, 50]
    assert not [line for line in whole.lines if line.get_gid() == "off range"]


def test_ranges_hold_what_is_no_outlier():
    values = [10.0**-k for k in range(9)]
    low, high = robust_limits(values)
    assert low < 1e-8
    assert high > 1
    assert robust_limits([*values, math.inf, math.nan, 0.0, -1.0]) == (low, high)
    assert robust_limits([math.nan, 0.0]) is None
    # One curve that converges among many that don't is seen to its end.
    assert robust_limits([*[0.5] * 20, 1e-9])[0] < 1e-9
    low, high = robust_limits([0.5])
    assert low < 0.5 < high


def test_curves_of_a_study_are_drawn_by_their_method():
    from diffode.studies.ranking import Curve

    own = Curve("ring8", "edm", "karras", "ddim", (10, 5), (0.1, 0.2), 1e-9, (10, 5))
    ax = plot.error_curves([own])
    assert ax.lines[0].get_xdata().tolist() == [5, 10]
    assert ax.lines[0].get_ydata().tolist() == [0.2, 0.1]
    assert labels_of(ax)[0].labels[0].text == "ddim"


def test_the_floor_is_a_band_in_sight_which_no_dash_of_a_curve_looks_like():
    ax = plot.error_curves(CURVES, floor=1e-3)
    assert ax.get_ylim()[0] < 1e-3
    (band,) = [patch for patch in ax.patches if patch.get_gid() == "floor"]
    assert band.get_y() + band.get_height() == pytest.approx(1e-3)
    assert [text.get_text() for text in ax.texts if text.get_text().startswith("error")] == ["error of the reference"]


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ({}, "got none"),
        ("ddim", "got 'ddim'"),
        ({"a": ([4, 5], [0.1])}, "2 NFE and 1 errors"),
        ({"a": ([0, 5], [0.1, 0.2])}, "positive numbers, got 0"),
        ({"a": ([4, 5], [0.1, -0.2])}, "not be negative, got -0.2"),
        ({"a": 3}, "must be a pair"),
        ({"a": (["x"], [1])}, "nfe of curve 'a'"),
        ([1], "method, nfe and error"),
    ],
)
def test_wrong_curves_are_refused_by_name(curves, words):
    with pytest.raises(ArgumentError, match="curve") as refused:
        plot.error_curves(curves)
    assert words in str(refused.value)


def test_two_curves_of_one_label_are_refused():
    from diffode.studies.ranking import Curve

    two = [Curve("ring8", path, "karras", "ddim", (5,), (0.2,), 0.0, (5,)) for path in ("edm", "vp")]
    with pytest.raises(ArgumentError, match="'ddim' twice"):
        plot.error_curves(two)


def test_losses_show_what_a_training_kept():
    held = History(error=(1.0, 0.5, 0.25, 0.125), held_out=(0.6, 0.2), steps=4)
    ax = plot.losses(held, before=2.0)
    training, held_out, before = ax.lines
    assert (training.get_xdata().tolist(), training.get_ydata().tolist()) == ([1, 2, 3, 4], list(held.error))
    assert (held_out.get_xdata().tolist(), held_out.get_ydata().tolist()) == ([2, 4], list(held.held_out))
    assert before.get_ydata()[0] == 2.0
    # Errors of a table begin before its first step.
    assert plot.losses(History(error=(1.0, 0.5, 0.25), steps=2)).lines[0].get_xdata().tolist() == [0, 1, 2]
    assert [label.text for label in labels_of(ax)[0].labels] == ["training starts", "held-out starts", "before"]
    with pytest.raises(ArgumentError, match="got none"):
        plot.losses(History())
    with pytest.raises(ArgumentError, match="got int"):
        plot.losses(3)


# Looks

#: Simulation of the three kinds of missing cones on linear RGB (Machado, Oliveira, Fernandes 2009, table 1, severity 1).
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, kind):
    """CIE L*a*b* of a colour as an eye of some kind sees it."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(BLINDNESS[kind]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-3))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_apart_for_every_eye(kind):
    """A difference of 10 in CIE76 is seen at a glance; 15 is asked for; the palette keeps 16, and 37 from white."""
    for a, b in itertools.combinations(plot.PALETTE, 2):
        assert np.linalg.norm(lab(a, kind) - lab(b, kind)) > 15
    assert all(np.linalg.norm(lab(a, kind) - lab("white", kind)) > 30 for a in plot.PALETTE)


def test_looks_differ_without_their_colours_too():
    looks = [plot.look(i) for i in range(28)]
    assert len({(look.colour, str(look.dash)) for look in looks}) == 28
    assert len({(look.marker, str(look.dash)) for look in looks}) == 28
    assert {look.marker for look in looks[:7]} == set(MARKERS)
    assert plot.looks(["b", "a", "b"]) == {"b": plot.look(0), "a": plot.look(1)}


def test_a_style_ends_with_its_block():
    before = matplotlib.rcParams["axes.spines.top"]
    with plot.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] is before


def test_notebooks_go_on_to_show_figures_after_a_style():
    """The first figure switches a notebook's figures on, inside of a style as it may be."""
    before = matplotlib.is_interactive()
    try:
        with plot.style():
            matplotlib.interactive(not before)
        assert matplotlib.is_interactive() is not before
    finally:
        matplotlib.interactive(before)


# Files


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_files_have_the_size_in_inches_and_the_same_bytes_again(tmp_path, ending):
    ax = plot.error_curves(CURVES, size=(3.4, 2.6))
    first = plot.save(ax, tmp_path / f"a.{ending}", dpi=100).read_bytes()
    again = plot.error_curves(CURVES, size=(3.4, 2.6)).get_figure()
    assert plot.save(again, tmp_path / f"b.{ending}", dpi=100).read_bytes() == first
    if ending == "png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (340, 260)
    elif ending == "pdf":
        assert b"/MediaBox [ 0 0 244.8 187.2 ]" in first
    else:
        assert b'width="244.8pt" height="187.2pt"' in first
        assert b">unipc:order=3</text>" in first
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"a.{ending}", f"b.{ending}"]


@pytest.mark.parametrize("most", [8, 14, 36])
def test_a_caption_breaks_after_marks_and_spaces_and_never_inside_a_word(most):
    text = "images-mfa guided label=three,weight=7.5: universal:member=18,scale=1.775 @ karras:rho=3, NFE 6"
    lines = in_lines(text, most).split("\n")
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    words = set(re.split(r"[\s,:=_@/+]+", text))
    assert {word for line in lines for word in re.split(r"[\s,:=_@/+]+", line) if word} == words
    # A line is longer only where it is one word with its mark.
    assert all(len(line) <= most or len(re.split(r"[\s,:=_@/+]+", line.rstrip(",:=_@/+ "))) == 1 for line in lines)
    assert len(in_lines("ddim, NFE 6", 36).split("\n")) == 1
