"""What a solver measures about itself on the way, and the record that is left of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from tangentune.errors import DivergedError
from tangentune.jacobian.task_vector import TangentVector, dot
from tangentune.methods.lqf.objective import Objective


@final
@dataclass(frozen=True)
class Point:
    """One exact measurement, over all pictures.

    Attributes:
        epoch: epochs (iterations of "pcg") before it.
        passes: passes over the pictures before it; one pass is one step over every picture. Measurements and
            preparation count; "exact_optimum" does not.
        objective: P(u).
        gradient_norm: length of P's gradient.
        relative_residual: that over the length at u = 0.
        bound: P(u) is above the least value by this at most; computed, not assumed.
    """

    epoch: int
    passes: float
    objective: float
    gradient_norm: float
    relative_residual: float
    bound: float


@final
@dataclass(frozen=True)
class Record:
    """How one linearised problem was solved.

    Attributes:
        points: measurements in order; the first is at u = 0, the last at the solution.
        losses: objective of each epoch as the mini-batches saw it, each before its step; stochastic solvers only.
        optimum: the least value, where it was solved for exactly; else None.
        step: share of this solution by which the weights moved before the next linearisation; None after the last. 0:
            no share lowered the network's own objective, so re-linearising ended.
    """

    points: tuple[Point, ...]
    losses: tuple[float, ...] = ()
    optimum: float | None = None
    step: float | None = None

    @property
    def least(self) -> float:
        """The exact optimum where it is known, else the largest value proven to be no larger than it."""
        known = max(point.objective - point.bound for point in self.points)
        return known if self.optimum is None else self.optimum

    @property
    def passes(self) -> float:
        """Passes over the pictures in all."""
        return self.points[-1].passes

    def suboptimality(self, point: int = -1) -> float:
        """Share of the way from u = 0 to the optimum that was still to go at a measurement.

        Exact where `optimum` is known; else an upper bound, as `least` is a lower one. 0 where u = 0 is optimal.

        Example:
            >>> points = Point(0, 1, 5.0, 1.0, 1.0, 4.0), Point(1, 3, 2.01, 0.1, 0.1, 0.5)
            >>> round(Record(points, optimum=2.0).suboptimality(), 4)
            0.0033
        """
        reach = self.points[0].objective - self.least
        return (self.points[point].objective - self.least) / reach if reach > 0 else 0.0


@final
@dataclass(eq=False)
class Progress:
    """How far one linearised problem is solved; solvers write it down as they go."""

    stage: int = 0  # linearisations before this one
    verbose: int = 0  # 1 shows progress bars
    epoch: int = 0  # epochs or iterations finished
    passes: float = 0.0  # passes over the pictures
    points: list[Point] = field(default_factory=list)  # measurements in order
    losses: list[float] = field(default_factory=list)  # running objective of each epoch
    optimum: float | None = None  # exact least value, where it was asked for

    def measure(self, objective: Objective, u: TangentVector) -> TangentVector:
        """Write down one exact measurement; the gradient."""
        value, gradient, bound = objective.measure(u)
        self.passes += objective.views
        self.note(value, dot(gradient, gradient) ** 0.5, bound)
        return gradient

    def note(self, value: float, gradient_norm: float, bound: float) -> None:
        """Write down a measurement that the solver made by itself."""
        if not value < float("inf") or not gradient_norm < float("inf"):
            raise DivergedError(
                f"LQF diverged in epoch {max(self.epoch, 1)}; lower the learning rate or raise the damping"
            )
        first = self.points[0].gradient_norm if self.points else gradient_norm
        share = gradient_norm / first if first > 0 else 0.0
        self.points.append(Point(self.epoch, self.passes, value, gradient_norm, share, bound))
