"""Linear quadratic fine-tuning as one call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.tangents import combine
from tangentune.jacobian.task_vector import TaskVector
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.labelled import class_positions, mean_outputs
from tangentune.methods.lqf.checkpoint import Checkpoint, identity
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.record import Record
from tangentune.methods.lqf.relinearise import relinearise
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.solving import solve
from tangentune.methods.lqf.start import Start, mean_eigenvalue, start
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


@final
@dataclass(frozen=True, eq=False)
class LQF:
    """A network that is linear in its weights around where it was linearised last.

    Attributes:
        backbone: the network at the last linearisation point, for its contract.
        lin: the same network with its head, linearised; the module's own tangent is the solution.
        tangent: how far the weights are from the pre-trained ones, and the head from where it started.
        classes: (C,) labels in the order of the outputs, sorted.
        settings: how it was trained.
        damping: lambda, absolute.
        unit: mean eigenvalue of K at the start; `damping = settings.damping * unit`.
        unit_error: standard error of `unit`, which is estimated.
        temperature: what outputs are divided by before the softmax; fitted to probes that have not seen the
            pictures, since outputs of the training pictures are closer to their labels than others will be.
        loo: (n, C) exact leave-one-out outputs of the training pictures from solver "dual", in the last linear problem;
            else None. The head is not refitted: only a "random" one has seen no label of the picture. With
            "cross_fitted" the picture's output has not, but its Jacobian, which is the head's, has: 0.72 right by
            leave-one-out where 0.62 of other pictures were (CIFAR-10, 10 a class).
        records: one a linearisation.
        seconds: wall time of training, without any prediction.
        cpu_seconds: processor time of the same.
    """

    backbone: Backbone
    lin: Linearization
    tangent: TaskVector
    classes: NDArray[Any]
    settings: LQFSettings
    damping: float
    unit: float
    unit_error: float
    temperature: float
    loo: Tensor | None
    records: tuple[Record, ...]
    seconds: float
    cpu_seconds: float

    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) outputs `f0 + J u`; `flip` averages them over each picture and its mirror image."""
        return mean_outputs(self.lin, self.backbone, pictures, batch_size, flip)

    def predict_proba(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) class probabilities."""
        return (self.logits(pictures, batch_size=batch_size, flip=flip) / self.temperature).softmax(dim=1)

    def predict(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> NDArray[Any]:
        """(n,) most likely labels."""
        best = self.logits(pictures, batch_size=batch_size, flip=flip).argmax(dim=1)
        return self.classes[best.cpu().numpy()]


def fit_lqf(
    backbone: Backbone,
    pictures: Pictures,
    settings: LQFSettings | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> LQF:
    """Linearise a backbone with a head around its weights and fit the linear model to labelled pictures.

    Linear quadratic fine-tuning (LQF: Achille et al. 2021, CVPR); every default is our own choice.

    Args:
        backbone: stays as it is.
        pictures: at the backbone's size, with class labels.
        settings: the problem and how it is solved; None takes the defaults.
        checkpoint: a file that is written after every epoch or iteration. If it is there already, the run goes on
            from it, and ends where it would have ended uninterrupted, bit for bit on the same machine.
        verbose: 1 shows progress bars with the time left.

    Returns:
        The linear model with a record of its training. Cost of a step: one dual forward and one plain backward pass.

    Raises:
        InputError: labels are missing or of one class only, there are too few pictures for a probe, the exact solver
            would be too large, or training diverged (`DivergedError`).
        BackboneError: the network cannot be linearised, or the pictures do not fit it.
        BudgetError: one parameter's rows do not fit into the exact solver's memory.
        StoreError: the checkpoint is damaged, of another run, or cannot be written.

    Example:
        >>> import numpy as np
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh())
        >>> fitted = fit_lqf(Backbone(net), train, LQFSettings(solver="dual"))
        >>> fitted.predict(train).tolist(), fitted.records[0].suboptimality() < 1e-3
        (['low', 'low', 'high', 'high'], True)
    """
    settings = settings or LQFSettings()
    progress = Progress(verbose=verbose)
    if checkpoint is not None:
        progress.checkpoint = Checkpoint(Path(checkpoint), identity(backbone, pictures, settings))
        progress.resume()
    classes, positions = class_positions(pictures)
    labels = torch.from_numpy(positions).to(backbone.device)
    with warm_pages():
        began = start(backbone, pictures, labels, settings)
        objective = _first_objective(began, pictures, labels, settings, progress)
        u = solve(objective, settings, progress)
        while progress.stage + 1 < settings.outer_steps and progress.step is None:
            moved = relinearise(objective, u, began, pictures, labels, settings, progress)
            if moved is not None:
                objective = moved
                u = solve(objective, settings, progress)
    objective.lin.set_tangent(u)
    tangent = TaskVector(combine(1, u, 1, objective.centre))
    unit, error = progress.unit
    return LQF(
        objective.backbone, objective.lin, tangent, classes, settings, objective.damping, unit, error,
        began.temperature, progress.tangents.get("loo", {}).get("outputs"), progress.finish(), *progress.seconds,
    )  # fmt: skip


def _first_objective(
    began: Start, pictures: Pictures, labels: Tensor, settings: LQFSettings, progress: Progress
) -> Objective:
    """The problem at the start, or where the checkpoint left off."""
    objective = began.objective(pictures, labels, settings, 1.0)
    zeros = objective.lin.zeros()
    if not progress.tangents:
        *progress.unit, progress.passes = mean_eigenvalue(objective, settings.seed)
        progress.tangents["centre"] = zeros
    for use, tensors in progress.tangents.items():
        if tensors.keys() == zeros.keys():  # files know no order and no memory format; the last bit depends on both
            like = {
                name: z if tensors[name].shape == z.shape else tensors[name].to(z.device) for name, z in zeros.items()
            }
            progress.tangents[use] = {name: torch.empty_like(z).copy_(tensors[name]) for name, z in like.items()}
    damping = settings.damping * progress.unit[0]
    return began.objective(pictures, labels, settings, damping, progress.tangents["centre"])
