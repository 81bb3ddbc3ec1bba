"""Where a graph uses parameters: each operator's own value, and its parameters' rows from that value's cotangent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from tangentune.deployment.forms import ConvolutionRow, LinearRow, Row
from tangentune.deployment.frames import Convolution, convolution
from tangentune.deployment.network_graph import Layout, NetworkGraph
from tangentune.deployment.norms import Folded, clipped, folded_norms
from tangentune.errors import LayerError

aten: Any = torch.ops.aten
RowOf = Callable[[Tensor], Row]  # from the cotangent


@final
@dataclass(frozen=True, eq=False)
class Site:
    """One operator's `output`, and the rows of the parameters that it uses there, by name."""

    output: Tensor
    rows: Mapping[str, RowOf]


@final
class Watched(fx.Interpreter):
    """Runs a graph and notes its sites; what does not depend on a site's output is not differentiated."""

    def __init__(self, made: NetworkGraph, names: frozenset[str], views: int = 1, whole: frozenset[str] = frozenset()):
        super().__init__(made.graph, garbage_collect_values=False)
        self.made, self.moving, self.views = made, names, views
        self.sites: list[Site] = []
        self.norms = folded_norms(made)  # by node
        self.before = {one.convolution for one in self.norms.values()}
        kernels = {self.moving_name(one.kernel): one.scale for one in self.norms.values()}
        self.scales = {name: scale for name, scale in kernels.items() if name and name not in whole}

    def features(self, x: Tensor) -> Tensor:
        """Features (n, d) of pictures; the sites are those of this pass."""
        self.sites, self.count = [], x.shape[0]
        return self.run(*self.made.held, x)[0]

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; one that uses a parameter that moves becomes a site."""
        if n.op != "call_function":
            return super().run_node(n)
        if n in self.before:
            return None  # its norm does its work
        if n in self.norms:
            return self._folded(self.norms[n])
        args, _ = self.fetch_args_kwargs_from_env(n)
        if n.target in (aten.hardtanh.default, aten.hardtanh_.default):
            return clipped(*args)
        if n.target is aten.view.default:  # memory order may be another one here than where the graph was written
            return aten.reshape.default(*args)
        if not any(self.moving_name(value) for value in args if isinstance(value, Tensor)):
            return super().run_node(n)
        rule, layout = RULES.get(n.target), self.made.layouts.get(n.name)
        if layout is None and n.target is aten._native_batch_norm_legit_no_training.default:
            layout = self.made.layouts.get(n.args[0].name)  # type: ignore[union-attr]
        names = [name for value in args if isinstance(value, Tensor) and (name := self.moving_name(value))]
        if rule is None or layout is None:
            raise LayerError(
                f"the network uses {', '.join(names)} in {n.target}, for which exported files have no rule; fit the "
                "model again with the parameter left out by `subset`"
            )
        output, rows = rule(self, layout, *args)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self.sites.append(Site(output, rows))
        return (output,) if n.target is aten._native_batch_norm_legit_no_training.default else output

    def _folded(self, norm: Folded) -> tuple[Tensor]:
        """The value of a norm, from the input of the convolution before it."""
        x, layout = self.env[norm.before], self.made.layouts.get(norm.convolution.name)
        output = norm.way(x, norm.scaled, norm.offset, norm.way.groups)
        moving = [self.moving_name(one) for one in (norm.kernel, norm.bias, norm.gamma, norm.beta)]
        if layout is None or not any(moving):
            return (output,)
        summed = partial(_channels, self, layout)

        def of_kernel(g: Tensor) -> Row:
            left = moving[0] in self.scales  # to who asks for the row
            g = g if left else g * norm.scale.reshape(-1, *[1] * (g.dim() - 2))
            return self.kernel_row(layout, x, norm.way, g)

        def of_gamma(g: Tensor) -> Row:
            return (summed(g * self.env[norm.shown].detach()) - norm.beta * summed(g)) / norm.gamma

        if not output.requires_grad:
            output = output.detach().requires_grad_()
        rows = zip(moving, (of_kernel, lambda g: norm.scale * summed(g), of_gamma, summed), strict=True)
        self.sites.append(Site(output, {name: row for name, row in rows if name}))
        return (output,)

    def kernel_row(self, layout: Layout, x: Tensor, way: Convolution, g: Tensor) -> Row:
        """A convolution's."""
        return ConvolutionRow(g, x.detach(), way, partial(self.together, layout), self.views * layout.repeats)

    def together(self, layout: Layout, t: Tensor) -> Tensor:
        """(N, c, T) -> (n, c, positions): repeats of a sample and views of a picture are further positions."""
        if layout.repeats > 1:
            t = layout.sample_first(t, self.count).transpose(1, 2).flatten(2)
        return t if self.views == 1 else t.unflatten(0, (self.views, -1)).permute(1, 2, 0, 3).flatten(2)

    def moving_name(self, tensor: Tensor | None) -> str:
        """Of a parameter that moves; empty for anything else."""
        name = "" if tensor is None else self.made.names.get(id(tensor), "")
        return name if name in self.moving else ""


RULES: dict[Any, Callable[..., tuple[Tensor, dict[str, RowOf]]]] = {}


def _rule(*targets: Any) -> Callable[[Any], Any]:
    def register(given: Any) -> Any:
        RULES.update(dict.fromkeys(targets, given))
        return given

    return register


def _filled(watched: Watched, *pairs: tuple[Tensor | None, RowOf]) -> dict[str, RowOf]:
    return {name: row for tensor, row in pairs if (name := watched.moving_name(tensor))}


@_rule(aten.linear.default)
def _linear(watched: Watched, layout: Layout, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`x W^T + b` at every position."""

    def positions(t: Tensor) -> Tensor:
        return layout.sample_first(t, watched.count).flatten(1, -2)

    def of_weight(g: Tensor) -> Row:
        sides, views = (positions(g), positions(x)), watched.views
        if views > 1:
            sides = [t.unflatten(0, (views, -1)).transpose(0, 1).flatten(1, 2) for t in sides]
        return LinearRow(*sides)

    return aten.linear.default(x, weight, bias), _filled(
        watched, (weight, of_weight), (bias, lambda g: positions(g).sum(1))
    )


@_rule(aten.conv2d.default, aten.conv1d.default)
def _convolution(
    watched: Watched, layout: Layout, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Convolutions in one or two dimensions."""
    way = convolution(weight, stride, padding, dilation, groups)

    of_weight = partial(watched.kernel_row, layout, x, way)
    return way(x, weight, bias, groups), _filled(
        watched, (weight, of_weight), (bias, lambda g: _channels(watched, layout, g))
    )


@_rule(aten.conv2d.padding, aten.conv1d.padding)
def _named_padding(
    watched: Watched, layout: Layout, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: str = "valid", dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """`padding="same"`: zeros around, the odd one after."""
    if padding == "same":
        steps = convolution(weight, dilation=dilation).dilation
        totals = [step * (length - 1) for step, length in zip(steps, weight.shape[2:], strict=True)]
        x = F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
    return _convolution(watched, layout, x, weight, bias, stride, 0, dilation, groups)


def _channels(watched: Watched, layout: Layout, values: Tensor) -> Tensor:
    """(N, C, ...) summed over positions: (n, C)."""
    values = values.flatten(2).sum(2) if values.dim() > 2 else values
    return values if layout.repeats == 1 else layout.sample_first(values, watched.count).sum(1)


@_rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    watched: Watched, layout: Layout, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    variance: Tensor, _momentum: float, eps: float,
) -> Any:  # fmt: skip
    """With fixed statistics: `x scale + offset` for each channel."""
    shape, inverse = (-1, *[1] * (x.dim() - 2)), (variance + eps).rsqrt()
    scale = inverse if weight is None else inverse * weight
    offset = -mean * scale if bias is None else bias - mean * scale

    def of_weight(g: Tensor) -> Row:
        return inverse * (_channels(watched, layout, g * x) - mean * _channels(watched, layout, g))

    output = x * scale.reshape(shape) + offset.reshape(shape)
    return output, _filled(watched, (weight, of_weight), (bias, lambda g: _channels(watched, layout, g)))


@_rule(aten.layer_norm.default)
def _layer_norm(
    watched: Watched, layout: Layout, x: Tensor, normalized: list[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, *_: Any,
) -> Any:  # fmt: skip
    """Over the last axes."""
    plain = aten.layer_norm.default(x, normalized, None, None, eps)

    def summed(values: Tensor) -> Tensor:
        return layout.sample_first(values, watched.count).flatten(-len(normalized)).flatten(1, -2).sum(1)

    output = plain if weight is None else plain * weight
    rows = _filled(watched, (weight, lambda g: summed(g * plain.detach())), (bias, summed))
    return output if bias is None else output + bias, rows


@_rule(aten.group_norm.default)
def _group_norm(
    watched: Watched, layout: Layout, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: Any,
) -> Any:  # fmt: skip
    """Statistics of a sample and a group."""
    plain, shape = aten.group_norm.default(x, groups, None, None, eps), (-1, *[1] * (x.dim() - 2))
    output = plain if weight is None else plain * weight.reshape(shape)
    of_weight = lambda g: _channels(watched, layout, g * plain.detach())  # noqa: E731
    rows = _filled(watched, (weight, of_weight), (bias, lambda g: _channels(watched, layout, g)))
    return output if bias is None else output + bias.reshape(shape), rows


def _broadcast(watched: Watched, layout: Layout, values: Tensor, parameter: Tensor) -> Tensor:
    """What autograd would sum to a broadcast parameter's shape, for each sample alone: (n, k)."""
    missing = values.dim() - parameter.dim()
    kept = [missing + i for i, size in enumerate(parameter.shape) if size > 1]
    gone = [axis for axis in range(values.dim()) if axis not in kept and axis != layout.axis]
    values = values.sum(gone, keepdim=True) if gone else values
    return layout.sample_first(values, watched.count).sum(1).flatten(1)


@_rule(aten.mul.Tensor)
def _multiply(watched: Watched, layout: Layout, left: Tensor, right: Tensor) -> Any:
    """Scales of layers."""
    pairs = [(own, lambda g, own=own, other=other: _broadcast(watched, layout, g * other.detach(), own))
             for own, other in ((left, right), (right, left))]  # fmt: skip
    return aten.mul.Tensor(left, right), _filled(watched, *pairs)


@_rule(aten.add.Tensor)
def _plus(watched: Watched, layout: Layout, left: Tensor, right: Tensor) -> Any:
    """Position embeddings, offsets."""
    pairs = [(own, lambda g, own=own: _broadcast(watched, layout, g, own)) for own in (left, right)]
    return aten.add.Tensor(left, right), _filled(watched, *pairs)


@_rule(aten.expand.default)
def _expand(watched: Watched, layout: Layout, parameter: Tensor, size: list[Any], *_: Any) -> Any:
    """Class tokens."""
    return aten.expand.default(parameter, size), _filled(
        watched, (parameter, lambda g: _broadcast(watched, layout, g, parameter))
    )
