"""Linear quadratic fine-tuning as one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.kfac import kfac
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import TangentVector, TaskVector, combine
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.classifier import Classifier, spent
from tangentune.methods.fine_tuning.labelled import class_positions, network_input, view_outputs
from tangentune.methods.lqf.conjugate import conjugate
from tangentune.methods.lqf.explanations import Batches, LogitExplanations
from tangentune.methods.lqf.moving import Move
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress, Record
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.start import mean_eigenvalue, start
from tangentune.methods.lqf.stochastic import Precondition, train
from tangentune.networks.backbone import Backbone, as_backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.targets import one_hot_targets

DRAWS, HALVINGS, STOCHASTIC_DAMPING = 4, 11, 10


@final
@usual_torch
@dataclass(frozen=True, eq=False)
class LQF(Classifier):
    """A network that is linear in its weights around where it was linearised last.

    Attributes:
        backbone: the network at the last linearisation point.
        lin: the same network with its head, linearised; the module's own tangent is the solution.
        tangent: how far the weights are from where LQF started, and the head: from the pre-trained ones, or from those
            that `move` ended with.
        settings: how it was trained.
        damping: lambda, absolute.
        unit: mean eigenvalue of K at the start; `damping = settings.damping * unit`.
        unit_error: standard error of `unit`, which is estimated.
        temperature: fitted to the outputs of probes that have not seen the pictures, since outputs of the training
            pictures are closer to their labels than others will be.
        loo: (n, C) exact leave-one-out outputs of the training pictures from solver "dual", in the last linear problem;
            else None. The head is not refitted: only a "random" one has seen no label of the picture. A "cross_fitted"
            one's output has not, but its Jacobian has: .72 right where .62 of others were (CIFAR-10, 10 a class).
        records: one a linearisation.
        move: how the network was moved before the first; None where it was not to be.
    """

    lin: Linearization
    tangent: TaskVector
    settings: LQFSettings
    damping: float
    unit: float
    unit_error: float
    loo: Tensor | None
    records: tuple[Record, ...]
    move: Move | None

    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) outputs `f0 + J u`; `flip` averages them over each picture and its mirror image."""
        return view_outputs(self.lin, self.backbone, pictures, batch_size, flip).mean(0)


@usual_torch
def fit_lqf(backbone: Backbone, pictures: Pictures, settings: LQFSettings | None = None, *, verbose: int = 0) -> LQF:
    """Linearise a backbone with a head around its weights and fit the linear model to labelled pictures.

    Linear quadratic fine-tuning (LQF: Achille et al. 2021, CVPR); every default is our own choice.

    Args:
        backbone: stays as it is.
        pictures: at the backbone's size, with class labels.
        settings: the problem and how it is solved; None takes `LQFSettings.moved()`, the best that was measured.
        verbose: 1 shows progress bars with the time left.

    Returns:
        The linear model with a record of its training. Cost of a step: one dual forward and one plain backward pass;
            before it, of `LQFSettings.moved()`, 10 epochs of fine-tuning at each of three rates, and once more.

    Raises:
        InputError: labels are missing or of one class only, there are too few pictures for a probe, the exact solver
            would be too large, or training diverged (`DivergedError`).
        BackboneError: the network cannot be linearised, or the pictures do not fit it.
        BudgetError: one parameter's rows do not fit into the exact solver's memory.

    Example:
        >>> import numpy as np
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh())
        >>> fitted = fit_lqf(Backbone(net), train, LQFSettings(solver="dual"))
        >>> fitted.predict(train).tolist(), fitted.records[0].suboptimality() < 1e-3
        (['low', 'low', 'high', 'high'], True)
    """
    backbone, settings = as_backbone(backbone), settings or LQFSettings.moved()
    began_at = spent()
    classes, positions = class_positions(pictures)
    labels = torch.from_numpy(positions).to(backbone.device)
    with warm_pages():
        began = start(backbone, pictures, labels, settings)
        problem = partial(began.objective, pictures, labels, settings)
        first = problem(1.0)
        unit, unit_error, passes = mean_eigenvalue(first, settings.seed)
        objective, progress = replace(first, damping=settings.damping * unit), Progress(0, verbose, passes=passes)
        records: list[Record] = []
        while True:
            u, loo = solve(objective, settings, progress)
            last = len(records) + 1 == settings.outer_steps
            step, moved = (None, None) if last else relinearise(objective, u, problem)
            records.append(Record(tuple(progress.points), tuple(progress.losses), progress.optimum, step))
            if moved is None:
                break
            objective, progress = moved, Progress(len(records), verbose)
    objective.lin.set_tangent(u)
    tangent = TaskVector(combine(1, u, 1, objective.centre))
    found = (objective.lin, tangent, settings, objective.damping, unit, unit_error, loo, tuple(records), began.move)
    return LQF(objective.backbone, classes, *spent(began_at), *found, temperature=began.temperature)


def solve(objective: Objective, settings: LQFSettings, progress: Progress) -> tuple[TangentVector, Tensor | None]:
    """The tangent that the solver ends with, and leave-one-out outputs of "dual"; measurements go to `progress`."""
    if settings.solver == "dual":
        progress.measure(objective, objective.lin.zeros())
        found = objective.solved(progress.verbose)
        u = found.tangent()
        progress.epoch, progress.passes, progress.optimum = 1, progress.passes + found.passes, found.value
        progress.measure(objective, u)
        return u, found.loo()
    if settings.exact_optimum:
        progress.optimum = objective.solved(progress.verbose).value
    if settings.solver == "pcg":
        approximate = preconditioner(objective, settings.preconditioner, settings, progress)
        return conjugate(objective, settings, progress, approximate), None
    kind = "kfac" if settings.solver == "kfac" else "none"
    return train(objective, settings, progress, preconditioner(objective, kind, settings, progress)), None


def preconditioner(objective: Objective, kind: str, settings: LQFSettings, progress: Progress) -> Precondition:
    """Approximate inverse of the problem's Hessian, up to a factor; "none" is the identity.

    Stochastic steps damp it ten times as much: what factors of few pictures say of weak directions is mostly noise,
    and momentum carries the error on. Cost: four backward passes over the pictures, eight for "ekfac".
    """
    if kind == "none":
        return lambda gradient: gradient
    shared = {"cotangents": "signs", "draws": DRAWS, "seed": settings.seed, "verbose": progress.verbose}
    curvature = kfac(objective.lin, objective.all_inputs(), kind=kind, **shared)
    progress.passes += DRAWS * objective.views * (2 if kind == "ekfac" else 1)
    damping = objective.damping * objective.views  # the curvature is a sum over views, the problem's a mean
    damping *= STOCHASTIC_DAMPING if settings.solver == "kfac" else 1
    return lambda gradient: curvature.solve(gradient, damping)


def relinearise(
    objective: Objective, u: TangentVector, problem: Callable[[float, TangentVector], Objective]
) -> tuple[float, Objective | None]:
    """Move to the solution, or part of the way, and linearise again: a Gauss-Newton step on the network itself.

    All steps lower one objective, the network's own: `F(w) = sum_i loss(f_w(x_i) + s_i, y_i) + 1/2 lambda ||w - w0||^2`
    with the pre-trained w0 and the lambda of the start. Two things keep a step where the linear model is right: the
    penalty always pulls towards w0, never towards the last point, so that more steps do not undo the damping; and the
    step is halved until F falls.

    Returns the share of the step by the solution u, and the problem there; 0 and None where eleven halvings do not
    lower F. Cost: one forward pass over the pictures for the old point and one for every step that is tried.
    """
    before = objective.value_at_point()
    for halving in range(HALVINGS + 1):
        step = 0.5**halving
        trial = problem(objective.damping, combine(1, objective.centre, step, u))
        if trial.value_at_point() < before:
            return step, trial
    return 0.0, None


@usual_torch
def explain(fitted: LQF, backbone: Backbone, pictures: Pictures) -> LogitExplanations:
    """The last linear problem of a fit, solved exactly whatever solver the fit used.

    Args:
        fitted: from `fit_lqf`.
        backbone: the one that was given to it.
        pictures: those that were given to it, with labels.

    Returns:
        The solved problem; cost as `LogitExplanations.of`, and fitting the cross-fitted heads again.

    Raises:
        InputError: the backbone prepares pictures otherwise, the loss is the cross-entropy, which has no exact
            solution, or n views C is above 20,000.
        BudgetError: one parameter alone needs more than 2 GiB.

    Example:
        >>> import numpy as np
        >>> dots, net = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]]), torch.nn.Linear(2, 8)
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> solved = explain(fit_lqf(Backbone(net), train, LQFSettings(solver="dual")), Backbone(net), train)
        >>> solved.influence([torch.ones(1, 2)]).shape          # by four pictures, on two outputs
        torch.Size([1, 4, 2])
    """
    settings = fitted.settings
    if other := fitted.backbone.contract.differences(backbone.contract):
        raise InputError(
            f"the backbone prepares pictures otherwise than that of the fit ({', '.join(other)}); give that one"
        )
    if settings.loss != "squared":
        raise InputError('only the squared loss is solved exactly; fit with loss="squared" to explain outputs')
    positions = torch.from_numpy(class_positions(pictures)[1]).to(fitted.backbone.device)
    targets = one_hot_targets(positions, len(fitted.classes), alpha=settings.alpha, centred=settings.centred)
    flip, cross_fitted = settings.flip and pictures.pixels.ndim == 4, settings.head == "cross_fitted"
    shift = start(backbone, pictures, positions, settings).shift if cross_fitted else None
    centre = combine(1, fitted.tangent, -1, fitted.lin.task_vector())
    parts = pictures.pixels.split(settings.batch_size)
    plain = Batches(len(parts), lambda: (network_input(fitted.backbone, part) for part in parts))
    return LogitExplanations.of(fitted.lin, plain, targets, fitted.damping, flip=flip, shift=shift, centre=centre)
