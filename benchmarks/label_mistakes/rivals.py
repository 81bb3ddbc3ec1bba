"""Other ways to rank labels by doubt: cross-validated probes, nearest neighbours, confident learning.

Every ranker takes (n, d) features (means over each picture and its mirror image) and (n,) given labels, and returns
(n,) scores, the largest being the most doubtful.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from benchmarks.study import stopwatch

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
STRENGTHS = tuple(10 ** (k / 2) for k in range(-8, -1))
NEIGHBOURS = (5, 10, 20, 30, 50, 100)
SHARPNESS = 10.0  # votes of neighbours weigh exp(10 cosine), which was better than equal ones
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)
QUALITIES: dict[str, dict[str, Any]] = {  # plain self-confidence ranks as the logistic probe's own row does
    "normalised margin": {"method": "normalized_margin"},
    "confidence-weighted entropy": {"method": "confidence_weighted_entropy"},
    "adjusted self-confidence": {"method": "self_confidence", "adjust_pred_probs": True},
}


def rankings(features: Array, given: Labels) -> dict[str, tuple[Array, dict[str, float]]]:
    """Name -> scores and processor seconds, features not counted; cleanlab's include those of its probabilities."""
    out: dict[str, tuple[Array, dict[str, float]]] = {}
    rows = np.arange(len(given))

    def add(name: str, scores: Callable[[], Array], before: float = 0.0) -> None:
        with stopwatch() as spent:
            found = scores()
        out[name] = found, {"cpu_seconds": before + spent["cpu_seconds"]}

    with stopwatch() as spent:
        probabilities = logistic_probabilities(features, given)
    before = spent["cpu_seconds"]
    add("logistic probe, 5-fold", lambda: -probabilities[rows, given], before)
    add("cleanlab, confident learning", lambda: confident_learning(given, probabilities), before)
    for name, options in QUALITIES.items():
        add(f"cleanlab, {name}", lambda o=options: -get_label_quality_scores(given, probabilities, **o), before)
    with stopwatch() as spent:
        predictions = ridge_predictions(features, given)
    before, own = spent["cpu_seconds"], predictions[rows, given]
    others = predictions.copy()
    others[rows, given] = -np.inf
    add("ridge probe, 5-fold", lambda: -own, before)
    add("ridge probe, 5-fold, margin", lambda: others.max(1) - own, before)
    for k in NEIGHBOURS:
        add(f"nearest neighbours, k={k}", partial(disagreement, features, given, k))
    return out


def logistic_probabilities(features: Array, given: Labels) -> Array:
    """Cross-validated probabilities; the strength with the lowest cross-validated log-loss is taken."""
    tried = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        tried.append(np.asarray(cross_val_predict(model, features, given, cv=FOLDS, method="predict_proba")))
    return tried[int(np.argmin([log_loss(given, probabilities) for probabilities in tried]))]


def ridge_predictions(features: Array, given: Labels) -> Array:
    """Cross-validated ridge regression of one-hot labels on features of length one."""
    unit, targets = normalize(features), np.eye(int(given.max()) + 1)[given]
    folds = list(FOLDS.split(unit, given))
    return np.asarray(cross_val_predict(RidgeCV(alphas=np.logspace(-3, 3, 13)), unit, targets, cv=folds))


def disagreement(features: Array, given: Labels, k: int) -> Array:
    """Weighted share of the k nearest pictures, by cosine, that carry another label."""
    unit = np.asarray(normalize(features))
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    votes = np.exp(SHARPNESS * np.take_along_axis(cosines, nearest, axis=1))
    return (votes * (given[nearest] != given[:, None])).sum(1) / votes.sum(1)


def confident_learning(given: Labels, probabilities: Array) -> Array:
    """Labels that `find_label_issues` flags first, then all others, both by self-confidence."""
    own = probabilities[np.arange(len(given)), given]
    return find_label_issues(given, probabilities, filter_by="prune_by_noise_rate").astype(float) - own
