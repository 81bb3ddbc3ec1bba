"""Several labels a picture: are leave-one-out figures honest, which thresholds hold, and is one kernel exact for all?

`python -m benchmarks.several_labels.run` measures what docs/results/several_labels.json lacks, then writes the page.
One thread, about ten minutes; it may be stopped and started again at any time.

CIFAR-10 has traits that follow from the class of a picture, in classes of uneven size; solar cells have the kind of the
cell and the experts' doubt about it, which have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from benchmarks import record
from benchmarks.datasets import CIFAR10_NAMES, cifar10
from benchmarks.picture_sets.archives import ARCHIVES, unpacked
from benchmarks.record import Row
from benchmarks.several_labels.page import NAME, publish
from benchmarks.study import begin, quietly, solved, stopwatch, study_parser
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone, load_pictures
from tangentune.estimators.summary import label_scores
from tangentune.pictures.label_sets import label_matrix, label_sets

SIZE, HELD_OUT = 64, 1000
SEEDS = {("probe", 60): 4, ("tangent", 60): 2, ("probe", 200): 4, ("tangent", 200): 2, ("probe", 600): 4}
TRAITS = {
    "animal": "bird cat deer dog frog horse", "flies": "airplane bird", "wheels": "airplane automobile truck",
    "four legs": "cat deer dog frog horse", "hooves": "deer horse", "pet": "cat dog", "floats": "ship",
    "amphibian": "frog",
}  # fmt: skip
SHARES = dict(zip(CIFAR10_NAMES, (15, 15, 10, 10, 10, 10, 3, 10, 3, 14), strict=True))  # of the classes, in percent


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    record.fill(NAME, keys(), lambda key: measure(backbone, **key))
    publish()


def keys() -> Iterator[Row]:
    """Every fit; data sets take turns, so that an early stop hurts both alike."""
    for (method, n), seeds in SEEDS.items():
        for seed in range(seeds):
            for dataset in ("CIFAR-10 traits", "solar cells"):
                yield {"dataset": dataset, "method": method, "n": n, "seed": seed}


def measure(backbone: Backbone, dataset: str, method: str, n: int, seed: int) -> Row:
    """Leave-one-out and held-out figures of one fit."""
    train, held = draw(dataset, backbone, n, seed)
    assert train.labels is not None
    assert held.labels is not None
    options: dict[str, Any] = {"subset": "none"} if method == "probe" else {}
    with stopwatch() as spent, quietly():
        model = TangentClassifier(backbone, outer_steps=0, augment="flip", **options).fit(train)
        proba = model.predict_proba(held)
    assert model.thresholds_ is not None
    given, truth = model.targets_, label_matrix(held.labels)
    often = (given.sum(0) > 0) & (truth.sum(0) > 0)  # labels that both have, for average precision to be of the same
    rare = often & (given.sum(0) < 15)
    sides = {"loo": (given, model.loo_proba_), "held_out": (truth, proba)}
    found = {side: label_scores(y[:, often], p[:, often], model.thresholds_[often]) for side, (y, p) in sides.items()}
    ways = {
        "expected": model.thresholds_,
        "half": np.full(given.shape[1], 0.5),
        "counted": counted(given, model.loo_proba_),
    }
    thresholds = {
        way: {name: f1(truth, proba >= at, which) for name, which in (("all", often), ("rare", rare)) if which.any()}
        for way, at in ways.items()
    }
    return found | {"thresholds": thresholds, "apart": apart(model), **spent}


def counted(given: NDArray[Any], proba: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each label the threshold of the largest F1 that leave-one-out counts: the lowest probability still given."""
    out = np.full(given.shape[1], 0.5)
    for k in np.flatnonzero(given.any(0)):
        order = np.argsort(-proba[:, k])
        right = np.cumsum(given[order, k])
        out[k] = proba[order[int((2 * right / (np.arange(1, len(order) + 1) + right[-1])).argmax())], k]
    return out


def f1(truth: NDArray[Any], given: NDArray[Any], which: NDArray[np.bool_]) -> float:
    """Mean F1 of some labels, by scikit-learn."""
    return float(np.mean([f1_score(truth[:, k], given[:, k]) for k in np.flatnonzero(which)]))  # each has pictures


def apart(model: TangentClassifier) -> float:
    """Largest difference of three pictures' leave-one-out scores from dense fits without them, label by label."""
    kernel, worst, n = torch.from_numpy(model.kernel_), 0.0, len(model.targets_)
    for i in (0, n // 2, n - 1):
        rest = torch.arange(n) != i
        for k, column in enumerate(torch.from_numpy(model.targets_.T).double()):
            dual, intercept = solved(kernel[rest][:, rest], column[rest, None], model.damping_)
            found = float(kernel[i, rest] @ dual[:, 0] + intercept[0])
            worst = max(worst, abs(found - float(model.loo_predictions_[i, k])))
    return worst


def draw(dataset: str, backbone: Backbone, n: int, seed: int) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures, disjoint, at random."""
    rng = np.random.default_rng([len(dataset), n, seed])
    if dataset == "solar cells":
        pictures = solar_cells(backbone)
        order = rng.permutation(len(pictures))
        return pictures.select(order[:n]), pictures.select(order[n : n + HELD_OUT])
    data, shares = cifar10(), np.array(list(SHARES.values())) / 100
    table = np.array([[name in kinds.split() for kinds in TRAITS.values()] for name in CIFAR10_NAMES])
    parts = []
    for pixels, classes, count in ((data.train, data.train_labels, n), (data.test, data.test_labels, HELD_OUT)):
        wanted = rng.multinomial(count, shares)
        rows = np.concatenate([rng.permutation(np.flatnonzero(classes == c))[:k] for c, k in enumerate(wanted)])
        sets = label_sets(table[classes[rows]], TRAITS)
        parts.append(load_pictures(pixels[rows], sets, contract=backbone.contract))
    return parts[0], parts[1]


@cache
def solar_cells(backbone: Backbone) -> Pictures:
    """All cells: monocrystalline or not; perhaps defective, as one expert in three at least thought; and surely so."""
    root = unpacked(ARCHIVES["elpv-dataset"], "solar_cells") / "elpv_dataset" / "data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
    marks = np.array([[kind == "mono", float(share) > 0, float(share) == 1] for _, share, kind in rows])
    sets = label_sets(marks, ["monocrystalline", "perhaps defective", "defective"])
    return load_pictures([root / name for name, _, _ in rows], sets, contract=backbone.contract, n_jobs=1)


if __name__ == "__main__":
    main()
