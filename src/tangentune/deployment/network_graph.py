"""A feature function as a graph of torch's own operators, and where in it the samples are.

`torch.export` writes down every operator that a batch of pictures goes through, modules gone, the number of pictures
a symbol. Rows of the Jacobian are then taken operator by operator (sites.py): whatever a network calls itself, and
however it holds its parameters, a convolution is a convolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from tangentune.errors import LayerError, first_line
from tangentune.networks.features import Features

COUNT = torch.export.Dim("n", max=2**31)  # pictures; torch 2.6 holds attention without a limit for a mistake


@final
class _FeatureModule(nn.Module):
    """A feature function as a module, which is what torch exports."""

    def __init__(self, body: nn.Module, features: Features):
        super().__init__()
        self.body, self.features = body, features

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, d)."""
        return self.features(self.body, x)


@final
@dataclass(frozen=True)
class Layout:
    """Where the samples of an operator's output are: an axis of `n * repeats`, samples outermost or innermost in it."""

    axis: int
    repeats: int = 1
    innermost: bool = False

    def sample_first(self, t: Tensor, n: Any) -> Tensor:
        """(n, positions folded into the batch, the other axes in order)."""
        t = t.movedim(self.axis, 0)
        if self.repeats == 1:
            return t.unsqueeze(1)
        if self.innermost:
            return t.unflatten(0, (self.repeats, n)).transpose(0, 1)
        return t.unflatten(0, (n, self.repeats))


@final
@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """`graph` takes the `held` tensors (parameters, buffers, constants) and then pictures (n, ...)."""

    graph: fx.GraphModule
    held: tuple[Tensor, ...]
    names: Mapping[int, str]  # of parameters, by the tensor's id
    layouts: Mapping[str, Layout]  # by node; what is the same for all samples has none


def network_graph(module: nn.Module, features: Features, x: Tensor) -> NetworkGraph:
    """Write a feature function down; x are three inputs, of which the graph is then the same for any number.

    Raises:
        LayerError: torch cannot write this network down, or it does not treat samples alike.
    """
    try:
        with warnings.catch_warnings(), _open_attention():
            warnings.simplefilter("ignore")
            shapes = ({0: COUNT},)
            whole = torch.export.export(_FeatureModule(module, features), (x[:2],), dynamic_shapes=shapes, strict=False)
            program = whole.run_decompositions({})
    except Exception as error:  # whatever the network's own code, or torch, finds wrong
        raise LayerError(
            f"torch.export cannot follow this network ({first_line(error)}); its code may not depend on pixels or on "
            "the number of pictures"
        ) from error
    signature, held, names = program.graph_signature, list[Tensor](), dict[int, str]()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    places = dict[str, str](signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    places |= signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name in signature.user_inputs:
            continue
        target = places[node.name]
        tensor = program.state_dict[target] if target in program.state_dict else program.constants[target]
        assert isinstance(tensor, Tensor)
        held.append(tensor.detach())
        if (name := target.removeprefix("body.")) in parameters:
            names[id(held[-1])] = name
    made = NetworkGraph(program.graph_module, tuple(held), names, {})
    return replace(made, layouts=_layouts(made, x))


@contextmanager
def _open_attention() -> Iterator[None]:
    """Without torch's closed kernel for the layers of transformers, whose inside no graph shows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@final
class _Seen(fx.Interpreter):
    """Runs the graph on numbers and keeps every operator's output."""

    def __init__(self, made: NetworkGraph, x: Tensor):
        super().__init__(made.graph)
        self.values: dict[str, Tensor] = {}
        with torch.no_grad():
            self.run(*made.held, x)

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value
        return value


def _layouts(made: NetworkGraph, x: Tensor) -> dict[str, Layout]:
    """Found by trial: the axis that grows with the number of samples, and which entries change with the second one.

    In an axis of `n * repeats` the entries of sample k are k, n + k, ... (innermost) or k * repeats, ... (outermost).
    """
    two, three = _Seen(made, x[:2]).values, _Seen(made, x).values
    other = _Seen(made, torch.stack([x[0], x[2]])).values
    found = dict[str, Layout]()
    for name, value in two.items():
        grown = [axis for axis, (a, b) in enumerate(zip(value.shape, three[name].shape, strict=True)) if a != b]
        if not grown:
            continue
        axis, repeats = grown[0], value.shape[grown[0]] // 2
        if len(grown) > 1 or value.shape[axis] % 2 or three[name].shape[axis] != 3 * repeats:
            raise LayerError(f"the network mixes samples: {name} has shape {tuple(value.shape)} for two of them")
        changed = (value != other[name]).movedim(axis, 0).flatten(1).any(1) if repeats > 1 else None
        innermost = changed is not None and not bool(changed[0::2].any()) and bool(changed[1::2].any())
        found[name] = Layout(axis, repeats, innermost)
    return found
