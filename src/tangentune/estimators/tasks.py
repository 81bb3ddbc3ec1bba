"""What one class, several labels and numbers differ in: labels, targets, outcome of a solution, how a network moves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from tangentune.errors import InputError, nice_number
from tangentune.estimators.outer_steps import Choice, choose_steps, cross_fitted_expansion, moving_seconds
from tangentune.estimators.solution import Solution, Targets
from tangentune.estimators.user_input import as_classes, known_weights
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.stages import FitSettings
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import stratified_folds
from tangentune.pictures.checks import look_alikes, one_class_each
from tangentune.pictures.label_sets import (
    aligned,
    is_marks,
    is_sets,
    label_matrix,
    label_names,
    label_sets,
    rarest_label,
    sets_of_names,
)
from tangentune.pictures.load import Pictures, check_classes, numeric_labels
from tangentune.pictures.names import some
from tangentune.solvers import likelihoods
from tangentune.solvers.calibration import fit_probabilities, probabilities
from tangentune.solvers.label_calibration import LabelCalibration, fit_label_calibration
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.metrics import r2
from tangentune.solvers.posterior import noise_variance

LARGEST = 1e100  # a target, or its inverse; sums of squares of residuals must stay finite, and above 0
FEW = 20  # pictures; with fewer it may be chance that each has one label
USER = 4  # frames from a warning in `read_labels` up to the user's call of an estimator
Opinions = tuple[NDArray, Sequence[float | None]]  # labels, and how sure the others are of those given


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a solved problem, as plain arrays."""

    dual: NDArray[np.float64]  # (n, C) coefficients
    intercept: NDArray[np.float64]  # (C,)
    loo: NDArray[np.float64]  # (n, C) predictions of each picture by the fit without it
    score: float  # accuracy of those, or R^2
    classes: NDArray = field(default_factory=lambda: np.empty(0))  # (C,) names; empty for numbers
    # (n, C) class probabilities of each picture left out, at the temperature.
    proba: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    temperature: float = float("nan")
    parameters: dict[str, float] = field(default_factory=dict)  # of the likelihood; empty for least squares
    likelihood: likelihoods.LikelihoodSolution | None = None  # None for least squares, and of a loaded model
    noise: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # (k,) of a new observation, of numbers
    labels: LabelCalibration | None = None  # of several labels a picture, which have no temperature
    softness: float | None = None  # of scores on their way to probabilities, see `calibration.log_odds`

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of classes, or of each label, (..., C), from scores; least squares."""
        if self.labels is not None:
            return self.labels.probabilities(scores)
        return probabilities(scores, self.temperature, self.softness)


@dataclass(frozen=True)
class _Labelled:
    """What the tasks share: the options of the estimator that every edit follows, and a network moved by labels."""

    likelihood: str
    class_weight: Any

    def suited(self, labels: NDArray | None) -> Task:
        """The task that these labels ask for; mostly this one."""
        assert isinstance(self, Task)
        return self

    def decidable(self, settings: FitSettings, targets: Tensor) -> FitSettings:
        """Settings such that leave-one-out can choose the rest."""
        return settings

    def moving_seconds(self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int) -> float:
        """What `expand` will take."""
        return moving_seconds(backbone, self._numbered(pictures), steps, flip=settings.mirrored) if steps else 0.0

    def expand(
        self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int, rate: float
    ) -> Choice:
        """Points of expansion moved towards the labels, if wanted, and what was tried."""
        if not steps:
            return None, []
        common: dict[str, Any] = {"flip": settings.mirrored, "seed": settings.seed, "verbose": settings.verbose}
        pictures = self._numbered(pictures)
        if steps == "loo":
            return choose_steps(backbone, pictures, may_unmirror=settings.may_unmirror, **common)
        return cross_fitted_expansion(backbone, pictures, int(steps), rate=rate, **common), []

    def _numbered(self, pictures: Pictures) -> Pictures:
        """Classes as whole numbers: scikit-learn's also come as 0.0 and 1.0, or in a column."""
        assert pictures.labels is not None
        return replace(pictures, labels=np.unique(np.ravel(pictures.labels), return_inverse=True)[1])


@final
@dataclass(frozen=True)
class Classification(_Labelled):
    """Classes, as one-hot targets."""

    def suited(self, labels: NDArray | None) -> Task:
        """This task, or that of several labels a picture if these are such: sets of names, a matrix of 0 and 1.

        A bare matrix with one 1 in every row stands for classes, and is refused as such.
        """
        several = labels is not None and is_sets(labels)
        if labels is not None and not several and is_marks(labels) and labels.shape[1] > 1:
            several = not (labels.sum(1) == 1).all()
        return Multilabel(self.likelihood, self.class_weight) if several else self

    def read_labels(self, pictures: Pictures, known: NDArray | None = None) -> NDArray:
        """The labels of some pictures, one class each, of a model that knows some; a column of them is flattened."""
        labels = pictures.labels
        if labels is None:
            raise InputError(
                "requires y to be passed, but the target y is None; a classifier needs a label for each picture"
            )
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biufUO":
            raise InputError(f"the labels have the type {labels.dtype}; use text, integers or floats")
        if labels.ndim == 2 and labels.shape[1] == 1:
            sentence = "A column-vector y was passed when a 1d array was expected; it is flattened."
            warnings.warn(sentence, DataConversionWarning, stacklevel=USER)
        labels = one_class_each(labels)
        check_classification_targets(labels)
        return labels if known is None else as_classes(labels, known)

    def check_options(self, labels: NDArray) -> None:
        """Refuse options that no fit to these labels can follow."""
        likelihoods.check_likelihood(self.likelihood)
        try:
            compute_sample_weight(self.class_weight, labels)
        except (ValueError, TypeError, LookupError) as error:
            weights, known = self.class_weight, np.unique(labels).tolist()
            named = [repr(name) for name in weights if name not in known] if isinstance(weights, dict) else []
            message = f"class_weight is {weights!r}; it must be 'balanced' or a weight for each class by its name"
            if named:
                classes = some(list(map(repr, known)), 8)
                message = f"class_weight names {some(named)}, no class of these pictures; the classes are {classes}"
            raise InputError(message) from error

    def check_source(self, outer_steps: str | int) -> None:
        """Refuse a source where its leave-one-out would not be exact."""
        if self.likelihood != LEAST_SQUARES:
            raise InputError(f"source= needs likelihood='least_squares', not {self.likelihood!r}")
        if outer_steps not in (0, "loo"):
            raise InputError(
                f"source= needs outer_steps=0, not {outer_steps!r}: moved features would know the target's labels"
            )

    def check_labels(self, labels: NDArray, ids: list[str]) -> list[str]:
        """Refuse labels of a whole set that cannot be fitted; sentences about what looks odd."""
        return check_classes(labels, ids)

    def encode(self, labels: NDArray, sample_weight: NDArray) -> Targets:
        """Labels as (n, C) targets, and sample weights with class weights."""
        classes, positions = np.unique(labels, return_inverse=True)
        given, weights = known_weights(self.class_weight, classes), sample_weight
        balanced = isinstance(given, str)
        if balanced:  # a picture of weight 0 is as if it were not there
            counts = np.bincount(positions[weights > 0], minlength=len(classes))
            weights = weights * (counts.sum() / ((counts > 0).sum() * counts.clip(1)))[positions]
        elif given:
            weights = weights * compute_sample_weight(given, labels)
        targets = torch.nn.functional.one_hot(torch.from_numpy(positions), len(classes)).double()
        return Targets(classes, targets, torch.from_numpy(weights), balanced=balanced)

    def decidable(self, settings: FitSettings, targets: Tensor) -> FitSettings:
        """One picture a class: without it its class is unknown, so leave-one-out means nothing; take usual values."""
        if settings.criterion != "loo" or targets.sum(0).max() > 1:
            return settings
        usual = {"normalize": True, "body_scale": 0.5, "damping": 1.0}
        given = {name: value for name, value in asdict(settings.fixed).items() if value is not None}
        power = 0.25 if settings.power is None else settings.power
        return replace(settings, power=power, fixed=FixedChoices(**(usual | given)))

    def outcome(self, solution: Solution, parameters: dict[str, float]) -> Outcome:
        """What came of a solution; parameters of the likelihood that are known are kept."""
        targets, system, scores = solution.targets, solution.system, solution.loo.cpu()
        assert targets.classes is not None
        positions, kept, found = targets.targets.argmax(1), targets.weights > 0, None
        temperature, softness = fit_probabilities(scores[kept], positions[kept], targets.weights[kept])
        proba = probabilities(scores, temperature, softness)
        if self.likelihood != LEAST_SQUARES:  # after the fit its parameters stay, as the damping does
            found = likelihoods.fit_likelihood(self.likelihood, system, parameters)
            parameters = likelihoods.parameters(found)
            proba = likelihoods.loo_likelihood(found, system).cpu()
        dual, intercept = system.dual.cpu().numpy(), system.bias.cpu().numpy()
        score, loo = float((proba.argmax(1) == positions).double().mean()), scores.numpy()
        made = Outcome(dual, intercept, loo, score, targets.classes, proba.numpy(), temperature, parameters, found)
        return replace(made, softness=softness)

    def second_opinions(self, others: Tensor, given: Tensor, outcome: Outcome, labels: NDArray) -> Opinions:
        """Labels (n,) that the others suggest, and the probabilities, left out, of those given; None of numbers."""
        best = others.masked_fill(given > 0, -torch.inf).argmax(1).cpu().numpy()
        proba = outcome.proba[np.arange(len(labels)), np.searchsorted(outcome.classes, labels)]
        return outcome.classes[best], proba.tolist()

    def folds(self, labels: NDArray, count: int) -> NDArray[np.int64]:
        """(n,) fold of each picture, classes spread evenly."""
        positions = np.unique(labels, return_inverse=True)[1]
        return stratified_folds(torch.from_numpy(positions), count).numpy()


@final
@dataclass(frozen=True)
class Multilabel(_Labelled):
    """Several labels a picture, or none: a target of 0 or 1 for each. One kernel and one inverse serve all of them."""

    def read_labels(self, pictures: Pictures, known: NDArray | None = None) -> NDArray:
        """Labels as `label_sets`, with the columns of a model that knows some; those of a bare matrix are numbered."""
        labels = pictures.labels
        if labels is None:
            raise InputError("requires y to be passed, but the target y is None; name the labels of each picture")
        if labels.ndim == 2 and labels.shape[1] == 0 and known is not None:  # of lists of names that are all empty
            labels = np.zeros((len(labels), len(known)), np.int64)
        if not is_sets(labels) and is_marks(labels):
            names = [str(i) for i in range(labels.shape[1])] if known is None else known.tolist()
            labels = label_sets(labels, names)
        if not is_sets(labels):  # one name each
            labels = sets_of_names(labels.astype(str).reshape(len(labels), -1).tolist(), known)
        return labels if known is None else aligned(labels, known)

    def check_options(self, labels: NDArray) -> None:
        if self.likelihood != LEAST_SQUARES:
            raise InputError(
                f"likelihood={self.likelihood!r} is for one class a picture; leave it at {LEAST_SQUARES!r}"
            )
        if self.class_weight is not None:
            raise InputError(
                "class_weight is for one class a picture, where a weight belongs to one class; leave it out, for each "
                "label has its own threshold"
            )

    def check_source(self, outer_steps: str | int) -> None:
        raise InputError("source= is for one class a picture; leave it out where pictures have several labels")

    def check_labels(self, labels: NDArray, ids: list[str]) -> list[str]:
        matrix, names = label_matrix(labels), label_names(labels)
        if not len(matrix):
            raise InputError("There are no pictures to learn from.")
        if (matrix == matrix[0]).all():
            raise InputError(f"all {len(matrix)} pictures have the same labels; give pictures that differ in one")
        counts, sentences = matrix.sum(0), look_alikes(names)
        for what, same in (("no picture has", counts == 0), ("every picture has", counts == len(matrix))):
            if same.any():
                sentences.append(f"{what} {some(names[same].tolist())}, so nothing can be learnt about it")
        if (matrix.sum(1) == 1).all() and len(matrix) > FEW:
            sentences.append(
                "each picture has exactly one label: if it can have no other, give the class of each picture instead"
            )
        return sentences

    def encode(self, labels: NDArray, sample_weight: NDArray) -> Targets:
        targets = torch.from_numpy(label_matrix(labels)).double()
        return Targets(label_names(labels), targets, torch.from_numpy(sample_weight))

    def _numbered(self, pictures: Pictures) -> Pictures:
        return replace(pictures, labels=self.read_labels(pictures))

    def outcome(self, solution: Solution, parameters: dict[str, float]) -> Outcome:
        targets, system, scores = solution.targets, solution.system, solution.loo.cpu()
        kept = targets.weights > 0
        found = fit_label_calibration(scores[kept], targets.targets[kept], targets.weights[kept])
        proba = found.probabilities(scores)
        right = (found.decide(proba) == targets.targets).all(1)
        dual, intercept = system.dual.cpu().numpy(), system.bias.cpu().numpy()
        assert targets.classes is not None
        score, loo = float(right.double().mean()), scores.numpy()
        return Outcome(dual, intercept, loo, score, targets.classes, proba.numpy(), labels=found)

    def folds(self, labels: NDArray, count: int) -> NDArray[np.int64]:
        """(n,) folds; pictures are dealt out by their rarest label."""
        return stratified_folds(torch.from_numpy(rarest_label(labels)), count).numpy()


@final
@dataclass(frozen=True)
class Regression(_Labelled):
    """One number a picture, or several."""

    def read_labels(self, pictures: Pictures, known: NDArray | None = None) -> NDArray:
        if pictures.labels is None:
            raise InputError(
                "requires y to be passed, but the target y is None; a regressor needs a number for each picture"
            )
        if self.class_weight is not None:
            raise InputError("class_weight belongs to classifiers; leave it out where numbers are predicted")
        values = numeric_labels(pictures.labels, pictures.ids)
        if not np.isfinite(values).all():
            raise InputError(
                f"the target of picture {pictures.ids[int(np.argmax(~np.isfinite(values)))]} is NaN or infinite"
            )
        return values

    def check_options(self, labels: NDArray) -> None:
        if self.likelihood != LEAST_SQUARES:
            raise InputError(f"likelihood={self.likelihood!r} belongs to classifiers; leave it at {LEAST_SQUARES!r}")

    def check_source(self, outer_steps: str | int) -> None:
        raise InputError(
            "source= belongs to classifiers; a regressor has no classes that source classes could stand for"
        )

    def check_labels(self, labels: NDArray, ids: list[str]) -> list[str]:
        sizes = np.abs(labels).reshape(len(labels), -1).max(1)
        largest = int(sizes.argmax())
        if sizes[largest] > LARGEST or 0 < sizes[largest] < 1 / LARGEST:
            seen = f"the largest target, {nice_number(sizes[largest])} of picture {ids[largest]}"
            raise InputError(
                f"{seen}, has a square that double precision cannot hold; give all targets in another unit"
            )
        return []

    def encode(self, labels: NDArray, sample_weight: NDArray) -> Targets:
        return Targets(None, torch.from_numpy(labels.reshape(len(labels), -1)), torch.from_numpy(sample_weight))

    def moving_seconds(self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int) -> float:
        return 0.0

    def expand(
        self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int, rate: float
    ) -> Choice:
        if steps not in ("loo", 0):
            raise InputError(f"outer_steps={steps} needs class labels; leave it at 0 for a regressor")
        return None, []

    def outcome(self, solution: Solution, parameters: dict[str, float]) -> Outcome:
        targets, system, found = solution.targets.targets.numpy(), solution.system, solution.loo.cpu().numpy()
        noise = noise_variance(system).cpu().numpy()
        score = r2(targets, found) if len(targets) > 1 else float("nan")
        return Outcome(system.dual.cpu().numpy(), system.bias.cpu().numpy(), found, score, noise=noise)

    def second_opinions(self, others: Tensor, given: Tensor, outcome: Outcome, labels: NDArray) -> Opinions:
        return as_given(others.cpu().numpy(), labels), [None] * len(labels)

    def folds(self, labels: NDArray, count: int) -> NDArray[np.int64]:
        return np.random.default_rng(0).permutation(len(labels)) % count


Task = Classification | Multilabel | Regression


def as_given(values: NDArray, labels: NDArray) -> NDArray:
    """Predicted numbers (..., k) in the shape that the labels were given in."""
    return values[..., 0] if labels.ndim == 1 else values
