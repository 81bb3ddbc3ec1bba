"""Width and leak, controlled: `python -m benchmarks.lqf_conditions.widths`; about half an hour on one core.

Small residual networks are pre-trained here on half of CIFAR-10's classes at 16 px, and transferred to the other half:
exact LQF at the pre-trained weights, LQF moved first, and swept fine-tuning, 25 pictures a class, without a leak,
with one that is there from the start of pre-training, and with one grafted on afterwards and healed.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import WIDTHS, publish
from benchmarks.record import Row
from benchmarks.study import begin, network_inputs, quietly, scores, study_parser
from tangentune import Backbone, Pictures
from tangentune.comparison.methods import METHODS, MethodSettings
from tangentune.methods.fine_tuning import FineTuned, FineTuneSettings, fine_tune, sweep
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.networks.healing import heal_batchnorm
from tangentune.networks.leaky import leaky
from tangentune.networks.passes import PlainPointwise

SIZE, SHOTS, SOURCE, TEST, SLOPE, BATCH = 16, 25, 1000, 1000, 0.1, 128
KINDS = ("no leak", "grafted on, healed", "pre-trained with")
HEALING = 3  # epochs of distillation
RATES, EPOCHS = (1e-3, 3e-3, 1e-2), 30  # networks this small ask for more than the sweep's own


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.two = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.act1, self.act2 = copy.deepcopy(act), copy.deepcopy(act)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        return self.act2(self.two(self.act1(self.one(x))) + self.skip(x))


def network(width: int, slope: float, seed: int) -> Backbone:
    """Three blocks of growing width on pictures of 16 px."""
    torch.manual_seed(seed)
    act = nn.LeakyReLU(slope) if slope else nn.ReLU()
    blocks = [Block(3, width, 1, act), Block(width, 2 * width, 2, act), Block(2 * width, 4 * width, 2, act)]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(net, input_size=(3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3, name=f"residual, {width} wide")


def main() -> None:
    """Measure what is missing, then write the page."""
    given, known = begin(study_parser(__doc__, runs=2)), dict[tuple[Any, ...], Any]()
    places = itertools.product(range(given.runs), (4, 16), KINDS)
    keys = [{"width": width, "kind": kind, "seed": seed} for seed, width, kind in places]
    with quietly():
        record.fill(WIDTHS, keys, lambda key: measure(key, known))
    publish()


def measure(key: Row, known: dict[tuple[Any, ...], FineTuned]) -> Row:
    """Accuracies on the target classes, and that of pre-training on its own."""
    width, kind, seed = key["width"], key["kind"], key["seed"]
    slope, place = SLOPE if kind == "pre-trained with" else 0.0, (width, kind == "pre-trained with", seed)
    blank = network(width, slope, seed)
    source, source_test = halves(blank, 0, SOURCE, seed)
    if place not in known:
        known.clear()  # the grid goes from network to network
        settings = FineTuneSettings(
            learning_rate=3e-3, epochs=8, batch_size=BATCH, batchnorm="train", head_start="random", seed=seed
        )
        known[place] = fine_tune(blank, source, settings)
    start, pretrained = known[place].backbone, known[place]
    train, test = halves(blank, 1, SHOTS, seed)
    drift: Row = {}
    if kind == "grafted on, healed":
        grafted = leaky(start, SLOPE).network
        healed = heal(grafted, start, source, seed)
        drift = {"drift": apart(grafted, start, test), "drift_healed": apart(healed, start, test)}
        start = healed
    exact = LQFSettings(solver="dual", seed=seed)
    found = {
        "lqf_start": fit_lqf(start, train, exact),
        "lqf": fit_lqf(start, train, replace(exact, moves=10, move_rates=RATES)),
        "finetune": sweep(start, train, FineTuneSettings(head_start="probe", epochs=EPOCHS), rates=RATES, seed=seed),
    }
    out = {n: scores(f.predict_proba(test, flip=True), f.classes, test)["accuracy"] for n, f in found.items()}
    probe = METHODS["probe"].fit(start, train, MethodSettings(seed=seed))
    out["probe"] = scores(torch.as_tensor(np.asarray(probe.predict_proba(test))), probe.classes, test)["accuracy"]
    proba = pretrained.predict_proba(source_test)
    return {**out, **drift, "source": scores(proba, pretrained.classes, source_test)["accuracy"]}


def heal(grafted: Backbone, original: Backbone, pictures: Pictures, seed: int) -> Backbone:
    """Features brought back to the original's, without labels: batch statistics, then all weights by distillation."""
    healed = heal_batchnorm(grafted, network_inputs(original, pictures, BATCH), reference=original)
    optimiser = torch.optim.Adam(healed.module.requires_grad_(True).parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(HEALING):
        for rows in torch.randperm(len(pictures), generator=generator).split(BATCH):
            x = next(network_inputs(original, pictures.select(rows.numpy()), BATCH))
            with torch.no_grad():
                wanted = original.features(x)
            optimiser.zero_grad()
            with PlainPointwise():  # see docs/gotchas.md
                F.mse_loss(healed.features(x), wanted).backward()
            optimiser.step()
    healed.module.requires_grad_(False)
    return healed


@torch.no_grad()
def apart(one: Backbone, other: Backbone, pictures: Pictures) -> float:
    """Mean squared distance of features, in variances of the other's."""
    x = next(network_inputs(other, pictures, len(pictures)))
    wanted = other.features(x)
    return float((one.features(x) - wanted).square().mean() / wanted.var(0).mean())


def halves(backbone: Backbone, half: int, shots: int, seed: int) -> tuple[Pictures, Pictures]:
    """Pictures of the even (0) or odd (1) classes: a draw to learn from, and test pictures."""
    data = datasets.cifar10()
    chosen = datasets.few_shot(data.train_labels, shots, seed)
    kept = datasets.held_out(len(data.test), 2 * TEST)
    chosen, kept = (rows[of[rows] % 2 == half] for rows, of in ((chosen, data.train_labels), (kept, data.test_labels)))
    return data.some(chosen, kept).loaded(backbone)


if __name__ == "__main__":
    main()
