"""Gram matrix of a linearised network's logits, `K = J J^T` over pictures and outputs: (n C, n C) in float64.

One forward and C backward passes a batch give every parameter's rows, as position pairs where those are smaller;
inputs are shared by the C outputs. Products run in the network's precision over short tiles, summed in float64.
`logit_cross_gram` is the block of K between two sets of pictures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tangentune.errors import BudgetError, InputError
from tangentune.jacobian.kfac_passes import plan
from tangentune.jacobian.layers import Entry, Pairs, Rows, Use, add_uses, stack_probes
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.watched_passes import backwards, watch
from tangentune.kernels.gram import PAIR_OVERHEAD, TILE_BYTES
from tangentune.networks.network_function import Inputs

LIMIT = 20_000  # rows of K: 3.2 GB in float64, and its eigendecomposition takes as much again, and hours
DUAL_FORWARD, BACKWARD = 3, 2  # in plain forward passes


def logit_gram(
    linearization: Linearization, batches: Collection[Inputs], *, memory_bytes: int = 2 * 2**30, verbose: int = 0
) -> Tensor:
    """`J J^T` over all pictures and outputs, row i C + c for picture i, output c.

    Args:
        linearization: the network.
        batches: inputs, in the order of the rows.
        memory_bytes: for the rows that are held at a time; parameters are taken in groups that fit, each group
            costing one more sweep over the data.
        verbose: 1 shows progress.

    Returns:
        (n C, n C), float64. Cost: one forward and C backwards a picture and sweep, and about `(n C)^2 p / 2`
        multiply-adds, less in late layers.

    Raises:
        InputError: n C is above 20,000; solve by `tangentune.solvers.pcg` instead.
        BudgetError: one parameter alone needs more than `memory_bytes`.

    Example:
        >>> from torch import nn
        >>> lin, x = Linearization(nn.Linear(3, 2, bias=False)), torch.randn(4, 3)
        >>> kernel = logit_gram(lin, [x])      # a linear layer: the outputs share one kernel and do not mix
        >>> torch.allclose(kernel, torch.kron((x @ x.T).double(), torch.eye(2).double()), atol=1e-5)
        True
    """
    counts = [len(linearization.f0(x)) for x in batches]
    first = next(iter(batches))
    outputs = linearization.f0(first).shape[1]
    size = sum(counts) * outputs
    if size > LIMIT:
        message = (
            f"{sum(counts)} pictures x {outputs} outputs make a Gram matrix of {size:,} rows, above {LIMIT:,}; solve "
            "in parameter space with tangentune.solvers.pcg, or take fewer pictures"
        )
        raise InputError(message)
    out = torch.zeros(size, size, dtype=torch.float64, device=linearization.f0(first).device)
    groups = list(_groups(linearization, first, sum(counts), memory_bytes))
    for names, ruled in tqdm(groups, desc="Gram of logits", disable=not verbose, delay=1.0):
        for entry in _entries(linearization, batches, names, ruled):
            add_gram(out, entry)
    return torch.triu(out) + torch.triu(out, 1).T


def logit_cross_gram(
    linearization: Linearization,
    batches: Collection[Inputs],
    others: Collection[Inputs],
    *,
    memory_bytes: int = 2 * 2**30,
) -> Tensor:
    """`J(X) J(X')^T` between all outputs of two sets of pictures, row i C + c and column j C + d.

    Args:
        linearization: the network.
        batches: inputs X, in the order of the rows.
        others: inputs X', in the order of the columns.
        memory_bytes: as for `logit_gram`.

    Returns:
        (n C, m C), float64. The cheaper of two ways: rows of both sets, at one forward and C backwards a picture and
        sweep; or one dual forward over X for every output of X', which holds no rows and wins for few pictures X' and
        many sweeps.

    Raises:
        InputError: n C or m C is above 20,000.

    Example:
        >>> from torch import nn
        >>> lin, x = Linearization(nn.Linear(3, 2, bias=False)), torch.randn(4, 3)
        >>> kernel = logit_cross_gram(lin, [x], [x[:1]])
        >>> torch.allclose(kernel, logit_gram(lin, [x])[:, :2], atol=1e-5)
        True
    """
    left, right = (sum(len(linearization.f0(x)) for x in part) for part in (batches, others))
    first = next(iter(batches))
    outputs = linearization.f0(first).shape[1]
    if max(left, right) * outputs > LIMIT:
        message = (
            f"{max(left, right)} pictures x {outputs} outputs make a Gram matrix of {max(left, right) * outputs:,} "
            f"rows, above {LIMIT:,}; take fewer pictures at a time"
        )
        raise InputError(message)
    try:
        groups = list(_groups(linearization, first, left + right, memory_bytes))
    except BudgetError:
        return _cross_by_products(linearization, batches, others)
    if DUAL_FORWARD * left * right * outputs < len(groups) * (left + right) * (1 + BACKWARD * outputs):
        return _cross_by_products(linearization, batches, others)
    out = torch.zeros(left * outputs, right * outputs, dtype=torch.float64, device=linearization.f0(first).device)
    for names, ruled in groups:
        for entry in _entries(linearization, chain(batches, others), names, ruled):
            add_gram(out, entry, split=left)
    return out


def _cross_by_products(linearization: Linearization, batches: Collection[Inputs], others: Collection[Inputs]) -> Tensor:
    """Column by column: `J(X) (J(x')^T e)`."""
    columns = []
    for one in (one for x in others for one in _singles(linearization, x)):
        for unit in _units(linearization.f0(one)):
            pulled = linearization.vjp(one, unit)
            columns.append(torch.cat([linearization.jvp(x, pulled).double().reshape(-1) for x in batches]))
    return torch.stack(columns, 1)


def add_gram(out: Tensor, entry: Entry, tile_bytes: int = TILE_BYTES, split: int | None = None) -> None:
    """Add one parameter's inner products by whichever way is cheaper.

    To the upper triangle of (n C, n C); with `split`, to (split C, (n - split) C): the first pictures with the others.
    """
    if isinstance(entry, Pairs):
        positions, outputs = entry.a.shape[1], entry.g.shape[3]
        # Position pairs pay off while T^2 (o + overhead) is below half the explicit row.
        if positions**2 * (outputs + PAIR_OVERHEAD) < outputs * entry.a.shape[2] / 2 or positions == 1:
            _add_pairs(out, entry, tile_bytes, split)
            return
    at = None if split is None else split * entry.probes
    for part in _row_chunks(entry, tile_bytes):
        for low, high, start in _strips(len(part), max(64, -(-len(part) // 10)), at):
            out[low:high, start - (at or 0) :] += part[low:high] @ part[start:].T


def _strips(count: int, step: int, split: int | None) -> Iterator[tuple[int, int, int]]:
    """Rows from, rows to, columns from: strips of an upper triangle, or of the block beyond `split`."""
    end = count if split is None else split
    for low in range(0, end, step):
        yield low, min(low + step, end), low if split is None else split


def _row_chunks(entry: Entry, tile_bytes: int) -> Iterator[Tensor]:
    """Rows of all pictures and outputs (n C, chunk), some of the parameter's entries at a time."""
    n, outputs = len(entry), entry.probes
    wide = max(1, tile_bytes // (n * outputs * entry.dtype.itemsize))
    if isinstance(entry, Rows):
        flat = entry.values.reshape(n * outputs, -1)
        yield from (flat[:, low : low + wide] for low in range(0, flat.shape[1], wide))
        return
    step = max(1, wide // entry.a.shape[2])
    for low in range(0, entry.g.shape[3], step):
        g = entry.g[..., low : low + step]
        yield torch.bmm(g.flatten(2).mT, entry.a).reshape(n * outputs, -1)


def _add_pairs(out: Tensor, entry: Pairs, tile_bytes: int, split: int | None) -> None:
    """`K[ic, jc'] = sum_st (a_is . a_jt) (g_ics . g_jct')`, pictures in strips."""
    n, positions, outputs, width = entry.g.shape
    a, g = entry.a.flatten(0, 1), entry.g.reshape(-1, width)
    step = max(1, tile_bytes // (n * positions**2 * outputs**2 * entry.dtype.itemsize))
    for low, high, start in _strips(n, step, split):
        alike = a[low * positions : high * positions] @ a[start * positions :].T
        t = positions * outputs
        product = (g[low * t : high * t] @ g[start * t :].T).view(
            high - low, positions, outputs, n - start, positions, outputs
        )
        product *= alike.view(high - low, positions, 1, n - start, positions, 1)
        if positions > 1:
            product = product.sum((1, 4), keepdim=True)
        column = (start - (split or 0)) * outputs
        out[low * outputs : high * outputs, column:] += product.reshape((high - low) * outputs, -1)


def _entries(linearization: Linearization, batches: Iterable[Inputs], names: set[str], ruled: bool) -> Iterator[Entry]:
    """Rows of all pictures, parameter by parameter; each is let go before the next is joined."""
    parts: dict[str, list[Entry]] = {}
    for x in batches:
        found = _ruled_entries(linearization, x, names) if ruled else _generic_entries(linearization, x, names)
        for name, entry in found.items():
            parts.setdefault(name, []).append(entry)
    for name in list(parts):
        yield _joined(parts.pop(name))


def _ruled_entries(linearization: Linearization, x: Inputs, names: set[str]) -> dict[str, Entry]:
    """Rows of all outputs by parameter: Pairs or Rows with C probes."""
    collected: dict[tuple[int, str], list[Entry]] = {}

    def sink(position: int, use: Use, role: str, name: str, g: Tensor) -> None:
        if name in names:
            collected.setdefault((position, name), []).append(use.rows(role, g, len(output)))

    output, recorder = watch(linearization, x, sink)
    backwards(output, recorder, list(_units(output)))
    entries: dict[str, Entry] = {}
    for (_, name), per_output in collected.items():
        entry = stack_probes(per_output)
        entries[name] = add_uses(entries[name], entry) if name in entries else entry
    return entries


def _generic_entries(linearization: Linearization, x: Inputs, names: set[str]) -> dict[str, Entry]:
    """Rows of parameters without a rule: one backward pass a picture and output."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    count = 0
    for one in _singles(linearization, x):
        count += 1
        for unit in _units(linearization.f0(one)):
            pulled = linearization.vjp(one, unit)
            for name in names:
                rows[name].append(pulled[name].reshape(-1))
    return {name: Rows(torch.stack(own).unflatten(0, (count, -1))[..., None, None, :]) for name, own in rows.items()}


def _singles(linearization: Linearization, x: Inputs) -> Iterator[Inputs]:
    """The pictures of a batch, one by one."""
    for i in range(len(linearization.f0(x))):
        yield x[i : i + 1] if isinstance(x, Tensor) else {key: value[i : i + 1] for key, value in x.items()}


def _units(output: Tensor) -> Iterator[Tensor]:
    for c in range(output.shape[1]):
        unit = torch.zeros_like(output)
        unit[:, c] = 1
        yield unit


def _joined(entries: list[Entry]) -> Entry:
    pairs = [entry for entry in entries if isinstance(entry, Pairs)]
    if len(pairs) == len(entries) and len({entry.a.shape[1] for entry in pairs}) == 1:
        return Pairs(torch.cat([entry.a for entry in pairs]), torch.cat([entry.g for entry in pairs]))
    return Rows(torch.cat([entry.explicit() for entry in entries]))


def _groups(
    linearization: Linearization, first: Inputs, pictures: int, memory_bytes: int
) -> Iterator[tuple[set[str], bool]]:
    """Parameters whose rows fit into memory together, and whether they go by layer rules."""
    generic = set(plan(linearization, first, any_size=True).generic)
    one = first[:1] if isinstance(first, Tensor) else {key: value[:1] for key, value in first.items()}
    held = {
        name: entry.nbytes
        for name, entry in _ruled_entries(linearization, one, set(linearization.names) - generic).items()
    }
    outputs, point = linearization.f0(one).shape[1], linearization.point()
    held |= {name: outputs * point[name].nbytes for name in generic}
    for ruled in (True, False):
        group: set[str] = set()
        used = 0
        for name in [name for name in held if (name not in generic) == ruled]:
            need = pictures * held[name]
            if need > memory_bytes:
                message = (
                    f"the rows of {name} need {need / 2**20:.1f} MB for {pictures} pictures; allow more memory_bytes, "
                    "leave the parameter out with params, or solve with tangentune.solvers.pcg"
                )
                raise BudgetError(message)
            if used + need > memory_bytes:
                yield group, ruled
                group, used = set(), 0
            group.add(name)
            used += need
        if group:
            yield group, ruled
