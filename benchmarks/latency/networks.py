"""A residual network and a vision transformer of usual layers, with random weights: times do not depend on those."""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from tangentune import Backbone


@final
class Basic(nn.Module):
    """Two 3 x 3 convolutions and a way around them (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Of (n, inputs, H, W)."""
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.around(x))


def resnet() -> nn.Module:
    """ResNet-18 with half its channels: 2.8 million parameters."""
    blocks, widths = [], (32, 32, 64, 128, 256)
    for inputs, outputs in pairwise(widths):
        blocks += [Basic(inputs, outputs, 2 if outputs > inputs else 1), Basic(outputs, outputs, 1)]
    stem = [nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@final
class Transformer(nn.Module):
    """Patches, a class token, positions and torch's own encoder (Dosovitskiy et al., 2021)."""

    def __init__(self, size: int, patch: int = 16, width: int = 192, depth: int = 6):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """The token's features (n, width)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.layers(x)[:, 0]


def random_backbone(name: str, size: int) -> Backbone:
    """One of the two, always the same."""
    torch.manual_seed(0)
    module = resnet() if name == "resnet" else Transformer(size)
    return Backbone(module.eval(), input_size=(3, size, size), name=name)
