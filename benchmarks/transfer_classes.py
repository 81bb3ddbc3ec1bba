"""From five classes of CIFAR-10 to the other five with few pictures: a small network trained on the former.

    python -m benchmarks.transfer_classes

Source: airplane, automobile, bird, cat, deer (6,000 pictures); target: dog, frog, horse, ship, truck, 2 to 20 pictures
a class. Processes regress on one-hot targets with a free constant; their temperature is fitted to exact leave-one-out
predictions. 2,000 test pictures. About 8 minutes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import record
from benchmarks.cifar_split import begin, study_parser
from benchmarks.datasets import cifar10, few_shot
from benchmarks.transfer_methods import (
    Classification,
    Prediction,
    Tuning,
    class_scores,
    feature_process,
    fine_tune,
    process_prediction,
    small_cnn,
    tangent_process,
    timed,
    train_source,
)
from tangentune.methods.ntk import NTKGaussianProcess
from tangentune.networks.heads import probe_head

NAME, SEEDS, SHOTS, CLASSES = "transfer_classes", range(3), (2, 5, 10, 20), 5
SOURCE_PICTURES, RATIO_PICTURES, TEST_PICTURES, EPOCHS, RATE = 6000, 300, 2000, 12, 4e-3
TUNING = Tuning((3e-4, 1e-3, 3e-3), 40)
SHARED = {"outputs": "shared", "mean": "constant"}


def main() -> None:
    """Measure what is missing in docs/results/transfer_classes.json."""
    begin(study_parser(__doc__).parse_args())
    for seed in SEEDS:
        keys = [{"seed": seed, "shots": shots} for shots in SHOTS]
        if all(record.done(NAME, key) for key in keys):
            continue
        network, old, share = trained_source(seed)
        for key in keys:
            if not record.done(NAME, key):
                row = {"methods": measure(network, old, **key), "source_accuracy": share}
                record.append(NAME, key, row)
                print(key, flush=True)


def trained_source(seed: int) -> tuple[nn.Sequential, NTKGaussianProcess, float]:
    """The source network, its process on source pictures it has not seen, and its accuracy on source classes."""
    data = cifar10()
    members = np.random.default_rng(seed).permutation(np.flatnonzero(data.train_labels < CLASSES))
    chosen, others = members[:SOURCE_PICTURES], members[SOURCE_PICTURES : SOURCE_PICTURES + RATIO_PICTURES]
    labels = torch.from_numpy(data.train_labels)
    torch.manual_seed(seed)
    network = small_cnn(3, 32, CLASSES)
    network = train_source(network, prepared(data.train[chosen]), labels[chosen], F.cross_entropy, EPOCHS, RATE, seed)
    assert isinstance(network, nn.Sequential)
    held = np.flatnonzero(data.test_labels < CLASSES)[:TEST_PICTURES]
    right = network(prepared(data.test[held])).argmax(1) == torch.from_numpy(data.test_labels[held])
    old = NTKGaussianProcess(network, space="function", **SHARED)
    old.fit(prepared(data.train[others]), F.one_hot(labels[others], CLASSES))
    return network, old, float(right.double().mean())


def prepared(pictures: np.ndarray) -> Tensor:
    """(n, 3, 32, 32), roughly of mean 0 and spread 1."""
    return ((torch.from_numpy(pictures).float() / 255 - 0.47) / 0.25).permute(0, 3, 1, 2).contiguous()


def predictions(
    network: nn.Sequential, old: NTKGaussianProcess, x: Tensor, labels: Tensor, new: Tensor, seed: int
) -> dict[str, Prediction]:
    """Every method's prediction of new targets; what is learned from the source data is not part of its seconds."""
    body, y = network[0], F.one_hot(labels, CLASSES).double()

    def from_probe(x: Tensor, labels: Tensor) -> nn.Module:
        return nn.Sequential(body, probe_head(body(x), labels))

    return {
        "tangent GP": timed(lambda: process_prediction(old.adapt(x, y, scales="ratio"), new)),
        "tangent GP, own ratio": timed(lambda: tangent_process(network, x, y, new, **SHARED)),
        "fine-tuning, all layers": timed(lambda: fine_tune(from_probe, x, labels, new, TUNING, Classification(), seed)),
        "last layer, Bayesian": timed(lambda: feature_process(body(x), y, body(new), "linear")),
        "RBF GP on features": timed(lambda: feature_process(body(x), y, body(new), "rbf")),
    }


def measure(network: nn.Sequential, old: NTKGaussianProcess, seed: int, shots: int) -> dict[str, dict[str, float]]:
    """Scores of every method on the target classes' test pictures."""
    data = cifar10()
    targets = np.flatnonzero(data.train_labels >= CLASSES)
    chosen = targets[few_shot(data.train_labels[targets], shots, seed)]
    x, labels = prepared(data.train[chosen]), torch.from_numpy(data.train_labels[chosen]) - CLASSES
    kept = np.flatnonzero(data.test_labels >= CLASSES)[:TEST_PICTURES]
    new, truth = prepared(data.test[kept]), torch.from_numpy(data.test_labels[kept]) - CLASSES
    found = predictions(network, old, x, labels, new, seed)
    return {name: class_scores(own, truth, labels) for name, own in found.items()}


if __name__ == "__main__":
    main()
