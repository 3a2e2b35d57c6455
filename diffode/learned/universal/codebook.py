r"""Codebooks of samplers: a few dozen ranged tables, of which every problem takes the best one for it.

A single table for all data has to compromise; a table for each target has to be trained. A codebook lies in between. It is
trained by Lloyd's algorithm with samplers in place of centres: in each round every problem is given to the table with the
smallest error on it, and every table takes a Gauss-Newton step on the mean logarithm of the errors of its problems. The
codebook grows by clones of the tables with most problems, each moved by steps on a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError, BudgetError
from diffode.learned.arguments import check_seed
from diffode.learned.fitting.gauss_newton import LEAST_WEIGHT, output_directions
from diffode.learned.progress import Progress, Step
from diffode.learned.universal.batches import UNITS, Batch
from diffode.numerics.least_squares import NormalEquations, Scaled, reweighted
from diffode.paths import EDM
from diffode.randomness import keyed
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau.stages import Stages, count_of

#: Solvers of the first tables.
_SOLVERS = ("ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "deis:order=3", "deis:order=4", "lms:order=3",
            "ab:order=3,chart=noise_log_snr", "dpmpp:order=2", "unipc:order=2", "unipc:order=3")  # fmt: skip
#: Grids of the first tables.
_GRIDS = ("shift:s=1", "polyexponential:rho=0.5", "polyexponential:rho=0.7", "polyexponential:rho=1.2", "karras:rho=2.5",
          "karras:rho=4", "karras:rho=6", "karras:rho=7", "karras:rho=12", "kl_optimal", "log_snr")  # fmt: skip
#: Log error in place of an overflow.
_OVERFLOW = 50.0
#: Smallest entry of the curvature's diagonal as a share of the largest; smaller ones are scaled as this one.
_LEAST_CURVATURE = 1e-9
#: Damping of a table's first step, in units of the curvature's diagonal.
_DAMPING = 1e-2
#: Smallest damping.
_LEAST_DAMPING = 1e-4
#: Divisor of the damping after a step that lowers the loss.
_EASE = 5.0
#: Factor of the damping after a step that does not.
_TIGHTEN = 4.0
#: Number of dampings that a step is tried with.
_TRIALS = 6
#: Number of steps of a new clone.
_CLONE_STEPS = 2
#: Largest number of problems that these steps are taken on.
_CLONE_PROBLEMS = 24
#: Factor on a table's number of problems after each cloning, when the next table to clone is chosen.
_CLONED = 0.6
#: Number of a problem's best choices whose errors are computed again in each round.
_BEST = 3
#: The units as a tensor (U,).
_UNITS = torch.tensor(UNITS, dtype=torch.float64)
#: Place in ``UNITS`` of the scale itself.
_SCALE = UNITS.index(1.0)


@dataclass(frozen=True)
class Recipe:
    """Sizes of a codebook's training.

    Attributes:
        members: number of tables at the end.
        begin: number of tables at the beginning.
        grow: number of tables that are added at a time.
        every: number of rounds between two additions.
        rounds: number of rounds, each an assignment and a step.
        directions: number of derivatives for each sample, if it has more dimensions than that.
        floor: addend to an error before its logarithm, which keeps easy problems from dominating.
        share: the first tables are chosen on one batch in ``share``.
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
    """Train a codebook for one number of evaluations.

    Args:
        problems: batches of problems to train on.
        origins: tables among which the first members are chosen; they fix the number of evaluations.
        recipe: sizes of the training.
        seed: seed of the clones' problems, the new choices and the directions.
        progress: called with every round as a :class:`Step`, whose ``error`` is the mean log error of the best choices so far.

    Returns:
        The members.

    Raises:
        ArgumentError: if there are no problems or origins, or origins differ in their evaluations, levels or dimensions.
    """
    check_seed(seed)
    if not problems or not origins:
        raise ArgumentError("a codebook needs problems and origins: at least one of each")
    if len({(one.nfe, one.first, one.last, one.most) for one in origins}) > 1:
        raise ArgumentError("origins must be for one number of evaluations and the same ranges of levels and dimensions")
    return Training(problems, origins, recipe, seed).run(progress)


def published(nfe: int, like: Ranged) -> list[Ranged]:
    """Published samplers with ``nfe`` evaluations as ranged tables that are the same for all levels and dimensions."""
    middle = EDM(t_min=0.003, t_max=100.0)
    found = []
    for solver in _SOLVERS:
        for grid in _GRIDS:
            try:
                stages = Stages.of(solvers.table_solver(solver).within(middle, grid, nfe))
            except BudgetError:
                continue
            if stages.nfe == nfe:
                found.append(Ranged.constant(stages, like.first, like.last, like.most))
    return found


def run(batch: Batch, numbers: Tensor, nfe: int) -> Tensor:
    """The outputs (Q, B, D) of samplers with numbers (Q, B or 1, P) in the form of :class:`Ranged`, with D_0 and weights b'."""
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
    """The member and the place of the unit in ``UNITS`` that are chosen for every problem, (N,) each."""

    member: Tensor
    unit: Tensor


class Training:
    """The state of a training: coefficients (K, F, P), dampings (K,), and the latest log errors in every unit (K, U, N)."""

    def __init__(self, problems: Sequence[Batch], origins: Sequence[Ranged], recipe: Recipe, seed: int):
        self.problems, self.recipe, self.like = problems, recipe, origins[0]
        self.generator = keyed(seed, "train_codebook")
        self.features = torch.cat([batch.features for batch in problems])
        self.count = len(self.features)
        everything = torch.stack([origin.coefficients for origin in origins])
        some = problems[:: recipe.share]
        self.members = everything[covering(self.everywhere(everything, some), min(recipe.begin, recipe.members))].clone()
        self.damping = torch.full((len(self.members),), _DAMPING, dtype=torch.float64)
        self.known = torch.full((len(self.members), len(UNITS), self.count), math.inf, dtype=torch.float64)
        self.known[:, _SCALE] = self.everywhere(self.members, problems)

    def run(self, progress: Progress | None) -> list[Ranged]:
        """All rounds; the members."""
        for turn in range(1, self.recipe.rounds + 1):
            chosen = self.best()
            self.learn(chosen, self.step(chosen))
            if turn % self.recipe.every == 0 and len(self.members) < self.recipe.members:
                self.grow(chosen, min(self.recipe.grow, self.recipe.members - len(self.members)))
            self.look_again()
            if progress is not None:
                loss = float(self.known.amin((0, 1)).mean())
                progress(Step(f"train {len(self.members)} members", turn, self.recipe.rounds, loss))
        like = self.like
        return [replace(like, coefficients=one) for one in self.members]

    def best(self, place: int = 0) -> Assignment:
        """The best known choice for every problem, or with ``place`` > 0 a later one."""
        flat = self.known.flatten(0, 1).topk(place + 1, dim=0, largest=False).indices[place]
        return Assignment(flat // len(UNITS), flat % len(UNITS))

    def learn(self, chosen: Assignment, errors: Tensor) -> None:
        """Note the log errors (N,) of a choice."""
        self.known[chosen.member, chosen.unit, torch.arange(self.count)] = errors

    def everywhere(self, members: Tensor, problems: Sequence[Batch]) -> Tensor:
        """Log errors (K, N) of all members on all problems in units of the scale."""
        at = torch.full((sum(map(len, problems)),), _SCALE)
        every = (Assignment(torch.full_like(at, k), at) for k in range(len(members)))
        return torch.stack([log_errors(members, one, problems, self.recipe.floor) for one in every])

    def look(self, chosen: Assignment) -> None:
        """Compute and note the errors of a choice."""
        self.learn(chosen, log_errors(self.members, chosen, self.problems, self.recipe.floor))

    def look_again(self) -> None:
        """Compute again the errors of the best choices, and of neighbours of them: other units, other members, both."""
        for place in range(_BEST):
            self.look(self.best(place))
        best = self.best()
        aside = best.unit + 2 * self.draw(2) - 1
        self.look(Assignment(best.member, aside.clamp(0, len(UNITS) - 1)))
        self.look(Assignment(self.draw(len(self.members)), best.unit))
        self.look(Assignment(self.draw(len(self.members)), self.draw(len(UNITS))))

    def draw(self, count: int) -> Tensor:
        """A random whole number below ``count`` for every problem, (N,)."""
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
            # A second clone of a table takes none of the first one's problems; without problems that one could not move.
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
        """One Levenberg-Marquardt step of every member on its problems (member -1: none); the errors after it, (N,)."""
        known = Assignment(chosen.member.clamp(min=0), chosen.unit)
        features, gradients, curvatures = self.equations(known)
        current = log_errors(self.members, known, self.problems, self.recipe.floor)
        waiting = [k for k in range(len(self.members)) if bool((chosen.member == k).any())]
        systems = {k: system_of(features, gradients, curvatures, chosen.member == k) for k in waiting}
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
        """Features (N, F) of every problem, and gradient (N, P) and curvature (N, P, P) of its log error by its numbers."""
        gradients, curvatures = [], []
        for batch, own in _each(self.problems, chosen):
            problems, starts, _ = batch.start.shape
            numbers = numbers_of(self.members, own, batch)[:, None].repeat(1, starts, 1).requires_grad_(True)
            with torch.enable_grad():
                end = run(batch, numbers, self.like.nfe)
            error = (end - batch.end).detach()
            length = error.norm(dim=2)
            weight = reweighted(length, LEAST_WEIGHT) / starts / (length.mean(1, keepdim=True) + self.recipe.floor)
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
    """Log errors (N,) of the members (K, F, P) chosen for the problems; that of a run that overflows is 50."""
    found = []
    for batch, own in _each(problems, chosen):
        with torch.no_grad():
            end = run(batch, numbers_of(members, own, batch)[:, None], nfe_of(members))
            value = ((end - batch.end).norm(dim=2).mean(1) + floor).log()
        found.append(value.nan_to_num(nan=_OVERFLOW, posinf=_OVERFLOW).clamp(max=_OVERFLOW))
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
    """Number of evaluations of samplers with coefficients (K, F, P)."""
    return next(nfe for nfe in range(1, 1000) if count_of(nfe) == members.shape[2])


def _each(problems: Sequence[Batch], chosen: Assignment) -> Iterator[tuple[Batch, Assignment]]:
    """The batches, each with the choices for its problems."""
    place = 0
    for batch in problems:
        own = slice(place, place + len(batch))
        place += len(batch)
        yield batch, Assignment(chosen.member[own], chosen.unit[own])


def numbers_of(members: Tensor, chosen: Assignment, batch: Batch) -> Tensor:
    """The numbers (Q, P), in units of the scale, of the samplers chosen for problems."""
    features = batch.features[torch.arange(len(batch)), chosen.unit]
    numbers = torch.einsum("qf,qfp->qp", features, members[chosen.member]) * _factors(chosen.unit, nfe_of(members))
    numbers[:, numbers.shape[1] - nfe_of(members) + 1 :] += _UNITS[chosen.unit].log()[:, None]
    return numbers


def _factors(unit: Tensor, nfe: int) -> Tensor:
    """Factors (Q, P) that turn numbers in a unit into numbers in the scale: the unit for weights, 1 for all others."""
    factors = torch.ones(len(unit), count_of(nfe), dtype=torch.float64)
    factors[:, nfe : nfe + nfe * (nfe + 1) // 2] = _UNITS[unit][:, None]
    return factors


def system_of(features: Tensor, gradients: Tensor, curvatures: Tensor, own: Tensor) -> Scaled:
    """The normal equations of a member for its coefficients (F P)."""
    phi, count = features[own], int(own.sum())
    factors, numbers = phi.shape[1], gradients.shape[1]
    gradient = (phi.T @ gradients[own]).reshape(-1) / count
    pairs = torch.einsum("qf,qg->fgq", phi, phi).reshape(factors**2, count) @ curvatures[own].reshape(count, -1) / count
    curvature = pairs.reshape(factors, factors, numbers, numbers).permute(0, 2, 1, 3).reshape(factors * numbers, -1)
    return Scaled.of(gradient, curvature, _LEAST_CURVATURE)


def covering(errors: Tensor, count: int) -> list[int]:
    """The rows that together have the smallest errors (candidates, problems), chosen one after the other."""
    chosen: list[int] = []
    best = torch.full((errors.shape[1],), math.inf, dtype=torch.float64)
    for _ in range(min(count, len(errors))):
        means = torch.minimum(best, errors).mean(1)
        means[chosen] = math.inf
        chosen.append(int(means.argmin()))
        best = torch.minimum(best, errors[chosen[-1]])
    return chosen
