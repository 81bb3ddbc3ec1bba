"""What a fit costs against what `plan` promised: peak resident memory and seconds, each fit in a process of its own.

    python -m benchmarks.fit_cost.run                # about 15 minutes, one thread
    python -m benchmarks.fit_cost.run --child NAME   # one of them, as JSON

Real settings take the memory they like. The others get the smallest budget that `plan` does not refuse, found by
halving, and their peak must stay below it. Seconds are the processor's, for other work may share the machine.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.datasets import cifar_split, fashion_mnist, plankton, traffic_lights
from benchmarks.record import Row, fill
from benchmarks.study import begin, study_parser, watched
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone, load_pictures
from tangentune.errors import BudgetError

NAME = "fit_cost"
EVIDENCE: dict[str, Any] = dict.fromkeys(("body_scale", "damping", "normalize", "metric_power"), "evidence")


@dataclass(frozen=True)
class Setting:
    """A network at a size, pictures, options; `tight` gets as little memory as it can."""

    network: str
    size: int
    pictures: Callable[[Backbone], Pictures]
    options: Mapping[str, Any] = field(default_factory=dict)
    tight: bool = False


def cifar(shots: int) -> Callable[[Backbone], Pictures]:
    return lambda backbone: cifar_split(backbone, shots, 0, test=1)[0]


def lights(backbone: Backbone) -> Pictures:
    data = traffic_lights()
    kept = range(0, len(data.paths), 3)
    return load_pictures([data.paths[i] for i in kept], data.labels[list(kept)], contract=backbone.contract)


def fashion(backbone: Backbone) -> Pictures:
    data = fashion_mnist()
    return load_pictures(data.train[:600], data.train_labels[:600], contract=backbone.contract)


def sea(backbone: Backbone) -> Pictures:
    data = plankton()
    return load_pictures(data.paths, data.labels, contract=backbone.contract)


# The last two of the real settings were added after the planner was mended, and nothing was tuned on them.
SETTINGS = {
    "500 CIFAR-10, MobileNetV2, 96 px": Setting("mobilenet_v2", 96, cifar(50)),
    "396 traffic lights, MobileNetV2, 96 px, flips": Setting("mobilenet_v2", 96, lights, {"augment": "flip"}),
    "100 CIFAR-10, EfficientNet-Lite0, 128 px, Laplace": Setting(
        "efficientnet_lite0", 128, cifar(10), {"likelihood": "laplace"}
    ),
    "600 Fashion-MNIST, MobileNetV2, 64 px": Setting("mobilenet_v2", 64, fashion),
    "250 CIFAR-10, MobileNetV2, 64 px, outer steps": Setting("mobilenet_v2", 64, cifar(25), {"outer_steps": 32}),
    "200 CIFAR-10, EfficientNet-Lite0, 80 px": Setting("efficientnet_lite0", 80, cifar(20)),
    "105 plankton, EfficientNet-Lite1, 112 px": Setting("efficientnet_lite1", 112, sea),
    "tight: plain": Setting("mobilenet_v2", 64, cifar(50), tight=True),
    "tight: Laplace": Setting("mobilenet_v2", 64, cifar(50), {"likelihood": "laplace"}, tight=True),
    "tight: Dirichlet": Setting("mobilenet_v2", 64, cifar(50), {"likelihood": "dirichlet"}, tight=True),
    "tight: 300 probes": Setting("mobilenet_v2", 32, cifar(5), {"probes": 300, "subset": "last:2"}, tight=True),
    "tight: evidence": Setting("mobilenet_v2", 64, cifar(20), EVIDENCE, tight=True),
    "tight: outer steps": Setting("mobilenet_v2", 64, cifar(20), {"outer_steps": 32}, tight=True),
}  # fmt: skip


def begun(name: str) -> tuple[TangentClassifier, Pictures]:
    """A setting, its pictures read."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    time.perf_counter = time.process_time  # what the planner and the meter read
    setting = SETTINGS[name]
    backbone = load_backbone(setting.network).with_size(setting.size)
    return TangentClassifier(backbone, **setting.options), setting.pictures(backbone)


def child(name: str, budget: int | None) -> Row:
    """Plan and fit one setting within a memory budget."""
    clf, pictures = begun(name)
    clf.set_params(memory_budget=budget)
    plan = clf.plan(pictures)
    clf.fit(pictures)
    report = clf.fit_report_
    return {
        "pictures": len(pictures),
        "planned_bytes": plan["peak_bytes"],
        "peak_bytes": report["peak_bytes"],
        "planned_seconds": plan["seconds"],
        "seconds": report["total_seconds"],
        "passes": report["passes"],
        "planned_stages": plan["stages"],
        "stages": report["stages"],
    }


def smallest_budget(name: str) -> int:
    """The least budget, to 4 MiB, that `plan` takes."""
    (clf, pictures), low, high = begun(name), 0, 4096
    while high - low > 4:
        middle = (low + high) // 2
        try:
            clf.set_params(memory_budget=f"{middle}MiB").plan(pictures)
            high = middle
        except BudgetError:
            low = middle
    return high * 2**20


def child_of(*arguments: str) -> tuple[str, int]:
    """What this script prints in a process of its own, and the memory that it took."""
    return watched([sys.executable, "-m", "benchmarks.fit_cost.run", "--scratch", *arguments])


def measure(key: Row) -> Row:
    """One setting, in processes of its own."""
    name, more = key["setting"], []
    if SETTINGS[name].tight:
        more = ["--budget", child_of("--find", name)[0].strip()]
    printed, highest = child_of("--child", name, *more)
    return json.loads(printed) | {"budget": int(more[1]) if more else None, "seen_bytes": highest}


def main() -> None:
    """Every setting in a process of its own, one after the other; docs/results/fit_cost.json."""
    parser = study_parser(__doc__)
    parser.add_argument("--child", metavar="NAME", help="only fit this setting, and print what it took")
    parser.add_argument("--find", metavar="NAME", help="only print the least budget of this setting")
    parser.add_argument("--budget", type=int)
    given = begin(parser)
    if given.child:
        print(json.dumps(child(given.child, given.budget)))
    elif given.find:
        print(smallest_budget(given.find))
    else:
        fill(NAME, [{"setting": name} for name in SETTINGS], measure)


if __name__ == "__main__":
    main()
