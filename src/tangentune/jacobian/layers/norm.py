"""Affine parameters of normalisation layers: BatchNorm in eval mode, LayerNorm, GroupNorm, RMSNorm."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers.entry import Entry
from tangentune.jacobian.layers.use import LayoutError, Use, by_sample, roles, rule, vector_rows


class ChannelAffineUse(Use):
    """`gamma * xhat + beta` per channel (axis 1); xhat is linear in x with per-sample or fixed statistics.

    With `xhat = (x - shift) * scale` the rows are `scale * (sum g x - shift sum g)` and `sum g`, so xhat is
    never formed for BatchNorm.
    """

    def __init__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor):
        self.held, self.roles, self.shift, self.scale = x.detach(), roles(weight=weight, bias=bias), shift, scale
        self.input = x
        self.summed: tuple[weakref.ref[Tensor], Tensor] | None = None  # what both roles ask for, of the last cotangent

    def output(self) -> Tensor | None:
        """Fixed statistics make BatchNorm one multiply-add, forward and back."""
        if self.shift.dim() > 1:
            return None
        x, self.input = self.input, self.held
        shape = (-1, *[1] * (x.dim() - 2))
        scale = self.scale if "weight" not in self.roles else self.scale * self.roles["weight"]
        offset = -self.shift * scale
        if "bias" in self.roles:
            offset = offset + self.roles["bias"]
        return torch.addcmul(offset.view(shape), x, scale.view(shape)).to(x.dtype)  # which autocast may have rounded

    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Per-channel sums over positions."""
        if g.shape[0] != n:
            raise LayoutError("positions are folded into the batch axis")
        flat = g.reshape(n, g.shape[1], -1)
        of, total = self.summed or (None, None)
        if total is None or of is None or of() is not g:
            total = flat.sum(2)
            self.summed = weakref.ref(g), total
        if role == "bias":
            return vector_rows(total)
        inner = torch.linalg.vecdot(flat, self.x.reshape(flat.shape))
        return vector_rows(self.scale * (inner - self.shift * total))


class FeatureAffineUse(Use):
    """`gamma * xhat + beta` over the trailing axes (LayerNorm, RMSNorm); xhat given."""

    def __init__(self, xhat: Tensor, weight: Tensor | None, bias: Tensor | None):
        self.held, self.roles = xhat.detach(), roles(weight=weight, bias=bias)

    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Sums over positions of `g * xhat` and of `g`."""
        size = next(iter(self.roles.values())).numel()
        values = g * self.x if role == "weight" else g
        return vector_rows(by_sample(values, n).reshape(n, -1, size).sum(1))


@rule(F.batch_norm)
def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Use | None:  # fmt: skip
    """Parse `batch_norm` in eval mode; in train mode samples mix and there is no per-sample gradient."""
    if training or running_mean is None or running_var is None:
        return None
    return ChannelAffineUse(input, weight, bias, running_mean, (running_var + eps).rsqrt())


@rule(F.group_norm)
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Use:
    """Parse `group_norm`: statistics per sample and group."""
    precise = input.detach().to(torch.promote_types(input.dtype, torch.float32))
    groups = precise.reshape(len(input), num_groups, -1)
    mean = groups.mean(2).repeat_interleave(input.shape[1] // num_groups, 1)
    variance = groups.var(2, unbiased=False).repeat_interleave(input.shape[1] // num_groups, 1)
    return ChannelAffineUse(input, weight, bias, mean, (variance + eps).rsqrt())


@rule(F.layer_norm)
def layer_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use:  # fmt: skip
    """Parse `layer_norm`."""
    return FeatureAffineUse(F.layer_norm(input.detach(), normalized_shape, None, None, eps), weight, bias)


@rule(F.rms_norm)
def rms_norm(input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Use:
    """Parse `rms_norm`."""
    return FeatureAffineUse(F.rms_norm(input.detach(), normalized_shape, None, eps), weight, None)
