"""Rows of a network's Jacobian for all outputs, parameter by parameter: what the tangent kernel is made of."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from tangentune.errors import InputError
from tangentune.jacobian.kfac_passes import plan
from tangentune.jacobian.layers import Entry, Pairs, Rows, Use, add_uses, stack_probes
from tangentune.jacobian.layers.conv import ConvUse
from tangentune.jacobian.layers.patches import covers, patch_rows
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.watched_passes import backwards, watch
from tangentune.networks.backbone import Backbone

Network = nn.Module | Backbone
WAITING_BYTES = 2**24  # cotangents of one convolution that wait for those of further outputs, to share its patches


@final
@dataclass(frozen=True, eq=False)
class TangentRows:
    """A network whose rows are wanted; made by `survey_rows`.

    Attributes:
        linearization: the network, frozen, in a copy of its own.
        ruled: parameters whose rows come from layer rules, with one forward and C backward passes a batch.
        generic: those that take a backward pass a picture and output.
        held: bytes of one picture's rows, by parameter; parameters that no output depends on are not among them.
        outputs: C.
        channels_last: whether pictures go through the network in that memory order.
    """

    linearization: Linearization
    ruled: frozenset[str]
    generic: frozenset[str]
    held: dict[str, int]
    outputs: int
    channels_last: bool

    @property
    def width(self) -> int:
        """Parameters that move, p."""
        return sum(p.numel() for p in self.linearization.point().values())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(iter(self.linearization.point().values())).dtype

    def prepare(self, x: Tensor) -> Tensor:
        """Inputs as the network wants them: its device, precision and memory order.

        Raises:
            InputError: there is no input, or one holds NaN or infinite values.
        """
        like = next(iter(self.linearization.point().values()))
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x)
        if x.dim() < 2 or not len(x):
            message = f"inputs have shape {tuple(x.shape)}; give a batch (n, ...) of at least one"
            raise InputError(message)
        broken = ~torch.isfinite(x).flatten(1).all(1)
        if bool(broken.any()):
            message = f"input {int(broken.nonzero()[0])} holds NaN or infinite values; repair or leave it out"
            raise InputError(message)
        x = x.to(like) if x.is_floating_point() else x.to(like.device)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def entries(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Entry]:
        """Rows of one prepared batch by parameter, Pairs or Rows with C probes."""
        wanted = frozenset(self.held if names is None else names)
        return {**_by_rules(self, x, wanted & self.ruled), **_by_vjps(self, x, wanted & self.generic)}

    def explicit(self, x: Tensor) -> Tensor:
        """The Jacobian of one prepared batch, (n, C, p), columns in network order."""
        entries = self.entries(x)
        parts = []
        for name, p in self.linearization.point().items():
            zeros = p.new_zeros(()).expand(len(x), self.outputs, p.numel())
            parts.append(entries[name].explicit().flatten(2) if name in entries else zeros)
        return torch.cat(parts, 2)

    def groups(self, pictures: int, memory_bytes: int) -> list[list[str]]:
        """Parameters whose rows of so many pictures fit into memory together; a lone one may be larger."""
        out: list[list[str]] = [[]]
        used = 0
        for name, size in self.held.items():
            if out[-1] and used + pictures * size > memory_bytes:
                out.append([])
                used = 0
            out[-1].append(name)
            used += pictures * size
        return out


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
    given = isinstance(network, Linearization)
    lin = copy.deepcopy(network) if given else Linearization(network, params)
    channels_last = _prefers_channels_last(lin.function.network)
    if channels_last:
        lin = lin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    blank = TangentRows(lin, frozenset(), frozenset(), {}, 0, channels_last)
    x = blank.prepare(x[:3])
    output = lin.f0(x)
    if output.dim() != 2 or len(output) != len(x):
        message = f"the network turns {len(x)} inputs into {tuple(output.shape)}; it must return (n, outputs)"
        raise InputError(message)
    generic = set(plan(lin, x, any_size=True).generic)
    ruled, generic = frozenset(lin.names) - generic, frozenset(generic - _unused(lin, x))
    one = _by_rules(TangentRows(lin, ruled, generic, {}, output.shape[1], channels_last), x[:1], ruled)
    point = lin.point()
    # A parameter that is used, but not for the outputs, is in neither.
    sizes = {name: output.shape[1] * point[name].nbytes for name in lin.names if name in generic}
    sizes |= {name: one[name].nbytes for name in lin.names if name in one}
    held = {name: sizes[name] for name in lin.names if name in sizes}
    return TangentRows(lin, ruled, generic, held, output.shape[1], channels_last)


def output_norms(entry: Entry) -> Tensor:
    """Squared length of each picture's row, output by output: (n, C), float64."""
    if isinstance(entry, Rows):
        return torch.linalg.vector_norm(entry.values.flatten(2), dim=2).double().square()
    alike = entry.a @ entry.a.mT
    g = entry.g.transpose(1, 2)
    return ((g @ g.mT) * alike[:, None]).sum((2, 3), dtype=torch.float64)


def joined(entries: list[Entry]) -> Entry:
    """One parameter's rows of several batches as those of one."""
    pairs = [entry for entry in entries if isinstance(entry, Pairs)]
    if len(pairs) == len(entries):
        return Pairs(torch.cat([entry.a for entry in pairs]), torch.cat([entry.g for entry in pairs]))
    return Rows(torch.cat([entry.explicit() for entry in entries]))


def _by_rules(rows: TangentRows, x: Tensor, names: frozenset[str]) -> dict[str, Entry]:
    if not names:
        return {}
    collected: dict[tuple[int, str], list[Entry]] = {}
    waiting: dict[tuple[int, str], tuple[ConvUse, list[Tensor]]] = {}

    def contract(place: tuple[int, str]) -> None:
        use, cotangents = waiting.pop(place)
        collected.setdefault(place, []).append(patch_rows(use, cotangents, len(x)))

    def sink(position: int, use: Use, role: str, name: str, g: Tensor) -> None:
        place = (position, name)
        if name in names and isinstance(use, ConvUse) and covers(use, role):
            own = waiting.setdefault(place, (use, []))[1]
            own.append(g)
            if len(own) * g.nbytes >= WAITING_BYTES:
                contract(place)
        elif name in names:
            collected.setdefault(place, []).append(use.rows(role, g, len(x)))

    output, recorder = watch(rows.linearization, x, sink)
    backwards(output, recorder, list(_units(output)))
    for place in list(waiting):
        contract(place)
    entries: dict[str, Entry] = {}
    for (_, name), per_output in collected.items():
        entry = stack_probes(per_output)
        entries[name] = add_uses(entries[name], entry) if name in entries else entry
    return entries


def _by_vjps(rows: TangentRows, x: Tensor, names: frozenset[str]) -> dict[str, Entry]:
    if not names:
        return {}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for one in x.split(1):
        for unit in _units(rows.linearization.f0(one)):
            pulled = rows.linearization.vjp(one, unit)
            for name in names:
                found[name].append(pulled[name].reshape(-1))
    return {name: Rows(torch.stack(own).unflatten(0, (len(x), -1))[..., None, None, :]) for name, own in found.items()}


def _units(output: Tensor) -> Iterator[Tensor]:
    for c in range(output.shape[1]):
        unit = torch.zeros_like(output)
        unit[:, c] = 1
        yield unit


def _unused(lin: Linearization, x: Tensor) -> set[str]:
    """Parameters that no function of the forward pass took."""
    _, recorder = watch(lin, x, lambda *_: None)
    seen = {recorder.names[id(tensor)] for use in recorder.uses for tensor in use.roles.values()}
    return set(lin.names) - seen - recorder.unruled


def _prefers_channels_last(network: nn.Module) -> bool:
    """Convolutions with a kernel above 1 x 1, and nothing that torch does wrong or not at all in that order."""
    parts = list(network.modules())
    wide = any(isinstance(part, nn.Conv2d) and part.groups == 1 and part.kernel_size != (1, 1) for part in parts)
    # torch's group_norm backward crashes in that order when no gradient of its input is asked for.
    refused = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
    five = any(p.dim() > 4 for p in network.parameters())
    return wide and not five and not any(isinstance(part, refused) for part in parts)
