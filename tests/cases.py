"""Small seeded networks, one per thing that can go wrong in a row rule, each with inputs and expectations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Case:
    """A network in eval mode and float64, its inputs, and the parameters that have no layer rule."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    generic: frozenset[str] = frozenset()

    def network(self) -> nn.Module:
        """The network with seeded weights everywhere, also where torch starts with ones and zeros."""
        return seeded(self.make())

    def batch(self, n: int, seed: int = 0) -> Tensor:
        """n inputs."""
        return self.inputs(n, torch.Generator().manual_seed(seed))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Frozen float64 copy in eval mode with random parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    return module


def images(channels: int = 4, height: int = 7, width: int = 6) -> Inputs:
    """Normal images."""
    return lambda n, gen: torch.randn(n, channels, height, width, generator=gen, dtype=torch.float64)


def sequences(length: int = 5, width: int = 6) -> Inputs:
    """Normal sequences (n, T, width)."""
    return lambda n, gen: torch.randn(n, length, width, generator=gen, dtype=torch.float64)


def vectors(width: int = 6) -> Inputs:
    """Normal vectors."""
    return lambda n, gen: torch.randn(n, width, generator=gen, dtype=torch.float64)


def tokens(count: int = 9, length: int = 5) -> Inputs:
    """Token numbers."""
    return lambda n, gen: torch.randint(0, count, (n, length), generator=gen)


class Seq(nn.Sequential):
    """Layers, then everything flattened to features."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flatten(1)


class SamePadded(nn.Conv2d):
    """A convolution that pads itself on the right and below only, as TensorFlow networks do."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, stride=2)


class Tokens(nn.Module):
    """A small vision transformer's frame: patches, class token, positions, layer scale, norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.positions = nn.Parameter(torch.zeros(1, 5, 6))
        self.gamma = nn.Parameter(torch.zeros(6))
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(x + self.gamma * self.mlp(x))[:, 0]


class Tied(nn.Module):
    """Two layers that hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class TiedEmbedding(nn.Module):
    """A token table that is also the output matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.table(x).mean(1)), self.table.weight)


class Twice(nn.Module):
    """One convolution used at two sizes, one norm used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.conv(x)))
        return self.norm(self.conv(F.avg_pool2d(x, 2))).flatten(1)


class Attention(nn.Module):
    """Packed self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class InPlace(nn.Module):
    """In-place activations right after layers that have parameters, and a residual sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.relu(self.norm(self.conv(x)))
        x = x + self.relu(self.last(x))
        x += 1.0
        return x.flatten(1)


class Windows(nn.Module):
    """Positions folded into the batch axis: sample first (a rule can tell) or window first (it cannot)."""

    def __init__(self, window_first: bool) -> None:
        super().__init__()
        self.window_first = window_first
        self.inner, self.conv, self.norm = nn.Linear(8, 8), nn.Conv2d(2, 2, 3, padding=1), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        windows = x.reshape(n, 4, 8)
        if self.window_first:
            windows = windows.transpose(0, 1)
        flat = self.norm(torch.tanh(self.inner(windows.reshape(4 * n, 8))))
        flat = self.conv(flat.reshape(4 * n, 2, 2, 2)).reshape(4 * n, 8)
        shaped = flat.reshape(4, n, 8).transpose(0, 1) if self.window_first else flat.reshape(n, 4, 8)
        return shaped.reshape(n, -1).tanh()


class TimeMajor(nn.Module):
    """A layer that sees (T, n, width); T = 3 is also the number of pictures in the proof."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class Processed(nn.Module):
    """Positions that go through a layer of their own, without any sample axis."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.project = nn.Parameter(torch.zeros(5, 6)), nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x + self.project(self.positions))).mean(1)


class TokenPositions(nn.Module):
    """Token numbers in, with a bare position table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(9, 6), nn.Parameter(torch.zeros(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.table(x) + self.positions).mean(1)


class Narrow(nn.Module):
    """Three fixed mixtures of a network's outputs: as many backward passes, not hundreds."""

    def __init__(self, body: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.body = body
        generator = torch.Generator().manual_seed(4)
        self.register_buffer("mix", torch.randn(body(x).shape[1], 3, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.mix


class Einsum(nn.Module):
    """A weight used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.prelu = nn.Parameter(torch.zeros(6, 5)), nn.PReLU(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(torch.einsum("nti,io->no", x, self.weight))


def _encoder() -> nn.Module:
    return Seq(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True, dropout=0.0))


PACKED = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")

RULED = [
    Case("conv", lambda: Seq(nn.Conv2d(4, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 3, 3)), images()),
    Case("conv_bare", lambda: Seq(nn.Conv2d(4, 5, 3, bias=False)), images()),
    Case("conv_strided", lambda: Seq(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2))),
         images()),
    Case("conv_leftover", lambda: Seq(nn.Conv2d(4, 6, 3, stride=3, dilation=2, padding=1)), images(4, 8, 9)),
    Case("conv_groups", lambda: Seq(nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1)), images()),
    Case("conv_same", lambda: Seq(nn.Conv2d(4, 5, 3, padding="same", dilation=2)), images()),
    Case("conv_same_even", lambda: Seq(nn.Conv2d(4, 5, (4, 3), padding="same")), images()),
    Case("conv_valid", lambda: Seq(nn.Conv2d(4, 5, 3, padding="valid")), images()),
    Case("conv_circular", lambda: Seq(nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular")), images()),
    Case("conv_reflect", lambda: Seq(nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect")), images()),
    Case("conv_pairs", lambda: Seq(nn.Conv2d(8, 16, 3, padding=1)), images(8, 2, 2)),
    Case("conv_self_padded", lambda: Seq(SamePadded(4, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 1)), images()),
    Case("depthwise", lambda: Seq(nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1)), images()),
    Case("depthwise_double", lambda: Seq(nn.Conv2d(4, 8, 3, groups=4, padding=1)), images()),
    Case("pointwise", lambda: Seq(nn.Conv2d(4, 5, 1), nn.Tanh(), nn.Conv2d(5, 30, 1)), images()),
    Case("pointwise_strided", lambda: Seq(nn.Conv2d(4, 8, 1, stride=2)), images()),
    Case("pointwise_padded", lambda: Seq(nn.Conv2d(4, 8, 1, stride=(2, 3), padding=1)), images()),
    Case("pointwise_groups", lambda: Seq(nn.Conv2d(4, 8, 1, groups=2)), images()),
    Case("conv1d", lambda: Seq(nn.Conv1d(5, 6, 3, stride=2, padding=1, dilation=2, groups=1)), sequences(5, 9)),
    Case("conv1d_groups", lambda: Seq(nn.Conv1d(4, 6, 3, groups=2), nn.Conv1d(6, 3, 1)), sequences(4, 9)),
    Case("conv1d_same", lambda: Seq(nn.Conv1d(5, 6, 3, padding="same", dilation=2)), sequences(5, 9)),
    Case("batchnorm", lambda: Seq(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()), images()),
    Case("batchnorm1d", lambda: Seq(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh()), vectors()),
    Case("batchnorm_plain", lambda: Seq(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 3)), images()),
    Case("groupnorm", lambda: Seq(nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), nn.Tanh()), images()),
    Case("layernorm", lambda: Seq(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh()), sequences()),
    Case("layernorm_2d", lambda: Seq(nn.LayerNorm([7, 6]), nn.Tanh(), nn.LayerNorm([4, 7, 6])), images()),
    Case("layernorm_bare", lambda: Seq(nn.LayerNorm(6, bias=False), nn.Tanh()), sequences()),
    Case("rmsnorm", lambda: Seq(nn.Linear(6, 8), nn.RMSNorm(8), nn.Tanh()), sequences()),
    Case("linear", lambda: Seq(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)), vectors()),
    Case("linear_shared", lambda: Seq(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 20)), sequences()),
    Case("linear_image", lambda: Seq(nn.Linear(6, 5)), images()),
    Case("embedding", lambda: Seq(nn.Embedding(9, 6), nn.Tanh(), nn.Linear(6, 3)), tokens()),
    Case("embedding_padding", lambda: Seq(nn.Embedding(9, 6, padding_idx=2), nn.Linear(6, 3)), tokens()),
    Case("tied", Tied, vectors()),
    Case("tied_embedding", TiedEmbedding, tokens()),
    Case("twice", Twice, images()),
    Case("in_place", InPlace, images()),
    Case("windows", lambda: Windows(window_first=False), vectors(32)),
]  # fmt: skip

GENERIC = [
    Case("tokens", Tokens, images(3, 4, 4), frozenset({"cls_token", "positions", "gamma"})),
    Case("attention", Attention, sequences(), frozenset({f"attention.{part}" for part in PACKED})),
    Case("encoder", _encoder, sequences(), frozenset({f"0.self_attn.{part}" for part in PACKED})),
    Case("windows_first", lambda: Windows(window_first=True), vectors(32),
         frozenset({f"{layer}.{part}" for layer in ("inner", "conv", "norm") for part in ("weight", "bias")})),
    Case("time_major", TimeMajor, sequences(3), frozenset({"inner.weight", "inner.bias"})),
    Case("processed", Processed, sequences(), frozenset({"positions", "project.weight", "project.bias"})),
    Case("token_positions", TokenPositions, tokens(), frozenset({"positions"})),
    Case("einsum", Einsum, sequences(), frozenset({"weight", "prelu.weight"})),
    Case("transposed", lambda: Seq(nn.ConvTranspose2d(4, 3, 3)), images(), frozenset({"0.weight", "0.bias"})),
]  # fmt: skip

CASES = RULED + GENERIC
