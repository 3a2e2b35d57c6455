"""Mutation testing: are the tests able to fail?

``python tools/mutate.py [--sample N] [--seed S] [--modules NAME ...] [--output FILE]``. cosmic-ray (``pip install cosmic-ray``)
changes one operator, number or keyword of the numerical core at a time, in a copy of the repository; the tests that are there
for the module are run, and have to fail. Of all mutants of a module a random sample is tried, in proportion to the module's
size. Printed are the share killed, and every survivor with its line.
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
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMON = "tests/test_properties.py"
#: Modules of the numerical core, and the tests that are there for each.
TESTS = {
    "numerics": "tests/test_numerics.py tests/test_charts.py tests/test_references.py tests/test_conformance.py",
    "paths": "tests/test_paths.py tests/test_path_laws.py tests/test_grids.py tests/test_given_paths.py",
    "charts.py": "tests/test_charts.py tests/test_conformance.py tests/test_stochastic.py tests/test_solvers.py",
    "flows": "tests/test_flows.py tests/test_references.py tests/test_reference_errors.py",
    "tableau/table.py": "tests/test_tableau.py tests/test_solvers.py tests/test_conformance.py tests/test_stochastic.py",
    "tableau/program.py": "tests/test_tableau.py tests/test_solvers.py tests/test_conformance.py tests/test_stochastic.py",
    "tableau/writer.py": "tests/test_tableau.py tests/test_solvers.py tests/test_conformance.py tests/test_stochastic.py",
    "tableau/propagation.py": "tests/test_tableau.py tests/test_verify.py",
    "targets": "tests/test_mixture.py tests/test_exact_fields.py tests/test_target_laws.py",
    "fields": "tests/test_fields.py tests/test_adaptive.py tests/test_own_field.py tests/test_counting.py "
    "tests/test_networks.py tests/test_adapters_in.py tests/test_conditional.py tests/test_exact_fields.py",
    "solvers/adams.py": "tests/test_conformance.py tests/test_solvers.py",
    "solvers/dpm.py": "tests/test_conformance.py tests/test_solvers.py",
    "solvers/dpm_multistep.py": "tests/test_conformance.py tests/test_solvers.py",
    "solvers/unipc.py": "tests/test_conformance.py tests/test_solvers.py",
    "solvers/runge_kutta.py": "tests/test_conformance.py tests/test_solvers.py",
    "solvers/ancestral.py": "tests/test_conformance.py tests/test_stochastic.py",
    "solvers/exponential_sde.py": "tests/test_conformance.py tests/test_stochastic.py tests/test_verify.py",
    "solvers/er_sde.py": "tests/test_stochastic.py tests/test_verify.py",
    "solvers/euler_maruyama.py": "tests/test_stochastic.py tests/test_verify.py",
    "solvers/amed.py": "tests/test_conformance.py tests/test_amed.py",
    "solvers/solver.py": "tests/test_solvers.py",
    "solvers/run.py": "tests/test_solvers.py tests/test_tableau.py tests/test_stochastic.py",
    "tableau/stages.py": "tests/test_common_form.py tests/test_learned.py tests/test_codebook.py",
}  # fmt: skip
#: Mutations of annotations, and of operators into ones no programmer would mistake for them, say little.
DULL = ("_BitOr", "_BitAnd", "_BitXor", "_RShift", "_LShift", "_FloorDiv", "_Mod", "_Pow")
TIMEOUT = 300


def mutants(copy: Path, module: str, work: Path) -> Path:
    """cosmic-ray's ledger with all mutants of a module; the path of its database."""
    ledger, config = work / "ledger.sqlite", work / "config.toml"
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {COMMON} {TESTS[module]}"
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "diffode/{module}"\ntimeout = {TIMEOUT}\nexcluded-modules = []\n'
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    ledger.unlink(missing_ok=True)
    cosmic_ray(copy, "init", str(config), str(ledger))
    return ledger


def cosmic_ray(copy: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "cosmic_ray.cli", *arguments]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return done.stdout


def keep(ledger: Path, count: int, draw: random.Random) -> int:
    """Leave a sample of the mutants that are worth trying; returns how many there were."""
    with sqlite3.connect(ledger) as database:
        rows = database.execute("SELECT job_id, operator_name FROM mutation_specs ORDER BY job_id").fetchall()
        worth = sorted(job for job, operator in rows if not any(word in operator for word in DULL))
        # The identifiers are random: the order of the file decides, so that a seed gives the same mutants.
        places = database.execute(
            "SELECT job_id FROM mutation_specs ORDER BY module_path, start_pos_row, start_pos_col, operator_name, occurrence"
        ).fetchall()
        ordered = [job for (job,) in places if job in set(worth)]
        kept = set(draw.sample(ordered, min(count, len(ordered))))
        for table in ("mutation_specs", "work_items"):
            database.executemany(f"DELETE FROM {table} WHERE job_id = ?", [(job,) for job, _ in rows if job not in kept])
    return len(ordered)


def outcomes(ledger: Path) -> list[dict[str, object]]:
    query = (
        "SELECT m.module_path, m.operator_name, m.start_pos_row, m.occurrence, r.test_outcome, r.diff FROM mutation_specs m "
        "JOIN work_results r ON m.job_id = r.job_id"
    )
    with sqlite3.connect(ledger) as database:
        rows = database.execute(query).fetchall()
    return [
        {
            "module": module,
            "operator": operator.removeprefix("core/"),
            "line": line,
            "killed": "SURVIVED" not in str(outcome).upper(),
            "change": [text for text in (diff or "").splitlines() if text[:1] in "+-" and text[:3] not in ("+++", "---")],
        }
        for module, operator, line, _, outcome, diff in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", default=list(TESTS))
    parser.add_argument("--output", default="mutation.json")
    chosen = parser.parse_args()
    draw, found = random.Random(chosen.seed), []
    sizes = {m: sum(len(f.read_text().splitlines()) for f in files(m)) for m in chosen.modules}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        wanted = shutil.ignore_patterns(
            ".git", ".venv", "__pycache__", "diffode-report", ".hypothesis", ".mypy_cache", ".ruff_cache"
        )
        shutil.copytree(ROOT, copy, ignore=wanted)
        for module in chosen.modules:
            ledger = mutants(copy, module, Path(folder))
            share = max(2, round(chosen.sample * sizes[module] / sum(sizes.values())))
            total = keep(ledger, share, draw)
            cosmic_ray(copy, "exec", str(Path(folder) / "config.toml"), str(ledger))
            own = outcomes(ledger)
            found += own
            Path(chosen.output).write_text(json.dumps(found, indent=1))
            killed = sum(bool(one["killed"]) for one in own)
            print(f"{module}: {killed} of {len(own)} killed (of {total} mutants)", flush=True)
            for one in own:
                if not one["killed"]:
                    print(
                        f"  survived: {one['module']}:{one['line']} {one['operator']}", *one["change"], sep="\n    ", flush=True
                    )  # type: ignore[misc]
    killed = sum(bool(one["killed"]) for one in found)
    print(f"\n{killed} of {len(found)} killed: {100 * killed / max(len(found), 1):.0f} %")


def files(module: str) -> list[Path]:
    place = ROOT / "diffode" / module
    return sorted(place.glob("*.py")) if place.is_dir() else [place]


if __name__ == "__main__":
    main()
