"""Networks moved towards several labels: cross-fitted, honest, saved, and as two classes move them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_cases import X
from frozen import scores
from numpy.testing import assert_allclose
from small import FIXED, network
from torch import nn

from tangentune import Backbone, Pictures, TangentClassifier
from tangentune.estimators.outer_steps import FOLDS, cross_fitted_expansion
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.fit import tune_labels
from tangentune.pictures.label_sets import label_sets

PIXELS = torch.from_numpy(X)
HIGH = (X.mean((1, 2, 3)) > X.mean()).astype(int)
Y = np.stack([HIGH, X[:, 0].mean((1, 2)) > X[:, 1].mean((1, 2)), X[:, :, 4:].mean((1, 2, 3)) > X.mean()], 1)
IDS = [str(i) for i in range(len(X))]
SETTINGS = FineTuneSettings(epochs=3, batch_size=16, head_start="probe", flip=False, learning_rate=1e-3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(network(), input_size=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def sets(pixels: torch.Tensor = PIXELS) -> Pictures:
    return Pictures(pixels, label_sets(Y, ["a", "b", "c"]), IDS)


def weights_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in module.parameters()])


def test_two_labels_that_exclude_each_other_move_a_network_as_two_classes_do(backbone: Backbone) -> None:
    """Their loss is twice the cross-entropy, which Adam's steps do not see but for their `eps`."""
    classes = fine_tune(backbone, Pictures(PIXELS, HIGH, IDS), SETTINGS).backbone.module
    labels = tune_labels(backbone, Pictures(PIXELS, None, IDS), torch.from_numpy(np.eye(2)[HIGH]), SETTINGS).module
    start = weights_of(backbone.module)
    moved, apart = weights_of(classes) - start, weights_of(labels) - weights_of(classes)
    assert moved.norm() > 1e-3
    assert apart.norm() < 1e-2 * moved.norm()


def test_each_point_has_not_seen_its_fold(backbone: Backbone) -> None:
    made = cross_fitted_expansion(backbone, sets(), 3, flip=False)
    changed = PIXELS.clone()
    changed[int(np.flatnonzero(made.fold == 1)[0])] = 0
    again = cross_fitted_expansion(backbone, sets(changed), 3, flip=False)
    same = [weights_of(a).equal(weights_of(b)) for a, b in zip(made.points, again.points, strict=True)]
    assert same == [fold == 1 for fold in range(FOLDS)]


def test_a_moved_model_is_edited_and_saved(backbone: Backbone, tmp_path: Path) -> None:
    options: dict[str, Any] = FIXED | {"outer_steps": 3}
    model = TangentClassifier(backbone, **options).fit(X, Y)
    assert model.outer_steps_ == 3
    kernel, n = model.kernel_, len(X)
    rest = np.arange(1, n)
    grown = np.block([[kernel[1:, 1:] + model.damping_ * np.eye(n - 1), np.ones((n - 1, 1))], [np.ones(n - 1), 0]])
    solved = np.linalg.solve(grown, np.concatenate([Y[1:], np.zeros((1, 3))]))
    assert_allclose(model.loo_predictions_[0], kernel[0, rest] @ solved[:-1] + solved[-1], rtol=0, atol=1e-8)
    model.save_pretrained(tmp_path / "m")
    read = TangentClassifier.from_pretrained(tmp_path / "m", backbone=backbone)
    assert np.array_equal(scores(read, X[:3]), scores(model, X[:3]))
    read.forget([0], strict=True)
    assert read.outer_steps_ == 3
    assert np.array_equal(read.targets_, Y[1:])


def test_the_ladder_is_tried(backbone: Backbone) -> None:
    options: dict[str, Any] = FIXED | {"outer_steps": "loo"}
    model = TangentClassifier(backbone, **options).fit(X, Y)
    assert [row["outer_steps"] for row in model.outer_selection_][:2] == [0, 32]
    assert model.plan(X, Y)["stages"]["outer steps"]["seconds"] > 0
