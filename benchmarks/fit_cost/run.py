"""What a fit costs against what `plan` promised: peak resident memory and seconds, each fit in a process of its own.

    python -m benchmarks.fit_cost.run                # about 15 minutes, one thread
    python -m benchmarks.fit_cost.run --child NAME   # one of them, as JSON

Seconds are the processor's, for other work may share the machine.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.datasets import FileData, cifar_split, fashion_mnist, plankton, traffic_lights
from benchmarks.record import Row, fill
from benchmarks.study import STILL, begin, study_parser, watched
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone

NAME = "fit_cost"
Reader = Callable[[Backbone], Pictures]


def cifar(shots: int) -> Reader:
    return lambda backbone: cifar_split(backbone, shots, 0, test=1)[0]


def some(data: Callable[[], FileData], step: int = 1) -> Reader:
    """Some pictures of a set in files."""
    return lambda backbone: (found := data()).loaded(backbone, range(0, len(found.paths), step))


def fashion(backbone: Backbone) -> Pictures:
    return fashion_mnist().some(np.arange(600), np.arange(1)).loaded(backbone)[0]


# Network, size, pictures, options. Nothing was tuned on the last two.
SETTINGS: dict[str, tuple[str, int, Reader, dict[str, Any]]] = {
    "500 CIFAR-10, MobileNetV2, 96 px": ("mobilenet_v2", 96, cifar(50), {}),
    "396 traffic lights, MobileNetV2, 96 px, flips, not moved":
        ("mobilenet_v2", 96, some(traffic_lights, 3), {"augment": "flip", "outer_steps": 0}),
    "100 CIFAR-10, EfficientNet-Lite0, 128 px, Laplace":
        ("efficientnet_lite0", 128, cifar(10), {"likelihood": "laplace"}),
    "600 Fashion-MNIST, MobileNetV2, 64 px, not moved": ("mobilenet_v2", 64, fashion, STILL),
    "250 CIFAR-10, MobileNetV2, 64 px, 32 steps": ("mobilenet_v2", 64, cifar(25), STILL | {"outer_steps": 32}),
    "200 CIFAR-10, EfficientNet-Lite0, 80 px": ("efficientnet_lite0", 80, cifar(20), {}),
    "105 plankton, EfficientNet-Lite1, 112 px": ("efficientnet_lite1", 112, some(plankton), {}),
}  # fmt: skip


def child(name: str) -> Row:
    """Plan and fit one setting."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    time.perf_counter = time.process_time  # what the planner and the meter read
    network, size, pictures_for, options = SETTINGS[name]
    backbone = load_backbone(network).with_size(size)
    clf, pictures = TangentClassifier(backbone, **options), pictures_for(backbone)
    plan = clf.plan(pictures)
    report = clf.fit(pictures).fit_report_
    out = {"pictures": len(pictures)} | {f"planned_{what}": plan[what] for what in ("peak_bytes", "seconds", "stages")}
    out |= {what: report[what] for what in ("peak_bytes", "passes", "stages")}
    return out | {"planned_bytes": out.pop("planned_peak_bytes"), "seconds": report["total_seconds"]}


def measure(key: Row) -> Row:
    """One setting, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fit_cost.run", "--scratch", "--child", key["setting"]]
    printed, highest = watched(command)
    return json.loads(printed) | {"seen_bytes": highest}


def main() -> None:
    """Every setting in a process of its own, one after the other; docs/results/fit_cost.json."""
    parser = study_parser(__doc__)
    parser.add_argument("--child", metavar="NAME", help="only fit this setting, and print what it took")
    given = begin(parser)
    if given.child:
        print(json.dumps(child(given.child)))
    else:
        fill(NAME, [{"setting": name} for name in SETTINGS], measure)


if __name__ == "__main__":
    main()
