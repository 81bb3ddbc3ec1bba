"""The linearisation point: network, head, what each picture starts from, and the unit of damping."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from tangentune.errors import InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import TangentVector, dot
from tangentune.methods.fine_tuning.labelled import view_outputs
from tangentune.methods.lqf.moving import Move, move
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import cross_fitted_probe, probe_head, random_head
from tangentune.networks.leaky import leaky
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.calibration import fit_temperature
from tangentune.solvers.targets import one_hot_targets

UNIT_SAMPLES, UNIT_BATCH, FOLDS = 256, 8, 5


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Where LQF begins; made by `start`."""

    backbone: Backbone  # a copy of the given one, leaking and moved where that was asked for
    head: nn.Linear  # from features to outputs, not zero
    shift: Tensor  # (views, n, C); zero unless the head is cross-fitted
    temperature: float  # of the softmax, from outputs of probes that have not seen the picture; 1 for cross-entropy
    move: Move | None  # how the network was moved, if it was asked to

    def objective(
        self, pictures: Pictures, targets: Tensor, s: LQFSettings, damping: float, moved: TangentVector | None = None
    ) -> Objective:
        """The problem at the pre-trained weights, or at weights that have `moved` from there (a copy)."""
        still = moved is None or not any(bool(t.any()) for t in moved.values())
        backbone, head = (self.backbone, self.head) if still else self._at(moved or {})
        lin = Linearization(backbone, s.params, head)
        if s.loss == "squared":
            targets = one_hot_targets(targets, head.out_features, alpha=s.alpha, centred=s.centred)
        centre = lin.zeros() if moved is None else moved
        return Objective(lin, backbone, pictures.pixels, targets, self.shift, damping, centre, s.batch_size)

    def _at(self, moved: TangentVector) -> tuple[Backbone, nn.Linear]:
        backbone, head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        parameters = dict(backbone.module.named_parameters())
        parameters |= {f"head.{name}": p for name, p in head.named_parameters()}
        with torch.no_grad():
            for name, step in moved.items():
                parameters[name].add_(step)
        return backbone, head


def start(backbone: Backbone, pictures: Pictures, positions: Tensor, settings: LQFSettings) -> Start:
    """Copy the backbone, move it, fit the head; cost the moves, one forward pass a view, a few ridge regressions."""
    copied = copy.deepcopy(backbone) if settings.slope is None else leaky(backbone, settings.slope).network
    if pictures.pixels.ndim == 4:  # a quarter faster on a processor, the same up to rounding
        copied.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    copied, moved = move(copied, pictures, positions, settings)
    features = view_outputs(copied.features, copied, pictures, max(settings.batch_size, 32), settings.flip)
    mean, outputs = features.mean(0), int(positions.max()) + 1
    squared, cross_fitted, held_out = settings.loss == "squared", settings.head == "cross_fitted", None
    if squared or cross_fitted:
        held_out = cross_fitted_probe(mean, positions, folds=min(FOLDS, len(mean)), seed=settings.seed)
    if settings.head == "random":
        head = random_head(mean.shape[1], outputs, seed=settings.seed).to(mean)
    elif cross_fitted and held_out is not None:
        head = held_out.head
    else:
        head = probe_head(mean, positions, calibrated=settings.head == "calibrated_probe")
    for parameter in head.requires_grad_(False).parameters():
        parameter.mul_(settings.head_scale)
    shift = features.new_zeros(len(features), len(mean), outputs)
    if cross_fitted and held_out is not None:
        for view, phi in enumerate(features):
            for fold, unseeing in enumerate(held_out.heads):
                rows = held_out.fold == fold
                shift[view, rows] = settings.head_scale * unseeing(phi[rows]) - head(phi[rows])
    temperature = 1.0
    if squared and held_out is not None:
        temperature = settings.alpha * fit_temperature(held_out.outputs.double(), positions)
    if squared and moved is not None and moved.rate:  # the moved network has seen every picture's label
        temperature = settings.alpha * moved.temperature
    return Start(copied, head, shift.detach(), temperature, moved)


def mean_eigenvalue(objective: Objective, seed: int) -> tuple[float, float, float]:
    """Mean eigenvalue of `K = J J^T`, trace / (n C), the estimate's standard error, and the passes it took.

    Random signs z in batches of 8 pictures, `||J^T z||^2 / (8 C)` (Hutchinson 1990), on at least 256 pictures, drawn
    again where there are fewer and evenly spaced where there are more.
    """
    generator = torch.Generator().manual_seed(seed)
    n, outputs = len(objective), objective.shift.shape[2]
    order = torch.linspace(0, n - 1, min(n, UNIT_SAMPLES)).round().long()
    order = order.repeat(math.ceil(UNIT_SAMPLES / len(order)))
    found, sizes = [], []
    for rows in order.split(UNIT_BATCH):
        signs = torch.randint(0, 2, (len(rows), outputs), generator=generator) * 2.0 - 1.0
        pulled = objective.lin.vjp(objective.inputs(rows, 0), signs.to(objective.shift))
        found.append(dot(pulled, pulled) / (len(rows) * outputs))
        sizes.append(len(rows))
    values, weights = torch.tensor(found, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    mean = float((values * weights).sum() / weights.sum())
    if not 0 < mean < math.inf:
        raise InputError(
            f"the Jacobian's mean square is {mean} on these pictures; is the network constant, or overflowing?"
        )
    return mean, float(values.std() / len(values) ** 0.5), len(order) / n
