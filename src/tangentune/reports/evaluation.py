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
from tangentune.reports.pages import Estimator, is_classifier, network_name, render
from tangentune.reports.tables import Tile
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
    n = len(found.pictures)
    tiles, figures, tiled = _several(model, found) if found.judged.labels else _single(found)
    context: dict[str, Any] = {
        "network": network_name(model),
        "n": n,
        "trained_on": len(model.ids_),
        "known": found.known,
        "classes": len(found.classes),
        "labels": [asdict(row) | {"share": row.pictures / n} for row in found.judged.labels],
        "tiles": tables.shown_tiles(tiles),
        "figures": tables.shown_tiles(figures),
        "gallery": gallery(found.pictures, tiled, link),
        "skipped": found.pictures.skipped,
    }
    from tangentune.reports import figures as plots  # with matplotlib, which scores alone need not wait for

    targets, values = found.judged.targets, found.judged.answers.values
    if found.classes:
        context |= tables.class_tables(found.confusion, found.classes)
        context["reliability_svg"] = plots.reliability_svg(targets, values, found.scores)
    elif found.judged.labels:
        context["reliability_svg"] = plots.label_reliability_svg(targets, values, found.scores)
    else:
        context["scatter_svg"] = plots.scatter_svg(targets, values.reshape(targets.shape), "prediction")
    return render("evaluation.html.j2", context)


def _single(found: Evaluation) -> tuple[list[Tile], list[Tile], list[dict[str, Any]]]:
    """Of one class a picture, or numbers: the large figures, those of the field, and tiles of the hardest pictures."""
    scores, ids = found.scores, found.pictures.ids
    targets, values = found.judged.targets, found.judged.answers.values
    if not found.classes:
        low, high = (nice_number(bound, 4) for bound in found.intervals["rmse"])
        tiles = tables.number_tiles(scores, f"95 % interval {low} to {high}")
        figures = [(f"{scores['r2']:.3f}", "R²", "1 is perfect, 0 is the mean", "")]
        return tiles, figures, tables.far_numbers(ids, targets, values)
    low, high = found.intervals["accuracy"]
    note = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; always naming the largest class: "
    note += f"{100 * found.confusion.sum(1).max() / len(targets):.1f} %"
    tiles = [
        (f"{100 * scores['accuracy']:.1f} %", "of the pictures are named right", note, "accuracy"),
        tables.calibration_tile(scores),
    ]
    low, high = found.intervals["nll"]
    guessing = f"nats a picture; 95 % interval {low:.3f} to {high:.3f}; even guessing: {np.log(len(found.classes)):.3f}"
    figures = [(f"{scores['nll']:.3f}", "log-loss", guessing, "log-loss")]
    figures += [(f"{scores['brier']:.3f}", "Brier score", "0 is perfect", "")]
    return tiles, figures, tables.doubted_classes(ids, found.classes, targets, values)


def _several(model: Estimator, found: Evaluation) -> tuple[list[Tile], list[Tile], list[dict[str, Any]]]:
    """The same of several labels a picture."""
    assert is_classifier(model)
    scores, names = found.scores, tuple(map(str, model.classes_.tolist()))
    tiles = [*tables.label_tiles(scores), tables.calibration_tile(scores)]
    figures = [
        (f"{scores['micro_f1']:.3f}", "micro F1", "of all labels together", "F1"),
        (f"{100 * scores['subset_accuracy']:.1f} %", "all labels right", "share of the pictures", ""),
        (f"{scores['nll']:.3f}", "log-loss", "nats a label", "log-loss"),
    ]
    targets, values = found.judged.targets, found.judged.answers.values
    return tiles, figures, tables.doubted_labels(found.pictures.ids, names, targets, values)


def _squares(targets: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean squared error of each picture."""
    return ((targets - values.reshape(targets.shape)) ** 2).reshape(len(targets), -1).mean(1)
