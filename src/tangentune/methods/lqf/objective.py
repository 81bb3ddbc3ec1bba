"""The convex problem that LQF solves, its value and gradient over all pictures, and what they certify.

`P(u) = sum_i loss(f0(x_i) + s_i + J(x_i) u, y_i) + 1/2 lambda ||u + d||^2`. The shift s is zero, or what a head that
has not seen picture i says less what the head at the linearisation point says (cross-fitting). The centre d is what
the weights had moved when they were linearised again, at first zero. With mirror images the loss is both views' mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import TangentVector, combine, dot
from tangentune.methods.fine_tuning.labelled import network_input
from tangentune.methods.lqf.explanations import Batches, LogitExplanations
from tangentune.networks.backbone import Backbone


@final
@dataclass(frozen=True, eq=False)
class Objective:
    """The problem around one linearisation point."""

    lin: Linearization  # the linearised network with its head
    backbone: Backbone  # the same network, for its contract
    pixels: Tensor  # (n, ...) of the training pictures
    targets: Tensor  # (n, C); for the cross-entropy (n,) classes as positions
    shift: Tensor  # (views, n, C); the second view is the mirror image
    damping: float  # lambda, absolute
    centre: TangentVector  # d
    batch_size: int  # pictures that go through the network at a time

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def views(self) -> int:
        """1, or 2 with mirror images."""
        return len(self.shift)

    @property
    def quadratic(self) -> bool:
        """Whether the loss is the squared one."""
        return self.targets.ndim == 2

    def inputs(self, rows: Tensor, view: Tensor | int) -> Tensor:
        """Network inputs of some pictures; `view` is 0, 1, or one of them a picture."""
        x = network_input(self.backbone, self.pixels[rows])
        mirrored = torch.as_tensor(view).expand(len(rows)).to(x.device) == 1
        if not bool(mirrored.any()):
            return x
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    def batches(self) -> Iterator[tuple[Tensor, int]]:
        """Rows and view of every batch: all pictures, then all mirror images."""
        for view in range(self.views):
            for rows in torch.arange(len(self)).split(self.batch_size):
                yield rows, view

    def all_inputs(self) -> Batches:
        """Network inputs of every batch and view."""
        parts = list(self.batches())
        return Batches(len(parts), lambda: (self.inputs(rows, view) for rows, view in parts))

    def losses(self, outputs: Tensor, rows: Tensor) -> tuple[float, Tensor]:
        """Sum of the losses of (n, C) outputs, in float64, and its gradient in them."""
        targets = self.targets[rows]
        if self.quadratic:
            errors = outputs.double() - targets
            return 0.5 * float(errors.square().sum()), errors.to(outputs)
        scores = outputs.double()
        excess = scores.softmax(1) - F.one_hot(targets, scores.shape[1])
        return float(F.cross_entropy(scores, targets, reduction="sum")), excess.to(outputs)

    def learn(self, u: TangentVector, rows: Tensor, view: Tensor | int) -> tuple[float, TangentVector]:
        """Sum of the losses of a batch and its gradient in u; one dual forward and one plain backward pass."""
        shift, sums = self.shift[view, rows], [0.0]

        def cotangent(f0: Tensor, jv: Tensor) -> Tensor:
            sums[0], errors = self.losses(f0 + shift + jv, rows)
            return errors

        grads = self.lin.step(self.inputs(rows, view), u, cotangent)[2]
        return sums[0], grads

    def value_at_point(self) -> float:
        """P(0): the network's own loss at the linearisation point with its penalty; one forward pass."""
        total = 0.0
        for rows, view in self.batches():
            outputs = self.lin.f0(self.inputs(rows, view)) + self.shift[view, rows]
            total += self.losses(outputs, rows)[0] / self.views
        return total + 0.5 * self.damping * dot(self.centre, self.centre)

    def solved(self, verbose: int = 0) -> LogitExplanations:
        """The exact optimum of the squared loss with exact leave-one-out; cost and errors as `LogitExplanations.of`."""
        parts = [rows for rows, view in self.batches() if view == 0]
        plain = Batches(len(parts), lambda: (self.inputs(rows, 0) for rows in parts))
        centre = self.centre if any(bool(t.any()) for t in self.centre.values()) else None
        more = {"flip": self.views == 2, "shift": self.shift, "centre": centre, "verbose": verbose}
        return LogitExplanations.of(self.lin, plain, self.targets, self.damping, **more)

    def measure(self, u: TangentVector) -> tuple[float, TangentVector, float]:
        """P(u), its gradient, and what P(u) is above the least value at most; one pass (two with mirror images).

        The bound is `||g||^2 / (2 lambda)`, as P is lambda-strongly convex; for the squared loss the gap to the best
        dual value along the residual's direction, which is never larger.
        """
        loss, gradient = 0.0, self.lin.zeros()
        for rows, view in self.batches():
            value, grads = self.learn(u, rows, view)
            loss += value / self.views
            gradient = combine(1, gradient, 1 / self.views, grads)
        penalty, total = self.damping, combine(1, u, 1, self.centre)
        gradient = combine(1, gradient, penalty, total)
        value = loss + 0.5 * penalty * dot(total, total)
        bound = dot(gradient, gradient) / (2 * penalty)
        if self.quadratic:
            pulled = combine(penalty, total, -1, gradient)
            squares = 2 * value - penalty * dot(total, total)
            gap = value - _dual_value(squares, dot(pulled, total), dot(pulled, pulled), penalty)
            if gap > torch.finfo(self.shift.dtype).eps ** 0.5 * value:  # else it is mostly rounding
                bound = min(bound, gap)
        return value, gradient, bound

    def normal(self, v: TangentVector) -> TangentVector:
        """`sum_i J_i^T J_i v`, the mean of both views' with mirror images; one pass (two)."""
        product = self.lin.zeros()
        for rows, view in self.batches():
            product = combine(1, product, 1 / self.views, self.lin.normal(self.inputs(rows, view), v))
        return product


def _dual_value(squares: float, inner: float, pulled: float, damping: float) -> float:
    """Best value of the dual along the residual's direction: no tangent has a smaller objective.

    With e the residual at u and v = u + d: `max over t` of `t r^T e - t^2/2 (||e||^2 + ||J^T e||^2 / lambda)`, where
    `r^T e = ||e||^2 + v^T J^T e`; t = 1 is the bound by the gradient's length (papers: weak duality). Squares are
    `||e||^2`, inner `v^T J^T e`, pulled `||J^T e||^2`.
    """
    denominator = squares + pulled / damping
    return 0.5 * (squares + inner) ** 2 / denominator if denominator > 0 and math.isfinite(denominator) else 0.0
