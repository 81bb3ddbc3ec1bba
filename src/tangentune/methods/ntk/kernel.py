"""The finite tangent kernel of a network, `J(x) J(x')^T`, for all outputs, each output, or their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.jacobian.layers import Entry, Pairs, Rows
from tangentune.jacobian.output_rows import TangentRows, joined, output_norms
from tangentune.kernels.gram import PAIR_OVERHEAD, TILE_BYTES, gram
from tangentune.kernels.output_gram import add_gram

Outputs = Literal["full", "independent", "shared"]
MEMORY_BYTES = 2**30


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

    Returns:
        The kernel. Cost: one forward and C backward passes an input and sweep, and at most n m C^2 p multiply-adds
        ("full") or n m C p (the others).

    Raises:
        InputError: an input or the kernel is not finite.

    Example:
        >>> from tangentune.jacobian.output_rows import survey_rows
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
    groups = [list(rows.held)] if held is not None else rows.groups(len(x), memory_bytes)
    for names in groups:
        own = held if held is not None else _collect(rows, x, names, batch_size)
        if second is None:
            for entry in own.values():
                _add_own(out, entry, outputs)
            continue
        for low in range(0, len(second), batch_size):
            part = second[low : low + batch_size]
            columns = out[:, :, low * count : (low + len(part)) * count]
            for name, entry in rows.entries(part, names).items():
                _add_cross(columns, own[name], entry, outputs)
    if not bool(torch.isfinite(out).all()):
        message = "the tangent kernel holds NaN or infinite values; the network overflows on these inputs"
        raise InputError(message)
    return torch.triu(out) + torch.triu(out, 1).mT if second is None else out


def kernel_diagonal(rows: TangentRows, x: Tensor, *, outputs: Outputs = "full", batch_size: int = 64) -> Tensor:
    """`k(x, x)` of every input and output, (n, C) in float64; (n, 1) for "shared". Cost: no products over pairs.

    Raises:
        InputError: an input is not finite.

    Example:
        >>> from tangentune.jacobian.output_rows import survey_rows
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> kernel_diagonal(survey_rows(torch.nn.Linear(2, 1), x), x)
        tensor([[26.]], dtype=torch.float64)
    """
    check_outputs(outputs)
    x = rows.prepare(x)
    parts = []
    for part in x.split(batch_size):
        parts.append(sum(output_norms(entry) for entry in rows.entries(part).values()))
    norms = torch.cat(parts)  # type: ignore[arg-type]
    return norms.mean(1, keepdim=True) if outputs == "shared" else norms


def hold_rows(rows: TangentRows, x: Tensor, batch_size: int, memory_bytes: int) -> dict[str, Entry] | None:
    """The rows of x, to be used again; None where they need more memory."""
    if len(x) * sum(rows.held.values()) > memory_bytes:
        return None
    return _collect(rows, rows.prepare(x), list(rows.held), batch_size)


def check_outputs(outputs: str) -> None:
    """Refuse an unknown word."""
    if outputs not in get_args(Outputs):
        message = f"outputs={outputs!r} is not known; use one of {', '.join(map(repr, get_args(Outputs)))}"
        raise InputError(message)


def _collect(rows: TangentRows, x: Tensor, names: list[str], batch_size: int) -> dict[str, Entry]:
    parts: dict[str, list[Entry]] = {name: [] for name in names}
    for part in x.split(batch_size):
        for name, entry in rows.entries(part, names).items():
            parts[name].append(entry)
    return {name: own[0] if len(own) == 1 else joined(own) for name, own in parts.items()}


def _add_own(out: Tensor, entry: Entry, outputs: Outputs) -> None:
    """Add one parameter's share; the upper triangle is enough."""
    if outputs == "full":
        add_gram(out[0], entry)
    elif outputs == "shared":
        out[0] += gram(entry) / entry.probes
    else:
        for c in range(entry.probes):
            out[c] += gram(_of_output(entry, c))


def _add_cross(out: Tensor, entry: Entry, other: Entry, outputs: Outputs) -> None:
    if outputs == "full":
        _cross_full(out[0], entry, other)
    elif outputs == "shared":
        out[0] += gram(entry, other) / entry.probes
    else:
        for c in range(entry.probes):
            out[c] += gram(_of_output(entry, c), _of_output(other, c))


def _of_output(entry: Entry, c: int) -> Entry:
    if isinstance(entry, Pairs):
        return Pairs(entry.a, entry.g[:, :, c : c + 1])
    return Rows(entry.values[:, c : c + 1])


def _cross_full(out: Tensor, entry: Entry, other: Entry) -> None:
    """All outputs of one against all outputs of the other, by whichever way is cheaper."""
    if isinstance(entry, Pairs) and isinstance(other, Pairs) and _pairs_pay(entry, other):
        _cross_pairs(out, entry, other)
        return
    for left, right in _column_chunks(entry, other):
        out += left @ right.T


def _pairs_pay(entry: Pairs, other: Pairs) -> bool:
    positions, width = entry.a.shape[1] * other.a.shape[1], entry.g.shape[3]
    return positions == 1 or positions * (width + PAIR_OVERHEAD) < width * entry.a.shape[2] / 2


def _cross_pairs(out: Tensor, entry: Pairs, other: Pairs) -> None:
    """`K[ic, jc'] = sum_st (a_is . a_jt) (g_ics . g_jct')`, strips of inputs at a time."""
    n, t, outputs, width = entry.g.shape
    m, s = other.a.shape[:2]
    step = max(1, TILE_BYTES // (m * t * s * outputs**2 * entry.dtype.itemsize))
    for low in range(0, n, step):
        a, g = entry.a[low : low + step], entry.g[low : low + step]
        alike = (a.flatten(0, 1) @ other.a.flatten(0, 1).T).view(len(a), t, 1, m, s, 1)
        product = g.reshape(-1, width) @ other.g.reshape(-1, width).T
        product = (product.view(len(a), t, outputs, m, s, outputs) * alike).sum((1, 4))
        out[low * outputs : (low + len(a)) * outputs] += product.reshape(len(a) * outputs, -1)


def _column_chunks(entry: Entry, other: Entry) -> Iterator[tuple[Tensor, Tensor]]:
    """Explicit rows of both sides (n C, chunk) and (m C, chunk), the same columns of each."""
    inputs = max(e.a.shape[2] if isinstance(e, Pairs) else 1 for e in (entry, other))
    tall = max(len(entry), len(other)) * entry.probes
    step = max(1, TILE_BYTES // (tall * inputs * entry.dtype.itemsize)) * inputs
    for low in range(0, entry.width // entry.probes, step):
        yield _columns(entry, low, step), _columns(other, low, step)


def _columns(entry: Entry, low: int, step: int) -> Tensor:
    if isinstance(entry, Rows):
        return entry.values.flatten(2)[:, :, low : low + step].flatten(0, 1)
    inputs = entry.a.shape[2]
    g = entry.g[..., low // inputs : (low + step) // inputs]
    return torch.bmm(g.flatten(2).mT, entry.a).reshape(len(entry) * entry.probes, -1)
