"""A network trained on one sine wave, adapted to others of changed phase and amplitude with 5 to 50 points.

    python -m benchmarks.transfer_sines

Source: `A sin(w x + b)`, A in [0.1, 5], w in [0.5, 2], b in [0, 2 pi], x in [-5, 5], noise 0.01 A; 200 points, MLP
1-40-40-1 with tanh. Targets: the same w, A and b drawn anew. Errors in units of the target's A. About 5 minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks import record
from benchmarks.cifar_split import begin, study_parser
from benchmarks.transfer_methods import (
    Prediction,
    Regression,
    Tuning,
    feature_process,
    feature_scales,
    fine_tune,
    process_prediction,
    regression_scores,
    tangent_process,
    timed,
    train_source,
)
from tangentune.methods.ntk import NTKGaussianProcess

NAME, SEEDS, TASKS, POINTS, NOISE = "transfer_sines", range(5), range(3), (5, 10, 20, 50), 0.01
EPOCHS = 1500  # 6,000 steps
TUNING = Tuning((1e-3, 3e-3, 1e-2), 300)


@dataclass(frozen=True)
class Wave:
    """`amplitude sin(frequency x + phase)`."""

    amplitude: float
    frequency: float
    phase: float

    def __call__(self, x: Tensor) -> Tensor:
        """Without noise."""
        return self.amplitude * (self.frequency * x + self.phase).sin()


def main() -> None:
    """Measure what is missing in docs/results/transfer_sines.json."""
    begin(study_parser(__doc__).parse_args())
    for seed in SEEDS:
        keys = [{"seed": seed, "task": task, "points": points} for task in TASKS for points in POINTS]
        if all(record.done(NAME, key) for key in keys):
            continue
        source = trained_source(seed)
        for key in keys:
            if not record.done(NAME, key):
                record.append(NAME, key, {"methods": measure(source, **key)})
                print(key, flush=True)


@dataclass(frozen=True, eq=False)
class Source:
    """The trained network (float64), its wave, and the data it was trained on."""

    network: nn.Sequential
    wave: Wave
    x: Tensor
    y: Tensor


def trained_source(seed: int) -> Source:
    """One source task."""
    generator = torch.Generator().manual_seed(seed)
    wave = Wave(*_draw(generator, (0.1, 5.0), (0.5, 2.0), (0.0, 2 * math.pi)))
    torch.manual_seed(seed)
    layers = nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
    x = _inputs(200, generator)
    y = wave(x) + NOISE * wave.amplitude * _normal(200, generator)
    network = train_source(nn.Sequential(*layers).double(), x, y, mse_loss, EPOCHS, 1e-2, seed)
    assert isinstance(network, nn.Sequential)
    return Source(network, wave, x, y)


def target_task(source: Source, seed: int, task: int, points: int) -> tuple[Wave, Tensor, Tensor]:
    """Another wave, and noisy points of it; fewer points are the first of more."""
    generator = torch.Generator().manual_seed(1000 + 10 * seed + task)
    amplitude, phase = _draw(generator, (0.1, 5.0), (0.0, 2 * math.pi))
    wave = Wave(amplitude, source.wave.frequency, phase)
    x, noise = _inputs(max(POINTS), generator), _normal(max(POINTS), generator)
    return wave, x[:points], (wave(x) + NOISE * wave.amplitude * noise)[:points]


def predictions(source: Source, x: Tensor, y: Tensor, new: Tensor, seed: int) -> dict[str, Prediction]:
    """Every method's prediction of new targets; what is learned from the source data is not part of its seconds."""
    network, features = source.network, source.network[:-1]
    old = NTKGaussianProcess(network, mean="constant", space="function").fit(source.x, source.y)
    lengths = feature_scales(source.x, source.y, "rbf")
    return {
        "tangent GP": timed(lambda: process_prediction(old.adapt(x, y, scales="ratio"), new)),
        "tangent GP, own ratio": timed(lambda: tangent_process(network, x, y, new, mean="constant")),
        "tangent GP, own ratio, mean network": timed(lambda: tangent_process(network, x, y, new)),
        "fine-tuning, all layers": timed(lambda: fine_tune(lambda *_: network, x, y, new, TUNING, Regression(), seed)),
        "last layer, Bayesian": timed(lambda: feature_process(features(x), y, features(new), "linear")),
        "RBF GP on features": timed(lambda: feature_process(features(x), y, features(new), "rbf")),
        "RBF GP on x": timed(lambda: feature_process(x, y, new, "rbf")),
        "RBF GP on x, source's length": timed(lambda: feature_process(x, y, new, "rbf", lengths)),
    }


def measure(source: Source, seed: int, task: int, points: int) -> dict[str, dict[str, float]]:
    """Scores of every method on 400 noisy points in [-5, 5], in units of the amplitude."""
    wave, x, y = target_task(source, seed, task, points)
    new = torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None]
    noise = NOISE * wave.amplitude * _normal(400, torch.Generator().manual_seed(7))
    scores = {}
    for name, found in predictions(source, x, y, new, seed).items():
        own = regression_scores(found, wave(new) + noise)
        scores[name] = {**own, "rmse": own["rmse"] / wave.amplitude, "nll": own["nll"] - math.log(wave.amplitude)}
    return scores


def _draw(generator: torch.Generator, *ranges: tuple[float, float]) -> list[float]:
    return [low + (high - low) * float(torch.rand(1, generator=generator)) for low, high in ranges]


def _inputs(count: int, generator: torch.Generator) -> Tensor:
    return 10 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 5


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 1, generator=generator, dtype=torch.float64)


if __name__ == "__main__":
    main()
