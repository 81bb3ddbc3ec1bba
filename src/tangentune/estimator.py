"""The estimators: scikit-learn's habits over the least-squares problem of a pre-trained network."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_random_state, validate_data
from torch import Tensor

from tangentune import persistence
from tangentune.backbone import Backbone, load_backbone
from tangentune.calibration import fit_temperature, probabilities
from tangentune.costs import estimate_cost
from tangentune.data import Pictures, check_classes, duplicate_sentences, load_pictures, numeric_labels
from tangentune.errors import InputError
from tangentune.fitting import Fitted, fit_tangent
from tangentune.linearization import Tangent, survey, used_parameters
from tangentune.memory import Meter, default_budget, warm_pages
from tangentune.model import TangentModel, decision
from tangentune.options import read_options
from tangentune.selection import RELATIVE_DAMPINGS
from tangentune.solvers.ridge import loo_errors
from tangentune.subset import select_parameters
from tangentune.work import Settings, Source


class _TangentEstimator(BaseEstimator):
    """What both estimators share; abstract."""

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        subset: str = "all",
        probes: int = 1,
        probe_space: str = "pca",
        metric_power: str | float = "loo",
        body_scale: str | float = "loo",
        normalize: str | bool = "loo",
        damping: str | float = "loo",
        class_weight: Any = None,
        augment: str | None = None,
        input_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        memory_budget: int | str | None = None,
        device: str | torch.device | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.backbone = backbone
        self.subset = subset
        self.probes = probes
        self.probe_space = probe_space
        self.metric_power = metric_power
        self.body_scale = body_scale
        self.normalize = normalize
        self.damping = damping
        self.class_weight = class_weight
        self.augment = augment
        self.input_size = input_size
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.device = device
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @abstractmethod
    def _encode(self, pictures: Pictures, sample_weight: NDArray | None) -> tuple[Tensor, NDArray]:
        """Labels as (n, C) targets, and (n,) sample weights; sets what the subclass remembers of the labels."""

    @abstractmethod
    def _describe_loo(self, fitted: Fitted, rows: NDArray, weights: NDArray) -> None:
        """Set the leave-one-out attributes."""

    # -- fitting ---------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Solve for the whole network at once.

        Args:
            X: a folder root/class/file, a CSV file (path,label), a list of paths, an array (n, C, H, W) or
                (n, H, W, C), a torch Dataset, `Pictures`; or vectors (n, k) for a backbone without input size.
            y: labels; None takes those of the source.
            sample_weight: (n,) weights of the pictures; weight 0 leaves a picture out.

        Returns:
            The estimator itself.

        Raises:
            InputError: if pictures, labels or options cannot be used; the message says which and what to do.
            BudgetError: if the work cannot keep `memory_budget`.
        """
        backbone = self._load_backbone()
        settings = self._settings(backbone)
        meter = Meter(backbone.device)
        with warm_pages():
            with meter.stage("pictures"):
                pictures = self._load(X, y, backbone, labelled=True)
            weights = None if sample_weight is None else _check_sample_weight(sample_weight, pictures.pixels)
            targets, weights = self._encode(pictures, weights)
            if not (weights >= 0).all():
                message = (
                    f"picture {pictures.ids[int(np.argmin(weights))]} has a negative weight; weights must be 0 or more"
                )
                raise InputError(message)
            kept = np.flatnonzero(weights > 0)
            if len(kept) < 2:
                message = (
                    f"n_samples={len(kept)} with positive weight is not enough; least squares needs at least 2 pictures"
                )
                raise InputError(message)
            self._warn(pictures)
            used = pictures if len(kept) == len(pictures) else pictures.select(kept)
            source = _source(used, backbone, self._batch(settings))
            with meter.stage("survey"):
                tangent = self._survey(backbone, source)
            rows = torch.from_numpy(kept)
            fitted = fit_tangent(tangent, source, targets[rows], torch.from_numpy(weights[kept]), settings, meter)
            self._adopt(backbone, pictures, fitted)
            self._describe_loo(fitted, kept, weights)
        self.fit_report_ = meter.report() | {
            "n": len(pictures),
            "outputs": targets.shape[1],
            "passes": fitted.passes,
            "parameters": sum(dict(tangent.module.named_parameters())[name].numel() for name in tangent.names),
            "threads": torch.get_num_threads(),
            "device": str(backbone.device),
        }
        return self

    def plan(self, X: Any, y: Any = None) -> dict[str, Any]:
        """What `fit` would cost, from one small trial batch: seconds, peak bytes, passes, and the way of each layer.

        Returns:
            Keys `n`, `seconds`, `peak_bytes`, `passes`, `parameters` and `layers` (name, held as, Gram strategy,
            bytes a picture). Cost: about a second.
        """
        backbone = self._load_backbone()
        settings = self._settings(backbone)
        with warm_pages():
            pictures = self._load(X, y, backbone, labelled=True)
            source = _source(pictures, backbone, self._batch(settings))
            return estimate_cost(self._survey(backbone, source), source, settings, self._outputs(pictures))

    def _outputs(self, pictures: Pictures) -> int:
        return 1 if pictures.labels is None else len(np.unique(pictures.labels))

    def _load_backbone(self) -> Backbone:
        backbone = load_backbone(self.backbone) if isinstance(self.backbone, str) else self.backbone
        if not isinstance(backbone, Backbone):
            message = f"backbone is a {type(backbone).__name__}; give a name or Backbone(module, input_size=..., ...)"
            raise InputError(message)
        backbone = backbone.with_size(self.input_size)
        return backbone if self.device is None else backbone.to(self.device)

    def _settings(self, backbone: Backbone) -> Settings:
        state = self.random_state
        seed = int(state) if isinstance(state, int | np.integer) else int(check_random_state(state).randint(2**31))
        options = self.get_params(deep=False)
        return read_options(options, seed, default_budget(backbone.device), backbone.contract.input_size is not None)

    def _batch(self, settings: Settings) -> int:
        return max(1, self.batch_size // (2 if settings.mirrored else 1))

    def _load(self, X: Any, y: Any, backbone: Backbone, labelled: bool, reset: bool = True) -> Pictures:
        if backbone.contract.input_size is None:
            return self._load_vectors(X, y, labelled, reset)
        return load_pictures(
            X, y, contract=backbone.contract, n_jobs=self.n_jobs, verbose=self.verbose, need_labels=labelled
        )

    def _load_vectors(self, X: Any, y: Any, labelled: bool, reset: bool) -> Pictures:
        if isinstance(X, Pictures):
            X, y = X.pixels, X.labels if y is None else y
        X = X.numpy() if isinstance(X, Tensor) else X
        if labelled:
            X, y = validate_data(self, X, y, dtype="numeric", multi_output=True, y_numeric=False, ensure_min_samples=2)
        else:
            X, y = validate_data(self, X, dtype="numeric", reset=reset), None
        X = X if X.dtype.kind == "f" else X.astype(np.float64)
        X = np.require(X, requirements=["C", "W"])  # a copy if the array is read-only, which torch does not take
        return Pictures(torch.from_numpy(X), y, [str(i) for i in range(len(X))])

    def _warn(self, pictures: Pictures) -> None:
        if pictures.pixels.dim() == 4:
            for sentence in duplicate_sentences(pictures.pixels, pictures.labels, pictures.ids):
                warnings.warn(sentence, stacklevel=3)

    def _survey(self, backbone: Backbone, source: Source) -> Tangent:
        module, features = backbone.module, backbone.feature_function
        x = next(iter(source.batches(list(range(min(2, source.count))))))
        backbone.check(x)
        moving = select_parameters(module, self.subset, used_parameters(module, features, x))
        return survey(module, features, moving, x)

    def _adopt(self, backbone: Backbone, pictures: Pictures, fitted: Fitted) -> None:
        """Set every fitted attribute that does not depend on the kind of target."""
        choice, feature_map = fitted.scored.choice, fitted.model.map
        self.backbone_, self.pictures_, self.model_ = backbone, pictures, fitted.model
        self.ids_, self.targets_ = list(pictures.ids), np.asarray(pictures.labels)
        self.damping_, self.relative_damping_ = fitted.scored.damping, fitted.scored.relative_damping
        self.metric_power_, self.normalize_, self.body_scale_ = choice.power, choice.normalize, choice.body_scale
        scales = {block: choice.body_scale * scale for block, scale in feature_map.block_scales.items()}
        self.block_scales_ = {"head": 1.0, **scales}
        self.block_shares_ = fitted.shares
        self.selection_ = [scored.row() for scored in fitted.tried]
        self.kernel_ = fitted.factor.kernel.cpu().numpy()
        self.dual_coef_, self.intercept_ = fitted.solution.dual.cpu().numpy(), fitted.solution.intercept.cpu().numpy()
        self.probes_ = feature_map.probes.cpu().numpy()
        grid = RELATIVE_DAMPINGS * (fitted.factor.mean_eigenvalue or 1.0)
        targets = self._fit_targets
        errors = loo_errors(fitted.factor, targets, grid)
        self.damping_path_ = {"damping": grid.numpy(), "loo_error": errors.cpu().numpy()}

    # -- prediction ------------------------------------------------------------------------------------------------

    def _scores(self, X: Any) -> NDArray:
        """Raw scores (n, C) of new pictures."""
        check_is_fitted(self)
        pictures = self._load(X, None, self.backbone_, labelled=False, reset=False)
        return self._decide(self.model_, pictures)

    def _decide(self, model: TangentModel, pictures: Pictures) -> NDArray:
        views = 2 if model.map.mirrored else 1
        source = _source(pictures, self.backbone_, max(1, self.batch_size // views))
        with warm_pages(), torch.no_grad():
            parts = [decision(model, x) for x in _progress(source, self.verbose)]
        return torch.cat(parts).cpu().numpy()

    def _labelled(self, X: Any, y: Any) -> tuple[Any, NDArray]:
        """Pictures loaded once with their labels, for scoring a folder."""
        check_is_fitted(self)
        if y is not None:
            return X, np.asarray(y)
        pictures = load_pictures(X, contract=self.backbone_.contract, n_jobs=self.n_jobs, verbose=self.verbose)
        assert pictures.labels is not None
        return pictures, pictures.labels

    # -- storage ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the model: model.safetensors, config.json and a README.md a person can read; atomic.

        Raises:
            StoreError: if the directory cannot be written or holds something else.
        """
        check_is_fitted(self)
        persistence.save(self, directory)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, backbone: Backbone | None = None, device: Any = None
    ) -> Self:
        """Read what `save_pretrained` wrote; predictions are bit-equal on the same machine.

        Args:
            directory: a saved model.
            backbone: needed if the model was fitted on a network of your own; checked against the saved hash.
            device: where to run.

        Raises:
            StoreError: if the directory is no model, damaged, or written by a newer version.
            BackboneError: if the backbone is not the one the model was fitted on.
        """
        return persistence.load(cls, directory, backbone, device)

    def __sklearn_tags__(self) -> Any:
        """Tags: dense 2-D input without NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.allow_nan = False
        return tags


@final
class TangentClassifier(ClassifierMixin, _TangentEstimator):
    """Fine-tune a whole pre-trained network for classification by solving one least-squares problem.

    The network's features are linearised around the pre-trained weights, every class gets its own tangent, and all
    choices are made by exact leave-one-out error: no learning rate, no epochs, no validation set.

    Args:
        backbone: a name ("mobilenet_v2", "efficientnet_lite0", "timm:...", "torchvision:...", "hf:DIR") or `Backbone`.
        subset: parameters that move: "all", "none" (linear probe), "last:K", "norm", "bias", or glob patterns.
        probes: random directions in feature space; 1 is usually as good as more.
        probe_space: "pca" (span of the pictures' top principal components) or "isotropic".
        metric_power: exponent of the K-FAC metric: 0, 0.25, 0.5, or "loo" / "evidence" to choose.
        body_scale: weight of the body's kernel, the head's being 1; a float is absolute.
        normalize: whether head and body rows are scaled to length one.
        damping: lambda of `1/2 sum a_i ||y_i - f(x_i)||^2 + lambda/2 ||f||^2`, absolute.
        class_weight: None, "balanced", or a dict class -> weight.
        augment: "flip" averages features over mirrored pictures (closed form, exact); None does not.
        input_size: overrides the backbone's picture size.
        batch_size: network inputs at a time (a mirrored picture counts as two).
        memory_budget: bytes, or text like "4GiB"; None is half of what is free.
        device: "cpu", "cuda", ...; None leaves the backbone where it is.
        random_state: seed of the probes.
        n_jobs: processes that decode picture files; None uses all cores.
        verbose: 1 shows progress bars with the time left.

    Attributes:
        classes_: (C,) class names.
        damping_: chosen lambda, absolute; `relative_damping_` in mean eigenvalues of the centred kernel.
        metric_power_, normalize_, body_scale_: the other choices.
        block_scales_: scale of each block's kernel, "head" first.
        block_shares_: each block's share of the squared norm of the solution: which blocks moved.
        loo_predictions_: (n, C) scores of each picture by the model fitted without it, exact.
        loo_proba_: (n, C) calibrated probabilities of the same.
        loo_score_: their accuracy.
        selection_: list of rows: what was tried, with its leave-one-out error.
        damping_path_: leave-one-out error along the damping.
        kernel_: (n, n) kernel of the pictures of positive weight.
        fit_report_: seconds and peak bytes of each stage.
        temperature_: the calibration, fitted to the leave-one-out predictions.

    Cost: one forward and one backward pass (two with "flip"), then n^2 P for the kernels and n^3 for the solver.

    Source: design.md sections 2 and 3; Mohamadi et al. (2023) and Achille et al. (2021) for the neighbouring
    linearisations.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 4)).astype("float32")
        >>> clf = TangentClassifier(Backbone(net)).fit(x, x[:, 0] * x[:, 1] > 0)
        >>> clf.predict(x[:3]).shape, clf.loo_predictions_.shape
        ((3,), (40, 2))
    """

    def _encode(self, pictures: Pictures, sample_weight: NDArray | None) -> tuple[Tensor, NDArray]:
        labels = pictures.labels
        if labels is None:
            message = "requires y to be passed, but the target y is None; a classifier needs a label for each picture"
            raise InputError(message)
        if labels.ndim == 2 and labels.shape[1] == 1:
            sentence = "A column-vector y was passed when a 1d array was expected; it is flattened."
            warnings.warn(sentence, DataConversionWarning, stacklevel=3)
            labels = labels[:, 0]
        check_classification_targets(labels)
        for sentence in check_classes(labels, pictures.ids):
            if pictures.pixels.dim() == 4:
                warnings.warn(sentence, stacklevel=3)
        self.classes_, positions = np.unique(labels, return_inverse=True)
        weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, labels)
        targets = torch.nn.functional.one_hot(torch.from_numpy(positions), len(self.classes_)).double()
        self._positions = positions
        self._fit_targets = targets[torch.from_numpy(np.flatnonzero(weights > 0))]
        return targets, weights

    def _describe_loo(self, fitted: Fitted, rows: NDArray, weights: NDArray) -> None:
        loo = np.zeros((len(weights), len(self.classes_)))
        loo[rows] = fitted.solution.loo.cpu().numpy()
        rest = np.setdiff1d(np.arange(len(weights)), rows)
        if len(rest):  # pictures of weight 0 are left out already
            loo[rest] = self._decide(fitted.model, self.pictures_.select(rest))
        scores, positions = torch.from_numpy(loo[rows]), torch.from_numpy(self._positions[rows])
        self.temperature_ = fit_temperature(scores, positions, torch.from_numpy(weights[rows]))
        self.loo_predictions_ = loo
        self.loo_proba_ = probabilities(torch.from_numpy(loo), self.temperature_).numpy()
        self.loo_score_ = float(np.mean(loo.argmax(1) == self._positions))
        del self._positions, self._fit_targets

    def decision_function(self, X: Any) -> NDArray:
        """Scores (n, C), near the one-hot targets; for two classes the difference (n,), as scikit-learn has it."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray:
        """Class of each picture, (n,)."""
        best = self._scores(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> NDArray:
        """Probabilities (n, C), calibrated on the exact leave-one-out predictions."""
        return probabilities(torch.from_numpy(self._scores(X)), self.temperature_).numpy()

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy; y None takes the labels of the source (folder names, CSV)."""
        X, y = self._labelled(X, y)
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))


@final
class TangentRegressor(RegressorMixin, _TangentEstimator):
    """Fine-tune a whole pre-trained network for regression by solving one least-squares problem.

    Arguments and attributes as for `TangentClassifier`, without classes: `class_weight` must stay None,
    `loo_predictions_` is (n, k) for k targets and `loo_score_` their R^2.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 16))
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
        >>> reg = TangentRegressor(Backbone(net)).fit(x, x[:, 0] ** 2)
        >>> reg.predict(x[:2]).shape, reg.loo_predictions_.shape
        ((2,), (60, 1))
    """

    def _encode(self, pictures: Pictures, sample_weight: NDArray | None) -> tuple[Tensor, NDArray]:
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
        self._flat = values.ndim == 1
        targets = torch.from_numpy(values.reshape(len(values), -1))
        weights = np.ones(len(values)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        self._targets = targets.numpy()
        self._fit_targets = targets[torch.from_numpy(np.flatnonzero(weights > 0))]
        return targets, weights

    def _outputs(self, pictures: Pictures) -> int:
        return 1 if pictures.labels is None or pictures.labels.ndim == 1 else pictures.labels.shape[1]

    def _describe_loo(self, fitted: Fitted, rows: NDArray, weights: NDArray) -> None:
        loo = np.zeros_like(self._targets)
        loo[rows] = fitted.solution.loo.cpu().numpy()
        rest = np.setdiff1d(np.arange(len(weights)), rows)
        if len(rest):
            loo[rest] = self._decide(fitted.model, self.pictures_.select(rest))
        self.loo_predictions_ = loo
        self.loo_score_ = float(r2_score(self._targets, loo)) if len(loo) > 1 else float("nan")
        self.flat_ = self._flat
        del self._flat, self._targets, self._fit_targets

    def predict(self, X: Any) -> NDArray:
        """Predicted targets, (n,) or (n, k) as y was in `fit`."""
        scores = self._scores(X)
        return scores[:, 0] if self.flat_ else scores

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


def _source(pictures: Pictures, backbone: Backbone, batch: int) -> Source:
    """Pictures as network inputs, in the memory order convolutions like best."""

    def batches(index: list[int] | None) -> Any:
        chosen = pictures if index is None else pictures.select(index)
        for x in chosen.batches(backbone.contract, batch, backbone.dtype, backbone.device):
            yield x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return Source(len(pictures), batches)


def _progress(source: Source, verbose: int) -> Any:
    from tqdm import tqdm

    with tqdm(total=source.count, desc="predicting", unit="picture", delay=1.0, disable=not verbose) as bar:
        for x in source.batches(None):
            yield x
            bar.update(len(x))
