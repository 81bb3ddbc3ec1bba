"""Where a run is: what the solvers write down as they go, and what a checkpoint holds."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, final

from tangentune.jacobian.tangents import Tangent
from tangentune.methods.fine_tuning.training import DivergedError
from tangentune.methods.lqf.checkpoint import Checkpoint
from tangentune.methods.lqf.objective import Measured, Objective
from tangentune.methods.lqf.record import Point, Record


@final
@dataclass(eq=False)
class Progress:
    """The state of a run; plain values and tangents, so that a checkpoint is all of it.

    Attributes:
        checkpoint: where it is kept; None keeps nothing.
        verbose: 1 shows progress bars.
        stage: linearisations that are finished.
        epoch: epochs or iterations finished in this one.
        passes: passes over the pictures in this one.
        unit: mean eigenvalue of K at the start, and its standard error.
        solved: whether this linearisation's solver is done.
        points: measurements of this linearisation.
        losses: running objective of each epoch of this linearisation.
        optimum: exact least value of this linearisation, where it was asked for.
        step: 0 where this linearisation is the last because no step from it was accepted.
        scalars: what the solver measured once.
        records: of finished linearisations.
        tangents: by use: "u", "centre", and what the solver keeps.
    """

    checkpoint: Checkpoint | None = None
    verbose: int = 0
    stage: int = 0
    epoch: int = 0
    passes: float = 0.0
    unit: list[float] = field(default_factory=list)
    solved: bool = False
    optimum: float | None = None
    step: float | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    tangents: dict[str, Tangent] = field(default_factory=dict)
    before: tuple[float, float] = (0.0, 0.0)
    began: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> tuple[float, float]:
        """Wall and processor time so far, that of killed runs included as far as it was kept."""
        now = time.perf_counter(), time.process_time()
        return self.before[0] + now[0] - self.began[0], self.before[1] + now[1] - self.began[1]

    def resume(self) -> None:
        """Take over what the checkpoint holds, if anything.

        Raises:
            StoreError: the checkpoint is damaged or of another run.
        """
        found = None if self.checkpoint is None else self.checkpoint.read()
        if found is None:
            return
        tensors, book = found
        for name in _PLAIN:
            setattr(self, name, book[name])
        self.before = (book["seconds"][0], book["seconds"][1])
        self.points = [Point(**point) for point in book["points"]]
        self.records = [_record(record) for record in book["records"]]
        self.tangents = {}
        for name, tensor in tensors.items():
            use, _, parameter = name.partition("/")
            self.tangents.setdefault(use, {})[parameter] = tensor

    def keep(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        book: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN} | {"seconds": self.seconds}
        book |= {"points": [asdict(p) for p in self.points], "records": [asdict(r) for r in self.records]}
        tensors = {f"{use}/{name}": t for use, tangent in self.tangents.items() for name, t in tangent.items()}
        self.checkpoint.write(tensors, book)

    def measure(self, objective: Objective, u: Tangent) -> Tangent:
        """Write down one exact measurement; the gradient.

        Raises:
            DivergedError: the objective is NaN or infinite.
        """
        measured, gradient = objective.measure(u)
        self.passes += objective.views
        self.note(measured)
        return gradient

    def note(self, measured: Measured) -> None:
        """Write down a measurement that the solver made by itself.

        Raises:
            DivergedError: the objective is NaN or infinite.
        """
        if not measured.value < float("inf") or not measured.gradient_norm < float("inf"):
            message = f"LQF diverged in epoch {max(self.epoch, 1)}; lower the learning rate or raise the damping"
            raise DivergedError(message)
        first = self.points[0].gradient_norm if self.points else measured.gradient_norm
        share = measured.gradient_norm / first if first > 0 else 0.0
        self.points.append(
            Point(self.epoch, self.passes, measured.value, measured.gradient_norm, share, measured.bound)
        )

    def next_stage(self, step: float, centre: Tangent) -> None:
        """Finish a linearisation: the weights move by `step` times its solution, to `centre` in all."""
        self.records.append(Record(tuple(self.points), tuple(self.losses), self.optimum, step))
        self.tangents = {"centre": centre}
        self.points, self.losses, self.optimum, self.scalars, self.step = [], [], None, {}, None
        self.stage, self.epoch, self.passes, self.solved = self.stage + 1, 0, 0.0, False

    def finish(self) -> tuple[Record, ...]:
        """Records of all linearisations."""
        return (*self.records, Record(tuple(self.points), tuple(self.losses), self.optimum, self.step))


_PLAIN = ("stage", "epoch", "passes", "unit", "solved", "optimum", "step", "scalars", "losses")


def _record(fields: dict[str, Any]) -> Record:
    points = tuple(Point(**point) for point in fields["points"])
    return Record(points, tuple(fields["losses"]), fields["optimum"], fields["step"])
