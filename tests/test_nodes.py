"""Maps on nodes: exact at nodes, monotone between them, and never better than their slope allows."""

import math

import pytest
import torch
from scipy.interpolate import PchipInterpolator, interpn
from scipy.stats import norm

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError, FileFormatError
from diffode.flows import flow_states
from diffode.learned import train_nodes
from diffode.maps import AngleClock
from diffode.solvers.trained.generators import OfNodes
from diffode.solvers.trained.nodes import NODES_SCHEMA, Nodes, load_nodes, monotone_slopes
from diffode.tensor_files import read_tensors, write_tensors

EDM = paths.get("edm")


def ends_of(field, z):
    return flow_states(field, z, (80.0, 0.002))[-1]


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize(("name", "count"), [("bimodal1d", 17), ("ring8", 9)])
def test_nodes_are_exact_and_a_run_asks_no_field(name, count, kind):
    field = diffode.exact_field(name, "edm")
    trained = train_nodes(name, 1, count=count, kind=kind, points=32)
    starts = trained.content.starts()
    assert starts.shape == (count**field.dim, field.dim)
    run = diffode.solve(field, starts, solver=trained.solver, nfe=1)
    torch.testing.assert_close(run.x, ends_of(field, starts), rtol=1e-9, atol=1e-9)
    assert run.nfe == 1
    field.denoised = None  # An answer of the field can't enter.
    asked = []
    other = diffode.Field.from_denoised(lambda x, t: asked.append(t), EDM, scale=field.scale, probe=False)
    assert diffode.solve(other, starts[:2], solver=trained.solver, nfe=1).success
    assert not asked


def test_a_gaussian_is_exact_everywhere_also_outside_the_nodes():
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[3.0, -1.0]], [[0.49, 0.49]]), "edm")
    x = EDM.prior((50, 2), generator=0) * 4
    for kind in ("linear", "cubic"):
        trained = train_nodes(field, 1, count=5, kind=kind, points=16)
        torch.testing.assert_close(diffode.solve(field, x, solver=trained.solver).x, ends_of(field, x), rtol=1e-10, atol=1e-10)


def test_slopes_are_those_of_scipy():
    for seed in range(50):
        values = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        values = values if seed % 2 else values.abs().cumsum(0)
        expected = PchipInterpolator(range(9), values.numpy()).derivative()(range(9))
        torch.testing.assert_close(monotone_slopes(values), torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


def test_in_one_dimension_the_cubic_is_scipys_and_monotone():
    nodes = train_nodes("bimodal1d", 1, count=21, points=16).content
    z = nodes.starts()[:, 0]
    fine = torch.linspace(float(z[0]), float(z[-1]), 4001, dtype=torch.float64)
    found = nodes.run(fine[:, None])[:, 0]
    expected = PchipInterpolator(z.numpy(), nodes.run(nodes.starts())[:, 0].numpy())(fine.numpy())
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9)
    assert bool((found.diff() > 0).all())


def test_in_two_dimensions_linear_is_scipys_and_cubic_reproduces_squares():
    clock = AngleClock(torch.zeros(2, dtype=torch.float64), 1.0)
    axis = torch.linspace(-2, 2, 9, dtype=torch.float64)
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    ends = torch.stack([a * a - b + a * b, 2 * a * b * b], dim=2)
    y = 4 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    linear, cubic, empty = (
        Nodes(clock, (80.0, 0.002), 2.0, e, kind) for e, kind in ((ends, "linear"), (ends, "cubic"), (0 * ends, "linear"))
    )
    z = clock.outward(y, 80.0)
    expected = interpn((axis.numpy(), axis.numpy()), ends.numpy(), y.numpy())
    torch.testing.assert_close(linear.run(z) - empty.run(z), torch.as_tensor(expected), rtol=1e-10, atol=1e-10)
    inner = (y.abs() < 1.5).all(dim=1)
    wanted = torch.stack([y[:, 0] ** 2 - y[:, 1] + y[:, 0] * y[:, 1], 2 * y[:, 0] * y[:, 1] ** 2], dim=1)
    # Central differences are exact for squares, away from the edge.
    torch.testing.assert_close((cubic.run(z) - empty.run(z))[inner], wanted[inner], rtol=1e-10, atol=1e-10)
    # What is linear is kept up to the edge.
    slanted = Nodes(clock, (80.0, 0.002), 2.0, torch.stack([a - 2 * b, a + b], dim=2), "cubic").run(z) - empty.run(z)
    wanted = torch.stack([y[:, 0] - 2 * y[:, 1], y[:, 0] + y[:, 1]], dim=1)
    torch.testing.assert_close(slanted, wanted, rtol=1e-10, atol=1e-10)
    assert (linear.multiply_adds, cubic.multiply_adds) == (8, 32)


def two_modes(ratio):
    """Two equal modes at -1 and 1 of width 1/ratio."""
    return diffode.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[ratio**-2], [ratio**-2]])


def least_error(field, slope):
    """2 int_0^z* (Phi(z) - K z) phi(z) dz, K z* = Phi(z*), for a map of slope K by a unit normal start, over the scale."""
    z = torch.linspace(0, 8, 8_001, dtype=torch.float64)
    states = math.sqrt(80.0**2 + field.scale**2) * z
    gap = (ends_of(field, states[:, None])[:, 0] - slope * z).clamp(min=0)
    # Beyond z* the line is above the map: the first crossing ends the integral.
    gap = gap * (torch.cumsum((gap[1:] <= 0).long(), 0) == 0).float()[torch.arange(len(z)).clamp(max=len(z) - 2)]
    density = torch.as_tensor(norm.pdf(z.numpy()))
    return 2 * float(torch.trapezoid(gap * density, z)) / field.scale


def test_the_bound_has_the_values_that_were_computed_for_it():
    """Mean error over scale that a map of slope K, in units of the modes' distance, must make."""
    for ratio, slope, value in ((3, 2, 6.7e-2), (4, 10, 8.4e-3), (6, 30, 4.5e-3)):
        field = diffode.exact_field(two_modes(ratio), "edm")
        assert least_error(field, slope) == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_a_map_on_nodes_errs_at_least_as_much_as_its_slope_forces_it_to(kind):
    """Its mean error, by quadrature, against the bound of the largest slope that it has."""
    field = diffode.exact_field(two_modes(4), "edm")
    unit = math.sqrt(80.0**2 + field.scale**2)
    z = torch.linspace(-6, 6, 6_001, dtype=torch.float64)
    density, exact = torch.as_tensor(norm.pdf(z.numpy())), ends_of(field, unit * z[:, None])[:, 0]
    errors = []
    for count in (8, 16, 32, 64):
        # An even number of nodes has none in the middle, where the modes divide.
        nodes = train_nodes(field, 1, count=count, kind=kind, points=16).content
        made = nodes.run(unit * z[:, None])[:, 0]
        slope = float((made.diff() / z.diff()).max())
        errors.append(float(torch.trapezoid((made - exact).abs() * density, z)) / field.scale)
        bound = least_error(field, slope)
        assert errors[-1] >= 0.999 * bound
        assert errors[-1] < 4 * bound or bound < 1e-3
    # First order in the distance of nodes while the map is steeper than they can tell.
    assert errors[2] < errors[0] / 3


def test_the_figures_of_the_yardstick():
    """Mean end-point errors on 2,000 starts, at most 1.3 times those measured."""
    for name, options, measured in (
        ("bimodal1d", {"count": 33}, 0.0216), ("bimodal1d", {"count": 257}, 0.00085), ("ring8", {"count": 65}, 0.0575),
        ("ring8", {"count": 129}, 0.0266),
    ):  # fmt: skip
        trained = train_nodes(name, 1, points=2000, **options)
        assert measured / 1.6 < trained.errors.after < 1.3 * measured
        assert trained.content.kind == ("cubic" if name == "bimodal1d" else "linear")


def test_files_come_back_and_wrong_ones_are_refused(tmp_path):
    trained = train_nodes("ring8", 1, count=5, points=16)
    file = tmp_path / "nodes"
    trained.save(file)
    read = load_nodes(file)
    assert read.digest == trained.content.digest == solvers.get(f"nodes:file={file}").content()
    assert read.facts == trained.facts
    description, tensors = read_tensors(file, NODES_SCHEMA)
    wrong = [
        ({k: v for k, v in description.items() if k != key}, tensors) for key in ("scale", "levels", "span", "kind", "seed")
    ]
    wrong += [
        ({**description, key: value}, tensors)
        for key, value in (
            ("scale", 0.0), ("levels", [80.0]), ("levels", [0.002, 80.0]), ("levels", "ab"), ("levels", [True, 0.002]),
            ("span", -1.0), ("span", 1e300), ("kind", "spline"), ("content", None), ("held_out_error", "x"),
        )
    ]  # fmt: skip
    wrong += [
        (description, {**tensors, name: value})
        for name, value in (
            ("mean", tensors["mean"][:1].clone()), ("mean", torch.zeros(3, dtype=torch.float64)), ("ends", tensors["ends"][:4]),
            ("ends", tensors["ends"] * math.nan), ("ends", tensors["ends"].float()), ("more", tensors["mean"].clone()),
            ("ends", tensors["ends"][:3, :3].contiguous()),
        )
    ]  # fmt: skip
    for number, (facts, parts) in enumerate(wrong):
        write_tensors(tmp_path / "wrong", {k: v.contiguous() for k, v in parts.items()}, facts)
        with pytest.raises(FileFormatError, match="is not a map on nodes"):
            load_nodes(tmp_path / "wrong")
        assert number < len(wrong)
    with pytest.raises(ArgumentError, match="nodes must be what training gave"):
        OfNodes(nodes=trained.content, file="x")
