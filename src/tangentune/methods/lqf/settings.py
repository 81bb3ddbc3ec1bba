"""Choices of linear quadratic fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from tangentune.errors import InputError, check_counts, check_positive, check_shares, check_words, is_number

RATES = {"sgd": 0.3, "kfac": 0.3, "adam": 1e-4}
MOVES, STEPS = 10, 3  # epochs before the linearisation; steps of conjugate gradients after it
_QUADRATIC = ("dual", "pcg")


@final
@dataclass(frozen=True)
class LQFSettings:
    """Choices of linear quadratic fine-tuning (LQF: Achille et al. 2021, CVPR); the defaults are ours.

    These linearise at the pre-trained weights, as the paper does. What does best, and what `fit_lqf` does when it is
    told nothing, is `LQFSettings.moved()`, which first takes some steps of ordinary fine-tuning.

    With n pictures, C classes, targets y, outputs f0 at the linearisation point and their Jacobian J, the problem is
    `minimise over u: sum_i loss(f0(x_i) + J(x_i) u, y_i) + 1/2 lambda ||u||^2`: sums, never means.

    Attributes:
        params: which layers move, in words of `select_parameters`; the head always does.
        head: at the linearisation point. "probe": ridge regression on one-hot labels; "calibrated_probe": the same in
            logits of honest probabilities; "cross_fitted": the probe, but every picture's error in training starts
            from the output of a head that has not seen it; "random": normal weights.
        head_scale: what the head is multiplied by; the body's Jacobian is proportional to it, the head's is not.
        alpha: value of the one-hot target at the picture's own class (squared loss only).
        centred: subtract alpha / C from the targets (squared loss only).
        damping: lambda in units of the mean eigenvalue of `K = J J^T`, trace / (n C), at the start.
        slope: of the leak that replaces every ReLU (`tangentune.networks.leaky`); None leaves them.
        loss: "squared", `1/2 ||f - y||^2`, or "cross_entropy" in nats: convex in u, but not quadratic.
        solver: "dual", exact, for small n C; "pcg", preconditioned conjugate gradients over all pictures at every step;
            or stochastic: "sgd", "adam", "kfac" (SGD on K-FAC-preconditioned gradients).
        preconditioner: of "pcg": "kfac", "ekfac", "block_diagonal" or "none".
        epochs: passes over the pictures of a stochastic solver; most iterations of "pcg".
        batch_size: largest mini-batch (8 suits "kfac"); an epoch is cut into equal ones. "dual", "pcg" hang not on it.
        learning_rate: peak rate, plain for "adam" (None: 1e-4); for "sgd" and "kfac" (None: 0.3) in units of 1 / the
            largest curvature of a mini-batch (preconditioned): 0.3 was stable in our tests, 1 with momentum was not.
        momentum: of "sgd" and "kfac", in [0, 1).
        warmup: share of all steps in which the rate rises linearly from nearly zero, in [0, 1).
        schedule: what the rate does then: "cosine" decay to zero or "constant".
        flip: the loss is the mean over a picture and its mirror image (not of vectors); stochastic solvers draw one.
        tolerance: "pcg" stops when the gradient has fallen to this share of its start.
        outer_steps: linearisations; after each but the last the weights move (see `fit.relinearise`).
        measure_every: epochs between exact measurements of objective and gradient, one pass over the pictures each; 0:
            only at the start and at the end. "pcg" has its own at every iteration.
        exact_optimum: also solve by "dual", for the record alone.
        seed: order of the pictures, mirroring, folds, a random head, estimates, pictures kept aside.
        moves: epochs of ordinary fine-tuning, of all layers, by which a network of pictures moves before it is
            linearised (see `moving.move`); `u` counts from there. Vectors are never moved.
        move_rates: peak rates to choose from by pictures kept aside; to stay put is always among the choices.

    Raises:
        InputError: a number is out of range, a choice is unknown, or two choices do not go together.
    """

    params: str = "all"
    head: Literal["probe", "calibrated_probe", "cross_fitted", "random"] = "probe"
    head_scale: float = 1.0
    alpha: float = 1.0
    centred: bool = False
    damping: float = 0.1
    slope: float | None = None
    loss: Literal["squared", "cross_entropy"] = "squared"
    solver: Literal["dual", "pcg", "sgd", "adam", "kfac"] = "adam"
    preconditioner: Literal["kfac", "ekfac", "block_diagonal", "none"] = "kfac"
    epochs: int = 15
    batch_size: int = 32
    learning_rate: float | None = None
    momentum: float = 0.9
    warmup: float = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    flip: bool = True
    tolerance: float = 1e-4
    outer_steps: int = 1
    measure_every: int = 0
    exact_optimum: bool = False
    seed: int = 0
    moves: int = 0
    move_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)

    @classmethod
    def moved(cls, *, flip: bool = True, seed: int = 0) -> LQFSettings:
        """What was measured to do best (docs/results/lqf_conditions.md): move first, then pose the problem there.

        A few steps of conjugate gradients, which only ever lower the objective: Adam ended above where it started.
        """
        return cls(moves=MOVES, solver="pcg", preconditioner="none", epochs=STEPS, flip=flip, seed=seed)

    def __post_init__(self) -> None:
        check_words(self)
        check_positive(self, "alpha", "damping", "head_scale", "tolerance")
        check_counts(self, {"epochs": 1, "batch_size": 1, "outer_steps": 1, "measure_every": 0, "seed": 0, "moves": 0})
        check_shares(self, "momentum", "warmup")
        if self.slope is not None and not (is_number(self.slope) and 0 < self.slope < 1):
            raise InputError(
                f"slope is {self.slope!r}; a leak is above 0 and below 1, and None leaves every ReLU as it is"
            )
        rate = self.learning_rate
        if rate is not None and not (is_number(rate) and 0 < rate < math.inf):
            raise InputError(f"learning_rate is {rate!r}; it must be a number above 0, or None for the solver's own")
        if not all(is_number(rate) and 0 < rate < math.inf for rate in self.move_rates) or not self.move_rates:
            raise InputError(f"move_rates is {self.move_rates!r}; it must be one number above 0 or several")
        if self.moves and self.params != "all":
            raise InputError(f"moves are of all layers, and params={self.params!r} lets fewer move; set moves=0")
        if self.loss == "cross_entropy" and (self.solver in _QUADRATIC or self.exact_optimum):
            what = f"solver {self.solver!r}" if self.solver in _QUADRATIC else "exact_optimum"
            raise InputError(f"{what} solves the squared loss only; train cross_entropy with 'sgd', 'adam' or 'kfac'")

    @property
    def rate(self) -> float:
        """The learning rate, the solver's own where none is given."""
        return RATES[self.solver] if self.learning_rate is None else self.learning_rate
