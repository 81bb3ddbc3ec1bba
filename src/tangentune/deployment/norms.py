"""Norms with fixed statistics as part of the convolution before them, and what follows from their values alone.

`gamma (W a - mean) / sd + beta` is the convolution with `s W`, `s = gamma / sd`. Of its cotangent g the kernel's row is
`s sum_t g_t a_t^T`, and gamma's is `sum_t g_t (y_t - beta) / gamma` from the norm's own value y, so that neither
`W a` nor its cotangent is ever there. Where g is not 0, a ReLU's output is its input: y may be what comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from tangentune.deployment.frames import Convolution, convolution
from tangentune.deployment.network_graph import NetworkGraph
from tangentune.deployment.plain_operators import positive

aten: Any = torch.ops.aten
NORM = aten._native_batch_norm_legit_no_training.default
LINEAR_WHERE_PASSED = {  # activations that are the identity wherever they let a cotangent through
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default,
}  # fmt: skip
SMALLEST = 1e-2  # of |gamma| beside |beta|: rounding of y grows by its inverse in the row of gamma


@final
@dataclass(frozen=True, eq=False)
class Folded:
    """A norm and the convolution before it, as one convolution with `scaled` and `offset`."""

    before: fx.Node  # the convolution's input
    convolution: fx.Node
    shown: fx.Node  # whose value is y where a cotangent passes
    way: Convolution
    kernel: Tensor
    bias: Tensor | None
    gamma: Tensor
    beta: Tensor
    scale: Tensor  # (o,)
    scaled: Tensor  # kernel
    offset: Tensor


def folded_norms(made: NetworkGraph) -> dict[fx.Node, Folded]:
    """Norms that can be folded, by their nodes: those with both parameters, after a convolution with a kernel of its
    own that nothing else sees.
    """
    inputs = [node for node in made.graph.graph.nodes if node.op == "placeholder"]
    held: dict[Any, Tensor] = dict(zip(inputs, made.held, strict=False))  # the last input is the pictures
    found = dict[fx.Node, Folded]()
    for node in made.graph.graph.nodes:
        before: Any = node.args[0] if node.target is NORM else None
        if not isinstance(before, fx.Node) or before.target is not aten.conv2d.default or len(before.users) > 1:
            continue
        given: list[Any] = [*before.args, None]  # a bias may be missing
        place, bias = given[1:3]
        parameters = [held.get(value) for value in (place, *node.args[1:5])]
        kernel, gamma, beta, mean, variance = parameters
        if kernel is None or gamma is None or beta is None or mean is None or variance is None:
            continue
        if len(place.users) > 1 or (gamma.abs() < SMALLEST * beta.abs()).any() or not gamma.all():
            continue
        scale, own = gamma * (variance + node.args[6]).rsqrt(), held.get(bias)
        scaled = scale.reshape(-1, *[1] * (kernel.dim() - 1)) * kernel
        offset = beta - scale * (mean if own is None else mean - own)
        way = convolution(kernel, *given[3 : len(before.args)])
        source: Any = before.args[0]
        found[node] = Folded(source, before, _shown(node), way, kernel, own, gamma, beta, scale, scaled, offset)
    return found


def _shown(norm: fx.Node) -> fx.Node:
    """The value of a norm, or of the ReLU that alone sees it."""
    (value,) = norm.users
    users = list(value.users)
    return users[0] if len(users) == 1 and users[0].target in LINEAR_WHERE_PASSED else value


@final
class _Clipped(torch.autograd.Function):
    """A number held between two: ReLU6. Its backward pass looks at the output, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.low, ctx.high = low, high
        y = F.hardtanh(x, low, high)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (y,) = grads, ctx.saved_tensors
        return grad * positive((y - ctx.low if ctx.low else y) * (y - ctx.high), -1), None, None


def clipped(x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """`hardtanh` that goes back by its output."""
    return _Clipped.apply(x, low, high)
