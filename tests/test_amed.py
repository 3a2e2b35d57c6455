"""AMED with given predictions: its identities, and what it refuses. (Recorded runs: test_conformance.)"""

import numpy as np
import pytest
import torch

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError


def run(spec, path="edm", **options):
    field = diffode.exact_field("ring8", path)
    return diffode.solve(field, field.prior(6, generator=2), solver=solvers.get(spec, **options), grid="karras", steps=6)


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("host", ["none", "dpm"])
def test_without_learning_it_is_dpm_solver_2(host, path):
    ours = run(f"amed:host={host}", path)
    assert ours.nfe == 12
    torch.testing.assert_close(ours.x, run("dpm:order=2", path).x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["edm", "vp"])
@pytest.mark.parametrize(("host", "plain"), [("euler", "ddim"), ("ipndm,order=3", "ipndm:order=3")])
def test_without_learning_a_plugin_is_its_host_on_the_finer_grid(host, plain, path):
    on = paths.get(path)
    coarse = diffode.grids.get("karras", on, 5)
    rho = [on.rho(t) for t in coarse.tolist()]
    fine = [coarse[0].item()]
    for a, b, t in zip(rho, rho[1:], coarse.tolist()[1:], strict=False):
        fine += [on.time_from_rho((a * b) ** 0.5), t]
    field = diffode.exact_field("ring8", path)
    x = field.prior(6, generator=2)
    expected = diffode.solve(field, x, solver=plain, grid=fine).x
    found = diffode.solve(field, x, solver=f"amed:host={host}", grid=coarse).x
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["vp", "rectified_flow"])
def test_in_the_noise_chart_a_run_depends_on_rho_alone(path):
    """The same standard normals and rho grid on another path end at the same x/alpha."""
    generator = np.random.default_rng(0)
    options = {
        "r": generator.uniform(0.3, 0.7, (4, 6)),
        "direction_scale": generator.uniform(0.99, 1.01, (4, 6)),
        "time_scale": generator.uniform(0.9, 1.1, (4, 6)),
    }
    rho = [50.0, 9.0, 1.5, 0.2, 0.01]
    z = torch.from_numpy(generator.standard_normal((6, 2)))
    ends = []
    for name in ("edm", path):
        on = paths.get(name)
        times = [on.time_from_rho(r) for r in rho]
        x = on.alpha(times[0]) * rho[0] * z
        field = diffode.exact_field("ring8", on)
        ends.append(diffode.solve(field, x, solver=solvers.get("amed", **options), grid=times).x / on.alpha(times[-1]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)


def test_predictions_are_checked():
    with pytest.raises(ArgumentError, match=r"r must be in \(0, 1\)"):
        solvers.get("amed", r=1.5)
    with pytest.raises(ArgumentError, match="direction_scale must be positive"):
        solvers.get("amed", direction_scale=np.ones(3))
    with pytest.raises(ArgumentError, match="r has predictions for 3 steps, the grid has 6"):
        run("amed", r=np.full((3, 6), 0.5))
    with pytest.raises(ArgumentError, match="written for a batch of 5 rows, x has 6"):
        run("amed", r=np.full((6, 5), 0.5))
    table = solvers.get("amed", r=np.full((4, 5), 0.5)).tableau(paths.get("edm"), "karras", 4)
    with pytest.raises(ArgumentError, match="propagate needs one table for all rows"):
        table.propagate(0.0, [1.0])
    with pytest.raises(ArgumentError, match="sigma > 0"):
        solvers.get("amed").tableau(paths.get("edm"), "karras:to_zero=true", 4)


def test_a_failed_row_is_named_at_its_own_time():
    """The inner times differ from row to row; the message has to say one of them."""
    field = diffode.exact_field("ring8", "edm")
    calls = []

    def broken(x, t):
        calls.append(t)
        return field.noise(x, t) * (torch.nan if len(calls) % 12 > 5 else 1.0)

    wrapped = diffode.Field.from_noise(broken, field.path, probe=False)
    solver = solvers.get("amed", r=np.full((6, 6), 0.4))
    found = diffode.solve(wrapped, field.prior(6, generator=2), solver=solver, grid="karras", steps=6, on_failure="return")
    assert not found.success
    assert "in the step from t=" in found.message


def test_a_spec_says_all_but_the_arrays():
    for spec in ("amed", "amed:r=0.4", "amed:host=ipndm,order=3,analytic_first_step=true"):
        solver = solvers.get(spec)
        assert solvers.get(solver.spec) == solver
    assert solvers.get("amed:host=dpm", r=np.full((2, 2), 0.4)).spec == "amed:host=dpm"


def test_every_order_of_a_host_can_be_had_and_no_other():
    for host, orders in (("ipndm", (1, 2, 3, 4)), ("dpmpp", (1, 2, 3)), ("euler", (2,))):
        assert [solvers.get("amed", host=host, order=order).order for order in orders] == list(orders)
        with pytest.raises(ArgumentError, match="order must be"):
            solvers.get("amed", host=host, order=5)
    for wrong in ({"direction_scale": -1.0}, {"time_scale": -0.5}, {"r": -0.5}, {"r": 1.0}, {"direction_scale": 0.0}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
            solvers.get("amed", **wrong)
    with pytest.raises(ArgumentError, match="of one shape"):
        solvers.get("amed", r=np.full((2, 3), 0.5), direction_scale=np.ones((2, 4)))
