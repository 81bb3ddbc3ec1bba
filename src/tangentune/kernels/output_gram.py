"""Gram matrices of a network's Jacobian with its outputs kept apart: the tangent kernel `K = J J^T`, in float64.

One forward and C backward passes a batch give every parameter's rows, as position pairs where those are smaller;
inputs are shared by the C outputs. Products run in the network's precision over short tiles, summed in float64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import BudgetError, InputError
from tangentune.jacobian.layers import Entry, Pairs, Rows, join_entries
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.rows import TangentRows, mapped, memory_groups, sample_count
from tangentune.jacobian.survey import survey_linearization
from tangentune.kernels.gram import PAIR_OVERHEAD, TILE_BYTES, gram, mirrored
from tangentune.memory import progress
from tangentune.networks.network_function import Inputs

Outputs = Literal["full", "independent", "shared"]
MEMORY_BYTES = 2**30
LIMIT = 20_000  # rows of K: 3.2 GB in float64, and its eigendecomposition takes as much again, and hours
DUAL_FORWARD, BACKWARD = 3, 2  # in plain forward passes


def logit_gram(
    linearization: Linearization, batches: Collection[Inputs], *, memory_bytes: int = 2**31, verbose: int = 0
) -> Tensor:
    """`J J^T` over all pictures and outputs, (n C, n C) float64, row i C + c for picture i, output c.

    Cost: one forward and C backwards a picture and sweep, and about `(n C)^2 p / 2` multiply-adds, less in late layers.
    A sweep for each group of parameters whose rows fit into `memory_bytes`.
    """
    count, first = sum(map(sample_count, batches)), next(iter(batches))
    size = count * linearization.f0(first).shape[1]
    if size > LIMIT:
        raise InputError(
            f"{count} pictures x {size // count} outputs make a Gram matrix of {size:,} rows, above {LIMIT:,}; solve "
            "in parameter space with tangentune.solvers.pcg, or take fewer pictures"
        )
    rows = survey_linearization(linearization, first)
    out = torch.zeros(size, size, dtype=torch.float64, device=rows.like.device)
    for name, size in reversed(rows.held.items()):
        if count * size > memory_bytes:
            raise BudgetError(
                f"the rows of {name} need {count * size / 2**20:.1f} MB for {count} pictures; allow more "
                "memory_bytes, leave the parameter out with params, or solve with tangentune.solvers.pcg"
            )
    groups = memory_groups(rows.held, count, memory_bytes)
    for names in progress(groups, label="Gram of logits", total=None, unit="group", verbose=verbose):
        for _, entry in _collected(rows, batches, names):
            add_gram(out, entry)
    return mirrored(out)


def logit_cross_gram(
    linearization: Linearization, batches: Collection[Inputs], others: Collection[Inputs], *, memory_bytes: int = 2**31
) -> Tensor:
    """`J(X) J(X')^T` between all outputs of two sets of pictures, (n C, m C), row i C + c and column j C + d.

    The cheaper of two ways: rows of both sets, as in `logit_gram`; or one dual forward over X for every output of X',
    which holds no rows and wins for few pictures X' and many sweeps.
    """
    left, right = (sum(map(sample_count, part)) for part in (batches, others))
    rows = survey_linearization(linearization, next(iter(batches)))
    outputs, most = rows.outputs, max(left, right)
    if most * outputs > LIMIT:
        raise InputError(
            f"{most} pictures x {outputs} outputs make a Gram matrix of {most * outputs:,} rows, above {LIMIT:,}; "
            "take fewer pictures at a time"
        )
    fits = (left + right) * max(rows.held.values(), default=0) <= memory_bytes
    groups = memory_groups(rows.held, left + right, memory_bytes)
    if not fits or DUAL_FORWARD * left * right * outputs < len(groups) * (left + right) * (1 + BACKWARD * outputs):
        return _cross_by_products(linearization, batches, others)
    out = torch.zeros(left * outputs, right * outputs, dtype=torch.float64, device=rows.like.device)
    for names in groups:
        for _, entry in _collected(rows, chain(batches, others), names):
            add_gram(out, entry.select(slice(left)), entry.select(slice(left, None)))
    return out


@usual_torch
def tangent_kernel(
    rows: TangentRows,
    x: Tensor,
    other: Tensor | None = None,
    *,
    outputs: Outputs = "full",
    batch_size: int = 64,
    memory_bytes: int = MEMORY_BYTES,
    held: Mapping[str, Entry] | None = None,
) -> Tensor:
    """Kernel between inputs, (problems, N, M) in float64; N and M count the rows of each problem.

    Cost: one forward and C backward passes an input and sweep, and at most n m C^2 p multiply-adds ("full") or n m C p
    (the others). An input or kernel that is not finite is an InputError.

    Args:
        rows: the network, from `survey_rows`.
        x: (n, ...) inputs.
        other: (m, ...) inputs; None: x itself.
        outputs: "full": one problem over all outputs, N = n C, row i C + c for input i, output c; "independent": C
            problems, N = n, entries between different outputs left out; "shared": one problem, N = n, the mean of
            the C diagonal blocks (trace / C).
        batch_size: inputs that pass through the network at a time.
        memory_bytes: for the rows of x; parameters are taken in groups that fit, each group costing one more sweep.
        held: rows of x where they are known already, from `hold_rows`.

    Example:
        >>> from tangentune.jacobian.survey import survey_rows
        >>> x = torch.randn(4, 3)
        >>> rows = survey_rows(torch.nn.Linear(3, 2, bias=False), x)
        >>> kernel = tangent_kernel(rows, x, outputs="shared")  # of a linear layer: the inner product
        >>> torch.allclose(kernel[0], (x @ x.T).double(), atol=1e-5)
        True
    """
    check_outputs(outputs)
    x = rows.prepare(x)
    second = None if other is None else rows.prepare(other)
    count = rows.outputs if outputs == "full" else 1
    n, m = len(x) * count, (len(x) if second is None else len(second)) * count
    out = torch.zeros(rows.outputs if outputs == "independent" else 1, n, m, dtype=torch.float64, device=x.device)
    groups = [list(rows.held)] if held is not None else memory_groups(rows.held, len(x), memory_bytes)
    for names in groups:
        own = held if held is not None else dict(_collected(rows, x.split(batch_size), names))
        if second is None:
            for entry in own.values():
                _add(out, entry, None, outputs)
            continue
        for low in range(0, len(second), batch_size):
            part = second[low : low + batch_size]
            columns = out[:, :, low * count : (low + len(part)) * count]
            for name, entry in rows.entries(part, names).items():
                _add(columns, own[name], entry, outputs)
    if not bool(torch.isfinite(out).all()):
        raise InputError("the tangent kernel holds NaN or infinite values; the network overflows on these inputs")
    return mirrored(out) if second is None else out


@usual_torch
def kernel_diagonal(rows: TangentRows, x: Tensor, *, outputs: Outputs = "full", batch_size: int = 64) -> Tensor:
    """`k(x, x)` of every input and output, (n, C) in float64; (n, 1) for "shared". Cost: no products over pairs.

    Example:
        >>> from tangentune.jacobian.survey import survey_rows
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> kernel_diagonal(survey_rows(torch.nn.Linear(2, 1), x), x)
        tensor([[26.]], dtype=torch.float64)
    """
    check_outputs(outputs)
    x = rows.prepare(x)
    parts = [sum(_output_norms(entry) for entry in rows.entries(part).values()) for part in x.split(batch_size)]
    norms = torch.cat(parts)  # type: ignore[arg-type]
    return norms.mean(1, keepdim=True) if outputs == "shared" else norms


def hold_rows(rows: TangentRows, x: Tensor, batch_size: int, memory_bytes: int) -> dict[str, Entry] | None:
    """The rows of x, to be used again; None where they need more memory."""
    if len(x) * sum(rows.held.values()) > memory_bytes:
        return None
    return dict(_collected(rows, rows.prepare(x).split(batch_size), list(rows.held)))


def check_outputs(outputs: str) -> None:
    """Refuse an unknown word."""
    if outputs not in get_args(Outputs):
        raise InputError(f"outputs={outputs!r} is not known; use one of {', '.join(map(repr, get_args(Outputs)))}")


def add_gram(out: Tensor, entry: Entry, other: Entry | None = None, tile_bytes: int = TILE_BYTES) -> None:
    """Add one parameter's inner products to (n C, m C), outputs apart; without `other`, to the upper triangle only."""
    right = entry if other is None else other
    if isinstance(entry, Pairs) and isinstance(right, Pairs) and _pairs_pay(entry, right):
        _add_pairs(out, entry, right, other is None, tile_bytes)
        return
    inputs = max(e.a.shape[2] if isinstance(e, Pairs) else 1 for e in (entry, right))
    tall = max(len(entry), len(right)) * entry.probes
    step = max(1, tile_bytes // (tall * inputs * entry.dtype.itemsize)) * inputs
    for low in range(0, entry.width // entry.probes, step):
        part = _columns(entry, low, step)
        if other is not None:
            out += part @ _columns(other, low, step).T
            continue
        high = max(64, -(-len(part) // 10))  # of the first of ten strips: nearly half of the work is left out
        for top in range(0, len(part), high):
            out[top : top + high, top:] += part[top : top + high] @ part[top:].T


def _pairs_pay(entry: Pairs, other: Pairs) -> bool:
    """Position pairs pay off while T S (o + overhead) is below half the explicit row."""
    positions, width = entry.a.shape[1] * other.a.shape[1], entry.g.shape[3]
    return positions == 1 or positions * (width + PAIR_OVERHEAD) < width * entry.a.shape[2] / 2


def _add_pairs(out: Tensor, entry: Pairs, right: Pairs, upper: bool, tile_bytes: int) -> None:
    """`K[ic, jd] = sum_st (a_is . a_jt) (g_isc . g_jtd)`, pictures in strips: all outputs share `a_is . a_jt`."""
    n, t, outputs, width = entry.g.shape
    m, s = right.a.shape[:2]
    step = max(1, tile_bytes // (m * t * s * outputs**2 * entry.dtype.itemsize))
    for low in range(0, n, step):
        start = low if upper else 0
        own, rest = entry.select(slice(low, low + step)), right.select(slice(start, None))
        alike = own.a.flatten(0, 1) @ rest.a.flatten(0, 1).T
        product = own.g.reshape(-1, width) @ rest.g.reshape(-1, width).T
        product = product.view(len(own), t, outputs, len(rest), s, outputs)
        product *= alike.view(len(own), t, 1, len(rest), s, 1)
        if t * s > 1:
            product = product.sum((1, 4))
        out[low * outputs : (low + len(own)) * outputs, start * outputs :] += product.reshape(len(own) * outputs, -1)


def _columns(entry: Entry, low: int, step: int) -> Tensor:
    """Some columns of the rows of all pictures and outputs (n C, step); of pairs, whole runs of inputs."""
    if isinstance(entry, Rows):
        return entry.values.flatten(2)[:, :, low : low + step].flatten(0, 1)
    inputs = entry.a.shape[2]
    g = entry.g[..., low // inputs : (low + step) // inputs]
    return torch.bmm(g.flatten(2).mT, entry.a).reshape(len(entry) * entry.probes, -1)


def _add(out: Tensor, entry: Entry, other: Entry | None, outputs: Outputs) -> None:
    """Add one parameter's share of the kernel; without `other` the upper triangle is enough."""
    if outputs == "full":
        add_gram(out[0], entry, other)
    elif outputs == "shared":
        out[0] += gram(entry, other) / entry.probes
    else:
        for c in range(entry.probes):
            out[c] += gram(_of_output(entry, c), None if other is None else _of_output(other, c))


def _of_output(entry: Entry, c: int) -> Entry:
    if isinstance(entry, Pairs):
        return Pairs(entry.a, entry.g[:, :, c : c + 1])
    return Rows(entry.values[:, c : c + 1])


def _output_norms(entry: Entry) -> Tensor:
    """Squared length of each picture's row, output by output: (n, C), float64."""
    if isinstance(entry, Rows):
        return torch.linalg.vector_norm(entry.values.flatten(2), dim=2).double().square()
    g = entry.g.transpose(1, 2)
    return ((g @ g.mT) * (entry.a @ entry.a.mT)[:, None]).sum((2, 3), dtype=torch.float64)


def _collected(rows: TangentRows, batches: Iterable[Inputs], names: list[str]) -> Iterator[tuple[str, Entry]]:
    """Rows of all pictures, parameter by parameter; each is let go before the next is joined."""
    parts: dict[str, list[Entry]] = {}
    for x in batches:
        for name, entry in rows.entries(x, names).items():
            parts.setdefault(name, []).append(entry)
    for name in list(parts):
        own = parts.pop(name)
        yield name, own[0] if len(own) == 1 else join_entries(own)


def _cross_by_products(linearization: Linearization, batches: Collection[Inputs], others: Collection[Inputs]) -> Tensor:
    """Column by column: `J(X) (J(x')^T e)`."""
    columns = []
    for one in (mapped(x, lambda t, i=i: t[i : i + 1]) for x in others for i in range(sample_count(x))):
        output = linearization.f0(one)
        for unit in torch.eye(output.shape[1]).to(output):
            pulled = linearization.vjp(one, unit[None])
            columns.append(torch.cat([linearization.jvp(x, pulled).double().reshape(-1) for x in batches]))
    return torch.stack(columns, 1)
