"""Which way each parameter's rows are got, proven against autograd on a few pictures before any is used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.errors import InputError, LayerError
from tangentune.jacobian.forward_mode import weight_gradients
from tangentune.jacobian.layers import Entry
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.recorder import Function, watch
from tangentune.jacobian.rows import RowPlan, TangentRows, Ways, first_samples, mapped, rows, sample_count
from tangentune.networks.backbone import Backbone
from tangentune.networks.features import Features
from tangentune.networks.network_function import Inputs

Network = nn.Module | Backbone
# What a wrong layout or a missing batching rule raises: a reason to go on with a slower way.
FAULTS = (RuntimeError, ValueError, IndexError, TypeError)


def survey(module: nn.Module, features: Features, names: list[str], x: Tensor) -> RowPlan:
    """Sort `names` into ruled, generic and unused, proven as `find_ways` says on two or three inputs.

    Raises:
        LayerError: if some parameter's per-sample gradient cannot be computed correctly.
    """
    plan = RowPlan(module, features, (), ())
    twin = lambda: replace(plan, module=copy.deepcopy(module).double())  # noqa: E731
    ways = find_ways(plan, twin, names, x, together=False)
    if ways.single:
        raise LayerError(
            f"per-sample gradients of {', '.join(sorted(ways.single)[:5])} cannot be computed: the network mixes "
            "samples there or uses an operation without vmap support; leave these parameters out with `subset`"
        )
    return replace(plan, ruled=ways.ruled, generic=ways.generic)


@usual_torch
def survey_rows(network: Network | Linearization, x: Tensor, params: str | Iterable[str] = "all") -> TangentRows:
    """Find out how each parameter's rows are got, and prove it on up to three inputs.

    Args:
        network: any module, a Backbone (its features), or a Linearization (then `params` is as it was made).
        x: some inputs.
        params: which parameters the kernel is of: words of `select_parameters`, or names.

    Raises:
        InputError: the output is not (n, C).
        BackboneError: the network cannot be linearised.

    Example:
        >>> x = torch.randn(4, 3)
        >>> rows = survey_rows(nn.Linear(3, 2), x)
        >>> rows.outputs, rows.width, rows.explicit(x).shape
        (2, 8, torch.Size([4, 2, 8]))
    """
    lin = copy.deepcopy(network) if isinstance(network, Linearization) else Linearization(network, params)
    channels_last = _prefers_channels_last(lin.function.network)
    if channels_last:
        lin = lin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = TangentRows(lin, Ways(), {}, 0, channels_last).prepare(x[:3])
    shape = tuple(lin.f0(x).shape)
    if len(shape) != 2 or shape[0] != len(x):
        raise InputError(f"the network turns {len(x)} inputs into {shape}; it must return (n, outputs)")
    return survey_linearization(lin, x, channels_last)


# What was proven of a linearisation, by the inputs' kind: the proof costs more than the rows of a small batch.
_PROVEN: WeakKeyDictionary[Linearization, dict[Any, tuple[Ways, dict[str, int], int]]] = WeakKeyDictionary()


def survey_linearization(linearization: Linearization, x: Inputs, channels_last: bool = False) -> TangentRows:
    """Rows of a linearised network as it is, proven on up to three of the inputs; once for inputs of one kind."""
    x, function = first_samples(x, 3), linearization.function
    parts = [*({"": x} if isinstance(x, Tensor) else x).items(), *linearization.point().items()]
    kind = tuple((name, t.shape, t.stride()[1:], t.dtype, t.device) for name, t in parts)
    known = _PROVEN.setdefault(linearization, {})
    if kind not in known:
        twin = lambda: replace(function, network=copy.deepcopy(function.network).double())  # noqa: E731
        ways = find_ways(function, twin, linearization.names, x)
        one = rows(function, ways, first_samples(x, 1))
        held = {name: one.entries[name].nbytes for name in linearization.names if name in one.entries}
        known[kind] = ways, held, one.phi.shape[1]
    return TangentRows(linearization, *known[kind], channels_last)


@dataclass(frozen=True)
class _Truth:
    """Autograd's gradients of a sum of one `probe`'s outputs over x with random `weights`; None: unused.

    `largest` is the greatest norm among the gradients.
    """

    function: Function
    x: Inputs
    tolerance: float
    gradients: dict[str, Tensor | None]
    probe: Tensor
    weights: Tensor
    largest: float


def find_ways(
    function: Function, twin: Callable[[], Function], names: Collection[str], x: Inputs, together: bool = True
) -> Ways:
    """Choose a way for every parameter, and prove the choice on a few pictures.

    Rows, weighted at random, must add up to what autograd gives for the same weighting; a parameter that fails one way
    moves to the next, and `single` needs no proof. The proof runs in float64 on a copy, where rounding cannot hide or
    fake a fault. Parameters that the outputs do not depend on are left out.

    `twin` gives the copy; it may fail where there is no float64, or a fixed precision in the network. `together` is as
    `rows` will be called.
    """
    _, recorder = watch(function, names, x, lambda *_: None)
    known = recorder.places().keys() - recorder.unruled
    try:
        doubled = mapped(x, lambda t: t.double() if t.is_floating_point() else t)
        return _sorted_ways(_truth(twin(), names, doubled, 1e-9), names, known, together)
    except (RuntimeError, TypeError):
        return _sorted_ways(_truth(function, names, x, 1e-2), names, known, together)


def _sorted_ways(truth: _Truth, names: Collection[str], known: Collection[str], together: bool) -> Ways:
    used = [name for name in names if truth.gradients[name] is not None]
    ruled = tuple(name for name in used if name in known)
    failed = _failures(truth, Ways(ruled=ruled), together)
    generic = tuple(name for name in used if name not in known or name in failed)
    wrong = _failures(truth, Ways(generic=generic), together)
    return Ways(
        tuple(name for name in ruled if name not in failed),
        tuple(name for name in generic if name not in wrong),
        tuple(name for name in generic if name in wrong),
    )


def _truth(function: Function, names: Collection[str], x: Inputs, tolerance: float) -> _Truth:
    """What autograd says of a random sum of probe outputs."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(sample_count(x), generator=generator, dtype=torch.float64)
    parameters = function.parameters()
    leaves = {name: parameters[name].detach().requires_grad_() for name in names}
    # The gradient of x is asked for too: without it torch's channels-last group_norm backward crashes.
    start = [x.detach().requires_grad_()] if isinstance(x, Tensor) and x.is_floating_point() else []
    with torch.enable_grad(), weight_gradients():
        output = function(start[0].clone() if start else x, leaves)
        probe = torch.randn(1, output.shape[1], generator=generator, dtype=torch.float64).to(output)
        if not output.requires_grad:
            return _Truth(function, x, tolerance, dict.fromkeys(names), probe, weights, 0.0)
        wanted = [*leaves.values(), *start]
        grads = torch.autograd.grad((output @ probe[0]) @ weights.to(output), wanted, allow_unused=True)
    gradients: dict[str, Tensor | None] = dict(zip(leaves, grads, strict=False))
    largest = max((float(g.norm()) for g in gradients.values() if g is not None), default=0.0)
    return _Truth(function, x, tolerance, gradients, probe, weights, largest)


def _failures(truth: _Truth, ways: Ways, together: bool) -> set[str]:
    """Parameters whose weighted row sum is not autograd's gradient; a rule that raises is bisected for."""
    names = ways.ruled + ways.generic
    if not names:
        return set()
    try:
        entries = rows(truth.function, ways, truth.x, truth.probe, together=together).entries
    except FAULTS:
        if len(names) == 1:
            return set(names)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        return set().union(*(_failures(truth, ways.restrict(half), together) for half in halves))
    return {name for name in names if not _adds_up(entries.get(name), truth, name)}


def _adds_up(entry: Entry | None, truth: _Truth, name: str) -> bool:
    gradient = truth.gradients[name]
    if entry is None or gradient is None:
        return False
    flat = entry.explicit().flatten(1)
    weights = truth.weights.to(flat)
    total, size = weights @ flat, (weights.abs() @ flat.abs()).norm() + gradient.norm()
    # A gradient that is exactly zero (a key's bias under softmax) is rounding noise on both sides.
    size = size + 1e-3 * truth.largest
    return bool((total - gradient.flatten()).norm() <= truth.tolerance * size)


def _prefers_channels_last(network: nn.Module) -> bool:
    """Convolutions with a kernel above 1 x 1, and nothing that torch does wrong or not at all in that order."""
    parts = list(network.modules())
    wide = any(isinstance(part, nn.Conv2d) and part.groups == 1 and part.kernel_size != (1, 1) for part in parts)
    # torch's group_norm backward crashes in that order when no gradient of its input is asked for.
    refused = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
    five = any(p.dim() > 4 for p in network.parameters())
    return wide and not five and not any(isinstance(part, refused) for part in parts)
