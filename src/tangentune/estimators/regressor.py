"""The regressor: numbers instead of classes, with error bars."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.edits import AbstractEdited
from tangentune.estimators.explanations import check_folds
from tangentune.estimators.fitted import Encoded, State
from tangentune.estimators.outer_steps import Expansion
from tangentune.kernels.feature_map import own_kernel
from tangentune.kernels.stages import FitSettings
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures, numeric_labels
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.posterior import covariance, noise_variance, sample, variance


@final
class TangentRegressor(RegressorMixin, AbstractEdited):
    """Fine-tune a whole pre-trained network for regression by solving one least-squares problem.

    Arguments and attributes as for `TangentClassifier`, without classes: `class_weight` must stay None,
    `loo_predictions_` is (n, k) for k targets and `loo_score_` their R^2.

    Example:
        >>> from torch import nn
        >>> from tangentune import Backbone
        >>> net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 16))
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
        >>> reg = TangentRegressor(Backbone(net)).fit(x, x[:, 0] ** 2)
        >>> reg.predict(x[:2]).shape, reg.loo_predictions_.shape
        ((2,), (60, 1))
    """

    def _read_labels(self, pictures: Pictures) -> NDArray:
        if pictures.labels is None:
            message = "requires y to be passed, but the target y is None; a regressor needs a number for each picture"
            raise InputError(message)
        if self.class_weight is not None:
            message = "class_weight belongs to classifiers; a regressor takes sample_weight in fit"
            raise InputError(message)
        values = numeric_labels(pictures.labels, pictures.ids)
        if not np.isfinite(values).all():
            message = f"the target of picture {pictures.ids[int(np.argmax(~np.isfinite(values)))]} is NaN or infinite"
            raise InputError(message)
        return values

    def _check_options(self, labels: NDArray) -> None:
        if self.likelihood != LEAST_SQUARES:
            message = f"likelihood={self.likelihood!r} belongs to classifiers; leave it at {LEAST_SQUARES!r}"
            raise InputError(message)

    def _check_source_options(self) -> None:
        message = "source= belongs to classifiers; a regressor has no classes that source classes could stand for"
        raise InputError(message)

    def _check_labels(self, labels: NDArray, ids: list[str]) -> list[str]:
        return []

    def _encode(self, labels: NDArray, sample_weight: NDArray) -> Encoded:
        targets = torch.from_numpy(labels.reshape(len(labels), -1))
        return Encoded(None, targets, torch.from_numpy(sample_weight))

    def _outputs(self, pictures: Pictures) -> int:
        return 1 if pictures.labels is None or pictures.labels.ndim == 1 else pictures.labels.shape[1]

    def _moving_seconds(self, backbone: Backbone, pictures: Pictures, settings: FitSettings) -> float:
        return 0.0

    def _expand(
        self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int
    ) -> tuple[Expansion | None, list[dict[str, float]]]:
        if steps not in ("loo", 0):
            message = f"outer_steps={steps} needs class labels; leave it at 0 for a regressor"
            raise InputError(message)
        return None, []

    def _describe_loo(self, state: State) -> None:
        targets = state.encoded.targets.numpy()
        self.loo_predictions_ = state.loo.cpu().numpy()
        self.noise_ = noise_variance(state.system).cpu().numpy()
        self.loo_score_ = float(r2_score(targets, self.loo_predictions_)) if len(targets) > 1 else float("nan")
        self.flat_ = self.targets_.ndim == 1

    def _suggested(self, opinions: Tensor, given: Tensor) -> NDArray:
        return self._as_given(opinions.cpu().numpy())

    def _probability(self, position: int) -> float | None:
        return None

    def _folds(self, count: int) -> NDArray[np.int64]:
        check_folds(count, len(self.ids_))
        return np.random.default_rng(0).permutation(len(self.ids_)) % count

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Predicted targets, (m,) or (m, k) as y was in `fit`, with error bars if asked for.

        Args:
            X: m pictures.
            return_std: also the posterior standard deviation of the function, of the predictions' shape.
            return_cov: also the posterior covariance between the pictures, (m, m) or (m, m, k).

        Returns:
            Predictions; or predictions and error bars. A new observation scatters by `noise_` more:
            `sqrt(std**2 + noise_)`. Cost of error bars: the kernel with the training pictures, and m n^2.

        Raises:
            InputError: both kinds of error bars are asked for.

        Source: Rasmussen and Williams (2006), sections 2.2 and 2.7: prior variance `noise_ / damping_` times the
        kernel, flat intercept; noise by restricted likelihood.
        """
        if return_std and return_cov:
            message = "return_std and return_cov are both set; ask for one of them"
            raise InputError(message)
        if not (return_std or return_cov):
            return self._as_given(self._scores(X))
        mean, bars = self._posterior(X, joint=return_cov)
        scales = self.noise_ / self.damping_
        return self._as_given(mean), self._as_given(
            bars[..., None] * scales if return_cov else np.sqrt(bars[:, None] * scales)
        )

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> NDArray:
        """Functions drawn from the posterior, jointly at m pictures: (m, n_samples) or (m, k, n_samples).

        Without the noise of an observation. Cost m n^2 + m^3.
        """
        mean, bars = self._posterior(X, joint=True)
        seed = int(check_random_state(random_state).randint(2**31))
        scales = torch.from_numpy(self.noise_ / self.damping_)
        generator = torch.Generator().manual_seed(seed)
        drawn = sample(torch.from_numpy(mean), torch.from_numpy(bars), scales, n_samples, generator).numpy()
        return drawn[:, 0] if self.flat_ else drawn

    def _posterior(self, X: Any, *, joint: bool) -> tuple[NDArray, NDArray]:
        """Mean (m, k), and variance (m,) or covariance (m, m) in units of noise / damping."""
        system, feature_map = self._solved().system, self.model_.map
        found = list(self._crossed(X, whole=joint))
        mean = torch.cat([seen.kernel @ system.dual + system.bias for seen in found])
        if joint:
            (seen,) = found
            return mean.cpu().numpy(), covariance(system, seen.kernel, own_kernel(feature_map, seen.rows)).cpu().numpy()
        bars = [variance(system, seen.kernel, seen.own) for seen in found]
        return mean.cpu().numpy(), torch.cat(bars).cpu().numpy()

    def _as_given(self, values: NDArray) -> NDArray:
        return values[..., 0] if self.flat_ else values

    def __sklearn_tags__(self) -> Any:
        """Tags: several targets at once."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """R^2; y None takes the labels of the source."""
        X, y = self._labelled(X, y)
        numbers = numeric_labels(np.asarray(y), [str(i) for i in range(len(y))])
        return float(r2_score(numbers, self.predict(X), sample_weight=sample_weight))
