"""A network trained on one sine wave, adapted to others of changed phase and amplitude with 5 to 50 points.

Source: `A sin(w x + b)`, A in [0.1, 5], w in [0.5, 2], b in [0, 2 pi], x in [-5, 5], noise 0.01 A; 200 points, MLP
1-40-40-1 with tanh. Targets: the same w, A and b drawn anew. Errors in units of the target's A. About 5 minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.plots import INK, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.transfer import methods
from benchmarks.transfer.page import LAST, SHOWN, TANGENT, TUNED
from tangentune import ntk

NAME, SEEDS, TASKS, POINTS, NOISE = "transfer_sines", range(5), range(3), (5, 10, 20, 50), 0.01
EPOCHS = 1500  # 6,000 steps
TUNING = ((1e-3, 3e-3, 1e-2), 300)


@dataclass(frozen=True)
class Wave:
    """`amplitude sin(frequency x + phase)`."""

    amplitude: float
    frequency: float
    phase: float

    def __call__(self, x: Tensor) -> Tensor:
        """Without noise."""
        return self.amplitude * (self.frequency * x + self.phase).sin()


def keys() -> Iterator[Row]:
    """Every row of the study."""
    for seed in SEEDS:
        yield from ({"seed": seed, "task": task, "points": points} for task in TASKS for points in POINTS)


@dataclass(frozen=True, eq=False)
class Source:
    """The trained network (float64), its wave, and the data it was trained on."""

    network: nn.Sequential
    wave: Wave
    x: Tensor
    y: Tensor


@cache
def trained_source(seed: int) -> Source:
    """One source task."""
    generator = torch.Generator().manual_seed(seed)
    wave = Wave(*_draw(generator, (0.1, 5.0), (0.5, 2.0), (0.0, 2 * math.pi)))
    torch.manual_seed(seed)
    layers = nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
    x = _inputs(200, generator)
    y = wave(x) + NOISE * wave.amplitude * _normal(200, generator)
    network = methods.source_network(nn.Sequential(*layers).double(), x, y, 1e-2, EPOCHS, mse_loss, seed)
    return Source(network, wave, x, y)


def target_task(source: Source, seed: int, task: int, points: int) -> tuple[Wave, Tensor, Tensor]:
    """Another wave, and noisy points of it; fewer points are the first of more."""
    generator = torch.Generator().manual_seed(1000 + 10 * seed + task)
    amplitude, phase = _draw(generator, (0.1, 5.0), (0.0, 2 * math.pi))
    wave = Wave(amplitude, source.wave.frequency, phase)
    x, noise = _inputs(max(POINTS), generator), _normal(max(POINTS), generator)
    return wave, x[:points], (wave(x) + NOISE * wave.amplitude * noise)[:points]


def predictions(source: Source, x: Tensor, y: Tensor, new: Tensor, seed: int) -> dict[str, methods.Prediction]:
    """Every method's prediction of new targets; what is learned from the source data is not part of its seconds."""
    network = source.network
    old = ntk.NTKGaussianProcess(network, mean="constant", space="function").fit(source.x, source.y)
    ways = {
        TANGENT: lambda: methods.process_prediction(old.adapt(x, y, scales="ratio"), new),
        "tangent GP, own ratio": lambda: methods.tangent_process(network, x, y, new, mean="constant"),
        "tangent GP, own ratio, mean network": lambda: methods.tangent_process(network, x, y, new),
        TUNED: lambda: methods.fine_tune(lambda *_: network, (x, y), new, TUNING, methods.REGRESSION, seed),
        **methods.on_features(network[:-1], x, y, new),
        "RBF GP on x": lambda: methods.feature_process(x, y, new, "rbf"),
    }
    return methods.timed(ways)


def measure(seed: int, task: int, points: int) -> Row:
    """Scores of every method on 400 noisy points in [-5, 5], in units of the amplitude."""
    source = trained_source(seed)
    wave, x, y = target_task(source, seed, task, points)
    new = torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None]
    noise = NOISE * wave.amplitude * _normal(400, torch.Generator().manual_seed(7))
    scores = {}
    for name, found in predictions(source, x, y, new, seed).items():
        own = methods.regression_scores(found, wave(new) + noise)
        scores[name] = {**own, "rmse": own["rmse"] / wave.amplitude, "nll": own["nll"] - math.log(wave.amplitude)}
    return {"methods": scores}


@styled
def example(seed: int = 1, task: int = 1, points: int = 10) -> Figure:
    """What three methods make of the same points: mean, and two standard deviations."""
    source = trained_source(seed)
    wave, x, y = target_task(source, seed, task, points)
    new = torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None]
    found = predictions(source, x, y, new, seed)
    figure, axes_of = panels((10.5, 2.9), 1, 3, sharey=True)
    for axes, method in zip(axes_of[0], (TANGENT, TUNED, LAST), strict=True):
        own = found[method]
        assert own.variance is not None
        mean, spread = own.mean[:, 0], 2 * own.variance[:, 0].sqrt()
        axes.fill_between(new[:, 0], mean - spread, mean + spread, color=SHOWN[method], alpha=0.2, linewidth=0)
        axes.plot(new[:, 0], source.network(new)[:, 0], color=MUTED, linewidth=0.8, linestyle=":", label="source")
        axes.plot(new[:, 0], wave(new)[:, 0], color=INK, linewidth=0.9, linestyle="--", label="target")
        axes.plot(new[:, 0], mean, color=SHOWN[method], label="adapted")
        axes.plot(x[:, 0], y[:, 0], "o", color=INK, markersize=4)
        axes.set_title(method, loc="left", fontsize=9)
        axes.set_xlabel("x")
    limit = 2.2 * max(wave.amplitude, source.wave.amplitude)
    axes_of[0, 0].set_ylim(-limit, limit)
    axes_of[0, 0].legend(loc="upper left", ncols=3, fontsize=7)
    return figure


def _draw(generator: torch.Generator, *ranges: tuple[float, float]) -> list[float]:
    return [low + (high - low) * float(torch.rand(1, generator=generator)) for low, high in ranges]


def _inputs(count: int, generator: torch.Generator) -> Tensor:
    return 10 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 5


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 1, generator=generator, dtype=torch.float64)
