"""The training loop of all methods that learn by gradient steps, and with it the training of a network with heads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Literal, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.errors import BackboneError, diverged
from tangentune.memory import progress
from tangentune.methods.fine_tuning.labelled import LabelledPictures, for_head, mean_features
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart
from tangentune.methods.fine_tuning.validation import Validation, Watch
from tangentune.networks.backbone import AnyBackbone, Backbone, as_backbone
from tangentune.networks.freezing import frozen_copy
from tangentune.networks.heads import probe_head
from tangentune.networks.parameters import group_blocks
from tangentune.networks.passes import PlainPointwise
from tangentune.pictures.pictures import Pictures

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def trainable_copy(backbone: AnyBackbone, pictures: Pictures, frozen: float) -> Backbone:
    """A deep copy in eval mode, laid out for these pictures, whose parameters take gradients.

    A share `frozen` of the blocks, the first ones, do not: no backward pass goes through them.
    """
    tuned = copy.deepcopy(as_backbone(backbone))
    if pictures.pixels.ndim == 4:  # a quarter faster on a processor, the same up to rounding
        tuned.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    parameters = dict(tuned.module.eval().named_parameters())
    blocks = list(group_blocks(parameters).values())
    still = {name for block in blocks[: int(frozen * len(blocks))] for name in block}
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.is_floating_point() and name not in still)
    return tuned


def start_head(tuned: Backbone, data: LabelledPictures, start: HeadStart, flip: bool, seed: int) -> nn.Linear:
    """The head before the first step, in the features' dtype and on their device; `flip` averages a probe's features.

    The data's positions are 0..C-1, the last of them at least once; the seed is that of a random head.
    """
    if start in ("probe", "calibrated_probe"):
        few, some = for_head(data.pictures, data.positions.cpu().numpy())
        features = mean_features(tuned, few, 64, flip)
        return probe_head(features, data.positions[some], calibrated=start == "calibrated_probe")
    width = mean_features(tuned, data.pictures.select([0]), 1, False)
    head = nn.Linear(width.shape[1], int(data.positions.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    bound = 0.0 if start == "zero" else width.shape[1] ** -0.5  # PyTorch's own scale
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head.to(width)


class LoopSettings(Protocol):
    """What the loop reads of a method's settings."""

    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102
    @property
    def schedule(self) -> str: ...  # noqa: D102


@final
@dataclass(frozen=True, eq=False)
class Training:
    """Gradient steps on batches of pictures, which every epoch cuts anew."""

    count: int  # pictures of an epoch
    # leaves the gradient of a batch, by rows and generator of its views; what it returns is summed over the epoch
    learn: Callable[[Tensor, torch.Generator], float]
    # makes the optimiser after the first gradient. Each of its groups holds a `factor`
    optimiser: Callable[[], torch.optim.Optimizer]
    rate: float  # peak rate of a group of factor 1
    name: str  # what the progress bar says

    def epochs(
        self, settings: LoopSettings, generators: Iterable[torch.Generator], verbose: int = 0
    ) -> Iterator[float]:
        """Train as far as this is gone through: the sum over each epoch, whose random numbers are its generator's."""
        per_epoch = math.ceil(self.count / settings.batch_size)
        steps, step, optimiser = per_epoch * settings.epochs, 0, None
        with progress(label=self.name, total=steps, unit="step", verbose=verbose) as bar:
            for _, generator in zip(range(settings.epochs), generators, strict=False):
                total = 0.0
                for rows in torch.randperm(self.count, generator=generator).tensor_split(per_epoch):
                    total += self.learn(rows, generator)
                    optimiser = self.optimiser() if optimiser is None else optimiser
                    rate = self.rate * rate_factor(step, steps, settings.warmup, settings.schedule)
                    for group in optimiser.param_groups:
                        group["lr"] = rate * group["factor"]
                    optimiser.step()
                    optimiser.zero_grad()
                    step += 1
                    bar.update()
                yield total


def tune(
    tuned: Backbone,
    heads: tuple[nn.Linear, ...],
    loss: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    kept_aside: LabelledPictures | None,
    settings: FineTuneSettings,
    name: str,
    verbose: int,
) -> tuple[tuple[float, ...], Validation | None]:
    """Train a backbone and its heads in place, then freeze them: mean loss of each epoch, and the validation.

    `loss` is the mean of some of the `count` pictures, given their rows and the generator of their random views. The
    pictures kept aside judge each epoch by the first head, and may end training.
    """
    parts, losses = (tuned.module, *heads), []
    watch = None if kept_aside is None else Watch(tuned, heads, kept_aside, settings.patience)

    def learn(rows: Tensor, generator: torch.Generator) -> float:
        with PlainPointwise():
            value = loss(rows, generator)
        mean = float(value.detach())  # the one number of a step that is waited for
        if not math.isfinite(mean):
            raise diverged(len(losses) + 1)
        value.backward()
        return mean * len(rows) / count

    training = Training(count, learn, partial(_optimiser, tuned.module, heads, settings), settings.learning_rate, name)
    _set_modes(tuned.module, settings.batchnorm)
    for mean in training.epochs(settings, repeat(torch.Generator().manual_seed(settings.seed)), verbose):
        losses.append(mean)
        if watch is not None and watch.is_enough():
            break
        _set_modes(tuned.module, settings.batchnorm)
    if not all(bool(torch.isfinite(p).all()) for part in parts for p in part.parameters()):
        raise diverged(len(losses))
    validation = None if watch is None else watch.result()
    tuned.module = frozen_copy(tuned.module)  # without what its modules kept of the last pass
    for head in heads:
        head.requires_grad_(False)
    return tuple(losses), validation


def loss_of(
    logits: Tensor, positions: Tensor, settings: FineTuneSettings, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Mean loss of a batch of (n, C) logits, or ("none") that of each of its rows.

    Cross-entropy in nats, or `1/2 sum_c (logit_c - target_scale [c = class])^2`.
    """
    if settings.loss == "cross_entropy":
        return F.cross_entropy(logits, positions, label_smoothing=settings.label_smoothing, reduction=reduction)
    squares = (logits - settings.target_scale * F.one_hot(positions, logits.shape[1]).to(logits)).square()
    return 0.5 * (squares.sum() / len(logits) if reduction == "mean" else squares.sum(1))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The layers that normalise by statistics of the batch while they are in training mode."""
    return [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]


def rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """What the peak learning rate is multiplied by at `step` of `steps` (0-based).

    Example:
        >>> [round(rate_factor(s, 6, 1 / 3, "cosine"), 3) for s in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (steps - rising)))


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """What the rate of each parameter is multiplied by: `decay` in the last block, `decay ** 2` in the one before.

    Names are in network order, the head (factor 1) not among them; decay is in (0, 1].

    Example:
        >>> layer_factors(["layers.0.weight", "layers.1.weight", "layers.1.bias"], 0.5)
        {'layers.0.weight': 0.25, 'layers.1.weight': 0.5, 'layers.1.bias': 0.5}
    """
    blocks = group_blocks(names).values()
    return {name: decay ** (len(blocks) - k) for k, members in enumerate(blocks) for name in members}


def _optimiser(module: nn.Module, heads: Iterable[nn.Linear], settings: FineTuneSettings) -> torch.optim.Optimizer:
    """Made after the first backward pass, which tells the parameters that the features depend on."""
    names = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    if not names:
        raise BackboneError("the backbone's `features` must use the module that it is given; it uses another")
    factors = layer_factors(names, settings.layer_decay)
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:  # whole numbers, which a module may hold as parameters
            continue
        by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    by_factor.setdefault(1.0, []).extend(parameter for head in heads for parameter in head.parameters())
    groups = [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def _set_modes(module: nn.Module, batchnorm: str) -> None:
    module.train()
    if batchnorm == "eval":
        for part in batch_norms(module):
            part.eval()
