"""Time of a prediction by an exported file beside a plain pass through the network, in ONNX Runtime on one thread.

    python -m benchmarks.latency.run      # 10 classes of CIFAR-10 at 96 pixels, a picture and 16; about ten minutes

The goal is 2.2 plain passes for up to 10 classes.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import DataMissing, cifar_split
from benchmarks.record import record
from benchmarks.study import alternating, begin, medians, study_parser
from tangentune import TangentClassifier, load_backbone
from tangentune.deployment.export import plain_network
from tangentune.deployment.formats import FORMATS

NAME, SIZE, SHOTS, GOAL = "latency", 96, 10, 2.2
KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "plain views": {"augment": None},
    "no metric, not normalised": {"augment": None, "metric_power": 0, "normalize": False},
}


def main() -> None:
    """Fit, export and measure each kind; print, and write docs/results/latency.json."""
    given = begin(study_parser(__doc__, runs=7))
    warnings.simplefilter("ignore")
    try:
        found = {kind: measure(options, given.runs) for kind, options in KINDS.items()}
    except DataMissing as error:
        print(f"skipped: {error}")
        return
    print(json.dumps(found, indent=1))
    best = min(ratio for one in found.values() for ratio in one["passes"].values())
    print(f"The quickest takes {best:.1f} plain passes; the goal is {GOAL}")
    print(f"written: {record(NAME, {'goal': GOAL, 'size': SIZE, 'kinds': found})}")


def measure(options: dict[str, Any], runs: int) -> dict[str, Any]:
    """Plain passes that a prediction takes, for one picture and for 16 at a time."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    train, test = cifar_split(backbone, SHOTS, 0, test=16)
    model = TangentClassifier(backbone, outer_steps=0, **options).fit(train)
    kind = FORMATS[".onnx"]
    with tempfile.TemporaryDirectory() as folder:
        made = model.export(Path(folder) / "model.onnx")
        own = kind.open(made.path.read_bytes())
    plain = kind.plain(plain_network(model.model_, backbone.contract), torch.as_tensor(test.pixels[:2]))
    passes, seconds = {}, {}
    for count in (1, 16):
        pixels = test.pixels[:count].numpy()
        found = medians(alternating({"file": lambda p=pixels: own(p), "plain": lambda p=pixels: plain(p)}, runs))
        passes[str(count)], seconds[str(count)] = found["file"] / found["plain"], found
    return {"bytes": made.bytes, "difference": made.difference, "passes": passes, "seconds": seconds}


if __name__ == "__main__":
    main()
