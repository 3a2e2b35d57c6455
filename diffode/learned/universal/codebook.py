r"""Codebooks of samplers: a few dozen ranged tables of which every problem takes the one that is best for it.

A single table for all data has to compromise; a table for each target has to be trained. In between lies Lloyd's algorithm with
samplers in place of centres: every problem is given to the table with the smallest error on it, every table takes a
Gauss-Newton step on the mean logarithm of the errors of its problems, and so on. The codebook grows by clones of the tables
with most problems, each moved by steps on a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError, BudgetError
from diffode.learned.arguments import check_seed
from diffode.learned.fitting.gauss_newton import output_directions
from diffode.learned.universal.batches import UNITS, Batch
from diffode.numerics.least_squares import NormalEquations, Scaled, reweighted
from diffode.paths import EDM
from diffode.randomness import keyed
from diffode.solvers.ranged import Ranged
from diffode.tableau.stages import Stages, count_of

#: Samplers and grids to begin with.
_SOLVERS = ("ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "deis:order=3", "deis:order=4", "lms:order=3",
            "ab:order=3,chart=noise_log_snr", "dpmpp:order=2", "unipc:order=2", "unipc:order=3")  # fmt: skip
_GRIDS = ("shift:s=1", "polyexponential:rho=0.5", "polyexponential:rho=0.7", "polyexponential:rho=1.2", "karras:rho=2.5",
          "karras:rho=4", "karras:rho=6", "karras:rho=7", "karras:rho=12", "kl_optimal", "log_snr")  # fmt: skip
#: Log error that stands for an overflow.
_LOST = 50.0
_LEAST_WEIGHT, _LEAST_CURVATURE = 0.02, 1e-9
_DAMPING, _LEAST_DAMPING, _EASE, _TIGHTEN, _TRIALS = 1e-2, 1e-4, 5.0, 4.0, 6
#: A clone takes so many steps on so many problems; a table counts as this much smaller after it was cloned.
_CLONE_STEPS, _CLONE_PROBLEMS, _CLONED = 2, 24, 0.6
#: So many of the choices that were best for a problem are looked at again in a round.
_BEST = 3
_UNITS = torch.tensor(UNITS, dtype=torch.float64)
#: The place of the scale itself.
_SCALE = UNITS.index(1.0)

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """Sizes of a codebook's training.

    Attributes:
        members: tables in the end.
        begin, grow, every: tables at the beginning, and how many are added how often.
        rounds: assignments and steps in all.
        directions: derivatives a sample in spaces of more dimensions.
        floor: added to an error before its logarithm, so that easy problems do not rule.
        share: every so many-th batch chooses the tables to begin with.
    """

    members: int = 48
    begin: int = 12
    grow: int = 12
    every: int = 2
    rounds: int = 14
    directions: int = 3
    floor: float = 3e-5
    share: int = 3

    def __post_init__(self) -> None:
        for name in ("members", "begin", "grow", "every", "rounds", "directions", "share"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ArgumentError(f"{name} of a recipe must be an integer >= 1, got {getattr(self, name)!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, int | float) or not 0 <= self.floor < math.inf:
            raise ArgumentError(f"floor of a recipe must be a number >= 0, got {self.floor!r}")


def train_codebook(
    problems: Sequence[Batch],
    origins: Sequence[Ranged],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Ranged]:
    """A codebook for the number of evaluations of its origins, tables that may be members at the beginning.

    ``progress`` is called as ``progress(round, members, loss)`` with the mean log error of what is best as far as seen.

    Raises:
        ArgumentError: if there are no problems or origins, or origins differ in their evaluations, levels or dimensions.
    """
    check_seed(seed)
    if not problems or not origins:
        raise ArgumentError("a codebook needs problems and origins: at least one of each")
    if len({(one.nfe, one.first, one.last, one.most) for one in origins}) > 1:
        raise ArgumentError("origins must be for one number of evaluations and the same ranges of levels and dimensions")
    return _Training(problems, origins, recipe, seed).run(progress)


def published(nfe: int, like: Ranged) -> list[Ranged]:
    """Published samplers with ``nfe`` evaluations, the same whatever the levels and the dimension."""
    middle = EDM(t_min=0.003, t_max=100.0)
    found = []
    for solver in _SOLVERS:
        for grid in _GRIDS:
            try:
                stages = Stages.of(solvers.get(solver).within(middle, grid, nfe))
            except BudgetError:
                continue
            if stages.nfe == nfe:
                found.append(Ranged.constant(stages, like.first, like.last, like.most))
    return found


def run(batch: Batch, numbers: Tensor, nfe: int) -> Tensor:
    """The outputs (Q, B, D) of samplers with numbers (Q, B or 1, P), as :class:`Ranged` has them: of D_0 and of b'."""
    inside = nfe * (nfe + 1) // 2
    weights, levels = numbers[..., nfe : nfe + inside], numbers[..., nfe + inside :].exp()
    z, rho = batch.start, batch.first[:, None].expand(numbers.shape[:2])
    evaluations: list[Tensor] = []
    denoised, place = z, 0
    for i in range(nfe):
        evaluations.append(batch.noise(z, rho))
        if i == 0:
            denoised = z - rho[..., None] * evaluations[0]
        z = numbers[..., i : i + 1] * denoised
        for j, e in enumerate(evaluations):
            z = z + weights[..., place + j : place + j + 1] * e
        place += i + 1
        if i + 1 < nfe:
            rho = levels[..., i]
    return z


class Assignment(NamedTuple):
    """For every problem (N,) a member and the place of a unit in ``UNITS``."""

    member: Tensor
    unit: Tensor


class _Training:
    """The state of a training: coefficients (K, F, P), dampings (K,), and log errors (K, U, N) as last seen, in every unit."""

    def __init__(self, problems: Sequence[Batch], origins: Sequence[Ranged], recipe: Recipe, seed: int):
        self.problems, self.recipe, self.like = problems, recipe, origins[0]
        self.generator = keyed(seed, "train_codebook")
        self.features = torch.cat([batch.features for batch in problems])
        self.count = len(self.features)
        everything = torch.stack([origin.coefficients for origin in origins])
        some = problems[:: recipe.share]
        self.members = everything[_cover(self.everywhere(everything, some), min(recipe.begin, recipe.members))].clone()
        self.damping = torch.full((len(self.members),), _DAMPING, dtype=torch.float64)
        self.known = torch.full((len(self.members), len(UNITS), self.count), math.inf, dtype=torch.float64)
        self.known[:, _SCALE] = self.everywhere(self.members, problems)

    def run(self, progress: Progress | None) -> list[Ranged]:
        for turn in range(1, self.recipe.rounds + 1):
            chosen = self.best()
            self.learn(chosen, self.step(chosen))
            if turn % self.recipe.every == 0 and len(self.members) < self.recipe.members:
                self.grow(chosen, min(self.recipe.grow, self.recipe.members - len(self.members)))
            self.look_again()
            if progress is not None:
                progress(turn, len(self.members), float(self.known.amin((0, 1)).mean()))
        like = self.like
        return [replace(like, coefficients=one) for one in self.members]

    def best(self, place: int = 0) -> Assignment:
        """The best choice of every problem as far as known, or the next best."""
        flat = self.known.flatten(0, 1).topk(place + 1, dim=0, largest=False).indices[place]
        return Assignment(flat // len(UNITS), flat % len(UNITS))

    def learn(self, chosen: Assignment, errors: Tensor) -> None:
        self.known[chosen.member, chosen.unit, torch.arange(self.count)] = errors

    def everywhere(self, members: Tensor, problems: Sequence[Batch]) -> Tensor:
        """Log errors (K, N) of all members on all problems in units of the scale."""
        at = torch.full((sum(map(len, problems)),), _SCALE)
        every = (Assignment(torch.full_like(at, k), at) for k in range(len(members)))
        return torch.stack([log_errors(members, one, problems, self.recipe.floor) for one in every])

    def look(self, chosen: Assignment) -> None:
        """See the errors of a choice."""
        self.learn(chosen, log_errors(self.members, chosen, self.problems, self.recipe.floor))

    def look_again(self) -> None:
        """Errors of what was best for a problem when last seen, and of neighbours: other units, other members, both."""
        for place in range(_BEST):
            self.look(self.best(place))
        best = self.best()
        aside = best.unit + 2 * self.draw(2) - 1
        self.look(Assignment(best.member, aside.clamp(0, len(UNITS) - 1)))
        self.look(Assignment(self.draw(len(self.members)), best.unit))
        self.look(Assignment(self.draw(len(self.members)), self.draw(len(UNITS))))

    def draw(self, count: int) -> Tensor:
        return torch.randint(0, count, (self.count,), generator=self.generator)

    def grow(self, chosen: Assignment, new: int) -> None:
        """Clones of the members with most problems, each moved by steps on a few of these."""
        before = len(self.members)
        sizes = torch.bincount(chosen.member, minlength=before).double()
        parents, own = [], torch.full_like(chosen.member, -1)
        for label in range(new):
            parent = int(sizes.argmax())
            sizes[parent] *= _CLONED
            parents.append(parent)
            # A second clone of the same table leaves the first one its problems: without any it would stay what its parent is.
            places = torch.nonzero((chosen.member == parent) & (own < 0))[:, 0]
            few = min(_CLONE_PROBLEMS, (len(places) + 1) // 2)
            own[places[torch.randperm(len(places), generator=self.generator)[:few]]] = before + label
        self.members = torch.cat([self.members, self.members[parents]])
        self.damping = torch.cat([self.damping, torch.full((new,), 10 * _LEAST_DAMPING, dtype=torch.float64)])
        self.known = torch.cat([self.known, torch.full((new, *self.known.shape[1:]), math.inf, dtype=torch.float64)])
        for _ in range(_CLONE_STEPS):
            self.step(Assignment(own, chosen.unit))
        self.damping[before:] = _DAMPING
        for k in range(before, len(self.members)):
            self.look(Assignment(torch.full_like(own, k), chosen.unit))

    def step(self, chosen: Assignment) -> Tensor:
        """One Levenberg-Marquardt step of every member on the problems it was chosen for (-1: none); their errors (N,)."""
        known = Assignment(chosen.member.clamp(min=0), chosen.unit)
        features, gradients, curvatures = self.equations(known)
        current = log_errors(self.members, known, self.problems, self.recipe.floor)
        waiting = [k for k in range(len(self.members)) if bool((chosen.member == k).any())]
        systems = {k: _system(features, gradients, curvatures, chosen.member == k) for k in waiting}
        for _ in range(_TRIALS):
            trial = self.members.clone()
            for k in waiting:
                move = systems[k].step(float(self.damping[k]))
                if move is not None:
                    trial[k] -= move.reshape(trial[k].shape)
            errors = log_errors(trial, known, self.problems, self.recipe.floor)
            refused = []
            for k in waiting:
                own = chosen.member == k
                if errors[own].mean() < current[own].mean():
                    self.members[k], current[own] = trial[k], errors[own]
                    self.damping[k] = max(float(self.damping[k]) / _EASE, _LEAST_DAMPING)
                else:
                    self.damping[k] *= _TIGHTEN
                    refused.append(k)
            waiting = refused
            if not waiting:
                break
        return current

    def equations(self, chosen: Assignment) -> tuple[Tensor, Tensor, Tensor]:
        """Of every problem the features (N, F), and gradient (N, P) and curvature (N, P, P) of its log error by its numbers."""
        gradients, curvatures = [], []
        for batch, own in _each(self.problems, chosen):
            problems, starts, _ = batch.start.shape
            numbers = _numbers(self.members, own, batch)[:, None].repeat(1, starts, 1).requires_grad_(True)
            with torch.enable_grad():
                end = run(batch, numbers, self.like.nfe)
            error = (end - batch.end).detach()
            length = error.norm(dim=2)
            weight = reweighted(length, _LEAST_WEIGHT) / starts / (length.mean(1, keepdim=True) + self.recipe.floor)
            along, share, slope = (
                part.reshape(problems, starts, *part.shape[1:])
                for part in output_directions(error.flatten(0, 1), length.flatten(), self.recipe.directions, self.generator)
            )
            count = along.shape[2]
            factor = _factors(own.unit, self.like.nfe)
            equations = NormalEquations(problems, numbers.shape[2])
            for k in range(count):
                (found,) = torch.autograd.grad((end * along[:, :, k]).sum(), numbers, retain_graph=k + 1 < count)
                equations.add(found.nan_to_num() * factor[:, None], weight * slope[:, :, k], weight * share[:, :, k])
            gradients.append(equations.gradient)
            curvatures.append(equations.curvature)
        features = self.features[torch.arange(self.count), chosen.unit]
        return features, torch.cat(gradients), torch.cat(curvatures)


def log_errors(members: Tensor, chosen: Assignment, problems: Sequence[Batch], floor: float) -> Tensor:
    """Log errors (N,) of the members (K, F, P) chosen for the problems; a run that overflows counts e^50."""
    found = []
    for batch, own in _each(problems, chosen):
        with torch.no_grad():
            end = run(batch, _numbers(members, own, batch)[:, None], nfe_of(members))
            value = ((end - batch.end).norm(dim=2).mean(1) + floor).log()
        found.append(value.nan_to_num(nan=_LOST, posinf=_LOST).clamp(max=_LOST))
    return torch.cat(found)


def tuned(members: Tensor, problems: Sequence[Batch], floor: float) -> Tensor:
    """Log errors (N,) of the best member for each problem in the best unit."""
    count = sum(map(len, problems))
    return torch.stack(
        [
            log_errors(members, Assignment(torch.full((count,), k), torch.full((count,), unit)), problems, floor)
            for k in range(len(members))
            for unit in range(len(UNITS))
        ]
    ).amin(0)


def nfe_of(members: Tensor) -> int:
    """How many evaluations samplers with so many numbers make."""
    return next(nfe for nfe in range(1, 1000) if count_of(nfe) == members.shape[2])


def _each(problems: Sequence[Batch], chosen: Assignment) -> Iterator[tuple[Batch, Assignment]]:
    """The batches, each with what was chosen for its problems."""
    place = 0
    for batch in problems:
        own = slice(place, place + len(batch))
        place += len(batch)
        yield batch, Assignment(chosen.member[own], chosen.unit[own])


def _numbers(members: Tensor, chosen: Assignment, batch: Batch) -> Tensor:
    """The numbers (Q, P), in the scale, of the samplers chosen for problems in the units chosen."""
    features = batch.features[torch.arange(len(batch)), chosen.unit]
    numbers = torch.einsum("qf,qfp->qp", features, members[chosen.member]) * _factors(chosen.unit, nfe_of(members))
    numbers[:, numbers.shape[1] - nfe_of(members) + 1 :] += _UNITS[chosen.unit].log()[:, None]
    return numbers


def _factors(unit: Tensor, nfe: int) -> Tensor:
    """What numbers (Q, P) in a unit are multiplied by to be numbers in the scale: weights by the unit, all others by 1."""
    factors = torch.ones(len(unit), count_of(nfe), dtype=torch.float64)
    factors[:, nfe : nfe + nfe * (nfe + 1) // 2] = _UNITS[unit][:, None]
    return factors


def _system(features: Tensor, gradients: Tensor, curvatures: Tensor, own: Tensor) -> Scaled:
    """The normal equations of a member by its coefficients (F P)."""
    phi, count = features[own], int(own.sum())
    factors, numbers = phi.shape[1], gradients.shape[1]
    gradient = (phi.T @ gradients[own]).reshape(-1) / count
    pairs = torch.einsum("qf,qg->fgq", phi, phi).reshape(factors**2, count) @ curvatures[own].reshape(count, -1) / count
    curvature = pairs.reshape(factors, factors, numbers, numbers).permute(0, 2, 1, 3).reshape(factors * numbers, -1)
    return Scaled.of(gradient, curvature, _LEAST_CURVATURE)


def _cover(errors: Tensor, count: int) -> list[int]:
    """The candidates (rows) that cover the problems (columns) best, one after the other."""
    chosen: list[int] = []
    best = torch.full((errors.shape[1],), math.inf, dtype=torch.float64)
    for _ in range(min(count, len(errors))):
        means = torch.minimum(best, errors).mean(1)
        means[chosen] = math.inf
        chosen.append(int(means.argmin()))
        best = torch.minimum(best, errors[chosen[-1]])
    return chosen
