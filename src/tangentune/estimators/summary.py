"""The plain facts of a fitted model, gathered once for the report, the model card and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, final

import numpy as np
from numpy.typing import NDArray

from tangentune._version import __version__
from tangentune.errors import nice_number
from tangentune.estimators.user_input import known_weights
from tangentune.kernels.choice import edge_words, scale_words
from tangentune.networks.backbone import Backbone
from tangentune.pictures.names import some
from tangentune.pictures.pictures import Pictures
from tangentune.solvers import metrics

SETTINGS = {
    "augment": "mirrored pictures",
    "outer_steps": "outer steps",
    "metric_power": "metric power",
    "normalize": "cosine normalisation",
    "body_scale": "body scale",
    "relative_damping": "relative damping",
    "damping": "damping",
    "temperature": "temperature",
    "softness": "softness",
    "landmarks": "landmarks",
}
DOUBT = 0.05  # a label less likely than this looks like a mistake
OPTIONS = ("subset", "probes", "probe_space", "class_weight", "random_state")


class FittedEstimator(Protocol):
    """What is read of a fitted estimator, all of it public."""

    backbone_: Backbone
    pictures_: Pictures
    targets_: NDArray
    loo_predictions_: NDArray[np.float64]
    source_: dict[str, Any] | None
    fit_report_: dict[str, Any]


class FittedClassifier(FittedEstimator, Protocol):
    """What a classifier has besides."""

    classes_: NDArray
    thresholds_: NDArray[np.float64] | None
    loo_proba_: NDArray[np.float64]


@final
@dataclass(frozen=True)
class LabelScore:
    """How well one of several labels is found, `threshold` being the probability from which on it is given."""

    name: str
    pictures: int  # that have it
    average_precision: float | None  # None where no picture has it
    f1: float
    precision: float | None  # None where it is never given
    recall: float | None
    threshold: float


def is_classifier(model: FittedEstimator) -> TypeGuard[FittedClassifier]:
    """Whether a fitted estimator is a classifier."""
    return hasattr(model, "classes_")


@dataclass(frozen=True)
class Summary:
    """What was fitted on what, how, and how well; every score is a leave-one-out score; of sums there is none."""

    classification: bool
    several: bool  # whether a picture has several labels, and not one class
    n: int
    classes: tuple[str, ...]  # names in the order of the probability columns; empty for a regressor
    counts: tuple[int, ...]  # of their pictures
    labels: tuple[LabelScore, ...]  # of several labels a picture; else empty
    backbone: str
    contract: dict[str, Any]  # the network's data contract as plain fields
    scores: dict[str, float]  # as `class_scores`, `label_scores` or `number_scores` has them
    interval: tuple[float, float] | None  # 95 % interval of the accuracy, None where that is no score
    settings: dict[str, Any]  # of the fit, given or chosen, by the keys of `SETTINGS`
    options: dict[str, Any]  # by the names in `OPTIONS`
    stages: list[dict[str, Any]]  # each with its "stage", wall "seconds" and perhaps "peak_bytes"
    seconds: float | None  # of the whole fit, as is the peak; None if unknown
    peak_bytes: int | None
    # How a linear probe compares on the same pictures, by leave-one-out of both: "score", "gain" of the fit over
    # it with a paired 95 % "interval", its "seconds"; None where none was tried, or edits have made it another model.
    probe: dict[str, Any] | None
    doubtful: int  # labels given, or not, with a leave-one-out probability below 5 %
    source: dict[str, Any] | None  # what came of a source, as in `source_` without what was tried; None without one
    left_out: dict[str, float] | None  # of a model of sums what its owners' own leave-one-out came to, if they did it
    skipped: tuple[tuple[str, str], ...]  # unreadable pictures left out: path and reason
    version: str

    @property
    def largest_class(self) -> float:
        """Accuracy of always naming the most frequent class: what any model must beat."""
        return max(self.counts) / self.n if self.counts else float("nan")


def summarise(model: FittedEstimator) -> Summary:
    """Read the fitted attributes of a `TangentClassifier` or `TangentRegressor`; cost O(n C)."""
    fit, classes, counts, interval, doubtful = model.fit_report_, [], np.zeros(0, int), None, 0
    labels_found: list[LabelScore] = []
    if not len(model.targets_):  # solved from sums
        classes = model.classes_.tolist() if is_classifier(model) else []
        scores, counts = {}, np.array(fit["sums"]["counts"], int)
    elif is_classifier(model) and model.thresholds_ is not None:
        classes, given, proba = model.classes_.tolist(), np.asarray(model.targets_), model.loo_proba_
        counts = given.sum(axis=0)
        labels_found = label_rows(classes, given, proba, model.thresholds_)
        scores = label_scores(given, proba, model.thresholds_)
        doubtful = int((np.where(given > 0, proba, 1 - proba) < DOUBT).sum())
    elif is_classifier(model):
        classes, labels = model.classes_.tolist(), label_positions(model)
        counts = np.bincount(labels, minlength=len(classes))
        scores = class_scores(labels, model.loo_proba_)
        doubtful = int((model.loo_proba_[np.arange(len(labels)), labels] < DOUBT).sum())
        interval = metrics.accuracy_interval(scores["accuracy"], len(labels))
    else:
        targets = np.asarray(model.targets_, np.float64)
        scores = number_scores(targets, np.asarray(model.loo_predictions_, np.float64).reshape(targets.shape))
    options = {key: getattr(model, key, None) for key in OPTIONS}
    options["class_weight"] = known_weights(options["class_weight"], np.array(classes))
    settings = {key: _known(getattr(model, f"{key}_", None)) for key in SETTINGS}
    settings["landmarks"] = len(getattr(model, "landmarks_", [])) or None  # None where all pictures span the kernel
    source = {key: value for key, value in (model.source_ or {}).items() if key != "tried"}
    return Summary(
        classification=is_classifier(model),
        several=bool(labels_found),
        n=len(model.targets_) or fit["n"],
        classes=tuple(str(name) for name in classes),
        counts=tuple(int(count) for count in counts),
        labels=tuple(labels_found),
        backbone=str(model.backbone_.name),
        contract=model.backbone_.contract.to_dict(),
        scores=scores,
        interval=interval,
        settings=settings,
        options=options,
        stages=fit.get("stages", []),
        seconds=fit.get("total_seconds"),
        peak_bytes=fit.get("peak_bytes"),
        probe=None if getattr(model, "edits_", None) else fit.get("probe"),
        doubtful=doubtful,
        source=source or None,
        left_out=fit.get("sums", {}).get("left_out"),
        skipped=tuple((str(path), str(reason)) for path, reason in model.pictures_.skipped),
        version=__version__,
    )


def class_scores(labels: NDArray[np.int64], proba: NDArray[Any]) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score of probabilities (n, C) for classes by position (n,)."""
    scores = {"nll": metrics.nll(labels, proba), "ece": metrics.ece(labels, proba)}
    return {"accuracy": metrics.accuracy(labels, proba.argmax(axis=1)), **scores, "brier": metrics.brier(labels, proba)}


def label_scores(
    targets: NDArray[np.int64], proba: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> dict[str, float]:
    """Scores of probabilities (n, L) for targets (n, L) of 0 and 1: means over labels, and the rest over all entries.

    "average_precision" leaves out labels that nobody has; "macro_f1" counts them as 0, as scikit-learn does.
    """
    given = proba >= thresholds
    counts = metrics.label_counts(targets, given)
    each = metrics.average_precision(targets, proba)
    flat, table = targets.ravel(), np.stack([1 - proba, proba], axis=-1).reshape(-1, 2)
    return {
        "average_precision": float(np.nanmean(each)) if np.isfinite(each).any() else float("nan"),
        "macro_f1": float(metrics.f1(counts).mean()),
        "micro_f1": float(metrics.f1(counts.sum(axis=0))),
        "subset_accuracy": float((given == targets).all(axis=1).mean()),
        "nll": metrics.nll(flat, table),
        "ece": metrics.ece(flat, table),
    }


def label_rows(
    names: list[str], targets: NDArray[np.int64], proba: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> list[LabelScore]:
    """How well each of several labels is found; arguments as of `label_scores`."""
    counts = metrics.label_counts(targets, proba >= thresholds)
    each, all_f1, rows = metrics.average_precision(targets, proba), metrics.f1(counts), []
    for k, (right, wrong, missed) in enumerate(counts.tolist()):
        precision = right / (right + wrong) if right + wrong else None
        recall = right / (right + missed) if right + missed else None
        area = float(each[k]) if recall is not None else None
        threshold = float(thresholds[k])
        rows.append(LabelScore(str(names[k]), right + missed, area, float(all_f1[k]), precision, recall, threshold))
    return rows


def _known(setting: Any) -> Any:
    """A setting, None where it is a number that there is none of."""
    return None if isinstance(setting, float) and setting != setting else setting


def number_scores(targets: NDArray, predicted: NDArray) -> dict[str, float]:
    """R2 and RMSE."""
    return {"r2": metrics.r2(targets, predicted), "rmse": metrics.rmse(targets, predicted)}


def label_positions(model: FittedClassifier) -> NDArray[np.int64]:
    """Column of `loo_proba_` that belongs to each picture's given label, shape (n,)."""
    column = {name: position for position, name in enumerate(model.classes_.tolist())}
    return np.array([column[name] for name in np.asarray(model.targets_).tolist()], np.int64)


@final
class Plan(dict[str, Any]):
    """What a fit would cost, by name; printed, it is one sentence for people."""

    def __str__(self) -> str:
        """The sentence."""
        passes = "one pass" if self["passes"] == 1 else f"{self['passes']} passes"
        bound = f" (at most {nice_bytes(self['most_bytes'])})" if self["most_bytes"] > 1.1 * self["peak_bytes"] else ""
        return (
            f"Fitting {self['parameters']:,} parameters of {self['network']} to {self['n']:,} pictures will take about "
            f"{nice_seconds(self['seconds'])} and {nice_bytes(self['peak_bytes'])} of memory{bound}, in {passes} over "
            "the pictures."
        )


def nice_bytes(count: float | None) -> str:
    """Memory for people: `nice_bytes(1.5 * 2**30)` is "1.5 GiB"."""
    if count is None:
        return "not measured"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def nice_seconds(seconds: float | None) -> str:
    """Time for people: "0.4 s", "38 s", "2 min 5 s", "3 h 10 min"."""
    if seconds is None:
        return "not measured"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def nice_setting(value: Any) -> str:
    """A setting as a short word: yes and no, three digits, a dash for nothing."""
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return nice_number(float(value))
    return str(value)


def nice_settings(facts: Summary) -> list[tuple[str, str]]:
    """What the fit chose, and what came of a source: names and values for people."""
    rows = {SETTINGS[key]: nice_setting(value) for key, value in facts.settings.items() if value is not None}
    if words := scale_words(facts.settings.get("body_scale") or 0.0, bool(facts.settings.get("normalize"))):
        rows[SETTINGS["body_scale"]] += f" ({words})"
    if facts.source is not None:
        rows["source"] = nice_source(facts.source)
    elif words := edge_words(facts.settings.get("relative_damping") or 0.0):
        rows[SETTINGS["relative_damping"]] += f" ({words})"
    return list(rows.items())


def nice_source(source: dict[str, Any]) -> str:
    """What came of a source, in one line for people."""
    if not source["strength"]:
        return f"{source['pictures']} pictures, which do not help: they count for nothing"
    classes = sorted((one for one in source["classes"] if one["weight"] > 0), key=lambda one: -one["weight"])
    named = some([f"{one['class']} {one['weight']:.0%}" for one in classes], 3)
    change = f"{source['loo_error_without']:.3f} to {source['loo_error']:.3f}"
    return f"{source['pictures']} pictures ({named}), leave-one-out error {change}"
