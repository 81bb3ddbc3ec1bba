"""What the calibration study compares: each group of methods answers with probabilities and what they cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import laplace_peer
from benchmarks.calibration_data import Split, network, split_of
from benchmarks.calibration_networks import NETWORKS, Cost, Tuned, measured, tuned_network, whole_network
from benchmarks.laplace_peer import APPROXIMATIONS, Data
from tangentune import TangentClassifier
from tangentune.metrics import nll
from tangentune.pictures.pictures import normalise
from tangentune.solvers.calibration import fit_temperature

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
FREE = Cost(seconds=0, cpu_seconds=0, peak_bytes=0)
FOREIGN_OF_WHOLE = 200  # foreign pictures that an approximation of all layers is asked about: each takes it a second


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What a method says of the test pictures and the foreign ones.

    Attributes:
        method: its name in tables.
        family: "ours", "laplace" or "other".
        test: (m, C) probabilities.
        foreign: (k, C) probabilities.
        strangeness: the method's own score of both, higher for what it does not know; None if it has none.
        fit: cost with every choice it makes and every network it starts from.
        predict: cost of both sets of probabilities.
        facts: what it chose.
    """

    method: str
    family: str
    test: NDArray[Any]
    foreign: NDArray[Any]
    strangeness: tuple[NDArray[Any], NDArray[Any]] | None
    fit: Cost
    predict: Cost
    facts: dict[str, Any] = field(default_factory=dict)


Answers = Callable[[str, int], Iterator[Answer]]


def groups() -> dict[str, Answers]:
    """Name -> what to run in a process of its own; options that the estimator lacks are left out."""
    known = inspect.signature(TangentClassifier).parameters
    out: dict[str, Answers] = {}
    for name, options in (OURS | OTHERS).items():
        if set(options) <= set(known):
            out[name] = partial(_tangent, name, "ours" if name in OURS else "other", options)
    out["fine-tuning"] = _fine_tuning
    for name, approximation in APPROXIMATIONS.items():
        for prior in approximation.priors:
            out[f"laplace {name}, {prior}"] = partial(_laplace, name, prior)
    return out


def _tangent(name: str, family: str, options: dict[str, Any], dataset: str, seed: int) -> Iterator[Answer]:
    split, backbone = split_of(dataset, seed), network()
    backbone.check(_inputs(split.train.pixels[:2]))  # the first passes are not the method's cost
    with measured() as fit:
        model: TangentClassifier = TangentClassifier(backbone, random_state=seed, **options).fit(split.train)
    with measured() as predict:
        test, foreign = model.predict_proba(split.test), model.predict_proba(split.foreign)
    own = getattr(model, "ood_score", None)
    strangeness = None if own is None else (np.asarray(own(split.test)), np.asarray(own(split.foreign)))
    names = ("outer_steps", "damping", "body_scale", "metric_power", "normalize", "temperature")
    facts = {name: getattr(model, f"{name}_", None) for name in names} | {"loo_accuracy": model.loo_score_}
    yield Answer(name, family, test, foreign, strangeness, fit, predict, facts)


def _fine_tuning(dataset: str, seed: int) -> Iterator[Answer]:
    """Both networks, as they are and at the temperature of the pictures kept aside."""
    split, tuned = split_of(dataset, seed), {which: tuned_network(dataset, seed, which) for which in NETWORKS}
    kept_aside = tuned["split"].validation_rows
    temperature = fit_temperature(tuned["split"].logits("train")[kept_aside].double(), _labels(split)[kept_aside])
    for which, found in tuned.items():
        predict = found.feature_costs["test"] + found.feature_costs["foreign"]
        for divisor, title in ((1.0, "fine-tuning"), (temperature, "fine-tuning + temperature")):
            test, foreign = ((found.logits(part) / divisor).softmax(1).numpy() for part in ("test", "foreign"))
            facts = found.chosen | {"temperature": divisor, "network": which}
            yield Answer(f"{title}, {which}", "other", test, foreign, None, found.training, predict, facts)


@final
@dataclass(frozen=True, eq=False)
class _Problem:
    """A fine-tuned network as laplace-torch gets it, and the pictures as that network takes them."""

    module: nn.Module
    known: Data
    parts: dict[str, list[Tensor]]
    validation: Data
    training: Cost
    features: Cost  # of the pictures to predict, where they are made beforehand


def _problem(dataset: str, seed: int, which: str, *, whole: bool) -> _Problem:
    split, tuned = split_of(dataset, seed), tuned_network(dataset, seed, which)
    labels, rows, kept_aside = _labels(split), tuned.fit_rows, tuned.validation_rows
    if whole:
        train = _inputs(split.train.pixels)
        inputs = {"test": _inputs(split.test.pixels), "foreign": _inputs(split.foreign.pixels[:FOREIGN_OF_WHOLE])}
        inputs["validation"] = train[kept_aside]
        parts = {part: [x, x.flip(-1)] for part, x in inputs.items()}
        module, training, features = whole_network(dataset, seed, which), tuned.training, FREE
    else:
        train = tuned.features["train"]
        parts = {part: [x] for part, x in tuned.features.items()} | {"validation": [train[kept_aside]]}
        module, training = _head(tuned), tuned.training + tuned.feature_costs["train"]
        features = tuned.feature_costs["test"] + tuned.feature_costs["foreign"]
    known, validation = Data(train[rows], labels[rows]), Data(train[kept_aside], labels[kept_aside])
    return _Problem(module, known, parts, validation, training, features)


def _laplace(name: str, prior: str, dataset: str, seed: int) -> Iterator[Answer]:
    """The approximation around both networks; the prior of a grid search comes from the first one."""
    torch.manual_seed(seed)
    approximation = APPROXIMATIONS[name]
    split, refit = (_problem(dataset, seed, which, whole=approximation.whole) for which in NETWORKS)
    with measured() as first:
        around_split = laplace_peer.fit(name, split.module, split.known)
    with measured() as second:
        around_refit = laplace_peer.fit(name, refit.module, refit.known)
    by_link = prior == "gridsearch" and approximation.structure != "ella"
    for links in [(link,) for link in approximation.links] if by_link else [approximation.links]:
        with measured() as choosing:
            laplace_peer.choose_prior(around_split, name, prior, links[0], split.validation)
        validation, _ = _asked(around_split, name, links, split, "validation")
        judged = {link: nll(split.validation.labels, validation[link].numpy()) for link in links}
        with measured() as again:
            if prior == "gridsearch":
                around_refit.prior_precision = around_split.prior_precision.detach().clone()
            else:
                laplace_peer.choose_prior(around_refit, name, prior, links[0], refit.validation)
        searched = first + choosing if prior == "gridsearch" else FREE
        known = [(around_refit, refit, "refit", refit.training + searched + second + again)]
        if not approximation.whole:
            known.append((around_split, split, "split", split.training + first + choosing))
        for found, problem, which, fit in known:
            yield from _judged(found, f"{name}, {prior}", name, links, problem, which, fit, judged)


def _judged(
    found: Any,
    title: str,
    name: str,
    links: tuple[str, ...],
    problem: _Problem,
    which: str,
    fit: Cost,
    validation: dict[str, float],
) -> Iterator[Answer]:
    """One answer for each link."""
    with measured() as predict:
        test, foreign = (_asked(found, name, links, problem, part) for part in ("test", "foreign"))
    predict += problem.features
    precision = torch.as_tensor(found.prior_precision).detach()
    facts = {"network": which, "prior_precision": float(precision.double().log().mean().exp())}
    own = None if APPROXIMATIONS[name].sampled else (test[1].numpy(), foreign[1].numpy())
    for link in links:
        more = {"link": link, "validation_nll": validation[link], "approximation": title}
        probabilities = (test[0][link].numpy(), foreign[0][link].numpy())
        yield Answer(f"laplace {title}, {link}, {which}", "laplace", *probabilities, own, fit, predict, facts | more)


def _asked(
    found: Any, name: str, links: tuple[str, ...], problem: _Problem, part: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Probabilities of each link and variances, both means over the views of a picture."""
    views = [laplace_peer.predict(found, name, links, x) for x in problem.parts[part]]
    probabilities = {link: torch.stack([view[0][link] for view in views]).mean(0) for link in links}
    return probabilities, torch.stack([view[1] for view in views]).mean(0)


def _head(tuned: Tuned) -> nn.Module:
    """From features to logits; laplace-torch looks for a last layer among several modules."""
    linear = nn.Linear(tuned.weight.shape[1], tuned.weight.shape[0])
    linear.load_state_dict({"weight": tuned.weight, "bias": tuned.bias})
    return nn.Sequential(nn.Identity(), linear).eval()


def _inputs(pixels: Tensor) -> Tensor:
    return normalise(pixels, network().contract)


def _labels(split: Split) -> Tensor:
    assert split.train.labels is not None
    return torch.from_numpy(split.train.labels)
