"""Accuracy of every method against pictures a class: `python -m benchmarks.few_shot TASK` (`--help` lists tasks).

Every task is a run of `tangentune compare`'s own code on fixed pictures. A cell (method, pictures a class, seed) is
stored as soon as it is measured in docs/results/few_shot/TASK/, so a run may be stopped and started again, and
methods may be measured by several runs one after another. One thread: run two tasks side by side on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, few_shot, held_out, plankton, traffic_lights
from tangentune.comparison import compare
from tangentune.comparison.methods import METHODS
from tangentune.comparison.page import write_files
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures, load_pictures

RESULTS = record.RESULTS / "few_shot"
PAGE_HEAD = """Means over seeds, with one standard error of the mean; draws of the same seed are the same for all
methods. Seconds are those of the fit with every choice it makes (finetune: four rates on a validation split of a
fifth, then a fit on all; tangent: leave-one-out over everything, moved or not), one thread; processor seconds are the
fair ones, since other studies ran on the second core. Made by `python -m benchmarks.few_shot TASK`, read in
[claims.md](claims.md)."""
POOL, TEST = 600, 1000  # pictures a class to draw from, and test pictures, of the large sets
Parts = tuple[Pictures, Pictures | None]


@dataclass(frozen=True)
class Task:
    """A network, its picture size, the pictures, and the numbers a class that are measured."""

    backbone: str
    size: int
    read: Callable[[Backbone], Parts]
    shots: tuple[int, ...]
    seeds: int = 3


def _arrays(data: ArrayData, backbone: Backbone) -> Parts:
    chosen = few_shot(data.train_labels, POOL, seed=0)
    kept = held_out(len(data.test), TEST)
    names = np.array(data.names)
    train = load_pictures(data.train[chosen], names[data.train_labels[chosen]], contract=backbone.contract)
    return train, load_pictures(data.test[kept], names[data.test_labels[kept]], contract=backbone.contract)


def _cifar10(backbone: Backbone) -> Parts:
    return _arrays(cifar10(), backbone)


def _fashion(backbone: Backbone) -> Parts:
    return _arrays(fashion_mnist(), backbone)


def _plankton(backbone: Backbone) -> Parts:
    data = plankton()
    names = np.array(data.names)
    return load_pictures(list(data.paths), names[data.labels], contract=backbone.contract), None


def _traffic_lights(backbone: Backbone) -> Parts:
    parts = []
    for split in ("train", "test"):
        data = traffic_lights(split)
        labels = np.array(data.names)[data.labels]
        parts.append(load_pictures(list(data.paths), labels, contract=backbone.contract))
    return parts[0], parts[1]


TASKS = {
    "cifar10": Task("mobilenet_v2", 96, _cifar10, (1, 5, 10, 25, 50, 100)),
    "cifar10_lite0": Task("efficientnet_lite0", 96, _cifar10, (10, 50)),
    "fashion_mnist": Task("mobilenet_v2", 96, _fashion, (5, 10, 50)),
    "plankton": Task("mobilenet_v2", 96, _plankton, (1, 5)),
    "traffic_lights": Task("mobilenet_v2", 64, _traffic_lights, (5, 10)),
}


def run(name: str, methods: list[str], shots: list[int], seeds: int) -> None:
    """Measure what is missing of one task, then write its table and plot."""
    task = TASKS[name]
    backbone = load_backbone(task.backbone).with_size(task.size)
    train, test = task.read(backbone)
    folder = RESULTS / name
    result = compare(
        train, test=test, backbone=backbone, methods=methods, shots=shots, seeds=seeds, out=folder, verbose=1
    )
    write_files(result, folder)
    record.record(f"few_shot/{name}/made_by", {"task": name})
    write_page()


def write_page() -> None:
    """docs/results/few_shot.md: one table a task, from the cells measured so far."""
    lines = ["# Accuracy against pictures a class", "", PAGE_HEAD]
    for name, task in TASKS.items():
        path = RESULTS / name / "comparison.json"
        if not path.exists():
            continue
        document = json.loads(path.read_text())
        rows = [_page_row(method, shots, cells) for (method, shots), cells in _grouped(document["cells"]).items()]
        tests = document["settings"]["test_pictures"]
        lines += ["", f"## {name}: {task.backbone}, {task.size} px, {tests:,} test pictures", ""]
        lines += [
            record.markdown_table(rows, dict.fromkeys(rows[0], "")),
            "",
            f"[plot](few_shot/{name}/comparison.png)",
        ]
    (record.RESULTS / "few_shot.md").write_text("\n".join(lines) + "\n")


def _grouped(cells: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["shots"], list(METHODS).index(cell["method"]))):
        if cell["failed"] is None:
            groups.setdefault((cell["method"], cell["shots"]), []).append(cell)
    return groups


def _page_row(method: str, shots: int, cells: list[dict[str, Any]]) -> dict[str, str]:
    def mean(*keys: str) -> tuple[float, float]:
        values = [float(cell[keys[0]] if len(keys) == 1 else cell[keys[0]][keys[1]]) for cell in cells]
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        return statistics.fmean(values), spread

    accuracy, error = mean("scores", "accuracy")
    return {
        "a class": str(shots),
        "method": method,
        "accuracy": f"{accuracy:.3f}" + (f" ± {error:.3f}" if len(cells) > 1 else ""),
        "NLL": f"{mean('scores', 'nll')[0]:.3f}",
        "ECE": f"{mean('scores', 'ece')[0]:.3f}",
        "CPU seconds": f"{mean('cpu_seconds')[0]:.1f}",
        "seconds": f"{mean('seconds')[0]:.1f}",
        "peak GiB": f"{mean('peak_bytes')[0] / 2**30:.2f}",
        "seeds": str(len(cells)),
    }


def main() -> None:
    """Run one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shots", help="pictures a class; default: the task's own")
    parser.add_argument("--seeds", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[given.task]
    shots = [int(s) for s in given.shots.split(",")] if given.shots else list(task.shots)
    run(given.task, given.methods.split(","), shots, given.seeds or task.seeds)


if __name__ == "__main__":
    main()
