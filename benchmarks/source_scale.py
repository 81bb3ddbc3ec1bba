"""Choosing from 110,000 pictures: nearly all training pictures of CIFAR-10 and all of Fashion-MNIST, for a grey target.

    python -m benchmarks.source_scale [--pictures N]

Features at 64 px in shards on disk, then `select_source` on them: class means, transport, a streaming pass, the best
1,000.
The features stay in .cache/source_scale, with the seconds that they took; docs/results/source_scale.json says what was
chosen and how long each step took. About 5 minutes on one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import record
from benchmarks.cifar_split import begin, study_parser
from benchmarks.datasets import CIFAR10_NAMES, ROOT, cifar10, fashion_mnist
from benchmarks.source_data import DISTRACTOR, grey, network, target_rows
from tangentune.methods.source_selection.extract import extract_features, feature_matrix, list_pictures
from tangentune.methods.source_selection.select import select_source
from tangentune.networks.backbone import Backbone

NAME, SEED, BUDGET, SHARD = "source_scale", 0, 1000, 8192
CACHE = ROOT / ".cache" / NAME
PAPER: dict[str, Any] = {"tau_target": 100.0, "granularity": "pictures"}
SETTINGS: dict[str, dict[str, Any]] = {
    "as the library has it": {},
    "the same, not centred": {"centre": False},
    "the paper's": {**PAPER, "cost_scale": 0.1, "centre": False},
    "the paper's, centred": {**PAPER, "cost_scale": 0.1},
    "nearest": {"method": "nearest"},
    "kernel sum, single pictures": {"method": "kernel_sum", "cost_scale": 0.1, "granularity": "pictures"},
}
Found = TypeVar("Found")


def main() -> None:
    """Extract, select, record."""
    parser = study_parser(__doc__)
    parser.add_argument("--pictures", type=int, help="only so many of each half (for trials)")
    given = parser.parse_args()
    begin(given)
    backbone = network()
    shards, labels, times = extracted(backbone, given.pictures)
    target = grey(SEED, backbone, 0).target
    shown, rows = feature_matrix(target, backbone), []
    for name, settings in SETTINGS.items():
        rows.append({"settings": name, **selection(shown, target.labels, shards, labels, settings)})
        print(rows[-1], flush=True)
    record.record(NAME, {"pictures": len(labels), "budget": BUDGET, "extraction": times, "rows": rows})


def extracted(backbone: Backbone, limit: int | None) -> tuple[list[Path], NDArray[np.str_], dict[str, Any]]:
    """Shards of both halves, class names of all rows, seconds; the target's own pictures are left out."""
    data, other = cifar10(), fashion_mnist()
    rest = np.setdiff1d(np.arange(len(data.train)), target_rows(SEED))[:limit]
    names = np.array(CIFAR10_NAMES)[data.train_labels[rest]]
    clothes = np.array([DISTRACTOR + name for name in other.names])[other.train_labels[:limit]]
    shards: list[Path] = []
    times: dict[str, Any] = {}
    for part, pixels, labels in (("cifar10", data.train[rest], names), ("fashion", other.train[:limit], clothes)):
        folder = CACHE / f"{part}-{limit or 'all'}"
        clock = folder.with_suffix(".json")
        before, start = time.process_time(), time.perf_counter()
        extract_features(list_pictures(pixels, labels, backbone.contract), backbone, folder, shard_size=SHARD)
        if not clock.exists():
            spent = {"wall": time.perf_counter() - start, "processor": time.process_time() - before}
            clock.write_text(json.dumps({"pictures": len(labels), **spent}))
        times[part] = json.loads(clock.read_text())
        shards += sorted(folder.glob("features-*.npy"))
    return shards, np.concatenate([names, clothes]), times


def selection(
    shown: Tensor, shown_labels: Any, shards: list[Path], labels: NDArray[np.str_], settings: dict[str, Any]
) -> dict[str, Any]:
    """The best 1,000: what they are, and the seconds it took."""
    before = time.process_time()
    found, seconds = timed(
        lambda: select_source(
            shown, shards, None, target_labels=shown_labels, source_labels=labels, budget=BUDGET, **settings
        )
    )
    processor, made = time.process_time() - before, found.manifest
    mine, served = np.array(made.classes), np.array(made.targets)
    wrong = np.char.startswith(mine, DISTRACTOR)
    return {
        "seconds": seconds,
        "processor_seconds": round(processor, 3),
        "distractors": float(wrong.mean()),
        "distractor_mass": float(made.weights[wrong].sum() / made.weights.sum()),
        "right": float((mine == served).mean()),
        "effective": float(made.weights.sum() ** 2 / np.square(made.weights).sum()),
        "classes": {str(name): int(count) for name, count in zip(*np.unique(mine, return_counts=True), strict=True)},
    }


def timed(action: Callable[[], Found]) -> tuple[Found, float]:
    """What it gives, and its wall seconds."""
    start = time.perf_counter()
    found = action()
    return found, round(time.perf_counter() - start, 3)


if __name__ == "__main__":
    main()
