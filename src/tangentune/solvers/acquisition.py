"""Which of many unlabelled pictures to label next, by greedy choices in a kernel; arrays only.

`typical` covers the pictures by examples of them, as k-medoids do. `reducing` and `doubtful` follow the exact posterior
of the least-squares problem (`posterior.py`), which does not depend on labels: to observe picture j takes
`C_:j C_j: / (C_jj + damping)` from the covariance C of all others, a rank-one update, equal to solving anew with j. All
three choose one picture after the other, none twice, each knowing those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.posterior import covariance as posterior_covariance
from tangentune.solvers.system import System

Stage = Literal["typical", "variance", "doubt"]
BLIND = 0.3  # skill below which doubts say little
Score = Callable[[Tensor], Tensor]  # of a covariance (m, m): what each of the m pictures is worth


def skill(loo: Tensor, classes: Tensor) -> float:
    """How far leave-one-out scores (n, C) beat guessing, from classes (n,): 0 as good as that, 1 always right.

    Of the mean over classes of the share that is right, so that a large class does not count for more.
    """
    right, outputs = (loo.argmax(1) == classes).double(), loo.shape[1]
    counts = torch.bincount(classes, minlength=outputs).clamp_min(1)
    recall = float((torch.zeros(outputs, dtype=right.dtype).index_add_(0, classes, right) / counts).mean())
    return (recall - 1 / outputs) / (1 - 1 / outputs)


def stage_of(found: float, *, doubts: bool = True) -> Stage:
    """Which criterion suits a model of this `skill`; `doubts` False is of numbers, which have no margins.

    As long as leave-one-out finds the answers little better than guesses, their doubts are guesses too, and pictures
    that stand for many others are a good choice. The threshold was chosen on seeds that docs/results/label_next.md does
    not show; plain variance between the two, for classes, was no better than either there.
    """
    return "typical" if found < BLIND else "doubt" if doubts else "variance"


def next_pictures(
    system: System, cross: Tensor, kernel: Tensor, count: int, stage: Stage, margins: Tensor | None = None
) -> list[int]:
    """Positions of `count` of m unlabelled pictures, the most useful first, beside those that a problem holds.

    Kernels `cross` (m, n) with its pictures and (m, m) among the unlabelled ones. Cost `m n^2 + m^2 (n + count)`.
    """
    if stage == "typical":
        own, labelled = kernel.diagonal().double(), system.kernel.diagonal()
        nearest = distances(cross, own, labelled).min(1).values
        return typical(distances(kernel, own, own), nearest, count)
    found = posterior_covariance(system, cross, kernel)
    if stage == "variance" or margins is None:
        return reducing(found, system.damping, count)
    return doubtful(found, system.damping, count, margins)


def distances(kernel: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """(m, n) distances in the space of a kernel (m, n), from those of each picture with itself, (m,) and (n,)."""
    return (own[:, None] + other - 2 * kernel.double()).clamp_min(0).sqrt()


def typical(apart: Tensor, nearest: Tensor | None, count: int) -> list[int]:
    """Positions of pictures that stand for the most others: greedy k-medoids, within 1 - 1/e of the best cover.

    Each takes most off the sum over all pictures of the distance to the nearest chosen or labelled one. `apart` (m, m)
    distances; `nearest` (m,) distance to the nearest labelled picture, None where there is none. Cost m^2 a picture.
    Source: Nemhauser, Wolsey and Fisher (1978), of greedy choices; Kaufman and Rousseeuw (1987), of medoids.
    """
    _check(apart, count)
    left = apart.max() * torch.ones_like(apart[0]) if nearest is None else nearest.to(apart)
    chosen: list[int] = []
    for _ in range(count):
        gains = (left[:, None] - apart).clamp_min(0).sum(0)
        chosen.append(_best(gains, chosen))
        left = torch.minimum(left, apart[:, chosen[-1]])
    return chosen


def reducing(covariance: Tensor, damping: float, count: int) -> list[int]:
    """Positions of pictures whose labels would take most off the posterior variance of all pictures together.

    That is `sum_i C_ij^2 / (C_jj + damping)`, from the `covariance` C (m, m) of the function at the pictures, in units
    of noise / damping. Cost m^2 a picture.
    Source: Cohn (1996); Seo, Wallat, Graepel and Obermayer (2000), for Gaussian processes.
    """
    return greedy(covariance, damping, count, lambda found: found.square().sum(0) / (found.diagonal() + damping))


def doubtful(covariance: Tensor, damping: float, count: int, margins: Tensor) -> list[int]:
    """The same where answers are open: doubt times the variance that a label takes off doubtful pictures.

    `d_j sum_i d_i C_ij^2 / (C_jj + damping)` with the doubt `d = 1 - margin`; `margins` (m,) are the probability of the
    likeliest class less that of the next. Margins stay, the variance follows every choice, so that a second picture of
    the same kind counts for less. Cost m^2 a picture.
    """
    doubt = 1 - margins.to(covariance)

    def score(found: Tensor) -> Tensor:
        return doubt * (doubt @ found.square()) / (found.diagonal() + damping)

    return greedy(covariance, damping, count, score)


def greedy(covariance: Tensor, damping: float, count: int, score: Score) -> list[int]:
    """The picture with the highest score, then the next in what its label leaves of the covariance, and so on."""
    _check(covariance, count)
    found, chosen = covariance.double().clone(), list[int]()
    for _ in range(count):
        chosen.append(_best(score(found), chosen))
        observe(found, damping, chosen[-1])
    return chosen


def observe(covariance: Tensor, damping: float, picture: int) -> None:
    """What is left of a posterior covariance (m, m), in place, once one of its pictures has a label; m^2."""
    column = covariance[:, picture].clone()
    covariance.addr_(column, column, alpha=-1 / (float(column[picture]) + damping))


def _best(scores: Tensor, chosen: list[int]) -> int:
    scores = scores.clone()
    scores[chosen] = -torch.inf
    return int(scores.argmax())


def _check(matrix: Tensor, count: int) -> None:
    m = len(matrix)
    if matrix.shape != (m, m) or not bool(torch.isfinite(matrix).all()):
        raise InputError(f"the unlabelled pictures need a square matrix of finite numbers, not {tuple(matrix.shape)}")
    if not 1 <= count <= m:
        raise InputError(f"{count} of {m} unlabelled pictures cannot be chosen; choose 1 to {m}")
