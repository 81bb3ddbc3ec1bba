"""A finite feature map of the tangent kernel: rows of a fixed width for any number of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor
from torch.nn import functional as F

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.training_set import PictureReader, RowReader
from tangentune.estimators.user_input import load_inputs, read_count, read_seed
from tangentune.kernels.feature_map import FeatureRows, TangentMap, collect_rows, cross_kernel, portion_rows
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.networks.backbone import AnyBackbone, as_backbone
from tangentune.pictures.label_sets import aligned, is_sets, label_matrix, label_sets
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.landmarks import choose_landmarks, inverse_root
from tangentune.solvers.sums import TangentSums


@final
@dataclass(frozen=True, eq=False)
class LandmarkMap:
    """`phi~(x) = [phi_head(x), K_uu^(-1/2) k_body(u, x)]` for landmarks u: products are the kernel's part they span."""

    reader: RowReader
    landmarks: FeatureRows  # (m,)
    root: Tensor  # (m, rank) with `root root^T = K_uu^-1` on what the landmarks span

    def rows(self, own: FeatureRows) -> Tensor:
        """(n, d + rank) float64."""
        return torch.cat([own.phi, body_kernel(self.reader.feature_map, own, self.landmarks) @ self.root], 1)


@final
@usual_torch
class TangentFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pictures as rows of fixed width, whose inner products are the tangent kernel, for sets of any size.

    `fit` chooses landmark pictures and fits a `TangentClassifier` (numbers: `TangentRegressor`) at the pre-trained
    weights to these alone; metric, scales and normalisation are frozen as chosen there. Then a picture is
    `[head features, K_uu^(-1/2) k(u, x)]`, the Nystroem map of the body's kernel at the landmarks u. With every picture
    a landmark it is the kernel itself. Rows go into any linear model, or, shard by shard, into `TangentSums`, which
    solve the same least-squares problem as the estimators in the width of the rows, with exact leave-one-out.

    Args:
        backbone: as of `TangentClassifier`, and so are all that are not named here.
        landmarks: pictures that span the map, at most; more cost more, and lose less.
        random_state: of the choice of landmarks, and of the probes.

    Attributes:
        landmarks_: names of the landmark pictures; `model_` the estimator fitted to them.
        damping_: as chosen at the landmarks; for many pictures `TangentSums.factor().loo_errors` may find a better one.
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

    def __init__(
        self,
        backbone: AnyBackbone = "mobilenet_v2",
        *,
        landmarks: int = 500,
        metric_power: str | float = "loo",
        body_scale: str | float = "loo",
        normalize: str | bool = "loo",
        augment: str | None = "loo",
        input_size: int | tuple[int, ...] | None = None,
        batch_size: int = 32,
        memory_budget: int | str | None = None,
        device: str | torch.device | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.backbone = backbone
        self.landmarks = landmarks
        self.metric_power = metric_power
        self.body_scale = body_scale
        self.normalize = normalize
        self.augment = augment
        self.input_size = input_size
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.device = device
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Choose landmarks among pictures X, labelled by y or by their source, and freeze the map."""
        count = read_count(vars(self), "landmarks", 2)
        backbone = as_backbone(self.backbone, self.input_size)
        backbone = backbone if self.device is None else backbone.to(self.device)
        pictures = load_inputs(self, X, y, backbone, labelled=True, reset=True)
        seed, labels = read_seed(self.random_state), np.asarray(pictures.labels)
        with warm_pages(), torch.no_grad():
            features = F.normalize(mean_features(backbone, pictures, self.batch_size, False).double(), dim=1)
            chosen = choose_landmarks(features, min(count, len(pictures)), seed).cpu().numpy()
        options = self.get_params(deep=False) | {"backbone": backbone, "outer_steps": 0, "random_state": seed}
        kind = TangentRegressor if labels.dtype.kind == "f" else TangentClassifier
        del options["landmarks"], options["device"]
        self.model_ = kind(**options).fit(pictures.select(chosen))
        self.landmarks_ = [pictures.ids[i] for i in chosen]
        self.damping_ = self.model_.damping_
        self._map = self._frozen(pictures.select(chosen))
        self._n_features_out = len(self._map.root.T) + self._map.landmarks.phi.shape[1]
        self.fingerprint_ = self._fingerprint(pictures.select(chosen))
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Rows (n, d + rank) of pictures X."""
        return torch.cat(list(self._rows(self._new(X)))).cpu().numpy()

    def sums(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> TangentSums:
        """Sums over labelled pictures X, portion by portion: of a shard, an owner, or what is to be taken out again.

        Classes are those of the landmarks, in the order of `model_.classes_`; another one is an InputError.
        """
        pictures = load_inputs(self, X, y, self.model_.backbone_, labelled=True, reset=False)
        targets = self._targets(np.asarray(pictures.labels))
        weights = torch.ones(len(pictures)) if sample_weight is None else torch.as_tensor(np.asarray(sample_weight))
        total, done = None, 0
        for rows in self._rows(pictures):
            here = slice(done, done := done + len(rows))
            part = TangentSums.of(rows, targets[here].to(rows), self.fingerprint_, weights[here].to(rows))
            total = part if total is None else total + part
        assert total is not None
        return total

    def _targets(self, labels: NDArray) -> Tensor:
        if isinstance(self.model_, TangentRegressor):
            return torch.from_numpy(labels.reshape(len(labels), -1).astype(np.float64))
        classes = self.model_.classes_
        if self.model_.thresholds_ is not None:  # several labels a picture, which are as good targets
            sets = labels if is_sets(labels) else label_sets(labels, classes.tolist())
            return torch.from_numpy(label_matrix(aligned(sets, classes))).double()
        if len(strange := np.setdiff1d(labels, classes)):
            raise InputError(f"{strange.tolist()[0]!r} is no class of the landmarks ({', '.join(map(str, classes))})")
        return F.one_hot(torch.from_numpy(np.searchsorted(classes, labels)), len(classes)).double()

    def _new(self, X: Any) -> Pictures:
        if not hasattr(self, "model_"):
            raise InputError("these features are not fitted yet; call fit with some pictures first")
        return load_inputs(self, X, None, self.model_.backbone_, labelled=False, reset=False)

    @torch.no_grad()
    def _frozen(self, landmarks: Pictures) -> LandmarkMap:
        """The map of the model that was fitted to the landmarks."""
        feature_map = self.model_.model_.map
        pictures = PictureReader(self.model_.backbone_, self.batch_size, feature_map.mirrored, self.verbose)
        reader = RowReader(feature_map, pictures.open, 0)
        with warm_pages():
            rows = collect_rows(feature_map, lambda: reader.portions(landmarks), len(landmarks))
        return LandmarkMap(reader, rows, inverse_root(body_kernel(feature_map, rows, rows)))

    def _rows(self, pictures: Pictures) -> Iterator[Tensor]:
        """Rows of some pictures, batch by batch."""
        with warm_pages(), torch.no_grad():
            for portion in self._map.reader.portions(pictures):
                yield self._map.rows(portion_rows(self._map.reader.feature_map, portion))

    def _fingerprint(self, landmarks: Pictures) -> str:
        told, model = hashlib.sha256(), self.model_
        told.update(repr(sorted(model.backbone_.describe().items(), key=str)).encode())
        chosen = (model.augment_, model.metric_power_, model.normalize_, model.body_scale_, model.block_scales_)
        told.update(repr((chosen, landmarks.digests)).encode())
        told.update(np.ascontiguousarray(model.probes_).tobytes())
        return told.hexdigest()


def body_kernel(feature_map: TangentMap, own: FeatureRows, landmarks: FeatureRows) -> Tensor:
    """(n, m) kernel of the body alone."""
    return cross_kernel(feature_map, own, landmarks) - own.phi @ landmarks.phi.T
