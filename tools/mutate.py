"""Mutation testing: are the tests able to fail?

``python tools/mutate.py [--sample N] [--seed S] [--modules NAME ...] [--output FILE]``. cosmic-ray (``pip install cosmic-ray``)
changes one operator, number or keyword of the numerical core at a time, in a copy of the repository; the tests that are there
for the module are run, and have to fail. They have to pass without a change, which is tried first. A sample of the mutants is
tried, in proportion to the modules' sizes. Printed are the share killed, and every survivor with its line.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Tests for every module, after its own.
EVERYWHERE = "properties"
#: Rooms and modules of the numerical core, and the files of tests that are there for each. A module that is named is no part
#: of its room.
TESTS = {
    "numerics": "numerics charts reference_errors conformance",
    "numerics/butcher.py": "numerics solvers conformance",
    "numerics/collocation.py": "implicit",
    "numerics/krylov.py": "implicit",
    "numerics/forward.py": "map_residuals flow_maps",
    "numerics/gaussian_transport.py": "couplings",
    "numerics/least_squares.py": "numerics learned_derivatives learned_conditioned",
    "numerics/line_transport.py": "wasserstein",
    "numerics/entropic_transport.py": "wasserstein",
    "numerics/orders.py": "verify",
    "numerics/splines.py": "dpm_v3",
    "numerics/quantiles.py": "numerics references flows",
    "paths": "paths path_laws grids given_paths",
    "paths/interval.py": "bridges",
    "hippo": "hippo_measures hippo_runs hippo_theory hippo_arguments",
    "hippo/module.py": "hippo_layer",
    "hippo/signal_files.py": "memory_command",
    "hippo/signals.py": "memory_command",
    "hippo/study.py": "memory_command",
    "charts.py": "charts conformance stochastic solvers",
    "gaussian_charts.py": "gaussian_charts",
    "grids.py": "grids path_laws solver_laws",
    "grid_rules.py": "grids path_laws solver_laws",
    "grid_menus.py": "menu_grids",
    "randomness.py": "noise training_repeats sde_samplers",
    "flows": "flows average_velocity references reference_errors",
    "flows/guided.py": "guided_flows",
    "maps": "angle_clock flow_maps map_files map_residuals",
    "statistics": "statistics jump",
    "tableau": "tableau solvers conformance stochastic",
    "tableau/directed.py": "jump",
    "tableau/gaussian_stages.py": "gaussian_stages trained_in_chart",
    "tableau/brownian.py": "stochastic sde_samplers verify",
    "tableau/files.py": "tableau_files",
    "tableau/propagation.py": "tableau verify",
    "tableau/stages.py": "common_form learned_derivatives learned codebook",
    "native": "native machine_code exact_fields",
    "targets/compiled.py": "native",
    "targets/torch_evaluation.py": "mixture exact_fields native",
    "targets": "mixture exact_fields target_laws low_rank cache",
    "targets/labels.py": "labels adapter_labels",
    "targets/tilted.py": "guided_laws",
    "fields/estimated.py": "statistics",
    "fields/model_statistics.py": "dpm_v3",
    "fields": "fields adaptive own_field counting networks adapters_in conditional exact_fields",
    "fields/guidance": "guidance guided_flows guided_studies",
    "fields/rotated.py": "bridges",
    "fields/skip_tuned.py": "skip_tuning",
    "sources": "sources source_models",
    "bridges": "bridges couplings named_bridges",
    "solvers/adams.py": "conformance solvers solver_laws",
    "solvers/adaptive.py": "adaptive solver_laws direct_budget",
    "solvers/adaptive_sde.py": "adaptive sde_samplers solver_laws",
    "solvers/amed.py": "conformance amed solver_laws",
    "solvers/ancestral.py": "conformance stochastic solver_laws",
    "solvers/baselines.py": "solver_laws conditional direct_budget",
    "solvers/controller.py": "controllers adaptive",
    "solvers/consistency.py": "sde_samplers solver_laws",
    "solvers/direct.py": "direct_budget solver_laws",
    "solvers/direct_runs.py": "direct_budget adaptive solver_laws",
    "solvers/dpm.py": "conformance solvers solver_laws",
    "solvers/dpm_multistep.py": "conformance solvers solver_laws",
    "solvers/er_sde.py": "stochastic verify solver_laws",
    "solvers/dpm_v3.py": "dpm_v3",
    "solvers/euler_maruyama.py": "stochastic verify solver_laws",
    "solvers/exponential_runge_kutta.py": "exponential_runge_kutta solver_laws",
    "solvers/given_functions.py": "sde_samplers langevin_rules",
    "solvers/heun_plus.py": "menu_samplers",
    "solvers/implicit.py": "implicit",
    "solvers/exponential_sde.py": "conformance stochastic verify",
    "solvers/plain_function.py": "representations solver_laws direct_budget solver_names",
    "solvers/in_chart.py": "gaussian_charts",
    "solvers/in_parallel.py": "parallel_in_time",
    "solvers/informed.py": "jump gaussian_charts",
    "solvers/jumped.py": "jump",
    "solvers/kept_tables.py": "kept_tables",
    "solvers/names.py": "solver_names",
    "solvers/parareal.py": "parallel_in_time",
    "solvers/picard.py": "parallel_in_time",
    "solvers/predictor_corrector.py": "sde_samplers langevin_rules solver_laws",
    "solvers/registry.py": "solver_classes specs solver_names closure",
    "solvers/restart.py": "sde_samplers stochastic",
    "solvers/run_options.py": "solvers noise stochastic",
    "solvers/run.py": "solvers tableau stochastic noise solver_laws",
    "solvers/runge_kutta.py": "solver_classes conformance solvers solver_laws",
    "solvers/solution.py": "solvers metrics",
    "solvers/solver.py": "solver_classes solvers solver_laws",
    "solvers/starts.py": "starts",
    "solvers/streaming.py": "streaming",
    "solvers/trained/mapped.py": "flow_maps shipped_maps",
    "solvers/trained/shipped.py": "shipped_maps",
    "solvers/trained/spectral.py": "universal_gaussian",
    "solvers/trained/spectral_files.py": "universal_gaussian",
    "solvers/trained/ratios.py": "dc_solver learned_files",
    "solvers/trained": "checkpoints learned_files universal heads nodes",
    "solvers/unipc.py": "conformance solvers solver_laws",
    "solvers/dc.py": "dc_solver",
    "solvers/stork.py": "stork stork_4",
    "solvers/upwards.py": "upwards",
    "learned/conditional": (
        "learned_conditioned learned_amed learned_files learned_amed_jump learned_conditioned_in_chart learned_after_jump"
    ),
    "learned/fitting": "learned_derivatives learned_trajectory learned",
    "learned/fitting/chart.py": "trained_in_chart gaussian_stages",
    "learned/grids": "learned_levels learned_files dc_solver learned_after_jump learned_amed_jump",
    "learned/maps": "map_parts map_residuals map_training flow_maps map_files",
    "learned/heads": "heads heads_requests nodes",
    "learned/maps/fake.py": "map_laws map_residuals",
    "learned/maps/law_run.py": "map_laws",
    "learned/maps/laws.py": "map_laws map_parts",
    "learned/maps/moments.py": "moment_matching map_laws",
    "learned/tables": "learned training_repeats",
    "learned/tables/in_chart.py": "trained_in_chart gaussian_stages",
    "learned/universal": "codebook learned_family universal_choice universal",
    "metrics": "metrics metric_floors streamed_metrics",
    "metrics/guided.py": "guided_laws",
    "metrics/transport.py": "wasserstein",
    "verify/field": "verify_field checks symbolic",
    "verify/field/likelihood.py": "likelihood",
    "verify/theory": "verify",
    "verify/theory/consistency.py": "consistency_theory",
    "verify/theory/guided_law.py": "guided_laws",
    "verify/theory/one_step.py": "one_step_theory",
    "verify/theory/score_identity.py": "score_identity",
    "verify/theory/straightness.py": "straightness",
    "verify/maps": "check_map",
    "verify/theory/affine.py": "certificate",
    "verify/theory/bounds.py": "certificate",
    "verify/theory/score_error.py": "certificate",
    "verify/sampler": "check check_schedulers verdicts",
}
#: Operators whose mutation says little, as those of annotations, or nothing, as == where objects are one.
DULL = ("_BitOr", "_BitAnd", "_BitXor", "_RShift", "_LShift", "_Is_Eq", "_IsNot_NotEq")
#: Operators that no programmer would write for another.
FAR = ("_FloorDiv", "_Mod", "_Pow")
#: Decorators that change nothing.
MARKS = ("@override", "@overload")
TIMEOUT = 300
IGNORED = (".git", ".venv", "__pycache__", "diffode-report", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache")


def files(place: str) -> list[Path]:
    """The modules of a room or module, without those named themselves or in such a room, from the package's folder on."""
    whole = ROOT / "diffode" / place
    if whole.is_file():
        return [Path(place)]
    inside = [file.relative_to(ROOT / "diffode") for file in sorted(whole.rglob("*.py")) if file.stem != "__init__"]
    others = {Path(other) for other in TESTS if other != place}
    return [file for file in inside if others.isdisjoint((file, *(p for p in file.parents if p.is_relative_to(place))))]


def lines(place: str) -> int:
    return sum(len((ROOT / "diffode" / file).read_text(encoding="utf-8").splitlines()) for file in files(place))


def tests(place: str) -> list[str]:
    return [f"tests/test_{name}.py" for name in (*TESTS[place].split(), EVERYWHERE)]


def pytest(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)


def cosmic_ray(copy: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "cosmic_ray.cli", *arguments]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")


def every_mutant(copy: Path, places: Sequence[str], work: Path) -> Path:
    """cosmic-ray's database with all mutants of these places."""
    config, database = work / "all.toml", work / "all.sqlite"
    write_config(config, [file for place in places for file in files(place)], [])
    cosmic_ray(copy, "init", str(config), str(database))
    return database


def write_config(config: Path, modules: Sequence[Path], names: Sequence[str]) -> None:
    paths = json.dumps([f"diffode/{file.as_posix()}" for file in modules])
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not slow' {' '.join(names)}"
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {paths}\ntimeout = {TIMEOUT}\nexcluded-modules = []\n"
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )


class Ledger:
    """The mutants of a place, out of those of all places."""

    def __init__(self, copy: Path, place: str, everything: Path, work: Path):
        self.copy = copy
        self.modules = [f"diffode/{file.as_posix()}" for file in files(place)]
        name = place.replace("/", "-").removesuffix(".py")
        self.database, self.config = work / f"{name}.sqlite", work / f"{name}.toml"
        shutil.copy(everything, self.database)
        write_config(self.config, files(place), tests(place))

    def mutants(self) -> list[str]:
        """The identifiers of those that are worth trying, in the order of the files: they are random themselves."""
        with sqlite3.connect(self.database) as database:
            rows = database.execute(
                "SELECT job_id, operator_name, module_path, start_pos_row FROM mutation_specs "
                "ORDER BY module_path, start_pos_row, start_pos_col, operator_name, occurrence"
            ).fetchall()
        return [
            job
            for job, operator, module, line in rows
            if module in self.modules
            and not any(word in operator for word in DULL)
            and not operator.endswith(FAR)
            and (self.copy / module).read_text(encoding="utf-8").splitlines()[line - 1].strip() not in MARKS
        ]

    def keep(self, chosen: set[str]) -> None:
        with sqlite3.connect(self.database) as database:
            for table in ("mutation_specs", "work_items"):
                jobs = database.execute(f"SELECT job_id FROM {table}").fetchall()
                database.executemany(f"DELETE FROM {table} WHERE job_id = ?", [job for job in jobs if job[0] not in chosen])

    def outcomes(self) -> list[dict[str, object]]:
        """Run what was kept."""
        cosmic_ray(self.copy, "exec", str(self.config), str(self.database))
        query = (
            "SELECT m.module_path, m.operator_name, m.start_pos_row, r.test_outcome, r.output, r.diff "
            "FROM mutation_specs m JOIN work_results r ON m.job_id = r.job_id ORDER BY m.module_path, m.start_pos_row"
        )
        with sqlite3.connect(self.database) as database:
            rows = database.execute(query).fetchall()
        return [
            {
                "module": module,
                "operator": operator.removeprefix("core/"),
                "line": line,
                "killed": "SURVIVED" not in str(outcome).upper(),
                "late": output == "timeout",
                "change": [text for text in (diff or "").splitlines() if text[:1] in "+-" and text[:3] not in ("+++", "---")],
            }
            for module, operator, line, outcome, output, diff in rows
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", default=list(TESTS), choices=list(TESTS), metavar="NAME")
    parser.add_argument("--output", default="mutation.json")
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*IGNORED))
        # The number of lines stands for that of mutants, which take minutes to list.
        shares = Counter(draw.choices(chosen.modules, [lines(place) for place in chosen.modules], k=chosen.sample))
        places = [place for place in chosen.modules if shares[place]]
        everything = every_mutant(copy, places, Path(folder))
        # Where a test fails anyhow, all mutants would seem to be killed.
        unchanged = pytest(copy, "-n", "auto", "-m", "not slow", *sorted({file for place in places for file in tests(place)}))
        if unchanged.returncode:
            raise SystemExit(f"tests fail without a change:\n{unchanged.stdout[-3000:]}")
        found: list[dict[str, object]] = []
        for place in places:
            ledger = Ledger(copy, place, everything, Path(folder))
            mutants = ledger.mutants()
            ledger.keep(set(draw.sample(mutants, min(shares[place], len(mutants)))))
            own = ledger.outcomes()
            found += own
            Path(chosen.output).write_text(json.dumps(found, indent=1))
            print(f"{place}: {sum(bool(one['killed']) for one in own)} of {len(own)} killed (of {len(mutants)})", flush=True)
            for one in own:
                if not one["killed"]:
                    change = "".join(f"\n    {line}" for line in one["change"])  # type: ignore[attr-defined]
                    print(f"  survived: {one['module']}:{one['line']} {one['operator']}{change}", flush=True)
    killed = sum(bool(one["killed"]) for one in found)
    late = sum(bool(one["late"]) for one in found)
    print(f"\n{killed} of {len(found)} killed: {100 * killed / max(len(found), 1):.0f} %; {late} of these by {TIMEOUT} seconds")


if __name__ == "__main__":
    main()
