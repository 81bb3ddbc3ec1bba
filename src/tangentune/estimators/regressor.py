"""The regressor: numbers instead of classes, with error bars."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.estimators.base import TangentEstimator
from tangentune.estimators.fitted import fitted_attribute
from tangentune.estimators.tasks import Regression, as_given
from tangentune.estimators.user_input import with_labels
from tangentune.kernels.feature_map import cross_kernel
from tangentune.pictures.load import numeric_labels
from tangentune.solvers.posterior import covariance, sample, variance


@final
@usual_torch
class TangentRegressor(RegressorMixin, TangentEstimator):
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

    _kind = Regression
    noise_ = fitted_attribute(lambda fitted: fitted.outcome.noise)
    flat_ = fitted_attribute(lambda fitted: fitted.active.labels.ndim == 1)

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
            raise InputError("return_std and return_cov are both set; ask for one of them")
        if not (return_std or return_cov):
            return as_given(self._scores(X), self.targets_)
        mean, bars = self._posterior(X, joint=return_cov)
        scales = self.noise_ / self.damping_
        bars = bars[..., None] * scales if return_cov else np.sqrt(bars[:, None] * scales)
        return as_given(mean, self.targets_), as_given(bars, self.targets_)

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
        system, found = self.solution_.system, list(self.kernel_to_training(self._new(X), whole=joint))
        mean = torch.cat([new.kernel @ system.dual + system.bias for new in found])
        if joint:
            (new,) = found
            own = cross_kernel(self.fitted_.feature_map, new.rows)
            return mean.cpu().numpy(), covariance(system, new.kernel, own).cpu().numpy()
        bars = [variance(system, new.kernel, new.own) for new in found]
        return mean.cpu().numpy(), torch.cat(bars).cpu().numpy()

    def __sklearn_tags__(self) -> Any:
        """Tags: several targets at once."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """R^2; y None takes the labels of the source."""
        from sklearn.metrics import r2_score

        X, y = with_labels(X, y, self._fitted().backbone.contract, self.n_jobs, self.verbose)
        numbers = numeric_labels(np.asarray(y), [str(i) for i in range(len(y))])
        return float(r2_score(numbers, self.predict(X), sample_weight=sample_weight))
