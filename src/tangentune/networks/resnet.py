"""ResNet-50 (He et al. 2016) with the parameter names that timm and torchvision share.

As first published, the stride is in a bottleneck's first convolution; later definitions have it in the second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

# Bottlenecks of a stage, their inner width, the stride of the first; a stage's output is four times as wide.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
EPSILON = 1e-3  # of BatchNorm in the Keras definition that the weights were trained with


@final
class Bottleneck(nn.Module):
    """Narrow, filter, widen; added to its input, which is projected where the shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, stride, bias=False), _norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), _norm(outputs)
        self.act1, self.act2, self.act3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.downsample: nn.Sequential | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, 4 width, h / stride, w / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.act3(y + (x if self.downsample is None else self.downsample(x)))


@final
class ResNet50(nn.Module):
    """25,557,032 parameters with the 1,000-class head; features are 2,048 wide."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), _norm(64)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)  # Keras pads with zeros, the same behind a ReLU
        inputs = 64
        for number, (repeats, width, stride) in enumerate(STAGES, 1):
            blocks = []
            for i in range(repeats):
                blocks.append(Bottleneck(inputs, width, stride if i == 0 else 1))
                inputs = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    @property
    def classifier(self) -> nn.Linear:
        """The pre-trained head."""
        return self.fc

    def pooled(self, x: Tensor) -> Tensor:
        """Penultimate features: (n, 3, h, w) -> (n, 2048)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores: (n, 3, h, w) -> (n, classes)."""
        return self.fc(self.pooled(x))


def from_keras(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `ResNet50` from Keras's weights by name, such as "res2a_branch2b/kernel".

    The same function of the pictures, said with less. The biases of convolutions go into the means that BatchNorm
    subtracts next: as parameters they would move what its own shift moves. The filters of the first convolution are
    turned from blue, green, red to red, green, blue, so that pictures are prepared as for any other network.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, kind = name.partition("/")
        if layer == "fc1000":
            state["fc.weight" if kind == "kernel" else "fc.bias"] = (
                tensor.T.contiguous() if kind == "kernel" else tensor
            )
        elif kind == "kernel":
            conv, norm = _places(layer)
            state[f"{conv}.weight"] = tensor.permute(3, 2, 0, 1).contiguous()
            bn = layer.replace("res", "bn") if layer.startswith("res") else f"bn_{layer}"
            state[f"{norm}.weight"], state[f"{norm}.bias"] = weights[f"{bn}/gamma"], weights[f"{bn}/beta"]
            state[f"{norm}.running_mean"] = weights[f"{bn}/moving_mean"] - weights[f"{layer}/bias"]
            state[f"{norm}.running_var"] = weights[f"{bn}/moving_variance"]
            state[f"{norm}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()
    return state


def _places(layer: str) -> tuple[str, str]:
    """Where a convolution of Keras and its BatchNorm are here: "res4b_branch2a" in layer3.1.conv1 and layer3.1.bn1."""
    found = re.fullmatch(r"res(\d)([a-f])_branch(1|2[abc])", layer)
    if found is None:
        return "conv1", "bn1"
    stage, block, branch = found.groups()
    place = f"layer{int(stage) - 1}.{ord(block) - ord('a')}"
    if branch == "1":
        return f"{place}.downsample.0", f"{place}.downsample.1"
    number = "abc".index(branch[1]) + 1
    return f"{place}.conv{number}", f"{place}.bn{number}"


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=0.01)
