"""How a model does on labelled pictures that it has not seen: scores with intervals, classes, and a page of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune.estimators.scores import Judged, judge
from tangentune.pictures.pictures import Pictures
from tangentune.reports import figures as plots
from tangentune.reports import tables
from tangentune.reports.explanation import numbers_text
from tangentune.reports.pages import Estimator, is_classifier, render, thumbnail
from tangentune.solvers import metrics

Interval = tuple[float, float]


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came of a test set."""

    pictures: Pictures  # of the test set, with their labels
    judged: Judged
    classes: tuple[str, ...]  # names in the order of the probabilities; empty for numbers and several labels
    intervals: dict[str, Interval]  # 95 % intervals of some of the scores
    confusion: NDArray[np.int64]  # (C, C) pictures by given and by predicted class; (0, 0) for numbers

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy, log-loss, calibration error and Brier score; or R2 and RMSE."""
        return self.judged.scores

    @property
    def known(self) -> int:
        """Pictures that the model was fitted on, each answered by the model without it."""
        return self.judged.answers.known


def evaluate(model: Estimator, pictures: Pictures) -> Evaluation:
    """Judge a fitted model by labelled pictures; intervals are those of as many pictures drawn like these.

    Of shares Wilson's (1927), of means the normal ones; calibration error and R2 have none, nor several labels.
    """
    judged = judge(model, pictures)
    targets, values = judged.targets, judged.answers.values
    if judged.labels:
        return Evaluation(pictures, judged, (), {}, np.zeros((0, 0), np.int64))
    if not is_classifier(model):
        low, high = metrics.mean_interval(_squares(targets, values))
        interval = (max(low, 0.0) ** 0.5, max(high, 0.0) ** 0.5)
        return Evaluation(pictures, judged, (), {"rmse": interval}, np.zeros((0, 0), np.int64))
    names = tuple(str(name) for name in model.classes_)
    intervals = {
        "accuracy": metrics.accuracy_interval(judged.scores["accuracy"], len(targets)),
        "nll": metrics.mean_interval(metrics.case_nll(targets, values)),
        "brier": metrics.mean_interval(metrics.case_brier(targets, values)),
    }
    table = metrics.confusion_matrix(targets, values.argmax(1), len(names))
    return Evaluation(pictures, judged, names, intervals, table)


def render_evaluation(model: Estimator, found: Evaluation) -> str:
    """A test set as one HTML page; the same input gives the same page."""
    name, n = str(model.backbone_.name), len(found.pictures)
    context: dict[str, Any] = {
        "network": "the network" if name == "custom" else name,
        "n": n,
        "trained_on": len(model.ids_),
        "known": found.known,
        "classification": bool(found.classes),
        "headline": _headline(found),
        "hardest": _hardest(found),
        "skipped": found.pictures.skipped,
    }
    targets, values = found.judged.targets, found.judged.answers.values
    if found.classes:
        curve = plots.reliability_figure(metrics.reliability(targets, values))
        error = 100 * found.scores["ece"]
        alt = f"Share right against confidence; the expected calibration error is {error:.1f} percent."
        context |= {
            "reliability_svg": plots.to_svg(curve, key="reliability", alt=alt),
            "confusion": tables.confusion_rows(found.confusion, found.classes),
            "per_class": tables.class_rows(found.confusion, found.classes),
            "pairs": tables.commonest_confusions(found.confusion, found.classes),
        }
    else:
        figure = plots.scatter_figure(targets, values.reshape(targets.shape), "prediction")
        alt = "Predictions against true values; perfect predictions lie on the diagonal."
        context["scatter_svg"] = plots.to_svg(figure, key="scatter", alt=alt)
    return render("evaluation.html.j2", context)


def _headline(found: Evaluation) -> list[dict[str, str]]:
    """The large numbers at the top: value, name, and what to hold it against."""
    scores, n = found.scores, len(found.pictures)
    if not found.classes:
        low, high = found.intervals["rmse"]
        tiles = [
            (f"{scores['r2']:.3f}", "R²", "1 is perfect, 0 is the mean"),
            (f"{scores['rmse']:.4g}", "root mean squared error", f"95 % interval {low:.4g} to {high:.4g}"),
        ]
    else:
        low, high = found.intervals["accuracy"]
        largest = found.confusion.sum(1).max() / n
        right = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
        right += f"always naming the largest class: {100 * largest:.1f} %"
        low, high = found.intervals["nll"]
        loss = f"nats a picture; 95 % interval {low:.3f} to {high:.3f}; even guessing: {np.log(len(found.classes)):.3f}"
        gap = "mean gap between confidence and share right (15 bins)"
        tiles = [
            (f"{100 * scores['accuracy']:.1f} %", "right", right),
            (f"{scores['nll']:.3f}", "negative log-likelihood", loss),
            (f"{100 * scores['ece']:.1f} %", "calibration error", gap),
        ]
    return [{"value": value, "name": name, "note": note} for value, name, note in tiles]


def _squares(targets: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean squared error of each picture."""
    return ((targets - values.reshape(targets.shape)) ** 2).reshape(len(targets), -1).mean(1)


def _hardest(found: Evaluation) -> list[dict[str, Any]]:
    """What the tiles of the pictures show that were answered worst, the worst first."""
    targets, values = found.judged.targets, found.judged.answers.values
    error = metrics.case_nll(targets, values) if found.classes else _squares(targets, values)
    tiles = []
    for i in np.argsort(-error, kind="stable")[: tables.SUSPECTS].tolist():
        tile = {"id": found.pictures.ids[i], "image": thumbnail(found.pictures, i), "mend": None}
        if found.classes:
            best = int(values[i].argmax())
            tile |= {"given": found.classes[targets[i]], "given_share": float(values[i, targets[i]])}
            tile |= {"predicted": found.classes[best], "confidence": float(values[i, best])}
            tile |= {"wrong": best != int(targets[i])}
        else:
            tile |= {"given": numbers_text(targets[i]), "predicted": numbers_text(values[i]), "wrong": True}
        tiles.append(tile)
    return tiles
