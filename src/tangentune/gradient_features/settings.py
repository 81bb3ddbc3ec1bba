"""Choices of gradient features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, final, get_args, get_type_hints

from tangentune.errors import InputError


@final
@dataclass(frozen=True)
class GradientFeatureSettings:
    """Choices of gradient features (Mu, Liang, Li 2020, ICLR); the defaults are ours.

    The loss of a batch is the mean over its pictures. Decay acts on `u = (w1 - om_bar, w2)`, what has been learnt, and
    not on the weights: it pulls to the activation model (`gradient`: to zero outputs). The intercept is not decayed.
    With n pictures, decay d under "sgd" is the prior `1/2 n d ||u||^2` beside the sum of the losses.

    Attributes:
        cut: block at which theta2 begins, such as "features.15", or "last:K" for the last K blocks. Their parameters
            are what w2 moves to first order.
        variant: "full", both terms; "gradient", the second alone, without an intercept; "activation", the first alone.
        learning_rate: peak rate of w2. "gradient" wants some ten times the default: w2 then does all the work.
        head_learning_rate: peak rate of w1 and the intercept.
        epochs: passes over the pictures.
        batch_size: largest mini-batch; an epoch is cut into equal ones.
        optimiser: "adamw" or "sgd".
        momentum: of "sgd", in [0, 1).
        weight_decay: decoupled for "adamw" (0 is plain Adam); added to the gradient for "sgd".
        ntk_scaling: train w2 in the parametrisation of the authors' code, as rates of its parts (see
            `tangentune.gradient_features.groups`).
        loss: "cross_entropy" in nats, or "squared", `1/2 ||g - one_hot||^2`. Probabilities are the softmax of g either
            way, so those of the squared loss are flat.
        warmup: share of all steps in which the rates rise linearly from nearly zero, in [0, 1).
        schedule: what the rates do then: "cosine" decay to zero or "constant".
        flip: mirror each picture left-right with probability 1/2 at every step (vectors are left alone), and fit
            om_bar to features averaged over both views.
        cache: keep the activations at the cut, of both views with `flip`: for each, n times their size. Without, and
            where the network cannot be cut there, every step runs the whole network, with the same result.
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
        for name, annotation in get_type_hints(GradientFeatureSettings).items():
            value, choices = getattr(self, name), get_args(annotation)
            if any(isinstance(choice, str) for choice in choices) and value not in choices:
                message = f"{name} is {value!r}; use one of {', '.join(map(repr, choices))}"
                raise InputError(message)
            if annotation is bool and not isinstance(value, bool):
                message = f"{name} is {value!r}; it is True or False"
                raise InputError(message)
        if not isinstance(self.cut, str) or not self.cut:
            message = f"cut is {self.cut!r}; give the name of a block, or 'last:K'"
            raise InputError(message)
        for name in ("learning_rate", "head_learning_rate"):
            rate = getattr(self, name)
            if not _is_number(rate) or not 0 < rate < math.inf:
                message = f"{name} is {rate!r}; it must be a number above 0"
                raise InputError(message)
        if not _is_number(self.weight_decay) or not 0 <= self.weight_decay < math.inf:
            message = f"weight_decay is {self.weight_decay!r}; it must be a number of at least 0"
            raise InputError(message)
        for name in ("momentum", "warmup"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                message = f"{name} is {getattr(self, name)!r}; it must be at least 0 and below 1"
                raise InputError(message)
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
                message = f"{name} is {value!r}; it must be a whole number of at least {low}"
                raise InputError(message)


def _is_number(value: object) -> bool:
    return isinstance(value, float | Integral) and not isinstance(value, bool)
