"""The tangent rows of a frozen network: psi_r(x) = J_phi(x)^T p_r for every picture, probe and parameter.

One forward and one backward pass per probe and batch, without weight gradients; each parameter's rows come
from the rule of the function that used it, or from `vmap(grad)` where there is no rule.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tangentune.errors import LayerError
from tangentune.jacobian.layers import Entry, FactorSample, Rows, Use, add_uses, average_views, stack_probes
from tangentune.jacobian.recorder import Recorder
from tangentune.networks.features import Features, features_at
from tangentune.networks.parameters import ReferenceGradients, reference_gradients


@dataclass(frozen=True)
class Tangent:
    """What the rows are taken of: a network, its feature function, and which parameters go which way.

    `ruled` parameters use layer rules, `generic` ones `vmap(grad)`; the rest stay fixed. Made by `survey`.
    `points` are networks of the same kind at other weights, for pictures whose rows are taken there.
    """

    module: nn.Module
    features: Features
    ruled: tuple[str, ...]
    generic: tuple[str, ...]
    points: tuple[nn.Module, ...] = ()

    def at(self, point: int | None) -> Tangent:
        """The same rows at one of the `points`; None stays."""
        return self if point is None else replace(self, module=self.points[point])

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters that move."""
        return self.ruled + self.generic


@dataclass(frozen=True)
class BatchRows:
    """Rows of one batch: `phi` (n, d), `entries` and K-FAC `factors` by parameter name."""

    phi: Tensor
    entries: dict[str, Entry]
    factors: dict[str, FactorSample]


def batch_rows(tangent: Tangent, views: list[Tensor], probes: Tensor, positions: int = 0) -> BatchRows:
    """Features and tangent rows of one batch, averaged over its views.

    Args:
        tangent: network and parameters, from `survey`.
        views: the batch (n, ...) seen in one or more ways (say plain and mirrored), same shape each.
        probes: directions in feature space, (R, d).
        positions: positions a picture that enter the K-FAC sums of explicit rows; 0 collects none.

    Returns:
        Rows of every parameter that moves. Cost: one forward, R backwards, no weight gradients.
    """
    n, x = len(views[0]), torch.cat(views) if len(views) > 1 else views[0]
    parameters = dict(tangent.module.named_parameters())
    names = {id(parameters[name]): name for name in tangent.ruled}
    collected: dict[tuple[int, str], list[Entry]] = {}
    factors: dict[str, FactorSample] = {}

    def sink(position: int, use: Use, g: Tensor) -> None:
        for role, parameter in use.roles.items():
            name = names[id(parameter)]
            entry = use.rows(role, g, len(x))
            collected.setdefault((position, name), []).append(average_views(entry, len(views)))
            # Pairs hold their own second moments; explicit rows have lost them, so sum them here.
            sample = use.factors(role, g, len(x), positions) if positions and isinstance(entry, Rows) else None
            if sample is not None:
                factors[name] = factors[name] + sample if name in factors else sample

    with torch.enable_grad():
        recorder = Recorder(names, sink)
        with recorder:
            phi = tangent.features(tangent.module, x)
        for r, probe in enumerate(probes):
            if not phi.requires_grad:
                break
            cotangent = probe.to(phi).expand_as(phi)
            torch.autograd.backward(phi, cotangent, retain_graph=r + 1 < len(probes), inputs=[recorder.token])
    entries: dict[str, Entry] = {}
    for (_, name), per_probe in collected.items():
        entry = stack_probes(per_probe)
        entries[name] = add_uses(entries[name], entry) if name in entries else entry
    if tangent.generic:
        generic = _generic_rows(tangent, x, probes)
        entries.update({name: average_views(entry, len(views)) for name, entry in generic.items()})
    return BatchRows(phi.detach().unflatten(0, (len(views), n)).mean(0), entries, factors)


def explicit_rows(tangent: Tangent, x: Tensor, probes: Tensor) -> dict[str, Tensor]:
    """Rows written out in the parameters' own shapes: name -> (n, R, *shape). For tests and small nets."""
    shapes = {name: p.shape for name, p in tangent.module.named_parameters()}
    entries = batch_rows(tangent, [x], probes).entries
    return {name: e.explicit().reshape(len(x), len(probes), *shapes[name]) for name, e in entries.items()}


def survey(module: nn.Module, features: Features, names: list[str], x: Tensor, seed: int = 0) -> Tangent:
    """Sort parameters into ruled, generic and unused, and prove the choice on a few pictures.

    Rows of each parameter, weighted at random, must add up to what autograd gives for the same weighting;
    a parameter that fails its rule moves to the generic rule, and one that fails there too is refused. The
    proof runs in float64 on a copy, where rounding cannot hide or fake a fault.

    Args:
        module: frozen network in eval mode.
        features: `(module, x) -> (n, d)`.
        names: parameters that may move; those the features do not depend on are left out of the result.
        x: two or three inputs.
        seed: of the random probe and weights.

    Raises:
        LayerError: if some parameter's per-sample gradient cannot be computed correctly.
    """
    try:
        twin, inputs = copy.deepcopy(module).double(), x.double() if x.is_floating_point() else x
        checked = _sort_parameters(twin, features, names, inputs, seed, 1e-9)
    except (RuntimeError, TypeError):  # no float64 on this device, or a fixed precision inside the network
        checked = _sort_parameters(module, features, names, x, seed, 1e-2)
    return Tangent(module, features, checked.ruled, checked.generic)


def _sort_parameters(
    module: nn.Module, features: Features, names: list[str], x: Tensor, seed: int, tolerance: float
) -> Tangent:
    parameters = dict(module.named_parameters())
    reference = reference_gradients(module, features, names, x, torch.Generator().manual_seed(seed))
    used = [name for name in names if reference.truth[name] is not None]
    recorder = Recorder({id(parameters[name]): name for name in used}, lambda *_: None)
    with torch.enable_grad(), recorder:
        features(module, x)
    seen = {name for use in recorder.uses for t in use.roles.values() if (name := recorder.names.get(id(t)))}
    ruled = [name for name in used if name in seen - recorder.unruled]
    failed = _failures(Tangent(module, features, tuple(ruled), ()), x, reference, tolerance)
    ruled = [name for name in ruled if name not in failed]
    generic = [name for name in used if name not in ruled]
    wrong = _failures(Tangent(module, features, (), tuple(generic)), x, reference, tolerance)
    if wrong:
        message = (
            f"per-sample gradients of {', '.join(sorted(wrong)[:5])} cannot be computed: the network mixes samples "
            "there or uses an operation without vmap support; leave these parameters out with `subset`"
        )
        raise LayerError(message)
    return Tangent(module, features, tuple(ruled), tuple(generic))


def _failures(tangent: Tangent, x: Tensor, reference: ReferenceGradients, tolerance: float) -> set[str]:
    """Parameters whose weighted row sum is not autograd's gradient; a rule that raises is bisected for."""
    names = tangent.names
    if not names:
        return set()
    try:
        rows = explicit_rows(tangent, x, reference.probe)
    except (RuntimeError, ValueError, IndexError, TypeError):
        if len(names) == 1:
            return set(names)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        parts = [Tangent(tangent.module, tangent.features, *((h, ()) if tangent.ruled else ((), h))) for h in halves]
        return set().union(*(_failures(part, x, reference, tolerance) for part in parts))
    return {name for name in names if not _adds_up(rows.get(name), reference, name, tolerance)}


def _adds_up(rows: Tensor | None, reference: ReferenceGradients, name: str, tolerance: float) -> bool:
    truth = reference.truth[name]
    if rows is None or truth is None:
        return False
    weights = reference.weights.to(rows)
    total = torch.tensordot(weights, rows[:, 0], dims=1)
    size = torch.tensordot(weights.abs(), rows[:, 0].abs(), dims=1).norm() + truth.norm()
    # A gradient that is exactly zero (a key's bias under softmax) is rounding noise on both sides.
    size = size + 1e-3 * max(float(t.norm()) for t in reference.truth.values() if t is not None)
    return bool((total - truth).norm() <= tolerance * size)


def _generic_rows(tangent: Tangent, x: Tensor, probes: Tensor) -> dict[str, Rows]:
    """`vmap(grad)` for parameters without a rule; cost about one more forward and backward a probe."""
    parameters = dict(tangent.module.named_parameters())
    moving = {name: parameters[name].detach() for name in tangent.generic}

    def output(params: dict[str, Tensor], one: Tensor, probe: Tensor) -> Tensor:
        phi = features_at(tangent.module, tangent.features, params, one[None])[0]
        return phi @ probe.to(phi)  # not of the inputs' type: they may be token numbers

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
        per_probe = [vmap(grad(output), in_dims=(None, 0, None))(moving, x, probe) for probe in probes]
    stacked = {name: torch.stack([rows[name].flatten(1) for rows in per_probe], 1) for name in moving}
    return {name: Rows(values[:, :, :, None, None]) for name, values in stacked.items()}
