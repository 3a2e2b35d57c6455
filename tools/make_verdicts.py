"""Judge the samplers of public libraries, and write docs/verdicts: ``make verdicts [PEERS=FOLDER]``.

``python tools/make_verdicts.py [--peers FOLDER] [--only LIBRARY ...] [--pages]``: ``--only`` judges some libraries anew and
keeps the other rows of verdicts.json, ``--pages`` writes the pages from the rows that are there. Findings whose library is not
there keep their pages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from verdicts import comfyui, deis, integrators, pages, res4lyf, schedulers, sigma_functions
from verdicts.peers import CHECKOUTS, PLACED, Peers
from verdicts.row import Claim, Row, judge

OUT = Path(__file__).parent.parent / "docs" / "verdicts"


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
    "res4lyf_anchor": "RES4LYF", "res4lyf_order_three": "RES4LYF",
    "res4lyf_abnorsett": "RES4LYF", "res4lyf_scaled_phi": "RES4LYF", "res4lyf_slips": "RES4LYF", "res4lyf_hybrid": "RES4LYF",
}  # fmt: skip


def rows_of(kept: list[dict[str, Any]]) -> list[Row]:
    """Rows from JSON."""
    lists = ("wrong", "interval", "steps", "errors")
    return [Row(**{key: tuple(v) if key in lists and v is not None else v for key, v in row.items()}) for row in kept]


def main() -> None:
    """Judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--pages", action="store_true")
    chosen = parser.parse_args()
    peers = Peers(chosen.peers)
    there = libraries(peers)
    OUT.mkdir(exist_ok=True)
    file = OUT / "verdicts.json"
    kept = json.loads(file.read_text()) if file.is_file() else {"versions": {}, "rows": []}
    versions, rows = dict(kept["versions"]), rows_of(kept["rows"])
    for library, claims in there.items():
        if chosen.pages or (chosen.only is not None and library not in chosen.only):
            continue
        began = time.time()
        judged = [judge(claim) for claim in claims()]
        rows = [row for row in rows if row.origin != library] + judged
        versions[library] = peers.version(library)
        print(f"{library}: {len(judged)} rows, {time.time() - began:.0f} s", flush=True)
        write_rows(file, versions, rows)
    order = [name for name in versions if any(row.origin == name for row in rows)]
    names = {library: library.lower().replace("-", "_") for library in sorted(order, key=str.lower)}
    for library, page in names.items():
        own = [row for row in rows if row.origin == library]
        (OUT / f"{page}.md").write_text(pages.page_of_library(library, versions[library], own), encoding="utf-8")
    for name, library in SHOWN_BY.items():
        if library in there:
            if library in (*CHECKOUTS, *PLACED):
                peers.load(library)
            (OUT / f"{name}.md").write_text(pages.finding_page(name, peers), encoding="utf-8")
    shown = sorted(name for name in SHOWN_BY if (OUT / f"{name}.md").is_file())
    (OUT / "index.md").write_text(pages.index_page(rows, versions, names, shown), encoding="utf-8")
    missing = [name for name in (*CHECKOUTS, *PLACED) if name not in there]
    if missing:
        print(f"not judged anew, since they are not there: {', '.join(missing)}")


def write_rows(file: Path, versions: dict[str, str], rows: list[Row]) -> None:
    """The rows as JSON, one a line."""
    lines = ",\n".join(json.dumps(row.json()) for row in rows)
    file.write_text(f'{{"versions": {json.dumps(versions)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
