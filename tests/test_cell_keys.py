"""Keys of cells: a change of anything that matters gives another key, and a change of anything else the same."""

from dataclasses import replace

from commandline import program
from small_suite import SOLVER, small

from diffode import solvers
from diffode.studies.cell_keys import cell_key, solver_version


def test_a_change_of_anything_that_matters_changes_the_key():
    cell = small().cells[0]
    keys = {cell_key(cell)}
    for change in (
        {"nfe": 5},
        {"seed": 1},
        {"dtype": "float32"},
        {"target": "gauss1d"},
        {"solver": "lms"},
        {"points": 17},
        {"tolerance": 1e-7},
    ):
        keys.add(cell_key(replace(cell, **change)))
    assert len(keys) == 8
    assert cell_key(cell) == cell_key(replace(cell))


def in_fresh_process(code):
    return program(code).stdout.strip()


def test_a_changed_solver_recomputes_only_its_own_cells(tmp_path):
    (tmp_path / "suite.toml").write_text(
        'name = "s"\n[[study]]\ntargets = ["gauss1d"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4, 6]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim", "mine"]\n'
    )
    code = f"""
        from diffode.studies import load_suite, run_suite
        from diffode.extensions import import_extension
        import_extension({str(tmp_path / "mine.py")!r})
        s = run_suite(load_suite({str(tmp_path / "suite.toml")!r}), {str(tmp_path / "s.sqlite")!r}, jobs=1)
        print(s.computed, s.stored, s.failed)
    """
    source = tmp_path / "mine.py"
    source.write_text(SOLVER.replace("FACTOR", "1.0"))
    assert in_fresh_process(code) == "4 0 0"
    source.write_text("# a comment changes nothing\n" + SOLVER.replace("FACTOR", "1.0").replace("the user's own", "my own"))
    assert in_fresh_process(code) == "0 4 0"
    source.write_text(SOLVER.replace("FACTOR", "0.9"))
    assert in_fresh_process(code) == "2 2 0"


def test_a_changed_file_that_an_option_names_changes_the_key(tmp_path):
    source = tmp_path / "noise.py"
    code = f"""
        from diffode.studies import parse_suite
        from diffode.studies.cell_keys import cell_key
        study = dict(targets=["gauss1d"], paths=["edm"], grids=["karras"], nfe=[4], seeds=[0], points=4)
        study["solvers"] = ["euler_maruyama:diffusion={source}:noise"]
        suite = parse_suite(dict(name="s", study=[study]))
        print(cell_key(suite.cells[0]))
    """
    keys = []
    for text in ("SIZE = 1.0", "SIZE = 2.0", "# A comment changes nothing.\nSIZE = 2.0"):
        source.write_text(text + "\ndef noise(t):\n    return SIZE\n")
        keys.append(in_fresh_process(code))
    assert keys[0] != keys[1] == keys[2]


NAMES = ("euler", "heun", "ab", "lms", "ipndm", "dpm", "dpmpp", "unipc")


def test_solver_versions_differ_where_code_differs():
    assert len({solver_version(type(solvers.get(name))) for name in NAMES}) == 8
