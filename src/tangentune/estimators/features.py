"""A finite feature map of the tangent kernel: rows of a fixed width for any number of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor
from torch.nn import functional as F

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.estimators.base import TangentEstimator
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.fit import survey_network
from tangentune.estimators.frozen_map import FrozenMap, fingerprint_of, rows_in_memory
from tangentune.estimators.map_directory import load_map, save_map
from tangentune.estimators.merged import check_map, solve_sums
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.training_set import PictureReader
from tangentune.estimators.user_input import load_inputs, read_count, read_seed, read_settings
from tangentune.kernels.data_independent import NOISE, POWER, data_independent_map, pink_noise
from tangentune.kernels.landmark_map import LandmarkMap
from tangentune.kernels.sketch import SketchMap, draw_sketch, row_sizes
from tangentune.kernels.stages import draw_probes
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.networks.backbone import AnyBackbone, Backbone, as_backbone
from tangentune.pictures.label_sets import aligned, is_sets, label_matrix, label_sets
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.home_scores import HomeScores, Judge
from tangentune.solvers.landmarks import choose_landmarks
from tangentune.solvers.sums import TangentSums


@final
@usual_torch
class TangentFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pictures as rows of fixed width, whose inner products are the tangent kernel, for sets of any size.

    `fit` chooses landmark pictures and fits a `TangentClassifier` (numbers: `TangentRegressor`) at the pre-trained
    weights to these alone; metric, scales and normalisation are frozen as chosen there. Then a picture is
    `[head features, K_uu^(-1/2) k(u, x)]`, the Nystroem map of the body's kernel at the landmarks u. With every picture
    a landmark it is the kernel itself. Rows go into any linear model, or, shard by shard, into `TangentSums`, which
    solve the same least-squares problem as the estimators in the width of the rows, with exact leave-one-out.

    Without landmarks the map is data-independent: `width` random numbers whose products are the body's kernel on
    average, with an error that falls as `width^-1/2`; its metric comes from seeded noise. It is for owners who may not
    show one another any picture, and worth no more than the head alone (`body_scale=0`) where that was measured.

    Args:
        backbone: as of `TangentClassifier`, and so are all that are not named here.
        landmarks: pictures that span the map, at most; more cost more, and lose less. None: a data-independent map.
        width: numbers of a picture's body in a data-independent map.
        random_state: of the choice of landmarks, of the probes, of the sketch and its noise.

    Attributes:
        landmarks_: names of the landmark pictures; none of a data-independent map.
        model_: the estimator that `fit` fitted to the landmarks.
        damping_: as chosen at the landmarks, None without; for many pictures `TangentSums.factor().loo_errors` may find
            a better one.
        fingerprint_: of the map: network, preparation, landmarks, choices; sums of other maps are refused.

    Cost: one forward pass over the pictures and a fit of the landmarks; `transform` takes forward and backward passes
    over its pictures, and their products with the landmarks' rows, which stay in memory.

    Source: design.md section 7; landmarks by randomly pivoted Cholesky (Chen, Epperly, Tropp and Webber 2024).

    Example:
        >>> import tangentune
        >>> from sklearn.linear_model import RidgeClassifier
        >>> from sklearn.pipeline import make_pipeline
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
        >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
        >>> features = TangentFeatures(tangentune.Backbone(net), landmarks=40)
        >>> model = make_pipeline(features, RidgeClassifier()).fit(x, x[:, 0] * x[:, 1] > 0)
        >>> model.score(x, x[:, 0] * x[:, 1] > 0) > 0.8
        True
    """

    n_features_in_: int  # of vectors

    def __init__(
        self,
        backbone: AnyBackbone = "mobilenet_v2",
        *,
        landmarks: int | None = 500,
        width: int = 4096,
        metric_power: str | float = "loo",
        body_scale: str | float = "loo",
        normalize: str | bool = "loo",
        augment: str | None = "loo",
        input_size: int | tuple[int, ...] | None = None,
        batch_size: int = 32,
        memory_budget: int | str | None = None,
        device: str | torch.device | None = None,
        autocast: str | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.backbone = backbone
        self.landmarks = landmarks
        self.width = width
        self.metric_power = metric_power
        self.body_scale = body_scale
        self.normalize = normalize
        self.augment = augment
        self.input_size = input_size
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.device = device
        self.autocast = autocast
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Choose landmarks among pictures X, labelled by y or by their source, and freeze the map.

        A data-independent map needs none, and of vectors only their length.
        """
        backbone = as_backbone(self.backbone, self.input_size, self.device, self.autocast)
        seed = read_seed(self.random_state)
        frozen = self._independent(X, backbone, seed) if self.landmarks is None else self._spanned(X, y, backbone, seed)
        return self._become(frozen)

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Rows (n, width) of pictures X."""
        return torch.cat(list(self._rows(self._load(X, None, labelled=False)))).cpu().numpy()

    def sums(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> TangentSums:
        """Sums over labelled pictures X, portion by portion: of a shard, an owner, or what is to be taken out again.

        Labels of type float are numbers to predict; others are classes, whatever those of the landmarks were.
        """
        pictures = self._load(X, y, labelled=True)
        weights = torch.ones(len(pictures)) if sample_weight is None else torch.as_tensor(np.asarray(sample_weight))
        parts = (
            TangentSums.of(rows, targets, self.fingerprint_, weights[here].to(rows), classes=classes)
            for rows, targets, classes, here in self._labelled_rows(pictures)
        )
        return reduce(add, parts)

    def score_at_home(self, X: Any, y: Any, judge: Judge) -> HomeScores:
        """Exact leave-one-out of labelled pictures X, which are in the judge's sums, as totals that add.

        For owners who do not share pictures: each makes its own from the same sums, and `solve` takes them together.
        """
        pictures = self._load(X, y, labelled=True)
        check_map(self._frozen(), judge.fingerprint, len(judge.factor.mean))
        portions = self._labelled_rows(pictures)
        return reduce(add, (judge.score(rows, targets, classes) for rows, targets, classes, _ in portions))

    def solve(
        self, total: TangentSums, damping: float | None = None, *, scores: HomeScores | None = None
    ) -> TangentClassifier | TangentRegressor:
        """The fitted estimator of some sums; a classifier if they are of classes.

        It predicts as any other, is saved and read, and needs neither map nor pictures. Questions about the pictures of
        a fit, and edits, are InputErrors: other sums make another model.

        Args:
            total: sums of this map.
            damping: absolute; None takes the one of least leave-one-out error where there are scores, else of least
                generalised cross-validation error.
            scores: of all owners, added, made with these very sums: damping, probabilities and scores are then those
                of exact leave-one-out, without the pictures.

        Cost: D^3 for rows of width D.

        Raises:
            InputError: the sums are of another map, of one class only, or too few for a damping to be chosen; or the
                scores are not of these sums.
        """
        frozen = self._frozen()
        kind = TangentClassifier if total.classes else TangentRegressor
        given = self.get_params(deep=False)
        options = {name: value for name, value in given.items() if name not in ("landmarks", "width")}
        options |= {"outer_steps": 0, "random_state": read_seed(self.random_state)}
        options |= {"damping": "loo" if damping is None else damping}
        model = kind(**options)
        model.fitted_ = solve_sums(frozen, total, damping, scores, options)
        if hasattr(self, "n_features_in_"):
            model.n_features_in_ = self.n_features_in_
        return model

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the frozen map: safetensors, JSON and a README.md; landmark pictures are in it. Atomic.

        Raises:
            StoreError: if the directory cannot be written, or holds something else.
        """
        save_map(directory, self._frozen(), self.get_params(deep=False), getattr(self, "n_features_in_", None))

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], *, backbone: AnyBackbone | None = None, device: Any = None
    ) -> Self:
        """Read what `save` wrote: the same fingerprint, and on the same machine rows equal in every bit.

        Args:
            directory: a saved map.
            backbone: needed if the map is of a network of your own; checked against the saved hash.
            device: where to run.

        Raises:
            StoreError: if the directory is no map, or damaged.
            BackboneError: if the backbone is not the one of the map.
        """
        options, frozen, vectors = load_map(directory, backbone, device)
        features = cls(**options, device=device)
        if vectors is not None:
            features.n_features_in_ = vectors
        return features._become(frozen)

    def _labelled_rows(self, pictures: Pictures) -> Iterator[tuple[Tensor, Tensor, tuple[Any, ...], slice]]:
        """Rows of labelled pictures with their targets, the names of all classes, and their places, batch by batch."""
        targets, classes = self._targets(np.asarray(pictures.labels))
        done = 0
        for rows in self._rows(pictures):
            here = slice(done, done := done + len(rows))
            yield rows, targets[here].to(rows), classes, here

    def _targets(self, labels: NDArray) -> tuple[Tensor, tuple[Any, ...]]:
        """Targets, and names of the classes; several labels a picture are numbers, in the order of the landmarks'."""
        model = getattr(self, "model_", None)
        if isinstance(model, TangentClassifier) and model.thresholds_ is not None:
            sets = labels if is_sets(labels) else label_sets(labels, model.classes_.tolist())
            return torch.from_numpy(label_matrix(aligned(sets, model.classes_))).double(), ()
        if is_sets(labels):
            raise InputError(
                "sums of several labels a picture need the map as it was fitted to landmarks with such labels"
            )
        return read_targets(labels)

    def _become(self, frozen: FrozenMap) -> Self:
        self.frozen_ = frozen
        self.fingerprint_, self.damping_ = frozen.fingerprint, frozen.damping
        self.landmarks_ = [] if frozen.landmarks is None else list(frozen.landmarks.ids)
        self._n_features_out = frozen.finite.width
        return self

    def _spanned(self, X: Any, y: Any, backbone: Backbone, seed: int) -> FrozenMap:
        """The map of the model that is fitted to landmarks."""
        count = read_count(vars(self), "landmarks", 2)
        pictures = load_inputs(self, X, y, backbone, labelled=True, reset=True)
        with warm_pages(), torch.no_grad():
            features = F.normalize(mean_features(backbone, pictures, self.batch_size, False).double(), dim=1)
            chosen = choose_landmarks(features, min(count, len(pictures)), seed).cpu().numpy()
        options = self.get_params(deep=False) | {"backbone": backbone, "outer_steps": 0, "random_state": seed}
        kind = TangentRegressor if np.asarray(pictures.labels).dtype.kind == "f" else TangentClassifier
        for name in ("landmarks", "width", "device"):
            del options[name]
        landmarks = pictures.select(chosen)
        self.model_: TangentEstimator = kind(**options).fit(landmarks)
        feature_map = self.model_.model_.map
        reader = PictureReader(backbone, self.batch_size, feature_map.mirrored, self.verbose)
        bare, model = landmarks.relabelled(None), self.model_
        with torch.no_grad():
            finite = LandmarkMap.of(feature_map, rows_in_memory(feature_map, reader, bare))
        told = fingerprint_of(backbone, finite, bare)
        return FrozenMap(backbone, finite, bare, told, model.metric_power_, model.damping_)

    def _independent(self, X: Any, backbone: Backbone, seed: int) -> FrozenMap:
        """The map of noise and signs."""
        width, size = read_count(vars(self), "width"), backbone.contract.input_size
        options = TangentClassifier().get_params(deep=False) | self.get_params(deep=False)
        settings = replace(read_settings(options | {"damping": 1.0}, backbone, seed), probe_space="isotropic")
        if size is None:  # vectors
            length = load_inputs(self, X, None, backbone, labelled=False, reset=True).pixels.shape[1]
            pixels = torch.randn(NOISE, length, generator=torch.Generator().manual_seed(seed))
        else:
            pixels = pink_noise(NOISE, (size[0], size[1], size[2]), seed)
        noise = Pictures(pixels, None, [str(i) for i in range(NOISE)])
        reader = PictureReader(backbone, self.batch_size, settings.mirrored, 0)
        inputs = reader.open(noise)
        tangent = survey_network(backbone, inputs, "all", settings.memory_budget)
        with warm_pages(), torch.no_grad():
            probes = draw_probes(tangent, inputs, settings)
            feature_map = data_independent_map(
                tangent, inputs, probes, settings.fixed, settings.power, settings.mirrored
            )
            sizes = row_sizes(rows_in_memory(feature_map, reader, noise.select([0])))
        finite = SketchMap(feature_map, draw_sketch(sizes, width, seed))
        power = POWER if settings.power is None else settings.power
        return FrozenMap(backbone, finite, None, fingerprint_of(backbone, finite, None), power, None)

    def _frozen(self) -> FrozenMap:
        if not hasattr(self, "frozen_"):
            raise InputError("these features are not fitted yet; call fit first, or load a saved map")
        return self.frozen_

    def _load(self, X: Any, y: Any, *, labelled: bool) -> Pictures:
        return load_inputs(self, X, y, self._frozen().backbone, labelled=labelled, reset=False)

    def _rows(self, pictures: Pictures) -> Iterator[Tensor]:
        """Rows of some pictures, batch by batch."""
        frozen = self._frozen()
        mirrored = frozen.feature_map.mirrored
        yield from frozen.rows(PictureReader(frozen.backbone, self.batch_size, mirrored, self.verbose), pictures)


def read_targets(labels: NDArray) -> tuple[Tensor, tuple[Any, ...]]:
    """Targets (n, C) of labels: numbers as they are, or one-hot, with the names of the classes."""
    if labels.dtype.kind == "f":
        return torch.from_numpy(labels.reshape(len(labels), -1).astype(np.float64)), ()
    classes, positions = np.unique(labels, return_inverse=True)
    return F.one_hot(torch.from_numpy(positions), len(classes)).double(), tuple(classes.tolist())
