"""What both estimators share: options, `fit`, prediction, explanations, edits, storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from tangentune._torch import usual_torch
from tangentune.estimators import edits, explanations, saving
from tangentune.estimators.attributes import FittedAttributes
from tangentune.estimators.card import render_card
from tangentune.estimators.explanations import Suspects
from tangentune.estimators.fit import Procedure, Tell, Work
from tangentune.estimators.fitted import (
    FittedModel,
    KernelToTraining,
    kernel_to_training,
    scored,
    solved,
    with_primal,
    with_rows,
)
from tangentune.estimators.shown import Shown
from tangentune.estimators.solution import Solution
from tangentune.estimators.summary import Plan, summarise
from tangentune.estimators.tasks import Classification, Regression
from tangentune.estimators.training_set import PictureReader
from tangentune.estimators.user_input import load_inputs, read_count, read_settings
from tangentune.kernels.feature_map import TangentModel
from tangentune.memory import warm_pages
from tangentune.networks.backbone import AnyBackbone, Backbone
from tangentune.pictures.load import Pictures
from tangentune.solvers.balancing import influence
from tangentune.solvers.leave_out import contributions
from tangentune.solvers.posterior import variance
from tangentune.solvers.reweighting import weight_gradient


@usual_torch
class TangentEstimator(FittedAttributes, Shown, BaseEstimator):
    """The options of an estimator, and `fitted_`, which holds all that is fitted; the modules beside do the work.

    Everything after an edit equals a fit to the changed set with the same feature map, kernel and damping, which stay
    as they were chosen. Pictures are named by their id: the path, or the position at `fit`; added ones get new ids, and
    no id is used twice. `edits_` is the log.
    Of a fit with a source, influence, contributions, informativeness and the weight gradient keep the target classes
    that source classes stand for; what is left out (`loo_predictions_`, `leave_out`, `suspects`) is left out there too.
    """

    n_features_in_: int  # of vectors
    _kind: ClassVar[type[Classification | Regression]]

    def __init__(
        self,
        backbone: AnyBackbone = "mobilenet_v2",
        *,
        subset: str = "all",
        probes: int = 1,
        probe_space: str = "pca",
        metric_power: str | float = "loo",
        body_scale: str | float = "loo",
        normalize: str | bool = "loo",
        damping: str | float = "loo",
        likelihood: str = "least_squares",
        class_weight: Any = None,
        augment: str | None = "loo",
        outer_steps: str | int = "loo",
        solver: str = "auto",
        landmarks: int | None = None,
        input_size: int | tuple[int, ...] | None = None,
        batch_size: int = 32,
        memory_budget: int | str | None = None,
        device: str | torch.device | None = None,
        autocast: str | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.backbone = backbone  # one line each: scikit-learn clones estimators by these names
        self.subset = subset
        self.probes = probes
        self.probe_space = probe_space
        self.metric_power = metric_power
        self.body_scale = body_scale
        self.normalize = normalize
        self.damping = damping
        self.likelihood = likelihood
        self.class_weight = class_weight
        self.augment = augment
        self.outer_steps = outer_steps
        self.solver = solver
        self.landmarks = landmarks
        self.input_size = input_size
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.device = device
        self.autocast = autocast
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @property
    def model_(self) -> TangentModel:
        """The fitted function with weights instead of pictures; after an edit they are summed again, when needed."""
        if self._fitted().primal is None:
            self.fitted_ = with_primal(self.fitted_, self._reader())
        assert self.fitted_.primal is not None
        return self.fitted_.primal

    @property
    def solution_(self) -> Solution:
        """The solved problem; a loaded model's is solved, once, when it is needed: n^3."""
        return solved(self._solved())

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        source: Any = None,
        tell: Tell = None,
        work: Work = None,
    ) -> Self:
        """Solve for the whole network at once.

        Args:
            X: a folder root/class/file, a CSV file or data frame (path,label), paths, tar files, an array (n, C, H, W)
                or (n, H, W, C), a Dataset, `Pictures`; or vectors (n, k) for a backbone without input size.
            y: labels, a list of names for each picture, or the name of the column that holds them; None takes those of
                the source.
            sample_weight: (n,) weights of the pictures; weight 0 leaves a picture out.
            source: pictures of related data, of a classifier's: a manifest that `tangentune select` wrote, a folder of
                class folders, a CSV file, or labelled `Pictures`. They become weighted rows of the same problem
                (multi-task kernel ridge), each class standing for the target classes it lies near, or for the one of
                its name; how much they count is chosen by leave-one-out of the pictures X alone, and may be nothing.
            tell: is given what `plan` would say, before the work begins: say `print`.
            work: a directory where a fit on landmarks keeps the rows that it has; stopped at any time and called again,
                it goes on from there, and clears it in the end. A `Shared` one has the rows made by several processes.

        Raises:
            InputError: if pictures, labels or options cannot be used; the message says which and what to do.
            BudgetError: if the work cannot keep `memory_budget`.
        """
        procedure = Procedure.of(self._task(), self.get_params(deep=False))
        if source is not None:
            self.check_source()
        with warm_pages():
            with procedure.meter.stage("pictures"):
                pictures, read = self._load(X, y, procedure.backbone, labelled=True), None
                if source is not None:
                    read = procedure.read_source(source, pictures, self.n_jobs)
            given = np.ones(len(pictures)) if sample_weight is None else sample_weight
            given = _check_sample_weight(given, pictures.pixels, dtype=np.float64)
            self.fitted_ = procedure.suited(pictures).fit(pictures, given, read, tell, work)
        return self

    def plan(self, X: Any, y: Any = None) -> Plan:
        """What `fit` would cost, from a trial with a few pictures: seconds, memory, passes, and the way of each layer.

        Returns:
            A dict, printed as a sentence: `network`, `n`, `seconds`, `peak_bytes` (of the process), `most_bytes` (if no
            block is dropped), `stages`, `passes`, `parameters`, `layers` (how held, bytes a picture). Cost: seconds.
        """
        procedure = Procedure.of(self._task(), self.get_params(deep=False))
        with warm_pages():
            return procedure.plan(self._load(X, y, procedure.backbone, labelled=True))

    def check_source(self) -> None:
        """Refuse a source (InputError) that this estimator with its options cannot use."""
        self._task().check_source(self.outer_steps)

    def _task(self) -> Classification | Regression:
        return self._kind(self.likelihood, self.class_weight)

    def _reader(self) -> PictureReader:
        count = read_count(vars(self), "batch_size")
        return PictureReader(self.fitted_.backbone, count, self.fitted_.feature_map.mirrored, self.verbose)

    def _load(self, X: Any, y: Any, backbone: Backbone, labelled: bool, reset: bool = True) -> Pictures:
        return load_inputs(self, X, y, backbone, labelled, reset)

    def _new(self, X: Any) -> Pictures:
        """Pictures to predict, with a warning where the model was fitted on some of them."""
        pictures = self._load(X, None, self._fitted().backbone, labelled=False, reset=False)
        self.fitted_.warn_of_copies(pictures)
        return pictures

    def _scores(self, X: Any) -> NDArray:
        """Raw scores (n, C) of new pictures: one column a class, or a number."""
        pictures = self._new(X)
        self.fitted_, found = scored(self.fitted_, self._reader(), pictures)
        return found.cpu().numpy()

    # -- explanations, in the order of `ids_`; X is m pictures, as in `predict` ----------------------------------------

    def influence(self, X: Any) -> NDArray[np.float64]:
        """How much each training picture changed each answer, (m, n, C): `f(x) - f_without_i(x)`, exact.

        Answers are scores (`decision_function` of more than two classes) or predicted numbers. Cost: the rows of the
        pictures, their kernel with the training pictures, and m n (n + C).

        Source: papers.md 7.4; the closed form of leave-one-out, seen from another picture.
        """
        cross, solution = torch.cat([new.kernel for new in self.kernel_to_training(X)]), self.solution_
        return influence(solution.system, solution.targets.balance, cross).cpu().numpy()

    def contributions(self, X: Any) -> NDArray[np.float64]:
        """The additive split of each answer over training pictures, (m, n, C): `k(x, x_i) c_i`.

        They sum to `f(x) - intercept_`. What contributes much may have little influence: others would stand in for it.
        """
        system, found = self.solution_.system, self.kernel_to_training(X)
        return torch.cat([contributions(system, new.kernel) for new in found]).cpu().numpy()

    def leave_out(self, groups: ArrayLike | int) -> NDArray[np.float64]:
        """Predictions (n, C) for every training picture by the model fitted without its whole group, exact.

        Args:
            groups: (n,) a label for each picture: its patient, camera, day, or fold; or K for K folds, stratified for
                a classifier. Cost n g^2 for the largest group g.

        Raises:
            InputError: there are fewer than two groups, or too few pictures for K folds.
        """
        return explanations.leave_out(self._solved(), groups)

    def informativeness(self, X: Any = None) -> NDArray[np.float64]:
        """What each training picture adds that no other has, (n,): its smooth unique information, in nats.

        Args:
            X: pictures on which it is judged: `mean_x ||f(x) - f_without_i(x)||^2 / (2 s^2)`; None judges by the
                solution itself, `||f - f_without_i||^2 damping / (2 s^2)`, in the norm of the prior. s^2 is the noise
                variance, here the weighted mean squared leave-one-out error of an output.

        Source: Harutyunyan et al. (2021), "Estimating informativeness of samples with smooth unique information".
        """
        return explanations.informativeness(self.solution_, None if X is None else self.kernel_to_training(X))

    def suspects(self, k: int | None = None) -> Suspects:
        """The k pictures (None: all) whose labels look most like mistakes, worst first: a list to look through.

        Each is held against what all others predict, at a damping that does not trust single labels. Cost n^3.

        Raises:
            InputError: k is below 1.
        """
        return explanations.suspects(self._solved(), k)

    def weight_gradient(self, evaluate: ArrayLike | None = None) -> NDArray[np.float64]:
        """Derivative of the mean squared leave-one-out error by each picture's weight, (n,): the dataset derivative.

        Negative where more of a picture would help the others; `reweight` takes steps against it. Cost n^2 C.

        Args:
            evaluate: (n,) shares, or a mask, of the pictures whose error counts; None counts all.

        Raises:
            InputError: the shares do not fit.

        Source: Achille et al. (2022), "DIVA: Dataset Derivative of a Learning Task".
        """
        shares = None if evaluate is None else torch.from_numpy(np.asarray(evaluate, np.float64))
        return weight_gradient(self.solution_.system, evaluate=shares).cpu().numpy()

    def ood_score(self, X: Any) -> NDArray[np.float64]:
        """How far each picture lies from all training pictures, as the model sees them: out-of-distribution score (m,).

        The share of the prior variance of the answer that the training pictures leave open, directions outside the
        data included, as the share of training pictures that had a smaller one when they were left out. Both exact. Up
        to 1 a quantile among the training pictures; beyond the most distant of them, 1 plus the relative excess.
        """
        system, found = self.solution_.system, self.kernel_to_training(X)
        shares = [explanations.open_share(variance(system, new.kernel, new.own), new.own) for new in found]
        return explanations.ood_scores(explanations.known_shares(self.solution_), torch.cat(shares))

    def kernel_to_training(self, X: Any, *, whole: bool = False) -> Iterator[KernelToTraining]:
        """New pictures as the solved problem sees them, in portions, unless they are wanted as a whole.

        The rows of the training pictures stay in memory from now on if there is room.
        """
        pictures, reader = self._load(X, None, self._fitted().backbone, labelled=False, reset=False), self._reader()
        self.fitted_ = with_rows(self._solved(), reader)
        return kernel_to_training(self.fitted_, reader, pictures, whole=whole)

    # -- edits: in place, whole or not at all --------------------------------------------------------------------------

    def forget(self, ids: Any, *, strict: bool = False) -> Self:
        """Take pictures out, as if they had never been fitted.

        Args:
            ids: one id or several, each as in `ids_`, its number, or the end of its path where that is unique
                ("cat/1.png", "1.png" or "1"). Cost n^2 each; the next `predict` pays for one pass over the rows.
            strict: also estimate anew without them what the feature map took from the pictures: probes, metric, outer
                steps. Costs a fit whose choices are made.

        Raises:
            InputError: an id is unknown, or too little would be left.
        """
        fitted = self._fitted()
        if not strict:
            return self._become(edits.forget(fitted, ids))
        settings = read_settings(self.get_params(deep=False), fitted.backbone, fitted.seed)
        return self._become(edits.forget_strictly(fitted, ids, self._reader(), settings))

    def forget_class(self, name: Any, *, strict: bool = False) -> Self:
        """Take a whole class out, with its column of scores; as `forget` of its pictures."""
        return self.forget(edits.class_members(self._fitted(), name), strict=strict)

    def add(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None, *, new_class: bool = False) -> Self:
        """Add pictures; the last of `ids_` are theirs.

        Args:
            X: k pictures, as in `fit`. Cost: their rows, their kernel with the others, and n^2 k.
            y: labels; None takes those of the source.
            sample_weight: (k,); None means ones.
            new_class: whether labels may name classes that are not there; else a typing error would make one.

        Raises:
            InputError: pictures or labels cannot be used, a path is there already, or a class is not.
        """
        self._fitted().check_pictures()
        loaded = self._load(X, y, self.fitted_.backbone, labelled=True, reset=False)
        return self._become(edits.add(self.fitted_, loaded, sample_weight, self._reader(), new_class))

    def relabel(self, ids: Any, y: Any, *, new_class: bool = False) -> Self:
        """Give pictures other labels; cost n^2 C.

        Args:
            ids: one id or several, as in `forget`.
            y: one label for all, or one for each, in the order of the ids.
            new_class: as in `add`.

        Raises:
            InputError: an id is unknown, or the labels do not fit.
        """
        return self._become(edits.relabel(self._fitted(), ids, y, new_class))

    def reweight(self, weights: ArrayLike) -> Self:
        """Give every picture another sample weight, (n,); 0 leaves it out. Cost n^2 for each changed one, at most n^3.

        Raises:
            InputError: there are not n weights, one is negative or not finite, or fewer than two are positive.
        """
        return self._become(edits.reweight(self._fitted(), weights))

    def undo(self) -> Self:
        """Take the last edit of this session back; called again, the one before. One of many edits ago costs n^3.

        Raises:
            InputError: there is none left. A loaded model starts without.
        """
        return self._become(edits.undo(self._fitted()))

    def _become(self, fitted: FittedModel) -> Self:
        self.fitted_ = fitted
        return self

    def _fitted(self) -> FittedModel:
        check_is_fitted(self)
        return self.fitted_

    def _solved(self) -> FittedModel:
        """The fitted model with its solution, kept for the next question."""
        if self._fitted().solution is None:
            self.fitted_ = replace(self.fitted_, solution=solved(self.fitted_))
        return self.fitted_

    def save_pretrained(self, directory: str | os.PathLike[str], *, pictures: bool = True) -> None:
        """Write the model: safetensors, JSON, the log of its edits, and a README.md a person can read; atomic.

        Args:
            directory: where; a model there is replaced.
            pictures: keep the training pictures at the network's size, which explanations and edits of the saved model
                need; without them it predicts, and has its leave-one-out predictions.

        Raises:
            StoreError: if the directory cannot be written, or holds something else or a later version of this model.
        """
        kept = pictures and self._fitted().training.has_pictures
        self.fitted_ = with_primal(self._fitted(), self._reader())
        card, features = render_card(summarise(self), len(self.edits_), kept), getattr(self, "n_features_in_", None)
        name, options = type(self).__name__, self.get_params(deep=False)
        version = saving.save(directory, name, options, self.fitted_, card, pictures=kept, features=features)
        self.fitted_ = replace(self.fitted_, version=version)

    def export(self, path: str | os.PathLike[str], *, error_bar: bool = False) -> Any:
        """Write one file that predicts without this library: FILE.onnx for ONNX Runtime, FILE.pt2 for torch.

        With `error_bar` also the standard deviation of every score. Returns `path`, `bytes`, `outputs`, the
        `difference` from the model, and `seconds` a picture; errors are those of `tangentune.deployment.export`.
        """
        deployment = import_module("tangentune.deployment.export")  # by name: it stands on this file, and is optional
        self.fitted_ = with_primal(self._fitted(), self._reader())
        return deployment.export(self.fitted_, path, self._reader() if error_bar else None)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, backbone: AnyBackbone | None = None, device: Any = None
    ) -> Self:
        """Read what `save_pretrained` wrote; predictions are bit-equal on the same machine.

        Args:
            directory: a saved model.
            backbone: needed if the model was fitted on a network of your own; checked against the saved hash. Pictures
                are prepared as for the fit, whatever it states; a field that it states otherwise is told.
            device: where to run.

        Raises:
            StoreError: if the directory is no model, damaged, holds what no fit leaves, or a newer version wrote it.
            BackboneError: if the backbone is not the one the model was fitted on.
        """
        options, fitted, features = saving.load(cls.__name__, directory, backbone, device)
        estimator = cls(**options)
        if features is not None:
            estimator.n_features_in_ = features
        return estimator._become(fitted)

    def __sklearn_tags__(self) -> Any:
        """Tags: dense 2-D input without NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.allow_nan = False
        return tags
