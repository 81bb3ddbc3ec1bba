"""`fit_lqf`'s default on the draws of few_shot: `python -m benchmarks.lqf_conditions.draws`.

The pictures, the draws and the test pictures are those of `benchmarks.few_shot`; only LQF is fitted anew.
"""

from __future__ import annotations

import json

from benchmarks import record
from benchmarks.few_shot.page import TASKS
from benchmarks.few_shot.run import read
from benchmarks.lqf_conditions.page import DRAWS, publish
from benchmarks.record import Row
from benchmarks.study import begin, quietly, study_parser
from tangentune import load_backbone
from tangentune.comparison.measure import Bench
from tangentune.comparison.methods import MethodSettings
from tangentune.comparison.store import FILE

WANTED = (("cifar10", 25), ("traffic_lights", 10), ("fashion_mnist", 10), ("cifar10", 50), ("cifar10", 10))
FORMER = ("probe", "lqf", "finetune")  # as few_shot measured them; its "lqf" is at the pre-trained weights
GRID = [{"task": task, "shots": shots, "seed": seed} for task, shots in WANTED for seed in range(3)]


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    benches: dict[str, Bench] = {}

    def measure(key: Row) -> Row:
        name, shots, seed = key.values()
        task = TASKS[name]
        if name not in benches:
            benches.clear()
            backbone = load_backbone(task.backbone).with_size(task.size)
            train, test = read(name, backbone)
            assert test is not None
            benches[name] = Bench(backbone, train, test, MethodSettings(flip=task.flip))
        cell = benches[name].measure("lqf", shots, seed)
        assert cell.failed is None, cell.failed
        facts = {"accuracy": cell.scores["accuracy"], "nll": cell.scores["nll"], "cpu_seconds": cell.cpu_seconds}
        return {**facts, "chosen": cell.chosen, **{f"former_{method}": of(key, method) for method in FORMER}}

    with quietly():
        record.fill(DRAWS, GRID, measure)
    publish()


def of(key: Row, method: str) -> float:
    """Accuracy of another method on the same draw."""
    path = record.ROOT / "docs" / "results" / "few_shot" / key["task"] / FILE
    cells = json.loads(path.read_text())["cells"]
    (cell,) = (c for c in cells if (c["method"], c["shots"], c["seed"]) == (method, key["shots"], key["seed"]))
    return cell["scores"]["accuracy"]


if __name__ == "__main__":
    main()
