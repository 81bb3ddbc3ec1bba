"""MobileNetV2 (Sandler et al. 2018), with the parameter names of the common weight file."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

# Rows of the paper's table 2: expansion, output channels, repeats, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


@final
class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        expand = [_conv_norm(inputs, hidden, 1)] if expansion != 1 else []
        filters = _conv_norm(hidden, hidden, 3, stride, hidden)
        self.conv = nn.Sequential(*expand, filters, nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


@final
class MobileNetV2(nn.Module):
    """Width 1.0: 3,504,872 parameters with the 1,000-class head; features are 1,280 wide."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm(3, 32, 3, 2)]
        width = 32
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(width, outputs, stride if i == 0 else 1, expansion))
                width = outputs
        blocks.append(_conv_norm(width, 1280, 1))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def pooled(self, x: Tensor) -> Tensor:
        """Penultimate features: (n, 3, h, w) -> (n, 1280)."""
        return self.features(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores: (n, 3, h, w) -> (n, classes)."""
        return self.classifier(self.pooled(x))
