r"""``Bridge``: the exact field between two mixtures of Gaussians.

The law of :math:`x_t = A x_0 + B x_1 + G z` is a mixture with the coupling's weights, means :math:`m = A m_0 + B m_1` and

.. math::
    S = A C A^T + B D B^T + A X B^T + B X^T A^T + \Sigma, \qquad
    R = \dot A C A^T + \dot B D B^T + \dot A X B^T + \dot B X^T A^T + N,

so that, with responsibilities r, :math:`v = \sum_k r_k[\dot m_k + R_k S_k^{-1}(x - m_k)]` and
:math:`\mathrm{score} = -\sum_k r_k S_k^{-1}(x - m_k)`; `interpolants.py` has the matrices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.bridges.catalogue import coefficients_of, coupling_of
from diffode.bridges.coupling import Coupling, square_root
from diffode.bridges.interpolants import Coefficients, Moments
from diffode.bridges.simulation import BridgeSDE, Diffusion
from diffode.errors import ArgumentError, FieldError
from diffode.fields import Field, Prediction
from diffode.fields.rotated import RotatedField, Rotation
from diffode.paths import Interval
from diffode.paths.path import held
from diffode.randomness import Randomness, generator_from, normal, row_generators
from diffode.targets import GaussianMixture
from diffode.targets.target import Scalar

#: Largest number of entries of matrices (rows, K, D, D) that are held at once.
_MOST_NUMBERS = 2**22
#: Number of times whose law is kept: a solver asks for the velocity and the score at the same one.
_KEPT_LAWS = 8
LOG_2PI = math.log(2 * math.pi)


class _Law(NamedTuple):
    """The components at times (T,): means and their rates (T, K, D), inverse factors of S and R S^-1 (T, K, D, D),
    log det S/2 (T, K).
    """

    means: Tensor
    rates: Tensor
    inverse: Tensor
    slope: Tensor
    half_log_det: Tensor


class Bridge(Field):
    """The field of x_t = A_t x_0 + B_t x_1 + G_t z: data x_0 at ``t_min``, source x_1 at ``t_max``.

    Solvers run from the source down to the data, as they run from noise to data everywhere here. It gives its velocity and its
    score, no noise and no denoised point, and has no path: solvers in the velocity chart follow it, over grids in t.

    Args:
        coupling: the joint law of data and source, as :func:`diffode.bridges.independent` and its like make it; or the spec of
            one, such as ``"schroedinger:sigma=0.5"``, with ``data`` and ``source``.
        coefficients: what interpolates, or its spec; ``linear`` unless given, ``foellmer`` with the coupling's sigma for a
            Schroedinger coupling, so that x_t is the Schroedinger bridge.
        data, source: mixtures of Gaussians or their specs, for a spec of a coupling.

    Attributes:
        coupling, coefficients: as given.
        interval: the times, on which named grids are laid.

    Raises:
        ArgumentError: for a coupling or coefficients that are none, or that do not fit each other.

    >>> bridge = Bridge("optimal", data="moons", source="ring8")
    >>> x = bridge.prior(3, generator=0)
    >>> bridge.velocity(x, 1.0).shape, bridge.log_prob(x, 1.0).shape
    (torch.Size([3, 2]), torch.Size([3]))
    """

    interval: Interval

    def __init__(
        self,
        coupling: Coupling | str,
        coefficients: Coefficients | str | None = None,
        *,
        data: GaussianMixture | str | None = None,
        source: GaussianMixture | str | None = None,
    ):
        self.coupling = coupling_of(coupling, data, source)
        self.coefficients = coefficients_of(coefficients, self.coupling)
        self.coefficients.check_dim(self.coupling.dim)
        self._laws: dict[float, _Law] = {}
        first = self._law(torch.tensor([self.coefficients.t_min], dtype=torch.float64))
        super().__init__(self._velocity, "velocity", None, scale=self._scale(first), probe=False)
        self.dim, self.shape = self.coupling.dim, (self.coupling.dim,)
        self.interval = Interval(self.coefficients.t_min, self.coefficients.t_max)
        #: What made it, as the registry of bridges spells it; None for one's own.
        self.spec: str | None = None

    def __repr__(self) -> str:
        return f"Bridge({self.coupling!r}, {self.coefficients.spec})"

    def _scale(self, law: _Law) -> float:
        """Root mean variance of the coordinates at the time of the data."""
        weights, means = self.coupling.weights, law.means[0]
        spread = (torch.linalg.inv(law.inverse[0]).square().sum(2) + (means - weights @ means).square()).mean(1)
        return float((weights @ spread).sqrt())

    def predict(self, prediction: Prediction, x: Tensor, t: Scalar) -> Tensor:
        """The velocity or the score, in the shape and dtype of x (B, *shape); t is a number or (B,). Counts one evaluation.

        Raises:
            FieldError: for the noise and the denoised point, which need a path.
            ArgumentError: for points of another size, and times outside of the bridge.
        """
        if prediction not in ("velocity", "score"):
            raise FieldError(
                f"a bridge has no {prediction}, since x_t is no sum of data and noise on a path: ask for velocity or score"
            )
        self.spend(1)
        return self._velocity(x, t) if prediction == "velocity" else self._evaluated(x, t)[1].reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Scalar) -> Tensor:
        """log p_t(x), (B,), differentiable in x and t."""
        return self._evaluated(x, t)[2].to(x.dtype)

    def divergence(self, x: Tensor, t: Scalar) -> Tensor:
        """The divergence of the velocity, (B,), in closed form."""
        return self._evaluated(x, t)[3].to(x.dtype)

    def law(self, t: float) -> GaussianMixture:
        """The law of x_t as a mixture of Gaussians.

        >>> Bridge("independent", data="bimodal1d", source="gauss1d").law(1.0).count
        2
        """
        found = self._at_time(self._checked_time(t))
        half = torch.linalg.inv(found.inverse[0])
        return GaussianMixture(self.coupling.weights, found.means[0], half @ half.mT)

    def marginal(self, n: int, t: float, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """n draws of x_t, (n, dim), made of pairs and noise; of a list of n generators each gives one."""
        each = row_generators(generator, n)
        if each:
            return torch.cat([self.marginal(1, t, generator=one, dtype=dtype) for one in each])
        drawn = generator_from(generator if each is None else 0)
        moments = self._moments(torch.tensor([self._checked_time(t)], dtype=torch.float64))
        data, source = self.coupling.sample(n, generator=drawn)
        noise = normal(data.shape, generator=drawn).cpu()
        x = data @ moments.of_data[0].T + source @ moments.of_source[0].T + noise @ square_root(moments.noise[0])
        return held(x, dtype)

    def prior(self, n: int, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """n draws at ``t_max``, (n, dim), from which a solver starts."""
        return self.marginal(n, self.interval.t_max, generator=generator, dtype=dtype)

    def rotated(self, J: Rotation) -> RotatedField:
        """The field with the velocity v + J score: the same law at every time, along other trajectories.

        J is a skew matrix (dim, dim) or a function of the time that gives one; ArgumentError for one that is not skew.
        """
        return RotatedField(self, J, self.interval)

    def sde(self, diffusion: Diffusion) -> BridgeSDE:
        """The SDE with the same laws and a ``diffusion`` g of one's own: a number, a matrix (dim, dim), or a function of t."""
        return BridgeSDE(self, diffusion)

    def _velocity(self, x: Tensor, t: Scalar) -> Tensor:
        return self._evaluated(x, t)[0].reshape(x.shape).to(x.dtype)

    def _checked_time(self, t: object) -> float:
        """A time as a float; ArgumentError unless it lies on the bridge."""
        low, high = self.interval.t_min, self.interval.t_max
        number = t if isinstance(t, int | float) and not isinstance(t, bool) else None
        if isinstance(t, Tensor) and t.numel() == 1 and not t.is_complex():
            number = float(t)
        if number is None or not low <= number <= high:
            raise ArgumentError(f"t must be a time of the bridge, from {low:g} (data) to {high:g} (source), got {t!r:.60}")
        return float(number)

    def _moments(self, t: Tensor) -> Moments:
        return self.coefficients.at(t, self.coupling.dim)

    def _law(self, t: Tensor) -> _Law:
        """The components at times (T,)."""
        of, m = self.coupling, self._moments(t)
        c, d, x = (part.to(t.device) for part in (of.data_covariances, of.source_covariances, of.cross))
        a, b, a_rate, b_rate = (part[:, None] for part in (m.of_data, m.of_source, m.data_rate, m.source_rate))
        # Cov[x_0, x_t] and Cov[x_1, x_t] without the noise.
        with_data, with_source = c @ a.mT + x @ b.mT, x.mT @ a.mT + d @ b.mT
        spread = a @ with_data + b @ with_source + m.noise[:, None]
        rate = a_rate @ with_data + b_rate @ with_source + m.gauge[:, None]
        means = [part.to(t.device)[..., None] for part in (of.data_means, of.source_means)]
        factor, failed = torch.linalg.cholesky_ex((spread + spread.mT) / 2)
        if bool(failed.any()) or not bool(torch.isfinite(factor).all()):
            at = torch.nonzero((failed != 0) | ~torch.isfinite(factor).flatten(2).all(2))[0]
            raise FieldError(
                f"the law of x_t is singular at t={float(t[at[0]].detach()):g}, in component {int(at[1])}, so that it has no "
                "density there: take another coupling, or coefficients with noise"
            )
        eye = torch.eye(of.dim, dtype=torch.float64, device=t.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        slope = rate @ inverse.mT @ inverse
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return _Law(
            (a @ means[0] + b @ means[1])[..., 0], (a_rate @ means[0] + b_rate @ means[1])[..., 0], inverse, slope, half_log_det
        )

    def _at_time(self, t: float, device: torch.device | None = None) -> _Law:
        """The components at one time, kept for the next call."""
        if device is not None and device.type != "cpu":
            return self._law(torch.tensor([t], dtype=torch.float64, device=device))
        found = self._laws.get(t)
        if found is None:
            if len(self._laws) >= _KEPT_LAWS:
                self._laws.clear()
            # A law without a graph, also where the caller differentiates: its time is a number.
            with torch.no_grad():
                found = self._laws[t] = self._law(torch.tensor([t], dtype=torch.float64))
        return found

    def _evaluated(self, x: Tensor, t: Scalar) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Velocity and score (B, dim), log-density and divergence (B,), in float64."""
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"x must be a float32 or float64 tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.coupling.dim:
            raise ArgumentError(f"x must be (B, {self.coupling.dim}) or (B, *shape) of as many numbers, got {tuple(x.shape)}")
        flat = x.flatten(1).to(torch.float64)
        if not isinstance(t, Tensor) or not t.ndim:
            if isinstance(t, Tensor) and t.requires_grad:
                return self._evaluated(x, t.expand(len(x)))
            law = self._at_time(self._checked_time(t), x.device)
            return _views(flat, law, self.coupling.weights.to(x.device))
        if t.shape != (len(x),) or t.is_complex():
            raise ArgumentError(f"t must be a number or a time for each row, ({len(x)},), got {tuple(t.shape)}")
        times = t.to(x.device, torch.float64)
        outside = ~((times >= self.interval.t_min) & (times <= self.interval.t_max))
        if bool(outside.any()):
            self._checked_time(float(times[outside][0]))
        rows = max(1, _MOST_NUMBERS // (self.coupling.count * self.coupling.dim**2))
        weights = self.coupling.weights.to(x.device)
        parts = [
            _views(part, self._law(when), weights)
            for part, when in zip(torch.split(flat, rows), torch.split(times, rows), strict=True)
        ]  # fmt: skip
        velocity, score, density, divergence = (torch.cat(views) for views in zip(*parts, strict=True))
        return velocity, score, density, divergence


def _views(x: Tensor, law: _Law, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Velocity, score, log-density and divergence at x (B, D), for a law at one time or at a time for each row."""
    offset = x[:, None] - law.means
    whitened = (law.inverse @ offset[..., None])[..., 0]
    # Squares of the farthest points overflow: they are compared as shares of each row's largest number.
    size = whitened.detach().abs().amax((1, 2), keepdim=True).clamp(min=1.0)
    share_of = (whitened / size).square().sum(-1)
    nearest, size = share_of.amin(1, keepdim=True), size[..., 0]
    beyond = (share_of - nearest) * size * size / 2
    log_shares = weights.log() - law.half_log_det - beyond
    total = torch.logsumexp(log_shares, 1) - (nearest * size * size)[:, 0] / 2 - x.shape[1] / 2 * LOG_2PI
    shares = log_shares.softmax(1)
    scores = -(law.inverse.mT @ whitened[..., None])[..., 0]
    velocities = law.rates + (law.slope @ offset[..., None])[..., 0]
    velocity, score = ((shares[..., None] * each).sum(1) for each in (velocities, scores))
    own = law.slope.diagonal(dim1=-2, dim2=-1).sum(-1)
    divergence = (shares * (own + ((scores - score[:, None]) * velocities).sum(-1))).sum(1)
    return velocity, score, total, divergence
