"""Target and source pictures with explicit features, fitted jointly outright: what the eliminated source must equal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from reference import rebalanced
from torch import Tensor

from tangentune.solvers.source.choice import SourceProblem, SourceSetting
from tangentune.solvers.source.coupling import SCALE
from tangentune.solvers.source.leave_out import SourcePrediction
from tangentune.solvers.source.prior import prior, spectrum
from tangentune.solvers.system import System, build

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class Joint:
    """One problem in both kinds of pictures; every method solves it by one dense bordered system.

    `rows` (n, p), `targets` (n, C), `weights` (n,) of the target pictures; `source` (m, p), `positions` (m,) and
    `given` (m,) of the source pictures; `named` (S, C).
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor
    source: Tensor
    positions: Tensor
    given: Tensor
    named: Tensor
    setting: SourceSetting
    balanced: bool = False  # weights of fewer target pictures are taken anew

    @property
    def source_weights(self) -> Tensor:
        """(m,) of the source pictures."""
        return self.setting.strength * self.setting.class_weights[self.positions] * self.given

    def problem(self) -> SourceProblem:
        """As the solvers take it."""
        kernels = (self.rows @ self.rows.T, self.rows @ self.source.T, self.source @ self.source.T)
        return SourceProblem(*kernels, self.targets, self.weights, self.positions, self.given, self.named)

    def coupling(self) -> Tensor:
        """(S, C) targets of the source classes, class by class; what no target class asks for is shared evenly."""
        classes = [self.given * (self.positions == s) for s in range(len(self.named))]
        sources = [share @ self.source / share.sum() for share in classes]
        plan = torch.zeros(self.named.shape, dtype=F64)
        for c, share in enumerate((self.weights[:, None] * self.targets).T):
            if share.sum() > 0:
                mean = share @ self.rows / share.sum()
                cosines = torch.stack([torch.cosine_similarity(mean, one, dim=0) for one in sources])
                plan[:, c] = torch.exp(-(1 - cosines) / SCALE)
                plan[:, c] /= plan[:, c].sum()
        out = plan / plan.sum(1, keepdim=True)
        for s, names in enumerate(self.named):
            out[s] = names.to(F64) if names.any() else out[s]
        return out

    def predict(self, new: Tensor, labels: Tensor | None = None) -> Tensor:
        """(k, C) scores of new rows: one linear solve in all coefficients and both intercepts."""
        labels = self.coupling() if labels is None else labels
        target, source = self.weights > 0, self.source_weights > 0
        rows = torch.cat([self.rows[target], self.source[source]])
        weights = torch.cat([self.weights[target], self.source_weights[source]])
        n, size = int(target.sum()), len(rows)
        kernel = rows @ rows.T
        kernel[n:, n:] *= 1 + self.setting.deviation
        system = torch.zeros(size + 2, size + 2, dtype=F64)
        system[:size, :size] = kernel + torch.diag(self.setting.damping / weights)
        system[:n, size] = system[size, :n] = system[n:size, size + 1] = system[size + 1, n:size] = 1
        if n == size:  # no source: its intercept stands for nothing
            system[size + 1, size + 1] = 1
        right = torch.zeros(size + 2, self.targets.shape[1], dtype=F64)
        right[:size] = torch.cat([self.targets[target], labels[self.positions[source]]])
        found = torch.linalg.solve(system, right)
        return new @ (rows.T @ found[:size]) + found[size]

    def primal(self, new: Tensor) -> Tensor:
        """The same by ridge regression in explicit features, (phi, 0) of a target and (phi, sqrt(deviation) phi)."""
        root, labels = self.setting.deviation**0.5, self.coupling()
        blank = torch.zeros_like
        ones, zeros = (torch.ones(len(part), 1, dtype=F64) for part in (self.rows, self.source)), blank
        one, two = ones
        above = torch.cat([self.rows, blank(self.rows), one, zeros(one)], 1)
        below = torch.cat([self.source, root * self.source, zeros(two), two], 1)
        features, weights = torch.cat([above, below]), torch.cat([self.weights, self.source_weights])
        penalty = torch.full((features.shape[1],), self.setting.damping, dtype=F64)
        penalty[-2:] = 0
        matrix = features.T @ (weights[:, None] * features) + penalty.diag()
        right = features.T @ (weights[:, None] * torch.cat([self.targets, labels[self.positions]]))
        found = torch.linalg.lstsq(matrix, right, driver="gelsd").solution
        width = self.rows.shape[1]
        return new @ found[:width] + found[-2]

    def without(self, *pictures: int) -> Joint:
        """Some target pictures as if they had never been; their classes stay as columns."""
        kept = torch.ones(len(self.rows), dtype=torch.bool)
        kept[list(pictures)] = False
        weights = rebalanced(self.weights, self.targets, kept) if self.balanced else self.weights
        return replace(self, rows=self.rows[kept], targets=self.targets[kept], weights=weights[kept])

    def leave_out(self, groups: Any, labels: Tensor | None = None) -> Tensor:
        """(n, C) scores of every target picture by fits without its group; coupling made anew unless it is given."""
        out, groups = torch.empty_like(self.targets), torch.as_tensor(groups)
        for group in groups.unique():
            own = (groups == group).nonzero().flatten()
            out[own] = self.without(*own.tolist()).predict(self.rows[own], labels)
        return out

    def loo(self, labels: Tensor | None = None) -> Tensor:
        """(n, C) by n fits."""
        return self.leave_out(torch.arange(len(self.rows)), labels)

    def errors(self, labels: Tensor | None = None) -> Tensor:
        """(n,) squared errors of those."""
        return (self.targets - self.loo(labels)).square().sum(1)

    def reweighed(self, a: Tensor) -> Joint:
        """With these weights (m,) of source pictures in the problem; what they stand for is to be held by hand."""
        plain = replace(self.setting, strength=1.0, class_weights=torch.ones_like(self.setting.class_weights))
        return replace(self, setting=plain, given=a)

    def reduced(self) -> tuple[System, SourcePrediction, Tensor]:
        """The problem that is left in target pictures, by the solvers; and Q of the source."""
        asked, setting = self.problem(), self.setting
        relative = self.given * setting.class_weights[self.positions]
        basis = spectrum(asked.own, relative, self.positions, len(self.named))
        found = prior(basis, setting.damping / setting.strength, setting.deviation)
        said = SourcePrediction(asked.means(), asked.cross @ found.response, self.coupling())
        kernel = asked.kernel - asked.cross @ found.gain @ asked.cross.T
        return build(kernel, self.targets - said.offset, setting.damping, self.weights), said, found.gain


def random_joint(
    n: int = 14,
    m: int = 17,
    *,
    strength: float = 0.4,
    deviation: float = 0.5,
    damping: float = 0.7,
    zeros: bool = False,
    single: bool = False,
    seed: int = 0,
) -> Joint:
    """Three target and four source classes of 6 features, the last source class named as the first target class.

    Args:
        n: target pictures.
        m: source pictures.
        strength: of the setting.
        deviation: of the setting.
        damping: of the setting.
        zeros: whether a target picture and a source class have weight 0.
        single: whether the last target class has one picture.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(7, 6, generator=generator, dtype=F64)
    own, positions = torch.arange(n) % (2 if single else 3), torch.arange(m) % 4
    own[5] = 2
    rows = centres[own] + torch.randn(n, 6, generator=generator, dtype=F64)
    source = centres[3 + positions] + centres[positions % 3] + torch.randn(m, 6, generator=generator, dtype=F64)
    weights = 0.3 + torch.rand(n, generator=generator, dtype=F64)
    given = 0.3 + torch.rand(m, generator=generator, dtype=F64)
    class_weights = torch.tensor([1.0, 0.3, 0.6, 0.8], dtype=F64)
    if zeros:
        weights[3], class_weights[1] = 0, 0
    named = torch.zeros(4, 3, dtype=torch.bool)
    named[3, 0] = True
    setting = SourceSetting(strength, deviation, damping, class_weights)
    targets = torch.nn.functional.one_hot(own, 3).to(F64)
    return Joint(rows, targets, weights, source, positions, given, named, setting)


def new_rows(k: int = 5) -> Tensor:
    """Rows that nothing was fitted to."""
    return torch.randn(k, 6, generator=torch.Generator().manual_seed(9), dtype=F64)
