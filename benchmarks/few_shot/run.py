"""Accuracy of every method against pictures a class: `python -m benchmarks.few_shot.run TASK` (`--help` lists tasks).

Every task is a run of `tangentune compare`'s own code on fixed pictures. A cell (method, pictures a class, seed) is
stored as soon as it is measured in docs/results/few_shot/TASK/, so a run may be stopped and started again, and
methods may be measured by several runs one after another. One thread: run two tasks side by side on two cores.
"""

from __future__ import annotations

from benchmarks import datasets, record
from benchmarks.few_shot.page import TASKS, publish
from benchmarks.picture_sets.sets import SETS, drawn
from benchmarks.study import begin, study_parser
from tangentune import Backbone, Pictures, load_backbone
from tangentune.comparison import compare
from tangentune.comparison.methods import METHODS
from tangentune.comparison.page import write_files

POOL, TEST, SEEDS = 600, 1000, 3  # pictures a class to draw from, and test pictures, of the large sets


def main() -> None:
    """Measure what is missing of one task, then write its table and plot, and the page."""
    parser = study_parser(__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with commas between")
    given = begin(parser)
    task, folder = TASKS[given.task], record.RESULTS / "few_shot" / given.task
    backbone = load_backbone(task.backbone).with_size(task.size)
    try:
        train, test = read(given.task, backbone)
    except datasets.DataMissing as missing:
        parser.exit(1, f"{given.task} is left out: {missing}\n")
    settings = {"methods": given.methods.split(","), "shots": list(task.shots), "seeds": SEEDS, "flip": task.flip}
    result = compare(train, test=test, backbone=backbone, out=folder, verbose=1, **settings)
    write_files(result, folder)
    record.record(f"few_shot/{given.task}/made_by", {"task": given.task})
    publish()


def read(task: str, backbone: Backbone) -> tuple[Pictures, Pictures | None]:
    """Pictures to draw from, and test pictures where the data set has them."""
    if task in ("plankton", "traffic_lights"):
        parts = [datasets.plankton()] if task == "plankton" else map(datasets.traffic_lights, ("train", "test"))
        train, *test = (own.loaded(backbone, names=True) for own in parts)
        return train, test[0] if test else None
    if task in SETS:
        return drawn(task, SETS[task].pool, seed=0, tests=TEST).loaded(backbone, names=True)
    data = datasets.fashion_mnist() if task == "fashion_mnist" else datasets.cifar10()
    chosen = datasets.few_shot(data.train_labels, POOL, seed=0)
    return data.some(chosen, datasets.held_out(len(data.test), TEST)).loaded(backbone, names=True)


if __name__ == "__main__":
    main()
