"""A network cut in two at one block: what is below runs once a picture, what is above runs at every step.

The part above is run by calling the whole network on an *empty* batch and handing the kept activations to the block at
the cut. All that the network does below the cut is then done to no picture at all, whatever its code looks like.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from tangentune.errors import BackboneError, InputError, first_line
from tangentune.networks.backbone import Backbone
from tangentune.networks.determinism import close, tolerance
from tangentune.networks.features import Extractor, FeatureFunction, value_at
from tangentune.networks.parameters import block_of, group_blocks, select_parameters, used_parameters
from tangentune.networks.passes import own_modules


@final
@dataclass(frozen=True, eq=False)
class SplitNetwork:
    """A backbone in two parts; `above.features(below(x))` are the backbone's own features of x."""

    block: str  # the submodule at whose input the cut is; empty if it is behind the features
    below: Callable[[Tensor], Tensor]  # normalised inputs (n, ...) to activations (n, ...) at the cut, no gradients
    above: Backbone  # takes those activations; shares the given one's module


def parameters_above(backbone: Backbone, cut: str, x: Tensor) -> list[str]:
    """Names of the parameters from a block on, in network order: those that the features of x depend on.

    The cut is the name of a block, such as "features.15" (see `block_of`), or "last:K" for the last K blocks; x holds
    two normalised inputs or more.
    """
    used = used_parameters(backbone.module, backbone.feature_function, x)
    if cut.startswith("last:"):
        return select_parameters(backbone.module, cut, used)
    blocks = group_blocks(used)
    if cut not in blocks:
        raise InputError(f"cut={cut!r} names no block with parameters; there are {', '.join(blocks)}, and 'last:K'")
    later = list(blocks)[list(blocks).index(cut) :]
    return [name for block in later for name in blocks[block]]


def split_network(backbone: Backbone, names: Collection[str], x: Tensor) -> SplitNetwork:
    """Cut a backbone (shared, not copied) at the first block, in the order of running, that holds a parameter of these.

    No names cut behind the features. The cut is tried on x, two different normalised inputs or more. Cost: four
    forward passes and a backward one of x. Below, a picture costs the share of the network under the cut; above, the
    rest, and the calls of the lower layers on an empty batch. A BackboneError where a block is reached in another way
    than by calling it, a parameter is used below, or something flows around the cut (long skip connections).
    """
    if not names:
        return SplitNetwork("", torch.no_grad()(backbone.features), _fed_by(backbone, _as_it_is))
    block = _first_called(backbone, names, x)
    extract = backbone.feature_function.extract
    reach = partial(_reach, extract, block)
    used = used_parameters(backbone.module, reach, x, names)
    if used:  # activations that depend on it would be out of date once it has a tangent
        raise BackboneError(f"{used[0]} is also used below {block}, where the network would be cut")
    above = _fed_by(backbone, partial(_resume, extract, block, tuple(x.shape[1:]), x.dtype))
    parts = SplitNetwork(block, torch.no_grad()(partial(reach, backbone.module)), above)
    _refuse_other_result(backbone, parts, x)
    return parts


def _reach(extract: Extractor, block: str, module: nn.Module, x: Tensor) -> Tensor:
    """Activations at the cut, the first input of the block's first call; the forward pass ends there."""
    module = own_modules(module)
    reached = value_at(module.get_submodule(block), "input", lambda: extract(module, x))
    if reached and isinstance(reached[0], Tensor) and reached[0].shape[:1] == x.shape[:1]:
        return reached[0]
    raise BackboneError(f"{block} is not called with a tensor of one row a picture as its first argument")


def _resume(
    extract: Extractor, block: str, shape: tuple[int, ...], dtype: torch.dtype, module: nn.Module, z: Tensor
) -> Any:
    """The network's output on an empty batch, with z in the place of the first input of the block's first call."""
    waiting = [z.clone()]  # a block may begin by changing its input in place

    def feed(_module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return (waiting.pop(), *inputs[1:]) if waiting else None

    with module.get_submodule(block).register_forward_pre_hook(feed):
        return extract(module, z.new_empty(0, *shape, dtype=dtype))


def _as_it_is(_module: nn.Module, z: Tensor) -> Tensor:
    """Behind the features nothing is left to do."""
    return z


def _fed_by(backbone: Backbone, extract: Extractor) -> Backbone:
    """The same network with another kind of inputs."""
    above = copy.copy(backbone)
    above.contract = replace(backbone.contract, input_size=None, mean=(), std=())
    above.feature_function = FeatureFunction(extract)  # in full, as what is below
    return above


def _first_called(backbone: Backbone, names: Collection[str], x: Tensor) -> str:
    """Block that runs first of those that hold the parameters."""
    module = own_modules(backbone.module)
    modules = dict(module.named_modules())
    blocks = [block for block in dict.fromkeys(map(block_of, names)) if block in modules]
    called: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            note = partial(lambda block, *_: called.append(block), block)
            hooks.enter_context(modules[block].register_forward_pre_hook(note))
        backbone.feature_function(module, x)
    if not called:
        raise BackboneError(f"the network calls no block that holds {next(iter(names))} as a module")
    return called[0]


def _refuse_other_result(backbone: Backbone, parts: SplitNetwork, x: Tensor) -> None:
    """Resumed in another order of the pictures, the features must be the network's own."""
    reason = "something flows around it"
    with torch.no_grad():
        whole = backbone.feature_function(backbone.module, x).flip(0)
        try:
            resumed = parts.above.feature_function(backbone.module, parts.below(x).flip(0))
        except Exception as error:  # whatever the network's code makes of an empty batch
            resumed, reason = None, first_line(error)
    if resumed is None or not close(whole, resumed, tolerance(whole)):
        raise BackboneError(f"the network cannot go on from {parts.block} alone: {reason}")
