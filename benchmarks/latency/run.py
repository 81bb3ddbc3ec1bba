"""Time of a prediction by an exported file beside a plain pass through the network, in ONNX Runtime on one thread.

    python -m benchmarks.latency.run      # 10 classes of CIFAR-10, a picture and 16; half an hour

The goal is 2.2 plain passes for up to 10 classes. Networks with weights keep the blocks that leave-one-out keeps, those
of random numbers all. Ratios are of the processor's time, so that other work on the machine
changes them little.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import cifar_split
from benchmarks.latency.networks import random_backbone
from benchmarks.record import fill, load
from benchmarks.study import alternating, begin, medians, study_parser
from tangentune import TangentClassifier, load_backbone
from tangentune.deployment.export import plain_network
from tangentune.deployment.formats import FORMATS

NAME, SIZE, SHOTS, GOAL = "latency", 96, 10, 2.2
NETWORKS = ("resnet", "transformer", "mobilenet_v2", "efficientnet_lite0")
KINDS: dict[str, dict[str, Any]] = {
    "usual": {"augment": "flip", "metric_power": 0.25, "normalize": True},  # what leave-one-out mostly chooses
    "no metric, not normalised": {"augment": None, "metric_power": 0, "normalize": False},
}


def main() -> None:
    """Fit, export and measure each network and kind; print, and keep each as it comes in docs/results/latency.json."""
    given = begin(study_parser(__doc__, runs=9))
    warnings.simplefilter("ignore")
    todo = [{"network": network, "kind": kind} for kind in KINDS for network in NETWORKS]
    fill(NAME, todo, lambda key: measure(key["network"], KINDS[key["kind"]], given.runs))
    for row in load(NAME).get("rows", []):
        passes = ", ".join(f"{ratio:.1f} with {count}" for count, ratio in row["passes"].items())
        print(f"{row['key']['network']}, {row['key']['kind']}: {passes} pictures at a time; the goal is {GOAL}")


def measure(name: str, options: dict[str, Any], runs: int) -> dict[str, Any]:
    """Plain passes that a prediction takes, for one picture and for 16 at a time."""
    known = name.startswith(("mobilenet", "efficientnet"))
    backbone = load_backbone(name).with_size(SIZE) if known else random_backbone(name, SIZE)
    train, test = cifar_split(backbone, SHOTS, 0, test=16)
    fixed = {} if known else {"body_scale": 1.0, "damping": 0.1}  # random weights have no body worth keeping
    model = TangentClassifier(backbone, outer_steps=0, **fixed, **options).fit(train)
    kind = FORMATS[".onnx"]
    with tempfile.TemporaryDirectory() as folder:
        made = model.export(Path(folder) / "model.onnx")
        own = kind.open(made.path.read_bytes())
    plain = kind.plain(plain_network(model.model_, backbone.contract), torch.as_tensor(test.pixels[:2]))
    passes, seconds = {}, {}
    for count in (1, 16):
        pixels = test.pixels[:count].numpy()
        taken = alternating({"file": lambda p=pixels: own(p), "plain": lambda p=pixels: plain(p)}, runs)
        found = medians(taken, "cpu_seconds")
        passes[str(count)], seconds[str(count)] = found["file"] / found["plain"], found
    kept = [name for name, scale in model.block_scales_.items() if scale and name != "head"]
    shown = {"blocks": len(kept), "bytes": made.bytes, "difference": made.difference, "load": os.getloadavg()[0]}
    return {**shown, "passes": passes, "cpu_seconds": seconds}


if __name__ == "__main__":
    main()
