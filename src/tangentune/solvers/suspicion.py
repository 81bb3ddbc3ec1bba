"""Which labels look wrong: how far each is from what all other pictures predict in its place.

The damping with the lowest leave-one-out error fits labels as they are given, mistakes included. More damping, one
mean eigenvalue of the kernel, at which a picture's signal is believed to be as large as its noise, brings a few more
of the mistakes to the very top and ranks the rest as well (docs/results/label_mistakes.md).
"""

from __future__ import annotations

from torch import Tensor

from tangentune.solvers.leave_out import loo
from tangentune.solvers.system import System, build


def suspicion(system: System) -> Tensor:
    """How doubtful every label is: its squared distance to the leave-one-out prediction, (n,); larger is worse.

    For one-hot targets 0 means that the other pictures fully agree with the label, and 2 that they are sure of
    another one. Nothing is tuned; `second_opinions` holds the predictions and the cost.

    Args:
        system: the solved problem; targets in any number of columns, regression too.

    Returns:
        (n,) float64; a picture of several rows has the sum over them.

    Example:
        >>> import torch
        >>> kernel = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])                          # the fourth is wrong
        >>> targets = torch.nn.functional.one_hot(labels).double()
        >>> suspicion(build(kernel, targets, damping=0.1)).argmax().item()
        3
    """
    squares = (system.targets - second_opinions(system)).square().sum(1)
    return squares.unflatten(0, (-1, system.width)).sum(1)


def second_opinions(system: System) -> Tensor:
    """Leave-one-out predictions at the system's damping or `mean_eigenvalue`, whichever is more, (N, C).

    Returns:
        What all other pictures say of each; the largest column is the label to suggest. Cost `N^3` where the damping
        has to be raised, else `N C`.

    Example:
        >>> import torch
        >>> system = build(torch.eye(3), torch.tensor([[1.0], [0.0], [5.0]]), damping=0.1)
        >>> [round(value, 6) for value in second_opinions(system).flatten().tolist()]
        [2.5, 3.0, 0.5]
    """
    return loo(distrusting(system))


def distrusting(system: System) -> System:
    """The problem at its damping or `mean_eigenvalue`, whichever is more, where no label is trusted by itself; N^3."""
    damping = mean_eigenvalue(system)
    if damping <= system.damping:
        return system
    arguments = {"intercept": system.intercept, "width": system.width}
    return build(system.kernel, system.targets, damping, system.weights, **arguments)


def mean_eigenvalue(system: System) -> float:
    """Mean eigenvalue of the weighted kernel over rows with weight, the intercept's direction projected out; N^2.

    The unit in which relative damping is given.

    Example:
        >>> import torch
        >>> mean_eigenvalue(build(2 * torch.eye(3), torch.zeros(3, 1), damping=1.0))
        2.0
    """
    weights = system.weights
    trace, count = float(weights @ system.kernel.diagonal()), int((weights > 0).sum())
    if system.intercept:
        # The unit vector of the intercept is roots / |roots|.
        trace, count = trace - float(weights @ system.kernel @ weights) / float(weights.sum()), count - 1
    return trace / count
