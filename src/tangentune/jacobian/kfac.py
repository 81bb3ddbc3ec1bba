"""K-FAC and EKFAC of a linearised network's Gauss-Newton matrix `J^T J`: a pre-conditioner and a quadratic form.

Martens and Grosse (2015); Grosse and Martens (2016) for convolutions; Eschenhagen et al. (2023), "expand", for
shared positions; George et al. (2018) for EKFAC. With frozen weights and the squared loss nothing here depends on
labels, damping or the tangent: computed once, it serves every damping.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor

from tangentune._files import read_tensors, write_tensors
from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.kfac_factors import KINDS, EigenBlock, FactorSums, decompose, second_moments_between
from tangentune.jacobian.kfac_passes import Cotangents, factor_sums, plan, second_moments
from tangentune.jacobian.linearization import Linearization
from tangentune.memory import progress
from tangentune.networks.network_function import Inputs

__all__ = ["KroneckerCurvature", "kfac", "merge"]

_PARTS = ("a", "s", "left", "right", "values")


@final
@usual_torch
class KroneckerCurvature:
    """Block-diagonal model of `J^T J`, in the sum convention: over samples and outputs, nothing divided.

    Made by `kfac`, `merge` or `load`. Immutable.

    Attributes:
        kind: "kfac", "ekfac" or "block_diagonal".
        sums: factors by parameter name, whose eigendecompositions are `blocks`.
    """

    def __init__(self, kind: str, sums: Mapping[str, FactorSums], blocks: Mapping[str, EigenBlock]):
        self.kind, self.sums, self.blocks = kind, dict(sums), dict(blocks)

    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`M v` by parameter name."""
        return self._apply(v, lambda coordinates, values: coordinates * values)

    def solve(self, v: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """`(M + damping I)^{-1} v`; cost of two small matrix products a block, at any positive damping."""
        if not damping > 0:
            raise InputError(f"damping is {damping}; the factors are singular, so it must be positive")
        return self._apply(v, lambda coordinates, values: coordinates / (values + damping))

    def quad(self, v: Mapping[str, Tensor]) -> float:
        """`v^T M v`: about `||J v||^2`, how far a tangent moves the outputs, summed in float64."""
        self._refuse_other(v)
        return sum(block.quad(v[name]) for name, block in self.blocks.items())

    def trace(self) -> float:
        """Trace of M, about `||J||_F^2`, summed in float64."""
        blocks = self.blocks.values()
        return sum(float(b.values.double().sum()) * (torch.Size(b.layout).numel() / b.values.numel()) for b in blocks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, in one move; StoreError if it cannot be written."""
        tensors, facts = {}, {}
        for name, block in self.blocks.items():
            held = {**vars(self.sums[name]), **vars(block)}
            tensors |= {f"{part}:{name}": held[part] for part in _PARTS if held[part] is not None}
            facts[name] = {"count": self.sums[name].count, "layout": block.layout}
        write_tensors(path, "curvature", {"curvature": self.kind, "blocks": facts}, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KroneckerCurvature:
        """Read what `save` wrote, bit for bit; StoreError if there is no such file, or it holds something else."""
        words, tensors = read_tensors(path, "curvature")
        sums, blocks = {}, {}
        for name, facts in words["blocks"].items():
            part = {key: tensors.get(f"{key}:{name}") for key in _PARTS}
            sums[name] = FactorSums(part["a"], part["s"], facts["count"])
            blocks[name] = EigenBlock(part["left"], part["right"], tensors[f"values:{name}"], tuple(facts["layout"]))
        return cls(words["curvature"], sums, blocks)

    def _apply(self, v: Mapping[str, Tensor], change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        self._refuse_other(v)
        return {name: block.apply(v[name], change) for name, block in self.blocks.items()}

    def _refuse_other(self, v: Mapping[str, Tensor]) -> None:
        other = self.blocks.keys() ^ v.keys()
        wrong = [n for n, b in self.blocks.items() if n in v and v[n].numel() != torch.Size(b.layout).numel()]
        if other or wrong:
            first = sorted([*other, *wrong])[0]
            raise InputError(f"the vector and the curvature belong to different parameters: look at {first!r}")


@usual_torch
def kfac(
    linearization: Linearization,
    batches: Iterable[Inputs],
    *,
    kind: str = "kfac",
    cotangents: str = "exact",
    draws: int = 1,
    seed: int = 0,
    verbose: int = 0,
) -> KroneckerCurvature:
    """Kronecker-factored `J^T J` of a linearised network.

    Weights of linear layers and convolutions get `A (x) S / count`, with sums over all samples and positions of
    primal inputs `a a^T` and output cotangents `g g^T` (K-FAC expand; a module used twice adds its uses as further
    positions). Weight and bias are separate blocks. Vectors (biases, scales and shifts of norms) and depthwise filters
    get their exact block, except that "block_diagonal" keeps only the diagonal of a vector's. Parameters whose use
    has no layer rule, does not keep samples apart, or would need a factor of more than 8192 rows (a vector's: 4096)
    get a multiple of the identity with the right trace, estimated by random signs.

    Args:
        linearization: the network.
        batches: inputs; read twice by "ekfac", so then a list or another reusable collection.
        kind: "kfac"; "ekfac": K-FAC's eigenvectors, eigenvalues the exact second moments along them; "block_diagonal":
            one block per output unit, S reduced to its diagonal.
        cotangents: "exact": one backward pass per output; "signs": `draws` passes with random signs of a `seed`, right
            on average. Never residuals: labels do not enter.
        draws: passes a batch of random signs.
        seed: of the signs.
        verbose: 1 shows progress.

    Returns:
        The curvature in the network's precision, its sums in float64. Cost: one forward and C (or `draws`) backwards
        a batch, twice for "ekfac", and one eigendecomposition of every factor.

    Example:
        >>> from torch import nn
        >>> lin, x = Linearization(nn.Linear(3, 2)), torch.randn(5, 3)
        >>> curvature = kfac(lin, [x])
        >>> v = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        >>> abs(curvature.quad(v) / lin.jvp(x, v).square().sum().item() - 1) < 1e-5   # exact for a linear network
        True
    """
    if kind not in KINDS or cotangents not in ("exact", "signs") or draws < 1:
        may = f"kind {', '.join(KINDS)}, cotangents exact or signs, and at least one draw"
        raise InputError(f"kfac takes {may}; got {kind!r}, {cotangents!r}, {draws}")
    items = iter(batches)
    if kind == "ekfac" and items is batches:
        raise InputError("ekfac reads the batches twice; give a list, or another collection that can be read again")
    first = next(items, None)
    if first is None:
        raise InputError("kfac got no batches")
    treatment = plan(linearization, first)

    def given() -> Cotangents:
        return Cotangents(cotangents == "exact", draws, torch.Generator().manual_seed(seed))

    def shown(batches: Iterable[Inputs], what: str) -> Iterable[Inputs]:
        return progress(batches, label=what, total=None, unit="batch", verbose=verbose)

    sums = factor_sums(linearization, treatment, given(), shown(chain([first], items), "factors"))
    point = linearization.point()
    blocks = {name: decompose(s, kind, treatment.layouts[name], point[name].dtype) for name, s in sums.items()}
    if kind == "ekfac":
        moments = second_moments(linearization, treatment, given(), shown(batches, "second moments"), blocks)
        blocks |= {name: blocks[name].with_values(value) for name, value in moments.items()}
    return KroneckerCurvature(kind, sums, blocks)


@usual_torch
def merge(curvatures: Sequence[KroneckerCurvature]) -> KroneckerCurvature:
    """Curvature of several shards of data, or tasks, taken together.

    Sums of factors add, so K-FAC of shards merges to K-FAC of all data. EKFAC's second moments live in each shard's
    own eigenvectors; they are carried over into the new ones as the diagonal of their sum, which is exact only where
    those agree.
    """
    if not curvatures:
        raise InputError("merge needs at least one curvature")
    first = curvatures[0]
    for other in curvatures[1:]:
        if other.kind != first.kind or _outline(other) != _outline(first):
            raise InputError("only curvatures of one kind and of the same parameters can be merged")
    sums, blocks = {}, {}
    for name, block in first.blocks.items():
        sums[name] = first.sums[name]
        for other in curvatures[1:]:
            sums[name] = sums[name] + other.sums[name]
        blocks[name] = decompose(sums[name], first.kind, block.layout, block.values.dtype)
        if first.kind == "ekfac" and None not in (sums[name].a, sums[name].s):
            shards = [other.blocks[name] for other in curvatures]
            blocks[name] = blocks[name].with_values(second_moments_between(shards, blocks[name]))
    return KroneckerCurvature(first.kind, sums, blocks)


def _outline(curvature: KroneckerCurvature) -> dict[str, Any]:
    return {
        name: (b.layout, curvature.sums[name].a is None, curvature.sums[name].s is None)
        for name, b in curvature.blocks.items()
    }
