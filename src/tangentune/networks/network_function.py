"""A network, or a backbone with a head, as a pure function of inputs and replaced parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final
from weakref import WeakSet

from torch import Tensor, nn

from tangentune.errors import BackboneError, InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.features import Extractor, Followed, named_tensor
from tangentune.networks.freezing import frozen_copy
from tangentune.networks.heads import refuse_zero_head
from tangentune.networks.parameters import used_parameters
from tangentune.networks.passes import no_checkpoints, own_modules

Inputs = Tensor | Mapping[str, Tensor]


def recordable(x: Inputs) -> Inputs:
    """Inputs that autograd takes: a copy where they were made in inference mode."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    return {name: t.clone() for name, t in x.items()} if any(t.is_inference() for t in x.values()) else x


_FOLLOWED: WeakSet[nn.Module] = WeakSet()  # networks seen to use replaced parameters only; once each is enough


@final
class _Network(nn.Module):
    """The body's features, through the head if there is one."""

    def __init__(self, body: nn.Module, extract: Extractor, head: nn.Linear | None):
        super().__init__()
        self.body, self.head, self.extract = body, head, extract

    def forward(self, x: Inputs) -> Tensor:
        """Outputs (n, C)."""
        phi = self.extract(self.body, x)  # pyright: ignore[reportArgumentType]
        return phi if self.head is None else self.head(phi)


@final
@dataclass(frozen=True, eq=False)
class NetworkFunction:
    """`(x, replaced parameters) -> (n, C)`; parameters go by the body's own names, the head's by "head." names."""

    network: _Network
    used: tuple[str, ...]

    def __call__(self, x: Inputs, replaced: Mapping[str, Tensor]) -> Tensor:
        """Outputs with some parameters replaced."""
        own = own_modules(self.network, {self._inner(name): p for name, p in replaced.items()})
        if not replaced or self.network in _FOLLOWED:
            with no_checkpoints():
                return own(x)
        known = self.parameters()
        with no_checkpoints(), Followed({name: known[name] for name in replaced}):
            output = own(x)
        _FOLLOWED.add(self.network)
        return output

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that may move, by name, in network order."""
        everything = dict(self.network.named_parameters())
        return {name: everything[self._inner(name)] for name in self.used}

    def is_head(self, name: str) -> bool:
        """Whether this is a parameter of the new head."""
        return self.network.head is not None and name in ("head.weight", "head.bias")

    def _inner(self, name: str) -> str:
        return name if self.is_head(name) else f"body.{name}"


def network_function(backbone: Backbone | nn.Module, head: nn.Linear | None) -> NetworkFunction:
    """What `Linearization` differentiates: a shared Backbone with a copy of its head, or a frozen copy of a module."""
    if isinstance(backbone, Backbone):
        return _of_backbone(backbone, head)
    if head is not None:
        raise InputError(
            "head= goes with a Backbone, which says where the features are; a module's own output is linearised"
        )
    body = frozen_copy(backbone)
    layers = [part for part in body.modules() if isinstance(part, nn.Linear)]
    if len(layers) > 1:  # a last linear layer of zeros hides everything below it from first order, as a zero head does
        refuse_zero_head(layers[-1])
    names = tuple(name for name, p in body.named_parameters() if p.is_floating_point())
    return NetworkFunction(_Network(body, _output_tensor, None), names)


def _of_backbone(backbone: Backbone, head: nn.Linear | None) -> NetworkFunction:
    names = [name for name, p in backbone.module.named_parameters() if p.is_floating_point()]
    if backbone.contract.input_size is not None:
        used = set(used_parameters(backbone.module, backbone.feature_function, backbone.sample()))
        names = [name for name in names if name in used]
    if head is not None:
        refuse_zero_head(head)
        taken = [name for name in names if name in ("head.weight", "head.bias")]
        if taken:
            raise BackboneError(
                f"the backbone's features use a parameter named {taken[0]}, the name of the new head's; rename it"
            )
        head = copy.deepcopy(head).requires_grad_(False).to(backbone.device, backbone.dtype)
        names += [f"head.{name}" for name, _ in head.named_parameters()]
    features = backbone.feature_function.in_full()  # rows of all outputs, and forward mode, run in full
    return NetworkFunction(_Network(backbone.module, features, head), tuple(names))


def _output_tensor(module: nn.Module, x: Inputs) -> Tensor:
    """A module's own output: a tensor, or of an output object the logits, else its pooled or last state."""
    output = module(**x) if isinstance(x, Mapping) else module(x)
    if isinstance(output, Tensor):
        return output
    found = named_tensor(output, ("logits", "pooler_output", "last_hidden_state"))
    if found:
        return found[1]
    if isinstance(output, list | tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise BackboneError(
        f"the network returns a {type(output).__name__}, neither a tensor nor an output with logits; wrap it in a "
        "module that returns the tensor to linearise"
    )
