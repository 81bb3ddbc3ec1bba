"""Exact earth mover's distance between two weighted sets, and the greedy ranking of sources that goes with it.

Cui et al. 2018 call `exp(-gamma EMD)` between class means the similarity of two domains, and choose source classes
greedily; they publish the distance's code, not the choice's. Our reading of the choice: every target class in turn
takes its nearest source class that nobody took.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import identity, kron, vstack
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.sinkhorn import Array, as_tensor

# Width of the domain similarity, Cui et al. 2018.
GAMMA = 0.01


def emd(cost: Array, a: Array, b: Array) -> tuple[float, Tensor]:
    """Least cost of moving the masses a onto the masses b, and the plan that has it: a linear programme.

    Args:
        cost: (n, m) finite.
        a: (n,) masses, none negative; divided by their sum.
        b: (m,) likewise.

    Returns:
        The distance, per unit of mass, and the plan (n, m) in float64. For small sets: `n m` unknowns, seconds for
        1,000 x 200.

    Raises:
        InputError: shapes that do not fit, a cost that is not finite, or masses that are negative or all zero.

    Example:
        >>> value, plan = emd(np.array([[0.0, 2.0], [2.0, 0.0]]), np.ones(2), np.array([1.0, 3.0]))
        >>> value, plan.tolist()
        (0.5, [[0.25, 0.25], [0.0, 0.5]])
    """
    table, source, target = (as_tensor(array).double().cpu().numpy() for array in (cost, a, b))
    if table.ndim != 2 or not table.size or source.shape != table.shape[:1] or target.shape != table.shape[1:]:
        message = (
            f"a cost between n sources and m targets is (n, m) with masses (n,) and (m,), none empty, "
            f"not {table.shape} with {source.shape} and {target.shape}"
        )
        raise InputError(message)
    if not np.isfinite(table).all():
        message = "the cost must be finite; look for broken features or rows of zeros"
        raise InputError(message)
    source, target = _normalised("source masses a", source), _normalised("target masses b", target)
    n, m = table.shape
    marginals = vstack([kron(identity(n), np.ones((1, m))), kron(np.ones((1, n)), identity(m))]).tocsr()
    found = linprog(table.ravel(), A_eq=marginals, b_eq=np.concatenate([source, target]), method="highs")
    if not found.success:  # feasible and bounded by construction
        message = f"the transport problem was not solved ({found.message.rstrip('.')}); scale the cost to about 1"
        raise InputError(message)
    return float(found.fun), torch.from_numpy(found.x.reshape(n, m))


def domain_similarity(cost: Array, a: Array, b: Array, *, gamma: float = GAMMA) -> float:
    """`exp(-gamma EMD)`, from 0 to 1: how alike two domains are by their class means.

    Args:
        cost: (n, m) distances, Euclidean ones of un-normalised features in the source below.
        a: (n,) source masses, there class counts.
        b: (m,) target masses.
        gamma: width, positive.

    Returns:
        The similarity.

    Raises:
        InputError: as `emd`, or gamma not positive.

    Source: Cui, Song, Sun, Howard, Belongie 2018, "Large Scale Fine-Grained Categorization and Domain-Specific
    Transfer Learning", section 4.1.

    Example:
        >>> round(domain_similarity(np.array([[3.0, 1.0]]), np.ones(1), np.ones(2)), 6) == round(math.exp(-0.02), 6)
        True
    """
    if not (gamma > 0 and math.isfinite(gamma)):
        message = f"gamma is {gamma}; it must be positive and finite"
        raise InputError(message)
    return math.exp(-gamma * emd(cost, a, b)[0])


def round_robin(per_target_order: Array, budget: int) -> Tensor:
    """Sources in the order in which targets, taking turns, each take the best one that is still there.

    Args:
        per_target_order: (K, q) source numbers, row k from target k's best to its worst; -1 fills short rows.
        budget: when to stop.

    Returns:
        At most `budget` distinct source numbers, int64; fewer where the rows have no more. Turns go in the order of
        targets; one whose row is used up is passed over. Cost at most `K q`.

    Raises:
        InputError: not a table of whole numbers, or a budget below 1.

    Example:
        >>> round_robin(torch.tensor([[4, 7, 1], [4, 1, 0]]), 3).tolist()
        [4, 1, 7]
    """
    table = as_tensor(per_target_order)
    if table.dim() != 2 or table.is_floating_point():
        message = f"orders of targets are whole numbers in a table (targets, best first), not {tuple(table.shape)}"
        raise InputError(message)
    if budget < 1:
        message = f"the budget is {budget}; it must be at least 1"
        raise InputError(message)
    rows = [iter(row) for row in table.tolist()]
    taken: dict[int, None] = {}
    while rows:
        still_open = []
        for row in rows:
            best = next((source for source in row if source >= 0 and source not in taken), None)
            if best is None:
                continue
            taken[best] = None
            if len(taken) == budget:
                return torch.tensor(list(taken))
            still_open.append(row)
        rows = still_open
    return torch.tensor(list(taken), dtype=torch.int64)


def _normalised(name: str, masses: NDArray[np.float64]) -> NDArray[np.float64]:
    total = float(masses.sum())
    if not (np.isfinite(total) and (masses >= 0).all() and total > 0):
        message = f"the {name} must be finite, none negative and not all zero"
        raise InputError(message)
    return masses / total
