"""Choices of gradient features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from tangentune.errors import InputError, check_counts, check_numbers, check_positive, check_shares, check_words


@final
@dataclass(frozen=True)
class GradientFeatureSettings:
    """Choices of gradient features (Mu, Liang, Li 2020, ICLR); the defaults are ours.

    The loss of a batch is the mean over its pictures. Decay acts on `u = (w1 - om_bar, w2)`, what has been learnt, and
    not on the weights: it pulls to the activation model (`gradient`: to zero outputs). The intercept is not decayed.
    With n pictures, decay d under "sgd" is the prior `1/2 n d ||u||^2` beside the sum of the losses.

    Attributes:
        cut: block at which theta2, what w2 moves, begins, such as "features.15", or "last:K" for the last K blocks.
        variant: "full", both terms; "gradient", the second alone, without an intercept; "activation", the first alone.
        learning_rate: peak rate of w2. "gradient" wants some ten times the default: w2 then does all the work.
        head_learning_rate: peak rate of w1 and the intercept.
        epochs: passes over the pictures.
        batch_size: largest mini-batch; an epoch is cut into equal ones.
        optimiser: "adamw" or "sgd".
        momentum: of "sgd", in [0, 1).
        weight_decay: decoupled for "adamw" (0 is plain Adam); added to the gradient for "sgd".
        ntk_scaling: train w2 in the parametrisation of the authors' code, as rates of its parts (see `training`).
        loss: "cross_entropy" in nats, or "squared", `1/2 ||g - one_hot||^2`, whose probabilities, softmax g, are flat.
        warmup: share of all steps in which the rates rise linearly from nearly zero, in [0, 1).
        schedule: what the rates do then: "cosine" decay to zero or "constant".
        flip: mirror each picture left-right with probability 1/2 at every step (vectors are left alone), and fit om_bar
            to features averaged over both views.
        cache: keep the n activations at the cut, twice with `flip`. Without, and where the network cannot be cut there,
            every step runs the whole network, with the same result.
        seed: order of the pictures and mirroring.

    Raises:
        InputError: a number is out of range or a choice is unknown.
    """

    cut: str = "last:6"
    variant: Literal["full", "gradient", "activation"] = "full"
    learning_rate: float = 3e-5
    head_learning_rate: float = 1e-3
    epochs: int = 15
    batch_size: int = 32
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    ntk_scaling: bool = False
    loss: Literal["cross_entropy", "squared"] = "cross_entropy"
    warmup: float = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    flip: bool = True
    cache: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_words(self)
        if not isinstance(self.cut, str) or not self.cut:
            raise InputError(f"cut is {self.cut!r}; give the name of a block, or 'last:K'")
        check_positive(self, "learning_rate", "head_learning_rate")
        check_numbers(self, ["weight_decay"], lambda value: value >= 0, "a number of at least 0")
        check_shares(self, "momentum", "warmup")
        check_counts(self, {"epochs": 1, "batch_size": 1, "seed": 0})
