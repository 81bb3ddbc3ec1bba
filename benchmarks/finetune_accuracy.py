"""Accuracy of ordinary fine-tuning on few-shot CIFAR-10: MobileNetV2 at 96 px, five seeds, a sweep of rates.

`python -m benchmarks.finetune_accuracy` measures what docs/results/finetune_accuracy.json lacks and prints the
table. `--variants` measures VARIANTS on other held-out pictures instead: how the variant was chosen.
One thread; 40 minutes; it may be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.datasets import cifar10, few_shot, held_out
from tangentune.backbone import Backbone, load_backbone
from tangentune.baselines import FineTuned, FineTuneSettings, fine_tune
from tangentune.data import Pictures, load_pictures
from tangentune.errors import InputError
from tangentune.metrics import accuracy, ece, nll

NAME = "finetune_accuracy"
SIZE, SEEDS, SHOTS = 96, range(5), (50, 10)
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
VARIANT: dict[str, Any] = {
    "epochs": 15,
    "batch_size": 32,
    "warmup": 0.1,
    "schedule": "cosine",
    "flip": True,
    "head_start": "zero",
    "batchnorm": "eval",
}
SCORES = ("accuracy", "nll", "ece", "accuracy_flip", "nll_flip", "ece_flip")
PROTOCOL = {
    "data": "CIFAR-10, few_shot(train labels, shots, seed), bicubic 32 -> 96, ImageNet mean and std",
    "network": "MobileNetV2 1.0, ImageNet weights, all layers trained, linear head",
    "test": "first 2,000 of the shuffled (seed 12345) test batch; variants: the next 2,000, seed 0",
    "flip columns": "accuracy_flip, nll_flip, ece_flip: logits averaged over the picture and its mirror image",
    "seconds": "training only, one thread; cpu seconds are fair where other programs shared the machine",
    "best of sweep": "the rate of the highest mean accuracy on the test pictures themselves: generous",
}


def main() -> None:
    """Measure what is missing, then write and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", action="store_true", help="compare variants on the development pictures")
    variants = parser.parse_args().variants
    torch.set_num_threads(1)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    for shots, settings in tried() if variants else sweep():
        measure_once(backbone, shots, settings, "variants" if variants else "rows")
    print(record.markdown_table(summarise(), {"shots": "", "learning_rate": "g", **COLUMNS}))


def sweep() -> Iterator[tuple[int, FineTuneSettings]]:
    """Every run of the table."""
    for shots in SHOTS:
        for seed in SEEDS:
            for rate in RATES:
                yield shots, FineTuneSettings(learning_rate=rate, seed=seed, **VARIANT)
