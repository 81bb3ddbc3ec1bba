"""Whole fits on the device that is not there, beside the same on the CPU; run as a program, in a process of its own.

It prints a line of JSON: the largest difference of each answer, by case, and what passes over few and many batches had
to wait for.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pretended_device import NAME, arrivals, register, waits
from small import FIXED, backbone, pictures
from torch import nn

from tangentune import Backbone, TangentClassifier
from tangentune.errors import InputError
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.pictures.pictures import Pictures

Data = tuple[NDArray, NDArray]


def layers() -> Backbone:
    """A network of vectors."""
    torch.manual_seed(0)
    return Backbone(nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 6)).double())


def vectors(count: int, seed: int = 0) -> Data:
    """Vectors (n, 5) of three classes."""
    x = np.random.default_rng(seed).normal(size=(count, 5))
    return x, (x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 0.8)


def life(
    network: Callable[[], Backbone], data: Data, new: Data, *, device: str = NAME, **options: Any
) -> dict[str, float]:
    """The largest difference that a device makes to each answer of a model that is fitted, edited, saved and read."""
    models = [TangentClassifier(network(), device=name, **options).fit(*data) for name in ("cpu", device)]
    assert models[1].backbone_.device.type == device
    x, y = new
    found = {}

    def look(name: str, answer: Callable[[TangentClassifier], Any]) -> None:
        here, there = (np.asarray(answer(model), np.float64) for model in models)
        found[name] = float(np.abs(here - there).max() / max(1.0, np.abs(here).max()))

    look("leave-one-out", lambda model: model.loo_predictions_)
    look("scores", lambda model: model.decision_function(x))
    look("influence", lambda model: model.influence(x))
    look("contributions", lambda model: model.contributions(x))
    look("groups", lambda model: model.leave_out(3))
    look("gradient", lambda model: model.weight_gradient())
    look("odd", lambda model: model.ood_score(x))
    edits = {
        "forget": lambda model: model.forget([3, 4]),
        "add": lambda model: model.add(x, y),
        "relabel": lambda model: model.relabel([5], y[:1]),
        "reweight": lambda model: model.reweight(np.linspace(1, 2, len(model.ids_))),
        "undo": lambda model: model.undo(),
        "strict": lambda model: model.forget([7], strict=True),
    }
    for name, edit in edits.items():
        for model in models:
            edit(model)
        look(name, lambda model: model.loo_predictions_)
        look(f"scores after {name}", lambda model: model.decision_function(x))
    with tempfile.TemporaryDirectory() as folder:
        models[1].save_pretrained(Path(folder) / "m")
        models[1] = TangentClassifier.from_pretrained(Path(folder) / "m", backbone=network(), device=device)
    look("read", lambda model: model.decision_function(x))
    for model in models:
        model.forget([8])
    look("forget what was read", lambda model: model.decision_function(x))
    return found


def lives(device: str) -> dict[str, dict[str, float]]:
    """Models of each kind."""
    free = dict.fromkeys(("metric_power", "body_scale", "normalize", "damping"), "evidence")
    large = {"damping": 2.0, "metric_power": 0.25, "normalize": True, "body_scale": 1.0, "outer_steps": 0}
    moved = {"batch_size": 8, "outer_steps": 1, "normalize": True}
    marks = {"solver": "landmarks", "landmarks": 20}
    return {
        "pictures": life(backbone, pictures(24), pictures(5, seed=5), device=device, **moved),
        "evidence": life(layers, vectors(30), vectors(4, 3), device=device, outer_steps=0, **free),
        "landmarks": life(layers, vectors(60), vectors(4, 3), device=device, **marks, **large),
    }


def counted(work: Callable[[], Any]) -> dict[str, dict[str, int]]:
    """What it waits for and what it sends, by file."""
    waits.clear()
    arrivals.clear()
    work()
    found = {"waits": Counter[str](), "arrivals": Counter[str]()}
    for kind, lines in (("waits", waits), ("arrivals", arrivals)):
        for line, count in lines.items():
            found[kind][line.split()[-1].split(":")[0]] += count
    return {kind: dict(files) for kind, files in found.items()}


def passes() -> dict[str, list[dict[str, dict[str, int]]]]:
    """The same work over two and over eight batches."""
    x, y = pictures(16)
    fixed, sizes = FIXED | {"metric_power": 0.25, "normalize": True, "device": NAME}, (8, 2)
    models = [TangentClassifier(backbone(), batch_size=size, **fixed) for size in sizes]
    found = {"fit": [counted(lambda model=model: model.fit(x, y)) for model in models]}
    found["predict"] = [counted(lambda model=model: model.decision_function(x)) for model in models]
    there, held = backbone().to(NAME), Pictures(torch.from_numpy(x), y, [str(i) for i in range(len(x))])
    settings = [FineTuneSettings(epochs=1, batch_size=size) for size in sizes]
    found["training"] = [counted(lambda own=own: fine_tune(there, held, own)) for own in settings]
    return found


def raises(work: Callable[[], Any]) -> bool:
    """Whether it is refused."""
    try:
        work()
    except (RuntimeError, TypeError):
        return True
    return False


def manners(there: torch.device) -> dict[str, list[bool]]:
    """What CUDA refuses is refused, what it takes is taken."""
    here, own, place = torch.ones(2, 2), torch.ones(2, 2, device=there), torch.zeros(1, dtype=torch.int64)
    refused = (
        lambda: own + here, lambda: own @ here, lambda: here[place.to(there)], lambda: own.numpy(),
        lambda: own.index_add_(0, place, own[:1]),
    )  # fmt: skip
    taken = (lambda: own + torch.tensor(1.0), lambda: own[place], lambda: own.copy_(here))
    return {"refused": [raises(work) for work in refused], "taken": [not raises(work) for work in taken]}


def refusal() -> str:
    """What is said of bfloat16 on a device that has none."""
    try:
        Backbone(backbone().module.float(), input_size=(3, 8, 8)).to(NAME).with_autocast("bfloat16")
    except InputError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = manners(register()) | {"autocast": [refusal()]}
    print(json.dumps(found | dict[str, Any](differences=lives(NAME), passes=passes())))
