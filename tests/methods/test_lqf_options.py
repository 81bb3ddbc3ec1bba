"""Heads, leaks, leave-one-out and re-linearising of linear quadratic fine-tuning; what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from lqf_dense import C, Dense, N, exact, fit, inputs, noise_pictures, positions, probe, relative, small_backbone
from torch import nn
from torch.func import functional_call

from tangentune.errors import DivergedError, InputError
from tangentune.methods.lqf import LQF, LQFSettings, fit_lqf
from tangentune.networks.heads import cross_fitted_probe, probe_head, random_head
from tangentune.networks.leaky import leaky
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.targets import one_hot_targets


def test_a_cross_fitted_head_gives_residuals_that_have_not_seen_the_picture() -> None:
    model = exact(head="cross_fitted", seed=3)
    x, other = inputs(noise_pictures()), noise_pictures(20)
    fitted = cross_fitted_probe(small_backbone().features(x).detach(), positions(), folds=5, seed=3)
    dense = Dense(probe(), x)
    u = dense.solve(one_hot_targets(positions(), C) - fitted.outputs, model.damping)
    assert relative(model.logits(other), dense.predict(inputs(other), u)) < 1e-6
    assert relative(model.logits(other), exact().logits(other)) > 1e-2


def test_leave_one_out_of_the_dual_is_a_refit_without_the_picture() -> None:
    model = fit(solver="dual", flip=True, head="random")
    assert model.loo is not None
    x, mirrored = inputs(noise_pictures()), inputs(noise_pictures(), flip=True)
    head = random_head(5, C).double()
    dense, views = Dense(head, x), Dense(head, mirrored)
    targets = one_hot_targets(positions(), C)
    for i in (0, 7):
        rest = torch.arange(N) != i
        kept = rest.repeat_interleave(C).repeat(2)
        residual = torch.cat([(targets - dense.f0)[rest], (targets - views.f0)[rest]]) * 0.5**0.5
        u = dense.solve(residual, model.damping, torch.cat([dense.rows, views.rows])[kept] * 0.5**0.5)
        both = 0.5 * (dense.predict(x[[i]], u) + dense.predict(mirrored[[i]], u))
        assert relative(model.loo[[i]], both) < 1e-8


def test_a_leak_and_a_scaled_head_are_those_of_the_start() -> None:
    model = exact(slope=0.2, head_scale=3.0)
    changed = leaky(small_backbone(), 0.2).network
    x = inputs(noise_pictures())
    head = probe_head(changed.features(x).detach(), positions())
    with torch.no_grad():
        for p in head.parameters():
            p.mul_(3.0)
    dense = Dense(head, x, changed)
    u = dense.solve(one_hot_targets(positions(), C) - dense.f0, model.damping)
    assert relative(model.logits(noise_pictures()), dense.predict(x, u)) < 1e-6


def test_only_the_parameters_asked_for_move() -> None:
    model = exact(params="norm", head="random")
    assert list(model.tangent) == ["1.weight", "1.bias", "head.weight", "head.bias"]
    assert list(exact(params="none", head="calibrated_probe").tangent) == ["head.weight", "head.bias"]


def test_relinearising_never_raises_the_networks_own_objective_and_ends_stationary() -> None:
    backbone, pictures = small_backbone(nn.Tanh), noise_pictures()  # no kinks: Gauss-Newton converges

    def steps(count: int, **fields: Any) -> LQF:
        settings = LQFSettings(damping=3.0, flip=False, outer_steps=count, **fields)
        return fit_lqf(backbone, pictures, settings)

    one, two, many = (steps(count, solver="dual") for count in (1, 2, 15))
    starts = [record.points[0].objective for record in many.records]
    assert all(after < before for before, after in itertools.pairwise(starts))
    assert all(record.step is not None and record.step > 0 for record in two.records[:-1])
    assert two.records[0].points == one.records[0].points

    # The second problem starts where the network itself is, with the penalty on all it has moved.
    head = probe_head(backbone.features(inputs(pictures)).detach(), positions())
    dense, share = Dense(head, inputs(pictures), backbone), two.records[0].step
    assert share is not None
    moved = {name: share * t for name, t in zip(dense.weights, one.tangent.values(), strict=True)}
    outputs = functional_call(dense.net, {n: w + moved[n] for n, w in dense.weights.items()}, (inputs(pictures),))
    penalty = sum(float(t.square().sum()) for t in moved.values())
    loss = 0.5 * float((outputs - one_hot_targets(positions(), C)).square().sum()) + 0.5 * one.damping * penalty
    assert two.records[1].points[0].objective == pytest.approx(loss, rel=1e-10)

    first, last = one.records[0].points[0], many.records[-1].points[0]
    assert last.gradient_norm < 2e-3 * first.gradient_norm, "its fixed point is stationary for the network"
    by_pcg = steps(2, solver="pcg", preconditioner="none", tolerance=1e-11, epochs=400)
    assert relative(by_pcg.logits(pictures), two.logits(pictures)) < 1e-6


def test_predictions_are_honest_about_confidence_and_name_the_classes() -> None:
    model = exact()
    proba = model.predict_proba(noise_pictures())
    torch.testing.assert_close(proba.sum(1), torch.ones(N, dtype=torch.float64))
    assert model.classes.tolist() == ["cat", "dog", "eel"]
    assert (model.predict(noise_pictures()) == model.classes[proba.argmax(1).numpy()]).all()
    # Noise deserves no confidence; without a prior the temperature is above 0.3 (results/temperature.md).
    assert model.temperature > 0.3
    sharper = exact(alpha=4.0)
    assert sharper.temperature == pytest.approx(4 * model.temperature)


def test_a_rate_too_high_is_said_to_diverge() -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        fit(solver="sgd", learning_rate=1e3, epochs=60, warmup=0.0, schedule="constant")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head": "zero"}, "head is 'zero'; use one of 'probe'"),
        ({"solver": "lbfgs"}, "solver is 'lbfgs'"),
        ({"damping": 0.0}, "damping is 0.0; it must be a number above 0"),
        ({"alpha": -1}, "alpha is -1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"tolerance": "small"}, "tolerance is 'small'"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"outer_steps": 1.5}, "outer_steps is 1.5"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and below 1"),
        ({"slope": 0.0}, "None leaves every ReLU"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"flip": 1}, "flip is 1; it is True or False"),
        ({"loss": "cross_entropy", "solver": "pcg"}, "solver 'pcg' solves the squared loss only"),
        ({"loss": "cross_entropy", "exact_optimum": True}, "exact_optimum solves the squared loss only"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LQFSettings(**fields)


def test_pictures_without_classes_are_refused() -> None:
    pictures = noise_pictures()
    with pytest.raises(InputError, match="one class label per picture"):
        fit_lqf(small_backbone(), Pictures(pictures.pixels, None, pictures.ids))
