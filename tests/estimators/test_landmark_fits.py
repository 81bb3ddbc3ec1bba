"""Fits on landmarks: the same answers as with the kernel of all pictures, or exact ones for the rows that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference import closeness
from torch import nn

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.errors import BudgetError, InputError
from tangentune.solvers.leave_out import loo
from tangentune.solvers.low_rank import FeatureKernel
from tangentune.solvers.system import build

N, M = 90, 30
FIXED: dict[str, Any] = {"damping": 2.0, "metric_power": 0.25, "normalize": True, "body_scale": 1.0}


def network() -> Backbone:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 8))
    return Backbone(layers.double())


def data(count: int = N, seed: int = 0) -> tuple[NDArray, NDArray]:
    x = np.random.default_rng(seed).normal(size=(count, 5))
    return x, np.array(["left", "right", "up"])[(x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 0.8)]


def classifier(**options: Any) -> TangentClassifier:
    given = FIXED | {"outer_steps": 0, "solver": "landmarks", "landmarks": M} | options
    return TangentClassifier(network(), **given)


def fitted(**options: Any) -> TangentClassifier:
    return classifier(**options).fit(*data())


def same_as_refit(clf: TangentClassifier) -> None:
    """The solution is that of a dense problem on the kernel of the rows as they are."""
    held = clf.solution_.system
    assert isinstance(held.kernel, FeatureKernel)
    rows = held.kernel.rows(slice(None))
    dense = build(rows @ rows.T, held.targets, held.damping, held.weights)
    assert closeness(held.dual, dense.dual) < 1e-8
    assert closeness(held.bias, dense.bias) < 1e-8
    assert closeness(torch.from_numpy(clf.loo_predictions_), loo(dense)) < 1e-8


def test_all_pictures_as_landmarks_are_the_kernel_itself() -> None:
    ours, dense = fitted(landmarks=N), fitted(solver="dual", landmarks=None)
    new = data(7, 1)[0]
    assert ours.landmarks_ == ours.ids_
    assert dense.landmarks_ == []
    for ask in (
        lambda clf: clf.decision_function(new),
        lambda clf: clf.loo_predictions_,
        lambda clf: clf.influence(new),
        lambda clf: clf.contributions(new),
        lambda clf: clf.weight_gradient(),
        lambda clf: clf.informativeness(),
        lambda clf: clf.leave_out(5),
        lambda clf: clf.kernel_,
        lambda clf: clf.forget(["4", "7"]).relabel(["9"], "up").predict_proba(new),
        lambda clf: clf.reweight(np.linspace(0, 2, len(clf.ids_))).loo_predictions_,
    ):
        assert closeness(torch.from_numpy(ask(ours)), torch.from_numpy(ask(dense))) < 1e-8
    assert np.abs(ours.ood_score(new) - dense.ood_score(new)).max() < 1.5 / N  # ranks, of which rounding moves one
    assert [one.id for one in ours.suspects(5)] == [one.id for one in dense.suspects(5)]


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_leave_one_out_is_that_of_refits_on_the_same_rows(class_weight: str | None) -> None:
    clf = fitted(class_weight=class_weight)
    held = clf.solution_.system
    assert isinstance(held.kernel, FeatureKernel)
    assert len(clf.landmarks_) == M
    rows, labels = held.kernel.rows(slice(None)), np.asarray(clf.targets_)
    for gone in (0, 17, 60):
        kept = np.arange(N) != gone
        weights = np.ones(N - 1)
        if class_weight:
            counts = {name: (labels[kept] == name).sum() for name in clf.classes_}
            weights = np.array([(N - 1) / (3 * counts[name]) for name in labels[kept]])
        own = rows[torch.from_numpy(kept)]
        targets = held.targets[torch.from_numpy(kept)]
        without = build(own @ own.T, targets, held.damping, torch.from_numpy(weights))
        found = rows[gone] @ own.T @ without.dual + without.bias
        assert closeness(torch.from_numpy(clf.loo_predictions_[gone]), found) < 1e-8


def test_edits_are_refits_on_the_same_rows() -> None:
    clf = fitted()
    others = [name for name in clf.ids_ if name not in clf.landmarks_]
    before = clf.loo_predictions_
    clf.forget(others[:3])
    same_as_refit(clf)
    clf.relabel(others[4:6], ["up", "left"])
    same_as_refit(clf)
    clf.add(*data(4, 3))
    same_as_refit(clf)
    clf.reweight(np.where(np.arange(len(clf.ids_)) == 11, 0.0, 1.5))
    same_as_refit(clf)
    clf.relabel(clf.ids_[0], "down", new_class=True)
    same_as_refit(clf)
    clf.forget_class("down")
    same_as_refit(clf)
    for _ in range(6):
        clf.undo()
    assert closeness(torch.from_numpy(clf.loo_predictions_), torch.from_numpy(before)) < 1e-12


def same_map_as_made_anew(clf: TangentClassifier) -> None:
    """Kernel and predictions are those of the map of the landmarks that are left, made from nothing."""
    new, training = data(6, 4)[0], clf.fitted_.training
    assert training.landmarks is not None
    made = training.landmarks.map(clf.fitted_.feature_map)
    again = type(made).of(made.feature_map, made.landmarks)
    reader, held = clf.fitted_.rows(clf._reader()), clf.solution_.system
    rows = again.rows(reader.collect(clf.fitted_.pictures))
    assert isinstance(held.kernel, FeatureKernel)
    own = held.kernel.rows(slice(None))
    assert closeness(own @ own.T, rows @ rows.T) < 1e-8
    found = again.rows(reader.collect(_as(clf, new))) @ rows.T @ held.dual + held.bias
    assert closeness(torch.from_numpy(clf.decision_function(new)), found) < 1e-8


@pytest.mark.parametrize("twins", [False, True])
def test_a_forgotten_landmark_leaves_the_map_as_well(twins: bool, tmp_path: Path) -> None:
    x, y = data()
    options: dict[str, Any] = {}
    if twins:  # landmarks that are not independent
        x[7], x[40], options = x[30], x[12], {"landmarks": N}
    clf, new = classifier(**options).fit(x, y), data(6, 4)[0]
    before, marked = clf.decision_function(new), clf.landmarks_
    for gone in (marked[3:5], [marked[7]], [marked[-1], "1"]):
        clf.forget(gone)
        same_as_refit(clf)
        same_map_as_made_anew(clf)
        assert clf.landmarks_ == [name for name in marked if name in clf.ids_]
    clf.save_pretrained(tmp_path)
    same_as_refit(TangentClassifier.from_pretrained(tmp_path, backbone=network()).forget(clf.landmarks_[2]))
    for _ in range(3):
        clf.undo()
    assert clf.landmarks_ == marked
    assert closeness(torch.from_numpy(clf.decision_function(new)), torch.from_numpy(before)) < 1e-11


def _as(clf: TangentClassifier, x: NDArray) -> Any:
    return clf._load(x, None, clf.backbone_, labelled=False, reset=False)


def test_forgetting_strictly_is_a_fit_that_never_saw_the_pictures() -> None:
    x, y = data()
    clf = classifier().fit(x, y).forget(["2", "30"], strict=True)
    kept = [i for i in range(N) if i not in (2, 30)]
    other = classifier().fit(x[kept], y[kept])
    new = data(5, 5)[0]
    assert np.array_equal(clf.loo_predictions_, other.loo_predictions_)
    ours, theirs = (torch.from_numpy(one.decision_function(new)) for one in (clf, other))
    assert closeness(ours, theirs) < 1e-10


def test_a_saved_model_answers_and_is_edited_as_before(tmp_path: Path) -> None:
    clf, new = fitted(), data(6, 6)[0]
    clf.forget(clf.landmarks_[0]).forget(next(name for name in clf.ids_ if name not in clf.landmarks_))
    clf.save_pretrained(tmp_path / "model")
    other = TangentClassifier.from_pretrained(tmp_path / "model", backbone=network())
    assert np.array_equal(other.decision_function(new), clf.decision_function(new))
    assert other.landmarks_ == clf.landmarks_
    assert other.get_params()["solver"] == "landmarks"
    for ask in (lambda c: c.influence(new), lambda c: c.relabel(c.ids_[5], "up").add(*data(2, 7)).loo_predictions_):
        assert closeness(torch.from_numpy(ask(other)), torch.from_numpy(ask(clf))) < 1e-8
    same_as_refit(other)


def test_numbers_are_fitted_on_landmarks_too() -> None:
    x = data()[0]
    options = FIXED | {"outer_steps": 0, "solver": "landmarks", "landmarks": N}
    ours = TangentRegressor(network(), **options).fit(x, x[:, :2] ** 2)
    dense = TangentRegressor(network(), **options | {"solver": "dual", "landmarks": None}).fit(x, x[:, :2] ** 2)
    for one, two in zip(ours.predict(x[:9], return_std=True), dense.predict(x[:9], return_std=True), strict=True):
        assert closeness(torch.from_numpy(one), torch.from_numpy(two)) < 1e-8


def test_moved_networks_are_solved_on_landmarks_too() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (48, 3, 16, 16), np.uint8)
    pictures[::2, 0, 4:12] = 255
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    options: dict[str, Any] = {"outer_steps": 4, "augment": None, "solver": "landmarks", "landmarks": 20}
    clf = TangentClassifier(Backbone(net, input_size=(3, 16, 16)), **options).fit(pictures, np.arange(48) % 2)
    assert clf.outer_steps_ == 4
    held = clf.solution_.system
    assert isinstance(held.kernel, FeatureKernel)
    same_as_refit(clf)
    clf.forget([0, 1])
    same_as_refit(clf)


def test_the_damping_and_all_else_is_chosen_on_landmarks() -> None:
    clf = classifier(damping="loo", body_scale="loo", metric_power="loo", normalize="loo").fit(*data())
    assert clf.selection_[-1]["pictures"] == N
    same_as_refit(clf)
    by_evidence = classifier(damping="evidence", body_scale=1.0, metric_power=0.0, normalize=True).fit(*data())
    dense = classifier(damping="evidence", body_scale=1.0, metric_power=0.0, normalize=True, landmarks=N).fit(*data())
    exact = classifier(
        damping="evidence", body_scale=1.0, metric_power=0.0, normalize=True, solver="dual", landmarks=None
    ).fit(*data())
    assert dense.damping_ == pytest.approx(exact.damping_, rel=1e-6)
    assert by_evidence.damping_ > 0


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match="solver is 'primal'; it must be 'auto', 'dual' or 'landmarks'"):
        fitted(solver="primal")
    with pytest.raises(InputError, match="landmarks is 1; it must be a whole number >= 2"):
        fitted(landmarks=1)
    with pytest.raises(InputError, match="leave it out, or choose that solver"):
        fitted(solver="dual")
    with pytest.raises(BudgetError, match=r"MiB"):
        fitted(memory_budget="1MB")
