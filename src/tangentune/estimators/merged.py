"""A fitted model from sums: it predicts as any other, and has no pictures that could be explained or edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.fitted import FitFacts, FittedModel
from tangentune.estimators.frozen_map import FrozenMap
from tangentune.estimators.solution import ActivePictures
from tangentune.estimators.tasks import Classification, Outcome, Regression
from tangentune.estimators.training_set import TrainingSet
from tangentune.kernels.feature_map import TangentModel, norm_shares
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.home_scores import HomeScores, digest
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.sums import SumsFactor, TangentSums
from tangentune.solvers.sums_path import choose_damping, generalised_errors

SUMS = "sums"  # the entry of a fit's report that tells a model of sums


def solve_sums(
    frozen: FrozenMap, total: TangentSums, damping: float | None, scores: HomeScores | None, options: dict[str, Any]
) -> FittedModel:
    """The model of the least-squares problem of some sums; D^3 for rows of width D.

    The damping is the one of least generalised cross-validation error if None is given. That error also stands for what
    leave-one-out would tell: a class given the scores is as likely as under Gaussian residuals of that variance. With
    `scores` leave-one-out tells it.
    """
    check_map(frozen, total.fingerprint, len(total.rows))
    if len(total.classes) == 1:
        raise InputError(f"these sums hold one class only, {total.classes[0]!r}; a classifier needs two")
    if scores is not None and scores.judge != digest(total):
        raise InputError(
            "these scores were made with other sums; score the pictures of every owner with the merged ones"
        )
    if damping is None and scores is not None:
        damping = scores.damping
    factor = total.factor()
    found = factor.fit(choose_damping(factor) if damping is None else damping)
    errors = generalised_errors(
        factor, torch.tensor([found.damping], dtype=torch.float64, device=factor.values.device)
    )[0].cpu()
    model = frozen.model(found.coef, found.intercept)
    classes, count = np.array(total.classes), len(found.intercept)
    empty = np.empty((0, count))
    outcome = Outcome(empty, found.intercept.cpu().numpy(), empty, float("nan"))
    if total.classes:
        task = Classification(LEAST_SQUARES, None)
        found_at_home = None if scores is None else scores.temperature
        temperature = gaussian_temperature(errors) if found_at_home is None else found_at_home
        outcome = replace(outcome, classes=classes, proba=empty, temperature=temperature)
        labels = np.empty(0, classes.dtype)
    else:
        task, labels = Regression(LEAST_SQUARES, None), np.empty((0, count) if count > 1 else 0)
        outcome = replace(outcome, noise=errors.numpy())
    none = np.empty(0, np.int64)
    pictures = Pictures(torch.empty(0, 0), None, [])
    kernel = torch.empty(0, 0, dtype=torch.float64, device=frozen.backbone.device)
    return FittedModel(
        task=task,
        backbone=frozen.backbone,
        feature_map=frozen.feature_map,
        task_vector=None,
        training=TrainingSet(pictures, none, (), kernel, None),
        active=ActivePictures(none, labels, np.empty(0)),
        solution=None,
        outcome=outcome,
        primal=model,
        facts=_facts(frozen, total, factor, found.damping, model, errors, scores),
        source=None,
        next_number=0,
        seed=options["random_state"],
        room=0,
        edits=[],
    )


def gaussian_temperature(errors: Tensor) -> float:
    """The temperature t at which softmax(scores / t) is the posterior of the classes, given (C,) squared errors.

    With residuals of variance s^2 in each of the C - 1 directions in which one-hot targets differ, a score f has the
    likelihood exp(-|f - e_c|^2 / (2 s^2)) under class c, which is proportional to exp(f_c / s^2): t = s^2.
    """
    return max(float(errors.sum()) / max(1, len(errors) - 1), 1e-6)


def check_map(frozen: FrozenMap, fingerprint: str, width: int) -> None:
    """Refuse sums of another map."""
    if fingerprint != frozen.fingerprint:
        maps = f"{fingerprint[:12]}, not {frozen.fingerprint[:12]}"
        raise InputError(f"these sums are of another feature map ({maps}); give the map that they were made with")
    if width != frozen.finite.width:
        raise InputError(f"these sums have rows of {width} numbers, the map of {frozen.finite.width}; make them anew")


def _facts(
    frozen: FrozenMap, total: TangentSums, factor: SumsFactor, damping: float, model: TangentModel, errors: Tensor,
    scores: HomeScores | None,
) -> FitFacts:  # fmt: skip
    feature_map = frozen.feature_map
    scales = {block: feature_map.body_scale * scale for block, scale in feature_map.block_scales.items()}
    counts: Sequence[int] = [int(count) for count in total.counts.tolist()] if total.classes else []
    path = {"damping": np.array([damping]), "loo_error": np.array([float(errors.sum())])}
    if scores is not None:
        path = {"damping": scores.dampings.numpy(), "loo_error": (scores.errors / scores.pictures).numpy()}
    report: dict[str, Any] = {
        "n": total.pictures,
        "outputs": len(total.targets),
        SUMS: {"map": total.fingerprint, "width": len(total.rows), "counts": counts, "error": float(errors.sum())},
    }
    if scores is not None:
        report[SUMS]["left_out"] = scores.summary()
    return FitFacts(
        damping=damping,
        relative_damping=damping / factor.mean_eigenvalue,
        metric_power=frozen.power,
        normalize=feature_map.normalize,
        body_scale=feature_map.body_scale,
        block_scales={"head": 1.0, **scales},
        block_shares=norm_shares(model),
        selection=[],
        damping_path=path,
        fit_report=report,
    )
