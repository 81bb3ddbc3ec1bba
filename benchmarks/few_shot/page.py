"""The page of accuracy against pictures a class, from the cells of every task: `python -m benchmarks.few_shot.page`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import record
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing
from tangentune.comparison.methods import METHODS


@dataclass(frozen=True)
class Task:
    """A network, its picture size, the numbers a class that are measured, and whether mirror images may be used."""

    backbone: str
    size: int
    shots: tuple[int, ...]
    flip: bool = True


TASKS = {
    "cifar10": Task("mobilenet_v2", 96, (1, 5, 10, 25, 50, 100)),
    "cifar10_ladder": Task("mobilenet_v2", 96, (5, 10, 25, 50)),
    "cifar10_lite0": Task("efficientnet_lite0", 96, (10, 50)),
    "fashion_mnist": Task("mobilenet_v2", 96, (5, 10, 50)),
    "plankton": Task("mobilenet_v2", 96, (1, 5)),
    "traffic_lights": Task("mobilenet_v2", 64, (5, 10)),
    "animals": Task("mobilenet_v2", 64, (5, 10, 50)),
    "clip_art": Task("mobilenet_v2", 96, (5, 10, 50)),
    "deep_sky": Task("mobilenet_v2", 96, (5, 10)),
    "digits": Task("mobilenet_v2", 64, (5, 10, 50), flip=False),
    "furniture": Task("mobilenet_v2", 96, (5, 10)),
    "letters": Task("mobilenet_v2", 64, (5, 10, 50), flip=False),
    "solar_cells": Task("mobilenet_v2", 96, (5, 10, 50)),
    "stamps": Task("mobilenet_v2", 96, (5, 10)),
}
MEANS: dict[str, tuple[Callable[[Row], float], str]] = {  # what a cell says, and the format of its mean
    "NLL": (lambda cell: cell["scores"]["nll"], ".3f"),
    "ECE": (lambda cell: cell["scores"]["ece"], ".3f"),
    "CPU seconds": (lambda cell: cell["cpu_seconds"], ".1f"),
    "seconds": (lambda cell: cell["seconds"], ".1f"),
    "peak GiB": (lambda cell: cell["peak_bytes"] / 2**30, ".2f"),
}


def publish() -> None:
    """docs/results/few_shot.md: one table a task, from the cells measured so far."""
    lines = []
    for name, task in TASKS.items():
        path = record.RESULTS / "few_shot" / name / "comparison.json"
        if path.exists():
            document = json.loads(path.read_text())
            tests = document["settings"]["test_pictures"]
            lines += ["", f"## {name}: {task.backbone}, {task.size} px, {tests:,} test pictures", ""]
            lines += [table(document["cells"]), "", f"[plot](few_shot/{name}/comparison.png)"]
    record.write_page("few_shot", __file__, {"tasks": "\n".join(lines)})


def table(cells: list[Row]) -> str:
    """A line for each number of pictures and method."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["shots"], list(METHODS).index(cell["method"]))):
        if cell["failed"] is None:
            groups.setdefault((cell["shots"], cell["method"]), []).append(cell)
    rows = []
    for (shots, method), group in groups.items():
        means = {name: statistics.fmean(map(of, group)) for name, (of, _) in MEANS.items()}
        scores = mean_error([cell["scores"]["accuracy"] for cell in group])
        rows.append({"a class": shots, "method": method, "accuracy": scores, **means, "seeds": len(group)})
    formats = dict.fromkeys(rows[0], "") | {name: spec for name, (_, spec) in MEANS.items()}
    return record.markdown_table(rows, formats)


if __name__ == "__main__":
    publishing(publish, __doc__)
