"""What a fitted model can say about itself: why it answers so, what each picture is worth, which labels look wrong."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.base import AbstractTangentEstimator
from tangentune.estimators.training_set import cross
from tangentune.kernels.feature_map import FeatureRows, collect_rows, own_diagonal
from tangentune.memory import warm_pages
from tangentune.solvers import leave_out as exact
from tangentune.solvers.leave_out import distrusting
from tangentune.solvers.posterior import loo_variance, variance
from tangentune.solvers.reweighting import weight_gradient
from tangentune.solvers.system import System

PORTION = 256  # new pictures whose rows are in memory at once


class Suspect(NamedTuple):
    """A picture whose label may be wrong.

    Attributes:
        id: of the picture.
        position: in `ids_` and every fitted attribute.
        label: given.
        suggestion: what the other pictures say instead.
        probability: of the given label, by the model fitted without the picture; None for numbers.
        score: squared distance of the label from what the others say; 0 agrees, 2 is another class for certain.
    """

    id: str
    position: int
    label: Any
    suggestion: Any
    probability: float | None
    score: float


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """New pictures as the solved problem sees them.

    Attributes:
        kernel: (m, n) with the pictures of the model; less what a source takes of it.
        own: (m,) of each with itself, likewise.
        said: (m, C) what a source says about them; zeros without one.
        rows: theirs.
    """

    kernel: Tensor
    own: Tensor
    said: Tensor
    rows: FeatureRows


class AbstractExplained(AbstractTangentEstimator):
    """Explanations from the solved system; abstract. Pictures are in the order of `ids_`.

    Of a fit with a source, influence, contributions, informativeness and the weight gradient hold the target classes
    that source classes stand for; what is left out (`loo_predictions_`, `leave_out`, `suspects`) is left out of that
    choice as well.
    """

    def influence(self, X: Any) -> NDArray[np.float64]:
        """How much each training picture changed each answer: `f(x) - f_without_i(x)`, exact.

        Args:
            X: m pictures, as in `predict`.

        Returns:
            (m, n, C), for scores (`decision_function` of more than two classes) or predicted numbers. Cost: the rows
            of the pictures, their kernel with the training pictures, and m n (n + C).

        Source: papers.md 7.4; the closed form of leave-one-out, seen from another picture.
        """
        return self._about(X, exact.influence)

    def contributions(self, X: Any) -> NDArray[np.float64]:
        """The additive split of each answer over training pictures: `k(x, x_i) c_i`; they sum to `f(x) - intercept_`.

        Args:
            X: m pictures, as in `predict`.

        Returns:
            (m, n, C). A picture may contribute much and have little influence: others would stand in for it.
        """
        return self._about(X, exact.contributions)

    def leave_out(self, groups: ArrayLike | int) -> NDArray[np.float64]:
        """Predictions for every training picture by the model fitted without its whole group, exact.

        Args:
            groups: (n,) a label for each picture: its patient, camera, day, or fold; or K for K folds, stratified for
                a classifier.

        Returns:
            (n, C) scores, as `loo_predictions_`. Cost n g^2 for the largest group g.

        Raises:
            InputError: there are fewer than two groups, or too few pictures for K folds.
        """
        check_is_fitted(self)
        names = self._folds(int(groups)) if isinstance(groups, int | np.integer) else np.asarray(groups)
        if names.shape != (len(self.ids_),):
            message = f"groups are {names.shape}, but the model stands on {len(self.ids_)} pictures; give one for each"
            raise InputError(message)
        index = np.unique(names, return_inverse=True)[1]
        if index.max() == 0:
            message = "all pictures are in one group; leaving it out would leave none, so name at least two groups"
            raise InputError(message)
        return self._solved().leave_out(torch.from_numpy(index)).cpu().numpy()

    def informativeness(self, X: Any = None) -> NDArray[np.float64]:
        """What each training picture adds that no other says: its smooth unique information, in nats.

        Args:
            X: pictures on which it is judged: `mean_x ||f(x) - f_without_i(x)||^2 / (2 s^2)`; None judges by the
                solution itself, `||f - f_without_i||^2 damping / (2 s^2)`, in the norm of the prior.

        Returns:
            (n,); s^2 is the noise variance, here the weighted mean squared leave-one-out error of an output.

        Source: Harutyunyan et al. (2021), "Estimating informativeness of samples with smooth unique information".
        """
        state = self._solved()
        system, loo = state.system, state.loo
        errors = (state.encoded.targets.to(loo) - loo).square().mean(1)
        noise = max(float(system.weights @ errors / system.weights.sum()), torch.finfo(torch.float64).tiny)
        if X is None:
            return (exact.unique_information(system) * system.damping / (2 * noise)).cpu().numpy()
        found = [(exact.unique_information(system, seen.kernel), len(seen.rows)) for seen in self._crossed(X)]
        mean = sum(value * count for value, count in found) / sum(count for _, count in found)
        return (torch.as_tensor(mean) / (2 * noise)).cpu().numpy()

    def suspects(self, k: int | None = None) -> list[Suspect]:
        """The pictures whose labels look most like mistakes, worst first: a list to look through.

        Each label is held against what all other pictures say in its place, at a damping that does not trust single
        labels.

        Args:
            k: how many; None gives all.

        Returns:
            Suspects. Cost n^3.

        Raises:
            InputError: k is below 1.
        """
        state = self._solved()
        count = len(self.ids_) if k is None else k
        if count < 1:
            message = f"k is {k}; ask for at least one suspect"
            raise InputError(message)
        opinions = replace(state, system=distrusting(state.system)).loo
        given = state.encoded.targets.to(opinions)
        score = (given - opinions).square().sum(1).cpu().numpy()
        worst = np.argsort(-score, kind="stable")[:count]
        suggestions = self._suggested(opinions, given)
        return [
            Suspect(self.ids_[i], int(i), self.targets_[i], suggestions[i], self._probability(int(i)), float(score[i]))
            for i in worst
        ]

    def weight_gradient(self, evaluate: ArrayLike | None = None) -> NDArray[np.float64]:
        """Derivative of the mean squared leave-one-out error by each picture's weight: the dataset derivative.

        Negative where more of a picture would help the others; `reweight` takes steps against it.

        Args:
            evaluate: (n,) shares, or a mask, of the pictures whose error counts; None counts all.

        Returns:
            (n,). Cost n^2 C.

        Raises:
            InputError: the shares do not fit.

        Source: Achille et al. (2022), "DIVA: Dataset Derivative of a Learning Task".
        """
        shares = None if evaluate is None else torch.from_numpy(np.asarray(evaluate, np.float64))
        return weight_gradient(self._solved().system, evaluate=shares).cpu().numpy()

    def ood_score(self, X: Any) -> NDArray[np.float64]:
        """How far each picture lies from all training pictures, as the model sees them: out-of-distribution score.

        The share of the prior variance of the answer that the training pictures leave open, directions outside the
        data included, as the share of training pictures that had a smaller one when they were left out. Both exact.

        Args:
            X: m pictures, as in `predict`.

        Returns:
            (m,); up to 1 a quantile among the training pictures; beyond the most distant of them, 1 plus the relative
            excess.
        """
        system = self._solved().system
        found = [open_share(variance(system, seen.kernel, seen.own), seen.own) for seen in self._crossed(X)]
        return ood_scores(system, torch.cat(found))

    # -- shared by subclasses --------------------------------------------------------------------------------------

    @abstractmethod
    def _suggested(self, opinions: Tensor, given: Tensor) -> NDArray:
        """(n,) labels, or numbers, that the other pictures suggest instead of the given ones."""

    @abstractmethod
    def _probability(self, position: int) -> float | None:
        """Probability of the given label by the model without the picture; None for numbers."""

    @abstractmethod
    def _folds(self, count: int) -> NDArray[np.int64]:
        """(n,) fold of each picture."""

    def _about(self, X: Any, explain: Callable[[System, Tensor], Tensor]) -> NDArray[np.float64]:
        system = self._solved().system
        return torch.cat([explain(system, seen.kernel) for seen in self._crossed(X)]).cpu().numpy()

    def _crossed(self, X: Any, whole: bool = False) -> Iterator[Seen]:
        """New pictures as the solved problem sees them; in portions."""
        check_is_fitted(self)
        pictures = self._load(X, None, self.backbone_, labelled=False, reset=False)
        feature_map, training = self.model_.map, self._with_rows()
        active = torch.from_numpy(self._choice.active).to(training.kernel.device)
        with warm_pages(), torch.no_grad():
            step = len(pictures) if whole else PORTION
            for start in range(0, len(pictures), step):
                source = self._opened(pictures.select(slice(start, start + step)))
                rows = collect_rows(feature_map, partial(source.portions, None), source.count)
                kernel = cross(training, feature_map, self._reading, rows)[:, active]
                yield self._seen(kernel, rows, active)

    def _seen(self, kernel: Tensor, rows: FeatureRows, active: Tensor) -> Seen:
        """New pictures from their kernel (m, n) before a source takes its part."""
        own, source = own_diagonal(self.model_.map, rows), self._training.source
        if source is None:
            return Seen(kernel, own, kernel.new_zeros(len(kernel), len(self.intercept_)), rows)
        crossed, said = source.pictures.kernel(self.model_.map, self._reading, rows), self._solved().encoded.said
        assert said is not None
        taken = crossed @ source.prior.gain
        own = own - (taken * crossed).sum(1)
        return Seen(kernel - taken @ source.cross[active].T, own, crossed @ source.prior.response @ said.labels, rows)


def open_share(variance: Tensor, own: Tensor) -> Tensor:
    """Posterior variance as a share of the prior one `k(x, x)`, (m,); a picture whose rows are all zero has 1."""
    return torch.where(own > 0, variance / own.clamp_min(1e-300), 1.0)


def ood_scores(system: System, shares: Tensor) -> NDArray[np.float64]:
    """Open shares of new pictures as `ood_score` gives them: ranks among those of pictures left out, (m,)."""
    kept = system.weights > 0
    known = np.sort(open_share(loo_variance(system)[kept], system.kernel.diagonal()[kept]).cpu().numpy())
    values = shares.cpu().numpy()
    rank = np.searchsorted(known, values, side="right") / len(known)
    return rank + np.maximum(values / known[-1] - 1, 0)


def check_folds(count: int, n: int) -> None:
    """Refuse what is no number of folds for n pictures."""
    if not 2 <= count <= n:
        message = f"{count} folds of {n} pictures cannot be; use 2 to {n}"
        raise InputError(message)
