"""How a model does on labelled pictures that it has not seen: scores with intervals, classes, and a page of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import nice_number
from tangentune.estimators.scores import Answers, Judged, judge
from tangentune.pictures.pictures import Pictures
from tangentune.reports import tables
from tangentune.reports.gallery import Link, gallery
from tangentune.reports.pages import Estimator, is_classifier, render
from tangentune.solvers import metrics

Interval = tuple[float, float]
_Tile = tuple[str, str, str, str]  # a figure, its name, what to hold it against, the word that explains it


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


def evaluate(model: Estimator, pictures: Pictures, answers: Answers | None = None) -> Evaluation:
    """Judge a fitted model by labelled pictures; intervals are those of as many pictures drawn like these.

    Answers that are there already are not asked for again; pixels are then needed for the page only.

    Of shares Wilson's (1927), of means the normal ones; calibration error and R2 have none, nor several labels.
    """
    judged = judge(model, pictures, answers)
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


def render_evaluation(model: Estimator, found: Evaluation, link: Link | None = None) -> str:
    """A test set as one HTML page; the same input gives the same page."""
    name, n = str(model.backbone_.name), len(found.pictures)
    tiles, figures, tiled = _several(model, found) if found.judged.labels else _single(found)
    context: dict[str, Any] = {
        "network": "the network" if name == "custom" else name,
        "n": n,
        "trained_on": len(model.ids_),
        "known": found.known,
        "classes": len(found.classes),
        "labels": [asdict(row) | {"share": row.pictures / n} for row in found.judged.labels],
        "tiles": [dict(zip(("value", "name", "note", "term"), tile, strict=True)) for tile in tiles],
        "figures": [dict(zip(("value", "name", "note", "term"), figure, strict=True)) for figure in figures],
        "gallery": gallery(found.pictures, tiled, link),
        "skipped": found.pictures.skipped,
    }
    targets, values = found.judged.targets, found.judged.answers.values
    if found.classes:
        context |= _reliability(targets, values, found.scores) | {
            "confusion": tables.confusion_rows(found.confusion, found.classes),
            "per_class": tables.class_rows(found.confusion, found.classes),
            "pairs": tables.commonest_confusions(found.confusion, found.classes),
        }
    elif found.judged.labels:
        flat = values.ravel()
        context |= _reliability(targets.ravel(), np.stack([1 - flat, flat], axis=1), found.scores)
    else:
        from tangentune.reports import figures as plots  # with matplotlib, which scores alone need not wait for

        figure = plots.scatter_figure(targets, values.reshape(targets.shape), "prediction")
        alt = "Predictions against true values; perfect predictions lie on the diagonal."
        context["scatter_svg"] = plots.to_svg(figure, key="scatter", alt=alt)
    return render("evaluation.html.j2", context)


def _reliability(targets: NDArray[Any], values: NDArray[Any], scores: dict[str, float]) -> dict[str, Any]:
    from tangentune.reports import figures as plots

    curve = plots.reliability_figure(metrics.reliability(targets, values))
    alt = f"Share right against confidence; the expected calibration error is {100 * scores['ece']:.1f} percent."
    return {"reliability_svg": plots.to_svg(curve, key="reliability", alt=alt)}


def _single(found: Evaluation) -> tuple[list[_Tile], list[_Tile], list[dict[str, Any]]]:
    """Of one class a picture, or numbers: the large figures, those of the field, and tiles of the hardest pictures."""
    scores, ids = found.scores, found.pictures.ids
    targets, values = found.judged.targets, found.judged.answers.values
    if not found.classes:
        low, high = (nice_number(bound, 4) for bound in found.intervals["rmse"])
        scored = f"{100 * max(scores['r2'], 0.0):.1f} %"
        tiles = [
            (nice_number(scores["rmse"], 4), "typical distance from the truth", f"95 % interval {low} to {high}", ""),
            (scored, "of the scatter explained", "0 % is no better than the mean", ""),
        ]
        figures = [(f"{scores['r2']:.3f}", "R²", "1 is perfect, 0 is the mean", "")]
        return tiles, figures, tables.far_numbers(ids, targets, values)
    low, high = found.intervals["accuracy"]
    note = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; always naming the largest class: "
    note += f"{100 * found.confusion.sum(1).max() / len(targets):.1f} %"
    tiles = [
        (f"{100 * scores['accuracy']:.1f} %", "of the pictures are named right", note, "accuracy"),
        _calibration(scores),
    ]
    low, high = found.intervals["nll"]
    guessing = f"nats a picture; 95 % interval {low:.3f} to {high:.3f}; even guessing: {np.log(len(found.classes)):.3f}"
    figures = [(f"{scores['nll']:.3f}", "log-loss", guessing, "log-loss")]
    figures += [(f"{scores['brier']:.3f}", "Brier score", "0 is perfect", "")]
    return tiles, figures, tables.doubted_classes(ids, found.classes, targets, values)


def _several(model: Estimator, found: Evaluation) -> tuple[list[_Tile], list[_Tile], list[dict[str, Any]]]:
    """The same of several labels a picture."""
    assert is_classifier(model)
    scores, names = found.scores, tuple(map(str, model.classes_.tolist()))
    guess = "mean over labels; naming at random gives a label's share of the pictures"
    tiles = [
        (f"{scores['average_precision']:.3f}", "of 1: how well labels are ranked", guess, "average precision"),
        (f"{scores['macro_f1']:.3f}", "of 1: how well labels are given", "mean over labels of the F1", "F1"),
        _calibration(scores),
    ]
    figures = [
        (f"{scores['micro_f1']:.3f}", "micro F1", "of all labels together", "F1"),
        (f"{100 * scores['subset_accuracy']:.1f} %", "all labels right", "share of the pictures", ""),
        (f"{scores['nll']:.3f}", "log-loss", "nats a label", "log-loss"),
    ]
    targets, values = found.judged.targets, found.judged.answers.values
    return tiles, figures, tables.doubted_labels(found.pictures.ids, names, targets, values)


def _calibration(scores: dict[str, float]) -> _Tile:
    gap = "calibration error: mean gap between confidence and share right, in 15 bins"
    return f"{100 * scores['ece']:.1f} %", "gap between confidence and truth", gap, "calibration error"


def _squares(targets: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean squared error of each picture."""
    return ((targets - values.reshape(targets.shape)) ** 2).reshape(len(targets), -1).mean(1)
