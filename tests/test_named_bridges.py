"""Named bridges: what a name means, in Python, in studies and on the command line."""

import pytest
from commandline import diffode as run

import diffode
from diffode import bridges
from diffode.errors import ArgumentError, UnknownNameError
from diffode.studies import parse_suite
from diffode.studies.cell_keys import cell_key
from diffode.studies.problem import content_of, field_of
from diffode.studies.rows import compute

STUDY = {
    "bridges": ["two_gaussians", "two_gaussians:coupling=independent", "eight_to_moons:coupling=optimal"],
    "grids": ["time_uniform"],
    "solvers": ["heun"],
    "nfe": [8],
    "seeds": [0],
    "points": 4,
}


def test_a_name_with_options_is_a_bridge():
    for name in bridges.names():
        bridge = bridges.get(name)
        assert bridge.velocity(bridge.prior(3, generator=0), bridge.interval.t_max).isfinite().all()
    assert bridges.get("two_gaussians:coupling=schroedinger:sigma=0.5").coefficients.spec == "foellmer:sigma=0.5"
    one, two = (part[0] for part in (bridges.get("two_gaussians").coupling.data_covariances,
                                     bridges.get("two_gaussians").coupling.source_covariances))  # fmt: skip
    assert float((one @ two - two @ one).abs().max()) > 0.1
    with pytest.raises(UnknownNameError, match="did you mean 'two_gaussians'"):
        bridges.get("two_gausians")
    with pytest.raises(ArgumentError, match="no option 'couplings'"):
        bridges.get("two_gaussians:couplings=optimal")
    with pytest.raises(UnknownNameError, match="unknown coupling 'optimum'"):
        bridges.get("two_gaussians:coupling=optimum")


def test_a_study_runs_on_bridges_and_keys_their_numbers():
    cells = parse_suite({"name": "mine", "study": [STUDY]}).cells
    assert [cell.target for cell in cells] == [f"bridge:{name}" for name in STUDY["bridges"]]
    assert len({cell_key(cell) for cell in cells}) == 3
    found = [compute("", cell) for cell in cells]
    assert [result.reason for result in found] == ["", "", ""]
    straight, bent, _ = (result.value("endpoint") for result in found)
    assert straight < 1e-8 < bent < 0.5
    assert found[0].nfe_counted == 8
    assert field_of("bridge:two_gaussians", None) is bridges.get("two_gaussians")
    contents = {content_of(cell.target, cell.path) for cell in cells}
    assert len(contents) == 3


def test_a_study_of_bridges_that_is_none_is_named():
    for change, message in (
        ({"targets": ["ring8"]}, "targets and bridges exclude each other"),
        ({"bridges": ["two_gausians"]}, "unknown bridge"),
        ({"bridges": "two_gaussians"}, "bridges must be a list"),
    ):
        with pytest.raises(ArgumentError, match=message):
            parse_suite({"name": "mine", "study": [STUDY | change]})
    with pytest.raises(ArgumentError, match="a bridge follows no path"):
        field_of("bridge:two_gaussians", "edm")


def test_a_solver_that_needs_a_path_fails_by_name_in_a_study():
    cell = parse_suite({"name": "mine", "study": [STUDY | {"solvers": ["dpmpp:order=2"]}]}).cells[0]
    result = compute("", cell)
    assert result.status == "failed"
    assert "dpmpp" in result.reason


def test_the_command_line_tells_of_bridges():
    listed, shown = run("list", "bridges"), run("show", "two_gaussians")
    assert "eight_to_moons" in listed.stdout
    assert "energy" in shown.stdout
    assert isinstance(bridges.get("eight_to_moons"), diffode.Bridge)
