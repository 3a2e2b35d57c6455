"""Universal tables in the Gaussian's chart: what they know, what they keep, that they are good unseen, files, and refusals."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import diffode
from diffode import Field, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError
from diffode.learned.universal.family import rotated_mixture, spectral_mixture, wide_mixture
from diffode.solvers.informed import informed
from diffode.solvers.trained.bespoke import SPECTRAL_FILE, shipped_spectral
from diffode.solvers.trained.spectral import Spectral, directions_of, unit_of
from diffode.solvers.trained.spectral_files import load_spectral, save_spectral
from diffode.statistics import Statistics
from diffode.targets import GaussianMixture
from diffode.targets import get as get_target

SPEC = "universal:chart=gaussian"
EDM = paths.get("edm")


def mean_error(name, solver, nfe, **options):
    field = diffode.exact_field(name, "edm")
    x = EDM.prior((256, field.target.dim), generator=5)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    return float((diffode.solve(field, x, solver=solver, nfe=nfe, **options).x - exact).norm(dim=1).mean()) / field.scale


def test_every_budget_from_one_to_twelve_costs_what_it_says():
    field = diffode.exact_field("ring8", "vp")
    assert solvers.get(SPEC).budgets == tuple(range(1, 13))
    for nfe in range(1, 13):
        assert diffode.solve(field, field.prior(2, generator=0), solver=SPEC, nfe=nfe).nfe == nfe


@pytest.mark.parametrize("name", ["ring8", "moons", "digits-gmm10"])
@pytest.mark.parametrize("nfe", [3, 6])
def test_it_is_better_than_hand_made_solvers_on_targets_that_it_has_not_seen(name, nfe):
    others = ("ipndm:order=3,jump=auto", "dpmpp:order=2,jump=auto", "ipndm:order=3")
    assert mean_error(name, SPEC, nfe) < min(mean_error(name, solver, nfe) for solver in others)


def test_more_evaluations_are_better():
    errors = [mean_error("moons", SPEC, nfe) for nfe in (1, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_errors_go_on_falling_in_many_dimensions():
    """Images have many directions that matter, along which modes have covariances of their own."""
    for name, least in (("digits-gmm10", 10), ("patches-gmm", 5)):
        errors = [mean_error(name, SPEC, nfe) for nfe in (4, 6, 8, 10)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / least


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
def test_one_gaussian_is_exact_with_any_budget(path):
    field = diffode.exact_field("gauss64-powerlaw", path)
    x = field.prior(8, generator=0)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min).x
    for nfe in (1, 5):
        torch.testing.assert_close(diffode.solve(field, x, solver=SPEC, nfe=nfe).x, exact, rtol=1e-9, atol=1e-9)


def test_it_moves_scales_and_turns_with_the_data():
    """Data x -> 3 Q x + b have the ends 3 Q x + b, on the path with three times the levels."""
    field = diffode.exact_field("moons", "edm")
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    shift = torch.tensor([2.0, -1.0], dtype=torch.float64)

    def denoised(x, t):
        return 3 * field.denoised((x - shift) / 3 @ turn, t / 3) @ turn.T + shift

    known = Statistics.of_target("moons")
    moved = Statistics.of_covariance(3 * turn @ known.mean + shift, 9 * turn @ known.covariance @ turn.T)
    large = Field.from_denoised(denoised, "edm:t_min=0.006,t_max=240", scale=moved)
    x = EDM.prior((6, 2), generator=1)
    expected = 3 * diffode.solve(field, x, solver=SPEC, nfe=4).x @ turn.T + shift
    torch.testing.assert_close(diffode.solve(large, 3 * x @ turn.T + shift, solver=SPEC, nfe=4).x, expected)


def test_directions_without_variance_change_nothing():
    """Data on a plane in five dimensions run as on the plane: the unit and the number of directions are the plane's."""
    known = Statistics.of_target("moons")
    plane = Statistics.of_covariance(
        torch.cat([known.mean, torch.zeros(3)]), torch.block_diag(known.covariance, torch.zeros(3, 3, dtype=torch.float64))
    )
    assert unit_of(plane) == pytest.approx(unit_of(known))
    assert directions_of(plane) == pytest.approx(directions_of(known))
    table = shipped_spectral()[3]
    for a, b in zip(
        vars(table.on(plane, 80.0, 0.002).stages).values(), vars(table.on(known, 80.0, 0.002).stages).values(), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_unit_and_directions_are_those_of_their_definition():
    spectrum = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)
    known = Statistics.of_covariance(torch.zeros(3), spectrum)
    assert unit_of(known) == pytest.approx(math.sqrt(18 / 6))
    assert directions_of(known) == pytest.approx(36 / 18)
    point = Statistics.of_covariance(torch.zeros(2), torch.zeros(2))
    assert (unit_of(point), directions_of(point)) == (1.0, 1.0)


def test_the_scale_alone_and_given_statistics_run_too():
    alone = mean_error("spiral", SPEC, 4, statistics=Statistics.of_target("spiral").reduced("scale"))
    assert mean_error("spiral", SPEC, 4) < alone < mean_error("spiral", "ipndm:order=3", 4)
    solver = informed(SPEC, Statistics.of_target("ring8"))
    table = solver.tableau("edm", [80.0, 0.002], 2)
    assert (table.nfe, table.evaluated[0], solver.spec) == (2, 1, SPEC)
    other = informed(SPEC, Statistics.of_target("moons"))
    assert other.content() != solver.content() != solvers.get(SPEC).content()


@pytest.mark.parametrize("name", ["moons", "line16", "digits-gmm10"])
def test_given_the_scale_alone_it_is_better_than_hand_made_solvers_and_than_if_the_scale_were_taken_for_the_covariance(name):
    scale = Statistics.of_target(name).reduced("scale")
    hand = min(mean_error(name, solver, 8) for solver in ("ipndm:order=3", "dpmpp:order=2", "unipc:order=2"))
    assert mean_error(name, SPEC, 8, statistics=scale) < hand / 1.5
    # Of the same matrix as a covariance more is believed than is known: that the data are alike in all directions.
    taken = Statistics.of_covariance(scale.mean, scale.covariance)
    assert (scale.kind, taken.kind) == ("scale", "full")
    assert mean_error(name, SPEC, 8, statistics=scale) < mean_error(name, SPEC, 8, statistics=taken)


def test_in_one_dimension_the_scale_is_all_that_there_is_to_know():
    known = Statistics.of_target("bimodal1d")
    tables = [informed(SPEC, one).tableau("edm", [80.0, 0.002], 3) for one in (known, known.reduced("scale"))]
    assert tables[0].rows[1].time == tables[1].rows[1].time


def test_no_target_of_the_registry_is_in_its_family_and_mixtures_are_in_units_of_their_scale():
    for seed in (0, 1, 2, 3):
        parts = spectral_mixture(seed)
        assert GaussianMixture(*parts).scale == pytest.approx(1.0)
        assert parts.means.shape[1] in (8, 16, 32, 48)
        assert 2 <= len(parts.weights) <= 100
    known = {get_target(name).content() for name in ("ring8", "moons", "bimodal1d")}
    assert not known & {GaussianMixture(*wide_mixture(seed)).content() for seed in range(20)}


def test_modes_of_rotated_mixtures_have_directions_of_their_own_or_are_nearly_points():
    full, narrow, directions = 0, 0, []
    for seed in range(24):
        mixture = rotated_mixture(seed)
        covariances = mixture.covariances
        variances = covariances if covariances.ndim == 2 else covariances.diagonal(dim1=-2, dim2=-1)
        within = float((mixture.weights @ variances).sum() / mixture.covariance.trace())
        directions.append(directions_of(Statistics.of_target(mixture)))
        if covariances.ndim == 2:
            narrow += 1
            assert within < 0.04
            continue
        full += 1
        assert 0.05 < within < 0.95
        # Matrices of the same eigenvectors commute.
        one, other = covariances[0], covariances[1]
        assert float((one @ other - other @ one).norm()) > 0.01 * float((one @ other).norm())
    assert full > narrow > 3
    # Images have ten and more directions that matter; of the other families hardly a mixture has.
    assert sum(count > 8 for count in directions) >= 8


def test_the_file_is_small_and_read_back_as_it_was_written(tmp_path):
    assert SPECTRAL_FILE.stat().st_size < 100_000
    tables = shipped_spectral()
    save_spectral(tables, {"script": "none"}, tmp_path / "u.safetensors")
    again = load_spectral(tmp_path / "u.safetensors")
    assert again.keys() == tables.keys()
    assert all(torch.equal(again[n].coefficients, tables[n].coefficients) for n in tables)


def test_files_that_hold_no_spectral_samplers_are_refused(tmp_path):
    with safe_open(SPECTRAL_FILE, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        one = content.get_tensor("nfe_2").contiguous()
    for k, (told, tensors) in enumerate((
        ({"last": [0.1]}, {"nfe_2": one}), ({"last": [0.2, 0.1]}, {"nfe_2": one}), ({"most": 1}, {"nfe_2": one}),
        ({"most": True}, {"nfe_2": one}), ({"schema": "odd"}, {"nfe_2": one}), ({}, {"nfe_3": one}), ({}, {"two": one}),
        ({}, {"nfe_2": one * math.nan}), ({}, {"nfe_2": one.float()}), ({}, {"nfe_2": one[:5].clone()}),
    )):  # fmt: skip
        save_file(tensors, str(tmp_path / f"{k}"), metadata={"diffode": json.dumps({**facts, **told})})
        with pytest.raises(FileFormatError):
            load_spectral(tmp_path / f"{k}")
    with pytest.raises(ArgumentError, match="at least one"):
        save_spectral({}, {}, tmp_path / "none.safetensors")
    with pytest.raises(ArgumentError, match="coefficients must be"):
        Spectral(3, (1e-4, 1e-2), 32.0, one)


def test_wrong_arguments_name_the_fix():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    for spec, said in (("universal:chart=odd", "chart must be one of"), (f"{SPEC},scale=1.0", "statistics say all")):
        with pytest.raises(ArgumentError, match=said):
            solvers.get(spec)
    with pytest.raises(ArgumentError, match=r"first noise level is 80, .* higher t_max"):
        diffode.solve(diffode.exact_field("stiff-pair", "edm"), x[:, :1], solver=SPEC, nfe=3)
    with pytest.raises(ArgumentError, match="has to know mean and covariance"):
        diffode.solve(Field.from_denoised(field.denoised, "edm"), x, solver=SPEC, nfe=3)
    with pytest.raises(ArgumentError, match="lays its own levels"):
        diffode.solve(field, x, solver=SPEC, grid=[80.0, 1.0, 0.002])
    with pytest.raises((ArgumentError, BudgetError)):
        informed(SPEC, Statistics.of_target("ring8")).tableau("edm", "karras", 40)
