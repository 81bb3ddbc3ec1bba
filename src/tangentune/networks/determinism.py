"""Is a network a fixed function of one picture? Run it a few times and compare; name the part that is not."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tangentune.errors import BackboneError, TangentuneError, first_line
from tangentune.networks.features import FeatureFunction, Features, Tap, tensors_in
from tangentune.networks.parameters import used_parameters
from tangentune.networks.passes import own_modules


def check_fixed_function(module: nn.Module, features: FeatureFunction, x: Tensor) -> None:
    """Refuse a network whose features are not a fixed, differentiable function of each picture alone.

    At most two of the inputs x (n, ...), n >= 1, are used. Cost: 13 pictures forward and one backward. The global
    random state is left as it was. The BackboneError names the likely part.
    """
    batch = _with_mates(x)
    devices = [batch.device] if batch.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        first = _run(module, features, batch)
        refuse_not_finite(first)
        _check_repeats(module, features, batch, first)
        _check_mates(module, features, batch, first)
        tap = features.extract if isinstance(features.extract, Tap) else None
        floats = [name for name, p in module.named_parameters() if p.is_floating_point()]
        if tap and (calls := tap.calls(module, batch[:1])) > 1:
            problem = (
                f"the submodule {tap.name!r}, named as features, is called {calls} times a pass; name one that is "
                "called once, or give features=lambda module, x: ..."
            )
        elif not used_parameters(module, features, batch[:1], floats):
            problem = (
                "no parameter of the network has a gradient in the features: the forward pass runs under "
                "torch.no_grad or detaches, or `features` uses another network than the module it is given"
            )
        else:
            return
    raise BackboneError(problem)


def refuse_not_finite(phi: Tensor) -> None:
    """Raise a BackboneError with the count and the first row if features (n, d) hold NaN or infinity."""
    bad = ~torch.isfinite(phi).all(1)
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].tolist()
        raise BackboneError(
            f"the features of {len(rows)} of {len(phi)} pictures hold NaN or infinity (first at row {rows[0]}); check "
            "the weights, the normalisation and the precision (half precision overflows above 65,504)"
        )


def sample_input(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A fixed picture-like input (1, *shape) with values in [-2, 2]: the same on every machine."""
    count = int(torch.Size(shape).numel())
    steps = torch.arange(1, count + 1, dtype=torch.float64) * 2.399963229728653  # golden angle: never repeats
    return (2 * torch.cos(steps)).reshape(1, *shape).to(device=like.device, dtype=like.dtype)


def tolerance(x: Tensor) -> float:
    """Relative difference that rounding explains when a picture is run in another batch."""
    if not x.is_floating_point():
        return 0.0
    allowed = min(1e3 * torch.finfo(x.dtype).eps, 0.05)
    # Graphics cards choose their algorithms by the size of the batch, and a network may multiply in TF32 by itself.
    return max(allowed, 5e-3) if x.device.type == "cuda" and x.dtype == torch.float32 else allowed


def close(a: Tensor, b: Tensor, allowed: float) -> bool:
    """Whether the largest difference is within `allowed` times the largest value."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    scale = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() <= allowed * scale)


def _with_mates(x: Tensor) -> Tensor:
    """Two different pictures, each twice so that rare randomness has more chances to show: (4, ...)."""
    one = x[:1]
    others = [i for i in range(1, min(len(x), 8)) if not torch.equal(x[i], x[0])]
    if others:
        mate = x[others[0] : others[0] + 1]
    elif x.is_floating_point():
        mate = sample_input(tuple(x.shape[1:]), x).flip(-1)  # x may be the sample itself
    else:
        mate = torch.zeros_like(one)
    return torch.cat([one, mate, one, mate])


def _run(module: nn.Module, features: Features, x: Tensor) -> Tensor:
    given = x.clone()
    try:
        phi = features(module, given)
    except (TangentuneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the user's forward raises
        kind = f"{type(error).__name__}: {first_line(error)}"
        raise BackboneError(
            f"the network fails on inputs of shape {tuple(x.shape)}, {x.dtype} ({kind}); check input_size "
            "(is another size allowed?) and features (a name, or a function of (module, x))"
        ) from error
    if not torch.equal(given, x):
        raise BackboneError("the network overwrites its own input; set inplace=False in its first layer")
    return phi


def _check_repeats(module: nn.Module, features: Features, batch: Tensor, first: Tensor) -> None:
    allowed = 16 * torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
    if first.device.type == "cuda":
        allowed = tolerance(first)  # atomic sums there have no fixed order
    if close(first, _run(module, features, batch), allowed):
        return
    where = _first_difference(_trace(module, features, batch), _trace(module, features, batch), allowed)
    raise BackboneError(
        "two passes over the same pictures give different features: randomness (dropout, noise, drop path) "
        f"stays on in eval mode{where}; make it depend on module.training"
    )


def _check_mates(module: nn.Module, features: Features, batch: Tensor, first: Tensor) -> None:
    allowed = tolerance(first)
    alone, turned = _run(module, features, batch[:1]), _run(module, features, batch.flip(0)).flip(0)
    if close(first[:1], alone, allowed) and close(first, turned, allowed):
        return
    where = ""
    one = _rows(_trace(module, features, batch[:2]), 0, 2)
    for other, row in ((batch[[0, 0]], 0), (batch[[1, 0]], 1), (batch[:1], 0)):  # other mates, place, number
        two = _rows(_trace(module, features, other), row, len(other))
        where = where or _first_difference(one, two, allowed)
    raise BackboneError(
        "the features of a picture depend on the other pictures of its batch (normalisation by the batch, or "
        f"pictures mixed up){where}; use running statistics or treat each picture alone"
    )


_Call = tuple[str, list[Tensor], list[Tensor]]
"""One call of a submodule: its name and type, and the tensors that went in and came out."""


def _trace(module: nn.Module, features: Features, x: Tensor) -> list[_Call]:
    """Every submodule call of one pass, inner ones first."""
    calls: list[_Call] = []
    entered: list[list[Tensor]] = []  # what went into the calls that have not ended
    module = own_modules(module)

    def copies(tree: Any) -> list[Tensor]:  # in-place layers change them later
        return [t.clone() for t in tensors_in(tree)]

    def before(_part: nn.Module, inputs: Any) -> None:
        entered.append(copies(inputs))

    def after(label: str, _part: nn.Module, _inputs: Any, output: Any) -> None:
        calls.append((label, entered.pop(), copies(output)))

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            label = f"'{name}' ({type(part).__name__})" if name else f"the forward of {type(part).__name__}"
            hooks.enter_context(part.register_forward_pre_hook(before))
            hooks.enter_context(part.register_forward_hook(partial(after, label)))
        features(module, x.clone())
    return calls


def _first_difference(one: list[_Call], two: list[_Call], allowed: float) -> str:
    """Text naming the innermost call that turns equal inputs into different outputs; empty if none does."""
    same = partial(close, allowed=allowed)
    for (label, inputs, outputs), (other, inputs_too, outputs_too) in zip(one, two, strict=False):
        if label != other or len(outputs) != len(outputs_too):
            break
        if all(map(same, inputs, inputs_too)) and not all(map(same, outputs, outputs_too)):
            return f", most likely at {label}"
    return ""


def _rows(calls: list[_Call], row: int, n: int) -> list[_Call]:
    """What one of n pictures contributed to each call, where the first axis shows it."""

    def part(tensors: list[Tensor]) -> list[Tensor]:
        return [t.unflatten(0, (n, -1))[row] for t in tensors if t.dim() and len(t) and len(t) % n == 0]

    return [(label, part(inputs), part(outputs)) for label, inputs, outputs in calls]
