"""Tables conditioned on the sample."""

import re
from dataclasses import replace

import pytest
import torch

import diffode
from diffode import Field, GaussianMixture, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, TrainedElsewhereWarning
from diffode.learned import train_amed, train_table
from diffode.learned.conditional import conditioning
from diffode.learned.conditional.conditioned import Conditioned, features, input_count, load_conditioned
from diffode.learned.conditional.conditioning import condition, normal_equations
from diffode.learned.fitting.problems import problem_for
from diffode.solvers.trained.checkpoints import load_checkpoint
from diffode.studies.cell_keys import cell_key
from diffode.studies.rows import compute
from diffode.studies.suite import Cell
from diffode.tableau import Row, Tableau
from diffode.tableau.stages import Stages, noise_function
from diffode.tensor_files import write_tensors

EDM = paths.get("edm")


@pytest.fixture(scope="module")
def ring():
    field = diffode.exact_field("ring8", "edm")
    trained = train_table("ring8", 4, points=1024)
    return field, trained, condition(trained, field, points=2048, steps=25)


def test_conditioning_makes_the_error_smaller_again_on_new_starts(ring):
    field, trained, found = ring
    assert found.errors.after < found.errors.before / 1.3
    x = EDM.prior((400, 2), generator=31)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    run = diffode.solve(field, x, solver=found.solver, grid=[80.0, 0.002])
    assert run.nfe == 4
    plain = trained.content.stages.scaled(field.scale).run(noise_function(field), x)
    errors = [float((end - exact).norm(dim=1).mean()) for end in (run.x, plain)]
    assert errors[0] < errors[1] / 1.3


def test_rows_do_not_depend_on_each_other_and_paths_agree(ring):
    field, _, found = ring
    x = EDM.prior((6, 2), generator=3)
    run = diffode.solve(field, x, solver=found.solver, grid=[80.0, 0.002]).x
    alone = diffode.solve(field, x[2:3], solver=found.solver, grid=[80.0, 0.002]).x
    torch.testing.assert_close(alone, run[2:3], rtol=1e-10, atol=1e-10)


def test_without_weights_it_is_the_table(ring):
    field, _, found = ring
    table = found.solver.table
    bare = Conditioned(table.stages, table.unit, table.layers, tuple(torch.zeros_like(w) for w in table.weights))
    x = EDM.prior((5, 2), generator=0)
    end = bare.run(noise_function(field), x)[0]
    torch.testing.assert_close(end, table.stages.run(noise_function(field), x), rtol=1e-12, atol=1e-12)


def check_gradient(table, problem):
    """Against central differences of the weighted squared error that the normal equations are those of."""
    gradient, _ = normal_equations(table, problem, 4, torch.Generator().manual_seed(0))
    length = (table.run(problem.noise, problem.start)[0] - problem.end).norm(dim=1)
    weight = 1 / length.clamp(min=0.05 * float(length.median()))

    def loss(weights):
        end = replace(table, weights=weights).run(problem.noise, problem.start)[0]
        return float((weight * (end - problem.end).square().sum(1)).sum()) / 2

    place = 0
    for i, own in enumerate(table.weights):
        for k in (0, own.numel() // 2, own.numel() - 1):
            shift = torch.zeros(own.numel(), dtype=torch.float64)
            shift[k] = h = 1e-5
            both = [loss(tuple(w + s * shift.reshape(w.shape) if n == i else w for n, w in enumerate(table.weights)))
                    for s in (1, -1)]  # fmt: skip
            assert float(gradient[place + k]) == pytest.approx((both[0] - both[1]) / (2 * h), rel=1e-4, abs=1e-6)
        place += own.numel()


def test_its_gradient_is_that_of_differences(ring):
    field, _, found = ring
    check_gradient(found.solver.table, problem_for(field, EDM, 2, 40, 77))


@pytest.mark.parametrize("state", [0.0, 1.0])
@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_features_have_derivatives_where_nothing_has_changed_and_where_all_is_zero(state, answer):
    z = torch.full((3, 2), state, dtype=torch.float64).requires_grad_(True)
    e = torch.full((3, 2), answer, dtype=torch.float64).requires_grad_(True)
    found = features(z, [e], 1.0, 1.0)
    assert found.shape == (11, 2)
    assert all(bool(part.isfinite().all()) for part in torch.autograd.grad(found.sum(), (z, e)))


def test_its_gradient_is_that_of_differences_with_fewer_directions_than_coordinates():
    """Of four directions in six dimensions the first is along the error; the others weigh more in the curvature alone."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixture = GaussianMixture([0.4, 0.6], normal(2, 6), [0.2, 0.1])
    stages = Stages.of(solvers.get("dpmpp:order=2").tableau(EDM, "karras", 3))
    layers = tuple((normal(input_count(6), 4), normal(4)) for _ in range(3))
    table = Conditioned(stages, mixture.scale, layers, tuple(0.1 * normal(5, i + 2) for i in range(3)))
    check_gradient(table, problem_for(diffode.exact_field(mixture, "edm"), EDM, 6, 20, 4))


def test_its_curvature_is_that_of_the_derivatives_of_single_ends(ring):
    field, _, found = ring
    table, problem = found.solver.table, problem_for(field, EDM, 2, 12, 5)
    sizes = [w.numel() for w in table.weights]

    def ends(values):
        weights = tuple(v.reshape(w.shape) for v, w in zip(values.split(sizes), table.weights, strict=True))
        return replace(table, weights=weights).run(problem.noise, problem.start)[0]

    values = torch.cat([w.flatten() for w in table.weights])
    rows = torch.autograd.functional.jacobian(ends, values)
    length = (ends(values) - problem.end).norm(dim=1)
    weight = 1 / length.clamp(min=0.05 * float(length.median()))
    expected = torch.einsum("ndp,ndq,n->pq", rows, rows, weight)
    _, curvature = normal_equations(table, problem, 4, torch.Generator())
    torch.testing.assert_close(curvature, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_rows_in_pieces_give_the_normal_equations_of_all(ring, monkeypatch):
    """One piece of all rows, two halves and quarters have the same equations where their median errors are the same."""
    field, _, found = ring
    table, problem = found.solver.table, problem_for(field, EDM, 2, 40, 77)
    four = replace(problem, start=problem.start.repeat(4, 1), end=problem.end.repeat(4, 1))
    expected = [4 * part for part in normal_equations(table, problem, 4, torch.Generator())]
    for chunk in (40, 80, 160):
        monkeypatch.setattr(conditioning, "_CHUNK", chunk)
        for part, own in zip(normal_equations(table, four, 4, torch.Generator()), expected, strict=True):
            torch.testing.assert_close(part, own, rtol=1e-11, atol=1e-11 * float(own.abs().max()))


def test_a_table_read_from_a_file_is_conditioned_as_the_trained_one(ring, tmp_path):
    field, trained, _ = ring
    trained.save(tmp_path / "table.safetensors")
    read = load_checkpoint(tmp_path / "table.safetensors")
    both = [condition(one, field, points=64, steps=2).solver.table.weights for one in (trained, read)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_wrong_arguments_are_named(ring):
    field, trained, found = ring
    with pytest.raises(ArgumentError, match="trained must be what train_table gave or its checkpoint"):
        condition(trained.origin, field)
    for other in (diffode.exact_field("ring8", "vp"), diffode.exact_field("gauss1d", "edm")):
        with pytest.raises(ArgumentError, match="condition a table that was trained on this field and path"):
            condition(trained, other)
    with pytest.raises(ArgumentError, match="seconds must be"):
        condition(trained, field, seconds="60")
    with pytest.raises(ArgumentError, match="trained from noise level 80"):
        diffode.solve(field, EDM.prior((2, 2), generator=0), solver=found.solver, grid=[40.0, 0.002])
    line = diffode.exact_field("bimodal1d", "edm")
    with pytest.raises(ArgumentError, match="another number of coordinates"):
        diffode.solve(line, EDM.prior((2, 1), generator=0), solver=found.solver, grid=[80.0, 0.002])
    with pytest.raises(ArgumentError, match=r"use x.double\(\)"):
        diffode.solve(field, EDM.prior((2, 2), generator=0).float(), solver=found.solver, grid=[80.0, 0.002])
    scalar = Field.from_denoised(lambda x, t: field.denoised(x, float(t)), EDM, scale=field.scale)
    assert diffode.solve(scalar, EDM.prior((2, 2), generator=0), solver=found.solver, grid=[80.0, 0.002]).success
    with pytest.raises(ArgumentError, match="directions must be"):
        condition(trained, field, directions=1)
    with pytest.raises(ArgumentError, match="units must be"):
        condition(trained, field, units=0)
    with pytest.raises(ArgumentError, match="dim is needed"):
        condition(trained, Field.from_noise(lambda x, t: x, EDM))


def test_a_saved_one_runs_as_a_solver_by_name_and_spoilt_files_are_refused(ring, tmp_path):
    field, _, found = ring
    file = tmp_path / "conditioned.safetensors"
    found.solver.table.save(file)
    x = EDM.prior((5, 2), generator=3)
    expected = diffode.solve(field, x, solver=found.solver).x
    read = solvers.get(f"conditioned:file={file}")
    assert read.spec == f"conditioned:file={file}"
    torch.testing.assert_close(diffode.solve(field, x, solver=read, nfe=4).x, expected, rtol=0, atol=0)
    with pytest.raises(BudgetError, match="trained for nfe=4 alone"):
        diffode.solve(field, x, solver=read, nfe=5)
    data = file.read_bytes()
    for spoilt in (data[: len(data) // 2], b"", data.replace(b"conditioned-1", b"conditioned-9")):
        (tmp_path / "spoilt").write_bytes(spoilt)
        with pytest.raises(FileFormatError):
            load_conditioned(tmp_path / "spoilt")
    table = found.solver.table
    facts = {"schema": "diffode-conditioned-1", "unit": 1.0}
    tensors = {"scales": table.stages.scales, "weights": table.stages.weights, "levels": table.stages.levels}
    for i, ((matrix, offset), weights) in enumerate(zip(table.layers, table.weights, strict=True)):
        tensors |= {f"matrix_{i}": matrix, f"offset_{i}": offset, f"added_{i}": weights}
    wrong = (
        ({**tensors, "added_1": tensors["added_2"].clone()}, facts),
        ({k: v for k, v in tensors.items() if k != "matrix_3"}, facts),
        (tensors, {**facts, "unit": -1.0}), (tensors, {"schema": facts["schema"]}),
        ({**tensors, "offset_0": tensors["offset_0"] * float("nan")}, facts),
        ({**tensors, "more": tensors["scales"].clone()}, facts),
        ({**tensors, "matrix_0": tensors["matrix_0"][:, :3].contiguous()}, facts),
        # Levels that do not fall lead nowhere.
        ({**tensors, "levels": torch.full_like(tensors["levels"], 3.0)}, facts),
    )  # fmt: skip
    for parts, description in wrong:
        write_tensors(tmp_path / "wrong", parts, description)
        with pytest.raises(FileFormatError):
            load_conditioned(tmp_path / "wrong")


def test_it_takes_part_in_a_study(ring, tmp_path):
    field, _, found = ring
    file = tmp_path / "c.safetensors"
    found.solver.table.save(file)
    given = {"solver": f"conditioned:file={file}", "target": "ring8", "path": "edm", "grid": "karras", "nfe": 4, "seed": 0,
             "points": 64, "dtype": "float64", "tolerance": 1e-8, "metrics": ("endpoint",)}  # fmt: skip
    cell = Cell(**given)
    result = compute(cell_key(cell), cell)
    assert (result.status, result.nfe_counted) == ("ok", 4)
    assert result.measurements[0].value < 4 * found.errors.after * field.scale
    wrong = Cell(**{**given, "nfe": 7})
    assert "trained for nfe=4 alone" in compute(cell_key(wrong), wrong).reason


def test_on_images_it_is_what_it_is_on_rows(ring):
    field, _, found = ring

    def denoised(x, t):
        assert x.shape[1:] == (1, 2)
        return field.denoised(x.flatten(1), t).reshape(x.shape)

    images = Field.from_denoised(denoised, EDM, scale=field.scale)
    x = EDM.prior((4, 1, 2), generator=1)
    expected = diffode.solve(field, x.flatten(1), solver=found.solver).x
    torch.testing.assert_close(diffode.solve(images, x, solver=found.solver).x.flatten(1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: Conditioned(
                Stages.of(Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5})), (0, 1), EDM)), 1.0, (), ()
            ),
            "a layer and weights for each of its 1 rows",
            id="a conditioned table without layers",
        ),
        pytest.param(
            lambda: condition(None, diffode.exact_field("ring8", "edm")),
            "trained must be what train_table gave",
            id="nothing to condition",
        ),
    ],
)
def test_a_table_is_conditioned_with_a_layer_a_row(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


def test_a_run_on_data_of_another_scale_says_so():
    table = train_table("ring8", 2, points=32, steps=1, begin_from="ddim @ karras")
    conditioned = condition(table, "ring8", units=2, points=32, steps=1)
    amed = train_amed("ring8", 1, points=16, rounds=1)
    moons = diffode.exact_field("moons", "edm")
    for trained, what in ((conditioned, "this conditioned table"), (amed, "this AMED")):
        assert trained.solver.chart_name == "noise"
        words = f"^{what} was trained on data of scale 3.55, this field has 0.71[0-9]*: train it on this field$"
        with pytest.warns(TrainedElsewhereWarning, match=words):
            diffode.solve(moons, moons.prior(3, generator=0), **trained.arguments)
