"""Build the source archive and the wheel, install the wheel in a fresh environment, and use it there: ``make package``.

The wheel is built from the archive, so that one that lacks a file fails. Installed are the versions of constraints.txt. What is
tried, in an empty folder: pip check, the commands that answer without a run, a small suite with its report, and a run of each
kind of data that ships. Two minutes, most of them PyTorch's installation.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What the archive holds beside the package.
BESIDE = ("README.md", "LICENSE", "pyproject.toml", "constraints.txt", "Makefile", "tests/conftest.py", "docs/index.md")
SUITE = """
name = "tiny"
summary = "one target, two solvers"
[defaults]
paths = ["edm"]
grids = ["karras"]
nfe = [4, 8]
seeds = [0]
points = 16
tolerance = 1e-6
[[study]]
targets = ["ring8"]
solvers = ["ddim", "universal"]
"""
PROGRAM = """
import pathlib, diffode
assert "site-packages" in diffode.__file__, diffode.__file__
assert (pathlib.Path(diffode.__file__).parent / "py.typed").is_file()
exact, network = diffode.exact_field("ring8", "edm"), diffode.fields.trained("ring8")
x = exact.prior(8, generator=0)
for field, solver in ((exact, "universal"), (exact, "shipped_map:method=shortcut"), (network, "dpmpp:order=2")):
    print(solver, float(diffode.solve(field, x, solver=solver, nfe=4).x.std()))
"""


def run(*words: object, where: Path, quiet: bool = True) -> str:
    """Run a command, and end with what it said if it fails."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "VIRTUAL_ENV"))}
    done = subprocess.run([str(w) for w in words], cwd=where, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    if not quiet:
        print(done.stdout.strip())
    return done.stdout


def tracked() -> set[str]:
    """The files of the package that belong in a wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "diffode"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    # An archive has no repository around it.
    return set(listed) or {
        f.relative_to(ROOT).as_posix() for f in (ROOT / "diffode").rglob("*.*") if "__pycache__" not in f.parts
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python of the fresh environment")
    parser.add_argument("--keep", action="store_true", help="leave the environment, build/package/venv")
    options = parser.parse_args()
    began, place = time.monotonic(), ROOT / "build" / "package"
    shutil.rmtree(place, ignore_errors=True)
    work = place / "elsewhere"
    work.mkdir(parents=True)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", ROOT / "dist", ROOT, where=work)
    (archive,), (wheel,) = ROOT.glob("dist/*.tar.gz"), ROOT.glob("dist/*.whl")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    missing = [name for name in (*BESIDE, *tracked()) if name not in inside]
    missing += [f"{name} (wheel)" for name in tracked() - set(zipfile.ZipFile(wheel).namelist())]
    if missing:
        sys.exit(f"not packed: {', '.join(sorted(missing))}")
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in (archive, wheel))
    print(f"{sizes}; built in {time.monotonic() - began:.0f} s")
    run(options.python, "-m", "venv", place / "venv", where=work)
    fresh = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(fresh / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, where=work)
    print(f"installed after {time.monotonic() - began:.0f} s")
    run(fresh / "python", "-m", "pip", "check", where=work, quiet=False)
    (work / "tiny.toml").write_text(SUITE)
    (work / "program.py").write_text(PROGRAM)
    advice = run(fresh / "diffode", "recommend", "--schedule", "sdxl", "--steps", 8, where=work)
    print(next(line for line in advice.splitlines() if line.startswith("take ")))
    run(fresh / "diffode", "doctor", where=work)
    run(fresh / "diffode", "completion", "bash", where=work)
    run(fresh / "diffode", "bench", "tiny.toml", "--jobs", 1, where=work)
    run(fresh / "diffode", "report", "tiny.toml", "--format", "latex", where=work)
    for file in ("tiny/index.html", "tiny/figures/clouds-ring8.png", "tiny-export/ranking.tex"):
        if not (work / "diffode-report" / file).is_file():
            sys.exit(f"the installed diffode wrote no {file}")
    run(fresh / "python", "program.py", where=work, quiet=False)
    if not options.keep:
        shutil.rmtree(place)
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
