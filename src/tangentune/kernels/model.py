"""The fitted function: `f(x) = b + <v, phi(x)> + sum_l <theta_l, M_l psi_l(x)>`, primal, no training picture kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry
from tangentune.jacobian.rows import Tangent, batch_rows
from tangentune.kernels.collect import views_of
from tangentune.kernels.gram import row_chunks
from tangentune.kernels.kernel import inverse_lengths
from tangentune.kernels.metric import Whitening, whiten
from tangentune.networks.parameters import block_of


@dataclass(frozen=True)
class TangentMap:
    """The feature map, frozen after `fit`.

    Attributes:
        tangent: network and parameters that move.
        probes: (R, d) directions in feature space.
        mirrored: features and rows are means over a picture and its mirror image.
        metric: whitening of each parameter's rows; empty for power 0.
        block_scales: scale of each block's kernel.
        body_scale: scale of the body's kernel against the head's.
        normalize: head rows and body rows have length one.
        length_scales: scale of each block in the lengths of body rows.
    """

    tangent: Tangent
    probes: Tensor
    mirrored: bool
    metric: dict[str, Whitening]
    block_scales: dict[str, float]
    body_scale: float
    normalize: bool
    length_scales: dict[str, float]


@dataclass(frozen=True)
class TangentModel:
    """A feature map with its weights: `intercept` (C,), `head` (C, d), `body` name -> (C, row width)."""

    map: TangentMap
    intercept: Tensor
    head: Tensor
    body: dict[str, Tensor]


def accumulate(entry: Entry, coefficients: Tensor, out: Tensor | None = None) -> Tensor:
    """`coefficients^T rows` (C, row width), rows formed chunk by chunk; adds to `out` if given."""
    if out is None:
        out = torch.zeros(coefficients.shape[1], entry.width, dtype=coefficients.dtype, device=coefficients.device)
    for columns, part in row_chunks(entry):
        out[:, columns] += coefficients.T @ part
    return out


def decision(model: TangentModel, x: Tensor) -> Tensor:
    """Scores (n, C), float64, of one batch of network inputs.

    Cost: one forward and R backwards, as in fitting, and C multiply-adds a row entry.
    """
    feature_map = model.map
    part = batch_rows(feature_map.tangent, views_of(x, feature_map.mirrored), feature_map.probes)
    phi = part.phi
    if feature_map.normalize:
        phi = phi * inverse_lengths(phi.double().square().sum(1)).to(phi)[:, None]
    scores = model.intercept + (phi @ model.head.T).double()
    if not model.body:
        return scores
    body, squares = torch.zeros_like(scores), torch.zeros_like(scores[:, 0])
    for name, weights in model.body.items():
        entry = part.entries[name]
        if name in feature_map.metric:
            entry = whiten(entry, feature_map.metric[name])
        for columns, rows in row_chunks(entry):
            body += (rows @ weights[:, columns].T).double()
        if feature_map.normalize:
            scale = feature_map.length_scales[block_of(name)] / len(feature_map.probes)
            squares += scale * entry.squared_norms()
    return scores + (body * inverse_lengths(squares)[:, None] if feature_map.normalize else body)
