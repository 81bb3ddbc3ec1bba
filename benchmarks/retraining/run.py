"""Predicted against real retraining: `python -m benchmarks.retraining.run`.

First the linearised model, where the closed forms must be exact; then ordinary fine-tuning, where they are a model of
it. Trainings that docs/results/retraining.json lacks are run (each is stored at once), then predictions, the page and
the plot are made. One thread, about 15 minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from benchmarks import record
from benchmarks.datasets import cifar_split
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.retraining.page import NAME, publish
from benchmarks.study import (
    STILL,
    begin,
    cross_kernel,
    labels_of,
    mean_features,
    quietly,
    solved,
    standard_error,
    study_parser,
)
from tangentune import Backbone, Pictures, TangentClassifier, baselines, load_backbone

Array = NDArray[np.float64]
FITS: dict[str, dict[str, Any]] = {
    "tangent": {},
    "tangent, 32 outer steps": {"outer_steps": 32},
    "linear probe": {"subset": "none"},
}
FROZEN: dict[str, Any] = {"metric_power": 0.25, "normalize": True, "body_scale": 2.0}
REFITTED = 5  # pictures for which the whole fit is made anew
MAIN = "tangent, exact group"  # what the plot shows


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted margins."""

    halves: dict[str, Array]  # method -> (subsets, tests) margins
    singles: dict[str, Array]  # method -> (pictures, tests) effects on margins
    chosen: list[int]  # the pictures of `singles`
    exact: dict[str, float]  # how the closed form compares with systems solved without a picture
    pairs: list[list[float]]  # predicted and real effects on scores, for a plot


def fitted(backbone: Backbone, train: Pictures, **options: Any) -> TangentClassifier:
    """With flips averaged."""
    settings: dict[str, Any] = STILL | {"augment": "flip"} | options
    with quietly():
        return TangentClassifier(backbone, **settings).fit(train)


def margins(scores: Array, labels: NDArray[np.int64]) -> Array:
    """(..., m) score of the true class minus the log-sum-exp of the others, from (..., m, C)."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[..., rows, labels] = -np.inf
    return scores[..., rows, labels] - logsumexp(others, axis=-1)


def predict_all(
    backbone: Backbone, train: Pictures, test: Pictures, subsets: NDArray[np.bool_], chosen: int
) -> Predictions:
    """Fit the models and predict every training; the closed forms are those of the estimator."""
    halves, singles, checked = {}, {}, None
    targets = F.one_hot(torch.from_numpy(labels_of(train))).double()
    for name, options in FITS.items():
        model = fitted(backbone, train, **options)
        kernel, cross = torch.from_numpy(model.kernel_), cross_kernel(model, test)

        def margin(scores: Tensor, model: TangentClassifier = model) -> Array:
            return margins(scores.numpy() / model.temperature_, labels_of(test))

        def without(
            kept: Tensor, kernel: Tensor = kernel, cross: Tensor = cross, damping: float = model.damping_
        ) -> Tensor:
            """(m, C) scores of the pictures kept, solved anew."""
            dual, intercept = solved(kernel[kept][:, kept], targets[kept], damping)
            return intercept + cross[:, kept] @ dual

        masks, everything = torch.from_numpy(subsets), torch.ones(len(train), dtype=torch.bool)
        scores, effects = without(everything), torch.from_numpy(model.influence(test))
        shares = torch.from_numpy(model.contributions(test))
        start = scores - shares.sum(1)  # the intercept
        halves[f"{name}, exact group"] = np.stack([margin(without(kept)) for kept in masks])
        halves[f"{name}, sum of LOO effects"] = additive(margin, scores, -effects, ~masks)
        halves[f"{name}, contributions"] = additive(margin, start, shares, masks)
        singles[name] = margin(scores) - np.stack([margin(scores - part) for part in effects.unbind(1)])
        if checked is None:
            real = torch.stack([scores - without(torch.arange(len(train)) != i) for i in range(len(train))], 1)
            checked = agreement(effects, real), [sample(values) for values in (effects, real)]
    halves["likeness of features"] = likeness(backbone, train, test, subsets)
    largest = np.argsort(-np.abs(singles["tangent"]).mean(1))[:chosen].tolist()
    assert checked is not None
    return Predictions(halves, {name: values[largest] for name, values in singles.items()}, largest, *checked)


def additive(margin: Callable[[Tensor], Array], start: Tensor, parts: Tensor, masks: Tensor) -> Array:
    """Margins of `start` plus the parts (m, n, C) of the pictures in each mask."""
    return np.stack([margin(start + parts[:, row].sum(1)) for row in masks])


def likeness(backbone: Backbone, train: Pictures, test: Pictures, subsets: NDArray[np.bool_]) -> Array:
    """A simple rival: cosines with the kept pictures of the true class, minus those with the kept of the others."""
    units = [F.normalize(mean_features(backbone, part, flip=True).double(), dim=1).numpy() for part in (train, test)]
    same = labels_of(test)[:, None] == labels_of(train)[None]
    return subsets.astype(np.float64) @ ((units[1] @ units[0].T) * np.where(same, 1.0, -1 / 9)).T


def whole_fits(backbone: Backbone, train: Pictures, test: Pictures) -> dict[str, dict[str, float]]:
    """The closed form against fits made anew without some pictures, all choices fixed."""
    out = {}
    for space in ("isotropic", "pca"):
        model = fitted(backbone, train, **FROZEN, probe_space=space)
        picked = np.linspace(0, len(train) - 1, REFITTED).round().astype(int).tolist()
        predicted = torch.from_numpy(model.influence(test))[:, picked]
        whole = torch.from_numpy(model.decision_function(test))
        without = []
        for i in picked:
            rest = train.select(np.flatnonzero(np.arange(len(train)) != i))
            again = fitted(backbone, rest, **FROZEN, probe_space=space, damping=model.damping_)
            without.append(again.decision_function(test))
        real = torch.stack([whole - torch.from_numpy(scores) for scores in without], 1)
        out[f"whole fit anew, {space} probes, {REFITTED} pictures"] = agreement(predicted, real)
    return out


def agreement(predicted: Tensor, real: Tensor) -> dict[str, float]:
    """Correlation over all effects, and the largest difference over the largest effect."""
    pair = torch.stack([predicted.flatten(), real.flatten()])
    worst = float((predicted - real).abs().max() / real.abs().max())
    return {"correlation": float(torch.corrcoef(pair)[0, 1]), "largest_relative_difference": worst}


def sample(values: Tensor, count: int = 1500) -> list[float]:
    """Some of the effects, the same of every table."""
    keep = np.random.default_rng(1).permutation(values.numel())[:count].tolist()
    return [round(float(values.flatten()[k]), 6) for k in keep]


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
