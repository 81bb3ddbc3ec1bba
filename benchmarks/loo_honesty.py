"""Is the exact leave-one-out error honest? It against the error on held-out pictures, over many random splits.

`python -m benchmarks.loo_honesty` measures what docs/results/loo_honesty.json lacks, then writes tables and figures
beside it; `--remedies` also measures the metric estimated in other ways. One thread, about half an hour; it may be
stopped and started again at any time. The mathematics of one split is in `benchmarks.loo_split`.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import plots, record
from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, few_shot, held_out, traffic_lights
from benchmarks.loo_split import METHODS, Split, measure, measure_remedies
from benchmarks.loo_tables import BALANCED, digest, markdown
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures, load_pictures

NAME, SIZE, HELD_OUT, POOL = "loo_honesty", 64, 400, 256
SPLITS = {50: 12, 150: 7, 500: 2}  # pictures: splits of each data set
REMEDY_SPLITS = {150: 3}
BALANCED_SPLITS = 4
PROTOCOL = {
    "network": f"MobileNetV2 1.0, ImageNet weights, {SIZE} px, no flips",
    "splits": f"training pictures and {HELD_OUT} held-out ones drawn at random, without regard to class, from one set "
    "(CIFAR-10 and Fashion-MNIST: the training set; traffic lights: all files), afresh for every split",
    "balanced": "CIFAR-10 once more with the same number of training pictures of every class",
    "p = ...": "that metric power, later half of the blocks, rows of length one; "
    "body scale (.5, 2 or 8) and damping by leave-one-out error; metric factors damped by 0.1 mean eigenvalue",
    "probe": "the linear probe, normalisation and damping by leave-one-out error",
    "default": "TangentClassifier with default options",
    "error": "mean over pictures of the squared distance between scores and one-hot label",
    "bias": "mean over splits of leave-one-out minus held-out error, with its standard error over splits",
    "against": "the bias minus that of the probe, or of p = 0, on the same splits: how hard the pictures are cancels",
}
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, then write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, write tables and figures anew")
    parser.add_argument("--remedies", action="store_true", help="also measure other ways to estimate the metric")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
        run(backbone, SPLITS, "rows", lambda split: measure(backbone, split))
        if arguments.remedies:
            run(backbone, REMEDY_SPLITS, "remedies", lambda split: measure_remedies(backbone, split, pool(backbone)))
    publish()


def run(backbone: Backbone, splits: dict[int, int], section: str, study: Callable[[Split], Row]) -> None:
    """Measure every split that the results file lacks; data sets take turns, so that an early stop hurts all alike."""
    for key in keys(splits):
        if record.done(NAME, key, section):
            continue
        start = time.process_time()
        values = {"methods": study(draw(backbone, **key)), "cpu_seconds": round(time.process_time() - start, 1)}
        record.append(NAME, key, values, section)
        print(key, values["cpu_seconds"], _short(values["methods"]), flush=True)


def keys(splits: dict[int, int]) -> Iterator[Row]:
    """Every split of a study."""
    for seed in range(max(splits.values())):
        for n in [n for n, count in splits.items() if seed < count]:
            for dataset in DATASETS:
                if dataset != BALANCED or (splits is SPLITS and n < 500 and seed < BALANCED_SPLITS):
                    yield {"dataset": dataset, "n": n, "seed": seed}


def draw(backbone: Backbone, dataset: str, n: int, seed: int) -> Split:
    """Training and held-out pictures of one split, disjoint."""
    everything = DATASETS[dataset](backbone)
    rng = np.random.default_rng([zlib.crc32(dataset.encode()), n, seed])
    order = rng.permutation(len(everything.labels))
    if dataset == BALANCED:
        count = len(np.unique(everything.labels))
        chosen = few_shot(everything.labels, n // count, int(rng.integers(2**31)))
        order = np.concatenate([chosen, np.setdiff1d(order, chosen)[rng.permutation(len(order) - n)]])
    train, held = (everything.pictures(order[part]) for part in (slice(0, n), slice(n, n + HELD_OUT)))
    return Split(train, held, seed)


class _Array:
    """Pictures in an array, brought to size when asked for; final."""

    def __init__(self, data: ArrayData, backbone: Backbone):
        self.data, self.labels, self.contract = data, data.train_labels, backbone.contract

    def pictures(self, index: NDArray[np.int64]) -> Pictures:
        """Some of them, with labels."""
        return load_pictures(self.data.train[index], self.labels[index], contract=self.contract)


class _Files:
    """Pictures in files, decoded once; final."""

    def __init__(self, backbone: Backbone):
        parts = [traffic_lights("train"), traffic_lights("test")]
        paths = [path for part in parts for path in part.paths]
        self.labels = np.concatenate([part.labels for part in parts])
        self.loaded = load_pictures(paths, self.labels, contract=backbone.contract, n_jobs=1)

    def pictures(self, index: NDArray[np.int64]) -> Pictures:
        """Some of them, with labels."""
        return self.loaded.select(index)


DATASETS: dict[str, Callable[[Backbone], _Array | _Files]] = {
    "CIFAR-10": cache(lambda backbone: _Array(cifar10(), backbone)),
    "Fashion-MNIST": cache(lambda backbone: _Array(fashion_mnist(), backbone)),
    "traffic lights": cache(lambda backbone: _Files(backbone)),
    BALANCED: cache(lambda backbone: _Array(cifar10(), backbone)),
}


@cache
def pool(backbone: Backbone) -> Pictures:
    """Natural pictures that no split holds: what a metric from pre-training would have seen."""
    data = cifar10()
    index = held_out(len(data.test), count=POOL, start=4000)
    return load_pictures(data.test[index], data.test_labels[index], contract=backbone.contract)


def publish() -> None:
    """Write summaries into the JSON file, tables as Markdown, and the figures."""
    payload = record.load(NAME)
    rows, complete = payload.get("rows", []), len(payload.get("rows", [])) >= len(list(keys(SPLITS)))
    tables = digest(rows, payload.get("remedies", []))
    record.record(NAME, {**payload, "protocol": PROTOCOL, "complete": complete, **tables})
    noted = {"note": payload["note"]} if "note" in payload else {}
    text = markdown(tables, complete, PROTOCOL | noted, NAME)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    plots.honesty_figure(rows, METHODS).savefig(record.RESULTS / f"{NAME}.png", dpi=160)
    plots.bias_figure(tables["summary"], METHODS).savefig(record.RESULTS / f"{NAME}_bias.png", dpi=160)
    print(text)


def _short(methods: Row) -> dict[str, str]:
    return {name: f"{point['loo_error']:.3f}/{point['held_out_error']:.3f}" for name, point in methods.items()}


if __name__ == "__main__":
    main()
