"""Width and leak, controlled: `python -m benchmarks.lqf_conditions.widths`; about half an hour on one core.

Small residual networks are pre-trained here on half of CIFAR-10's classes at 16 px, and transferred to the other half:
exact LQF at the pre-trained weights, LQF moved first, and swept fine-tuning, 25 pictures a class. A leak is there from
the start of pre-training, or grafted on a network trained without, or healed after that: BatchNorm statistics
re-estimated, then the original features distilled on pictures without labels.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import WIDTHS, publish
from benchmarks.record import Row
from benchmarks.study import begin, network_inputs, quietly, scores, study_parser
from tangentune import Backbone, Pictures, load_pictures
from tangentune.comparison.methods import METHODS, MethodSettings
from tangentune.methods.fine_tuning import FineTuned, FineTuneSettings, fine_tune, sweep
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.networks.healing import heal_batchnorm
from tangentune.networks.leaky import leaky

SIZE, SHOTS, SOURCE, TEST, SLOPE = 16, 25, 1000, 1000, 0.1
KINDS = ("no leak", "grafted", "healed", "pre-trained with")
ENDS = ("no leak", "pre-trained with")
ORDER = [(w, kind, seed) for seed in range(3) for w in (4, 16) for kind in ENDS]
ORDER += [(8, kind, seed) for seed in range(3) for kind in KINDS]
GRID = [{"width": width, "kind": kind, "seed": seed} for width, kind, seed in ORDER]
RATES, EPOCHS = (1e-3, 3e-3, 1e-2), 30  # networks this small ask for more than the sweep's own
STEPS, BATCH = 150, 128  # of distillation


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
    parser = study_parser(__doc__)
    begin(parser)
    known: dict[tuple[Any, ...], Any] = {}
    with quietly():
        record.fill(WIDTHS, GRID, lambda key: measure(key, known))
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
    if kind in ("grafted", "healed"):
        start = leaky(start, SLOPE).network
    if kind == "healed":
        batches = list(network_inputs(start, source.select(slice(0, 1000))))
        start = distilled(heal_batchnorm(start, batches, reference=pretrained.backbone), pretrained.backbone, source)
    train, test = halves(blank, 1, SHOTS, seed)
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
    return {**out, "source": scores(proba, pretrained.classes, source_test)["accuracy"]}


def halves(backbone: Backbone, half: int, shots: int, seed: int) -> tuple[Pictures, Pictures]:
    """Pictures of the even (0) or odd (1) classes: a draw to learn from, and test pictures."""
    data = datasets.cifar10()
    chosen = datasets.few_shot(data.train_labels, shots, seed)
    kept = datasets.held_out(len(data.test), 2 * TEST)
    chosen, kept = (rows[of[rows] % 2 == half] for rows, of in ((chosen, data.train_labels), (kept, data.test_labels)))
    train = load_pictures(data.train[chosen], data.train_labels[chosen], contract=backbone.contract)
    return train, load_pictures(data.test[kept], data.test_labels[kept], contract=backbone.contract)


def distilled(changed: Backbone, original: Backbone, pictures: Pictures) -> Backbone:
    """The changed network brought back to the original's features by some steps of Adam on unlabelled pictures."""
    student = copy.deepcopy(changed)
    weights = [p.requires_grad_() for p in student.module.parameters()]
    optimiser, generator = torch.optim.Adam(weights, 3e-4), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(0, len(pictures), (BATCH,), generator=generator).numpy()
        (x,) = network_inputs(student, pictures.select(rows), BATCH)
        with torch.no_grad():
            wanted = original.features(x)
        loss = (student.features(x) - wanted).square().sum(1).mean() / wanted.square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    student.module.requires_grad_(False)
    return student


if __name__ == "__main__":
    main()
