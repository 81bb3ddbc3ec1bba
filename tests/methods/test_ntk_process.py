"""The tangent-kernel Gaussian process against dense algebra: modes, spaces, means, tasks, evidence, leave-one-out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from cases import seeded
from reference import closeness
from test_ntk_kernel import MODES, dense, jacobian
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from tangentune.errors import InputError
from tangentune.methods.ntk import NTKGaussianProcess
from tangentune.solvers.leave_out import loo
from tangentune.solvers.posterior import variance
from tangentune.solvers.system import build

NOISE, PRIOR = 0.03, 1.7
MEANS = ("network", "zero", "constant")


def network(outputs: int = 2) -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)))


def data(n: int = 9, seed: int = 1, outputs: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, outputs, generator=generator, dtype=torch.float64) + x[:, :1].sin()


def split(values: Tensor, mode: str) -> Tensor:
    """(n, C) as (problems, N, columns)."""
    if mode == "full":
        return values.reshape(1, -1, 1)
    return values.T[..., None] if mode == "independent" else values[None]


def slow(net: nn.Module, x: Tensor, y: Tensor, new: Tensor, mode: str, mean: str, noise: Any = NOISE, prior=PRIOR):
    """Mean (m, C), covariance (problems, M, M) and restricted log density, problem by problem, by definition."""
    left, right = jacobian(net, x), jacobian(net, new)
    base, base_new = (
        (net(x), net(new)) if mean == "network" else (torch.zeros_like(y), torch.zeros(len(new), 2).double())
    )
    kernel, cross, own = dense(left, left, mode), dense(right, left, mode), dense(right, right, mode)
    targets = split(y - base, mode)
    noises = torch.as_tensor(noise, dtype=torch.float64).expand(len(x))
    noises = noises.repeat_interleave(2) if mode == "full" else noises
    means, covariances, density = [], [], 0.0
    for b in range(len(kernel)):
        a = prior * kernel[b] + torch.diag(noises)
        constants = torch.eye(2).double() if mode == "full" else torch.ones(1, 1).double()
        constants = constants if mean == "constant" else constants[:, :0]
        h, h_new = constants.repeat(len(x), 1), constants.repeat(len(new), 1)
        inverse, gain = torch.linalg.inv(a), prior * cross[b]
        inner = torch.linalg.inv(h.T @ inverse @ h)
        beta = inner @ h.T @ inverse @ targets[b]
        means.append(h_new @ beta + gain @ inverse @ (targets[b] - h @ beta))
        left_over = h_new - gain @ inverse @ h
        covariances.append(prior * own[b] - gain @ inverse @ gain.T + left_over @ inner @ left_over.T)
        free = torch.linalg.svd(h, full_matrices=True).U[:, h.shape[1] :]
        normal = MultivariateNormal(torch.zeros(free.shape[1]).double(), free.T @ a @ free)
        density += float(normal.log_prob((free.T @ targets[b]).T).sum())
    merged = torch.stack(means)
    merged = merged.reshape(len(new), 2) if mode == "full" else merged[..., 0].T if mode == "independent" else merged[0]
    return merged + base_new, torch.stack(covariances), density


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("space", ["function", "parameter"])
def test_posterior_is_dense_algebra(space, mode, mean) -> None:
    net, (x, y), (new, _) = network(), data(), data(6, seed=2)
    before = copy.deepcopy(net.state_dict())
    gp = NTKGaussianProcess(net, outputs=mode, mean=mean, space=space, noise=NOISE, prior_variance=PRIOR, batch_size=4)
    gp.fit(x, y)
    expected, covariance, density = slow(net, x, y, new, mode, mean)
    found, std = gp.predict(new, return_std=True)
    variance = covariance.diagonal(dim1=1, dim2=2)
    variance = variance.reshape(6, 2) if mode == "full" else variance.T.expand(-1, 2)
    assert gp.space_ == space
    assert closeness(found, expected) < 1e-8
    assert closeness(gp.predict(new), expected) < 1e-8
    assert closeness(std.square(), variance) < 1e-8
    assert closeness(gp.predict(new, return_std=True, observed=True)[1].square(), variance + NOISE) < 1e-8
    assert gp.log_marginal_likelihood() == pytest.approx(density, rel=1e-8)
    joint = gp.predict(new, return_cov=True)[1]
    assert closeness(joint.diagonal().reshape(6, 2), variance) < 1e-8
    blocks = joint.reshape(6, 2, 6, 2)
    if mode == "full":
        assert closeness(joint, covariance[0]) < 1e-8
        assert float(blocks[0, 0, 1, 1].abs()) > 1e-3, "outputs are correlated"
    else:
        for c in range(2):
            assert closeness(blocks[:, c, :, c], covariance[c if mode == "independent" else 0]) < 1e-8
        assert not bool(blocks[:, 0, :, 1].any())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mean", MEANS)
def test_spaces_agree_with_far_more_inputs_than_weights_and_outside_the_datas_span(mode, mean) -> None:
    net, (x, y) = network(), data(60)
    far = 30 * torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    settings: dict[str, Any] = {"outputs": mode, "mean": mean, "noise": NOISE, "prior_variance": PRIOR}
    function, parameter = (
        NTKGaussianProcess(net, space=space, **settings).fit(x, y) for space in ("function", "parameter")
    )
    for inputs in (x, far):
        for left, right in zip(*(gp.predict(inputs, return_std=True) for gp in (function, parameter)), strict=True):
            assert closeness(left, right) < 1e-8
    few = NTKGaussianProcess(net, space="function", **settings).fit(x[:2], y[:2])
    few_weights = NTKGaussianProcess(net, space="parameter", **settings).fit(x[:2], y[:2])
    assert closeness(few.predict(far, return_std=True)[1], few_weights.predict(far, return_std=True)[1]) < 1e-8


def test_without_data_the_prediction_is_the_network() -> None:
    net, (x, _) = network(), data()
    gp = NTKGaussianProcess(net, prior_variance=PRIOR)
    found, std = gp.predict(x, return_std=True)
    assert closeness(found, net(x)) < 1e-14
    assert closeness(std.square(), PRIOR * jacobian(net, x).square().sum(2)) < 1e-12
    assert (
        closeness(gp.predict(x, return_cov=True)[1], PRIOR * dense(jacobian(net, x), jacobian(net, x), "full")[0])
        < 1e-12
    )


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("mode", MODES)
def test_leave_one_out_is_real_refits(mode, mean) -> None:
    net, (x, y) = network(), data()
    settings: dict[str, Any] = {
        "outputs": mode,
        "mean": mean,
        "noise": NOISE,
        "prior_variance": PRIOR,
        "space": "function",
    }
    found = NTKGaussianProcess(net, **settings).fit(x, y).loo()
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        refit = NTKGaussianProcess(net, **settings).fit(x[rest], y[rest]).predict(x[i : i + 1])
        assert closeness(found[i : i + 1], refit) < 1e-8


def test_a_shared_kernel_takes_any_number_of_targets() -> None:
    net, (x, y), (new, _) = network(3), data(outputs=5), data(4, seed=2)
    gp = NTKGaussianProcess(net, outputs="shared", mean="constant", noise=NOISE, prior_variance=PRIOR).fit(x, y)
    found, std = gp.predict(new, return_std=True)
    assert found.shape == std.shape == (4, 5)
    left = jacobian(net, x)
    a = PRIOR * torch.einsum("icp,jcp->ij", left, left) / 3 + NOISE * torch.eye(9).double()
    border = torch.cat([torch.cat([a, torch.ones(9, 1)], 1), torch.tensor([[1.0] * 9 + [0]]).double()])
    solution = torch.linalg.solve(border, torch.cat([y, torch.zeros(1, 5).double()]))
    cross = PRIOR * torch.einsum("icp,jcp->ij", jacobian(net, new), left) / 3
    assert closeness(found, cross @ solution[:9] + solution[9]) < 1e-9


@pytest.mark.parametrize("rank", [3, 40])
def test_matrix_free_mean_is_exact_and_its_variance_keeps_the_priors_complement(rank) -> None:
    net, (x, y), (x2, y2), (new, _) = network(), data(), data(5, seed=7), data(6, seed=2)
    settings: dict[str, Any] = {"noise": NOISE, "prior_variance": PRIOR}
    exact = NTKGaussianProcess(net, space="function", **settings).fit(x, y)
    free = NTKGaussianProcess(net, space="matrix-free", rank=rank, tolerance=1e-12, batch_size=4, **settings).fit(x, y)
    prior = NTKGaussianProcess(net, **settings)
    for left, right in (
        (exact, free),
        (exact.adapt(x2, y2, keep=True, noise=1.0), free.adapt(x2, y2, keep=True, noise=1.0)),
    ):
        found = right.posterior_
        assert found.result.converged  # type: ignore[union-attr]
        assert found.result.relative_residuals[-1] <= 1e-12  # type: ignore[union-attr]
        assert closeness(right.predict(new), left.predict(new)) < 1e-9
        truth, std = left.predict(new, return_std=True)[1], right.predict(new, return_std=True)[1]
        assert bool((std >= truth * (1 - 1e-9)).all())
        assert bool((std <= prior.predict(new, return_std=True)[1] * (1 + 1e-9)).all())
        if rank == 40:
            assert closeness(std, truth) < 1e-6
        else:
            assert closeness(std, truth) > 1e-3
        joint = right.predict(new, return_cov=True)[1]
        assert closeness(joint.diagonal().sqrt().reshape(6, 2), std) < 1e-9


def test_auto_takes_the_smaller_space_and_says_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x, y) = network(), data(30)
    assert NTKGaussianProcess(net).fit(x[:5], y[:5]).space_ == "function"
    assert NTKGaussianProcess(net).fit(x, y).space_ == "parameter"
    monkeypatch.setattr("tangentune.methods.ntk.settings.FUNCTION_ROWS", 10)
    monkeypatch.setattr("tangentune.methods.ntk.settings.PARAMETER_WIDTH", 10)
    with pytest.raises(InputError, match="60 rows and 32 weights go by space='matrix-free', which cannot maximise"):
        NTKGaussianProcess(net).fit(x, y)
    with pytest.raises(InputError, match="knows only outputs='full'"):
        NTKGaussianProcess(net, outputs="independent").fit(x, y)
    assert NTKGaussianProcess(net, noise=0.1, prior_variance=1.0).fit(x, y).space_ == "matrix-free"


def test_batch_norm_and_dropout_are_fixed() -> None:
    net = (
        nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)).double().train()
    )
    x, y = data()
    gp = NTKGaussianProcess(net, noise=NOISE, prior_variance=PRIOR).fit(x, y)
    alone = torch.cat([gp.predict(one) for one in x.split(1)])
    assert closeness(alone, gp.predict(x)) < 1e-12
    assert net.training
    assert int(net[1].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_what_cannot_be_used_is_refused() -> None:
    net, (x, y) = network(), data()
    gp = NTKGaussianProcess(net, noise=NOISE)
    broken = x.clone()
    broken[3] = math.nan
    with pytest.raises(InputError, match="input 3 holds NaN"):
        gp.fit(broken, y)
    with pytest.raises(InputError, match="target 1 is NaN"):
        gp.fit(x, torch.where(torch.arange(9)[:, None] == 1, torch.nan, y))
    with pytest.raises(InputError, match="3 targets for a network with 2 outputs"):
        gp.fit(x, torch.ones(9, 3))
    with pytest.raises(InputError, match=r"targets have shape \(8, 2\) for 9 inputs"):
        gp.fit(x, y[:8])
    with pytest.raises(InputError, match="no data yet; call fit"):
        gp.log_marginal_likelihood()
    with pytest.raises(InputError, match="no data yet; call fit"):
        gp.adapt(x, y, keep=True)
    with pytest.raises(InputError, match="before fit there is no constant mean"):
        gp.predict(x, return_std=True)
    with pytest.raises(InputError, match="not both"):
        gp.predict(x, return_std=True, return_cov=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="differ from the mean"):
        gp.fit(x, net(x))
    fitted = gp.fit(x, y)
    with pytest.raises(InputError, match="input 3 holds NaN"):
        fitted.predict(broken)
    with pytest.raises(InputError, match="noise is -1; it must be a variance above 0"):
        fitted.adapt(x, y, noise=-1)
    shared = NTKGaussianProcess(net, outputs="shared", mean="zero").fit(x, y)
    with pytest.raises(InputError, match="new task has 3 targets, the kept one 2"):
        shared.adapt(x, torch.ones(9, 3), keep=True)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mean": "median"}, "mean is 'median'; use one of"),
        ({"space": "dual"}, "space is 'dual'; use one of"),
        ({"noise": 0.0}, "noise is 0.0; it must be a variance above 0"),
        ({"rank": 0}, "rank is 0; it must be a whole number"),
    )
    for setting, message in refused:
        with pytest.raises(InputError, match=message):
            NTKGaussianProcess(net, **setting)
    flat = NTKGaussianProcess(nn.Linear(3, 2).float(), noise=1e-30, prior_variance=1.0, space="function")
    with pytest.raises(InputError, match="not positive definite.*more noise, or a float64 network"):
        flat.fit(torch.ones(9, 3), y)
    with pytest.raises(InputError, match="need space='function'"):
        NTKGaussianProcess(net, space="parameter").fit(x, y).loo()
    with pytest.raises(InputError, match="knows no marginal likelihood"):
        NTKGaussianProcess(net, space="matrix-free", noise=1.0, prior_variance=1.0).fit(x, y).log_marginal_likelihood()


def test_a_shared_kernel_with_a_constant_is_the_systems_of_the_library() -> None:
    net, (x, y), (new, _) = network(), data(), data(4, seed=2)
    gp = NTKGaussianProcess(net, outputs="shared", mean="constant", noise=NOISE, prior_variance=PRIOR, space="function")
    gp.fit(x, y)
    left, right = jacobian(net, x), jacobian(net, new)
    kernel, cross, own = (dense(a, b, "shared")[0] for a, b in ((left, left), (right, left), (right, right)))
    system = build(kernel, y, NOISE / PRIOR)
    found, std = gp.predict(new, return_std=True)
    assert closeness(found, cross @ system.dual + system.bias) < 1e-9
    assert closeness(std[:, 0].square(), PRIOR * variance(system, cross, own.diagonal())) < 1e-9
    assert closeness(gp.loo(), loo(system)) < 1e-9
