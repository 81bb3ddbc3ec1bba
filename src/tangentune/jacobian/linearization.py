"""A network's first-order expansion around its weights: `f_lin(x) = f0(x) + J(x) u`, and the products with J.

This is the logit linearisation of LQF (Achille et al. 2021, CVPR): one tangent u for all outputs. A training
step costs one dual forward pass and one ordinary backward pass, since `d <e, J u> / du = J^T e`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tangentune._torch import usual_modes, usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.forward_mode import ForwardMode, carry, math_attention, primal_of, tangent_of, weight_gradients
from tangentune.jacobian.task_vector import TaskVector, difference
from tangentune.networks.backbone import Backbone
from tangentune.networks.network_function import Inputs, NetworkFunction, network_function, recordable
from tangentune.networks.parameters import select_parameters

Cotangent = Callable[[Tensor, Tensor], Tensor]


@final
class Linearization(nn.Module):
    """`f0(x) + J(x) u` around frozen weights; as a module, its only parameters and state are the tangent u.

    Args:
        backbone: a Backbone, whose features are linearised (with `head`: its logits), or any module: tensor or Hugging
            Face outputs, tensor or dict inputs, attention. A module is copied, frozen, in eval mode.
        params: which parameters move: words of `select_parameters` ("all", "last:2", globs ...) or names.
        head: linear layer from a backbone's features to logits; must not be zero (then J is zero for every layer below
            it, and stays so). Its parameters move too, as "head.weight" and "head.bias".

    Attributes:
        names: parameters that move, in network order.
        function: the frozen network as a function of inputs and replaced parameters; no part of the module's state.
        tangent: module whose parameters are u, under the names of the network's own; zero at the start.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> lin, x = Linearization(net), torch.ones(5, 3)
        >>> loss = lin(x).square().sum()       # at u = 0 these are the network's own outputs
        >>> loss.backward()                    # and the gradient is the network's own
        >>> lin(x, lin.zeros()).equal(net(x)), sorted(lin.state_dict())[0]
        (True, 'tangent.0.bias')
    """

    function: NetworkFunction
    names: tuple[str, ...]

    @usual_torch
    def __init__(
        self, backbone: Backbone | nn.Module, params: str | Iterable[str] = "all", head: nn.Linear | None = None
    ):
        super().__init__()
        self._hide(network_function(backbone, head))
        self.names = _moving(self.function, params)
        self.tangent = _skeleton({name: torch.zeros_like(p) for name, p in self.point().items()})
        # Shared with a Backbone: moved to another device, the network is copied first.
        self._shared = isinstance(backbone, Backbone)

    def _hide(self, function: NetworkFunction) -> None:
        """Keep the frozen network out of parameters, state and mode changes."""
        object.__setattr__(self, "function", function)  # nn.Module's own would register it

    # -- the products ----------------------------------------------------------------------------------------------

    def point(self) -> dict[str, Tensor]:
        """Weights at the linearisation point, by name; not copies."""
        parameters = self.function.parameters()
        return {name: parameters[name].detach() for name in self.names}

    def zeros(self) -> dict[str, Tensor]:
        """A zero tangent."""
        return {name: torch.zeros_like(p) for name, p in self.point().items()}

    @usual_torch
    def f0(self, x: Inputs) -> Tensor:
        """Outputs (n, C) at the linearisation point."""
        with torch.no_grad(), math_attention():
            return self.function(x, {})

    @usual_torch
    def jvp(self, x: Inputs, v: Mapping[str, Tensor]) -> Tensor:
        """`J(x) v` (n, C); cost one dual forward pass, about three plain ones, nothing kept."""
        with torch.no_grad():
            return self._dual(x, v)[1]

    @usual_torch
    def vjp(self, x: Inputs, r: Tensor) -> dict[str, Tensor]:
        """`J(x)^T r` by name, `r` (n, C), summed over the batch; cost one forward and one backward pass."""
        leaves = self._leaves()
        with torch.enable_grad(), weight_gradients():
            output = self.function(recordable(x), leaves)
        return _pull_back(output, leaves, r)

    @usual_torch
    def normal(self, x: Inputs, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`J(x)^T J(x) v`; one dual forward and one backward pass over a shared primal."""
        return self.step(x, v, lambda _, jv: jv)[2]

    @usual_torch
    def step(
        self, x: Inputs, v: Mapping[str, Tensor], cotangent: Cotangent
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Outputs f0 (n, C), `J v` (n, C), and `J^T cotangent(f0, J v)` by name: all that one training step needs.

        `cotangent` is the loss's gradient in the outputs, for the squared loss `lambda f0, jv: f0 + jv - targets`.
        Cost: one dual forward, one plain backward.
        """
        leaves = self._leaves()
        with torch.enable_grad():
            output, jv = self._dual(x, v, leaves)
        with torch.no_grad():
            e = cotangent(output.detach(), jv)
        return output.detach(), jv, _pull_back(output, leaves, e)

    # -- the module ------------------------------------------------------------------------------------------------

    def forward(self, x: Inputs, v: Mapping[str, Tensor] | None = None) -> Tensor:
        """`f0(x) + J(x) v` (n, C); without v at the module's own tangent, differentiable in it.

        Gradients are of first order: the output is linear in the tangent, so there is no second.
        """
        own = self._own()
        wanted = v is None and torch.is_grad_enabled() and any(p.requires_grad for p in own.values())
        with usual_modes(), torch.set_grad_enabled(wanted):
            leaves = self._leaves() if wanted else None
            output, jv = self._dual(x, own if v is None else v, leaves)
        value = output.detach() + jv
        return value if leaves is None else _LinearInTangent.apply(value, (output, leaves), *own.values())

    def task_vector(self) -> TaskVector:
        """The module's own tangent as an object to add, scale and save."""
        return TaskVector({name: p.detach().clone() for name, p in self._own().items()})

    def set_tangent(self, v: Mapping[str, Tensor]) -> None:
        """Put a tangent into the module; an InputError if a name is missing or a shape differs."""
        given = difference(v, self.zeros())
        with torch.no_grad():
            for name, p in self._own().items():
                p.copy_(given[name])

    def from_finetuned(self, weights: Mapping[str, Tensor] | nn.Module | Backbone) -> TaskVector:
        """A fine-tuned checkpoint (state dict, module or Backbone) as a tangent: its weights minus those of the point.

        An InputError names a parameter that moves and is missing, or has another shape.
        """
        module = weights.module if isinstance(weights, Backbone) else weights
        return difference(module.state_dict() if isinstance(module, nn.Module) else module, self.point())

    def _own(self) -> dict[str, nn.Parameter]:
        return dict(self.tangent.named_parameters())

    def _apply(self, fn: Any, recurse: bool = True) -> Linearization:
        """Move the frozen network with the tangent."""
        super()._apply(fn, recurse)
        if self._shared:
            self._hide(copy.deepcopy(self.function))
            self._shared = False
        self.function.network._apply(fn)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Linearization:
        """Copies share the frozen network."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k != "function"})
        twin._hide(self.function)
        twin._shared = True
        return twin

    # -- both modes of differentiation -----------------------------------------------------------------------------

    def _leaves(self) -> dict[str, Tensor]:
        return {name: p.detach().requires_grad_() for name, p in self.point().items()}

    def _dual(
        self, x: Inputs, v: Mapping[str, Tensor], leaves: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Output and its tangent, the primal taped where `leaves` ask for it."""
        point = self.point() if leaves is None else leaves
        missing = [name for name in self.names if name not in v]
        if missing:
            raise InputError(f"the tangent has no {missing[0]!r}; it needs all of `names` (`zeros()` gives them)")
        for name, p in point.items():
            carry(p, v[name].detach().to(p))
        with weight_gradients(), ForwardMode():
            output = self.function(recordable(x), point)
        tangent, output = tangent_of(output), primal_of(output)
        return output, torch.zeros_like(output) if tangent is None else tangent.detach()


class _LinearInTangent(torch.autograd.Function):
    """Gives `f0 + J u` its gradient in u: one backward pass over the primal's tape."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, tape: tuple[Tensor, dict[str, Tensor]], *_tangent: Tensor) -> Tensor:
        ctx.tape = tape
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *_pull_back(*ctx.tape, grads[0]).values()  # pyright: ignore[reportCallIssue]


def _pull_back(output: Tensor, leaves: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    if not output.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    grads = torch.autograd.grad(output, list(leaves.values()), cotangent.to(output), allow_unused=True)
    pairs = zip(leaves.items(), grads, strict=True)
    return {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in pairs}


def _moving(function: NetworkFunction, params: str | Iterable[str]) -> tuple[str, ...]:
    """Names that `params` asks for; the head's always move."""
    known = function.parameters()
    if isinstance(params, str):
        heads = [name for name in function.used if function.is_head(name)]
        body = [name for name in function.used if not function.is_head(name)]
        return (*select_parameters(function.network.body, params, body), *heads)
    chosen = list(params)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        problem = f"the network's outputs use no parameter {unknown[0]!r}" if unknown else "params names no parameter"
        raise InputError(f"{problem}; they use, for instance, {', '.join(list(known)[:3])}")
    return tuple(name for name in known if name in set(chosen))


def _skeleton(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Modules nested as the names are, with the tensors as parameters: state gets the network's own names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(leaf, nn.Parameter(tensor))
    return root
