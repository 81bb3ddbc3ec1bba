"""Choosing from 110,000 pictures: nearly all training pictures of CIFAR-10 and all of Fashion-MNIST, for a grey target.

    python -m benchmarks.source_scale.run [--pictures N]

Features at 64 px on disk, then `select_source` on them: class means, transport, a pass over all, the best 1,000. The
features stay in .cache/source_scale, with the seconds that they took; docs/results/source_scale.json says what was
chosen and how long each step took, and the page of source_study shows it. About 5 minutes on one thread.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.datasets import CIFAR10_NAMES, ROOT, cifar10, fashion_mnist
from benchmarks.record import Row
from benchmarks.source_study.data import SIZE, grey_blurred, target_rows
from benchmarks.source_study.results import DISTRACTOR
from benchmarks.study import begin, mean_features, stopwatch, study_parser
from tangentune import Backbone, load_backbone, load_pictures, transport

NAME, SEED, BUDGET, CHUNK = "source_scale", 0, 1000, 8192
CACHE = ROOT / ".cache" / NAME
PAPER: dict[str, Any] = {"tau_target": 100.0, "granularity": "pictures", "cost_scale": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "as the library has it": {},
    "the same, not centred": {"centre": False},
    "the paper's": {**PAPER, "centre": False},
    "the paper's, centred": PAPER,
    "nearest": {"method": "nearest"},
}


def main() -> None:
    """Extract, select, record."""
    parser = study_parser(__doc__)
    parser.add_argument("--pictures", type=int, help="only so many of each half (for trials)")
    limit = begin(parser).pictures
    backbone, data, other = load_backbone("mobilenet_v2").with_size(SIZE), cifar10(), fashion_mnist()
    shown = target_rows(SEED)
    rest = np.setdiff1d(np.arange(len(data.train)), shown)[:limit]  # without the target's own pictures
    names = np.array(CIFAR10_NAMES)[data.train_labels]
    clothes = np.array([DISTRACTOR + name for name in other.names])[other.train_labels[:limit]]
    labels = np.concatenate([names[rest], clothes])
    halves = {"cifar10": data.train[rest], "fashion": other.train[:limit]}
    times = {part: extracted(backbone, f"{part}-{limit or 'all'}", pixels) for part, pixels in halves.items()}
    files = [CACHE / f"{part}-{limit or 'all'}.npy" for part in halves]
    target = features(backbone, grey_blurred(data.train[shown]))
    rows = []
    for name, settings in SETTINGS.items():
        with stopwatch() as spent:
            found = transport.select_source(
                target, files, None, target_labels=names[shown], source_labels=labels, budget=BUDGET, **settings
            )
        times_of = {"seconds": round(spent["seconds"], 3), "processor_seconds": round(spent["cpu_seconds"], 3)}
        rows.append({"settings": name, **times_of, **facts(found.manifest)})
        print(rows[-1], flush=True)
    record.record(NAME, {"pictures": len(labels), "budget": BUDGET, "extraction": times, "rows": rows})


def features(backbone: Backbone, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, d) of pictures in memory."""
    pictures = load_pictures(pixels, contract=backbone.contract, need_labels=False)
    return mean_features(backbone, pictures, flip=False).float().numpy()


def extracted(backbone: Backbone, name: str, pixels: NDArray[np.uint8]) -> Row:
    """Features of one half in the cache; how many, and the seconds they took."""
    path, clock = CACHE / f"{name}.npy", CACHE / f"{name}.json"
    if not clock.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with stopwatch() as spent:
            parts = [features(backbone, pixels[first : first + CHUNK]) for first in range(0, len(pixels), CHUNK)]
            np.save(path, np.concatenate(parts))
        taken = {"pictures": len(pixels), "wall": spent["seconds"], "processor": spent["cpu_seconds"]}
        clock.write_text(json.dumps(taken))
    return json.loads(clock.read_text())


def facts(made: transport.Manifest) -> Row:
    """What the best 1,000 are."""
    mine, served = np.array(made.classes), np.array(made.targets)
    wrong = np.char.startswith(mine, DISTRACTOR)
    return {
        "distractors": float(wrong.mean()),
        "distractor_mass": float(made.weights[wrong].sum() / made.weights.sum()),
        "right": float((mine == served).mean()),
        "effective": float(made.weights.sum() ** 2 / np.square(made.weights).sum()),
        "classes": {str(name): int(count) for name, count in zip(*np.unique(mine, return_counts=True), strict=True)},
    }


if __name__ == "__main__":
    main()
