"""The LQF problem of a small network with its Jacobian written out, for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from cases import seeded
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from tangentune.methods.lqf import LQF, LQFSettings, fit_lqf
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures

N, C = 15, 3


def small_backbone(activation: type[nn.Module] = nn.ReLU) -> Backbone:
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), activation(), nn.Conv2d(4, 5, 2, stride=2), nn.Tanh()]
    net = seeded(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return Backbone(net, input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def noise_pictures(n: int = N) -> Pictures:
    pixels = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Pictures(pixels, np.array(["cat", "dog", "eel"])[np.arange(n) % C], [str(i) for i in range(n)])


def inputs(pictures: Pictures, flip: bool = False) -> Tensor:
    x = (pictures.pixels.double() / 255 - 0.5) / 0.25
    return x.flip(-1) if flip else x


def fit(pictures: Pictures | None = None, *, flip: bool = False, **fields: Any) -> LQF:
    return fit_lqf(small_backbone(), pictures or noise_pictures(), LQFSettings(flip=flip, **fields))


@cache
def exact(**fields: Any) -> LQF:
    """One that tests share, to be looked at only."""
    return fit(solver="pcg", preconditioner="none", tolerance=1e-11, epochs=400, **fields)


class Dense:
    """The same problem with its Jacobian written out."""

    def __init__(self, head: nn.Linear, x: Tensor, backbone: Backbone | None = None) -> None:
        self.net = nn.Sequential((backbone or small_backbone()).module, head)
        self.weights = {name: p.detach() for name, p in self.net.named_parameters()}
        self.f0, self.rows = self.outputs(x), self.jacobian(x)

    def outputs(self, x: Tensor) -> Tensor:
        return functional_call(self.net, self.weights, (x,)).detach()

    def jacobian(self, x: Tensor) -> Tensor:
        found = jacrev(lambda w: functional_call(self.net, w, (x,)))(self.weights)
        return torch.cat([found[name].flatten(2) for name in self.weights], 2).flatten(0, 1)

    def solve(self, residual: Tensor, damping: float, rows: Tensor | None = None) -> Tensor:
        rows = self.rows if rows is None else rows
        gram = rows @ rows.T + damping * torch.eye(len(rows), dtype=rows.dtype)
        return rows.T @ torch.linalg.solve(gram, residual.flatten())

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        return self.outputs(x) + (self.jacobian(x) @ u).view(-1, C)


def positions() -> Tensor:
    return torch.arange(N) % C


def probe(x: Tensor | None = None) -> nn.Linear:
    phi = small_backbone().features(inputs(noise_pictures()) if x is None else x)
    return probe_head(phi.detach(), positions())


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
