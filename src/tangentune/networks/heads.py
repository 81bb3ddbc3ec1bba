"""Linear heads at the linearisation point: random, ridge probe, cross-fitted ridge probe, pre-trained rows.

A probe fitted to the very pictures that the body is then fitted to leaves residuals that are too small; a cross-fitted
one gives every picture the residual of a head that has not seen it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune._torch import usual_torch
from tangentune.errors import BackboneError, InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.determinism import close, tolerance
from tangentune.networks.passes import own_modules
from tangentune.solvers.calibration import fit_temperature
from tangentune.solvers.probe import Probe

__all__ = ["CrossFittedProbe", "cross_fitted_probe", "pretrained_head", "probe_head", "random_head"]

RELATIVE_DAMPINGS = torch.logspace(-4, 3, 57, dtype=torch.float64)


@usual_torch
def random_head(features_width: int, outputs: int, *, scale: float = 1.0, seed: int = 0) -> nn.Linear:
    """Linear head with independent normal weights of standard deviation `scale / sqrt(width)` and no bias.

    Outputs then have mean square `scale^2 ||phi||^2 / width`. Float32 on the CPU; `head.to(features)` moves it.

    Args:
        features_width: d, at least 1.
        outputs: C, at least 1.
        scale: positive; the body's Jacobian, and so its share of the tangent kernel's root, is proportional to it.
        seed: of a generator of its own; the global random state stays.

    Example:
        >>> head = random_head(400, 3, scale=2.0)
        >>> head.weight.shape, abs(head.weight.std().item() - 0.1) < 0.01
        (torch.Size([3, 400]), True)
    """
    if features_width < 1 or outputs < 1 or not 0 < scale < math.inf:
        given = f"{features_width}, {outputs}, {scale}"
        raise InputError(f"a random head needs widths of at least 1 and a positive scale, not {given}")
    weight = torch.randn(outputs, features_width, generator=torch.Generator().manual_seed(seed))
    return _linear(weight * (scale / features_width**0.5), torch.zeros(outputs)).requires_grad_(False)


@usual_torch
def probe_head(features: Tensor, positions: Tensor, *, calibrated: bool = False) -> nn.Linear:
    """Linear probe: ridge regression on one-hot targets, damping chosen by the exact leave-one-out error.

    Args:
        features: (n, d), finite, of two pictures at least.
        positions: (n,) classes as 0..C-1, each at least once.
        calibrated: scale the outputs to logits of honest probabilities, again by leave-one-out: some ten times as
            large. The training loss then starts near zero, a poor place to fine-tune from.

    Returns:
        A linear layer d -> C in the features' dtype, its parameters trainable (fine-tuning starts from it). Cost
        n d k + k^3 with k the smaller of n and d.

    Example:
        >>> head = probe_head(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
        >>> head(torch.tensor([[0.5], [4.5]])).argmax(1).tolist()
        [0, 1]
    """
    return _ridge_head(features, positions, int(positions.max()) + 1, calibrated)


@final
@dataclass(frozen=True, eq=False)
class CrossFittedProbe:
    """Linear probes fitted without one fold of the pictures each; made by `cross_fitted_probe`."""

    head: nn.Linear  # fitted to all pictures; the one to linearise at and to predict with
    heads: tuple[nn.Linear, ...]  # one a fold, fitted to all pictures outside it
    fold: Tensor  # (n,) of each picture, 0..len(heads)-1
    outputs: Tensor  # (n, C) of each picture by the head that has not seen it, in the features' dtype


@usual_torch
def cross_fitted_probe(
    features: Tensor, positions: Tensor, *, folds: int | Tensor = 5, calibrated: bool = False, seed: int = 0
) -> CrossFittedProbe:
    """Ridge probes such that every picture's output comes from a head that has not seen it.

    Given the folds, `outputs[i]` depends on picture i's features alone and on no label or feature of its fold
    otherwise: each fold's head and its damping (and temperature) come from the rest, by exact leave-one-out there.
    A class with a single picture is kept: the head of that picture's fold has never met the class and gives it the
    output 0, what ridge regression says of a class without examples (leave-one-out does the same).

    Args:
        features: (n, d).
        positions: (n,) classes as 0..C-1, each at least once.
        folds: a number of folds, at least two, stratified by class (at most n are made); or (n,) whole numbers, one a
            picture, such as scene numbers, to keep together what belongs together. Two pictures stay outside each.
        calibrated: as in `probe_head`; each head has its own temperature.
        seed: of the assignment to folds.

    Returns:
        Heads and held-out outputs. Cost: that of a `probe_head` on n pictures, and one a fold.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.5], [4.0], [5.0], [4.5]])
        >>> probe = cross_fitted_probe(x, torch.tensor([0, 0, 0, 1, 1, 1]), folds=3)
        >>> len(probe.heads), probe.outputs.argmax(1).tolist()
        (3, [0, 0, 0, 1, 1, 1])
    """
    n, count = len(features), int(positions.max()) + 1
    given = stratified_folds(positions, folds, seed) if not isinstance(folds, Tensor) else folds
    if given.shape != (n,) or given.is_floating_point():
        got = f"{tuple(given.shape)} of {given.dtype}"
        raise InputError(f"folds must be a number, or {n} whole numbers, one a picture; got {got}")
    fold = given.to(features.device).unique(return_inverse=True)[1]
    sizes = fold.bincount().tolist()
    if len(sizes) < 2 or n - max(sizes) < 2:
        raise InputError(
            f"cross-fitting needs two folds at least and two pictures outside each; the folds have {sizes}"
        )
    heads, outputs = [], features.new_empty(n, count)
    for number in range(len(sizes)):
        held = fold == number
        head = _ridge_head(features[~held], positions[~held], count, calibrated).requires_grad_(False)
        outputs[held] = head(features[held])
        heads.append(head)
    whole = _ridge_head(features, positions, count, calibrated).requires_grad_(False)
    return CrossFittedProbe(whole, tuple(heads), fold, outputs)


@usual_torch
def stratified_folds(positions: Tensor, folds: int, seed: int = 0) -> Tensor:
    """Fold of each picture, (n,): every class is dealt out as evenly as can be, and so are all pictures.

    A class of two or more pictures is in two folds at least, so that no fold's rest lacks it.
    """
    if isinstance(folds, bool) or not isinstance(folds, Integral) or folds < 2:
        raise InputError(f"folds is {folds!r}; cross-fitting needs a whole number of at least 2")
    n = len(positions)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = shuffled[positions.cpu()[shuffled].argsort(stable=True)]
    fold = torch.empty(n, dtype=torch.long)
    fold[order] = torch.arange(n) % min(int(folds), n)
    return fold.to(positions.device)


@usual_torch
def pretrained_head(backbone: Backbone, classes: Sequence[int], x: Tensor | None = None) -> nn.Linear:
    """Rows of the network's own pre-trained classifier, as a linear layer on the backbone's features.

    The classifier is found by running: of the linear layers as wide as the features, the one that turns `features(x)`
    into the network's output.

    Args:
        backbone: a network that still has its classifier behind the features; a BackboneError says where it has none.
        classes: rows to keep, in the order of the outputs: positions in the pre-trained classes.
        x: a few normalised inputs to find the classifier with; by default a fixed made-up one.

    Returns:
        A copy, features' width -> len(classes), in the network's dtype. Cost: two forward passes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> head = pretrained_head(Backbone(net, features="1"), [4, 0], torch.ones(2, 4))
        >>> torch.equal(head.weight, net[2].weight[[4, 0]])
        True
    """
    classifier = _find_classifier(backbone, x)
    rows = classifier.out_features
    wrong = [c for c in classes if isinstance(c, bool) or not isinstance(c, Integral) or not 0 <= c < rows]
    if wrong or not len(classes):
        what = f"{wrong[0]!r} is not one of them" if wrong else "none is given"
        raise InputError(f"classes are rows 0..{rows - 1} of the pre-trained classifier, and {what}")
    kept = torch.tensor([int(c) for c in classes], device=classifier.weight.device)
    weight, bias = classifier.weight.detach()[kept], classifier.bias
    return _linear(weight, weight.new_zeros(len(kept)) if bias is None else bias.detach()[kept]).requires_grad_(False)


def refuse_zero_head(head: nn.Linear) -> None:
    """Raise an InputError if all weights of a head are zero: the body below it cannot be linearised."""
    if not bool((head.weight != 0).any()):
        raise InputError(
            "the head's weights are all zero: the body's Jacobian is then exactly zero, and the linearised model stays "
            "a linear probe for ever; use probe_head, cross_fitted_probe, pretrained_head or random_head"
        )


def ridge_head(features: Tensor, targets: Tensor) -> nn.Linear:
    """As `probe_head`, for targets (n, C) of any kind, such as 0 and 1 for each of several labels."""
    return _ridge_layer(features, targets.double(), lambda _: 1.0)


def _ridge_head(features: Tensor, positions: Tensor, outputs: int, calibrated: bool) -> nn.Linear:
    targets = F.one_hot(positions, outputs).double()
    return _ridge_layer(features, targets, lambda loo: 1 / fit_temperature(loo, positions) if calibrated else 1.0)


def _ridge_layer(features: Tensor, targets: Tensor, scale_of: Callable[[Tensor], float]) -> nn.Linear:
    """Ridge regression on targets (n, C), scaled by what its leave-one-out predictions ask for."""
    centre = features.double().mean(0)
    centred = features.double() - centre
    probe = Probe.of(centred, targets)
    damping = probe.best(max(probe.unit, 1e-12) * RELATIVE_DAMPINGS)
    (coef, intercept), scale = probe.weights(damping), scale_of(probe.loo(damping))
    weight = scale * coef.T
    return _linear(weight, scale * intercept - weight @ centre).to(features)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with these values, without drawing random numbers."""
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device=weight.device).to(weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


@torch.no_grad()
def _find_classifier(backbone: Backbone, x: Tensor | None) -> nn.Linear:
    if x is None and backbone.contract.input_size is None:
        raise InputError(
            f"backbone {backbone.name!r} states no input_size; give a few inputs x to find its classifier with"
        )
    given = backbone.sample() if x is None else x
    given = given.to(backbone.device, backbone.dtype if given.is_floating_point() else None)
    phi, output = backbone.features(given), own_modules(backbone.module)(given)
    scores = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    parts = backbone.module.named_modules()
    layers = [(name, part) for name, part in parts if isinstance(part, nn.Linear) and part.in_features == phi.shape[1]]
    for _, part in reversed(layers):
        if isinstance(scores, Tensor) and scores.dim() == 2 and close(part(phi), scores, tolerance(phi)):
            return part
    wide = ", ".join(name for name, _ in layers)
    found = f"of {wide} none gives" if wide else "no linear layer is that wide, so none gives"
    raise BackboneError(
        f"backbone {backbone.name!r} has no linear classifier right behind its {phi.shape[1]} features: {found} the "
        "network's own output; load it with its classifier and name the layer before it as features, or use "
        "probe_head or random_head"
    )
