"""Tables that are kept: one that is asked for again is the same, and none is ever stale."""

import copy
import dataclasses

import pytest
import torch

import diffode
from diffode import Field, solvers
from diffode.solvers import kept_tables
from diffode.studies import Cell
from diffode.studies.rows import compute
from diffode.tableau import Row

START = 80 * torch.ones(1, 2, dtype=torch.float64)


@pytest.fixture(autouse=True)
def none_kept():
    kept_tables.forget()
    yield
    kept_tables.forget()


def field(path="edm"):
    return Field.from_denoised(lambda x, t: -x, path, probe=False)


def table(solver, on="edm", **options):
    return diffode.solve(field(on), START, solver=solver, **options).tableau


@pytest.mark.parametrize("amount", [{"steps": 7}, {"nfe": 7}])
@pytest.mark.parametrize("grid", ["karras", "karras:rho=5", "log_snr"])
def test_a_table_that_is_known_is_not_written_again(grid, amount):
    first = table("dpmpp:order=2", grid=grid, **amount)
    assert table("dpmpp:order=2", grid=grid, **amount) is first
    assert table(solvers.get("dpmpp:order=2"), grid=grid, **amount) is first
    written = solvers.get("dpmpp:order=2").within("edm", grid, 7)
    assert first.rows == written.rows
    assert first.outputs == written.outputs


def test_listed_times_are_known_by_their_values():
    times = [80.0, 10.0, 1.0]
    first = table("heun", grid=times)
    assert table("heun", grid=tuple(times)) is first
    assert table("heun", grid=torch.tensor(times, dtype=torch.float64)) is first
    times[1] = 11.0
    assert table("heun", grid=times).rows[2].time == 11.0


def test_whatever_a_table_depends_on_makes_another_one():
    known = [
        table("dpmpp:order=2", grid="karras", steps=7),
        table("dpmpp:order=3", grid="karras", steps=7),
        table("dpmpp:order=2", grid="karras", steps=8),
        table("dpmpp:order=2", grid="karras", nfe=8),
        table("dpmpp:order=2", grid="karras:rho=6", steps=7),
        table("dpmpp:order=2", "edm:sigma_max=70", grid="karras", steps=7),
        table("dpmpp:order=2", "vp", grid="karras", steps=7),
        table("dpmpp:order=2,analytic_first_step=true", grid="karras", steps=7),
        table("dpm_m:order=2", grid="karras", steps=7),
        table("dpmpp:order=2", grid="karras", steps=7, between=(60.0, 0.002)),
        table("dpmpp_2m_sde:eta=2", grid="karras", steps=7, generator=0),
        table("dpmpp_2m_sde:eta=2.0", grid="karras", steps=7, generator=0),
    ]
    assert len({id(one) for one in known}) == len(known)
    assert [one.solver for one in known[-2:]] == ["dpmpp_2m_sde:eta=2", "dpmpp_2m_sde:eta=2.0"]


def test_solvers_paths_and_grids_of_a_users_own_are_asked_each_time(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(solvers.DDIM):
        name = "mine"

    for options in (
        {"solver": Mine(), "grid": "karras"},
        {"solver": "ddim", "grid": diffode.grids.Grid(lambda path, steps: [80.0 - i for i in range(steps + 1)])},
    ):
        assert table(**options, steps=3) is not table(**options, steps=3)
    given = diffode.paths.FunctionPath(lambda t: t * 0 + 1.0, lambda t: t * 1.0, t_min=0.002, t_max=80.0)
    assert table("ddim", given, grid="karras", steps=3) is not table("ddim", given, grid="karras", steps=3)


def test_what_an_option_names_in_a_module_is_asked_each_time(tmp_path, monkeypatch):
    (tmp_path / "spreads.py").write_text("SCALE = 1.0\n\n\ndef g(t):\n    return SCALE * t**0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = "euler_maruyama:diffusion=spreads:g"
    first = table(spec, grid="karras", steps=4, generator=0)
    __import__("spreads").SCALE = 2.0
    assert table(spec, grid="karras", steps=4, generator=0).rows != first.rows


def test_the_times_of_a_table_are_the_callers_own():
    first = diffode.solve(field(), START, solver="ddim", grid="karras", steps=4)
    first.tableau.output_times.zero_()
    first.times.zero_()
    assert diffode.solve(field(), START, solver="ddim", grid="karras", steps=4).times[0] == 80.0


def test_a_file_that_changes_is_read_again(tmp_path):
    file = tmp_path / "solver.safetensors"
    tables = []
    for seed in (0, 1):
        trained = diffode.learned.train_table("ring8", 3, points=16, steps=1, seed=seed, begin_from="ddim @ log_snr")
        trained.save(file)
        start = diffode.exact_field("ring8", "edm").prior(1, generator=0)
        spec = f"bespoke:file={file}"
        tables.append(diffode.solve(diffode.exact_field("ring8", "edm"), start, solver=spec, grid="log_snr", nfe=3).tableau)
    assert tables[0].rows != tables[1].rows


def test_only_so_many_rows_are_kept(monkeypatch):
    monkeypatch.setattr(kept_tables, "_MOST_ROWS", 40)
    first = table("ddim", grid="karras", steps=9)
    assert table("ddim", grid="karras", steps=9) is first
    for steps in (4, 5, 6, 7, 8):
        table("ddim", grid="karras", steps=steps)
    assert table("ddim", grid="karras", steps=9) is not first
    assert kept_tables._rows == sum(len(one.rows) for one in kept_tables._tables.values()) <= 40
    long = table("ddim", grid="karras", steps=30)
    assert table("ddim", grid="karras", steps=30) is not long


def test_a_table_that_was_handed_out_can_not_be_changed():
    """A later run shares it: its rows refuse changes, and lists that it gives are copies."""
    first = table("dpmpp:order=2", grid="karras", steps=5)
    row = first.rows[2]
    for coefficients in (row.states, row.evaluations, row.draws):
        before = dict(coefficients)
        for change in (
            lambda held=coefficients: held.__setitem__(0, 2.0),
            lambda held=coefficients: held.update({0: 2.0}),
            lambda held=coefficients: held.pop(0),
            lambda held=coefficients: held.setdefault(77, 2.0),
            lambda held=coefficients: held.__ior__({0: 2.0}),
            lambda held=coefficients: held.clear(),
        ):
            with pytest.raises(TypeError, match="can't be changed"):
                change()
        assert coefficients == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.states = {}
    first.evaluated.append(99)
    first.output_times.zero_()
    known = first.rows
    assert table("dpmpp:order=2", grid="karras", steps=5).rows == known
    assert first.evaluated == list(range(5))
    copied = copy.deepcopy(first)
    assert copied.rows == known
    with pytest.raises(TypeError, match="can't be changed"):
        copied.rows[1].states[0] = 2.0


def test_a_row_keeps_none_of_the_mappings_that_it_was_made_from():
    given = {0: 1.0}
    row = Row(0.5, given)
    given[0] = 2.0
    assert row.states == {0: 1.0}
    assert dataclasses.replace(row, states={0: 3.0}).states == {0: 3.0}


def test_cells_of_a_study_share_tables_of_all_targets_that_ask_for_the_same(monkeypatch):
    kept_tables.forget()
    written = []
    within = solvers.TableSolver.within
    monkeypatch.setattr(solvers.TableSolver, "within", lambda self, *a: written.append(self.spec) or within(self, *a))
    for target in ("ring8", "moons", "gauss2d"):
        for solver in ("ipndm:order=3", "ipndm:order=3,jump=1"):
            compute("key", Cell(target, "edm", 0, "karras", solver, 5, 4, "float64", ("endpoint",), 1e-6))
    # A jump goes to the level of each target's own data.
    assert len(written) == 1 + 3
