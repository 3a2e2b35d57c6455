"""Conditioned tables in the Gaussian's chart: exact Gaussians, exact gradients, their tables without weights, files."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from test_learned_conditioned import check_gradient

import diffode
from diffode import Field, Statistics, paths, solvers
from diffode.cli import train_command
from diffode.errors import ArgumentError, BudgetError, FileFormatError
from diffode.learned import condition, load, load_conditioned, train, train_table
from diffode.learned.conditional.conditioned import Conditioned, features
from diffode.learned.fitting.chart import in_chart
from diffode.learned.fitting.problems import problem_for
from diffode.tableau.gaussian_stages import landed

EDM = paths.get("edm")


@pytest.fixture(scope="module")
def ring():
    trained = train_table("ring8", 2, chart="gaussian", points=512, steps=30)
    return diffode.exact_field("ring8", "edm"), trained, condition(trained, "ring8", points=1024, steps=20)


def in_the_chart(field, count, seed=3):
    return in_chart(problem_for(field, EDM, field.dim, count, seed), field, field.statistics)


def test_one_gaussian_is_exact_with_one_evaluation():
    table = train_table("gauss2d", 1, chart="gaussian", points=32, steps=2)
    found = condition(table, "gauss2d", points=64, steps=3)
    field = diffode.exact_field("gauss2d", "edm")
    x = field.prior(20, generator=0)
    run = diffode.solve(field, x, **found.arguments)
    assert run.nfe == 1
    assert found.errors.after < 1e-12
    assert float((run.x - diffode.reference(field, x, 80.0, 0.002, 1e-12).x).abs().max()) < 1e-10


def test_conditioning_makes_the_error_smaller_again_on_new_starts(ring):
    field, trained, found = ring
    assert found.errors.after < found.errors.before / 1.2
    x = EDM.prior((400, 2), generator=31)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    runs = [diffode.solve(field, x, **one.arguments) for one in (found, trained)]
    assert [run.nfe for run in runs] == [2, 2]
    errors = [float((run.x - exact).norm(dim=1).mean()) for run in runs]
    assert errors[0] < errors[1] / 1.15


def test_without_weights_it_is_the_table(ring):
    field, trained, found = ring
    table = found.content
    bare = Conditioned(
        table.stages, table.unit, table.layers, tuple(torch.zeros_like(w) for w in table.weights),
        statistics=table.statistics, jumps_from=table.jumps_from,
    )  # fmt: skip
    x = EDM.prior((5, 2), generator=0)
    solver = type(found.solver)(table=bare)
    expected = diffode.solve(field, x, **trained.arguments).x
    torch.testing.assert_close(diffode.solve(field, x, solver=solver, nfe=2).x, expected, rtol=1e-11, atol=1e-11)
    assert table.ends == (80.0, 0.002)
    # The jump is no row of it: nothing of the sample could be known there.
    assert len(table.layers) == 2


def test_its_gradient_is_that_of_differences(ring):
    field, _, found = ring
    check_gradient(found.content, in_the_chart(field, 40))


def test_what_is_known_of_a_state_does_not_depend_on_the_unit_of_the_data(ring):
    """In the chart: data and levels four times as large have the same features, so that what is conditioned is the same."""
    _, _, found = ring
    table = found.content
    large = Conditioned(
        table.stages.scaled(4.0), 4 * table.unit, table.layers, table.weights, None, table.statistics.scaled(4.0), 320.0
    )
    w = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = lambda scale: lambda w, level: (w / scale).sin() / (1 + level / scale)  # noqa: E731
    expected, units = table.run(noise(1.0), w)
    end, same = large.run(noise(4.0), 4 * w)
    torch.testing.assert_close(end, 4 * expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(same[-1], units[-1], rtol=1e-9, atol=1e-9)


def test_states_and_deviations_are_seen_in_units_of_the_data(ring):
    _, _, found = ring
    table = found.content
    seen, e = [], [torch.full((1, 2), v).double() for v in (0.1, 0.2)]

    def deviation(w, level):
        seen.append(w)
        return e[len(seen) - 1]

    _, units = table.run(deviation, torch.full((1, 2), 3.0).double())
    scaled = [one.T * float(level) / table.unit for one, level in zip(e, table.stages.levels[:2], strict=True)]
    for row, (matrix, offset) in enumerate(table.layers):
        expected = torch.tanh(features(seen[row].T, scaled[: row + 1], 0.0, table.unit).T @ matrix + offset)
        torch.testing.assert_close(units[row].T, expected, rtol=1e-12, atol=1e-12)


def test_a_file_gives_the_same_run_to_the_last_bit_and_runs_by_its_name(ring, tmp_path):
    field, _, found = ring
    file = tmp_path / "conditioned.safetensors"
    found.save(file)
    x = EDM.prior((7, 2), generator=3)
    expected = diffode.solve(field, x, **found.arguments).x
    read = load(file)
    assert (read.nfe, read.errors) == (2, found.errors)
    assert read.content.statistics.content == found.content.statistics.content
    assert read.solver.content() == found.solver.content()
    for solver in (read.solver, f"conditioned:file={file}"):
        assert torch.equal(diffode.solve(field, x, solver=solver, nfe=2).x, expected)
    with pytest.raises(BudgetError, match="trained for nfe=2 alone"):
        diffode.solve(field, x, solver=read.solver, nfe=3)
    images = Field.from_denoised(lambda x, t: field.denoised(x.flatten(1), t).reshape(x.shape), "edm", scale=field.scale)
    own = diffode.solve(images, x.reshape(-1, 1, 2), solver=read.solver, nfe=2).x
    torch.testing.assert_close(own.flatten(1), expected, rtol=1e-12, atol=1e-12)


def test_spoilt_files_are_refused(ring, tmp_path):
    good = tmp_path / "good.safetensors"
    ring[2].save(good)
    with safe_open(good, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    for k, (told, changed) in enumerate((
        ({"statistics": None}, {}), ({}, {"statistics_mean": None}), ({"jumps_from": 0.01}, {}), ({"jumps_from": "far"}, {}),
        ({"jumps_from": 1e40}, {}), ({}, {"statistics_variances": -tensors["statistics_variances"]}),
        ({}, {"statistics_more": tensors["scales"].clone()}),
    )):  # fmt: skip
        parts = {name: part for name, part in {**tensors, **changed}.items() if part is not None}
        file = tmp_path / f"bad{k}.safetensors"
        save_file(parts, str(file), metadata={"diffode": json.dumps({**facts, **told})})
        with pytest.raises(FileFormatError):
            load_conditioned(file)


def test_wrong_arguments_name_the_fix(ring):
    field, trained, found = ring
    with pytest.raises(ArgumentError, match="2 coordinates, but rows have 3"):
        diffode.solve(Field.from_denoised(lambda x, t: x, "edm"), torch.ones(1, 3).double(), solver=found.solver)
    with pytest.raises(ArgumentError, match=r"use x.double\(\)"):
        diffode.solve(field, field.prior(2, generator=0).float(), solver=found.solver)
    with pytest.raises(ArgumentError, match="trained from noise level 80"):
        diffode.solve(field, EDM.prior((2, 2), generator=0), solver=found.solver, grid=[40.0, 0.002])
    with pytest.raises(ArgumentError, match="condition a table that was trained on this field and path"):
        condition(trained, diffode.exact_field("ring8", "vp"))
    with pytest.raises(ArgumentError, match="2 coordinates, but rows have 3"):
        condition(trained, Field.from_denoised(lambda x, t: x, "edm", scale=field.scale), dim=3)
    with pytest.raises(ArgumentError, match="jumps from a level above its first"):
        Conditioned(found.content.stages, 1.0, found.content.layers, found.content.weights, None, found.content.statistics)


def test_rows_of_a_basis_wider_than_them_and_data_of_another_unit():
    known = Statistics.of_target("ring8", "low_rank", rank=1)
    field = diffode.exact_field("ring8", "edm")
    trained = train_table("ring8", 1, chart="gaussian", statistics=known, points=32, steps=3)
    found = condition(trained, field, points=64, steps=2)
    x = EDM.prior((4, 2), generator=0)
    assert landed(known, x, 80.0, 0.002).shape == (4, 3)
    assert diffode.solve(field, x, solver=found.solver).nfe == 1
    assert found.errors.after <= found.errors.before


def test_by_name_and_from_the_command_line(tmp_path, monkeypatch):
    found = train("conditioned:chart=gaussian,statistics=scale,units=4", "spiral", 1, points=32, steps=3)
    assert found.content.statistics.kind == "scale"
    monkeypatch.chdir(tmp_path)
    asked = [
        "conditioned:chart=gaussian,units=4",
        "--target",
        "ring8",
        "--nfe",
        "1",
        "--points",
        "32",
        "--steps",
        "2",
        "--json",
    ]
    done = CliRunner().invoke(train_command.command, asked)
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    assert facts["nfe"] == 1
    field = diffode.exact_field("ring8", "edm")
    assert diffode.solve(field, field.prior(2, generator=0), solver=solvers.get(facts["solver"]), nfe=1).nfe == 1
