"""Speed against the alternatives, as ratios within one run: ``make speed`` or ``python benchmarks/speed.py``.

Absolute times drift from machine to machine and from hour to hour, so everything is a ratio of medians of interleaved
repetitions. Peers that are not installed (``pip install 'diffode[peers]'``) are left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from peers import azula_run, diffusers_run, installed, jax_score, textbook, torchsde_run
from torch import Tensor

import diffode
from diffode import Field, GaussianMixture, native, solvers
from diffode.solvers import kept_tables
from diffode.studies.cell_keys import processor_name

REPEATS = 15


def medians(candidates: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each candidate, their repetitions interleaved so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, found: dict[str, float], base: str, wanted: str) -> None:
    print(f"\n{title}   (wanted: {wanted})")
    for name, seconds in found.items():
        print(f"  {name:34s} {seconds * 1e3:10.3f} ms   {seconds / found[base]:7.2f} x {base}")


def minus(x: Tensor, t: float) -> Tensor:
    """The cheapest field there is."""
    return -x


def solver_overhead() -> None:
    """A hand-written loop of the same arithmetic, calling the same trivial field v = -x."""
    for batch, steps, repeats in ((1, 200, 41), (100_000, 40, 15)):
        x = torch.randn(batch, 2, dtype=torch.float64)
        field = Field.from_velocity(minus, probe=False)
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        euler = solvers.get("euler").tableau(None, grid)
        times = grid.tolist()

        def by_hand(x: Tensor = x, times: list[float] = times) -> Tensor:
            for s, t in itertools.pairwise(times):
                x = torch.add(x, minus(x, s), alpha=t - s)
            return x

        def ours(x: Tensor = x, table: diffode.Tableau = euler, field: Field = field) -> Tensor:
            return table.run(field, x)

        found = medians({"hand-written Euler": by_hand, "diffode euler": ours}, repeats)
        show(f"Euler on v = -x, B={batch}, D=2, {steps} steps", found, "hand-written Euler", "<= 1.25")

        path = diffode.paths.get("edm")
        denoiser = Field.from_denoised(minus, path, probe=False)
        table = solvers.get("dpmpp:order=2").tableau(path, "karras", steps)
        terms = [(r.states, r.evaluations) for r in table.rows[1:]]
        plan = [(*s.values(), *e.values()) for s, e in terms]

        def two_step(x: Tensor = x, plan: list[tuple[float, ...]] = plan) -> Tensor:
            previous = x
            for a, *b in plan:
                current = minus(x, 0.0)
                x = torch.mul(x, a).add_(current, alpha=b[0])
                if len(b) == 2:
                    x.add_(previous, alpha=b[1])
                previous = current
            return x

        def ours_two(x: Tensor = x, table: diffode.Tableau = table, field: Field = denoiser) -> Tensor:
            return table.run(field, x)

        found = medians({"hand-written DPM++ 2M": two_step, "diffode dpmpp:order=2": ours_two}, repeats)
        show(f"DPM-Solver++ 2M on D = -x, B={batch}, D=2, {steps} steps", found, "hand-written DPM++ 2M", "<= 1.25")

        noisy = solvers.get("ddpm").tableau(path, "karras", steps)
        guided = Field.from_noise(minus, path, probe=False)
        noise = torch.randn(noisy.draws, batch, 2, dtype=torch.float64)
        rows = [(*r.states.values(), *r.evaluations.values(), *r.draws.values()) for r in noisy.rows[1:]]

        def ancestral(x: Tensor = x, rows: list[tuple[float, ...]] = rows, noise: Tensor = noise) -> Tensor:
            for k, (a, b, *c) in enumerate(rows):
                current = minus(x, 0.0)
                x = torch.mul(x, a).add_(current, alpha=b)
                if c:
                    x.add_(noise[k], alpha=c[0])
            return x

        def ours_noisy(x: Tensor = x, table: diffode.Tableau = noisy, field: Field = guided, noise: Tensor = noise) -> Tensor:
            return table.run(field, x, noise=noise)

        found = medians({"hand-written DDPM": ancestral, "diffode ddpm": ours_noisy}, repeats)
        show(f"DDPM on eps = -x with given noise, B={batch}, D=2, {steps} steps", found, "hand-written DDPM", "<= 1.25")


def whole_solves() -> None:
    """``solve`` with all its checks: the first run of a solver writes its table, later ones find it kept."""
    path, steps = diffode.paths.get("edm"), 100
    field = Field.from_denoised(minus, path, probe=False)
    for batch, repeats in ((1, 101), (100_000, 7)):
        x = 80 * torch.randn(batch, 2, dtype=torch.float64)
        for spec in ("dpmpp:order=2", "ddpm"):
            table = solvers.get(spec).tableau(path, "karras", steps)
            noise = torch.randn(table.draws, batch, 2, dtype=torch.float64) if table.draws else None
            rows = [(r.states, r.evaluations, r.draws) for r in table.rows[1:]]

            def by_hand(x: Tensor = x, rows: list[Any] = rows, noise: Tensor | None = noise) -> Tensor:
                """The same sums, with the answers and noise that they name."""
                previous = current = x
                for (a,), b, c in ((tuple(s.values()), tuple(e.values()), tuple(d.values())) for s, e, d in rows):
                    previous, current = current, minus(x, 0.0)
                    x = torch.mul(x, a).add_(current, alpha=b[0])
                    if len(b) == 2:
                        x.add_(previous, alpha=b[1])
                    if c and noise is not None:
                        x.add_(noise[0], alpha=c[0])
                return x

            def again(x: Tensor = x, spec: str = spec, noise: Tensor | None = noise) -> Tensor:
                return diffode.solve(field, x, solver=spec, grid="karras", steps=steps, noise=noise).x

            def first(again: Callable[[], Tensor] = again) -> Tensor:
                kept_tables.forget()
                return again()

            found = medians({"by hand": by_hand, "solve": again, "solve, nothing kept": first}, repeats)
            wanted = "<= 12 us a step, nothing kept <= 25" if batch == 1 else "<= 1.1"
            show(f"solve({spec}), B={batch}, {steps} steps", found, "by hand", wanted)
            print("  us a step: " + ", ".join(f"{name} {seconds / steps * 1e6:.1f}" for name, seconds in found.items()))


def streams() -> None:
    """Samples of a ring in constant memory."""
    field = diffode.exact_field("ring8", "edm")
    for solver in ("dpmpp:order=2", "ddpm"):
        for n in (200_000, 2_000_000):
            began = time.process_time()
            count = sum(len(chunk) for chunk in diffode.stream(field, n, solver=solver, nfe=10))
            seconds = time.process_time() - began
            print(
                f"\nstream({solver}), {count:,} points, NFE 10: {seconds:.2f} s of CPU, {seconds / n * 1e7:.2f} s for 1e7 "
                f"(wanted: <= 2); {_megabytes():.0f} MB resident at most so far, with all libraries (wanted: <= 300)"
            )


def _megabytes() -> float:
    """The largest resident memory of this process so far, in megabytes."""
    with contextlib.suppress(ImportError):
        resource = importlib.import_module("resource")
        # Linux counts in kilobytes, macOS in bytes.
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / (1e6 if sys.platform == "darwin" else 1e3)
    return float("nan")


def training() -> None:
    """A table for a ring, to the end of its training, and what begins from tables, with kernels and without."""
    began = time.process_time()
    trained = diffode.learned.train_table("ring8", 6)
    print(
        f"\ntrain_table('ring8', nfe=6): {time.process_time() - began:.1f} s of CPU, held-out error {trained.errors.after:.2e} "
        f"(of the published sampler it began from: {trained.errors.before:.2e}; wanted: 1.05e-03)"
    )
    table = diffode.learned.train_table("ring8", 4, points=192, steps=5)
    for title, target, train in (
        ("tune_universal('spiral', nfe=8)", "spiral", lambda field: diffode.learned.tune_universal(field, 8)),
        ("condition(a table of 4 evaluations, 'ring8')", "ring8", lambda field: diffode.learned.condition(table, field)),
    ):
        fields = {"kernels": diffode.exact_field(target, "edm"), "torch": by_torch(target)}
        taken: dict[str, list[float]] = {name: [] for name in fields}
        for name, field in [*fields.items()] * 3:
            began = time.process_time()
            train(field)
            taken[name].append(time.process_time() - began)
        least = {name: min(seconds) for name, seconds in taken.items()}
        share = least["kernels"] / least["torch"]
        print(
            f"\n{title}: {least['kernels']:.2f} s of CPU, {least['torch']:.2f} s without kernels: {share:.2f} "
            "(wanted: half of what it took before there were kernels)"
        )


def commands() -> None:
    """The wall time of commands that tell something, the first time and again."""
    with tempfile.TemporaryDirectory() as cache:
        for words in (["list"], ["show", "dpmpp"], ["show", "spiral"]):
            times = []
            for _ in range(3):
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "diffode", *words], check=True, capture_output=True,
                    env={**os.environ, "DIFFODE_CACHE": cache},
                )  # fmt: skip
                times.append(time.perf_counter() - began)
            print(f"\ndiffode {' '.join(words)}: {times[0]:.2f} s, then {min(times[1:]):.2f} s (wanted: <= 0.5)")


def exact_field() -> None:
    count, dim, batch = 8, 2, 100_000
    means = 3 * torch.randn(count, dim, dtype=torch.float64)
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    mixture = GaussianMixture(weights, means, torch.full((count,), 0.25))
    x = 3 * torch.randn(batch, dim, dtype=torch.float64)
    field = diffode.exact_field(mixture, "edm")
    candidates: dict[str, Callable[[], object]] = {
        "textbook matrix form": lambda: textbook(x, means, weights.log(), 0.5),
        "diffode": lambda: field.score(x, 0.5),
    }
    if installed("jax"):
        candidates["JAX under jit"] = jax_score(x, means, weights)
    show(f"Score, K={count}, D={dim}, B={batch}, float64", medians(candidates), "diffode", "textbook >= 6, JAX >= 1")
    for count, dim, batch in ((1797, 64, 2048), (10_000, 784, 256)):
        means, x = torch.randn(count, dim), torch.randn(batch, dim)
        mixture = GaussianMixture(torch.full((count,), 1 / count, dtype=torch.float64), means, torch.ones(count))
        field = diffode.exact_field(mixture, "edm")
        logits, result = torch.empty(batch, count), torch.empty(batch, dim)

        def limit(x: Tensor = x, means: Tensor = means, logits: Tensor = logits, result: Tensor = result) -> None:
            torch.mm(x, means.T, out=logits)
            torch.mm(logits, means, out=result)

        def ours(x: Tensor = x, field: diffode.ExactField = field) -> Tensor:
            return field.score(x, 0.5)

        found = medians({"two matrix products alone": limit, "diffode": ours})
        share = found["two matrix products alone"] / found["diffode"]
        show(f"Score, K={count}, D={dim}, B={batch}, float32", found, "two matrix products alone", "share of the limit >= 0.75")
        print(f"  share of the limit: {share:.2f}")


def by_torch(name: str) -> diffode.ExactField:
    """The field of a target without compiled kernels."""
    mixture = copy.copy(diffode.targets.get(name))
    # A mixture that finds no kernels for itself is evaluated by torch.
    mixture.__dict__["_compiled"] = None
    return diffode.exact_field(mixture, "edm")


#: Fields that compiled kernels compute: target, rows, and whether every row has a time of its own, with the factor wanted.
COMPILED = (
    ("ring8", 100_000, False, 3), ("spiral", 100_000, False, 4), ("ring8", 128, False, 4), ("gmm40", 128, False, 8),
    ("spiral", 128, False, 12), ("pinwheel", 128, False, 6), ("gmm40", 100_000, True, 8), ("ring8", 1, False, 1),
    ("digits-gmm10", 10_000, False, 2), ("digits-gmm10", 128, False, 2),
)  # fmt: skip


def compiled_fields() -> None:
    """The kernels against the torch code that they stand in for, in one process and on one thread."""
    if not native.is_on():
        print("\nCompiled kernels are off (DIFFODE_NATIVE=0, or no Numba)")
        return
    for name, batch, own, wanted in COMPILED:
        field, plain = diffode.exact_field(name, "edm"), by_torch(name)
        x = field.marginal(batch, 1.0, generator=0)
        t = torch.linspace(0.5, 1.5, batch, dtype=torch.float64) if own else 1.0
        repeats = REPEATS if batch > 1000 else 400
        found = medians(
            {
                "torch": lambda plain=plain, x=x, t=t: plain.velocity(x, t),  # type: ignore[misc]
                "kernels": lambda field=field, x=x, t=t: field.velocity(x, t),  # type: ignore[misc]
            },
            repeats,
        )
        times = ", times of their own" if own else ""
        show(f"Velocity of {name}, B={batch}{times}", found, "kernels", f"torch >= {wanted}")


def end_to_end() -> None:
    """DPM-Solver++ 2M (or what the library has of its cost) over 1e5 points of a ring, 20 evaluations."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    means = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    log_weights = torch.full((8,), 1 / 8, dtype=torch.float64).log()
    field = diffode.exact_field(GaussianMixture([1 / 8] * 8, means, [0.09] * 8), "edm")
    z = torch.randn(100_000, 2, dtype=torch.float64)
    grid = diffode.grids.get("karras", field.path, 20)

    def denoised(x: Tensor, sigma: float) -> Tensor:
        return x + sigma**2 * textbook(x, means, log_weights, 0.09 + sigma**2)

    def ours() -> Tensor:
        return diffode.solve(field, 80 * z, solver="dpmpp:order=2", grid=grid).x

    candidates: dict[str, Callable[[], object]] = {"diffode": ours}
    same = Field.from_denoised(denoised, field.path, probe=False)
    candidates["diffode, textbook field"] = lambda: diffode.solve(same, 80 * z, solver="dpmpp:order=2", grid=grid).x
    if installed("torchdiffeq"):
        odeint = importlib.import_module("torchdiffeq").odeint

        def slope(t: Tensor, x: Tensor) -> Tensor:
            return (x - denoised(x, float(t))) / t

        candidates["torchdiffeq euler"] = lambda: odeint(slope, 80 * z, grid, method="euler")
    if installed("diffusers"):
        candidates["diffusers DPM++ 2M"] = diffusers_run(z, denoised)
    if installed("torchsde"):
        candidates["torchsde euler"] = torchsde_run(z, denoised, grid)
    if installed("azula"):
        candidates["azula xEAB, order 2"] = azula_run(z, denoised)
    show("DPM-Solver++ 2M, 1e5 points of a ring, NFE 20", medians(candidates, 5), "diffode", "every other > 1")


def adaptive() -> None:
    """A step for every row against one for the whole batch, both dopri5 in log-SNR, at the same accuracy."""
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(10_000, generator=0)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-11).x

    def error(spec: str) -> float:
        return float((diffode.solve(field, x, solver=spec).x - exact).norm(dim=1).mean())

    ours = "rk_adaptive:rtol=1e-5,atol=1e-5"
    wanted = error(ours)
    specs = [f"torchdiffeq:dopri5,variable=log_snr,rtol=1e-{k},atol=1e-{k}" for k in range(3, 9)]
    theirs = next((spec for spec in specs if error(spec) <= wanted), specs[-1])
    candidates: dict[str, Callable[[], object]] = {
        "rk_adaptive": lambda: diffode.solve(field, x, solver=ours),
        "torchdiffeq dopri5": lambda: diffode.solve(field, x, solver=theirs),
    }
    print(f"\nmean errors: {wanted:.1e} and {error(theirs):.1e} ({theirs})")
    show("Adaptive, 1e4 points of a ring, the same accuracy", medians(candidates, 7), "torchdiffeq dopri5", "<= 1.5")


def main() -> None:
    torch.manual_seed(0)
    threads = int(os.environ.get("DIFFODE_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    print(f"{processor_name()}, {os.cpu_count()} cores, {threads} thread(s); {platform.platform()}; torch {torch.__version__}")
    for name in ("jax", "torchdiffeq", "torchsde", "diffusers", "azula"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            print(f"{name} {importlib.metadata.version(name)}", end="  ")
    print()
    torch.set_num_threads(1)
    # The C library gives freed blocks back to the system, page by page, until it has seen a large one go: then no run pays for
    # the pages of another.
    large = torch.empty(31 * 2**17, dtype=torch.float64)
    del large
    solver_overhead()
    whole_solves()
    compiled_fields()
    streams()
    training()
    commands()
    torch.set_num_threads(threads)
    exact_field()
    end_to_end()
    adaptive()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
