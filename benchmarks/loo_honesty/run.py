"""Is the exact leave-one-out error honest? It against the error on held-out pictures, over many random splits.

`python -m benchmarks.loo_honesty.run` measures what docs/results/loo_honesty.json lacks, then writes tables and figures
beside it. One thread, about two hours; it may be stopped and started again at any time. The stored rows "p = ..." and
"remedies" were measured with an earlier script, whose metric factors were damped less; here the estimator damps them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks import record
from benchmarks.datasets import cifar10, fashion_mnist, few_shot, traffic_lights
from benchmarks.loo_honesty.page import BALANCED, NAME, POWERS, SIZE, SPLITS, digest, publish
from benchmarks.record import Row
from benchmarks.study import STILL, begin, labels_of, quietly, stopwatch, study_parser
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone, load_pictures

HELD_OUT, BALANCED_SPLITS = 400, 4
DATASETS = ("CIFAR-10", "Fashion-MNIST", "traffic lights", BALANCED)
LATER_HALF = "last:10"  # the later half of the blocks of MobileNetV2: a usual choice of the default
BODY_SCALES = (0.5, 2.0, 8.0)  # never 0: a fit that falls back to the probe says nothing about the metric


def main() -> None:
    """Measure what is missing, then write tables and figures."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    record.fill(NAME, keys(), lambda key: measure(backbone, **key))
    payload = record.load(NAME)
    record.record(NAME, {**payload, **digest(payload)})
    publish()


def keys() -> Iterator[Row]:
    """Every split; data sets take turns, so that an early stop hurts all alike."""
    for seed in range(max(SPLITS.values())):
        for n in [n for n, count in SPLITS.items() if seed < count]:
            for dataset in DATASETS:
                if dataset != BALANCED or (n < 500 and seed < BALANCED_SPLITS):
                    yield {"dataset": dataset, "n": n, "seed": seed}


def measure(backbone: Backbone, **key: Any) -> Row:
    """Leave-one-out and held-out errors of every method on one split."""
    train, held = draw(backbone, **key)
    classes = np.unique(np.concatenate([labels_of(train), labels_of(held)]))

    def fitted(**options: Any) -> TangentClassifier:
        with quietly():
            return TangentClassifier(backbone, random_state=key["seed"], **(STILL | options)).fit(train)

    def squares(model: TangentClassifier, given: Pictures, made: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Squared error of every picture, and whether its class is wrong; classes that the fit lacks score 0."""
        if made.ndim == 1:  # two classes: the difference of scores that sum to one
            made = np.stack([(1 - made) / 2, (1 + made) / 2], 1)
        truth = one_hot(torch.from_numpy(np.searchsorted(classes, labels_of(given))), len(classes)).double()
        scores = torch.zeros_like(truth)
        scores[:, np.searchsorted(classes, model.classes_)] = torch.from_numpy(np.asarray(made, dtype=np.float64))
        return (truth - scores).square().sum(1), (truth.argmax(1) != scores.argmax(1)).double()

    def loo(model: TangentClassifier) -> tuple[Tensor, Tensor]:
        return squares(model, train, model.loo_predictions_)

    methods, gone = {}, {}
    with stopwatch() as spent:
        fits = {"probe": fitted(subset="none")}
        for name, power in POWERS.items():
            settings = {"subset": LATER_HALF, "metric_power": power, "normalize": True}
            tried = [fitted(body_scale=scale, **settings) for scale in BODY_SCALES]
            fits[name] = min(tried, key=lambda model: float(loo(model)[0].mean()))
        for name, model in (fits | {"default": fitted()}).items():
            gone[name], wrong = squares(model, held, model.decision_function(held))
            methods[name] = {
                "loo_error": float(loo(model)[0].mean()),
                "loo_error_rate": float(loo(model)[1].mean()),
                "held_out_error": float(gone[name].mean()),
                "held_out_error_rate": float(wrong.mean()),
                "normalize": bool(model.normalize_),
                "body_scale": float(model.body_scale_),
            }
        gaps = gone["default"] - gone["probe"]
        methods["default"] |= {
            "probe_gap": float(gaps.mean()),
            "probe_gap_standard_error": float(gaps.std()) / len(gaps) ** 0.5,
        }
    return {"methods": methods, "cpu_seconds": round(spent["cpu_seconds"], 1)}


def draw(backbone: Backbone, dataset: str, n: int, seed: int) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures of one split, disjoint."""
    labels, pictures = pictures_of(dataset, backbone)
    rng = np.random.default_rng([zlib.crc32(dataset.encode()), n, seed])
    order = rng.permutation(len(labels))
    if dataset == BALANCED:
        count = len(np.unique(labels))
        chosen = few_shot(labels, n // count, int(rng.integers(2**31)))
        order = np.concatenate([chosen, np.setdiff1d(order, chosen)[rng.permutation(len(order) - n)]])
    train, held = (pictures(order[part]) for part in (slice(0, n), slice(n, n + HELD_OUT)))
    return train, held


@cache
def pictures_of(dataset: str, backbone: Backbone) -> tuple[NDArray[np.int64], Callable[[NDArray[np.int64]], Pictures]]:
    """All labels of a set, and what gives the pictures at some positions: files are decoded once."""
    if dataset == "traffic lights":
        parts = [traffic_lights("train"), traffic_lights("test")]
        labels = np.concatenate([part.labels for part in parts])
        paths = [path for part in parts for path in part.paths]
        return labels, load_pictures(paths, labels, contract=backbone.contract, n_jobs=1).select
    data = fashion_mnist() if dataset == "Fashion-MNIST" else cifar10()

    def some(index: NDArray[np.int64]) -> Pictures:
        return load_pictures(data.train[index], data.train_labels[index], contract=backbone.contract)

    return data.train_labels, some


if __name__ == "__main__":
    main()
