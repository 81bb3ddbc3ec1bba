"""Gradient features: a linear model of the last layers' first-order change, beside the linear probe."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.errors import BackboneError, InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import TaskVector
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.classifier import Classifier, spent
from tangentune.methods.fine_tuning.labelled import class_positions, mean_features, network_input, view_outputs
from tangentune.methods.gradient_features.settings import GradientFeatureSettings
from tangentune.methods.gradient_features.training import HEAD, train
from tangentune.networks.backbone import AnyBackbone, Backbone, as_backbone
from tangentune.networks.heads import probe_head
from tangentune.networks.split_network import SplitNetwork, parameters_above, split_network
from tangentune.pictures.pictures import Pictures

_BATCH = 64


@final
@usual_torch
@dataclass(frozen=True, eq=False)
class GradientFeatures(Classifier):
    """The fitted model `g(x) = w1^T f(x) + b + om_bar^T J_theta2(x) w2`, and what training it cost.

    Attributes:
        backbone: as given, not copied.
        linearization: the whole backbone linearised in theta2 (and the head) around om_bar.
        tangent: what was learnt, by parameter name: w2, and under "head.weight" and "head.bias" what w1 and b have
            moved from om_bar and its bias. The gradient variant has no head, the activation variant no w2.
        frozen_head: om_bar with its bias; shares no memory with anything else.
        settings: how it was trained.
        losses: mean training loss of each epoch; cross-entropy in nats.
        cut: block whose inputs were kept in training; empty where nothing was kept, or the features themselves were.
        problem: why nothing was kept although it was asked for; else empty.
    """

    linearization: Linearization
    tangent: TaskVector
    frozen_head: nn.Linear
    settings: GradientFeatureSettings
    losses: tuple[float, ...]
    cut: str
    problem: str

    @property
    def head(self) -> nn.Linear | None:
        """A linear layer with w1 and b; None for the gradient variant."""
        if self.settings.variant == "gradient":
            return None
        head = copy.deepcopy(self.frozen_head)
        with torch.no_grad():
            head.weight.add_(self.tangent["head.weight"])
            head.bias.add_(self.tangent["head.bias"])
        return head

    def logits(self, pictures: Pictures, *, batch_size: int = _BATCH, flip: bool = False) -> Tensor:
        """(n, C) outputs g; `flip` averages them over each picture and its mirror image.

        Cost: a plain forward pass up to theta2, a dual one above: about three plain ones.
        """
        return view_outputs(self._outputs, self.backbone, pictures, batch_size, flip).mean(0)

    def _outputs(self, x: Tensor) -> Tensor:
        product = self.linearization.jvp if self.settings.variant == "gradient" else self.linearization
        return product(x, self.tangent)


@usual_torch
def fit_gradient_features(
    backbone: AnyBackbone,
    pictures: Pictures,
    settings: GradientFeatureSettings | None = None,
    *,
    head: nn.Linear | None = None,
    verbose: int = 0,
) -> GradientFeatures:
    """Fit gradient features (Mu, Liang, Li 2020, ICLR) by stochastic training.

    With both terms, g is the first-order expansion of `om^T f` in (theta2, om) around om_bar. It starts at
    `w1 = om_bar, w2 = 0`, where it equals the activation model exactly.

    Args:
        backbone: left as it is.
        pictures: at the backbone's size, with class labels.
        settings: where to cut, rates and the rest; None takes the defaults.
        head: om_bar, features' width -> C, copied; None takes the linear probe of the features (`probe_head`).
        verbose: 1 shows a progress bar with the time left.

    Returns:
        The model. Cost: one forward pass (two with `flip`) for om_bar and the kept activations; then at every step a
        dual forward and a backward pass of the part above the cut. A cut that cannot be made is named in `problem`.

    Raises:
        InputError: labels are missing or of one class only, there is no such block, the head is zero or of another
            shape, or training diverged (`DivergedError`).
        BackboneError: the pictures do not fit the contract or the features hold NaN or infinity.

    Example:
        >>> import numpy as np
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> net = Backbone(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)))
        >>> model = fit_gradient_features(net, train, GradientFeatureSettings(cut="2", epochs=2))
        >>> model.cut, sorted(model.tangent)
        ('2', ['2.bias', '2.weight', 'head.bias', 'head.weight'])
    """
    backbone, settings = as_backbone(backbone), settings or GradientFeatureSettings()
    began = spent()
    classes, labels = class_positions(pictures)
    flip = settings.flip and pictures.pixels.ndim == 4
    with warm_pages():
        sample = network_input(backbone, pictures.pixels[[0, -1]])
        width = backbone.features(sample).shape[1]
        theta2 = [] if settings.variant == "activation" else parameters_above(backbone, settings.cut, sample)
        parts, problem = _cut(backbone, theta2, sample) if settings.cache else (None, "")
        kept = None if parts is None else _keep(parts, backbone, pictures, flip)
        positions = torch.from_numpy(labels).to(backbone.device)
        above = backbone if parts is None else parts.above
        if head is None:
            features = mean_features(backbone, pictures, _BATCH, flip) if kept is None else _features(above, kept)
            head = probe_head(features, positions)
        frozen = _copied(head, width, len(classes), backbone)
        names = [*theta2, *(() if settings.variant == "gradient" else HEAD)]
        whole = Linearization(backbone, names, frozen)
        training = whole if parts is None else Linearization(above, names, frozen)

        def views(rows: Tensor) -> list[Tensor]:
            if kept is not None:
                return [view[rows] for view in kept]
            x = network_input(backbone, pictures.pixels_at(rows))
            return [x, x.flip(-1)] if flip else [x]

        losses = train(training, views, positions, settings, flip, verbose)
    cut, tangent = "" if parts is None else parts.block, training.task_vector()
    return GradientFeatures(backbone, classes, *spent(began), whole, tangent, frozen, settings, losses, cut, problem)


def _cut(backbone: Backbone, theta2: list[str], sample: Tensor) -> tuple[SplitNetwork | None, str]:
    """Both parts of the network, or why there are none."""
    try:
        return split_network(backbone, theta2, sample), ""
    except BackboneError as error:
        return None, f"every step ran the whole network: {error}"


def _keep(parts: SplitNetwork, backbone: Backbone, pictures: Pictures, flip: bool) -> list[Tensor]:
    """(n, ...) activations at the cut of all pictures, and of their mirror images."""
    batches = (network_input(backbone, pixels) for pixels in pictures.pixels.split(_BATCH))
    rows = [[parts.below(view) for view in ([x, x.flip(-1)] if flip else [x])] for x in batches]
    return [torch.cat(view) for view in zip(*rows, strict=True)]


@torch.no_grad()
def _features(above: Backbone, kept: list[Tensor]) -> Tensor:
    """(n, d) features, averaged over the views."""
    return torch.stack([torch.cat([above.features(z) for z in view.split(_BATCH)]) for view in kept]).mean(0)


def _copied(head: nn.Linear, width: int, outputs: int, backbone: Backbone) -> nn.Linear:
    """A frozen copy of the head, where and as the backbone's parameters are."""
    if (head.in_features, head.out_features) != (width, outputs) or head.bias is None:
        message = f"head must be a linear layer with an intercept from {width} features to {outputs} classes, not "
        raise InputError(message + str(head))
    return copy.deepcopy(head).requires_grad_(False).to(backbone.device, backbone.dtype)
