"""What the transfer studies compare: tangent-kernel processes, processes on features, and fine-tuning, with scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.study import stopwatch
from tangentune import heads, ntk
from tangentune.estimators.summary import class_scores
from tangentune.solvers.calibration import fit_temperature, probabilities

FOLDS, SMALL = 5, 50  # all folds up to so many examples, one beyond
LENGTHS = tuple(10 ** (k / 4) for k in range(-6, 7))  # of the RBF kernel, in median distances
LEAST_RATIO = 1e-10  # of noise to prior variance, in mean eigenvalues
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of (m, T) targets: mean, variance of an observation; leave-one-out predictions (n, T) where there are any."""

    mean: Tensor
    variance: Tensor | None = None
    loo: Tensor | None = None
    seconds: float = 0.0


def timed(ways: Mapping[str, Callable[[], Prediction]]) -> dict[str, Prediction]:
    """Every prediction, with the seconds it took."""
    out = {}
    for name, way in ways.items():
        with stopwatch() as spent:
            found = way()
        out[name] = replace(found, seconds=spent["seconds"])
    return out


def tangent_process(network: nn.Module, x: Tensor, y: Tensor, new: Tensor, **settings: Any) -> Prediction:
    """Condition the network's tangent kernel on the data; noise and prior variance by evidence on them."""
    return process_prediction(ntk.NTKGaussianProcess(network, space="function", **settings).fit(x, y), new)


def process_prediction(gp: ntk.NTKGaussianProcess, new: Tensor) -> Prediction:
    """Moments of new observations."""
    mean, std = gp.predict(new, return_std=True, observed=True)
    return Prediction(mean, std.square(), gp.loo())


def evidence(kernel: Tensor, y: Tensor) -> tuple[float, float, float]:
    """The highest evidence of a kernel with a free constant: its logarithm up to a constant, noise / prior, prior.

    The constant leaves the contrasts `z = Q^T y` (Q an orthonormal basis of what is orthogonal to ones), Gaussian with
    covariance `prior (Q^T K Q + ratio I)`. At a given ratio the best prior is the mean of `z^2 / (eigenvalue + ratio)`.
    """
    n, targets = y.shape
    q = torch.linalg.qr(torch.eye(n, dtype=torch.float64)[:, :-1] - 1 / n)[0]
    values, vectors = torch.linalg.eigh(q.T @ kernel @ q)
    values, squares = values.clamp_min(0), (vectors.T @ q.T @ y).square().sum(1)
    least = LEAST_RATIO * float(values.mean().clamp_min(1e-300))

    def prior(log: float) -> float:
        return max(float((squares / (values + math.exp(log))).mean()) / targets, 1e-300)

    def cost(log: float) -> float:
        return 0.5 * targets * float((values + math.exp(log)).log().sum() + len(values) * math.log(prior(log)))

    best = minimize_scalar(cost, bounds=(math.log(least), math.log(1e16 * least)), method="bounded")
    log = float(best.x)  # pyright: ignore[reportAttributeAccessIssue]
    return -cost(log), math.exp(log), prior(log)


def feature_process(features: Tensor, y: Tensor, new: Tensor, kind: Literal["linear", "rbf"]) -> Prediction:
    """Gaussian process on fixed features with a free constant: Bayesian last layer, or an RBF kernel.

    Length of the kernel, noise and prior variance by evidence. With `A = [[K + ratio I, 1], [1, 0]]`, in units of the
    prior variance: mean `[k, 1] A^-1 [y; 0]`, variance `k(x, x) - [k, 1] A^-1 [k; 1]`, leave-one-out error of an
    example `(A^-1 [y; 0])_i / (A^-1)_ii`.
    """
    features, y, new = features.double(), y.double(), new.double()
    n, unit = len(features), float(torch.pdist(features).median().clamp_min(1e-12))
    lengths = [unit * factor for factor in LENGTHS] if kind == "rbf" else [1.0]
    found = [(*evidence(_kernel(features, features, length, kind), y), length) for length in lengths]
    _, ratio, prior, length = max(found)
    bordered = F.pad(_kernel(features, features, length, kind) + ratio * torch.eye(n).double(), (0, 1, 0, 1), value=1.0)
    bordered[n, n] = 0
    inverse = torch.linalg.inv(bordered)
    dual = inverse @ F.pad(y, (0, 0, 0, 1))
    cross = F.pad(_kernel(new, features, length, kind), (0, 1), value=1.0)
    own = new.square().sum(1) if kind == "linear" else torch.ones(len(new)).double()
    variance = prior * (own - (cross @ inverse * cross).sum(1) + ratio)
    loo = y - (dual / inverse.diagonal()[:, None])[:n]
    return Prediction(cross @ dual, variance.clamp_min(prior * ratio)[:, None].expand(-1, y.shape[1]), loo)


def fine_tune(
    start: Callable[[Tensor, Tensor], nn.Module],
    data: tuple[Tensor, Tensor],
    new: Tensor,
    tried: tuple[Sequence[float], int],
    task: Task,
    seed: int,
) -> Prediction:
    """All layers by Adam; rate and number of epochs have the least loss on held-out folds, then all data are used.

    `start` makes the network before the first epoch, from the data that it may see; `tried` are learning rates, and the
    most epochs; `seed` is of folds and batches.
    """
    x, y = data
    held: dict[tuple[float, int], list[Tensor]] = {}
    folds = task.folds(y, seed)[: None if len(x) <= SMALL else 1]
    for fold in folds:
        rest = torch.tensor(np.setdiff1d(range(len(x)), fold))
        network = start(x[rest], y[rest])
        for rate in tried[0]:

            def note(epoch: int, tuned: nn.Module, rate: float = rate, fold: Tensor = fold) -> None:
                with torch.no_grad():
                    held.setdefault((rate, epoch), []).append(tuned(x[fold]))

            adam(network, x[rest], y[rest], rate, tried[1], task.loss, seed, note=note)
    truth = torch.cat([y[fold] for fold in folds])
    outputs = {key: torch.cat(parts) for key, parts in held.items()}
    losses = {key: task.held_out_loss(own, truth) for key, own in outputs.items()}
    best = min(losses, key=lambda key: losses[key] if math.isfinite(losses[key]) else math.inf)
    tuned = adam(start(x, y), x, y, *best, task.loss, seed)
    with torch.no_grad():
        mean = torch.cat([tuned(part) for part in new.split(500)])
    return task.prediction(mean, outputs[best], truth)


@dataclass(frozen=True)
class Task:
    """What fine-tuning has to know of a kind of targets."""

    loss: Loss  # to train by
    folds: Callable[[Tensor, int], list[Tensor]]  # (targets, seed) -> positions of each fold
    held_out_loss: Callable[[Tensor, Tensor], float]  # what rate and epochs are chosen by
    # new outputs, held-out outputs and their targets -> with the certainty that the latter speak for
    prediction: Callable[[Tensor, Tensor, Tensor], Prediction]


def random_folds(y: Tensor, seed: int) -> list[Tensor]:
    """Of numbers."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return list(order.chunk(min(FOLDS, len(y))))


def class_folds(y: Tensor, seed: int) -> list[Tensor]:
    """Every class in every fold, as far as it goes."""
    count = min(FOLDS, int(y.bincount().min()))
    labels = heads.stratified_folds(y, count, seed)
    return [(labels == k).nonzero()[:, 0] for k in range(count)]


def calibrated_loss(outputs: Tensor, y: Tensor) -> float:
    """Cross-entropy at the best temperature."""
    if not bool(torch.isfinite(outputs).all()):
        return math.inf
    return float(F.nll_loss(probabilities(outputs, fit_temperature(outputs, y)).clamp_min(1e-12).log(), y))


# One variance for all: the held-out squared error.
REGRESSION = Task(
    F.mse_loss,
    random_folds,
    lambda outputs, y: float(F.mse_loss(outputs, y)),
    lambda mean, held, y: Prediction(mean.double(), F.mse_loss(held, y).double().clamp_min(1e-12).expand(mean.shape)),
)
# Logits, divided by the temperature of held-out outputs.
CLASSIFICATION = Task(
    F.cross_entropy,
    class_folds,
    calibrated_loss,
    lambda mean, held, y: Prediction(mean.double() / fit_temperature(held, y)),
)


def regression_scores(found: Prediction, y: Tensor, unit: float) -> dict[str, float]:
    """Root mean squared error, and mean negative log density of the observations, in such units."""
    assert found.variance is not None
    errors = (found.mean - y.double()).square()
    density = 0.5 * ((2 * math.pi * found.variance).log() + errors / found.variance)
    rmse, nll = float(errors.mean().sqrt()) / unit, float(density.mean()) - math.log(unit)
    return {"rmse": rmse, "nll": nll, "seconds": found.seconds}


def calibrated_scores(found: Prediction, labels: Tensor, trained: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood and calibration error; a process gets its temperature from leave-one-out."""
    proba = found.mean.softmax(1)
    if found.loo is not None:
        proba = probabilities(found.mean, fit_temperature(found.loo, trained))
    return {**class_scores(labels.numpy(), proba.numpy()), "seconds": found.seconds}


def small_cnn(channels: int, size: int, outputs: int) -> nn.Module:
    """Three convolutions with ReLU and pooling, one hidden layer of 64 features, a linear head."""
    layers: list[nn.Module] = []
    for inputs, width in ((channels, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (size // 8) ** 2, 64), nn.ReLU())
    return nn.Sequential(body, nn.Linear(64, outputs))


def _kernel(left: Tensor, right: Tensor, length: float, kind: str) -> Tensor:
    if kind == "linear":
        return left @ right.T
    return torch.exp(-0.5 * (torch.cdist(left, right) / length).square())


def source_network(
    network: nn.Module, x: Tensor, y: Tensor, rate: float, epochs: int, loss: Loss, seed: int
) -> nn.Sequential:
    """The network that is adapted: Adam with a rate falling to zero; returned in eval mode, frozen."""
    trained = adam(network.train(), x, y, rate, epochs, loss, seed, batch=64, fall=True)
    assert isinstance(trained, nn.Sequential)
    return trained.eval().requires_grad_(False)


def adam(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    rate: float,
    epochs: int,
    loss: Loss,
    seed: int,
    *,
    batch: int = 32,
    fall: bool = False,
    note: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A trained copy; `note` sees it before the first and after every epoch, `fall` lets the rate fall to zero."""
    network = copy.deepcopy(network).requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps) if fall else None
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs + 1):
        if note is not None:
            note(epoch, network)
        for rows in torch.randperm(len(x), generator=generator).split(batch) if epoch < epochs else ():
            optimiser.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimiser.step()
            if schedule is not None:
                schedule.step()
    return network
