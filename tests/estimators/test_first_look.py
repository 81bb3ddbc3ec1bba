"""Cheap looks before a fit: honest errors, the rule of one standard error, mirroring chosen where it helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import network
from torch.nn import functional as F

from tangentune import Backbone, Pictures, TangentClassifier, TangentRegressor
from tangentune.estimators.first_look import (
    FEW,
    RELATIVE_DAMPINGS,
    held_out_errors,
    lower,
    mirroring_helps,
    probe_errors,
)
from tangentune.solvers.ridge import factor_ridge

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(15, 6, generator=GENERATOR, dtype=torch.float64)
TARGETS = F.one_hot(torch.arange(15) % 3).double()


def refitted(unit: torch.Tensor, seen: list[int], new: list[int], damping: float) -> torch.Tensor:
    """Squared errors on new pictures of ridge regression with a free intercept, solved as one bordered system."""
    n, kernel = len(seen), unit @ unit.T
    system = torch.ones(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n] = kernel[seen][:, seen] + damping * torch.eye(n)
    system[n, n] = 0
    solved = torch.linalg.solve(system, torch.cat([TARGETS[seen], torch.zeros(1, 3)]))
    return (TARGETS[new] - kernel[new][:, seen] @ solved[:n] - solved[n]).square().sum(1)


def dampings(unit: torch.Tensor) -> list[float]:
    return (factor_ridge(unit @ unit.T).mean_eigenvalue * RELATIVE_DAMPINGS).tolist()


def test_the_errors_of_a_probe_are_those_of_refits() -> None:
    unit = F.normalize(FEATURES, dim=1)
    everyone = list(range(15))
    paths = [
        torch.cat([refitted(unit, [j for j in everyone if j != i], [i], damping) for i in everyone])
        for damping in dampings(unit)
    ]
    best = min(paths, key=lambda errors: float(errors.sum()))
    torch.testing.assert_close(probe_errors(FEATURES, TARGETS), best, rtol=0, atol=1e-8)


def test_the_errors_on_held_out_pictures_are_those_of_a_refit() -> None:
    unit, held_out = F.normalize(FEATURES, dim=1), torch.arange(15) % 4 == 0
    seen, new = torch.nonzero(~held_out).flatten().tolist(), torch.nonzero(held_out).flatten().tolist()
    paths = [refitted(unit, seen, new, damping) for damping in dampings(unit[~held_out])]
    best = min(paths, key=lambda errors: float(errors.sum()))
    torch.testing.assert_close(held_out_errors(FEATURES, TARGETS, held_out), best, rtol=0, atol=1e-8)


def test_few_pictures_need_one_standard_error() -> None:
    gains = torch.tensor([0.3, -0.2] * (FEW // 2), dtype=torch.float64)  # mean .05, standard deviation .25
    assert lower(1 - gains, torch.ones(FEW), 0.0)
    few = gains[: FEW // 2]  # standard error .057
    assert not lower(1 - few, torch.ones(len(few)), 1.0)
    assert lower(1 - few - 0.02, torch.ones(len(few)), 1.0)
    assert not lower(torch.ones(FEW), torch.ones(FEW), 0.0)
    assert lower(1 + few, torch.ones(len(few)), -1.0)  # worse, but not by a standard error
    assert not lower(1 + few + 0.02, torch.ones(len(few)), -1.0)


def sided(pixels_of: str) -> Pictures:
    """Two classes of 30 noisy pictures: told by the bright side, or by stripes; a mirror swaps sides, not stripes."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    bright = np.zeros((60, 8, 8))
    if pixels_of == "side":
        bright[labels == 0, :, :4] = bright[labels == 1, :, 4:] = 1
    else:
        stripes = np.tile(np.arange(8) % 2, (8, 1))
        bright = np.where(labels[:, None, None] == 1, stripes, stripes.T).astype(float)
    pixels = 0.15 * bright[:, None] + 0.6 * rng.random((60, 3, 8, 8))
    return Pictures(torch.from_numpy(pixels), labels, [str(i) for i in range(60)])


@pytest.mark.parametrize(("kind", "helps"), [("side", False), ("stripes", True)])
def test_mirroring_is_chosen_where_it_helps(kind: str, helps: bool) -> None:
    backbone, pictures = Backbone(network(), input_size=(3, 8, 8)), sided(kind)
    targets = F.one_hot(torch.from_numpy(np.asarray(pictures.labels))).double()
    assert mirroring_helps(backbone, pictures, targets, 16) == helps
    quick = {"outer_steps": 0, "metric_power": 0, "body_scale": 0.5, "normalize": True, "damping": 0.1}
    model = TangentClassifier(backbone, **quick).fit(pictures)
    assert model.augment_ == ("flip" if helps else None)
    told = TangentClassifier(backbone, **quick, augment="flip" if helps else None).fit(pictures)
    assert (model.kernel_ == told.kernel_).all()
    assert (model.predict_proba(pictures) == told.predict_proba(pictures)).all()


def test_vectors_have_no_mirror_image() -> None:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    backbone = Backbone(torch.nn.Linear(4, 6))
    assert TangentRegressor(backbone, damping=0.1).fit(x, x[:, 0]).augment_ is None
