"""What the calibration study compares: pictures, fine-tuned networks, and methods with their probabilities and costs.

Two networks a draw, used by all that start from one. "split" was trained on four fifths of the pictures, its learning
rate chosen on the other fifth; "refit" again on all of them with that rate. Their cost counts in full for each method.

laplace-torch gets the features, made once, as a network of one linear layer (its results are the same, and it need not
run the network at each step), with mirrored pictures averaged, as all methods here have it. Grid searches get the plain
log-loss: the default metric of 0.3 (`RunningNLLMetric`) is never reset between grid points, so that each point is
judged by all before it as well. Approximations beyond last-layer "kron" and "diag" took too long or failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.datasets import ROOT, cifar10, fashion_mnist, few_shot, held_out, plankton, traffic_lights
from benchmarks.study import STILL, labels_of, mean_features, network_inputs, stopwatch
from tangentune import Backbone, Pictures, TangentClassifier, baselines, load_backbone, load_pictures
from tangentune.comparison.measure import draw
from tangentune.memory import Meter
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.solvers.calibration import fit_temperature
from tangentune.solvers.metrics import nll

SIZE, SHOTS, POOL, TEST, FOREIGN = 96, 50, 600, 1000, 500  # POOL and the draws are those of benchmarks.few_shot
TEST_SHARE = 1 / 3  # of the plankton, which come without a test set
PARTS, VALIDATION_SHARE = ("train", "test", "foreign"), 0.2
CACHE = ROOT / ".cache" / "calibration"
Cost = dict[str, float]  # seconds, processor seconds and peak bytes


@final
@dataclass(frozen=True, eq=False)
class Split:
    """One draw of one data set at the network's size; labels are class positions."""

    train: Pictures  # at most 50 pictures a class
    test: Pictures  # held out; never used for a choice
    foreign: Pictures  # of another data set, to be told from the test pictures; without labels


@cache
def network() -> Backbone:
    """The network of all methods, at the study's picture size."""
    return load_backbone("mobilenet_v2").with_size(SIZE)


@cache
def split_of(dataset: str, seed: int) -> Split:
    """The pictures of one draw."""
    other = fashion_mnist() if dataset == "cifar10" else cifar10()
    foreign, contract = other.test[held_out(len(other.test), FOREIGN)], network().contract
    train, test = (load_pictures(*given, contract=contract) for given in drawn(dataset, seed))
    return Split(train, test, load_pictures(foreign, contract=contract, need_labels=False))


def drawn(dataset: str, seed: int) -> list[tuple[Any, NDArray[np.int64]]]:
    """Training and test pictures with their labels; of plankton a third of each class for the test."""
    if dataset in ("cifar10", "fashion_mnist"):
        data = cifar10() if dataset == "cifar10" else fashion_mnist()
        pool, kept = few_shot(data.train_labels, POOL, seed=0), held_out(len(data.test), TEST)
        rows = pool[draw(data.train_labels[pool], SHOTS, seed)]
        return [(data.train[rows], data.train_labels[rows]), (data.test[kept], data.test_labels[kept])]
    if dataset == "traffic_lights":
        train, test = traffic_lights("train"), traffic_lights("test")
        rows = draw(train.labels, SHOTS, seed)
        return [([train.paths[i] for i in rows], train.labels[rows]), (list(test.paths), test.labels)]
    data, rng, held = plankton(), np.random.default_rng(seed), []
    for label in np.unique(data.labels):
        members = rng.permutation(np.flatnonzero(data.labels == label))
        held.append(members[: round(TEST_SHARE * len(members))])
    kept = np.sort(np.concatenate(held))
    rest = np.setdiff1d(np.arange(len(data.labels)), kept)
    return [([data.paths[i] for i in rows], data.labels[rows]) for rows in (rest, kept)]


@contextmanager
def measured() -> Iterator[Cost]:
    """A cost that is filled in at the end of the block."""
    cost, meter = Cost(), Meter(torch.device("cpu"))
    with stopwatch() as spent, meter.stage("all"):
        yield cost
    cost.update(spent, peak_bytes=meter.stages[0]["peak_bytes"])


def together(*costs: Cost) -> Cost:
    """What one after the other costs: times add up, the highest peak counts."""
    total = {name: sum(cost[name] for cost in costs) for name in ("seconds", "cpu_seconds")}
    return {**total, "peak_bytes": max(cost["peak_bytes"] for cost in costs)}


@final
@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned network of a draw, as what it makes of all pictures."""

    features: dict[str, Tensor]  # of each part (n, d), means over each picture and its mirror image
    weight: Tensor  # (C, d) of the head
    bias: Tensor  # (C,) of the head
    fit_rows: Tensor  # training pictures that it was trained on
    validation_rows: Tensor  # training pictures kept aside, the same for both networks
    training: Cost  # with the choice of its rate
    feature_costs: dict[str, Cost]  # of the features of each part
    chosen: dict[str, Any]  # learning rate and epochs

    def logits(self, part: str) -> Tensor:
        """(n, C) logits of a part of the pictures."""
        return self.features[part] @ self.weight.T + self.bias


def tuned_networks(dataset: str, seed: int) -> dict[str, Tuned]:
    """Networks "split" and "refit" of a draw, from the cache or, the first time, fine-tuned."""
    path = CACHE / f"{dataset}-{seed}.pt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(_tune(dataset, seed), path)
    return {which: Tuned(**kept) for which, kept in torch.load(path, weights_only=True).items()}


def _tune(dataset: str, seed: int) -> dict[str, dict[str, Any]]:
    """Both networks of a draw as the arguments of `Tuned`."""
    split, backbone, out = split_of(dataset, seed), network(), {}
    known = {"validation_share": VALIDATION_SHARE, "refit": False, "seed": seed}
    with measured() as sweeping:
        found = baselines.sweep(backbone, split.train, baselines.FineTuneSettings(), **known).tuned
    assert found.validation is not None
    settings = replace(found.settings, validation_share=0.0, epochs=found.validation.kept)
    with measured() as refitting:
        refit = baselines.fine_tune(backbone, split.train, settings)
    fit, kept = split_rows(labels_of(split.train), VALIDATION_SHARE, seed)
    for which, tuned, rows, training in (
        ("split", found, fit, sweeping),
        ("refit", refit, np.arange(len(split.train)), together(sweeping, refitting)),
    ):
        features, costs = {}, {}
        for part in PARTS:
            with measured() as costs[part]:
                features[part] = mean_features(tuned.backbone, getattr(split, part), flip=True)
        out[which] = {
            "features": features,
            "weight": tuned.head.weight.detach(),
            "bias": tuned.head.bias.detach(),
            "fit_rows": torch.from_numpy(rows),
            "validation_rows": torch.from_numpy(kept),
            "training": training,
            "feature_costs": costs,
            "chosen": {"learning_rate": settings.learning_rate, "epochs": settings.epochs},
        }
    return out


_FLIP: dict[str, Any] = {"augment": "flip"}
_STEPS: dict[str, Any] = {"augment": "flip", "outer_steps": "loo"}
OURS: dict[str, dict[str, Any]] = {  # add a line, run the study again, and it is on the page
    "tangent": {},
    "tangent, flip": _FLIP,
    "tangent, flip, steps": _STEPS,
    "tangent, flip, dirichlet": _FLIP | {"likelihood": "dirichlet"},
    "tangent, flip, steps, dirichlet": _STEPS | {"likelihood": "dirichlet"},
    "tangent, flip, laplace": _FLIP | {"likelihood": "laplace"},
    "tangent, flip, steps, laplace": _STEPS | {"likelihood": "laplace"},
}
OTHERS = {"linear probe": {"subset": "none", "augment": "flip"}}  # our estimator too, with nothing that moves
LINKS, SAMPLES, GRID = ("probit", "mc", "bridge", "bridge_norm"), 100, 21
PRIORS = {  # of each structure of the curvature: ways to choose the prior, and what laplace-torch calls them
    "kron": {"marglik": "scalar", "gridsearch": None},
    "diag": {"marglik": "scalar", "gridsearch": None, "marglik per weight": "diag"},
}


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What a method says of the test pictures and the foreign ones."""

    method: str
    family: str  # "ours", "laplace" or "other"
    test: NDArray[Any]  # (m, C) probabilities
    foreign: NDArray[Any]  # (k, C) probabilities
    strangeness: tuple[NDArray[Any], NDArray[Any]] | None  # its own score of both, higher for what it does not know
    fit: Cost  # with every choice it makes and every network it starts from
    predict: Cost  # of both sets of probabilities
    facts: dict[str, Any]  # what it chose


def groups() -> dict[str, Callable[[str, int], Iterator[Answer]]]:
    """Name -> what to run in a process of its own."""
    ours = {name: partial(_tangent, name, "ours", options) for name, options in OURS.items()}
    others = {name: partial(_tangent, name, "other", options) for name, options in OTHERS.items()}
    laplace = {
        f"laplace last-layer {structure}, {prior}": partial(_laplace, structure, prior)
        for structure, priors in PRIORS.items()
        for prior in priors
    }
    return {**ours, **others, "fine-tuning": _fine_tuning, **laplace}


def _tangent(name: str, family: str, options: dict[str, Any], dataset: str, seed: int) -> Iterator[Answer]:
    split, backbone = split_of(dataset, seed), network()
    backbone.check(next(network_inputs(backbone, split.train, 2)))  # the first passes are not the method's cost
    with measured() as fit:
        model: TangentClassifier = TangentClassifier(backbone, random_state=seed, **(STILL | options)).fit(split.train)
    with measured() as predict:
        test, foreign = model.predict_proba(split.test), model.predict_proba(split.foreign)
    strangeness = (model.ood_score(split.test), model.ood_score(split.foreign))
    names = ("outer_steps", "damping", "body_scale", "metric_power", "normalize", "temperature")
    facts = {name: getattr(model, f"{name}_", None) for name in names} | {"loo_accuracy": model.loo_score_}
    yield Answer(name, family, test, foreign, strangeness, fit, predict, facts)


def _fine_tuning(dataset: str, seed: int) -> Iterator[Answer]:
    """Both networks, as they are and at the temperature of the pictures kept aside."""
    split, tuned = split_of(dataset, seed), tuned_networks(dataset, seed)
    kept_aside = tuned["split"].validation_rows
    aside = tuned["split"].logits("train")[kept_aside].double()
    temperature = fit_temperature(aside, torch.from_numpy(labels_of(split.train))[kept_aside])
    for which, found in tuned.items():
        predict = together(found.feature_costs["test"], found.feature_costs["foreign"])
        for divisor, title in ((1.0, "fine-tuning"), (temperature, "fine-tuning + temperature")):
            test, foreign = ((found.logits(part) / divisor).softmax(1).numpy() for part in ("test", "foreign"))
            facts = found.chosen | {"temperature": divisor, "network": which}
            yield Answer(f"{title}, {which}", "other", test, foreign, None, found.training, predict, facts)


def _laplace(structure: str, prior: str, dataset: str, seed: int) -> Iterator[Answer]:
    """The approximation around both networks; the prior of a grid search comes from the first one."""
    torch.manual_seed(seed)
    labels, tuned = torch.from_numpy(labels_of(split_of(dataset, seed).train)), tuned_networks(dataset, seed)
    fits, found = {}, {}
    for which, own in tuned.items():
        with measured() as fits[which]:
            found[which] = approximated(own, structure, labels)
    kept = tuned["split"].validation_rows
    aside = tuned["split"].features["train"][kept], labels[kept]
    for links in [(link,) for link in LINKS] if prior == "gridsearch" else [LINKS]:
        with measured() as choosing:
            choose_prior(found["split"], structure, prior, links[0], aside)
        validation, _ = answers(found["split"], links, aside[0])
        judged = {link: nll(aside[1], validation[link].numpy()) for link in links}
        with measured() as again:
            if prior == "gridsearch":
                found["refit"].prior_precision = found["split"].prior_precision.detach().clone()
            else:
                choose_prior(found["refit"], structure, prior, links[0], None)
        searched = [fits["split"], choosing]
        costs = {"refit": [*(searched if prior == "gridsearch" else []), fits["refit"], again], "split": searched}
        for which, own in tuned.items():
            title = f"last-layer {structure}, {prior}"
            fit = together(own.training, own.feature_costs["train"], *costs[which])
            with measured() as predict:
                test, foreign = (answers(found[which], links, own.features[part]) for part in ("test", "foreign"))
            predict = together(predict, own.feature_costs["test"], own.feature_costs["foreign"])
            precision = torch.as_tensor(found[which].prior_precision).detach()
            facts = {"network": which, "prior_precision": float(precision.double().log().mean().exp())}
            strangeness = (test[1].numpy(), foreign[1].numpy())
            for link in links:
                more = {"link": link, "validation_nll": judged[link], "approximation": title}
                probabilities = (test[0][link].numpy(), foreign[0][link].numpy())
                name = f"laplace {title}, {link}, {which}"
                yield Answer(name, "laplace", *probabilities, strangeness, fit, predict, facts | more)


def approximated(tuned: Tuned, structure: str, labels: Tensor) -> Any:
    """A fitted approximation; the prior is still laplace-torch's default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import laplace
        import laplace.curvature
    linear = nn.Linear(tuned.weight.shape[1], tuned.weight.shape[0])
    linear.load_state_dict({"weight": tuned.weight, "bias": tuned.bias})
    module = nn.Sequential(nn.Identity(), linear).eval()  # it looks for a last layer among several modules
    backend = laplace.curvature.CurvlinopsGGN
    out = laplace.Laplace(module, "classification", "last_layer", structure, backend=backend)
    out.fit(_loader(tuned.features["train"][tuned.fit_rows], labels[tuned.fit_rows]))
    return out


def choose_prior(
    approximation: Any, structure: str, prior: str, link: str, validation: tuple[Tensor, Tensor] | None
) -> None:
    """Set the prior precision by the marginal likelihood, or by the log-loss of pictures kept aside."""
    options: dict[str, Any] = {"method": "marglik", "prior_structure": PRIORS[structure][prior]}
    if prior == "gridsearch" and validation is not None:
        options = {"method": "gridsearch", "val_loader": _loader(*validation), "grid_size": GRID, "loss": _log_loss}
        options |= {"link_approx": link, "n_samples": SAMPLES}
    approximation.optimize_prior_precision(pred_type="glm", **options)


def answers(approximation: Any, links: tuple[str, ...], inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """(m, C) probabilities of each link, and (m,) mean variance of the logits, whose moments are calculated once."""
    probabilities: dict[str, list[Tensor]] = {link: [] for link in links}
    variances: list[Tensor] = []
    for batch in inputs.split(50):
        mean, covariance = (moment.detach() for moment in approximation._glm_predictive_distribution(batch))
        variances.append(covariance.diagonal(dim1=1, dim2=2).mean(1))
        for link in links:
            with _known_moments(approximation, mean, covariance):
                answer = approximation(batch, pred_type="glm", link_approx=link, n_samples=SAMPLES)
            probabilities[link].append(answer.detach())
    return {link: torch.cat(rows) for link, rows in probabilities.items()}, torch.cat(variances)


@contextmanager
def _known_moments(approximation: Any, mean: Tensor, covariance: Tensor) -> Iterator[None]:
    """Let a predictive start from these moments; copies, since the bridge changes them in place."""
    approximation._glm_predictive_distribution = lambda *_, **__: (mean.clone(), covariance.clone())
    try:
        yield
    finally:
        del approximation._glm_predictive_distribution


def _log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(probabilities.clamp_min(torch.finfo(probabilities.dtype).eps).log(), labels)


def _loader(inputs: Tensor, labels: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(inputs, labels), batch_size=50)  # in a fixed order
