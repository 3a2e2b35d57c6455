"""Trained networks instead of exact fields: the solver's error and the model's error, told apart.

Run it with ``python examples/learned_fields.py``. The networks ship with diffode (tools/train_networks.py made them).
"""

import diffode
from diffode.fields import trained, trained_names


def main() -> None:
    print("networks:", ", ".join(trained_names()))
    field = trained("spiral")
    exact, path = diffode.exact_field("spiral", field.path), field.path
    for level, error in field.facts["errors"][4:8]:
        print(f"denoised points at noise {level:6.3f} of the scale: {error:.1e} from the exact ones")
    x = path.prior((300, 2), generator=0)
    own = diffode.reference(field, x, path.t_max, path.t_min, 1e-7).x
    true = diffode.reference(exact, x, path.t_max, path.t_min, 1e-7).x
    print(f"model's error: {float((own - true).norm(dim=1).mean()) / field.scale:.1e}")
    for solver in ("ddim", "dpmpp:order=2", "ipndm:order=3", "universal"):
        end = diffode.solve(field, x, solver=solver, nfe=8).x
        apart = [float((end - other).norm(dim=1).mean()) / field.scale for other in (own, true)]
        print(f"{solver:14s} NFE 8: solver's error {apart[0]:.1e}, together {apart[1]:.1e}")


if __name__ == "__main__":
    main()
