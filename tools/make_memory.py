"""Write docs/memory.md and its pictures: measures, holds and signals, with every error known exactly: ``make memory``.

The page's text is tools/memory_page.md, its numbers come from runs; a minute or two on one core.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from diffode import hippo, plot
from diffode.errors import DiffodeError
from diffode.hippo import study
from diffode.numerics.orders import fit_order

OUT = Path(__file__).parent.parent / "docs"
SIGNALS = ("sine", "white", "step", "mackey_glass", "ecg")
HOLDS = ("euler", "backward", "bilinear_held", "hippo_code", "scipy_foh", "trapezoid", "zoh", "foh", "cubic", "poly:degree=5")
STEPS = (256, 1024, 4096)
ORDERS = (16, 32, 64, 128, 256, 512)
WINDOW = 0.25
WINDOWED = (f"legt:window={WINDOW}", f"fout:window={WINDOW}", "lagt", "legs")
LAGT_SCALES = (0.001, 0.002, 0.004, 0.008)


def number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def smooth(t: np.ndarray) -> np.ndarray:
    return np.cos(3 * t) + np.exp(-t) / 2


def measured_order(spec: str, hold: str, signal: Callable[[np.ndarray], np.ndarray] = smooth) -> tuple[str, list[float]]:
    """The order of a hold on a smooth signal, and its errors at 50, 100, ..., 800 steps; exact memories to begin with."""
    memory, steps = hippo.get(spec, 8), (50, 100, 200, 400, 800)
    first, last = (1.0, 2.0) if spec == "legs" else (0.0, 2.0)
    exact = memory.solution(signal, last)
    start = memory.solution(signal, first) if first else None
    errors = []
    for count in steps:
        times = np.linspace(first, last, count + 1)
        try:
            errors.append(float(np.linalg.norm(memory.run(signal(times), times, hold, start=start) - exact)))
        except DiffodeError:
            return "-", []
    return f"{fit_order(steps[1:], errors[1:], 3e-14).slope:.2f}", errors


def orders() -> str:
    rows = []
    for hold in HOLDS[:-1]:
        of_legt, errors = measured_order("legt", hold)
        of_legs, _ = measured_order("legs", hold)
        of_lagt, _ = measured_order("lagt:scale=0.5", hold)
        claimed = str(hippo.hold_of(hold).order)
        rows.append([f"`{hold}`", claimed, of_legt, of_lagt, of_legs, *(number(e) for e in (errors[0], errors[2], errors[4]))])
    return table(["hold", "order", "legt", "lagt", "legs", "K = 50", "K = 200", "K = 800"], rows)


def from_the_beginning(order: int) -> str:
    """Coefficient errors of legs, begun at time 0, by hold and signal."""
    memory, rows = hippo.get("legs", order), []
    for name in SIGNALS:
        signal = hippo.signals.get(name)
        exact = memory.solution(signal, 1.0, breaks=signal.breaks, tolerance=1e-10)
        size = float(np.sqrt(np.mean(signal(np.linspace(0, 1, 20_001)) ** 2)))
        row = [name]
        for hold in (h for h in HOLDS if h != "scipy_foh"):
            found = []
            for steps in STEPS:
                times = np.linspace(0, 1, steps + 1)
                found.append(number(float(np.linalg.norm(memory.run(signal(times), times, hold) - exact)) / size))
            row.append(" ".join(found))
        rows.append(row)
    return table(["signal", *(f"`{h}`" for h in HOLDS if h != "scipy_foh")], rows)


def floors() -> str:
    rows = []
    for name in SIGNALS:
        signal, row = hippo.signals.get(name), [name]
        for order in ORDERS:
            memory = hippo.get("legs", order)
            c = memory.project(signal, 1.0, breaks=signal.breaks, tolerance=1e-9)
            at = np.linspace(0, 1, 20_001)[1:]
            gap = memory.reconstruct(c, at, 1.0) - signal(at)
            row.append(number(float(np.sqrt(np.mean(gap**2) / np.mean(signal(at) ** 2)))))
        rows.append(row)
    return table(["signal", *(f"N = {order}" for order in ORDERS)], rows)


def parts(order: int, samples: int, hold: str) -> str:
    """The error over the last window in its parts, by measure and signal."""
    rows = []
    for name, spec in itertools.product(SIGNALS, WINDOWED):
        signal, label = hippo.signals.get(name), spec
        own = order - 1 if spec.startswith("fout") else order
        if spec == "lagt":
            tried = [
                (study.of_known(hippo.get("lagt", own, scale=s), signal, samples, hold, span=WINDOW).errors, s)
                for s in LAGT_SCALES
            ]
            errors, scale = min(tried, key=lambda pair: pair[0].total)
            label = f"lagt:scale={scale}"
        else:
            errors = study.of_known(hippo.get(spec, own), signal, samples, hold, span=WINDOW).errors
        values = (errors.total, errors.projection, errors.closure, errors.discretisation)
        rows.append([name, f"`{label}`", *map(number, values)])
    return table(["signal", "measure", "error", "projection", "closure", "discretisation"], rows)


def fourier() -> str:
    """The Fourier window with the published gain, and with twice that: the distance of its answer from the projection."""
    rows = []
    for label, rate in (("sin 3t", 3j), ("e^-t", -1.0), ("sin 6 pi t (periodic)", 6j * np.pi)):
        row = [label]
        for turns in (8, 32):
            memory = hippo.get("fout", 2 * turns + 1)
            normal, factor = memory.measure.normal_form(memory.order)
            for gain in (0.5, 1.0):
                a = normal - gain * factor @ factor.T
                answer = np.linalg.solve(rate * np.eye(memory.order) - a, gain * memory.B)
                row.append(number(float(np.linalg.norm(answer - memory.exponential(complex(rate), 0.0)))))
        rows.append(row)
    header = ["signal", "published, 8 turns", "`fout`, 8 turns", "published, 32 turns", "`fout`, 32 turns"]
    return table(header, rows)


def spectra() -> str:
    rows = []
    for spec, order in (("legs", 8), ("legs", 16), ("legs", 32), ("legt", 8), ("legt", 16), ("legt", 64), ("lagt", 8),
                        ("fout", 17), ("fout", 65), ("fout", 257)):  # fmt: skip
        found = hippo.get(spec, order).spectrum()
        condition = f"{found.condition:.1e}" if np.isfinite(found.condition) else "> 1e15"
        rows.append([f"`{spec}`", str(order), f"{found.abscissa:.2f}", f"{np.abs(found.eigenvalues).max():.1f}", condition])
    return table(["measure", "N", "largest real part", "radius", "condition of eigenvectors"], rows)


def delays() -> str:
    """The frequency, over the order, at which the delay of legt first errs by so much."""
    rows = []
    for order in (8, 32, 64, 256):
        w = order * np.linspace(0.2, 2.2, 1001)
        edge = (-1.0) ** np.arange(order) * np.sqrt(2 * np.arange(order) + 1)
        error = np.abs(hippo.get("legt", order).transfer(1j * w) @ edge - np.exp(-1j * w))
        rows.append([str(order), *(f"{w[np.argmax(error > size)] / order:.2f}" for size in (1e-6, 1e-3, 0.1))])
    return table(["N", "1e-6", "1e-3", "0.1"], rows)


def everything() -> list[str]:
    """Every measure, order, signal, hold and number of steps, with the error over the last window in its parts, as CSV."""
    lines = ["measure,order,signal,hold,steps,error,projection,closure,discretisation"]
    for spec, order, name in itertools.product(("legs", f"legt:window={WINDOW}", f"fout:window={WINDOW}", "lagt:scale=0.004"),
                                               (17, 65, 129), SIGNALS):  # fmt: skip
        memory, signal = hippo.get(spec, order), hippo.signals.get(name)
        for hold, steps in itertools.product(HOLDS, STEPS):
            try:
                errors = study.of_known(memory, signal, steps, hold, span=WINDOW).errors
            except DiffodeError:
                # scipy_foh has no form for legs, and Euler's rule overflows where steps are long.
                continue
            values = (errors.total, errors.projection, errors.closure, errors.discretisation)
            lines.append(",".join([spec, str(order), name, hold, str(steps), *(f"{value:.3e}" for value in values)]))
    return lines


def picture_of_memories() -> None:
    lines = []
    for name, spec in (("legs", "legs"), ("legt", "legt:window=0.25"), ("fout", "fout:window=0.25")):
        for order in (17, 33, 65, 129):
            found = study.of_known(hippo.get(spec, order), hippo.signals.get("mackey_glass"), 4096, "cubic")
            lines.append((name, order, found))
    title = "Mackey-Glass, 4096 steps, cubic hold; legt and fout hold the last quarter"
    plot.save(plot.memories(lines, title), OUT / "memory.png", dpi=110)


def picture_of_orders() -> None:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for panel, spec in zip(panels, ("legt", "legs"), strict=True):
        for i, hold in enumerate(HOLDS[:-1]):
            _, errors = measured_order(spec, hold)
            if errors:
                public = hold in ("bilinear_held", "hippo_code", "scipy_foh")
                style = {"color": f"C{i}", "zorder": 3 if public else 2, "ls": (0, (4, 4)) if public else "-"}
                panel.loglog((50, 100, 200, 400, 800), errors, marker="o", ms=3, lw=1.2, label=hold, **style)
        panel.set(title=f"{spec}, N = 8, a smooth signal", xlabel="steps")
        panel.set_xticks((50, 100, 200, 400, 800), ("50", "100", "200", "400", "800"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error of the coefficients")
    panels[0].legend(fontsize=7, frameon=False)
    figure.suptitle("Orders of holds; dashed: the rules of public code")
    plot.save(figure, OUT / "memory_orders.png", dpi=110)


def write_page() -> None:
    picture_of_memories()
    picture_of_orders()
    text = (Path(__file__).parent / "memory_page.md").read_text(encoding="utf-8")
    for key, make in (("spectra", spectra), ("delays", delays), ("fourier", fourier), ("orders", orders), ("floors", floors),
                      ("beginning", lambda: from_the_beginning(64)), ("parts", lambda: parts(64, 16384, "foh"))):  # fmt: skip
        text = text.replace(f"{{{key}}}", make())
        print(key, "is done", flush=True)
    (OUT / "memory.md").write_text(text, encoding="utf-8")


def main() -> None:
    write_page()
    (OUT / "memory_errors.csv").write_text("\n".join(everything()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
