"""Jump tables and their heads: exact on Gaussians, evaluated at inner levels, trained by exact derivatives."""

import math

import pytest
import torch

import diffode
from diffode import Field, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, TrainedElsewhereWarning
from diffode.flows import reference
from diffode.learned import train, train_head, train_jump
from diffode.learned.heads import features, jump_fit
from diffode.learned.heads.jump_fit import Numbers, ddim_numbers
from diffode.learned.heads.pairs import pairs_of
from diffode.learned.request import Request
from diffode.maps import AngleClock
from diffode.solvers.trained.generators import Head, Jump
from diffode.solvers.trained.jumps import JUMPS_SCHEMA, Jumps, Network, load_jumps
from diffode.tensor_files import read_tensors, write_tensors

EDM = paths.get("edm")


def pairs(name, count=64, seed=0):
    """Pairs of a field, and the request that they belong to."""
    asked = Request.of("test", name, seed=seed)
    return pairs_of(asked, AngleClock.of(asked.field, asked.width), count, "training")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def ring():
    """A jump table and a head of ring8, trained for a moment."""
    return train_jump("ring8", 2, points=256, steps=10), train_head("ring8", 2, points=256, steps=4, units=30)


@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.parametrize("path", ["edm", "vp"])
def test_a_table_that_was_never_trained_is_exact_on_one_gaussian(nfe, path):
    """The flow of N(m, c^2 I) is the identity in y, whatever the levels."""
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[3.0, -1.0]], [[0.49, 0.49]]), path)
    on, clock = field.path, AngleClock.of(field, 2)
    ends = on.rho(on.t_max), on.rho(on.t_min)
    asked = pairs_of(Request.of("test", field), clock, 50, "training")
    numbers = ddim_numbers(asked, torch.logspace(1, -1, nfe, dtype=torch.float64))
    assert jump_fit.error_of(numbers, asked) < 1e-13
    x = on.prior((20, 2), generator=3)
    exact = reference(field, x, on.t_max, on.t_min).x
    run = diffode.solve(field, x, solver=Jump(jumps=numbers.jumps(asked)), nfe=nfe)
    assert run.nfe == nfe
    assert asked.levels == ends
    torch.testing.assert_close(run.x, exact, rtol=1e-12, atol=1e-12)


def test_the_field_is_asked_at_inner_levels_alone_and_never_at_the_start(ring):
    exact, asked = diffode.exact_field("ring8", "edm"), []

    def denoised(x, t):
        asked.append(float(t))
        return exact.denoised(x, t)

    field = Field.from_denoised(denoised, EDM, scale=exact.scale, probe=False)
    for trained in ring:
        asked.clear()
        run = diffode.solve(field, EDM.prior((3, 2), generator=0), solver=trained.solver, nfe=2)
        assert run.nfe == 2
        assert asked == pytest.approx(trained.content.levels[1:-1].tolist(), rel=1e-12)
        assert 80.0 not in asked


def test_the_recursion_is_the_one_that_is_written_down():
    """Two evaluations by hand, in z and D, with a head of two units."""
    field = diffode.exact_field("ring8", "edm")
    clock = AngleClock(levels(0.5, -0.25), 2.0)
    heads = tuple(Network(((normal(2 * k, 2, seed=k), normal(2, seed=9)), (normal(2, 2, seed=5), normal(2, seed=6))), "tanh")
                  for k in (2, 3))  # fmt: skip
    weights = levels(0.3, 0.0, -0.2, 0.7).reshape(2, 2)
    jumps = Jumps(clock, levels(80.0, 3.0, 0.4, 0.002), levels(0.9, 0.6), weights, heads)
    z = EDM.prior((4, 2), generator=1)

    def cosine(rho):
        return 2.0 / math.sqrt(4.0 + rho**2)

    y = (z - clock.mean) * cosine(80.0) / 2.0
    known = []
    for k, rho in enumerate((3.0, 0.4)):
        known.append((field.denoised(clock.mean + 2.0 * y / cosine(rho), rho) - clock.mean) / 2.0)
        (m, o), (w, b) = heads[k].layers
        head = torch.tanh(torch.cat([y, *known], dim=1) @ m + o) @ w + b
        y = jumps.kept[k] * y + sum(float(weights[k, j]) * d for j, d in enumerate(known)) + head
    wanted = clock.mean + 2.0 * y / cosine(0.002)
    torch.testing.assert_close(jumps.run(lambda z, rho: field.denoised(z, rho), z), wanted, rtol=1e-13, atol=1e-13)
    # Table: 2 numbers of y and 3 of d, for 2 coordinates; heads: 4 x 2 + 2 x 2 and 6 x 2 + 2 x 2.
    assert jumps.multiply_adds == 2 * 5 + 12 + 16


def test_heads_that_answer_zero_leave_the_table_bit_for_bit(ring):
    table = ring[0].content
    field, x = diffode.exact_field("ring8", "edm"), EDM.prior((9, 2), generator=0)
    layers = [((normal(2 * k, 5), normal(5)), (torch.zeros(5, 2).double(), torch.zeros(2).double())) for k in (2, 3)]
    headed = Jumps(table.clock, table.levels, table.kept, table.weights, tuple(Network(one, "tanh") for one in layers))
    with_heads = diffode.solve(field, x, solver=Head(jumps=headed), nfe=2).x
    assert torch.equal(with_heads, diffode.solve(field, x, solver=ring[0].solver, nfe=2).x)
    # One number that is not 0 is enough to tell.
    layers[1][1][1][0] = 1e-9
    assert not torch.equal(diffode.solve(field, x, solver=Head(jumps=headed), nfe=2).x, with_heads)


def test_rows_do_not_depend_on_each_other_nor_on_path_shape_or_much_on_precision(ring):
    field, x = diffode.exact_field("ring8", "edm"), EDM.prior((6, 2), generator=3)
    for trained in ring:
        run = diffode.solve(field, x, solver=trained.solver, nfe=2).x
        alone = diffode.solve(field, x[2:3], solver=trained.solver, nfe=2).x
        torch.testing.assert_close(alone, run[2:3], rtol=1e-11, atol=1e-11)
        images = Field.from_denoised(lambda x, t: field.denoised(x.flatten(1), t).reshape(x.shape), EDM, scale=field.scale)
        shaped = diffode.solve(images, x.reshape(6, 1, 2), solver=trained.solver, nfe=2).x
        torch.testing.assert_close(shaped.flatten(1), run, rtol=1e-12, atol=1e-12)
        single = diffode.solve(field, x.float(), solver=trained.solver, nfe=2).x
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), run, rtol=1e-3, atol=1e-3)
    # A path on which alpha falls: the same levels of noise in z = x/alpha.
    other = diffode.exact_field("ring8", paths.get("vp"))
    with pytest.raises(ArgumentError, match="train it for this path"):
        diffode.solve(other, other.path.prior((2, 2), generator=0), solver=ring[0].solver, nfe=2)


@pytest.mark.parametrize("nfe", [1, 3])
def test_the_derivative_of_a_table_is_exact(nfe):
    """Gradient of the reweighted squared error by every number, against central differences."""
    asked = pairs("ring8", 40)
    numbers = ddim_numbers(asked, torch.logspace(0.3, -0.2, nfe, dtype=torch.float64))
    gradient, _ = jump_fit.normal_equations(numbers, asked, 4, torch.Generator().manual_seed(0))
    check_gradient(gradient, numbers.vector(), lambda v: jump_fit.run(Numbers.of(v, nfe), asked), asked, range(len(gradient)))


def test_the_derivative_of_heads_is_exact_and_so_is_their_curvature():
    """By numbers, levels and outputs of two heads; J^T W J against the same J by differences."""
    asked, generator = pairs("ring8", 30), torch.Generator().manual_seed(1)
    numbers = ddim_numbers(asked, levels(0.9, 0.4))
    inputs = [normal(30, 4), normal(30, 6)]
    layers = tuple(features.drawn_layer(one, 4, (1.0, 3.0), generator) for one in inputs)
    begin = features.Featured(numbers, layers, tuple(0.1 * normal(5, 2, seed=k) for k in (1, 2)))
    gradient, curvature = features.normal_equations(begin, asked, 4, torch.Generator())
    vector = begin.vector()

    def ran(v):
        moved = begin.of(v)
        return jump_fit.run(moved.numbers, asked, moved.heads())

    check_gradient(gradient, vector, ran, asked, range(len(vector)))
    rows, weight = jacobian(vector, ran, asked), weights_of(ran(vector), asked)
    expected = torch.einsum("bdp,bdq,b->pq", rows, rows, weight)
    torch.testing.assert_close(curvature, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def weights_of(y, asked):
    length = asked.distance(y)
    return asked.weight / length.clamp(min=0.02 * float(length.median())) / len(length)


def jacobian(vector, ran, asked):
    cosine, columns = asked.clock.cosine(asked.levels[1]), []
    for k in range(len(vector)):
        shift = torch.zeros_like(vector)
        shift[k] = h = 1e-6
        columns.append((ran(vector + shift) - ran(vector - shift)) / (2 * h * cosine))
    return torch.stack(columns, dim=2)


def check_gradient(gradient, vector, ran, asked, places):
    weight, cosine = weights_of(ran(vector), asked), asked.clock.cosine(asked.levels[1])
    error = ran(vector) / cosine - asked.end
    expected = torch.einsum("bdp,bd,b->p", jacobian(vector, ran, asked), error, weight)
    torch.testing.assert_close(gradient[list(places)], expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_starts_with_large_errors_are_drawn_more_often_and_weigh_less():
    """Means over the drawn starts are those over all: of the error itself and of another function."""
    asked = pairs("ring8", 4000)
    error = normal(4000, seed=2).abs() ** 3
    drawn = asked.hardest(error, 800, torch.Generator().manual_seed(0))
    assert len(drawn.start) in (799, 800)
    assert float(drawn.weight.mean()) == pytest.approx(1.0, rel=1e-12)
    place = {tuple(row): k for k, row in enumerate(asked.start.tolist())}
    rows = [place[tuple(row)] for row in drawn.start.tolist()]
    assert float(error[rows].mean()) > 2 * float(error.mean())
    assert float((error[rows] * drawn.weight).mean()) == pytest.approx(float(error.mean()), rel=0.15)
    radius = asked.start.norm(dim=1)
    assert float((radius[rows] * drawn.weight).mean()) == pytest.approx(float(radius.mean()), rel=0.05)


def test_training_gains_and_its_result_says_what_it_is(ring):
    table, headed = ring
    # Measured .0111 and .0073; the best of hundreds of published samplers has .18.
    assert table.errors.after < 0.014
    assert headed.errors.after < 0.012
    assert headed.content.content == diffode.targets.get("ring8").content()
    assert headed.content.teacher == "exact ends"
    assert headed.content.teacher_error == 0.0
    assert headed.content.training_error < headed.errors.after * 1.5
    assert headed.facts.begun_from == "the jump table without heads"
    assert headed.solver.multiply_adds == 2 * 5 + 30 * (4 + 2) + 30 * (6 + 2)
    assert table.solver.multiply_adds == 10
    assert (table.solver.order, table.nfe, table.solver.nfe) == (None, 2, 2)


def test_in_many_dimensions_heads_are_networks_which_stay_in_float32(tmp_path):
    told = []
    trained = train_head("digits-gmm10", 2, points=128, steps=30, units=16, layers=2, progress=told.append)
    assert trained.errors.after < 3.0
    stages = [stage for stage in dict.fromkeys(step.stage for step in told) if "head" in stage]
    assert stages == ["train the last head", "train all heads"]
    head = trained.content.heads[1]
    assert (head.activation, [tuple(m.shape) for m, _ in head.layers]) == ("silu", [(192, 16), (16, 16), (16, 64)])
    assert {part.dtype for layer in head.layers for part in layer} == {torch.float32}
    trained.save(tmp_path / "head")
    field = diffode.exact_field("digits-gmm10", "edm")
    x = EDM.prior((3, 64), generator=0)
    runs = [diffode.solve(field, x, solver=one, nfe=2).x for one in (trained.solver, f"head:file={tmp_path / 'head'}")]
    assert torch.equal(*runs)


@pytest.mark.parametrize(("nfe", "steps"), [(1, 150), pytest.param(2, 600, marks=pytest.mark.slow)])
def test_networks_learn_in_few_dimensions_too(nfe, steps):
    """Better than the table that they begin from, on starts of their own."""
    trained = train_head("ring8", nfe, kind="network", units=24, layers=2, points=2048, steps=steps, seed=1)
    assert trained.errors.after < 0.9 * trained.errors.before


def test_seconds_end_a_training_of_networks_with_its_rate_fallen():
    told = []
    trained = train_head(
        "ring8", 1, kind="network", units=8, layers=1, points=512, steps=10**6, seconds=4.0, progress=told.append
    )
    assert trained.stopped_by == "seconds"
    assert trained.seconds < 15
    assert max(step.number for step in told if step.stage == "train the last head") < 10**6


def test_a_file_runs_as_the_solver_that_it_is_for(ring, tmp_path):
    field, x = diffode.exact_field("ring8", "edm"), EDM.prior((5, 2), generator=3)
    for name, trained, other in (("jump", ring[0], "head"), ("head", ring[1], "jump")):
        file = tmp_path / name
        trained.save(file)
        read = load_jumps(file)
        assert (read.facts, read.teacher, read.training_error) == (
            trained.content.facts, trained.content.teacher, trained.content.training_error,
        )  # fmt: skip
        assert solvers.get(f"{name}:file={file}").spec == f"{name}:file={file}"
        with pytest.raises(ArgumentError, match=f"holds a {name}, which runs as the solver {name}:file="):
            solvers.get(f"{other}:file={file}")
        run = diffode.solve(field, x, solver=f"{name}:file={file}", nfe=2)
        assert torch.equal(run.x, diffode.solve(field, x, solver=trained.solver).x)
        with pytest.raises(BudgetError, match="was trained for nfe=2 alone"):
            diffode.solve(field, x, solver=f"{name}:file={file}", nfe=3)


def wrong_files(file):
    """Twenty and more descriptions and sets of tensors, each wrong in one thing."""
    description, tensors = read_tensors(file, JUMPS_SCHEMA)
    for key in ("scale", "layers", "activation", "content", "teacher", "teacher_error", "path", "held_out_error", "seed"):
        yield {k: v for k, v in description.items() if k != key}, tensors
    for key, value in (
        ("scale", -1.0), ("scale", 1e40), ("scale", "2"), ("layers", 3), ("layers", -1), ("layers", True),
        ("activation", "relu"), ("content", 5), ("teacher_error", "none"), ("stopped_by", "luck"),
    ):  # fmt: skip
        yield {**description, key: value}, tensors
    for name, value in (
        ("mean", tensors["mean"][:1].clone()), ("levels", tensors["levels"].flip(0).contiguous()),
        ("levels", tensors["levels"][:3]), ("levels", -tensors["levels"]), ("kept", tensors["kept"] * math.nan),
        ("weights", torch.ones(2, 2, dtype=torch.float64)),
        ("weights", tensors["weights"].float()), ("matrix_0_0", tensors["matrix_0_0"].T.contiguous()),
        ("offset_1_0", tensors["offset_1_0"][:-1]), ("matrix_1_1", tensors["matrix_1_1"][:, :1].contiguous()),
        ("offset_0_1", tensors["offset_0_1"] * math.inf),
    ):  # fmt: skip
        yield description, {**tensors, name: value}
    yield description, {k: v for k, v in tensors.items() if k != "matrix_1_0"}
    yield description, {**tensors, "more": tensors["kept"].clone()}


def test_wrong_files_are_refused_by_name(ring, tmp_path):
    ring[1].save(tmp_path / "good")
    refused = 0
    for description, tensors in wrong_files(tmp_path / "good"):
        write_tensors(tmp_path / "wrong", tensors, description)
        with pytest.raises(FileFormatError, match="wrong is not a jump table"):
            load_jumps(tmp_path / "wrong")
        refused += 1
    assert refused > 30
    with pytest.raises(FileFormatError, match="has schema"):
        solvers.get("nodes", file=str(tmp_path / "good"))


def test_runs_elsewhere_are_refused_or_warned_of(ring):
    solver = ring[1].solver
    line = diffode.exact_field("bimodal1d", "edm")
    with pytest.raises(ArgumentError, match="trained on rows of 2 coordinates"):
        diffode.solve(line, EDM.prior((2, 1), generator=0), solver=solver, nfe=2)
    ring8 = diffode.exact_field("ring8", "edm")
    for grid in ([40.0, 0.002], [80.0, 1.0, 0.002], [80.0, 0.01]):
        with pytest.raises(ArgumentError, match=r"this jump table with heads was trained from noise level 80 to 0\.002"):
            diffode.solve(ring8, EDM.prior((2, 2), generator=0), solver=solver, grid=grid)
    other = diffode.exact_field("gauss2d", "edm")
    with pytest.warns(TrainedElsewhereWarning, match="trained on target ring8, this field is of another target"):
        diffode.solve(other, EDM.prior((2, 2), generator=0), solver=solver, nfe=2)
    foreign = Field.from_denoised(lambda x, t: ring8.denoised(x, t), EDM, scale=2 * ring8.scale)
    with pytest.warns(TrainedElsewhereWarning, match="this field has data of scale 7.099, not 3.55"):
        diffode.solve(foreign, EDM.prior((2, 2), generator=0), solver=solver, nfe=2)
    assert diffode.solve(ring8, EDM.prior((2, 2), generator=0), solver=solver).success


def test_a_field_of_ones_own_is_trained_on_with_its_own_mean():
    exact = diffode.exact_field("bimodal1d", "edm")
    field = Field.from_denoised(lambda x, t: exact.denoised(x, t), EDM, scale=exact.scale)
    trained = train("jump", field, 1, dim=1, points=128, steps=5)
    assert float(trained.content.clock.mean[0]) == pytest.approx(float(exact.target.mean[0]), abs=0.01)
    assert trained.errors.after < 0.08
    assert trained.content.content == ""


def test_wrong_numbers_are_named(ring):
    table = ring[0].content
    with pytest.raises(ArgumentError, match="jumps must be what training gave"):
        Jump(jumps=table, file="x")
    with pytest.raises(ArgumentError, match="jump needs file=, the name of a file that `diffode train jump` wrote"):
        solvers.get("jump")
    with pytest.raises(ArgumentError, match="nodes needs file="):
        solvers.get("nodes")
    with pytest.raises(ArgumentError, match="no heads or one for each of 2 evaluations, got 1"):
        Jumps(table.clock, table.levels, table.kept, table.weights, (Network((), "tanh"),))
    with pytest.raises(ArgumentError, match="jumps need kept"):
        Jumps(table.clock, table.levels[1:], table.kept, table.weights)


def test_a_study_knows_heads_by_their_content(ring, tmp_path):
    """Two files of one name and other numbers are two solvers."""
    file = tmp_path / "head"
    contents = []
    for trained in (ring[1], train_head("ring8", 2, points=64, steps=1, units=5)):
        trained.save(file)
        contents.append(solvers.get(f"head:file={file}").content())
    assert contents[0] == ring[1].solver.content() != contents[1]


def test_slopes_of_a_drawn_layer_lie_between_their_widths_in_units_of_the_inputs():
    inputs = 5.0 + 2.0 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slopes(widths):
        matrix, _ = features.drawn_layer(inputs, 2000, widths, torch.Generator().manual_seed(1))
        draws = torch.Generator().manual_seed(1)
        torch.rand(2000, generator=draws, dtype=torch.float64)
        return matrix * inputs.std() / torch.randn(1, 2000, generator=draws, dtype=torch.float64)

    assert torch.allclose(slopes((3.0, 3.0)), torch.tensor(3.0, dtype=torch.float64), rtol=1e-9)
    spread = slopes((0.5, 8.0))
    assert 0.5 <= float(spread.min()) < 0.51
    assert 7.9 < float(spread.max()) <= 8.0
    # Their logarithms are uniform.
    assert float(spread.log().mean()) == pytest.approx(math.log(2.0), abs=0.05)
