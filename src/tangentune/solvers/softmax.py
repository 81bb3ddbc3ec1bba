"""What the classification solvers share: the checked problem and the unit of the kernel's scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError

INTERCEPT = 100.0  # prior variance of a class's intercept in log odds: as good as flat


@final
@dataclass(frozen=True, eq=False)
class Labelled:
    """A kernel (n, n) and labels, one-hot (n, C), weights (n,), all float64; class positions (n,)."""

    kernel: Tensor
    labels: Tensor
    weights: Tensor
    classes: Tensor

    @property
    def unit(self) -> float:
        """Mean diagonal of the centred kernel: the prior variance of one latent against another at scale 1."""
        return float(self.kernel.diagonal().mean() - self.kernel.mean()) or 1.0

    def latent(self, scale: float) -> Tensor:
        """Prior covariance (n, n) of a class's latents."""
        return scale * self.kernel + INTERCEPT


def labelled(kernel: Tensor, classes: Tensor, count: int, weights: Tensor | None) -> Labelled:
    """Check a classification problem.

    Raises:
        InputError: fewer than two pictures or classes, a label that is no class, a kernel that is not finite, a
            weight that is not positive.
    """
    check_classes(len(kernel), classes, count)
    if not bool(torch.isfinite(kernel).all()):
        message = "the kernel holds NaN or infinite values; look for broken pictures or an overflowing network"
        raise InputError(message)
    given = torch.ones_like(kernel[0], dtype=torch.float64) if weights is None else weights.double()
    if not bool((given > 0).all()):
        message = "sample weights must be positive; leave pictures of weight 0 out"
        raise InputError(message)
    classes = classes.long()
    return Labelled(kernel.double(), torch.nn.functional.one_hot(classes, count).double(), given, classes)


def check_classes(n: int, classes: Tensor, count: int) -> None:
    """N pictures have a label each that is one of `count` classes.

    Raises:
        InputError: if not, or there are fewer than two of either.
    """
    if n < 2 or count < 2 or len(classes) != n or not bool(((classes >= 0) & (classes < count)).all()):
        message = (
            f"classification needs at least two pictures, a label in 0..C-1 for each and at least two classes; got "
            f"{n} pictures, {len(classes)} labels and {count} classes"
        )
        raise InputError(message)
