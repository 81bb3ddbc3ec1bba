"""Where the features of a network are: its own output, a named submodule, or a function of the user's."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tangentune.errors import BackboneError
from tangentune.networks.passes import no_checkpoints, own_modules
from tangentune.pictures.contract import DataContract

Features = Callable[[nn.Module, Tensor], Tensor]
Extractor = Callable[[nn.Module, Tensor], Any]

OUTPUT_FIELDS = ("pooler_output", "last_hidden_state", "logits")


@final
@dataclass(frozen=True)
class Loaded:
    """What a loader hands over: a network, how pictures are prepared for it, where its features are."""

    module: nn.Module
    contract: DataContract
    features: Extractor


@final
@dataclass(frozen=True)
class FeatureFunction:
    """`extract` with its answer brought to (n, d); holds no network, so it copies and compares by value.

    With `autocast` a float32 network is passed, forward and back, under `torch.autocast` of that type, and the features
    come back in float32. Of a copy in float64 autocast changes nothing: rows are proved on one, to every digit.
    """

    extract: Extractor
    autocast: torch.dtype | None = None

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Features (n, d) of the inputs x (n, ...). Free of data-dependent control flow, so `vmap` takes it."""
        own = own_modules(module)
        passes = nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)
        with no_checkpoints(), passes:
            found = as_rows(self.extract(own, x), own, x)
        return found.float() if found.dtype == self.autocast else found

    def in_full(self) -> FeatureFunction:
        """The same without autocast."""
        return self if self.autocast is None else FeatureFunction(self.extract)


def own_output(module: nn.Module, x: Tensor) -> Any:
    """The module's own output."""
    return module(x)


class _Reached(Exception):
    """Ends a forward pass that need not go on; its argument tells whose it is, since one pass may hold another."""


def value_at(part: nn.Module, side: Literal["input", "output"], run: Callable[[], Any]) -> list[Any]:
    """What goes into or comes out of a part of a network on the first call that `run` makes of it; `run` ends there.

    A list of the one value (first input or output); empty if `run` never calls the part.
    """
    reached: list[Any] = []

    def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
        reached.append(output)
        raise _Reached(reached)

    def before(_module: nn.Module, inputs: Any) -> None:
        after(_module, inputs, inputs[0] if inputs else None)

    with part.register_forward_hook(after) if side == "output" else part.register_forward_pre_hook(before):
        try:
            run()
        except _Reached as end:
            if end.args[0] is not reached:
                raise
    return reached


@final
@dataclass(frozen=True)
class Tap:
    """What goes into or comes out of a named submodule; the forward pass ends there."""

    name: str
    side: Literal["input", "output"] = "output"

    def __call__(self, module: nn.Module, x: Tensor) -> Any:
        """The tensor (or whatever the submodule takes or returns) on the first call."""
        reached = value_at(module.get_submodule(self.name), self.side, lambda: module(x))
        if reached:
            return reached[0]
        raise BackboneError(f"the network's forward pass never calls its submodule {self.name!r}, named as features")

    def calls(self, module: nn.Module, x: Tensor) -> int:
        """How often a whole forward pass calls the submodule."""
        calls: list[None] = []
        module = own_modules(module)
        with module.get_submodule(self.name).register_forward_pre_hook(lambda *_: calls.append(None)):
            module(x)
        return len(calls)


def extractor(module: nn.Module, features: str | Extractor | None) -> Extractor:
    """The function behind a `features` argument: None, the name of a submodule, or a function itself."""
    if features is None:
        return own_output
    if callable(features):
        return features
    names = [name for name, _ in module.named_modules() if name]
    if features in names:
        return Tap(features)
    near = difflib.get_close_matches(str(features), names, 3, 0.4) or names[-3:]
    raise BackboneError(
        f"features={features!r} names no submodule of {type(module).__name__}; there are, for instance, {near}"
    )


def as_rows(output: Any, module: nn.Module, x: Tensor) -> Tensor:
    """Bring the output of a network for inputs x (n, ...) to one row of features a picture.

    (n, d) stays; (n,) becomes (n, 1); (n, d, h, w) and (n, d, t, h, w) are averaged over positions; of an output object
    the `pooler_output`, else the `last_hidden_state` (class token if the network has one, else the mean over tokens),
    else the `logits` are taken. What has no single reading as rows of pictures is a BackboneError.
    """
    if not isinstance(output, Tensor):
        output = _tensor_of(output, module)
    shape = tuple(output.shape)
    square = x.dim() == 4 and x.shape[2] == x.shape[3]
    if not shape or shape[0] != x.shape[0]:  # not its len: that would be a plain number, also where torch exports
        problem = (
            f"the network returns features of shape {shape} for {len(x)} pictures; the first axis must be "
            "the pictures (no squeeze, no sum over the batch)"
        )
    elif len(shape) <= 2:
        return output if len(shape) == 2 else output[:, None]
    elif len(shape) == 3 and shape[2] == 1:
        return output[:, :, 0]
    elif len(shape) not in (4, 5):
        problem = (
            f"features of shape {shape} are not (n, d), and which of the {shape[1]} positions counts is not known; "
            "give features=lambda module, x: ... that returns (n, d), for instance a class token [:, 0] or a mean(1)"
        )
    elif len(shape) == 4 and square and shape[1] == shape[2] != shape[3]:  # from a square picture, only (n, h, w, d)
        problem = (
            f"features of shape {shape} look channels-last (n, h, w, d), which cannot be averaged "
            "safely; give features=lambda module, x: ... that returns (n, d)"
        )
    else:
        return output.mean(tuple(range(2, len(shape))))
    raise BackboneError(problem)


def pool_tokens(tokens: Tensor, module: nn.Module) -> Tensor:
    """Class token of (n, T, d) where the network has one (a parameter `...cls_token`), else the mean."""
    if tokens.dim() != 3:
        return tokens
    endings = ("cls_token", "class_token", "class_embedding")
    named = any(name.endswith(endings) for name, _ in module.named_parameters())
    return tokens[:, 0] if named else tokens.mean(1)


def _tensor_of(output: Any, module: nn.Module) -> Tensor:
    """The tensor to use of an output object, mapping or one-element sequence."""
    found = named_tensor(output, OUTPUT_FIELDS)
    if found:
        return pool_tokens(found[1], module) if found[0] == "last_hidden_state" else found[1]
    if isinstance(output, list | tuple) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    raise BackboneError(
        f"the network returns a {type(output).__name__}, not a tensor or an output with one of "
        f"{', '.join(OUTPUT_FIELDS)}; give features=lambda module, x: ... that returns (n, d)"
    )


def named_tensor(output: Any, fields: Iterable[str]) -> tuple[str, Tensor] | None:
    """The first of some fields of an output object or mapping that holds a tensor, with its name."""
    for field in fields:
        value = output.get(field) if isinstance(output, Mapping) else getattr(output, field, None)
        if isinstance(value, Tensor):
            return field, value
    return None


def tensors_in(*trees: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings; made for speed: this runs for every function a pass calls."""
    found: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, Tensor):
            found.append(tree)
        elif isinstance(tree, (tuple, list)):
            found += tensors_in(*tree)
        elif isinstance(tree, dict):
            found += tensors_in(*tree.values())
    return found


@final
class Followed(TorchFunctionMode):
    """While on, a function that is given one of these parameters, all replaced, is an error: some way leads round."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        super().__init__()
        self.names = {id(p): name for name, p in parameters.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_in(args, kwargs):
            if id(tensor) in self.names and getattr(func, "__name__", "") != "__get__":  # not a look at its type
                raise BackboneError(
                    f"the network reaches its parameter {self.names[id(tensor)]} through an object that is no module, "
                    "list, tuple or mapping; hold the module that owns it as an attribute, or in an nn.ModuleList"
                )
        return func(*args, **kwargs)


def features_at(module: nn.Module, features: Features, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Features (n, d) with some of the module's parameters replaced: a pure function of `(params, x)`."""
    return features(own_modules(module, params), x)
