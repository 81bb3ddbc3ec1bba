"""The estimators end to end: held to real refits, explicit features and plain least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from reference import dense_solve, explicit_features
from small import FIXED, backbone, fitted_features, network, normalised, pictures

from tangentune import Backbone, TangentClassifier, TangentRegressor

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)


def classifier(**options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options))


def regression_targets() -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([X[:, 0].mean((1, 2)) / 50, X[:, 1, :4].mean((1, 2)) / 9], 1) + 0.1 * rng.normal(size=(40, 2))


# -- held to: exactness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_loo_predictions_are_real_refits_of_all_pictures(normalize: bool) -> None:
    options, x, y = {"normalize": normalize, "probes": 2}, X[:20], Y[:20]
    clf = classifier(**options).fit(x, y)
    for i in range(20):
        rest = np.arange(20) != i
        without = classifier(**options).fit(x[rest], y[rest])
        assert_allclose(without.decision_function(x[i : i + 1])[0], clf.loo_predictions_[i], rtol=0, atol=1e-9)
    assert clf.loo_score_ == np.mean(clf.loo_predictions_.argmax(1) == y)


@pytest.mark.parametrize("augment", [None, "flip"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("probes", [1, 3])
def test_kernel_is_that_of_explicit_features(normalize: bool, augment: str | None, probes: int) -> None:
    clf = classifier(normalize=normalize, augment=augment, probes=probes).fit(X, Y)
    x = normalised(X)
    views = [x, x.flip(-1)] if augment else [x]
    features = explicit_features(network(), views, torch.from_numpy(clf.probes_), 0.3, normalize)
    assert clf.probes_.shape == (probes, 6)
    assert_allclose(clf.kernel_, features @ features.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [
    {}, {"normalize": True}, {"metric_power": 0.25}, {"metric_power": 0.5, "normalize": True, "probes": 2},
    {"augment": "flip", "metric_power": 0.25, "normalize": True}, {"subset": "last:2"}, {"subset": "none"},
    {"body_scale": 0.0}, {"metric_power": "loo", "body_scale": "loo", "normalize": "loo", "damping": "loo"},
    {"probe_space": "pca", "class_weight": {0: 3.0}},
], ids=str)  # fmt: skip
def test_decisions_are_the_least_squares_solution(options: dict[str, Any]) -> None:
    """kernel, dual solution and `b + k(x, X) c` on new pictures, all from explicit features."""
    clf = classifier(**options).fit(X, Y)
    features, new = fitted_features(clf, normalised(X)), fitted_features(clf, normalised(NEW))
    kernel = features @ features.T
    assert_allclose(clf.kernel_, kernel, rtol=1e-9, atol=1e-9 * float(kernel.max()))
    weights = torch.where(torch.from_numpy(Y) == 0, 3.0, 1.0).double() if clf.class_weight else None
    targets = torch.nn.functional.one_hot(torch.from_numpy(Y)).double()
    dual, intercept = dense_solve(kernel, targets, clf.damping_, weights)
    expected = intercept + new @ features.T @ dual
    assert_allclose(clf.decision_function(NEW), expected, rtol=0, atol=1e-8)
    assert_allclose(clf.dual_coef_, dual, rtol=0, atol=1e-8 * float(dual.abs().max()))
    assert_allclose(clf.intercept_, intercept, rtol=0, atol=1e-8)


def test_block_shares_are_those_of_the_solution() -> None:
    clf = classifier(normalize=True, metric_power=0.25).fit(X, Y)
    features = fitted_features(clf, normalised(X))
    weights = features.T @ torch.from_numpy(clf.dual_coef_)
    energy = weights.square().sum(1)
    assert sum(clf.block_shares_.values()) == pytest.approx(1.0)
    assert clf.block_shares_["head"] == pytest.approx(float(energy[:6].sum() / energy.sum()), rel=1e-8)
    sizes: dict[str, int] = {}
    for name in clf.model_.map.tangent.names:
        sizes[name.split(".")[0]] = sizes.get(name.split(".")[0], 0) + clf.model_.body[name].shape[1]
    parts = dict(zip(sizes, energy[6:].split(list(sizes.values())), strict=True))
    assert set(clf.block_shares_) == {"head"} | set(sizes)
    for block, part in parts.items():
        assert clf.block_shares_[block] == pytest.approx(float(part.sum() / energy.sum()), rel=1e-6, abs=1e-12)


def test_the_answer_does_not_depend_on_the_batch_size() -> None:
    big, small = (classifier(batch_size=size, augment="flip").fit(X, Y) for size in (64, 3))
    assert_allclose(big.decision_function(NEW), small.decision_function(NEW), rtol=0, atol=1e-9)


def test_a_float32_network_agrees() -> None:
    single = Backbone(network().float(), input_size=(3, 8, 8), mean=BACKBONE.contract.mean, std=BACKBONE.contract.std)
    clf = TangentClassifier(single, **FIXED).fit(X, Y)
    assert_allclose(clf.decision_function(NEW), classifier().fit(X, Y).decision_function(NEW), rtol=0, atol=1e-3)


# -- what is chosen ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen() -> TangentClassifier:
    """Everything left to leave-one-out."""
    return TangentClassifier(BACKBONE).fit(X, Y)


def loo_error(clf: TangentClassifier) -> float:
    """Mean squared leave-one-out error, from the predictions."""
    return float(((clf.loo_predictions_ - np.eye(4)[Y]) ** 2).sum(1).mean())


def test_attributes_fit_together(chosen: TangentClassifier) -> None:
    assert chosen.loo_predictions_.shape == chosen.loo_proba_.shape == (40, 4)
    assert_allclose(chosen.loo_proba_.sum(1), 1)
    assert chosen.kernel_.shape == (40, 40)
    assert list(chosen.block_scales_) == ["head", "0", "1", "3", "5", "6", "10"]
    assert chosen.block_scales_["head"] == 1.0
    assert chosen.ids_ == [str(i) for i in range(40)]
    assert (chosen.targets_ == Y).all()
    assert set(chosen.damping_path_) == {"damping", "loo_error"}
    row = min(chosen.selection_, key=lambda row: row["loo_error"])
    assert {"metric_power", "normalize", "body_scale", "relative_damping", "damping", "loo_error"} <= set(row)
    assert (chosen.damping_, chosen.body_scale_) in [(row["damping"], row["body_scale"]) for row in chosen.selection_]
    assert loo_error(chosen) == pytest.approx(chosen.damping_path_["loo_error"].min(), rel=1e-8)
    stages = chosen.fit_report_["stages"]
    assert all(row["seconds"] >= 0 and row["peak_bytes"] > 0 for row in stages)
    assert chosen.fit_report_["total_seconds"] == pytest.approx(sum(row["seconds"] for row in stages))
    assert chosen.fit_report_["n"] == 40


def test_the_choice_is_never_worse_than_its_linear_probe(chosen: TangentClassifier) -> None:
    for normalize in (False, True):
        probe = TangentClassifier(BACKBONE, subset="none", normalize=normalize).fit(X, Y)
        assert probe.body_scale_ == 0 or list(probe.block_scales_) == ["head"]
        assert loo_error(chosen) <= loo_error(probe) * (1 + 1e-9)


@pytest.mark.parametrize("options", [
    {"metric_power": 0.5}, {"body_scale": 0.7}, {"normalize": True}, {"normalize": False}, {"damping": 0.02},
    {"metric_power": 0.0, "body_scale": 2},
], ids=str)  # fmt: skip
def test_numbers_are_respected_and_the_rest_chosen(options: dict[str, Any]) -> None:
    clf = TangentClassifier(BACKBONE, **options).fit(X, Y)
    for name, value in options.items():
        fitted = getattr(clf, f"{name}_")
        assert fitted == value or (name == "metric_power" and clf.body_scale_ == 0)
    assert clf.damping_ > 0


def test_evidence_chooses_too() -> None:
    words: dict[str, Any] = dict.fromkeys(("metric_power", "body_scale", "normalize", "damping"), "evidence")
    clf = TangentClassifier(BACKBONE, **words).fit(X, Y)
    assert clf.score(X, Y) > 0.7
    mixed = classifier(damping="evidence").fit(X, Y)
    assert mixed.body_scale_ == 0.3


def test_random_state_draws_the_probes() -> None:
    one, same, other = (classifier(random_state=seed).fit(X, Y).probes_ for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("space", ["pca", "isotropic"])
def test_no_label_enters_the_features(space: str) -> None:
    options = {"metric_power": 0.25, "normalize": True, "probe_space": space}
    clf, shuffled = classifier(**options).fit(X, Y), classifier(**options).fit(X, np.roll(Y, 1) // 2)
    assert np.array_equal(clf.kernel_, shuffled.kernel_)
    assert np.array_equal(clf.probes_, shuffled.probes_)
    for name, metric in clf.model_.map.metric.items():
        assert torch.equal(metric.left, shuffled.model_.map.metric[name].left)


# -- regression --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False])
def test_regression(flat: bool) -> None:
    y = regression_targets()[:, 0] if flat else regression_targets()
    reg = TangentRegressor(BACKBONE, **FIXED).fit(X, y)
    assert reg.predict(NEW).shape == ((13,) if flat else (13, 2))
    columns = y.reshape(40, -1)
    assert reg.loo_predictions_.shape == columns.shape
    for i in (0, 17):
        rest = np.arange(40) != i
        without = TangentRegressor(BACKBONE, **FIXED).fit(X[rest], y[rest])
        assert_allclose(np.atleast_1d(without.predict(X[i : i + 1])[0]), reg.loo_predictions_[i], rtol=0, atol=1e-9)
    residual = ((columns - reg.loo_predictions_) ** 2).sum(0) / ((columns - columns.mean(0)) ** 2).sum(0)
    assert reg.loo_score_ == pytest.approx(1 - residual.mean())
    assert reg.score(X, y) > reg.loo_score_


@pytest.mark.parametrize("flat", [True, False])
def test_drawn_functions_scatter_as_the_error_bars_say(flat: bool) -> None:
    y = regression_targets()
    reg = TangentRegressor(BACKBONE, **FIXED).fit(X[6:], y[6:, 0] if flat else y[6:])
    mean, cov = reg.predict(X[:6], return_cov=True)
    drawn = reg.sample_y(X[:6], n_samples=20_000, random_state=3)
    assert drawn.shape == ((6, 20_000) if flat else (6, y.shape[1], 20_000))
    assert np.array_equal(drawn, reg.sample_y(X[:6], n_samples=20_000, random_state=3))
    mean, cov, drawn = (mean[:, None], cov[..., None], drawn[:, None]) if flat else (mean, cov, drawn)
    for k in range(mean.shape[1]):
        scale = np.sqrt(np.diag(cov[..., k]))
        assert np.abs((drawn[:, k].mean(1) - mean[:, k]) / scale).max() < 0.05
        assert np.abs((np.cov(drawn[:, k]) - cov[..., k]) / np.outer(scale, scale)).max() < 0.05


def test_regression_learns() -> None:
    phi = network()(normalised(X)).numpy()
    y = phi @ np.linspace(-1, 1, 6) + 0.05 * np.random.default_rng(1).normal(size=40)
    assert TangentRegressor(BACKBONE).fit(X, y).loo_score_ > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric_power", [0, 0.25])
def test_a_gpu_gives_the_same(metric_power: float) -> None:
    here = classifier(metric_power=metric_power).fit(X, Y)
    there = classifier(metric_power=metric_power, device="cuda").fit(X, Y)
    assert there.backbone_.device.type == "cuda"
    assert_allclose(there.decision_function(NEW), here.decision_function(NEW), rtol=0, atol=1e-7)
    assert_allclose(there.loo_predictions_, here.loo_predictions_, rtol=0, atol=1e-7)
