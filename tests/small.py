"""A small float64 network and a few pictures with a signal, for tests of the estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cases import seeded
from numpy.typing import NDArray
from reference import dense_rows, unit
from torch import Tensor, nn

from tangentune import Backbone, TangentClassifier
from tangentune.networks.parameters import block_of

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
FIXED: dict[str, Any] = {
    "metric_power": 0, "probe_space": "isotropic", "body_scale": 0.3, "damping": 0.05, "normalize": False,
    "outer_steps": 0, "augment": None,
}  # fmt: skip


def network() -> nn.Module:
    """Convolutions, norms and a depthwise layer; 6 features, 6 blocks with parameters."""
    return seeded(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 5, 3, stride=2, padding=1, groups=5),
            nn.GELU(),
            nn.Conv2d(5, 7, 1),
            nn.GroupNorm(7, 7),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(28, 6),
        )
    )


def backbone() -> Backbone:
    """The network with its contract."""
    return Backbone(network(), input_size=(3, 8, 8), mean=MEAN, std=STD)


def pictures(n: int = 40, classes: int = 4, seed: int = 0) -> tuple[NDArray, NDArray]:
    """uint8 pictures (n, 3, 8, 8) and labels: each class has a bright corner of its own, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = rng.integers(0, 160, (n, 3, 8, 8))
    for i, label in enumerate(labels):
        row, column = 4 * (label // 2 % 2), 4 * (label % 2)
        x[i, label % 3, row : row + 4, column : column + 4] += 70
    return x.astype(np.uint8), labels


def normalised(x: NDArray) -> Tensor:
    """What the network sees."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    return (torch.from_numpy(x).double() / 255 - mean) / std


def fitted_features(clf: TangentClassifier, x: Tensor) -> Tensor:
    """Explicit feature vectors (n, d + P) of a fitted model, from its frozen settings and dense rows."""
    feature_map, module = clf.model_.map, clf.backbone_.module
    probes = torch.from_numpy(clf.probes_)
    views = [x, x.flip(-1)] if feature_map.mirrored else [x]
    phi = torch.stack([module(view) for view in views]).mean(0)
    body, plain = [], []
    per_view = [dense_rows(module, view, probes) for view in views]
    for name in feature_map.tangent.names:
        rows = torch.stack([rows[name] for rows in per_view]).mean(0)
        if name in feature_map.metric:
            metric = feature_map.metric[name]
            groups, outputs, inputs = len(metric.left), metric.left.shape[1], metric.right.shape[1]
            shaped = rows.reshape(*rows.shape[:2], groups, outputs, inputs)
            rows = torch.einsum("gop,nrgoi,giq->nrgpq", metric.left, shaped, metric.right)
        block = block_of(name)
        body.append((feature_map.block_scales[block] / len(probes)) ** 0.5 * rows.flatten(1))
        plain.append((feature_map.length_scales[block] / len(probes)) ** 0.5 * rows.flatten(1))
    if not body:
        return unit(phi) if feature_map.normalize else phi
    tangent = torch.cat(body, 1)
    if feature_map.normalize:
        phi, tangent = unit(phi), tangent / torch.cat(plain, 1).norm(dim=1, keepdim=True)
    return torch.cat([phi, feature_map.body_scale**0.5 * tangent], 1)
