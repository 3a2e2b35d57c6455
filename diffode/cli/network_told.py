"""What ``diffode show trained:NAME`` tells of a network that ships."""

from __future__ import annotations

from typing import Any

#: What stands before the name of a network.
_PREFIX = "trained:"


def is_network(spec: str) -> bool:
    """Whether a text names a network that ships, or would if there were one of this name; a trained grid has options."""
    return spec.startswith(_PREFIX) and "=" not in spec


def network_told(spec: str) -> dict[str, Any]:
    """The facts of a network; UnknownNameError if none of this name ships."""
    from diffode.fields import trained

    field = trained(spec.removeprefix(_PREFIX))
    facts = field.facts
    kind = {"perceptron": "perceptron", "unet": "UNet", "patch_unet": "UNet on patches"}[str(facts["kind"])]
    size = f"width {facts['width']}, depth {facts['depth']}" if facts["depth"] else f"width {facts['width']}"
    return {
        "network": spec,
        "gives": "denoised points, of a noised one and its noise level",
        "trained on": facts.get("data", f"draws of target {facts['target']}"),
        "steps": f"{facts['steps']:,} of {facts['rows']} rows, by {facts['script']}",
        "kind": f"{kind}, {size}",
        "parameters": f"{sum(p.numel() for p in field.denoiser.parameters()):,}",
        "rows": "x".join(map(str, facts["shape"])),
        "scale": round(field.scale, 6),
        "compared with": f"the exact field of target {facts['target']}",
        "runs": f"diffode sample {spec}; diffode bench quick --field {spec}; diffode train universal --target {spec} --nfe 6",
        "times": [{"sigma/scale": level, "error/scale": error} for level, error in facts["errors"]],
    }
