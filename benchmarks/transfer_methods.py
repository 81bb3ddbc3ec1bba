"""What the transfer studies compare: tangent-kernel processes, processes on features, and fine-tuning, with scores."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.methods.ntk import NTKGaussianProcess
from tangentune.methods.ntk.evidence import common_scale, kernel_spectrum, maximise_evidence
from tangentune.methods.ntk.function_space import condition, leave_out, moments
from tangentune.metrics import accuracy, ece, nll
from tangentune.networks.heads import stratified_folds
from tangentune.solvers.calibration import fit_temperature, probabilities

FOLDS, SMALL = 5, 50  # all folds up to so many examples, one beyond
LENGTHS = tuple(10 ** (k / 4) for k in range(-6, 7))  # of the RBF kernel, in median distances


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of (m, T) targets: mean, variance of an observation; leave-one-out predictions (n, T) where there are any."""

    mean: Tensor
    variance: Tensor | None = None
    loo: Tensor | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Tuning:
    """Of fine-tuning: learning rates and the most epochs, both chosen on held-out adaptation data; batch size."""

    rates: tuple[float, ...]
    epochs: int
    batch: int = 32


def timed(method: Callable[[], Prediction]) -> Prediction:
    """With the seconds it took."""
    start = time.perf_counter()
    found = method()
    return replace(found, seconds=time.perf_counter() - start)


def tangent_process(network: nn.Module, x: Tensor, y: Tensor, new: Tensor, **settings: Any) -> Prediction:
    """Condition the network's tangent kernel on the data; noise and prior variance by evidence on them."""
    return process_prediction(NTKGaussianProcess(network, space="function", **settings).fit(x, y), new)


def process_prediction(gp: NTKGaussianProcess, new: Tensor) -> Prediction:
    """Moments of new observations."""
    mean, std = gp.predict(new, return_std=True, observed=True)
    return Prediction(mean, std.square(), gp.loo())


@dataclass(frozen=True)
class Scales:
    """Of a process on features: length of the RBF kernel in inputs' units, noise over prior variance."""

    length: float
    ratio: float


def feature_scales(features: Tensor, y: Tensor, kind: Literal["linear", "rbf"]) -> Scales:
    """Those of the highest evidence on the data."""
    features, y = features.double(), y.double()
    unit = float(torch.pdist(features).median().clamp_min(1e-12))
    found: list[tuple[float, Scales]] = []
    for length in [unit * factor for factor in LENGTHS] if kind == "rbf" else [1.0]:
        spectrum = kernel_spectrum(_kernel(features, features, length, kind)[None], _ones(features), y[None])
        noise, prior = maximise_evidence(spectrum, "evidence", "evidence", 1e-10)
        found.append((spectrum.log_likelihood(noise, prior), Scales(length, noise / prior)))
    return max(found, key=lambda pair: pair[0])[1]


def feature_process(
    features: Tensor, y: Tensor, new: Tensor, kind: Literal["linear", "rbf"], scales: Scales | None = None
) -> Prediction:
    """Gaussian process on fixed features with a free constant: Bayesian last layer, or an RBF kernel.

    Without `scales` they are chosen by evidence on the data; the size of kernel and noise always is.
    """
    scales = feature_scales(features, y, kind) if scales is None else scales
    features, y, new = features.double(), y.double(), new.double()
    kernel = _kernel(features, features, scales.length, kind)[None]
    prior = common_scale(kernel_spectrum(kernel, _ones(features), y[None]), scales.ratio)
    noise = scales.ratio * prior
    found = condition(prior * kernel + noise * torch.eye(len(features)).double(), _ones(features), y[None])
    cross = prior * _kernel(features, new, scales.length, kind)[None]
    own = new.square().sum(1) if kind == "linear" else torch.ones(len(new)).double()
    posterior = moments(found, cross, _ones(new), prior * own[None])
    assert posterior.variance is not None
    variance = (posterior.variance[0, :, None] + noise).expand(-1, y.shape[1])
    return Prediction(posterior.mean[0], variance, leave_out(found, y[None], 1)[0])


def fine_tune(
    start: Callable[[Tensor, Tensor], nn.Module],
    x: Tensor,
    y: Tensor,
    new: Tensor,
    tuning: Tuning,
    task: Task,
    seed: int,
) -> Prediction:
    """All layers by Adam; rate and number of epochs have the least loss on held-out folds, then all data are used.

    Args:
        start: the network before the first epoch, from the data that it may see.
        x: adaptation inputs.
        y: their targets, or classes.
        new: inputs to predict.
        tuning: what is tried.
        task: folds, loss, and what held-out outputs say about certainty.
        seed: of folds and batches.
    """
    folds = task.folds(y, seed)
    held: dict[tuple[float, int], list[Tensor]] = {}
    used = folds if len(x) <= SMALL else folds[:1]
    for fold in used:
        rest = torch.tensor(np.setdiff1d(range(len(x)), fold))
        network = start(x[rest], y[rest])
        for rate in tuning.rates:

            def note(epoch: int, tuned: nn.Module, rate: float = rate, fold: Tensor = fold) -> None:
                with torch.no_grad():
                    held.setdefault((rate, epoch), []).append(tuned(x[fold]))

            _train(network, x[rest], y[rest], rate, tuning.epochs, tuning.batch, task.loss, seed, note)
    truth = torch.cat([y[fold] for fold in used])
    outputs = {key: torch.cat(parts) for key, parts in held.items()}
    losses = {key: task.held_out_loss(own, truth) for key, own in outputs.items()}
    best = min(losses, key=lambda key: losses[key] if math.isfinite(losses[key]) else math.inf)
    tuned = _train(start(x, y), x, y, best[0], best[1], tuning.batch, task.loss, seed)
    with torch.no_grad():
        mean = torch.cat([tuned(part) for part in new.split(500)])
    return task.prediction(mean, outputs[best], truth)


class Task(ABC):
    """What fine-tuning has to know of a kind of targets."""

    loss: Callable[[Tensor, Tensor], Tensor]

    @abstractmethod
    def folds(self, y: Tensor, seed: int) -> list[Tensor]:
        """Positions of each fold."""

    @abstractmethod
    def held_out_loss(self, outputs: Tensor, y: Tensor) -> float:
        """What rate and epochs are chosen by."""

    @abstractmethod
    def prediction(self, mean: Tensor, held_out: Tensor, y: Tensor) -> Prediction:
        """New outputs, with the certainty that held-out outputs speak for."""


@final
class Regression(Task):
    """Squared loss; the variance is the held-out squared error."""

    loss = staticmethod(F.mse_loss)

    def folds(self, y: Tensor, seed: int) -> list[Tensor]:
        """At random."""
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        return list(order.chunk(min(FOLDS, len(y))))

    def held_out_loss(self, outputs: Tensor, y: Tensor) -> float:
        """Mean squared error."""
        return float(F.mse_loss(outputs, y))

    def prediction(self, mean: Tensor, held_out: Tensor, y: Tensor) -> Prediction:
        """One variance for all."""
        return Prediction(mean.double(), F.mse_loss(held_out, y).double().clamp_min(1e-12).expand(mean.shape))


@final
class Classification(Task):
    """Cross-entropy; the temperature is fitted to held-out outputs."""

    loss = staticmethod(F.cross_entropy)

    def folds(self, y: Tensor, seed: int) -> list[Tensor]:
        """Every class in every fold, as far as it goes."""
        count = min(FOLDS, int(y.bincount().min()))
        labels = stratified_folds(y, count, seed)
        return [(labels == k).nonzero()[:, 0] for k in range(count)]

    def held_out_loss(self, outputs: Tensor, y: Tensor) -> float:
        """Cross-entropy at the best temperature."""
        if not bool(torch.isfinite(outputs).all()):
            return math.inf
        return float(F.nll_loss(probabilities(outputs, fit_temperature(outputs, y)).clamp_min(1e-12).log(), y))

    def prediction(self, mean: Tensor, held_out: Tensor, y: Tensor) -> Prediction:
        """Logits, divided by the temperature."""
        return Prediction(mean.double() / fit_temperature(held_out, y))


def regression_scores(found: Prediction, y: Tensor) -> dict[str, float]:
    """Root mean squared error, and mean negative log density of the observations."""
    assert found.variance is not None
    errors = (found.mean - y.double()).square()
    density = 0.5 * ((2 * math.pi * found.variance).log() + errors / found.variance)
    return {"rmse": float(errors.mean().sqrt()), "nll": float(density.mean()), "seconds": found.seconds}


def class_scores(found: Prediction, labels: Tensor, trained: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood and calibration error; a process gets its temperature from leave-one-out."""
    proba = found.mean.softmax(1)
    if found.loo is not None:
        proba = probabilities(found.mean, fit_temperature(found.loo, trained))
    answers = {"accuracy": accuracy(labels, proba.argmax(1)), "nll": nll(labels, proba), "ece": ece(labels, proba)}
    return {**answers, "seconds": found.seconds}


def train_source(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    epochs: int,
    rate: float,
    seed: int,
) -> nn.Module:
    """The network that is adapted: Adam with a rate falling to zero; returned in eval mode, frozen."""
    network = copy.deepcopy(network).train().requires_grad_(True)
    steps = epochs * -(-len(x) // 64)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


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


def _ones(features: Tensor) -> Tensor:
    """Basis of the free constant, (1, n, 1)."""
    return torch.ones(1, len(features), 1, dtype=torch.float64)


def _train(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    rate: float,
    epochs: int,
    batch: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    note: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A fine-tuned copy; `note` sees it before the first and after every epoch."""
    network = copy.deepcopy(network).requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs + 1):
        if note is not None:
            note(epoch, network)
        if epoch == epochs:
            break
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimiser.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimiser.step()
    return network
