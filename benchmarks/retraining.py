"""Predicted against real retraining: `python -m benchmarks.retraining`.

First the linearised model, where the closed forms must be exact; then ordinary fine-tuning, where they are a model of
it. Trainings that docs/results/retraining.json lacks are run (each is stored at once), then predictions, the page and
the plot are made. One thread, about 15 minutes.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks import record
from benchmarks.datasets import cifar10, few_shot, held_out
from benchmarks.label_plots import retraining_figure
from benchmarks.retraining_page import page
from benchmarks.retraining_predictions import Predictions, margins, predict_all, whole_fits
from tangentune import Backbone, Pictures, load_backbone, load_pictures
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune

NAME, SIZE, SHOTS, TESTS = "retraining", 64, 10, 100
SUBSETS, PICTURES = 48, 4
SEEDS = {"half subset": (0, 1), "one picture": (0, 1, 2, 3)}  # even ones against odd ones: the ceiling
SETTINGS: dict[str, Any] = {"batch_size": 16}  # the rest are the library's defaults: 15 epochs from a zero head
Array = NDArray[np.float64]


def main() -> None:
    """Predict, run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    train, test = pictures(backbone)
    predicted = predict_all(backbone, train, test, half_subsets(len(train)), PICTURES)
    if not given.page:
        for kept, name in trainings(predicted, len(train)):
            for seed in SEEDS["half subset" if name.startswith("half") else "one picture"]:
                if record.done(NAME, {"kept": name, "seed": seed}) is None:
                    _train(backbone, train.select(np.flatnonzero(kept)), test, name, seed)
        if record.done(NAME, {"probes": "both"}, "whole_fits") is None:
            record.append(NAME, {"probes": "both"}, whole_fits(backbone, train, test), "whole_fits")
    results = evaluate(predicted)
    record.record(NAME, record.load(NAME) | {"results": results})
    halves = np.stack([_measured()[f"half {i}"].mean(0) for i in range(SUBSETS)])
    retraining_figure(predicted.pairs, _about_means(predicted, halves), predicted.main).savefig(
        record.RESULTS / f"{NAME}.png", dpi=150
    )
    (record.RESULTS / f"{NAME}.md").write_text(page(results, NAME, PROTOCOL))


def pictures(backbone: Backbone) -> tuple[Pictures, Pictures]:
    """10 a class to train on, and test pictures."""
    data = cifar10()
    rows, kept = few_shot(data.train_labels, SHOTS, seed=0), held_out(len(data.test), TESTS)
    train = load_pictures(data.train[rows], data.train_labels[rows], contract=backbone.contract)
    return train, load_pictures(data.test[kept], data.test_labels[kept], contract=backbone.contract)


def half_subsets(n: int) -> NDArray[np.bool_]:
    """(SUBSETS, n): every row keeps a random half, whatever the classes."""
    rng = np.random.default_rng(0)
    kept = np.zeros((SUBSETS, n), dtype=bool)
    for row in kept:
        row[rng.permutation(n)[: n // 2]] = True
    return kept


def trainings(predicted: Predictions, n: int) -> list[tuple[NDArray[np.bool_], str]]:
    """Masks of the pictures kept, with names: halves, everything, everything but one."""
    halves = [(kept, f"half {i}") for i, kept in enumerate(half_subsets(n))]
    singles = [(np.arange(n) != i, f"without {i}") for i in predicted.chosen]
    return [*halves, (np.ones(n, dtype=bool), "all"), *singles]


def _train(backbone: Backbone, train: Pictures, test: Pictures, name: str, seed: int) -> None:
    tuned = fine_tune(backbone, train, FineTuneSettings(seed=seed, **SETTINGS))
    assert test.labels is not None
    logits = tuned.logits(test, batch_size=50).double().numpy()
    scores = np.full((len(test), 10), logits.min() - 10)  # a class that the subset lacks is not predicted
    scores[:, tuned.classes.astype(int)] = logits
    values = margins(scores, np.asarray(test.labels))
    accuracy = float((scores.argmax(1) == test.labels).mean())
    text = " ".join(f"{value:.3f}" for value in values)  # one line of the file, not one a number
    row = {"margins": text, "accuracy": accuracy, "cpu_seconds": tuned.cpu_seconds, "loss": tuned.losses[-1]}
    record.append(NAME, {"kept": name, "seed": seed}, row)


def evaluate(predicted: Predictions) -> dict[str, Any]:
    """Every figure of the page."""
    measured = _measured()
    halves = np.stack([measured[f"half {i}"] for i in range(SUBSETS)])  # (subsets, seeds, tests)
    ceiling = _mean_spearman(halves[:, 0::2].mean(1), halves[:, 1::2].mean(1))
    actual = halves.mean(1)
    scores = {name: _mean_spearman(values, actual) for name, values in predicted.halves.items()}
    effects = np.stack([measured["all"] - measured[f"without {i}"] for i in predicted.chosen])
    mean = effects.mean(1)
    between = _correlations(effects[:, 0::2].mean(1), effects[:, 1::2].mean(1))
    singles = {name: _correlations(values, mean) for name, values in predicted.singles.items()}
    accuracies = [row["accuracy"] for row in record.load(NAME)["rows"] if row["key"]["kept"].startswith("half")]
    return {
        "exact": {"kernel solved anew, all pictures": predicted.exact} | _whole_fits(),
        "half_subsets": {
            "lds": scores,
            "ceiling_between_halves_of_seeds": ceiling,
            "ceiling_of_a_perfect_prediction": _perfect(ceiling["mean"]),
            "spread_over_subsets": float(actual.std(0).mean()),
            "noise_of_one_training": float(halves.std(1, ddof=1).mean()),
            "accuracy": float(np.mean(accuracies)),
            "subsets": SUBSETS,
            "seeds": halves.shape[1],
        },
        "one_picture": {
            "correlation": singles,
            "ceiling_between_halves_of_seeds": between,
            "ceiling_of_a_perfect_prediction": _perfect(between["pearson"]),
            "pictures": predicted.chosen,
            "spread_of_effects": float(mean.std()),
            "noise_of_one_effect": float(effects.std(1, ddof=1).mean()),
            "seeds": effects.shape[1],
        },
    }


def _measured() -> dict[str, Array]:
    """Name of the training -> margins (seeds, tests)."""
    out: dict[str, list[tuple[int, Array]]] = {}
    for row in record.load(NAME)["rows"]:
        values = np.array(row["margins"].split(), dtype=np.float64)
        out.setdefault(row["key"]["kept"], []).append((row["key"]["seed"], values))
    return {
        name: np.stack([values for _, values in sorted(runs, key=lambda run: run[0])]) for name, runs in out.items()
    }


def _mean_spearman(left: Array, right: Array) -> dict[str, float]:
    """Rank correlation over subsets for each test picture: mean, and its standard error over test pictures."""
    first, second = rankdata(left, axis=0), rankdata(right, axis=0)
    each = [np.corrcoef(first[:, k], second[:, k])[0, 1] for k in range(left.shape[1])]
    return {"mean": float(np.mean(each)), "standard_error": float(np.std(each, ddof=1) / len(each) ** 0.5)}


def _correlations(left: Array, right: Array) -> dict[str, float]:
    """Pearson's, and of the ranks, over all (training picture, test picture) pairs."""
    return {
        "pearson": float(np.corrcoef(left.ravel(), right.ravel())[0, 1]),
        "spearman": float(np.corrcoef(rankdata(left), rankdata(right))[0, 1]),
    }


def _perfect(ceiling: float) -> float:
    """What an exact prediction would reach against the mean of all seeds (Spearman and Brown's formula, a root)."""
    r = max(ceiling, 0.0)
    return float((2 * r / (1 + r)) ** 0.5)


def _whole_fits() -> dict[str, dict[str, float]]:
    row = record.done(NAME, {"probes": "both"}, "whole_fits") or {}
    return {name: value for name, value in row.items() if name.startswith("whole fit")}


def _about_means(predicted: Predictions, actual: Array) -> list[list[float]]:
    """Some predicted and real margins, each less its test picture's mean over subsets."""
    keep = np.random.default_rng(0).permutation(actual.size)[:1500]
    pair = (predicted.halves[predicted.main], actual)
    return [(values - values.mean(0)).ravel()[keep].tolist() for values in pair]


PROTOCOL = {
    "data": f"CIFAR-10, {SHOTS} pictures a class (seed 0), {TESTS} held-out pictures, MobileNetV2 at {SIZE} px",
    "linearised model": "the default feature linearisation, flips averaged; retrained means that the bordered system "
    "of the kernel without the picture is solved anew; the whole fit means rows, probes and K-FAC metric too, with "
    "metric power, body scale, normalisation and damping fixed. The formula holds for a frozen feature map; a metric "
    "estimated without the picture changes little, but probes drawn in principal components (the default) are another "
    "draw once the components of small variance have turned",
    "fine-tuning": "AdamW at 1e-4, batches of 16, 15 epochs, flips, all layers, head from zero; half subsets are "
    "drawn at random, whatever the classes; margin: logit of the true class minus the log-sum-exp of the others",
    "predictions": "margins of scores over the temperature that leave-one-out fitted; no retraining was seen",
    "LDS": "linear datamodeling score (Park et al. 2023): rank correlation over subsets between predicted and real "
    "margins, mean over test pictures. Exact group: the closed-form solution without the other half. Sum of LOO "
    "effects: fit minus the effects of the pictures left out, one by one. Contributions: those of the kept, summed",
    "ceiling": "even seeds against odd seeds; a perfect prediction would reach the root of 2r / (1 + r)",
    "one picture": "the pictures with the largest predicted effect on margins",
}

if __name__ == "__main__":
    main()
