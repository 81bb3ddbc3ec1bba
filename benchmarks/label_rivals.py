"""Other ways to rank labels by doubt: cross-validated probes, nearest neighbours, confident learning.

Every ranker takes (n, d) features (means over each picture and its mirror image) and (n,) given labels, and returns
(n,) scores, the largest being the most doubtful.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
STRENGTHS = tuple(10 ** (k / 2) for k in range(-8, -1))
NEIGHBOURS = (5, 10, 20, 30, 50, 100)
SHARPNESS = 10.0  # votes of neighbours weigh exp(10 cosine), which was better than equal ones
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)


def rankings(features: Array, given: Labels) -> dict[str, tuple[Array, float]]:
    """Name -> scores and processor seconds, features not counted; cleanlab's include those of its probabilities."""
    out: dict[str, tuple[Array, float]] = {}
    probabilities, spent = _timed(logistic_probabilities, features, given)
    out["logistic probe, 5-fold"] = -probabilities[np.arange(len(given)), given], spent
    for name, ranker in CONFIDENT.items():
        scores, seconds = _timed(ranker, given, probabilities)
        out[f"cleanlab, {name}"] = scores, spent + seconds
    predictions, spent = _timed(ridge_predictions, features, given)
    own = predictions[np.arange(len(given)), given]
    out["ridge probe, 5-fold"] = -own, spent
    out["ridge probe, 5-fold, margin"] = best_other(predictions, given) - own, spent
    for k in NEIGHBOURS:
        out[f"nearest neighbours, k={k}"] = _timed(disagreement, features, given, k)
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
    unit, targets = _unit(features), np.eye(int(given.max()) + 1)[given]
    folds = list(FOLDS.split(unit, given))
    return np.asarray(cross_val_predict(RidgeCV(alphas=np.logspace(-3, 3, 13)), unit, targets, cv=folds))


def disagreement(features: Array, given: Labels, k: int) -> Array:
    """Weighted share of the k nearest pictures, by cosine, that carry another label."""
    unit = _unit(features)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    votes = np.exp(SHARPNESS * np.take_along_axis(cosines, nearest, axis=1))
    return (votes * (given[nearest] != given[:, None])).sum(1) / votes.sum(1)


def confident_learning(given: Labels, probabilities: Array) -> Array:
    """Labels that `find_label_issues` flags first, then all others, both by self-confidence."""
    own = probabilities[np.arange(len(given)), given]
    return find_label_issues(given, probabilities, filter_by="prune_by_noise_rate").astype(float) - own


def _quality(method: str, *, adjust: bool = False) -> Callable[[Labels, Array], Array]:
    def ranker(given: Labels, probabilities: Array) -> Array:
        return -get_label_quality_scores(given, probabilities, method=method, adjust_pred_probs=adjust)

    return ranker


# Plain self-confidence ranks as the logistic probe's own row does.
CONFIDENT: dict[str, Callable[[Labels, Array], Array]] = {
    "confident learning": confident_learning,
    "normalised margin": _quality("normalized_margin"),
    "confidence-weighted entropy": _quality("confidence_weighted_entropy"),
    "adjusted self-confidence": _quality("self_confidence", adjust=True),
}


def _timed(ranker: Callable[..., Array], *args: Any) -> tuple[Array, float]:
    start = time.process_time()
    return ranker(*args), time.process_time() - start


def best_other(scores: Array, given: Labels) -> Array:
    """(n,) largest score of any class but the given one."""
    others = scores.copy()
    others[np.arange(len(given)), given] = -np.inf
    return others.max(1)


def _unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)
