"""Pictures, a network and a recorder of its inputs, for the tests of joint fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import small
import torch
from torch import Tensor, nn

from tangentune.methods.fine_tuning import FineTuneSettings
from tangentune.methods.joint import JointSettings
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


def target(n: int = 12, seed: int = 0) -> Pictures:
    x, labels = small.pictures(n, 3, seed)
    return Pictures(torch.from_numpy(x), np.array(["cat", "dog", "eel"])[labels], [f"t{i}" for i in range(n)])


def source(n: int = 20, seed: int = 1) -> Pictures:
    x, labels = small.pictures(n, 4, seed)
    return Pictures(torch.from_numpy(x), labels + 7, [f"s{i}" for i in range(n)])


def base(**fields: Any) -> FineTuneSettings:
    return FineTuneSettings(**fields)


def joint(fine_tune: FineTuneSettings | None = None, **fields: Any) -> JointSettings:
    return JointSettings(fine_tune=fine_tune or FineTuneSettings(), **fields)


def one_step(**fields: Any) -> FineTuneSettings:
    """A single step of plain gradient descent with rate 1 on all target pictures at once: it shows the gradient."""
    plain: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 1.0, "epochs": 1, "warmup": 0.0, "batch_size": 64}
    return FineTuneSettings(**{**plain, "schedule": "constant", "head_start": "random", **fields})


@dataclass(eq=False)
class Watched:
    """A backbone that writes down every batch it is given, with the mode it was in and the gradient mode."""

    batches: list[tuple[bool, Tensor]] = field(default_factory=list)

    def backbone(self) -> Backbone:
        def features(module: nn.Module, x: Tensor) -> Tensor:
            if torch.is_grad_enabled() or module.training:
                self.batches.append((True, x.detach().clone()))
            else:
                self.batches.append((False, x.detach().clone()))
            return module(x)

        backbone = Backbone(small.network(), input_size=(3, 8, 8), mean=small.MEAN, std=small.STD, features=features)
        self.batches.clear()
        return backbone

    def learnt(self) -> list[Tensor]:
        return [x for learning, x in self.batches if learning]


def places(x: Tensor, pictures: Pictures) -> list[int]:
    """Which picture each network input is, mirrored or not."""
    plain = small.normalised(pictures.pixels.numpy())
    distances = torch.stack([(x[:, None] - views[None]).abs().amax((2, 3, 4)) for views in (plain, plain.flip(-1))])
    nearest = distances.amin(0).min(1)
    assert float(nearest.values.max()) < 1e-6
    return nearest.indices.tolist()


def state(part: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in part.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
