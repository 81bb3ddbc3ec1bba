"""Gradient features of ResNet-50, by variant and cut: `python -m benchmarks.lqf_conditions.cuts`; a quarter of an hour.

CIFAR-10 at 64 px, ImageNet weights, 500 test pictures. What is below the last stage runs once a picture; the stage's
inputs then are the pictures, so there is no mirroring. Without a head the gradient variant gets ten times the rate.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import CUTS, publish
from benchmarks.record import Row
from benchmarks.study import begin, network_inputs, quietly, scores, stopwatch, study_parser
from tangentune import Backbone, Pictures, load_backbone
from tangentune.methods.gradient_features import GradientFeatureSettings, fit_gradient_features
from tangentune.networks.split_network import parameters_above, split_network

SIZE, TEST, LOWEST = 64, 500, "layer4.0"
VARIANTS = (
    ("activation", LOWEST),
    ("gradient", "layer4.2"),
    ("full", "layer4.2"),
    ("gradient", LOWEST),
    ("full", LOWEST),
)
GRID = [
    {"shots": shots, "variant": variant, "cut": cut, "seed": seed}
    for seed in (0, 1) for shots in (10, 25) for variant, cut in VARIANTS
]  # fmt: skip


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    with quietly():
        record.fill(CUTS, GRID, measure)
    publish()


@cache
def stage(shots: int, seed: int) -> tuple[Backbone, Pictures, Pictures]:
    """The last stage as a network of its own, and its inputs for a draw and for the test pictures."""
    backbone = load_backbone("resnet50").with_size(SIZE)
    train, test = datasets.cifar_split(backbone, shots, seed, TEST)
    sample = next(network_inputs(backbone, train, 4))
    parts = split_network(backbone, parameters_above(backbone, LOWEST, sample), sample)
    kept = [
        replace(pictures, pixels=torch.cat([parts.below(x) for x in network_inputs(backbone, pictures)]))
        for pictures in (train, test)
    ]
    return parts.above, kept[0], kept[1]


def measure(key: Row) -> Row:
    """One fit."""
    above, train, test = stage(key["shots"], key["seed"])
    usual = GradientFeatureSettings(variant=key["variant"], cut=key["cut"], seed=key["seed"], flip=False)
    rate = usual.learning_rate * (10 if key["variant"] == "gradient" else 1)
    with stopwatch() as spent:
        fitted = fit_gradient_features(above, train, replace(usual, learning_rate=rate))
    return {**scores(fitted.predict_proba(test), fitted.classes, test), **spent, "problem": fitted.problem}


if __name__ == "__main__":
    main()
