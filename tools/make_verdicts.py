"""Judge the samplers of public libraries, and write docs/verdicts: ``make verdicts [PEERS=FOLDER]``.

``python tools/make_verdicts.py [--peers FOLDER] [--only LIBRARY ...] [--resume] [--pages]``: ``--only`` judges some libraries
anew and keeps the other rows of verdicts.json, ``--resume`` goes on where a run ended before its end, ``--pages`` writes the
pages from the rows that are there. Findings whose library is not there keep their pages. What fails is told at the end, with
exit code 1, and costs nothing but its own row, library or page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from verdicts import comfyui, deis, integrators, pages, res4lyf, schedulers, sigma_functions
from verdicts.kept import Unfinished, judge_all, rows_of, write_rows
from verdicts.peers import CHECKOUTS, PLACED, Peers
from verdicts.row import Claim

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "verdicts"
#: Where rows lie until all of their library are there.
UNFINISHED = ROOT / "build" / "verdicts"


def libraries(peers: Peers) -> dict[str, Callable[[], Iterable[Claim]]]:
    """Claims by library, of those that are there."""
    found: dict[str, Callable[[], Iterable[Claim]]] = {
        "diffusers": schedulers.claims,
        "k-diffusion": lambda: sigma_functions.claims("k-diffusion", peers),
        "ComfyUI": lambda: itertools.chain(sigma_functions.claims("ComfyUI", peers), comfyui.claims(peers)),
        "dpm-solver": lambda: integrators.dpm_solver(peers),
        "UniPC": lambda: integrators.unipc(peers),
        "azula": integrators.azula,
        "torchdiffeq": integrators.torchdiffeq,
        "deis": lambda: deis.claims(peers),
        "RES4LYF": lambda: res4lyf.claims(peers),
        "torchdyn": lambda: integrators.torchdyn(peers),
        "torchode": lambda: integrators.torchode(peers),
        "torchcfm": lambda: integrators.torchcfm(peers),
        "flow_matching": integrators.flow_matching,
        "torchsde": integrators.torchsde,
    }
    return {name: claims for name, claims in found.items() if peers.version(name)}


#: Library by which a finding's page is run.
SHOWN_BY = {
    "third_order_multistep": "diffusers", "unipc_bh1_to_zero": "diffusers", "unipc_lower_order_final": "diffusers",
    "azula_reab": "azula", "torchdyn_rk4": "torchdyn", "sa_solver_last_step": "ComfyUI", "max_order_one": "ComfyUI",
    "deis_rhoab": "ComfyUI", "comfyui_unipc_levels": "ComfyUI", "comfyui_ddpm_flow": "ComfyUI",
    "ipndm_uniform_weights": "ComfyUI", "ipndm_v_weights": "ComfyUI", "er_sde_stages": "ComfyUI",
    "unipc_vary_coeff": "UniPC", "riemannian_start": "flow_matching", "torchdiffeq_adams": "torchdiffeq",
    "torchdiffeq_extra_step": "torchdiffeq", "torchsde_srk_evaluations": "torchsde", "torchode_extra_step": "torchode",
    "deis_quadrature": "deis",
    "res4lyf_anchor": "RES4LYF", "res4lyf_order_three": "RES4LYF",
    "res4lyf_abnorsett": "RES4LYF", "res4lyf_scaled_phi": "RES4LYF", "res4lyf_slips": "RES4LYF", "res4lyf_hybrid": "RES4LYF",
}  # fmt: skip


def main() -> None:
    """Judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--pages", action="store_true")
    chosen = parser.parse_args()
    peers = Peers(chosen.peers)
    there = libraries(peers)
    wanted = {} if chosen.pages else {n: c for n, c in there.items() if chosen.only is None or n in chosen.only}
    failed = judge_libraries(wanted, peers, chosen.resume)
    failed += write_pages(peers, there)
    missing = [name for name in (*CHECKOUTS, *PLACED) if name not in there]
    if missing:
        print(f"not judged anew, since they are not there: {', '.join(missing)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def judge_libraries(wanted: dict[str, Callable[[], Iterable[Claim]]], peers: Peers, resume: bool) -> list[str]:
    """Judge libraries, one after the other, and write verdicts.json after each; returned is what failed."""
    OUT.mkdir(exist_ok=True)
    file, failed = OUT / "verdicts.json", []
    kept = json.loads(file.read_text()) if file.is_file() else {"versions": {}, "rows": []}
    versions, rows = dict(kept["versions"]), rows_of(kept["rows"])
    if not resume:
        shutil.rmtree(UNFINISHED, ignore_errors=True)
    for library, claims in wanted.items():
        began, cpu = time.time(), time.process_time()
        version = peers.version(library)
        try:
            judged, raised = judge_all(claims(), Unfinished(UNFINISHED / f"{library}.jsonl", version), resume)
        except Exception:
            traceback.print_exc()
            failed.append(library)
            continue
        failed += raised
        rows = [row for row in rows if row.origin != library] + judged
        versions[library] = version
        spent = f"{time.time() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
        print(f"{library}: {len(judged)} rows, {spent}", flush=True)
        write_rows(file, versions, rows)
    return failed


def write_pages(peers: Peers, there: Iterable[str]) -> list[str]:
    """Write the pages from verdicts.json, and run those of findings whose library is there; returned is what failed."""
    kept, failed = json.loads((OUT / "verdicts.json").read_text()), []
    versions, rows = kept["versions"], rows_of(kept["rows"])
    order = [name for name in versions if any(row.origin == name for row in rows)]
    names = {library: library.lower().replace("-", "_") for library in sorted(order, key=str.lower)}
    for library, page in names.items():
        own = [row for row in rows if row.origin == library]
        (OUT / f"{page}.md").write_text(pages.page_of_library(library, versions[library], own), encoding="utf-8")
    for name, library in SHOWN_BY.items():
        if library not in there:
            continue
        try:
            if library in (*CHECKOUTS, *PLACED):
                peers.load(library)
            (OUT / f"{name}.md").write_text(pages.finding_page(name, peers), encoding="utf-8")
        except Exception:
            traceback.print_exc()
            failed.append(f"{name}.md")
    shown = sorted(name for name in SHOWN_BY if (OUT / f"{name}.md").is_file())
    (OUT / "index.md").write_text(pages.index_page(rows, versions, names, shown), encoding="utf-8")
    return failed


if __name__ == "__main__":
    main()
