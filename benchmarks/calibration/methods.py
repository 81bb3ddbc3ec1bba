"""What the calibration study compares: each group of methods answers with probabilities and what they cost.

laplace-torch gets the features, made once, as a network of one linear layer (its results are the same, and it need not
run the network at each step), with mirrored pictures averaged, as all methods here have it. Grid searches get the plain
log-loss: the default metric of 0.3 (`RunningNLLMetric`) is never reset between grid points, so that each point is
judged by all before it as well. Approximations beyond last-layer "kron" and "diag" took too long or failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.calibration.networks import Cost, Tuned, measured, network, split_of, together, tuned_networks
from benchmarks.study import labels_of, network_inputs
from tangentune import TangentClassifier
from tangentune.metrics import nll
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
LINKS, SAMPLES, GRID = ("probit", "mc", "bridge", "bridge_norm"), 100, 21
PRIORS = {  # of each structure of the curvature: ways to choose the prior, and what laplace-torch calls them
    "kron": {"marglik": "scalar", "gridsearch": None},
    "diag": {"marglik": "scalar", "gridsearch": None, "marglik per weight": "diag"},
}


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
        model: TangentClassifier = TangentClassifier(backbone, random_state=seed, **options).fit(split.train)
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
