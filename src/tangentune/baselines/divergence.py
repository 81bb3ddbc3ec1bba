"""Training that ended in NaN or infinity."""

from __future__ import annotations

from tangentune.errors import InputError


class DivergedError(InputError):
    """Training ended in NaN or infinity; a lower rate is the usual cure."""


def diverged(epoch: int) -> DivergedError:
    """The error for an epoch, counted from 1.

    Example:
        >>> str(diverged(3))
        'fine-tuning diverged in epoch 3; lower the learning rate'
    """
    return DivergedError(f"fine-tuning diverged in epoch {epoch}; lower the learning rate")
