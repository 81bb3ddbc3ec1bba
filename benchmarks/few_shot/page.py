"""The page of accuracy against pictures a class, from the cells of every task: `python -m benchmarks.few_shot.page`."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks import record
from benchmarks.study import mean_error, read_arguments, study_parser
from tangentune.comparison.methods import METHODS


@dataclass(frozen=True)
class Task:
    """A network, its picture size, and the numbers a class that are measured."""

    backbone: str
    size: int
    shots: tuple[int, ...]
    seeds: int = 3


TASKS = {
    "cifar10": Task("mobilenet_v2", 96, (1, 5, 10, 25, 50, 100)),
    "cifar10_lite0": Task("efficientnet_lite0", 96, (10, 50)),
    "fashion_mnist": Task("mobilenet_v2", 96, (5, 10, 50)),
    "plankton": Task("mobilenet_v2", 96, (1, 5)),
    "traffic_lights": Task("mobilenet_v2", 64, (5, 10)),
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


def table(cells: list[dict[str, Any]]) -> str:
    """A line for each number of pictures and method."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["shots"], list(METHODS).index(cell["method"]))):
        if cell["failed"] is None:
            groups.setdefault((cell["shots"], cell["method"]), []).append(cell)
    rows = []
    for (shots, method), group in groups.items():
        means = {
            name: statistics.fmean(cell[name] for cell in group) for name in ("cpu_seconds", "seconds", "peak_bytes")
        }
        means |= {name: statistics.fmean(cell["scores"][name] for cell in group) for name in ("nll", "ece")}
        rows.append(
            {
                "a class": str(shots),
                "method": method,
                "accuracy": mean_error([cell["scores"]["accuracy"] for cell in group]),
                "NLL": f"{means['nll']:.3f}",
                "ECE": f"{means['ece']:.3f}",
                "CPU seconds": f"{means['cpu_seconds']:.1f}",
                "seconds": f"{means['seconds']:.1f}",
                "peak GiB": f"{means['peak_bytes'] / 2**30:.2f}",
                "seeds": str(len(group)),
            }
        )
    return record.markdown_table(rows)


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
