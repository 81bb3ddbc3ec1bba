"""Products with the Fisher information matrix of a network.

`F = sum_i J_i^T H_i J_i`: J_i the derivative of input i's outputs by the weights, H_i the Fisher matrix of the
likelihood in the outputs. Sums over inputs, as everywhere in this library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.networks.network_function import Inputs

Likelihood = Literal["gaussian", "categorical"]


@usual_torch
def fisher_vector_product(
    linearization: Linearization,
    x: Inputs,
    v: Mapping[str, Tensor],
    *,
    likelihood: Likelihood = "categorical",
    noise: float = 1.0,
) -> dict[str, Tensor]:
    """`F v` at the linearisation point, by parameter name.

    Args:
        linearization: the network.
        x: inputs; the sum is over them.
        v: a vector by parameter name.
        likelihood: "gaussian": outputs are means, H = I / noise; "categorical": they are logits, H = diag(p) - p p^T.
        noise: variance of the Gaussian likelihood.

    Returns:
        `F v`: J v by forward mode, then one backward pass over the same primal; about five plain forward passes.

    Raises:
        InputError: the likelihood is not known, v lacks a name, or the noise is not positive.

    Example:
        >>> import torch
        >>> lin = Linearization(torch.nn.Linear(3, 2, bias=False).double())
        >>> x, v = torch.randn(5, 3).double(), {"weight": torch.ones(2, 3).double()}
        >>> product = fisher_vector_product(lin, x, v, likelihood="gaussian")
        >>> torch.allclose(product["weight"], v["weight"] @ x.T @ x)
        True
    """
    if likelihood not in get_args(Likelihood):
        raise InputError(f"likelihood is {likelihood!r}; use one of {', '.join(map(repr, get_args(Likelihood)))}")
    if not noise > 0:
        raise InputError(f"noise is {noise}; it must be above 0")
    missing = [name for name in linearization.names if name not in v]
    if missing:
        raise InputError(f"the vector has no {missing[0]!r}; it needs all of `linearization.names`")
    v = {name: v[name].detach().to(p) for name, p in linearization.point().items()}

    def curvature(f0: Tensor, jv: Tensor) -> Tensor:
        """`H jv`, row by row."""
        if likelihood == "gaussian":
            return jv / noise
        p = f0.softmax(1)
        return p * (jv - (p * jv).sum(1, keepdim=True))

    return linearization.step(x, v, curvature)[2]
