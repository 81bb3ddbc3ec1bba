"""Linear quadratic fine-tuning against explicit Jacobians and dense solves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import seeded
from lqf_dense import C, Dense, N, exact, fit, inputs, noise_pictures, positions, probe, relative, small_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.methods.lqf import LQF, LQFSettings, fit_lqf
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.targets import one_hot_targets


@pytest.mark.parametrize("solver", ["dual", "none", "kfac", "ekfac", "block_diagonal"])
def test_exact_solvers_reach_the_dense_solution(solver: str) -> None:
    chosen: dict[str, Any] = {"solver": "dual"} if solver == "dual" else {"solver": "pcg", "preconditioner": solver}
    model = fit(tolerance=1e-10, epochs=400, alpha=2.0, centred=True, **chosen)
    x, other = inputs(noise_pictures()), noise_pictures(20)
    dense = Dense(probe(), x)
    targets = one_hot_targets(positions(), C, alpha=2.0, centred=True)
    u = dense.solve(targets - dense.f0, model.damping)
    assert relative(model.logits(other), dense.predict(inputs(other), u)) < 1e-6
    least = 0.5 * (targets - dense.predict(x, u)).square().sum() + 0.5 * model.damping * u.square().sum()
    points = model.records[0].points
    assert points[-1].objective == pytest.approx(float(least), rel=1e-9)
    assert points[-1].relative_residual < 2e-10
    for before, after in itertools.pairwise(points):
        assert after.objective < before.objective * (1 + 1e-12)


def test_with_mirror_images_the_loss_is_the_mean_of_both_views() -> None:
    model, by_dual = exact(flip=True), fit(solver="dual", flip=True)
    pictures = noise_pictures()
    x, mirrored = inputs(pictures), inputs(pictures, flip=True)
    backbone = small_backbone()
    head = probe_head(0.5 * (backbone.features(x) + backbone.features(mirrored)).detach(), positions())
    dense, views = Dense(head, x), Dense(head, mirrored)
    targets = one_hot_targets(positions(), C)
    residual = torch.cat([targets - dense.f0, targets - views.f0]) * 0.5**0.5
    u = dense.solve(residual, model.damping, torch.cat([dense.rows, views.rows]) * 0.5**0.5)
    assert relative(model.logits(pictures), dense.predict(x, u)) < 1e-6
    assert relative(by_dual.logits(pictures), dense.predict(x, u)) < 1e-6
    both = 0.5 * (dense.predict(x, u) + dense.predict(mirrored, u))
    assert relative(model.logits(pictures, flip=True), both) < 1e-6


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": "sgd", "epochs": 200},
        {"solver": "kfac", "epochs": 80},
        {"solver": "adam", "epochs": 80, "learning_rate": 0.03},
    ],
    ids=["sgd", "kfac", "adam"],
)
def test_stochastic_training_ends_at_the_same_optimum(fields: dict[str, Any]) -> None:
    best = exact(damping=1.0)
    model = fit(damping=1.0, batch_size=8, measure_every=40, exact_optimum=True, **fields)
    pictures = noise_pictures(20)
    assert relative(model.logits(pictures), best.logits(pictures)) < 1e-2
    record, optimum = model.records[0], best.records[0].points[-1].objective
    for point in record.points:
        assert 0 <= point.objective - optimum <= point.bound, "the certificate holds on the way"
    assert record.optimum == pytest.approx(optimum, rel=1e-10)
    assert replace(record, optimum=None).least <= optimum
    assert record.suboptimality() <= replace(record, optimum=None).suboptimality()
    assert record.suboptimality() < 0.01 * record.suboptimality(0)
    assert len(record.losses) == fields["epochs"]


def test_a_mini_batch_step_is_that_of_autograd_on_the_linear_model() -> None:
    """One epoch in one batch of SGD: u = -rate * gradient / n at u = 0."""
    model = fit(solver="sgd", epochs=1, batch_size=N, warmup=0.0, momentum=0.0, learning_rate=0.5)
    dense = Dense(probe(), inputs(noise_pictures()))
    gradient = dense.rows.T @ (dense.f0 - one_hot_targets(positions(), C)).flatten() / N
    moved = torch.cat([t.flatten() for t in model.tangent.values()])
    rate = -(moved @ gradient) / gradient.square().sum()
    torch.testing.assert_close(moved, -rate * gradient)
    top = torch.linalg.eigvalsh(dense.rows @ dense.rows.T / N)[-1] + model.damping / N
    assert float(rate * top) == pytest.approx(0.5, rel=0.02)  # the unit of rates: power iteration from below


def test_the_solution_is_affine_in_the_target_scale() -> None:
    one, three = exact(alpha=1.0), exact(alpha=3.0)
    dense = Dense(probe(), inputs(noise_pictures()))
    by_labels, by_outputs = (dense.solve(r, one.damping) for r in (one_hot_targets(positions(), C), dense.f0))
    for model, alpha in ((one, 1.0), (three, 3.0)):
        u = torch.cat([t.flatten() for t in model.tangent.values()])
        assert relative(u, alpha * by_labels - by_outputs) < 1e-7


def gradients(model: LQF, loss: Callable[[Tensor], Tensor], decay: float) -> Tensor:
    """Of a loss of the training outputs and 1/2 decay ||u||^2, by autograd through the linear model."""
    parameters = list(model.lin.parameters())
    total = loss(model.lin(inputs(noise_pictures()))) + 0.5 * decay * sum(p.square().sum() for p in parameters)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])


def test_damping_is_in_units_of_the_mean_eigenvalue_and_of_the_sum_convention() -> None:
    model = exact(damping=0.25)
    dense = Dense(probe(), inputs(noise_pictures()))
    assert model.damping == 0.25 * model.unit
    assert abs(model.unit - float(dense.rows.square().sum()) / (N * C)) < 4 * model.unit_error < model.unit
    assert exact(damping=0.25, batch_size=4).damping == model.damping
    # Another code's mean squared error, with the weight decay that means the same here, is stationary there too.
    decay = model.damping / (N * C / 2)

    def mean(outputs: Tensor) -> Tensor:
        return F.mse_loss(outputs, one_hot_targets(positions(), C))

    grads, plain = (gradients(model, mean, weight) for weight in (decay, 0.0))
    assert grads.norm() < 1e-9 * plain.norm()


def test_cross_entropy_reaches_a_stationary_point() -> None:
    model = fit(
        loss="cross_entropy", solver="sgd", damping=0.5, batch_size=N, epochs=150, warmup=0.0, schedule="constant"
    )
    logits = model.lin(inputs(noise_pictures())).detach()
    loss = float(F.cross_entropy(logits, positions(), reduction="sum"))
    gradient = gradients(model, lambda f: F.cross_entropy(f, positions(), reduction="sum"), model.damping)
    first, *_, last = model.records[0].points
    assert float(gradient.norm()) == pytest.approx(last.gradient_norm, rel=1e-3, abs=1e-9)
    assert last.objective == pytest.approx(loss + 0.5 * model.damping * model.tangent.norm() ** 2, rel=1e-12)
    assert last.gradient_norm < 5e-4 * first.gradient_norm
    assert first.objective - last.objective <= first.bound
    assert last.bound == pytest.approx(last.gradient_norm**2 / (2 * model.damping), rel=1e-12)
    proba = model.predict_proba(noise_pictures())
    assert torch.equal(proba, logits.softmax(1)), "no temperature: the loss is that of probabilities"


def ill_conditioned() -> tuple[Backbone, Pictures]:
    """Correlated inputs on scales from 1 to 100 before a linear layer and a tanh."""
    generator = torch.Generator().manual_seed(0)
    n, width = 48, 6
    x = torch.randn(n, width, generator=generator, dtype=torch.float64) * torch.logspace(0, 2, width).double()
    x = x @ torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    labels = (
        torch.randn(n, C, generator=generator).double() + (x / 20) @ torch.randn(width, C, generator=generator).double()
    ).argmax(1)
    net = seeded(nn.Sequential(nn.Linear(width, 8), nn.Tanh()))
    net.get_parameter("0.weight").mul_(0.02)
    return Backbone(net), Pictures(x, labels.numpy(), [str(i) for i in range(n)])


def test_kfac_needs_fewer_epochs_than_sgd_to_one_per_cent() -> None:
    backbone, pictures = ill_conditioned()

    def epochs(solver: Any) -> int:
        settings = LQFSettings(
            solver=solver, epochs=40, measure_every=1, exact_optimum=True, damping=0.01, batch_size=16
        )
        record = fit_lqf(backbone, pictures, settings).records[0]
        near = [p.epoch for k, p in enumerate(record.points) if record.suboptimality(k) < 0.01]
        return near[0] if near else 1000

    assert epochs("kfac") <= 40 < epochs("sgd")
