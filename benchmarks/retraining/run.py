"""Predicted against real retraining: `python -m benchmarks.retraining.run`.

First the linearised model, where the closed forms must be exact; then ordinary fine-tuning, where they are a model of
it. Trainings that docs/results/retraining.json lacks are run (each is stored at once), then predictions, the page and
the plot are made. One thread, about 15 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks import record
from benchmarks.datasets import cifar_split
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.retraining.page import NAME, publish
from benchmarks.retraining.predictions import MAIN, Array, Predictions, margins, predict_all, whole_fits
from benchmarks.study import begin, labels_of, standard_error, study_parser
from tangentune import Backbone, Pictures, baselines, load_backbone

SIZE, SHOTS, TESTS = 64, 10, 100
SUBSETS, PICTURES = 48, 4
SEEDS = {"half": (0, 1), "all": (0, 1, 2, 3), "without": (0, 1, 2, 3)}  # even ones against odd ones: the ceiling
SETTINGS: dict[str, Any] = {"batch_size": 16}  # the rest are the library's defaults: 15 epochs from a zero head


def main() -> None:
    """Predict, run what is missing, and write the page and its plot."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    train, test = cifar_split(backbone, SHOTS, 0, TESTS)
    halves = half_subsets(len(train))
    predicted = predict_all(backbone, train, test, halves, PICTURES)
    masks = {f"half {i}": kept for i, kept in enumerate(halves)} | {"all": np.ones(len(train), dtype=bool)}
    masks |= {f"without {i}": np.arange(len(train)) != i for i in predicted.chosen}
    keys = [{"kept": name, "seed": seed} for name in masks for seed in SEEDS[name.split()[0]]]
    record.fill(NAME, keys, lambda key: retrained(backbone, train, test, masks[key["kept"]], key["seed"]))
    record.fill(NAME, [{"probes": "both"}], lambda _: whole_fits(backbone, train, test), "whole_fits")
    payload = record.load(NAME)
    measured = margins_of(payload["rows"])
    record.record(NAME, payload | {"results": evaluate(predicted, measured, payload)})
    publish()
    real = np.stack([measured[f"half {i}"].mean(0) for i in range(SUBSETS)])
    figure(predicted, real).savefig(record.RESULTS / f"{NAME}.png", dpi=150)


def half_subsets(n: int) -> NDArray[np.bool_]:
    """(SUBSETS, n): every row keeps a random half, whatever the classes."""
    rng = np.random.default_rng(0)
    kept = np.zeros((SUBSETS, n), dtype=bool)
    for row in kept:
        row[rng.permutation(n)[: n // 2]] = True
    return kept


def retrained(backbone: Backbone, train: Pictures, test: Pictures, kept: NDArray[np.bool_], seed: int) -> Row:
    """Margins of ordinary fine-tuning on the pictures kept."""
    part = train.select(np.flatnonzero(kept))
    tuned = baselines.fine_tune(backbone, part, baselines.FineTuneSettings(seed=seed, **SETTINGS))
    logits = tuned.logits(test, batch_size=50).double().numpy()
    scores = np.full((len(test), 10), logits.min() - 10)  # a class that the subset lacks is not predicted
    scores[:, tuned.classes.astype(int)] = logits
    text = " ".join(f"{value:.3f}" for value in margins(scores, labels_of(test)))  # one line of the file
    accuracy = float((scores.argmax(1) == test.labels).mean())
    return {"margins": text, "accuracy": accuracy, "cpu_seconds": tuned.cpu_seconds, "loss": tuned.losses[-1]}


def margins_of(rows: list[Row]) -> dict[str, Array]:
    """Name of the training -> margins (seeds, tests)."""
    out: dict[str, list[Array]] = {}
    for row in sorted(rows, key=lambda row: row["key"]["seed"]):
        out.setdefault(row["key"]["kept"], []).append(np.array(row["margins"].split(), dtype=np.float64))
    return {name: np.stack(runs) for name, runs in out.items()}


def evaluate(predicted: Predictions, measured: dict[str, Array], payload: Row) -> Row:
    """Every figure of the page."""
    halves = np.stack([measured[f"half {i}"] for i in range(SUBSETS)])  # (subsets, seeds, tests)
    ceiling, actual = mean_spearman(*twice(halves)), halves.mean(1)
    effects = np.stack([measured["all"] - measured[f"without {i}"] for i in predicted.chosen])
    between, mean = correlations(*twice(effects)), effects.mean(1)
    accuracies = [row["accuracy"] for row in payload["rows"] if row["key"]["kept"].startswith("half")]
    whole = {name: value for name, value in payload["whole_fits"][0].items() if name.startswith("whole fit")}
    return {
        "exact": {"kernel solved anew, all pictures": predicted.exact} | whole,
        "half_subsets": {
            "lds": {name: mean_spearman(values, actual) for name, values in predicted.halves.items()},
            "ceiling_between_halves_of_seeds": ceiling,
            "ceiling_of_a_perfect_prediction": perfect(ceiling["mean"]),
            "spread_over_subsets": float(actual.std(0).mean()),
            "noise_of_one_training": float(halves.std(1, ddof=1).mean()),
            "accuracy": float(np.mean(accuracies)),
            "subsets": SUBSETS,
            "seeds": halves.shape[1],
        },
        "one_picture": {
            "correlation": {name: correlations(values, mean) for name, values in predicted.singles.items()},
            "ceiling_between_halves_of_seeds": between,
            "ceiling_of_a_perfect_prediction": perfect(between["pearson"]),
            "pictures": predicted.chosen,
            "spread_of_effects": float(mean.std()),
            "noise_of_one_effect": float(effects.std(1, ddof=1).mean()),
            "seeds": effects.shape[1],
        },
    }


def twice(values: Array) -> Iterator[Array]:
    """Means over the even and over the odd seeds, from (trainings, seeds, tests)."""
    return (values[:, start::2].mean(1) for start in (0, 1))


def mean_spearman(left: Array, right: Array) -> dict[str, float]:
    """Rank correlation over subsets for each test picture: mean, and its standard error over test pictures."""
    first, second = rankdata(left, axis=0), rankdata(right, axis=0)
    each = [float(np.corrcoef(first[:, k], second[:, k])[0, 1]) for k in range(left.shape[1])]
    return {"mean": float(np.mean(each)), "standard_error": standard_error(each)}


def correlations(left: Array, right: Array) -> dict[str, float]:
    """Pearson's, and of the ranks, over all (training picture, test picture) pairs."""
    return {
        "pearson": float(np.corrcoef(left.ravel(), right.ravel())[0, 1]),
        "spearman": float(np.corrcoef(rankdata(left), rankdata(right))[0, 1]),
    }


def perfect(ceiling: float) -> float:
    """What an exact prediction would reach against the mean of all seeds (Spearman and Brown's formula, a root)."""
    r = max(ceiling, 0.0)
    return float((2 * r / (1 + r)) ** 0.5)


@styled
def figure(predicted: Predictions, real: Array) -> Figure:
    """Predicted against real: effects in the linearised model, and margins of fine-tuning on random halves."""
    figure, axes_of = panels((8.4, 3.6), 1, 2)
    left, right = axes_of[0]
    keep = np.random.default_rng(0).permutation(real.size)[:1500]
    halves = [(values - values.mean(0)).ravel()[keep] for values in (predicted.halves[MAIN], real)]
    for axes, pair, colour, alpha in ((left, predicted.pairs, COLOURS[0], 0.4), (right, halves, COLOURS[1], 0.35)):
        axes.plot(*pair, "o", color=colour, markersize=3, alpha=alpha)
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8)
    left.set_title("linearised model, one picture left out", loc="left", fontsize=9)
    left.set(xlabel="predicted effect on scores", ylabel="effect of solving anew")
    left.locator_params(nbins=5)
    right.set_title(f"fine-tuning on random halves; {MAIN}", loc="left", fontsize=9)
    right.set(xlabel="predicted margin, about its mean", ylabel="real margin, about its mean")
    return figure


if __name__ == "__main__":
    main()
