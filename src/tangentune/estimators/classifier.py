"""The classifier: scikit-learn's habits over the least-squares problem of a pre-trained network."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import accuracy_score
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.edits import AbstractEdited
from tangentune.estimators.explanations import check_folds
from tangentune.estimators.fitted import Encoded, State
from tangentune.estimators.outer_steps import STEPS, Expansion, choose_steps, cross_fitted_expansion, moving_seconds
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.stages import FitSettings
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import stratified_folds
from tangentune.pictures.load import Pictures, check_classes
from tangentune.solvers.calibration import fit_temperature, probabilities
from tangentune.solvers.likelihoods import (
    LEAST_SQUARES,
    check_likelihood,
    fit_likelihood,
    loo_likelihood,
    parameters,
    predict_likelihood,
)


@final
class TangentClassifier(ClassifierMixin, AbstractEdited):
    """Fine-tune a whole pre-trained network for classification by solving one least-squares problem.

    The network's features are linearised around the pre-trained weights, every class gets its own tangent, and all
    choices are made by exact leave-one-out error: no learning rate, no epochs, no validation set.

    Args:
        backbone: a name ("mobilenet_v2", "efficientnet_lite0", "timm:...", "torchvision:...", "hf:DIR") or `Backbone`.
        subset: parameters that move: "all", "none" (linear probe), "last:K", "norm", "bias", or glob patterns.
        probes: random directions in feature space; 1 is usually as good as more.
        probe_space: "pca" (span of the pictures' top principal components) or "isotropic".
        metric_power: exponent of the K-FAC metric: 0, 0.25, 0.5, or "loo" / "evidence" to choose.
        body_scale: weight of the body's kernel, the head's being 1; a float is absolute. "evidence" also learns the
            scale of every block, by gradient.
        normalize: whether head and body rows are scaled to length one.
        likelihood: how class probabilities come about: "least_squares" (softmax of the scores at one temperature,
            fitted to the exact leave-one-out predictions), "dirichlet" (Gaussian process regression of log-odds, with
            the noise of a single label) or "laplace" (softmax likelihood, Laplace's approximation); the last two decide
            by their probabilities, and need the training pictures' rows to predict.
        damping: lambda of `1/2 sum a_i ||y_i - f(x_i)||^2 + lambda/2 ||f||^2`, absolute.
        class_weight: None, "balanced", or a dict class -> weight.
        augment: "flip" averages features over mirrored pictures (closed form, exact); None does not.
        outer_steps: minibatch steps towards the labels before the network is linearised, cross-fitted over four folds
            so that leave-one-out stays honest: 0 linearises at the pre-trained weights, where no label enters the
            features and every identity is exact; 32 is usual; "loo" chooses between the two (slower, more accurate).
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
        loo_proba_: (n, C) probabilities of each picture left out, calibrated; of the likelihood, if one is chosen
            (exact for "dirichlet" at its scale, approximate for "laplace").
        loo_score_: their accuracy.
        likelihood_: the likelihood's own parameters, empty for least squares.
        selection_: list of rows: what was tried, with its leave-one-out error.
        damping_path_: leave-one-out error along the damping.
        kernel_: (n, n) kernel of the pictures; with a source, what is left of it.
        source_: what came of a source: strength, deviation, leave-one-out errors with and without, and for each source
            class its weight and the classes that it stands for; None without one.
        source_ids_: names of the source pictures.
        source_effects_: (m,) derivative of the mean leave-one-out error by the weight of each source picture, at the
            fit: negative where more of it would help.
        outer_steps_: steps taken; `task_vector_` what they changed of the weights, None at the pre-trained ones;
            `outer_selection_` leave-one-out errors of a ridge probe with and without them.
        fit_report_: seconds and peak bytes of each stage.
        temperature_: the calibration, fitted to the leave-one-out predictions.

    Cost: one forward and one backward pass (two with "flip"), then n^2 P for the kernels and n^3 for the solver.

    Source: design.md sections 2 and 3; Mohamadi et al. (2023) and Achille et al. (2021) for the neighbouring
    linearisations.

    Example:
        >>> from torch import nn
        >>> from tangentune import Backbone
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 4)).astype("float32")
        >>> clf = TangentClassifier(Backbone(net)).fit(x, x[:, 0] * x[:, 1] > 0)
        >>> clf.predict(x[:3]).shape, clf.loo_predictions_.shape
        ((3,), (40, 2))
    """

    def _read_labels(self, pictures: Pictures) -> NDArray:
        labels = pictures.labels
        if labels is None:
            message = "requires y to be passed, but the target y is None; a classifier needs a label for each picture"
            raise InputError(message)
        if labels.ndim == 2 and labels.shape[1] == 1:
            sentence = "A column-vector y was passed when a 1d array was expected; it is flattened."
            warnings.warn(sentence, DataConversionWarning, stacklevel=3)
            labels = labels[:, 0]
        check_classification_targets(labels)
        return np.asarray(labels)

    def _check_options(self, labels: NDArray) -> None:
        check_likelihood(self.likelihood)
        compute_sample_weight(self.class_weight, labels)

    def _check_labels(self, labels: NDArray, ids: list[str]) -> list[str]:
        return check_classes(labels, ids)

    def _encode(self, labels: NDArray, sample_weight: NDArray) -> Encoded:
        classes, positions = np.unique(labels, return_inverse=True)
        given, weights = self.class_weight, sample_weight
        if isinstance(given, dict):  # a class may have been forgotten
            given = {name: weight for name, weight in given.items() if name in classes.tolist()}
        if given:
            weights = weights * compute_sample_weight(given, labels)
        targets = torch.nn.functional.one_hot(torch.from_numpy(positions), len(classes)).double()
        return Encoded(classes, targets, torch.from_numpy(weights))

    def _decidable(self, settings: FitSettings, targets: Tensor) -> FitSettings:
        """One picture a class: without it its class is unknown, so leave-one-out says nothing; take usual values."""
        if settings.criterion != "loo" or targets.sum(0).max() > 1:
            return settings
        usual = {"normalize": True, "body_scale": 0.5, "damping": 1.0}
        given = {name: value for name, value in asdict(settings.fixed).items() if value is not None}
        power = 0.25 if settings.power is None else settings.power
        return replace(settings, power=power, fixed=FixedChoices(**(usual | given)))

    def _moving_seconds(self, backbone: Backbone, pictures: Pictures, settings: FitSettings) -> float:
        steps = STEPS if self.outer_steps == "loo" else int(self.outer_steps)
        return moving_seconds(backbone, _numbered(pictures), steps, flip=settings.mirrored) if steps else 0.0

    def _expand(
        self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int
    ) -> tuple[Expansion | None, list[dict[str, float]]]:
        common: dict[str, Any] = {"flip": settings.mirrored, "seed": settings.seed, "verbose": settings.verbose}
        pictures = _numbered(pictures)
        if steps == "loo":
            return choose_steps(backbone, pictures, **common)
        return (cross_fitted_expansion(backbone, pictures, int(steps), **common) if steps else None), []

    def _describe_loo(self, state: State) -> None:
        encoded, scores = state.encoded, state.loo.cpu()
        assert encoded.classes is not None
        self.classes_ = encoded.classes
        positions, weights = encoded.targets.argmax(1), encoded.weights
        kept = weights > 0
        self.temperature_ = fit_temperature(scores[kept], positions[kept], weights[kept])
        self.loo_predictions_, proba = scores.numpy(), probabilities(scores, self.temperature_)
        self._likelihood = None
        if self.likelihood != LEAST_SQUARES:  # after the fit its parameters stay, as the damping does
            self._likelihood = fit_likelihood(self.likelihood, state.system, self.likelihood_)
            self.likelihood_ = parameters(self._likelihood)
            proba = loo_likelihood(self._likelihood, state.system).cpu()
        self.loo_proba_ = proba.numpy()
        self.loo_score_ = float((proba.argmax(1) == positions).double().mean())

    def _suggested(self, opinions: Tensor, given: Tensor) -> NDArray:
        others = opinions.masked_fill(given > 0, -torch.inf)
        return self.classes_[others.argmax(1).cpu().numpy()]

    def _probability(self, position: int) -> float | None:
        return float(self.loo_proba_[position, np.searchsorted(self.classes_, self.targets_[position])])

    def _folds(self, count: int) -> NDArray[np.int64]:
        check_folds(count, len(self.ids_))
        positions = np.unique(self.targets_, return_inverse=True)[1]
        return stratified_folds(torch.from_numpy(positions), count).numpy()

    def decision_function(self, X: Any) -> NDArray:
        """Scores (n, C), near the one-hot targets; for two classes the difference (n,), as scikit-learn has it."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray:
        """Class of each picture, (n,)."""
        values = self._scores(X) if self.likelihood == LEAST_SQUARES else self.predict_proba(X)
        return self.classes_[values.argmax(1)]

    def predict_proba(self, X: Any) -> NDArray:
        """Probabilities (n, C), calibrated on the exact leave-one-out predictions or by the likelihood."""
        if self.likelihood == LEAST_SQUARES:
            return probabilities(torch.from_numpy(self._scores(X)), self.temperature_).numpy()
        system = self._solved().system
        if self._likelihood is None:  # a loaded model's
            self._likelihood = fit_likelihood(self.likelihood, system, self.likelihood_)
        solution = self._likelihood
        found = [predict_likelihood(solution, system, seen.kernel, seen.own) for seen in self._crossed(X)]
        return torch.cat(found).cpu().numpy()

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy; y None takes the labels of the source (folder names, CSV)."""
        X, y = self._labelled(X, y)
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))


def _numbered(pictures: Pictures) -> Pictures:
    """Classes as whole numbers: scikit-learn's also come as 0.0 and 1.0, or in a column."""
    assert pictures.labels is not None
    return replace(pictures, labels=np.unique(np.ravel(pictures.labels), return_inverse=True)[1])
