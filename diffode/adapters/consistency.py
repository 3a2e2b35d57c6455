"""Consistency models of other libraries as flow maps: EDM's and TrigFlow's forms, and those of diffusers' schedulers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffode.adapters.adapted_map import AdaptedMap
from diffode.adapters.diffusers_network import clipped, thresholded
from diffode.adapters.map_convention import Jump
from diffode.errors import ArgumentError
from diffode.fields import Field, columns
from diffode.fields.model import Model
from diffode.paths import EDM, FunctionPath, Path, Tabulated
from diffode.specs import parse_spec

#: Schedulers of diffusers whose networks jump, by the form of these.
SCHEDULERS = {
    "CMStochasticIterativeScheduler": "edm",
    "SCMScheduler": "trigflow",
    "LCMScheduler": "latent",
    "TCDScheduler": "trajectory",
}
#: Labels of a noise level in EDM's form. diffusers and its authors' code give a network ``timesteps``.
_EDM_LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "timesteps": lambda sigma: 250 * (sigma + 1e-44).log(),
    "log": lambda sigma: sigma.log() / 4,
    "sigma": lambda sigma: sigma,
}
#: Standard deviation of the data in latent consistency models (Luo et al., arXiv 2310.04378), which no configuration changes.
_LATENT_UNIT = 0.5
#: Prediction types of latent consistency models.
TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Parts:
    """A form of consistency models.

    Attributes:
        own: the path of the model, from end to end.
        jump: its jumps.
        readings: its jumps under other conventions, by the fix.
        fixed_end: whether it goes to the path's cleanest time only.
        lay: the times that its sampler lays for a number of jumps.
    """

    own: Path
    jump: Jump
    readings: dict[str, Jump] = field(default_factory=dict)
    fixed_end: bool = True
    lay: Callable[[int], list[float]] | None = None


def from_consistency(
    model: Callable[..., Any],
    parametrisation: Any,
    *,
    labels: str | None = None,
    on: Path | str | None = None,
    shape: Sequence[int] | None = None,
    data: Tensor | None = None,
    field: Field | None = None,
    extra: Mapping[str, Any] | None = None,
) -> AdaptedMap:
    """A flow map from the network of a consistency model, which is the network F inside of what the points are made of.

    Args:
        model: the network, called with x and labels (B,); its answer is a tensor, ``.sample``, or the first of a tuple.
        parametrisation: how the points follow from it:

            * ``"edm"`` with ``sigma_min``, ``sigma_max``, ``sigma_data`` (0.002, 80, 0.5), or a
              CMStochasticIterativeScheduler: x at sigma goes to c_skip x + c_out F(c_in x) (Song et al., arXiv 2303.01469);
            * ``"trigflow"`` with ``sigma_data`` (0.5), or an SCMScheduler: to cos(t) x - sin(t) sigma_data F(x/sigma_data)
              (Lu and Song, arXiv 2410.11081);
            * an LCMScheduler: to c_skip x + c_out D, with D by its ``prediction_type`` (Luo et al., arXiv 2310.04378);
            * a TCDScheduler: to alpha_t D + sigma_t E at any time t, both by its ``prediction_type`` (arXiv 2402.19159). It is
              no consistency function but a map of two times, run without noise as with ``eta=0``.
        labels: the network's labels. ``edm``: ``"timesteps"``, 250 log(sigma), which is the rule; ``"log"``, log(sigma)/4;
            ``"sigma"``. ``trigflow``: ``"angle"``, t, which is the rule; ``"flow"``, a network of rectified flow with its own
            times and states, as diffusers' Sana pipeline calls it.
        on, shape, data, field, extra: as in :func:`from_meanflow`.

    A clipping or thresholding scheduler is followed in that. ArgumentError for a wrong argument, ConventionWarning if another
    reading of the network is clearly better than the one that is named.

    >>> import diffode
    >>> phi = from_consistency(lambda x, label: 0 * x, "edm:sigma_data=1")
    >>> x = torch.ones(1, 2, dtype=torch.float64)
    >>> bool((phi(x, 0.002, 0.002) == x).all())
    True
    """
    called = Model(model, "model", extra, narrow_times=False)
    parts = _parts(called, parametrisation, labels)
    return AdaptedMap(
        parts.jump, parts.own, model=called, name="the consistency model", readings=parts.readings, path=on,
        fixed_end=parts.fixed_end, lay=parts.lay, shape=shape, data=data, field=field,
    )  # fmt: skip


def _parts(model: Model, parametrisation: Any, labels: str | None) -> Parts:
    if isinstance(parametrisation, str):
        name, options = parse_spec(parametrisation)
        known = {"edm": {"sigma_min", "sigma_max", "sigma_data"}, "trigflow": {"sigma_data"}}
        if name not in known:
            raise ArgumentError(
                f"parametrisation must be 'edm', 'trigflow' or a scheduler of diffusers, got {parametrisation!r}"
            )
        wrong = sorted(options.keys() - known[name])
        if wrong:
            raise ArgumentError(f"{name} has no option {wrong[0]!r}; it has {', '.join(sorted(known[name]))}")
        unit = _positive(options.get("sigma_data", 0.5), "sigma_data")
        if name == "trigflow":
            return _trigflow(model, unit, labels, None)
        low, high = (_positive(options.get(key, value), key) for key, value in (("sigma_min", 0.002), ("sigma_max", 80.0)))
        return _edm(model, low, high, unit, labels, None)
    name, config = type(parametrisation).__name__, getattr(parametrisation, "config", None)
    if name not in SCHEDULERS or not isinstance(config, Mapping):
        raise ArgumentError(
            f"parametrisation must be 'edm', 'trigflow', or a scheduler of diffusers (an object) out of "
            f"{', '.join(SCHEDULERS)}; got {name if config is not None else parametrisation!r:.60}"
        )
    form = SCHEDULERS[name]
    check_noise(config)
    if form == "edm":
        low, high, unit = (float(config[key]) for key in ("sigma_min", "sigma_max", "sigma_data"))
        return _edm(model, low, high, unit, labels, parametrisation)
    if form == "trigflow":
        return _trigflow(model, float(config["sigma_data"]), labels, parametrisation)
    if labels is not None:
        raise ArgumentError(f"labels goes with 'edm' and 'trigflow'; the network of {name} gets timesteps")
    return _discrete(model, parametrisation, two_times=form == "trajectory")


def check_noise(config: Mapping[str, Any]) -> None:
    """ArgumentError for a scheduler that adds other noise than that of its levels."""
    if config.get("s_noise", 1.0) != 1:
        raise ArgumentError(f"s_noise={config['s_noise']} multiplies the noise, which our runs do not: make it 1")


def _edm(model: Model, low: float, high: float, unit: float, labels: str | None, scheduler: Any) -> Parts:
    own, chosen = EDM(low, high), "timesteps" if labels is None else labels
    if chosen not in _EDM_LABELS:
        raise ArgumentError(f"labels of 'edm' must be one of {', '.join(_EDM_LABELS)}, got {labels!r}")
    limit = clipped(1.0) if scheduler is not None and scheduler.config.get("clip_denoised") else None

    def jump(shown: str, sign: float = 1.0, scaled: bool = True) -> Jump:
        def made(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            size, above = (s**2 + unit**2).sqrt(), s - low
            answer = model(x, x / columns(size, x) if scaled else x, _EDM_LABELS[shown](s))
            found = columns(unit**2 / (above**2 + unit**2), x) * x + columns(sign * above * unit / size, x) * answer
            return found if limit is None else limit(found)

        return made

    def points(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return model(x, x, _EDM_LABELS[chosen](s))

    readings = {f"it is called with other labels: pass labels={name!r}": jump(name) for name in _EDM_LABELS if name != chosen}
    readings["its sign is wrong: return -model"] = jump(chosen, -1.0)
    readings["it wants x as it is, not x/sqrt(sigma^2 + sigma_data^2): multiply in a function around it"] = jump(
        chosen, scaled=False
    )
    readings[_GIVES_POINTS] = points

    def lay(count: int) -> list[float]:
        if scheduler is None:
            ends = high ** (1 / 7), low ** (1 / 7)
            return [(ends[0] + (ends[1] - ends[0]) * k / count) ** 7 for k in range(count + 1)]
        return [float(level) for level in _laid(scheduler, count).sigmas]

    return Parts(own, jump(chosen), readings, lay=lay)


_GIVES_POINTS = (
    "it gives the points themselves: use diffode.maps.FunctionMap(lambda x, s, t: model(x, s), path, fixed_end=True) around it"
)


def trigflow_path(unit: float) -> FunctionPath:
    """TrigFlow's path, x_t = cos(t) x_0 + sin(t) sigma_data eps, from end to end."""
    return FunctionPath(
        lambda t: (math.pi / 2 - t).sin(), lambda t: unit * t.sin(), t_min=0.0, t_max=math.pi / 2, lower=0.0, upper=math.pi / 2
    )


def _trigflow(model: Model, unit: float, labels: str | None, scheduler: Any) -> Parts:
    chosen = "angle" if labels is None else labels
    if chosen not in ("angle", "flow"):
        raise ArgumentError(f"labels of 'trigflow' must be 'angle' or 'flow', got {labels!r}")

    def jump(shown: str, sign: float = 1.0, scale: float = unit) -> Jump:
        def made(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            inside = x / scale
            if shown == "angle":
                answer = model(x, inside, s)
            else:
                # A velocity of rectified flow as TrigFlow's (Chen et al., SANA-Sprint, arXiv 2503.09641, equation 9).
                flow = s.sin() / (s.cos() + s.sin())
                size = (flow**2 + (1 - flow) ** 2).sqrt()
                point = columns(size, x) * inside
                velocity = model(x, point, flow)
                answer = columns((1 - 2 * flow) / size, x) * point + columns(size, x) * velocity
            found: Tensor = columns(s.cos(), x) * x - columns(sign * unit * s.sin(), x) * answer
            return found

        return made

    other = "flow" if chosen == "angle" else "angle"
    readings = {
        f"it is called with other labels: pass labels={other!r}": jump(other),
        "its sign is wrong: return -model": jump(chosen, -1.0),
        "it wants x as it is, not x/sigma_data: multiply in a function around it": jump(chosen, scale=1.0),
        _GIVES_POINTS: lambda x, s, t: model(x, x, s),
    }

    def lay(count: int) -> list[float]:
        if scheduler is None:
            return [math.pi / 2 * (1 - k / count) for k in range(count + 1)]
        middle = {} if count == 2 else {"intermediate_timesteps": None}
        return [min(float(t), math.pi / 2) for t in _laid(scheduler, count, **middle).timesteps]

    return Parts(trigflow_path(unit), jump(chosen), readings, lay=lay)


def _discrete(model: Model, scheduler: Any, *, two_times: bool) -> Parts:
    """A network of a table of levels: a latent consistency model, or a trajectory consistency model of two times."""
    config = scheduler.config
    # The data lie at t = 0; a trajectory ends at the first level, timestep 0.
    own = Tabulated(scheduler.alphas_cumprod, t_min=1.0 if two_times else 0.0)
    limit = _limit(config) if not two_times else None
    known = config["prediction_type"]
    if known not in TYPES:
        raise ArgumentError(f"prediction_type must be one of {', '.join(TYPES)}, got {known!r}")

    def jump(kind: str, sign: float = 1.0, label: Callable[[Tensor], Tensor] = lambda step: step) -> Jump:
        def made(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = columns(own.alpha(s), x), columns(own.sigma(s), x)
            step = (s - 1).clamp(min=0)
            answer = sign * model(x, x, label(step))
            if kind == "epsilon":
                clean, noise = (x - sigma * answer) / alpha, answer
            elif kind == "sample":
                clean, noise = answer, (x - alpha * answer) / sigma
            else:
                clean, noise = alpha * x - sigma * answer, alpha * answer + sigma * x
            if two_times:
                found: Tensor = columns(own.alpha(t), x) * clean + columns(own.sigma(t), x) * noise
                return found
            clean = clean if limit is None else limit(clean)
            scaled = step * float(config["timestep_scaling"])
            skip = _LATENT_UNIT**2 / (scaled**2 + _LATENT_UNIT**2)
            out = scaled / (scaled**2 + _LATENT_UNIT**2).sqrt()
            found = columns(out, x) * clean + columns(skip, x) * x
            return found

        return made

    last = len(scheduler.alphas_cumprod) - 1
    readings = {
        f"it gives {kind}: pass a scheduler with prediction_type={kind!r}": jump(kind) for kind in TYPES if kind != known
    }
    readings["its sign is wrong: return -model"] = jump(known, -1.0)
    readings["its timesteps run from 0 to 1: divide them in a function around it"] = jump(known, label=lambda n: n / last)
    readings["its timesteps rise towards the data: reverse them in a function around it"] = jump(
        known, label=lambda n: last - n
    )

    def lay(count: int) -> list[float]:
        return [*(float(step) + 1 for step in _laid(scheduler, count).timesteps), own.t_min]

    return Parts(own, jump(known), readings, not two_times, lay)


def _limit(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    if config.get("thresholding"):
        return thresholded(float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"]))
    return clipped(float(config["clip_sample_range"])) if config.get("clip_sample") else None


def _laid(scheduler: Any, count: int, **options: Any) -> Any:
    """A copy of a scheduler with the levels of a run; ArgumentError if it has no such run."""
    laying = copy.deepcopy(scheduler)
    try:
        laying.set_timesteps(count, **options)
    except ValueError as error:
        raise ArgumentError(f"{type(scheduler).__name__} lays no {count} jumps: {error}") from error
    return laying


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be a positive number, got {value!r}")
    return float(value)
