"""How far a changed network's features have drifted, and two ways to bring them back without labels.

A leak changes what every later layer sees. BatchNorm statistics can follow it in one pass; a short distillation
trains the weights until the features are those of the original network again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tangentune.errors import InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.features import Loaded, own_output
from tangentune.networks.freezing import freeze
from tangentune.pictures.pictures import Pictures

Network = TypeVar("Network", nn.Module, Backbone)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@final
@dataclass(frozen=True)
class Drift:
    """How features differ on the same pictures; 0, 1, 1 when they are equal.

    Attributes:
        relative_square: mean squared distance, in units of the original features' mean squared distance to their mean.
        cosine: mean cosine between a picture's features before and after.
        cka: linear centred kernel alignment (Kornblith et al. 2019, equation 3): blind to rotation and scale, so it is
            what a refitted linear probe can still see.
    """

    relative_square: float
    cosine: float
    cka: float


def feature_drift(before: Backbone, after: Backbone, pictures: Pictures, *, batch_size: int = 64) -> Drift:
    """Compare the features of two networks of one width.

    Args:
        before: the original.
        after: the changed network.
        pictures: at the size of both; three at least, better more than the features are wide.
        batch_size: pictures in one pass.

    Returns:
        Three figures, computed in float64. Cost: one pass through each network and n^2 d.

    Raises:
        InputError: the widths differ, or the pictures are too few or all alike.

    Example:
        >>> pictures = Pictures(torch.eye(3), None, ["a", "b", "c"])
        >>> backbone = Backbone(nn.Linear(3, 2))
        >>> feature_drift(backbone, backbone, pictures).relative_square
        0.0
    """
    one, two = (_features(backbone, pictures, batch_size).double() for backbone in (before, after))
    if one.shape != two.shape:
        message = f"the features are {one.shape[1]} and {two.shape[1]} wide; drift is between networks of one width"
        raise InputError(message)
    return compare_features(one, two)


def compare_features(before: Tensor, after: Tensor) -> Drift:
    """The same from features (n, d) of both.

    Raises:
        InputError: fewer than three pictures, or features before or after that are all alike.
    """
    one, two = (phi.double() - phi.double().mean(0) for phi in (before, after))
    alike = [float(c.norm()) <= 1e-10 * float(phi.double().norm()) for c, phi in ((one, before), (two, after))]
    if len(before) < 3 or any(alike):
        message = f"drift needs three pictures or more whose features differ; there are {len(before)}"
        raise InputError(message)
    grams = one @ one.T, two @ two.T
    cka = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    distance = (before.double() - after.double()).square().sum() / one.square().sum()
    cosine = torch.cosine_similarity(before.double(), after.double(), dim=1).mean()
    return Drift(float(distance), float(cosine), float(cka))


def heal_batchnorm(network: Network, inputs: Iterable[Tensor], *, reference: Network | None = None) -> Network:
    """A copy of a network whose BatchNorm statistics fit it again, from one pass over unlabelled inputs.

    With the original network as `reference`, its trained statistics are kept and moved by what the change makes of
    the batches' own statistics: the difference of the means, the ratio of the variances. Without it they are replaced
    by those of the inputs, which is right only where the inputs are like those of pre-training: on other pictures it
    costs more than a leak does. Few pictures give noisy statistics: use some hundred, in batches of 32 or more.

    Args:
        network: a module or a Backbone, left as it is.
        inputs: batches of normalised network inputs (n, ...), each gone through once and counted by its size; for a
            Backbone `pictures.batches(backbone.contract)`.
        reference: the network before the change, of the same kind, with the same layers.

    Returns:
        The copy, in eval mode. Cost: one forward pass, of both networks where there is a reference.

    Raises:
        InputError: there is no BatchNorm with statistics, no batch, a batch of one picture, or another number of
            BatchNorms in the reference.

    Example:
        >>> healed = heal_batchnorm(nn.BatchNorm1d(1), [torch.tensor([[1.0], [3.0]])])
        >>> healed.running_mean.item(), healed.running_var.item()
        (2.0, 2.0)
    """
    networks = [network] if reference is None else [network, reference]
    modules = [copy.deepcopy(n.module if isinstance(n, Backbone) else n).eval() for n in networks]
    norms = [_tracked_norms(module) for module in modules]
    if not norms[0] or len({len(own) for own in norms}) > 1:
        counts = " and ".join(str(len(own)) for own in norms)
        message = f"healing needs BatchNorm with running statistics, as many in the reference; there are {counts}"
        raise InputError(message)
    trained = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms[-1]]
    _estimate(networks, modules, norms, inputs)
    if reference is not None:
        for norm, before, (mean, var) in zip(*norms, trained, strict=True):
            norm.running_mean += mean - before.running_mean
            # What a norm divides by has its epsilon inside: a channel that is always zero then stays so.
            ratio = (norm.running_var + norm.eps) / (before.running_var + norm.eps)
            norm.running_var = ((var + norm.eps) * ratio - norm.eps).clamp_min(0)
    if isinstance(network, Backbone):
        return _around(network, modules[0], "batch statistics re-estimated")
    return modules[0]


def _tracked_norms(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, _BATCH_NORM) and part.running_mean is not None]


def _estimate(networks: list[Any], modules: list[nn.Module], norms: list[list[Any]], inputs: Iterable[Tensor]) -> None:
    """Replace the statistics of all norms by means over the batches', weighted by size; one pass."""
    everyone = [norm for own in norms for norm in own]
    momenta, seen = [norm.momentum for norm in everyone], 0
    for norm in everyone:
        norm.reset_running_stats()
        norm.train()
    for x in inputs:
        if len(x) < 2:
            message = "a batch of one picture has no variance; give batches of two or more, better of 32"
            raise InputError(message)
        seen += len(x)
        for norm in everyone:
            norm.momentum = len(x) / seen
        for network, module in zip(networks, modules, strict=True):
            run = network.feature_function if isinstance(network, Backbone) else own_output
            like = next(p for p in module.parameters() if p.is_floating_point())
            with torch.no_grad():
                run(module, x.to(like) if x.is_floating_point() else x.to(like.device))
    if not seen:
        message = "no batch was given; BatchNorm statistics need pictures"
        raise InputError(message)
    for norm, momentum in zip(everyone, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@final
@dataclass(frozen=True, eq=False)
class Distilled:
    """A network trained towards another's features.

    Attributes:
        backbone: the trained copy, frozen, in eval mode.
        losses: mean squared distance of the features in each epoch while training, in units of the teacher's mean
            squared distance to their mean.
    """

    backbone: Backbone
    losses: tuple[float, ...]


def distill(
    student: Backbone,
    teacher: Backbone,
    pictures: Pictures,
    *,
    epochs: int = 5,
    learning_rate: float = 2e-5,
    batch_size: int = 32,
    seed: int = 0,
    verbose: int = 0,
) -> Distilled:
    """Train a copy of `student` until its features are those of `teacher`; no label is used.

    Squared error on the features, Adam with cosine decay, all parameters moving, BatchNorm statistics fixed.

    Args:
        student: the network to bring back, left as it is.
        teacher: the network to come back to.
        pictures: at the size of both; source pictures or unlabelled ones of the task.
        epochs: passes over the pictures.
        learning_rate: peak rate of Adam; small, since the start is near: 2e-4 drove MobileNetV2 away first.
        batch_size: largest batch; an epoch is cut into equal batches.
        seed: of the order.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        The trained copy and its losses. Cost: one forward pass of the teacher, `epochs` forward and backward passes.

    Raises:
        InputError: the widths differ, a number is not positive, or training diverged.

    Example:
        >>> pictures = Pictures(torch.eye(4), None, list("abcd"))
        >>> teacher, student = Backbone(nn.Linear(4, 2)), Backbone(nn.Linear(4, 2))
        >>> losses = distill(student, teacher, pictures, epochs=50, learning_rate=0.1).losses
        >>> losses[-1] < 0.01 * losses[0]
        True
    """
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        message = f"epochs={epochs}, batch_size={batch_size} and learning_rate={learning_rate} must be positive"
        raise InputError(message)
    goal = _features(teacher, pictures, batch_size)
    width = _features(student, pictures.select([0]), 1).shape[1]
    if width != goal.shape[1]:
        message = f"the student's features are {width} wide, the teacher's {goal.shape[1]}; they must agree"
        raise InputError(message)
    unit = float((goal - goal.mean(0)).square().sum(1).mean()) or 1.0
    module = copy.deepcopy(student.module).eval().requires_grad_(True)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate)
    per_epoch = -(-len(pictures) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, per_epoch * epochs)
    generator, losses = torch.Generator().manual_seed(seed), []
    with tqdm(total=per_epoch * epochs, desc="distilling", unit="step", disable=not verbose, delay=1.0) as bar:
        for _ in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(pictures), generator=generator).tensor_split(per_epoch):
                batch = pictures.select(rows.numpy())
                (x,) = batch.batches(student.contract, len(rows), student.dtype, student.device)
                loss = (student.feature_function(module, x) - goal[rows]).square().sum(1).mean() / unit
                if not torch.isfinite(loss):
                    message = "distillation diverged; lower the learning rate"
                    raise InputError(message)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += float(loss.detach()) * len(rows) / len(pictures)
                bar.update()
            losses.append(total)
    return Distilled(_around(student, module, "distilled"), tuple(losses))


@torch.no_grad()
def _features(backbone: Backbone, pictures: Pictures, batch_size: int) -> Tensor:
    batches = pictures.batches(backbone.contract, batch_size, backbone.dtype, backbone.device)
    return torch.cat([backbone.features(x) for x in batches])


def _around(backbone: Backbone, module: nn.Module, what: str) -> Backbone:
    """The backbone around other weights: its hash of the weight file no longer holds."""
    contract = replace(backbone.contract, sha256=None, source=f"{backbone.contract.source}; {what}")
    return Backbone.from_loaded(Loaded(freeze(module), contract, backbone.feature_function.extract), backbone.name)
