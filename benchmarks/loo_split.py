"""One split of the honesty study: rows once, then each way to fit with its leave-one-out and held-out errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.options import read_options
from tangentune.jacobian.kfac_factors import FactorSums
from tangentune.jacobian.rows import BatchRows, RowPlan, batch_rows
from tangentune.jacobian.survey import survey
from tangentune.kernels.choice import Fixed, Problem, Scored, block_scales, search, solution_of
from tangentune.kernels.collect import RowSet, collect, kronecker_factors, portions, restrict
from tangentune.kernels.feature_map import TangentMap, TangentModel, decision, feature_rows, primal, row_parts
from tangentune.kernels.gram import gram, inverse_lengths, row_chunks
from tangentune.kernels.metric import KroneckerFactors, Whitening, whiten, whitening
from tangentune.kernels.stages import Source, draw_probes
from tangentune.networks.backbone import Backbone
from tangentune.networks.parameters import block_of, group_blocks
from tangentune.pictures.load import Pictures
from tangentune.solvers.ridge import Solution

POWERS = {"p = 0": 0.0, "p = 1/4": 0.25, "p = 1/2": 0.5}
METHODS = ("probe", *POWERS, "default")
REMEDIES = {
    "p = 1/4, damping 1": "factors damped by 1 mean eigenvalue instead of 0.1",
    "p = 1/2, damping 1": "likewise",
    "p = 1/4, other pictures": "factors from 256 CIFAR-10 pictures that no split holds",
    "p = 1/2, other pictures": "likewise",
    "p = 1/4, cross-fitted": "leave-one-out of each fifth with factors from the other four; held out: as p = 1/4",
    "p = 1/2, cross-fitted": "likewise",
}
BATCH, FOLDS = 32, 5
DAMPING = 0.1  # of the factors of "p = ...": what the library began with; the remedies compare others with it
FIRST_BLOCK = 0.5  # where the moving blocks begin, as a share of the network: a usual choice of the default
BODY_SCALES = (0.5, 2.0, 8.0)  # never 0: a fit that falls back to the probe says nothing about the metric
Factors = dict[str, KroneckerFactors]


@dataclass(frozen=True)
class Split:
    """Training and held-out pictures with labels, and the seed of the probes."""

    train: Pictures
    held: Pictures
    seed: int


@dataclass(frozen=True)
class Ready:
    """Rows, targets and probes of one split; `classes` are those of the training and held-out pictures together."""

    tangent: RowPlan
    probes: Tensor
    rows: RowSet
    targets: Tensor
    held_targets: Tensor


@dataclass(frozen=True)
class FittedPower:
    """A fit with given factors: its function, what was chosen and its leave-one-out predictions."""

    model: TangentModel
    problem: Problem
    scored: Scored
    solution: Solution


def measure(backbone: Backbone, split: Split) -> dict[str, dict[str, Any]]:
    """Leave-one-out and held-out errors of every method of METHODS."""
    ready = prepare(backbone, split)
    factors = kronecker_factors(ready.rows)
    still = replace(ready, tangent=restrict(ready.tangent, ()), rows=ready.rows.restrict(()))
    fits = {"probe": fit_power(still, {}, 0.0)}
    fits |= {name: fit_power(ready, factors, power) for name, power in POWERS.items()}
    held = held_out_scores(backbone, split, ready, {name: fit.model for name, fit in fits.items()})
    out = {name: errors(ready, fit.solution.loo, held[name]) | chosen(fit.scored) for name, fit in fits.items()}
    out["default"] = _default(backbone, split, ready, held["probe"])
    return {name: out[name] for name in METHODS}


def _default(backbone: Backbone, split: Split, ready: Ready, probe: Tensor) -> dict[str, Any]:
    """TangentClassifier as it comes, and its held-out squared error minus the probe's, picture by picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate pictures, classes of one picture
        model = TangentClassifier(backbone, random_state=split.seed).fit(split.train)
    with torch.no_grad():
        scores = torch.cat([decision(model.model_, x) for x in _inputs(backbone, split.held)])
    columns = torch.from_numpy(np.searchsorted(_classes(split), model.classes_))
    full = torch.zeros(len(scores), ready.targets.shape[1], dtype=torch.float64)
    loo = torch.zeros_like(ready.targets)
    full[:, columns], loo[:, columns] = scores, torch.from_numpy(model.loo_predictions_)
    gaps = (ready.held_targets - full).square().sum(1) - (ready.held_targets - probe).square().sum(1)
    return errors(ready, loo, full) | {
        "metric_power": model.metric_power_,
        "body_scale": float(model.body_scale_),
        "normalize": bool(model.normalize_),
        "probe_gap": float(gaps.mean()),
        "probe_gap_standard_error": float(gaps.std()) / len(gaps) ** 0.5,
    }


def measure_remedies(backbone: Backbone, split: Split, pool: Pictures) -> dict[str, dict[str, Any]]:
    """Errors with the metric's factors damped more, from other pictures, or cross-fitted."""
    ready = prepare(backbone, split)
    own = kronecker_factors(ready.rows)
    far = kronecker_factors(
        collect(ready.tangent, lambda: portions(_inputs(backbone, pool)), len(pool), ready.probes, False)
    )
    fits = {}
    for name, power in (("p = 1/4", 0.25), ("p = 1/2", 0.5)):
        fits[f"{name}, damping 1"] = fit_power(ready, own, power, 1.0)
        fits[f"{name}, other pictures"] = fit_power(ready, far, power)
        fits[f"{name}, cross-fitted"] = fit_power(ready, own, power)
    held = held_out_scores(backbone, split, ready, {name: fit.model for name, fit in fits.items()})
    loo = {name: fit.solution.loo for name, fit in fits.items()}
    folds = list(fold_factors(backbone, split, ready))
    for name, fit in fits.items():
        if name.endswith("cross-fitted"):
            loo[name] = cross_fitted(ready, fit, folds)
    return {name: errors(ready, loo[name], held[name]) | chosen(fits[name].scored) for name in REMEDIES}


def prepare(backbone: Backbone, split: Split) -> Ready:
    """Rows of the training pictures with the estimator's own probes."""
    source = Source(len(split.train), lambda index: _inputs(backbone, split.train, index))
    options = TangentClassifier(backbone).get_params(deep=False)
    settings = read_options(options, split.seed, 2**33, True)
    tangent = _tangent(backbone, next(_inputs(backbone, split.train, [0, 1])))
    probes = draw_probes(tangent, source, settings)
    rows = collect(tangent, lambda: portions(source.batches(None)), source.count, probes, False)
    classes = _classes(split)
    return Ready(tangent, probes, rows, _one_hot(split.train, classes), _one_hot(split.held, classes))


_TANGENTS: dict[int, RowPlan] = {}


def _tangent(backbone: Backbone, x: Tensor) -> RowPlan:
    """The network's linearisation, proved once."""
    if id(backbone) not in _TANGENTS:
        names = [name for name, _ in backbone.module.named_parameters()]
        whole = survey(backbone.module, backbone.feature_function, names, x)
        blocks = list(group_blocks(whole.names))
        kept = set(blocks[int(FIRST_BLOCK * len(blocks)) :])
        _TANGENTS[id(backbone)] = restrict(whole, [name for name in whole.names if block_of(name) in kept])
    return _TANGENTS[id(backbone)]


def fit_power(ready: Ready, factors: Factors, power: float, damping: float = DAMPING) -> FittedPower:
    """Block kernels with the given factors, scale and damping by leave-one-out error, and the primal weights."""
    rows, phi = ready.rows, ready.rows.phi.double()
    metric = metric_of(factors, power, damping)
    blocks = block_kernels(rows, metric)
    problem = Problem(phi @ phi.T, blocks, ready.targets, torch.ones(len(phi), dtype=torch.float64))
    fixed = [Fixed(normalize=True, body_scale=scale) for scale in BODY_SCALES] if blocks else [Fixed(body_scale=0.0)]
    scored = min((search(problem, power, one)[0] for one in fixed), key=lambda found: found.criterion)
    solution = solution_of(problem, scored)
    choice = scored.choice
    scales = block_scales(list(blocks), choice.slope)
    made = TangentMap(ready.tangent, ready.probes, False, metric, scales, choice.body_scale, choice.normalize, scales)
    whole = feature_rows(made, rows.phi, dict(rows.entries))
    model = primal(made, row_parts(whole, made, lambda: ()), solution.dual, solution.intercept)
    return FittedPower(model, problem, scored, solution)


def metric_of(factors: Factors, power: float, damping: float = DAMPING) -> dict[str, Whitening]:
    """Whitening of every parameter; none for power 0."""
    return {name: whitening(own, power, damping) for name, own in factors.items()} if power > 0 else {}


def block_kernels(rows: RowSet, metric: dict[str, Whitening]) -> dict[str, Tensor]:
    """(n, n) kernel of every block."""
    out: dict[str, Tensor] = {}
    for block, names in group_blocks(rows.entries).items():
        entries = [rows.entries[n] if n not in metric else whiten(rows.entries[n], metric[n]) for n in names]
        out[block] = torch.stack([gram(entry) / entry.probes for entry in entries]).sum(0)
    return out


def fold_factors(backbone: Backbone, split: Split, ready: Ready) -> Iterator[tuple[Tensor, Factors]]:
    """For each fifth of the training pictures: its positions, and factors from the other four fifths."""
    count = len(split.train)
    parts = [torch.arange(start, count, FOLDS) for start in range(FOLDS)]
    sums: list[dict[str, FactorSums]] = []
    for part in parts:
        index = part.tolist()
        batches = collect(
            ready.tangent,
            lambda index=index: portions(_inputs(backbone, split.train, index)),
            len(part),
            ready.probes,
            False,
        )
        sums.append(batches.samples)
    for number, part in enumerate(parts):
        rest = torch.cat([other for k, other in enumerate(parts) if k != number]).sort().values
        samples: dict[str, FactorSums] = {}
        for k, own in enumerate(sums):
            for name, sample in own.items() if k != number else ():
                samples[name] = samples[name] + sample if name in samples else sample
        entries = {name: entry.select(rest) for name, entry in ready.rows.entries.items()}
        yield part, kronecker_factors(RowSet(ready.rows.phi[rest], entries, samples))


def cross_fitted(ready: Ready, fit: FittedPower, folds: list[tuple[Tensor, Factors]]) -> Tensor:
    """Leave-one-out predictions in which a picture's own row took no part in the metric; choices as in `fit`."""
    out = torch.zeros_like(ready.targets)
    for part, factors in folds:
        blocks = block_kernels(ready.rows, metric_of(factors, fit.scored.choice.power))
        out[part] = solution_of(replace(fit.problem, blocks=blocks), fit.scored).loo[part]
    return out


def held_out_scores(
    backbone: Backbone, split: Split, ready: Ready, models: dict[str, TangentModel]
) -> dict[str, Tensor]:
    """Scores (m, C) of the held-out pictures by every model; the rows are computed once for all."""
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    for x in _inputs(backbone, split.held):
        batch = batch_rows(ready.tangent, [x], ready.probes)
        for name, model in models.items():
            parts[name].append(_decide(model, batch))
    return {name: torch.cat(scores) for name, scores in parts.items()}


def _decide(model: TangentModel, batch: BatchRows) -> Tensor:
    """`tangentune.kernels.feature_map.decision` for rows at hand."""
    made, phi = model.map, batch.phi
    if made.normalize:
        phi = phi * inverse_lengths(phi.double().square().sum(1)).to(phi)[:, None]
    scores = model.intercept + (phi @ model.head.T).double()
    body, squares = torch.zeros_like(scores), torch.zeros_like(scores[:, 0])
    for name, weights in model.body.items():
        entry = batch.entries[name]
        entry = whiten(entry, made.metric[name]) if name in made.metric else entry
        for columns, rows in row_chunks(entry):
            body += (rows @ weights[:, columns].T).double()
        squares += made.block_scales[block_of(name)] / len(made.probes) * entry.squared_norms()
    return scores + (body * inverse_lengths(squares)[:, None] if made.normalize else body)


def errors(ready: Ready, loo: Tensor, held: Tensor) -> dict[str, float]:
    """Mean squared error and error rate, leave-one-out and held out."""
    out = {}
    for name, scores, targets in (("loo", loo, ready.targets), ("held_out", held, ready.held_targets)):
        out[f"{name}_error"] = float((targets - scores).square().sum(1).mean())
        out[f"{name}_error_rate"] = float((targets.argmax(1) != scores.argmax(1)).double().mean())
    return out


def chosen(scored: Scored) -> dict[str, Any]:
    """What leave-one-out error chose."""
    choice = scored.choice
    return {"normalize": choice.normalize, "body_scale": choice.body_scale, "slope": choice.slope}


def _inputs(backbone: Backbone, pictures: Pictures, index: list[int] | None = None) -> Iterator[Tensor]:
    taken = pictures if index is None else pictures.select(index)
    for x in taken.batches(backbone.contract, BATCH, backbone.dtype, backbone.device):
        yield x.contiguous(memory_format=torch.channels_last)


def _classes(split: Split) -> np.ndarray:
    assert split.train.labels is not None
    assert split.held.labels is not None
    return np.unique(np.concatenate([split.train.labels, split.held.labels]))


def _one_hot(pictures: Pictures, classes: np.ndarray) -> Tensor:
    assert pictures.labels is not None
    positions = torch.from_numpy(np.searchsorted(classes, pictures.labels))
    return torch.nn.functional.one_hot(positions, len(classes)).double()
