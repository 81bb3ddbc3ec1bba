"""A map of fixed width: pictures by their features, and by the body's kernel with some landmark pictures.

`phi~(x) = [phi_head(x), K_uu^(-1/2) k_body(u, x)]` for landmarks u (Nystroem): products of such rows are the head's
kernel and the part of the body's that the landmarks span. It is cheap to hold, n D numbers, and to solve, n D^2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import final

import torch
from torch import Tensor

from tangentune.kernels.batches import Batches
from tangentune.kernels.feature_map import (
    FeatureRows,
    TangentMap,
    TangentModel,
    cross_kernel,
    join_rows,
    portion_rows,
    primal,
)
from tangentune.solvers.factorisation import eigh, svd
from tangentune.solvers.landmarks import RANK, inverse_root

GROUP = 256  # pictures that meet the landmarks at once


@final
@dataclass(frozen=True, eq=False)
class LandmarkMap:
    """Rows of the landmarks in a feature map, and the root of their kernel."""

    feature_map: TangentMap
    landmarks: FeatureRows  # (m,)
    root: Tensor  # (m, rank) with `root root^T = K_uu^-1` on what the landmarks span

    @classmethod
    def of(cls, feature_map: TangentMap, landmarks: FeatureRows) -> LandmarkMap:
        """From rows of the landmarks: m^2 products and m^3."""
        return cls(feature_map, landmarks, inverse_root(body_kernel(feature_map, landmarks, landmarks)))

    @property
    def width(self) -> int:
        """D."""
        return self.landmarks.phi.shape[1] + self.root.shape[1]

    def rows(self, own: FeatureRows) -> Tensor:
        """(n, D) float64, of pictures in the coordinates of the feature map: n m products of rows."""
        return torch.cat([own.phi, body_kernel(self.feature_map, own, self.landmarks) @ self.root], 1)

    def primal(self, coef: Tensor) -> TangentModel:
        """The function with weights instead of landmarks, from `coef` (D+1, C), the intercept first.

        `phi~(x)^T theta` is `<theta_head, phi(x)> + sum_j (root theta_body)_j k_body(u_j, x)`.
        """
        wide = self.landmarks.phi.shape[1]
        head, body = coef[1 : wide + 1], self.root @ coef[wide + 1 :]
        index = torch.arange(len(self.landmarks), device=body.device)
        found = primal(self.feature_map, [(index, self.landmarks)], body, coef[0])
        return replace(found, head=head.T.to(found.head).contiguous())


def body_kernel(feature_map: TangentMap, own: FeatureRows, landmarks: FeatureRows) -> Tensor:
    """(n, m) kernel of the body alone."""
    return cross_kernel(feature_map, own, landmarks) - own.phi @ landmarks.phi.T


@torch.no_grad()
def map_rows(landmark_map: LandmarkMap, batches: Batches, count: int) -> Tensor:
    """(n, D) rows of some pictures: one forward and R backward passes, and n m products of rows.

    They are kept in the network's own precision, whose rounding they have anyway. Several batches meet the landmarks at
    once, whose rows have to be formed from pairs of positions each time.
    """
    out = torch.empty(count, landmark_map.width, dtype=landmark_map.feature_map.probes.dtype)
    waiting: list[tuple[Tensor, FeatureRows]] = []

    def meet() -> None:
        found = landmark_map.rows(reduce(join_rows, (rows for _, rows in waiting)))
        out[torch.cat([index for index, _ in waiting]).to(out.device)] = found.to(out)
        waiting.clear()

    for portion in batches():
        waiting.append((portion.rows, portion_rows(landmark_map.feature_map, portion)))
        if sum(len(index) for index, _ in waiting) >= GROUP:
            meet()
    if waiting:
        meet()
    return out


def without(root: Tensor, gone: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
    """Root (m - k, rank) of the map without some landmarks (k,), in the same coordinates, and all that is lost of them.

    The landmarks' own coordinates are `C = (root^+)^T`, since `C C^T = K_uu`; `lost` (rank, l) is orthogonal to them.
    Where they are independent, `C root^T = I`: `root[gone]` is orthogonal to the coordinates of all others. Else what
    the others do not span is found from theirs, rank^3.
    """
    stays = torch.ones(len(root), dtype=torch.bool, device=root.device)
    stays[gone] = False
    if len(root) + lost.shape[1] == root.shape[1]:
        basis = svd(root[gone].T, "the landmarks' coordinates")[0]
        left = root[stays]
        return torch.addmm(left, left @ basis, basis.T, alpha=-1), torch.cat([lost, basis], 1)
    own = _transposed_inverse(root)[0][stays]
    return _transposed_inverse(own)


def _transposed_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`(A^+)^T = A (A^T A)^+`, and a basis of what is orthogonal to the rows of A."""
    values, vectors = eigh(matrix.T @ matrix, "the landmarks' coordinates")
    kept = values > RANK * values[-1:].clamp_min(0)
    found = vectors[:, kept]
    return matrix @ (found / values[kept]) @ found.T, vectors[:, ~kept]
