"""EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excite), with the parameter names of the weight files."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

# Repeats, kernel, stride of the first, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis for ceil(size / stride) outputs; the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@final
class SameConv2d(nn.Conv2d):
    """Square convolution without bias, padded as TensorFlow's "SAME": by the size of what comes in."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = same_padding(input.shape[2], kernel, stride)
        left, right = same_padding(input.shape[3], kernel, stride)
        around = (top, left)  # the library pads for free where both sides are equal
        if top != bottom or left != right:
            input, around = F.pad(input, (left, right, top, bottom)), 0
        return F.conv2d(input, self.weight, None, self.stride, around, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


@final
class LiteBlock(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expands, self.residual = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, ceil(h / stride), ceil(w / stride))."""
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


@final
class EfficientNetLite(nn.Module):
    """Lite0 (depth 1.0: 4,652,008 parameters) and Lite1 (depth 1.1: 5,416,680); features are 1,280 wide.

    The depth multiplies the repeats of every stage but the first and the last.
    """

    def __init__(self, depth: float = 1.0, classes: int = 1000):
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks: list[LiteBlock] = []
        width = 32
        for i, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            inner = 0 < i < len(STAGES) - 1
            for j in range(math.ceil(depth * repeats) if inner else repeats):
                blocks.append(LiteBlock(width, outputs, kernel, stride if j == 0 else 1, expansion))
                width = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv2d(width, 1280, 1)
        self._bn1 = _norm(1280)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(1280, classes)

    @property
    def classifier(self) -> nn.Linear:
        """The pre-trained head."""
        return self._fc

    def pooled(self, x: Tensor) -> Tensor:
        """Penultimate features: (n, 3, h, w) -> (n, 1280)."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x)), inplace=True))
        return F.relu6(self._bn1(self._conv_head(x)), inplace=True).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores: (n, 3, h, w) -> (n, classes)."""
        return self._fc(self._dropout(self.pooled(x)))
