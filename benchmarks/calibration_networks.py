"""Fine-tuned networks of the calibration study: trained once for a draw, used by every method that starts from one.

Two networks a draw. "split" was trained on four fifths of the pictures, its learning rate chosen on the other fifth;
"refit" was trained again on all of them with that rate. Their cost is counted in full for each method that uses them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.calibration_data import CACHE, Split, network, split_of
from tangentune.memory import Meter
from tangentune.methods.fine_tuning import FineTuned, FineTuneSettings, fine_tune, sweep
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.networks.backbone import Backbone

NETWORKS = ("split", "refit")
PARTS = ("train", "test", "foreign")
VALIDATION_SHARE = 0.2


@final
class Cost(dict[str, float]):
    """Seconds, processor seconds and peak bytes; `+` adds times and takes the higher peak."""

    def __add__(self, other: Cost) -> Cost:
        """What one after the other costs."""
        added = {name: self[name] + other[name] for name in ("seconds", "cpu_seconds")}
        return Cost(added, peak_bytes=max(self["peak_bytes"], other["peak_bytes"]))


@contextmanager
def measured() -> Iterator[Cost]:
    """A `Cost` that is filled in at the end of the block."""
    cost, meter = Cost(), Meter(torch.device("cpu"))
    wall, cpu = time.perf_counter(), time.process_time()
    with meter.stage("all"):
        yield cost
    cost.update(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
    cost["peak_bytes"] = meter.stages[0]["peak_bytes"]


@final
@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned network of a draw, with what it makes of all pictures.

    Attributes:
        features: "train", "test" and "foreign" -> (n, d), means over each picture and its mirror image.
        weight: (C, d) of the head.
        bias: (C,) of the head.
        fit_rows: training pictures that it was trained on.
        validation_rows: training pictures kept aside, the same for both networks.
        training: cost of the network with the choice of its rate.
        feature_costs: cost of the features of each part.
        chosen: learning rate and epochs.
    """

    features: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    fit_rows: Tensor
    validation_rows: Tensor
    training: Cost
    feature_costs: dict[str, Cost]
    chosen: dict[str, Any]

    def logits(self, part: str) -> Tensor:
        """(n, C) logits of a part of the pictures."""
        return self.features[part] @ self.weight.T + self.bias


def tune(dataset: str, seed: int) -> None:
    """Fine-tune both networks of a draw and write them to the cache."""
    split, backbone = split_of(dataset, seed), network()
    with measured() as sweeping:
        found = sweep(
            backbone, split.train, FineTuneSettings(), validation_share=VALIDATION_SHARE, refit=False, seed=seed
        )
    assert found.tuned.validation is not None
    settings = replace(found.tuned.settings, validation_share=0.0, epochs=found.tuned.validation.kept)
    with measured() as refitting:
        refit = fine_tune(backbone, split.train, settings)
    rows = split_rows(_positions(split), VALIDATION_SHARE, seed)
    everything = np.arange(len(split.train))
    chosen = {"learning_rate": settings.learning_rate, "epochs": settings.epochs}
    _write(_folder(dataset, seed), "split", found.tuned, split, rows, sweeping, chosen)
    _write(_folder(dataset, seed), "refit", refit, split, (everything, rows[1]), sweeping + refitting, chosen)


def is_tuned(dataset: str, seed: int) -> bool:
    """Whether both networks of a draw are in the cache."""
    return (_folder(dataset, seed) / "refit.json").exists()


def tuned_network(dataset: str, seed: int, which: str) -> Tuned:
    """One of both networks as matrices."""
    folder = _folder(dataset, seed)
    kept, facts = load_file(folder / f"{which}.safetensors"), json.loads((folder / f"{which}.json").read_text())
    return Tuned(
        {part: kept[f"features.{part}"] for part in PARTS},
        kept["head.weight"],
        kept["head.bias"],
        kept["fit_rows"],
        kept["validation_rows"],
        Cost(facts["training"]),
        {part: Cost(cost) for part, cost in facts["features"].items()},
        facts["chosen"],
    )


def whole_network(dataset: str, seed: int, which: str) -> nn.Module:
    """One of both networks from pictures to logits, in eval mode; what the logits depend on requires gradients."""
    kept = load_file(_folder(dataset, seed) / f"{which}.safetensors")
    module = Logits(network(), *kept["head.weight"].shape)
    state = {name: value for name, value in kept.items() if name.startswith(("body.", "head."))}
    module.load_state_dict(state)
    return module.eval()


@final
class Logits(nn.Module):
    """Body and head in one module, as other libraries want it; the body's own classifier is not used."""

    def __init__(self, backbone: Backbone, classes: int, width: int) -> None:
        super().__init__()
        self.body, self.feature_function = backbone.module, backbone.feature_function
        self.head = nn.Linear(width, classes)
        probe = self.head(self.feature_function(self.body.requires_grad_(True), backbone.sample()))
        names, parameters = zip(*self.named_parameters(), strict=True)
        gradients = torch.autograd.grad(probe.sum(), parameters, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            self.get_parameter(name).requires_grad_(gradient is not None)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C) logits of normalised pictures."""
        return self.head(self.feature_function(self.body, x))


def _write(
    folder: Path,
    which: str,
    tuned: FineTuned,
    split: Split,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    training: Cost,
    chosen: dict[str, Any],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {f"body.{name}": value for name, value in tuned.backbone.module.state_dict().items()}
    kept |= {f"head.{name}": value for name, value in tuned.head.state_dict().items()}
    kept |= {"fit_rows": torch.from_numpy(rows[0]), "validation_rows": torch.from_numpy(rows[1])}
    costs = {}
    for part in PARTS:
        with measured() as costs[part]:
            kept[f"features.{part}"] = mean_features(tuned.backbone, getattr(split, part), 64, True)
    save_file({name: value.contiguous() for name, value in kept.items()}, folder / f"{which}.safetensors")
    facts = {"training": training, "features": costs, "chosen": chosen}
    (folder / f"{which}.json").write_text(json.dumps(facts, indent=1))


def _folder(dataset: str, seed: int) -> Path:
    return CACHE / f"{dataset}-{seed}"


def _positions(split: Split) -> NDArray[np.int64]:
    assert split.train.labels is not None
    return split.train.labels
