"""Passes through a linearised network in which every use of a parameter is seen, forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tangentune.jacobian.layers import Use
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.recorder import Recorder
from tangentune.networks.network_function import Inputs


def watch(
    linearization: Linearization, x: Inputs, sink: Callable[[int, Use, str, str, Tensor], Any]
) -> tuple[Tensor, Recorder]:
    """Outputs of one taped forward pass; `sink(position, use, role, name, g)` sees each backward pass.

    The sink must not hold the outputs: the tape holds the sink, and neither would ever be freed.
    """
    parameters = linearization.function.parameters()
    names = {id(parameters[name]): name for name in linearization.names}

    def by_role(position: int, use: Use, g: Tensor) -> None:
        for role, tensor in use.roles.items():
            sink(position, use, role, names[id(tensor)], g)

    recorder = Recorder(names, by_role)
    with torch.enable_grad(), recorder:
        output = linearization.function(x, {})
    return output, recorder


def backwards(output: Tensor, recorder: Recorder, cotangents: list[Tensor], keep: bool = False) -> None:
    """One backward pass each; the graph is kept after the last one only if asked."""
    if not output.requires_grad:
        return
    for cotangent, last in marked(iter(cotangents)):
        torch.autograd.backward(output, cotangent, retain_graph=keep or not last, inputs=[recorder.token])


def sample_count(x: Inputs) -> int:
    """Samples of a batch."""
    return len(x if isinstance(x, Tensor) else next(iter(x.values())))


def marked(items: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Items, each with whether it is the last."""
    current = next(items, None)
    while current is not None:
        following = next(items, None)
        yield current, following is None
        current = following


def first_samples(x: Inputs, count: int) -> Inputs:
    """The first samples of a batch."""
    return x[:count] if isinstance(x, Tensor) else {key: value[:count] for key, value in x.items()}
