"""Products with the Fisher information matrix of a network, three ways.

`F = sum_i J_i^T H_i J_i`: J_i the derivative of input i's outputs by the weights, H_i the Fisher matrix of the
likelihood in the outputs. Sums over inputs, as everywhere in this library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.jacobian.forward_mode import math_attention
from tangentune.jacobian.linearization import Linearization
from tangentune.networks.network_function import Inputs

Likelihood = Literal["gaussian", "categorical"]
Method = Literal["forward_reverse", "double_backward", "finite_difference"]
Vector = dict[str, Tensor]


def fisher_vector_product(
    linearization: Linearization,
    x: Inputs,
    v: Mapping[str, Tensor],
    *,
    likelihood: Likelihood = "categorical",
    method: Method = "forward_reverse",
    noise: float = 1.0,
    epsilon: float | None = None,
) -> Vector:
    """`F v` at the linearisation point, by parameter name.

    Args:
        linearization: the network.
        x: inputs; the sum is over them.
        v: a vector by parameter name.
        likelihood: "gaussian": outputs are means, H = I / noise; "categorical": outputs are logits, H = diag(p) - p
            p^T.
        method: "forward_reverse": J v by forward mode, then one backward pass over the same primal; exact.
            "double_backward": the derivative along v of the gradient of KL(p_w0 || p_w); exact, twice the tape.
            "finite_difference": that gradient at w0 + epsilon v / |v|, divided by epsilon (Maddox et al. 2021); error
            of order epsilon and of rounding / epsilon.
        noise: variance of the Gaussian likelihood.
        epsilon: length of the finite difference's step; None: the square root of the precision's unit, 3e-4 in float32.

    Returns:
        `F v`, linear in v up to the method's error. Cost in plain forward passes, about: 5, 5 and 3.

    Raises:
        InputError: a word is not known, v is zero or lacks a name, or noise or epsilon is not positive.

    Example:
        >>> lin = Linearization(torch.nn.Linear(3, 2, bias=False).double())
        >>> x, v = torch.randn(5, 3).double(), {"weight": torch.ones(2, 3).double()}
        >>> product = fisher_vector_product(lin, x, v, likelihood="gaussian")
        >>> torch.allclose(product["weight"], v["weight"] @ x.T @ x)
        True
    """
    for name, value, words in (("likelihood", likelihood, Likelihood), ("method", method, Method)):
        if value not in get_args(words):
            message = f"{name} is {value!r}; use one of {', '.join(map(repr, get_args(words)))}"
            raise InputError(message)
    if not noise > 0 or (epsilon is not None and not epsilon > 0):
        message = f"noise is {noise} and epsilon {epsilon}; both must be above 0"
        raise InputError(message)
    missing = [name for name in linearization.names if name not in v]
    if missing:
        message = f"the vector has no {missing[0]!r}; it needs all of `linearization.names`"
        raise InputError(message)
    point = linearization.point()
    v = {name: v[name].detach().to(p) for name, p in point.items()}
    if method == "forward_reverse":
        return linearization.step(x, v, lambda f0, jv: _curvature(f0, jv, likelihood, noise))[2]
    if method == "double_backward":
        return _double_backward(linearization, x, v, likelihood, noise)
    return _finite_difference(linearization, x, v, likelihood, noise, epsilon)


def _curvature(f0: Tensor, jv: Tensor, likelihood: Likelihood, noise: float) -> Tensor:
    """`H jv`, row by row."""
    if likelihood == "gaussian":
        return jv / noise
    p = f0.softmax(1)
    return p * (jv - (p * jv).sum(1, keepdim=True))


def _divergence(output: Tensor, likelihood: Likelihood, noise: float, reference: Tensor) -> Tensor:
    """KL divergence from the reference outputs' distribution to the outputs', summed, but for a constant."""
    if likelihood == "gaussian":
        return 0.5 * (output - reference).square().sum() / noise
    return -(reference.softmax(1) * output.log_softmax(1)).sum()


def _double_backward(lin: Linearization, x: Inputs, v: Vector, likelihood: Likelihood, noise: float) -> Vector:
    leaves = {name: p.detach().requires_grad_() for name, p in lin.point().items()}
    with torch.enable_grad(), math_attention():
        output = lin.function(x, leaves)
        divergence = _divergence(output, likelihood, noise, output.detach())
        slope = torch.autograd.grad(divergence, list(leaves.values()), create_graph=True, allow_unused=True)
        along = [(g * t).sum() for g, t in zip(slope, v.values(), strict=True) if g is not None]
        found = torch.autograd.grad(sum(along), list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
    return _filled(lin, found)


def _finite_difference(
    lin: Linearization, x: Inputs, v: Vector, likelihood: Likelihood, noise: float, epsilon: float | None
) -> Vector:
    point = lin.point()
    length = float(torch.stack([t.double().square().sum() for t in v.values()]).sum().sqrt())
    if not length > 0:
        message = "a finite difference needs a direction, and the vector is zero"
        raise InputError(message)
    unit = torch.finfo(next(iter(point.values())).dtype).eps ** 0.5
    step = (unit if epsilon is None else epsilon) / length
    moved = {name: (p + step * v[name]).requires_grad_() for name, p in point.items()}
    reference = lin.f0(x)
    with torch.enable_grad(), math_attention():
        divergence = _divergence(lin.function(x, moved), likelihood, noise, reference)
        found = torch.autograd.grad(divergence, list(moved.values()), allow_unused=True)
    return {name: g / step for name, g in _filled(lin, found).items()}


def _filled(lin: Linearization, found: tuple[Tensor | None, ...]) -> Vector:
    """By name, zeros where the outputs do not depend on a parameter."""
    pairs = zip(lin.point().items(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g.detach() for (name, p), g in pairs}
