"""The common form of deterministic samplers: published ones have it, and a run of it is the same run."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from solver_list import DETERMINISTIC, in_noise_levels

import diffode
from diffode import paths, solvers, testing
from diffode.errors import ArgumentError
from diffode.learned.tables.training import output_weights
from diffode.tableau.stages import Stages, noise_function

HAVE_ONE = [spec for spec in DETERMINISTIC if in_noise_levels(spec)]


def stages_of(spec, steps=3, path="edm", grid="karras"):
    return Stages.of(solvers.get(spec).tableau(paths.get(path), grid, steps))


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("spec", HAVE_ONE)
def test_every_published_sampler_has_the_common_form(spec, path):
    table = solvers.get(spec).tableau(paths.get(path), "karras", 4)
    field = diffode.exact_field("ring8", path)
    x = field.prior(6, generator=0)
    end = table.run(field, x)
    stages = Stages.of(table)
    assert stages.nfe == table.nfe
    again = stages.tableau(field.path)
    assert again.nfe == table.nfe
    torch.testing.assert_close(again.run(field, x), end, rtol=1e-9, atol=1e-9)
    alphas = [field.path.alpha(table.rows[i].time) for i in (0, -1)]
    torch.testing.assert_close(stages.run(noise_function(field), x / alphas[0]) * alphas[1], end, rtol=1e-9, atol=1e-9)


def test_rescaling_data_and_levels_changes_nothing():
    stages = stages_of("unipc:order=2")
    small = diffode.GaussianMixture([0.3, 0.7], [[0.0, 1.0], [2.0, -1.0]], [0.1, 0.3])
    large = diffode.GaussianMixture([0.3, 0.7], [[0.0, 10.0], [20.0, -10.0]], [10.0, 30.0])
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80
    ends = [s.run(noise_function(diffode.exact_field(t, "edm")), z * u)
            for t, s, u in ((small, stages, 1), (large, stages.scaled(10), 10))]  # fmt: skip
    torch.testing.assert_close(ends[1], 10 * ends[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", ["ddpm", "heun", "euler"])
def test_tables_without_a_common_form_are_refused(spec):
    with pytest.raises(ArgumentError, match="has no common form"):
        stages_of(spec)


@given(testing.solvers(), testing.fields(max_dim=3, max_modes=3), testing.seeds(), st.integers(2, 5))
def test_any_deterministic_sampler_is_its_common_form(solver, field, seed, steps):
    path = field.path
    table = solver.tableau(path, testing.random_times(seed, path, steps))
    if table.prediction not in ("noise", "denoised"):
        with pytest.raises(ArgumentError, match="no common form"):
            Stages.of(table)
        return
    x = field.prior(3, generator=seed % 2**31)
    first, last = path.alpha(path.t_max), path.alpha(path.t_min)
    stages = Stages.of(table)
    end = stages.run(noise_function(field), x / first) * last
    size = float(x.abs().max()) / first
    torch.testing.assert_close(end / size, table.run(field, x) / size, rtol=0, atol=1e-10)
    assert Stages.of(stages.tableau(path)).levels.allclose(stages.levels)


def test_weights_in_pictures_do_not_depend_on_how_the_start_is_shared():
    """Scales and first weights that trade z_0 against rho_0 e_0 leave them, and Euler's are differences of levels."""
    stages = stages_of("ddim")
    levels = stages.levels
    expected = torch.cat([levels[1:2], levels[2:] - levels[1:-1]]) / levels[:-1]
    torch.testing.assert_close(output_weights(stages), expected)
    weights, more = stages.weights.clone(), 20 + torch.arange(stages.nfe, dtype=torch.float64)
    weights[:, 0] -= more * levels[0]
    torch.testing.assert_close(output_weights(Stages(stages.scales + more, weights, levels)), expected)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: Stages.of(solvers.get("ddim:analytic_first_step=true").tableau(paths.get("edm"), [80.0, 2.0, 1.0])),
            "does not evaluate the field at its start",
            id="a common form that starts late",
        ),
    ],
)
def test_a_common_form_begins_with_an_evaluation(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
