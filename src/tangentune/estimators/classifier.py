"""The classifier: scikit-learn's habits over the least-squares problem of a pre-trained network."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from typing import Any, final

import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin

from tangentune._torch import usual_torch
from tangentune.estimators.base import TangentEstimator
from tangentune.estimators.fitted import fitted_attribute
from tangentune.estimators.tasks import Classification
from tangentune.estimators.user_input import as_classes, with_labels
from tangentune.pictures.label_sets import label_matrix
from tangentune.solvers.likelihoods import LEAST_SQUARES, fit_likelihood, predict_likelihood


@final
@usual_torch
class TangentClassifier(ClassifierMixin, TangentEstimator):
    """Fine-tune a whole pre-trained network for classification by solving one least-squares problem.

    The network's features are linearised around the pre-trained weights, every class gets its own tangent, and all
    choices are made by exact leave-one-out error: no learning rate, no epochs, no validation set.

    A picture has one class, or several labels or none: then y is a matrix (n, L) of 0 and 1, a data frame of such
    columns, or a list of names for each picture. Every label gets its own tangent, probability and threshold over the
    same kernel; answers are (n, L), and what is exact of classes is exact of labels.

    Args:
        backbone: a name ("mobilenet_v2", "efficientnet_lite0", "timm:...", "torchvision:...", "hf:DIR"), a `Backbone`,
            or a network, as `Backbone(network)` wraps it.
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
        class_weight: None, "balanced" (`n / (C n_c)`; whatever leaves a picture out takes it from those that are left),
            or a dict class -> weight.
        augment: "flip" averages features over mirrored pictures (closed form, exact); None does not; "loo" does if it
            makes the leave-one-out error of a linear probe lower, as with most photographs, but not digits or arrows.
        outer_steps: minibatch steps towards the labels before the network is linearised, cross-fitted so that
            leave-one-out stays honest: over four folds, of more than 2,000 pictures over two. "loo" climbs a ladder (of
            few pictures 32 steps at a rate of 1e-4, more and at 3e-4 the more pictures there are) as long as pictures
            that the moved network has not seen find it better, and moves nothing where only a part of the network is to
            move, nor beside a source. 0 linearises at the pre-trained weights, where no label enters the features and
            every identity is exact from the pixels on; quicker, less accurate.
        solver: how the problem is solved. "dual": with the kernel of all pictures, n x n numbers; "landmarks": on rows
            of fixed width, which some landmark pictures span (Nystroem), so that cost and memory grow with n, while
            leave-one-out, edits and explanations stay exact for the frozen rows; "auto" takes landmarks from 10,000
            pictures on, or where the memory budget leaves no room for the kernel, and all pictures beside a source.
        landmarks: how many there are, at most; None takes as many as usually pay.
        input_size: overrides the backbone's picture size: the side of a square, (height, width), or all three.
        batch_size: network inputs at a time (a mirrored picture counts as two).
        memory_budget: bytes, or text like "4GiB"; None is half of what is free.
        device: "cpu", "cuda", ..., or "auto", a GPU where there is one; None leaves the backbone where it is.
        autocast: "bfloat16" has the network's passes run under `torch.autocast`, also those of predictions, edits and
            added pictures; rows, kernels and solutions stay as they are, and exact for the rows. None: in full.
        random_state: seed of the probes.
        n_jobs: processes that decode picture files; None uses all cores.
        verbose: 1 shows progress bars with the time left.

    Attributes:
        classes_: (C,) class names, or the names of L labels; of a matrix without names their positions as text.
        thresholds_: (L,) probabilities from which on each of several labels is given; None where classes are.
        damping_: chosen lambda, absolute; `relative_damping_` in mean eigenvalues of the centred kernel.
        metric_power_, normalize_, body_scale_: the other choices.
        augment_: "flip" where features are means over mirrored pictures, else None.
        block_scales_: scale of each block's kernel, "head" first.
        block_shares_: each block's share of the squared norm of the solution: which blocks moved.
        loo_predictions_: (n, C) scores of each picture by the model fitted without it, exact.
        loo_proba_: (n, C) probabilities of each picture left out, calibrated; of the likelihood, if one is chosen
            (exact for "dirichlet" at its scale, approximate for "laplace").
        loo_score_: their accuracy; of several labels the share of pictures with all of them right.
        likelihood_: the likelihood's own parameters, empty for least squares.
        selection_: list of rows: what was tried, with its leave-one-out error.
        damping_path_: leave-one-out error along the damping.
        kernel_: (n, n) kernel of the pictures; with a source, what is left of it.
        source_: what came of a source: strength, deviation, leave-one-out errors with and without, and for each source
            class its weight and the classes that it stands for; None without one.
        source_ids_: names of the source pictures.
        source_effects_: (m,) derivative of the mean leave-one-out error by the weight of each source picture, at the
            fit: negative where more of it would help.
        outer_steps_: steps taken, at a rate of `outer_rate_`; `task_vector_` what they changed of the weights, None at
            the pre-trained ones; `outer_selection_` what was tried: steps, rate, error of the first network on the fold
            that it never saw, and, where the other folds' networks were made too, leave-one-out error of a ridge probe
            and how far the networks spread about their mean in units of how far that moved; else None.
        fit_report_: seconds and peak bytes of each stage.
        temperature_, softness_: the calibration, by the leave-one-out predictions: softmax(scores / temperature_), or
            of log softplus(scores / softness_) where the labels are likelier by it; NaN, None with several labels.

    Cost: one forward and one backward pass (two with "flip"), then n^2 P for the kernels and n^3 for the solver.

    Source: design.md sections 2 and 3; Mohamadi et al. (2023) and Achille et al. (2021) for the neighbouring
    linearisations.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from tangentune import Backbone
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 4)).astype("float32")
        >>> clf = TangentClassifier(Backbone(net)).fit(x, x[:, 0] * x[:, 1] > 0)
        >>> clf.predict(x[:3]).shape, clf.loo_predictions_.shape
        ((3,), (40, 2))
    """

    _kind = Classification
    classes_ = fitted_attribute(lambda fitted: fitted.outcome.classes)
    loo_proba_ = fitted_attribute(lambda fitted: fitted.outcome.proba)
    temperature_ = fitted_attribute(lambda fitted: fitted.outcome.temperature)
    softness_ = fitted_attribute(lambda fitted: fitted.outcome.softness)
    thresholds_ = fitted_attribute(
        lambda fitted: labels.thresholds.numpy() if (labels := fitted.outcome.labels) else None
    )

    def decision_function(self, X: Any) -> NDArray:
        """Scores (n, C), near the one-hot targets; for two classes the difference (n,), as scikit-learn has it.

        With several labels a picture (n, L), near 0 and 1.
        """
        scores = self._scores(X)
        two = len(self.classes_) == 2 and self.fitted_.outcome.labels is None
        return scores[:, 1] - scores[:, 0] if two else scores

    def predict(self, X: Any) -> NDArray:
        """Class of each picture, (n,); of pictures of the fit itself see `loo_predictions_`, as a warning says.

        With several labels a picture a matrix (n, L) of 0 and 1.
        """
        values = self._scores(X) if self.likelihood == LEAST_SQUARES else self.predict_proba(X)
        if (labels := self.fitted_.outcome.labels) is None:
            return self.classes_[values.argmax(1)]
        return labels.decide(labels.probabilities(torch.from_numpy(values))).numpy()

    def predict_proba(self, X: Any) -> NDArray:
        """Probabilities (n, C), calibrated on the exact leave-one-out predictions or by the likelihood.

        With several labels a picture (n, L), of each label by itself.
        """
        if self.likelihood == LEAST_SQUARES:
            scores = torch.from_numpy(self._scores(X))
            return self.fitted_.outcome.probabilities(scores).numpy()
        system = self.solution_.system
        solution = self.fitted_.outcome.likelihood
        if solution is None:  # a loaded model's
            solution = fit_likelihood(self.likelihood, system, self.likelihood_)
            self.fitted_ = replace(self.fitted_, outcome=replace(self.fitted_.outcome, likelihood=solution))
        new = self.kernel_to_training(self._new(X))
        found = [predict_likelihood(solution, system, part.kernel, part.own) for part in new]
        return torch.cat(found).cpu().numpy()

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy; y None takes the labels of the source (folder names, CSV).

        With several labels a picture all of them must be right (subset accuracy).
        """
        from sklearn.metrics import accuracy_score  # a third of a second, which commands need not wait for

        fitted = self._fitted()
        if fitted.outcome.labels is not None:
            loaded = self._load(X, y, fitted.backbone, labelled=True, reset=False)
            given = label_matrix(fitted.task.read_labels(loaded, self.classes_))
            return float(accuracy_score(given, self.predict(loaded), sample_weight=sample_weight))
        X, y = with_labels(X, y, fitted.backbone.contract, self.n_jobs, self.verbose)
        return float(accuracy_score(as_classes(y, self.classes_), self.predict(X), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        """Tags: several labels at once."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def workbench(self, *, originals: str | os.PathLike[str] | None = None, height: int = 900) -> Any:
        """The page on which labels are corrected, in a notebook; `tangentune serve` opens the same in a browser.

        Edits change this model at once and its directory when they are saved on the page; change it nowhere else
        meanwhile. Needs `pip install "tangentune[serve]"`.

        Args:
            originals: folder of the pictures that it was fitted on, to show them at their own resolution.
            height: of the frame, in pixels.

        Returns:
            What the notebook shows; its `close()` ends the page.

        Raises:
            InputError: the model was not saved, or changed since.
            StoreError: another workbench is open on its directory.
            MissingExtraError: the packages of a server are not installed.
        """
        notebook = import_module("tangentune.workbench.notebook")  # by name: it stands on this file, and is optional
        return notebook.frame(self, originals=originals, height=height)
