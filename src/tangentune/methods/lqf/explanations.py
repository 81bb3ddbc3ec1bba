"""What every training picture does in an exactly solved logit problem.

The outputs couple: picture i owns C rows of the dual system (2 C with mirror images), and all that `tangentune.solvers`
calculates on a system holds block by block, without refitting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import final

import torch
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import TangentVector, combine
from tangentune.kernels.output_gram import logit_cross_gram, logit_gram
from tangentune.networks.network_function import Inputs
from tangentune.solvers import leave_out
from tangentune.solvers.system import System, build, design


@final
class Batches(Collection[Inputs]):
    """Network inputs that are made anew whenever they are read."""

    def __init__(self, count: int, read: Callable[[], Iterator[Inputs]]) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Inputs]:
        return self.read()

    def __contains__(self, x: object) -> bool:
        return any(x is batch for batch in self)


@final
@usual_torch
@dataclass(frozen=True, eq=False)
class LogitExplanations:
    """A solved problem `minimise 1/2 sum_i ||y_i - s_i - f0(x_i) - J_i u||^2 + damping/2 ||u + d||^2`; by `of`.

    Answers are exact at the fixed linearisation point: a head that was fitted to a picture's label has still seen it.
    """

    lin: Linearization  # the linearised network
    inputs: Collection[Inputs]  # of the training pictures, and then of their mirror images if the loss is both's mean
    views: int  # 1, or 2 with mirror images
    system: System  # of width views C, without intercept; targets are what is left to fit at u = -d
    base: Tensor  # (n views C, 1) outputs at u = -d: `f0 + s - J d`
    centre: TangentVector | None  # d; None is zero

    @classmethod
    def of(
        cls,
        lin: Linearization,
        batches: Collection[Inputs],
        targets: Tensor,
        damping: float,
        *,
        flip: bool = False,
        shift: Tensor | None = None,
        centre: Mapping[str, Tensor] | None = None,
        verbose: int = 0,
    ) -> LogitExplanations:
        """Solve a problem and keep the inverse of its Gram matrix.

        Args:
            lin: the linearised network.
            batches: network inputs of n pictures; they are read again for every question about new pictures.
            targets: (n, C).
            damping: absolute.
            flip: mirror images have half of each picture's weight.
            shift: (views, n, C) s, added to f0 at the training pictures; None is zero.
            centre: d, by parameter name; None is zero.
            verbose: 1 shows a progress bar.

        Returns:
            The solved problem; cost as `logit_gram`, and `(n views C)^3` multiply-adds.

        Raises:
            InputError: shapes do not fit, the damping is not positive, or n views C is above 20,000.
            BudgetError: one parameter alone needs more than 2 GiB.

        Example:
            >>> lin, x = Linearization(torch.nn.Linear(3, 2)), torch.eye(4)[:, :3]
            >>> solved = LogitExplanations.of(lin, [x], torch.eye(4)[:, :2], damping=1.0)
            >>> by_itself = solved.outputs([x]) - solved.influence([x]).diagonal().T    # without the picture itself
            >>> torch.allclose(by_itself.double(), solved.loo(), atol=1e-6)
            True
        """
        inputs, views = _with_mirrored(batches) if flip else batches, 2 if flip else 1
        base = _base(lin, inputs, centre, views)
        pictures, outputs = base.shape[1:]
        if targets.shape != (pictures, outputs) or (shift is not None and shift.shape != base.shape):
            message = f"{pictures} pictures and {outputs} outputs need targets ({pictures}, {outputs}) and a shift "
            message += f"{tuple(base.shape)}, not {tuple(targets.shape)} and {None if shift is None else shift.shape}"
            raise InputError(message)
        kernel = logit_gram(lin, inputs, verbose=verbose)
        kernel = _by_picture(_by_picture(kernel, views, outputs).T, views, outputs)
        rows = _flat(base if shift is None else base + shift.to(base))
        weights = torch.full_like(rows[:, 0], 1 / views)
        left = _flat(targets.to(base).expand_as(base)) - rows
        system = build(kernel, left, damping, weights, intercept=False, width=views * outputs)
        kept = None if centre is None else {name: centre[name].detach() for name in lin.names}
        return cls(lin, inputs, views, system, rows, kept)

    def outputs(self, batches: Collection[Inputs]) -> Tensor:
        """(m, C) outputs `f0 + J u` at other pictures."""
        left = design(self.system, self.cross(batches)) @ self.system.unknowns
        return _base(self.lin, batches, self.centre, 1)[0] + left.view(-1, self._outputs)

    @property
    def value(self) -> float:
        """The objective at the solution, the least value."""
        return 0.5 * self.system.damping * float((self.system.targets * self.system.dual).sum())

    @property
    def passes(self) -> float:
        """Passes over the pictures that solving took: one for each output and view, two more for the rest."""
        return (self._outputs + 2.0) * self.views

    def tangent(self) -> TangentVector:
        """The solution u; one backward pass over the training pictures."""
        dual = self._parts(self.system.dual).to(self.base)
        v, at = self.lin.zeros(), 0
        for x in self.inputs:
            view, low = divmod(at, dual.shape[1])
            count = len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))
            v = combine(1, v, 1, self.lin.vjp(x, dual[view, low : low + count]))
            at += count
        return v if self.centre is None else combine(1, v, -1, self.centre)

    def cross(self, batches: Collection[Inputs]) -> Tensor:
        """(m C, n views C) kernel between other pictures and the training pictures."""
        columns = logit_cross_gram(self.lin, self.inputs, batches)
        return _by_picture(columns, self.views, self._outputs).T

    def influence(self, batches: Collection[Inputs]) -> Tensor:
        """(m, n, C): outputs less those of the solution without training picture i (its mirror image with it)."""
        return self._by_output(leave_out.influence(self.system, self.cross(batches)))

    def contributions(self, batches: Collection[Inputs]) -> Tensor:
        """(m, n, C): share of every training picture; they sum to outputs less `f0 - J d`."""
        return self._by_output(leave_out.contributions(self.system, self.cross(batches)))

    def unique_information(self, batches: Collection[Inputs] | None = None) -> Tensor:
        """(n,) squared change of outputs by leaving a picture out, mean over pictures; of the tangent, if None."""
        if batches is None:
            return leave_out.unique_information(self.system)
        return self._outputs * leave_out.unique_information(self.system, self.cross(batches))

    def loo(self) -> Tensor:
        """(n, C) outputs at every training picture by the solution without it; mean of both views with `flip`."""
        return self._parts(self.base + leave_out.loo(self.system)).mean(0)

    def leave_out(self, groups: Tensor) -> Tensor:
        """(n, C) outputs at every training picture by the solution without its group; groups (n,) integers."""
        return self._parts(self.base + leave_out.leave_out(self.system, groups)).mean(0)

    @property
    def _outputs(self) -> int:
        return self.system.width // self.views

    def _parts(self, rows: Tensor) -> Tensor:
        """(n views C, 1) -> (views, n, C)."""
        return rows.view(-1, self.views, self._outputs).transpose(0, 1)

    def _by_output(self, found: Tensor) -> Tensor:
        """(m C, n, 1) -> (m, n, C)."""
        return found.view(-1, self._outputs, self.system.pictures).transpose(1, 2)


def _base(lin: Linearization, inputs: Iterable[Inputs], centre: Mapping[str, Tensor] | None, views: int) -> Tensor:
    """`f0 - J d`, (views, n, C), in float64."""
    found = [lin.f0(x) if centre is None else lin.f0(x) - lin.jvp(x, centre) for x in inputs]
    return torch.cat(found).double().unflatten(0, (views, -1))


def _flat(parts: Tensor) -> Tensor:
    """(views, n, C) -> (n views C, 1): the rows of a picture together."""
    return parts.transpose(0, 1).reshape(-1, 1)


def _by_picture(rows: Tensor, views: int, outputs: int) -> Tensor:
    """(views n C, k) with all plain pictures first -> (n views C, k)."""
    return rows.unflatten(0, (views, -1, outputs)).transpose(0, 1).flatten(0, 2)


def _with_mirrored(batches: Collection[Inputs]) -> Batches:
    return Batches(2 * len(batches), lambda: chain(batches, map(_mirrored, batches)))


def _mirrored(x: Inputs) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise InputError("only pictures (n, channels, height, width) have mirror images; leave flip off")
    return x.flip(-1)
