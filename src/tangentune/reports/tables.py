"""The tables of a report as plain rows: confusions, hardest pictures, settings tried, stages."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import nice_number
from tangentune.estimators.summary import Summary, label_positions, nice_bytes, nice_seconds, nice_setting
from tangentune.pictures.label_sets import SEPARATOR
from tangentune.reports.explanation import numbers_text
from tangentune.reports.gallery import MOST
from tangentune.reports.pages import Estimator, is_classifier, relabel_command
from tangentune.solvers import metrics

Tile = tuple[str, str, str, str]  # a figure, its name, what to hold it against, the word that explains it
CLASSES_SHOWN = 30
_CLASSES_IN_LARGE = 20
_ROWS_TRIED, _ROWS_KEPT = 12, 200


def most_confused(table: np.ndarray, most: int, of_more: int) -> list[int]:
    """Positions of all classes of a confusion (C, C), or where there are more than `most`, of the most confused."""
    if len(table) <= most:
        return list(range(len(table)))
    wrong = _mistakes(table)
    return sorted(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:of_more].tolist())


def confusion_rows(table: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Cells with their share of the row; of many classes the most confused, the others in one column."""
    shown, rows = most_confused(table, CLASSES_SHOWN, _CLASSES_IN_LARGE), []
    for i in shown:
        total = max(int(table[i].sum()), 1)
        cells = [{"count": int(table[i, j]), "share": table[i, j] / total, "right": i == j} for j in shown]
        others = int(table[i].sum() - table[i, shown].sum())
        rows.append({"name": names[i], "cells": cells, "others": others, "others_share": others / total})
    return {
        "names": [names[i] for i in shown],
        "rows": rows,
        "cut": len(shown) < len(names),
        "total": len(names),
        "cell": int(np.clip((320 if len(shown) <= 10 else 640) / len(shown), 22, 44)),  # few stand beside a table
    }


def class_rows(table: np.ndarray, names: tuple[str, ...], most: int = CLASSES_SHOWN) -> list[dict[str, Any]]:
    """Of each class (of the worst found, if there are more than `most`) its pictures, share found with a 95 % interval,
    how often it was named, the share of that that was right, and its commonest mistake.
    """
    count, named, right = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    found = np.divide(right, count, out=np.ones(len(names)), where=count > 0)
    order = np.arange(len(names))
    if len(names) > most:
        order = np.lexsort((-count, found))[:_CLASSES_IN_LARGE]
    wrong = _mistakes(table)
    return [
        {
            "name": names[i],
            "count": int(count[i]),
            "found": float(found[i]),
            "interval": metrics.accuracy_interval(float(found[i]), int(count[i])) if count[i] else (0.0, 1.0),
            "named": int(named[i]),
            "precision": float(right[i] / max(named[i], 1)),
            "mistaken": names[int(wrong[i].argmax())] if wrong[i].any() else None,
            "times": int(wrong[i].max()),
        }
        for i in order
    ]


def commonest_confusions(table: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """The ten most frequent confusions as (given, predicted, times)."""
    wrong = _mistakes(table)
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [(names[i], names[j], int(wrong[i, j])) for i, j in zip(rows, columns, strict=True) if wrong[i, j] > 0]


def class_tables(table: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """The three of a confusion (C, C), by the names that the templates have for them."""
    found = {"confusion": confusion_rows(table, names), "per_class": class_rows(table, names)}
    return found | {"pairs": commonest_confusions(table, names)}


def label_tiles(scores: dict[str, float]) -> list[Tile]:
    """How well several labels a picture are found."""
    guess = "mean over labels; naming at random gives a label's share of the pictures"
    return [
        (f"{scores['average_precision']:.3f}", "of 1: how well labels are ranked", guess, "average precision"),
        (f"{scores['macro_f1']:.3f}", "of 1: how well labels are given", "mean over labels of the F1", "F1"),
    ]


def number_tiles(scores: dict[str, float], note: str) -> list[Tile]:
    """How near predicted numbers come; the note is of their typical distance."""
    scored = f"{100 * max(scores['r2'], 0.0):.1f} %"
    return [
        (nice_number(scores["rmse"], 4), "typical distance from the truth", note, ""),
        (scored, "of the scatter explained", "0 % is no better than the mean", ""),
    ]


def calibration_tile(scores: dict[str, float]) -> Tile:
    """How far confidences are to be believed."""
    gap = "calibration error: mean gap between confidence and share right, in 15 bins"
    return f"{100 * scores['ece']:.1f} %", "gap between confidence and truth", gap, "calibration error"


def shown_tiles(tiles: Sequence[Tile]) -> list[dict[str, str]]:
    """As the templates take them."""
    return [dict(zip(("value", "name", "note", "term"), tile, strict=True)) for tile in tiles]


def _mistakes(table: np.ndarray) -> np.ndarray:
    return table - np.diag(np.diag(table))


def hardest(model: Estimator, facts: Summary, place: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """What the tiles of the hardest pictures say: those with the largest leave-one-out error, worst first."""
    if facts.several:
        assert is_classifier(model)
        assert model.thresholds_ is not None
        names = tuple(map(str, model.classes_.tolist()))
        tiles = doubted_labels(model.ids_, names, np.asarray(model.targets_), np.asarray(model.loo_proba_))
    elif is_classifier(model):
        tiles = doubted_classes(model.ids_, facts.classes, label_positions(model), np.asarray(model.loo_proba_))
    else:
        tiles = far_numbers(model.ids_, np.asarray(model.targets_), np.asarray(model.loo_predictions_))
    editable = model.pictures_.pixels.numel() > 0  # a model saved without them refuses edits
    for tile in tiles:  # a number has to be measured again, a class can be seen
        if tile["other"] and editable and (better := tile.get("better")) is not None:
            tile["mend"] = relabel_command(place, tile["id"], better)
    return tiles


def doubted_classes(
    ids: Sequence[str], names: tuple[str, ...], given: NDArray[np.int64], proba: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Tiles of pictures by the probability (n, C) of their class (n,), the least likely label first."""
    guess = proba.argmax(axis=1)
    return [
        {
            "id": str(ids[i]),
            "position": i,
            "given": names[given[i]],
            "label": names[given[i]],
            "predicted": names[guess[i]],
            "confidence": float(proba[i, guess[i]]),
            "given_share": float(proba[i, given[i]]),
            "other": bool(guess[i] != given[i]),
            "better": names[guess[i]],
            "mend": None,
        }
        for i in np.argsort(-metrics.case_nll(given, proba), kind="stable")[:MOST].tolist()
    ]


def doubted_labels(
    ids: Sequence[str], names: tuple[str, ...], given: NDArray[np.int64], proba: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The same of several labels a picture, both (n, L): a tile is about one label that a picture has, or lacks."""
    share = np.where(given > 0, proba, 1 - proba)
    tiles = []
    for place in np.argsort(share, axis=None, kind="stable")[:MOST].tolist():
        i, k = divmod(place, len(names))
        own = [names[j] for j in np.flatnonzero(given[i])]
        better = [names[j] for j in range(len(names)) if (given[i, j] > 0) != (j == k)]
        tiles.append({
            "id": str(ids[i]),
            "position": i,
            "given": names[k] if given[i, k] else f"not {names[k]}",
            "label": names[k],
            "labels": own,
            "given_share": float(share[i, k]),
            "other": bool(share[i, k] < 0.5),
            "better": SEPARATOR.join(better),
            "mend": None,
        })  # fmt: skip
    return tiles


def far_numbers(
    ids: Sequence[str], targets: NDArray[np.float64], predicted: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Tiles of pictures by the squared error of their numbers, both (n,) or (n, k), the farthest off first."""
    targets = np.asarray(targets, np.float64).reshape(len(ids), -1)
    predicted = np.asarray(predicted, np.float64).reshape(targets.shape)
    error = np.sum((targets - predicted) ** 2, axis=1)
    return [
        {
            "id": str(ids[i]),
            "position": i,
            "given": numbers_text(targets[i]),
            "predicted": numbers_text(predicted[i]),
            "other": True,
            "mend": None,
        }
        for i in np.argsort(-error, kind="stable")[:MOST].tolist()
    ]


def tried_rows(model: Estimator, facts: Summary) -> dict[str, Any]:
    """What was tried, best first, the chosen row marked, and how much worse the others on as many pictures were.

    Rows tried on a part of the pictures come last: their errors are not to be compared with those on all.
    """
    rows = sorted(model.selection_, key=lambda row: (-row.get("pictures", facts.n), row["loo_error"]))
    lowest: dict[int, float] = {}
    for row in rows:
        lowest.setdefault(row.get("pictures", facts.n), row["loo_error"])
    columns = [name for name in (rows[0] if rows else ()) if name not in ("damping", "loo_error", "chosen")]
    chosen = _chosen_row(model, facts, rows)
    table = [
        {
            "settings": [nice_setting(row[name]) for name in columns],
            "loo_error": nice_number(row["loo_error"], 5),
            "worse": row["loo_error"] / best - 1 if (best := lowest[row.get("pictures", facts.n)]) > 0 else 0.0,
            "chosen": row is chosen,
        }
        for row in rows
    ]
    names = [name.replace("_", " ").capitalize() for name in columns]
    return {"columns": names, "first": table[:_ROWS_TRIED], "rest": table[_ROWS_TRIED:_ROWS_KEPT], "count": len(table)}


def _chosen_row(model: Estimator, facts: Summary, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row whose settings are the fitted ones, and whose damping is nearest."""
    keys, settings = ("metric_power", "normalize", "body_scale"), facts.settings
    same = [row for row in rows if all(math.isclose(row.get(k, math.nan), settings[k], rel_tol=1e-6) for k in keys)]
    return min(same, key=lambda row: abs(row["damping"] - model.damping_), default=None)


def stage_rows(facts: Summary) -> list[dict[str, Any]]:
    """The steps of the fit with their share of the time."""
    total, rows = sum(one["seconds"] for one in facts.stages) or 1.0, []
    for one in facts.stages:
        cost = {"time": nice_seconds(one["seconds"]), "memory": nice_bytes(one.get("peak_bytes"))}
        rows.append({"name": one["stage"], "share": one["seconds"] / total, **cost})
    return rows
