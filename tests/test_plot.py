"""Pictures: what they show of real results, that labels and ticks can be read, and what is refused."""

import itertools
import math
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import diffode
from diffode import hippo, plot, verify
from diffode.errors import ArgumentError
from diffode.hippo import study
from diffode.plot.space import angle_of, density_in, montage, scale_at, window_of

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def ring():
    field = diffode.exact_field("ring8", "vp")
    return field, diffode.solve(field, field.prior(40, generator=0), solver="unipc:order=3", nfe=8, keep="all")


@pytest.fixture(scope="module")
def line():
    field = diffode.exact_field("bimodal1d", "rectified_flow")
    return field, diffode.solve(field, field.prior(30, generator=0), solver="ddim", nfe=6, keep="all")


# Space


def test_trajectories_are_the_states_in_units_of_their_spread(line, ring):
    field, run = line
    ax = plot.trajectories(run, field, rows=5)
    own = [drawn for drawn in ax.lines if len(drawn.get_xdata()) == len(run.times)]
    assert len(own) == 5
    for i, t in enumerate(run.times.tolist()):
        alpha, sigma = field.path.alpha(t), field.path.sigma(t)
        assert own[2].get_xdata()[i] == pytest.approx(math.atan2(sigma, alpha * field.scale))
        spread_there = math.sqrt(alpha**2 + sigma**2 / field.scale**2)
        assert own[2].get_ydata()[i] == pytest.approx(float(run.states[i, 2, 0]) / spread_there)
    # Noise is on the left, and every time is a tick.
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    assert len(ax.get_xticks(minor=True)) == len(run.times)
    field, run = ring
    ax = plot.trajectories(run, field, rows=7)
    own = [drawn for drawn in ax.lines if len(drawn.get_xdata()) == len(run.times)]
    assert len(own) == 7
    unit = scale_at(field, float(run.times[3]))
    assert own[0].get_xydata()[3] == pytest.approx((run.states[3, 0] / unit).numpy())
    assert len(ax.images) == 1


def test_the_density_behind_trajectories_has_the_spread_of_its_time():
    """The law of a Gaussian is the same at all times in these units: all columns are one."""
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [4.0]), "vp")
    run = diffode.solve(field, field.prior(3, generator=0), solver="ddim", nfe=4, keep="all")
    shades = np.asarray(plot.trajectories(run, field).collections[0].get_array())
    assert np.abs(shades - shades[:, :1]).max() < 1e-9
    assert shades.min() < -1


def test_a_plain_ode_is_drawn_against_time():
    field = diffode.Field.from_velocity(lambda x, t: -x)
    run = diffode.solve(field, torch.ones(2, 1, dtype=torch.float64), solver="heun", grid=[1.0, 0.5, 0.0], keep="all")
    ax = plot.trajectories(run, field)
    assert ax.get_xlabel() == "t"
    assert ax.lines[0].get_xdata() == pytest.approx([1.0, 0.5, 0.0])
    assert ax.lines[0].get_ydata() == pytest.approx(run.states[:, 0, 0].numpy())


def test_images_are_strips_and_mosaics():
    field = diffode.exact_field("digits-gmm10", "edm")
    run = diffode.solve(field, field.prior(3, generator=0), solver="ddim", nfe=3, keep="all")
    ax = plot.trajectories(run, field, shape=(8, 8), rows=2)
    # Two rows of four times, with gaps of a pixel.
    assert ax.images[0].get_array().shape == (17, 35)
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert shown[9:, 27:] == pytest.approx((run.x[1] / scale_at(field, float(run.times[-1]))).reshape(8, 8).numpy())
    assert plot.images(run.x, (8, 8), columns=3).images[0].get_array().shape == (8, 26)
    colour = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert montage(colour, (3, 4, 4), 2)[2, 6].tolist() == colour[1, :, 2, 1].tolist()
    assert plot.images(colour).images[0].get_array().shape == (4, 9, 3)


def test_a_density_is_that_of_the_field():
    field = diffode.exact_field("ring8", "edm")
    window = window_of(torch.zeros(1, 1), field)
    logs = density_in(field, window, 2.0, resolution=60)
    sides = [np.linspace(a, b, 60) for a, b in zip(window.low, window.high, strict=True)]
    at = torch.tensor([[sides[0][40], sides[1][10]]], dtype=torch.float64)
    other = torch.tensor([[sides[0][12], sides[1][30]]], dtype=torch.float64)
    unit = scale_at(field, 2.0)
    exact = float(field.log_prob(at * unit, 2.0) - field.log_prob(other * unit, 2.0))
    assert float(logs[10, 40] - logs[30, 12]) == pytest.approx(exact, abs=2e-3)


def test_a_histogram_stands_beside_the_density_of_the_data():
    field = diffode.exact_field("bimodal1d", "edm")
    ax = plot.cloud(field.target.sample(20_000, generator=0), field)
    x, y = ax.lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)
    # The tallest bar beside the density there; 20000 points leave an error of a few per cent.
    bar = max(ax.patches, key=lambda b: b.get_height())
    assert bar.get_height() == pytest.approx(np.interp(bar.get_x() + bar.get_width() / 2, x, y), rel=0.15)


def test_rows_that_failed_are_left_out_and_a_run_that_failed_is_refused():
    points = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points[7] = torch.nan
    assert len(plot.cloud(points).lines[0].get_xdata()) == 49
    with pytest.raises(ArgumentError, match="every run failed"):
        plot.cloud(torch.full((3, 2), torch.nan))
    points[8] = 1e9
    left, right = plot.cloud(points.repeat(20, 1)).get_xlim()
    assert right - left < 20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot.cloud(torch.zeros(3)), "points must be a tensor"),
        (lambda: plot.cloud("points"), "points must be a tensor"),
        (lambda: plot.cloud(torch.zeros(3, 2), "ring8"), "field must be a diffode field or None, got str"),
        (lambda: plot.cloud(torch.zeros(3, 3), diffode.exact_field("ring8", "vp")), "the field's 2 coordinates"),
        (lambda: plot.cloud(torch.zeros(3, 2), ax=3), "ax must be Matplotlib axes or None, got int"),
        (lambda: plot.cloud(torch.zeros(3, 2), ax=Figure()), "take figure.subplots()"),
        (lambda: plot.cloud(torch.zeros(3, 2), size="poster"), "size must be 'column'"),
        (lambda: plot.cloud(torch.zeros(3, 2), size=(3, -1)), "size must be 'column'"),
        (lambda: plot.density(diffode.exact_field("gmm40-50d", "vp")), "one or two dimensions"),
        (lambda: plot.density(diffode.Field.from_velocity(lambda x, t: x)), "must be an exact field"),
        (lambda: plot.density(diffode.exact_field("ring8", "vp"), "now"), "t must be a time or None"),
        (lambda: plot.density(diffode.exact_field("ring8", "rectified_flow"), 7.0), "7"),
        (lambda: plot.images(torch.zeros(3, 5)), "shape must be (height, width)"),
        (lambda: plot.images(torch.zeros(3, 5), (2, 2)), "rows of points have 5"),
        (lambda: plot.images(torch.zeros(3, 4), (2, 2), columns=0), "columns must be an integer"),
        (lambda: plot.trajectories(3), "solution must be a Solution"),
        (lambda: plot.look(-1), "index must be an integer >= 0"),
        (lambda: plot.tableau(None), "table must be a Tableau, got NoneType"),
        (lambda: plot.stability(3), "growth must be a function"),
        (lambda: plot.stability(lambda h, k: k, steps=[2, 1]), "steps must be two or more"),
        (lambda: plot.stability(lambda h, k: k[:3]), "growth must give a number >= 0"),
        (lambda: plot.memories([]), "lines must be one or more"),
        (lambda: plot.save(3, "a.png"), "picture must be a figure or axes"),
        (lambda: plot.save(Figure(), "a.gif"), "must end in .png, .pdf or .svg, got 'a.gif'"),
        (lambda: plot.save(Figure(), "a.png", dpi=0), "dpi must be a number from 10 to 2400, got 0"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ArgumentError) as refused:
        call()
    assert words in str(refused.value)


def test_runs_without_states_say_how_to_keep_them(ring):
    field, _ = ring
    run = diffode.solve(field, field.prior(3, generator=0), solver="ddim", nfe=3)
    with pytest.raises(ArgumentError, match='keep="all"'):
        plot.trajectories(run, field)
    assert len(run.plot(field).lines[0].get_xdata()) == 3


def test_a_solution_draws_itself_on_axes_that_are_given(ring):
    field, run = ring
    ax = Figure().subplots()
    assert run.plot(field, ax=ax, rows=3) is ax
    assert len([drawn for drawn in ax.lines if len(drawn.get_xdata()) == len(run.times)]) == 3


# Solvers


def test_a_tableau_shows_sign_and_place_of_every_weight():
    table = diffode.solvers.get("dpmpp:order=3").tableau(diffode.paths.get("vp"), "karras", steps=5)
    ax = plot.tableau(table)
    shades = np.ma.filled(ax.images[0].get_array(), np.nan)
    names = [label.get_text() for label in ax.get_xticklabels()]
    places = dict(zip(names, ax.get_xticks().astype(int).tolist(), strict=True))
    assert shades.shape[0] == len(table.rows) - 1
    for i, row in enumerate(table.rows[1:]):
        for letter, weights in (("x", row.states), ("m", row.evaluations)):
            for j in range(len(table.rows)):
                if f"{letter}{j}" not in places:
                    continue
                shade = shades[i, places[f"{letter}{j}"]]
                assert (np.isnan(shade)) == (j not in weights)
                if j in weights:
                    assert np.sign(shade) == np.sign(weights[j])
    written = [text.get_text() for text in ax.texts]
    assert f"{table.rows[3].evaluations[1]:.3g}" in written


def test_a_table_for_a_batch_is_refused():
    from diffode.tableau import Row, Tableau

    rows = (Row(1.0, {}, {}), Row(0.5, {0: torch.tensor([1.0, 2.0])}, {0: 1.0}))
    with pytest.raises(ArgumentError, match="one table for all rows"):
        plot.tableau(Tableau("noise", rows, (0, 1)))


def test_the_line_of_stability_is_where_the_growth_is_one():
    """Euler in the denoised chart multiplies by 1 - (1 - kappa)(1 - e^-h), whose size is 1 at kappa = 1 - 2/(1 - e^-h)."""
    kappa = torch.linspace(-1.5, 0.9, 60).tolist()
    ax = plot.stability(lambda h, k: verify.growth("ddim", h, k), steps=np.linspace(2.0, 5.0, 12), slopes=kappa)
    contour = ax.collections[-1].get_paths()[0].vertices
    assert len(contour) > 10
    assert contour[:, 1] == pytest.approx(1 - 2 / (1 - np.exp(-contour[:, 0])), abs=0.03)


def test_memories_are_drawn_with_every_order_a_tick():
    signal = hippo.signals.get("sine")
    lines = [("legs", n, study.of_known(hippo.get("legs", n), signal, 256, "foh")) for n in (8, 16)]
    axes = plot.memories(lines, "sine")
    assert axes.shape == (2, 2)
    assert axes[1, 1].get_xticks().tolist() == [8, 16]
    assert axes[1, 1].lines[0].get_ydata() == pytest.approx([found.errors.total for _, _, found in lines])
    with pytest.raises(ArgumentError, match="figure must be"):
        plot.memories(lines, figure=3)


# Files


def test_a_picture_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"old")
    figure = Figure()
    figure.savefig = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        plot.save(figure, file)
    assert file.read_bytes() == b"old"
    with pytest.raises(ArgumentError, match="folder does not exist"):
        plot.save(Figure(), tmp_path / "missing" / "a.png")


def test_animations_are_written_whole_without_another_program(tmp_path, ring, line, monkeypatch):
    monkeypatch.setenv("PATH", "")
    field, run = ring
    file = plot.animate(run, field, tmp_path / "a.gif", seconds=1, fps=8, size=(1.5, 1.5))
    with Image.open(file) as image:
        assert image.n_frames >= 6
        assert image.size == (150, 150)
        assert image.info["duration"] == pytest.approx(125, abs=10)
    field, run = line
    page = plot.animate(run, field, tmp_path / "a.html", seconds=0.5, fps=8, size=(2, 2), title="a <b>").read_text()
    assert page.count('"iVBOR') == 4
    assert "a &lt;b&gt;" in page
    assert "http" not in page
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.gif", "a.html"]


def test_animations_begin_with_noise_and_end_with_the_run(ring):
    from diffode.plot.animation import _frames

    field, run = ring
    shown = []
    import diffode.plot.animation as module

    original = module._draw
    module._draw = lambda ax, points, law, t, window: shown.append((points, t))
    try:
        list(_frames(run.states, run.times.tolist(), field, None, 9, (1, 1), ""))
    finally:
        module._draw = original
    assert torch.equal(shown[0][0], run.states[0])
    assert torch.equal(shown[-1][0], run.states[-1])
    assert (shown[0][1], shown[-1][1]) == (float(run.times[0]), float(run.times[-1]))
    assert all(a[1] >= b[1] for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"file": "a.mp4"}, "must end in .gif or .html, got 'a.mp4'"),
        ({"seconds": 0}, "seconds must be a positive number, got 0"),
        ({"fps": 2.5}, "fps must be an integer from 1 to 50"),
        ({"seconds": 1000}, "at most 600 frames"),
        ({"file": "missing/a.gif"}, "folder does not exist"),
    ],
)
def test_animations_name_what_is_wrong(ring, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError) as refused:
        plot.animate(ring[1], ring[0], **options)
    assert words in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# Notebooks


def test_results_are_tables_in_notebooks(ring):
    _, run = ring
    page = run._repr_html_()
    assert ">8</td>" in page
    assert "40 of 40" in page
    report = verify.Report("<mine>", (verify.Check("order", passed=False, detail="a < b"),), advice=("use & go",))
    page = report._repr_html_()
    assert "&lt;mine&gt;" in page
    assert "a &lt; b" in page
    assert "use &amp; go" in page
    assert "<mine>" not in page


def test_angles_run_from_data_to_noise():
    field = diffode.exact_field("ring8", "vp")
    assert angle_of(field, field.path.time_from_rho(field.scale)) == pytest.approx(math.pi / 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert angle_of(field, field.path.t_min) < 0.02
    with pytest.raises(ArgumentError, match="must have a path"):
        angle_of(diffode.Field.from_velocity(lambda x, t: x), 0.5)
