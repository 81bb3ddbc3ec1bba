"""The process equals GPyTorch's with the same kernel, from explicit Jacobians."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import seeded
from reference import closeness
from test_ntk_kernel import dense, jacobian
from torch import Tensor, nn

from tangentune.methods.ntk import NTKGaussianProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # linear_operator compiles scripts as it is imported
    gpytorch: Any = pytest.importorskip("gpytorch")

NOISE, PRIOR = 0.0625, 1.25  # exact in float32, through which GPyTorch sets them


def network(outputs: int = 1) -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs)))


def data(n: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, x[:, 0].sin() + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)


class NTKKernel(gpytorch.kernels.Kernel):
    """`J J^T`, row i C + c for input i, output c."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = [net]  # in a list: not a part that is trained

    @torch.enable_grad()
    def jacobian(self, x: Tensor) -> Tensor:
        return jacobian(self.net[0], x.detach().double()).detach()

    def num_outputs_per_input(self, x1: Tensor, _x2: Tensor) -> int:
        return self.jacobian(x1[:1]).shape[1]

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        found = dense(self.jacobian(x1), self.jacobian(x2), "full")[0].to(x1)
        return found.diagonal() if diag else found


@contextlib.contextmanager
def exact_computations() -> Iterator[None]:
    """Cholesky for everything: no conjugate gradients, no Lanczos."""
    fast = gpytorch.settings.fast_computations(covar_root_decomposition=False, log_prob=False, solves=False)
    with fast, gpytorch.settings.fast_pred_var(False), gpytorch.settings.fast_pred_samples(False):
        yield


class Model(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, kernel: Any, mean: Any):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class MultitaskModel(Model):
    def forward(self, x: Tensor) -> Any:
        mean = self.mean_module(x)
        return gpytorch.distributions.MultitaskMultivariateNormal(mean, self.covar_module(x))


def model(net: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> Any:
    likelihood: Any = gpytorch.likelihoods.GaussianLikelihood().to(dtype)
    kernel = gpytorch.kernels.ScaleKernel(NTKKernel(net))
    made = Model(x.to(dtype), y.to(dtype), likelihood, kernel, gpytorch.means.ZeroMean()).to(dtype)
    likelihood.noise, kernel.outputscale = NOISE, PRIOR
    return made.eval()


def ours(net: nn.Module, **settings: Any) -> NTKGaussianProcess:
    return NTKGaussianProcess(net, mean="zero", noise=NOISE, prior_variance=PRIOR, space="function", **settings)


@pytest.mark.filterwarnings("ignore:The input matches the stored training data")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_exact_gp_predicts_what_ours_does(dtype, error) -> None:
    (x, y), (new, _) = data(), data(7, seed=2)
    theirs, mine = model(network(), x, y, dtype), ours(network()).fit(x, y)
    with torch.no_grad(), exact_computations():
        found = theirs(new.to(dtype))
        joint = mine.predict(new, return_cov=True)[1]
        assert closeness(found.mean.double(), mine.predict(new)[:, 0]) < error
        assert closeness(found.covariance_matrix.double(), joint) < error
        assert closeness(found.variance.double(), joint.diagonal()) < error
        observed = theirs.likelihood(theirs(x.to(dtype)))
        assert (
            closeness(observed.variance.double(), mine.predict(x, return_std=True, observed=True)[1][:, 0] ** 2) < error
        )


def test_marginal_likelihood_and_its_gradient() -> None:
    (x, y), net = data(), network()
    theirs = model(net, x, y).train()
    likelihood: Any = gpytorch.mlls.ExactMarginalLogLikelihood(theirs.likelihood, theirs)
    with exact_computations():
        value = likelihood(theirs(x), y)
        value.backward()
    fitted = ours(net).fit(x, y)
    assert float(value.detach()) * len(x) == pytest.approx(fitted.log_marginal_likelihood(), rel=1e-9)
    raw = theirs.covar_module.raw_outputscale
    step = 1e-6

    def density(scale: float) -> float:
        gp = NTKGaussianProcess(net, mean="zero", noise=NOISE, prior_variance=scale, space="function").fit(x, y)
        return gp.log_marginal_likelihood() / len(x)

    slope = (density(PRIOR + step) - density(PRIOR - step)) / (2 * step)
    assert float(raw.grad) == pytest.approx(slope * float(torch.sigmoid(raw.detach())), rel=1e-4)


def test_several_outputs_are_one_multitask_model() -> None:
    (x, _), (new, _), net = data(), data(5, seed=2), network(2)
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos()], 1)
    likelihood: Any = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, has_task_noise=False).double()
    kernel, mean = (
        gpytorch.kernels.ScaleKernel(NTKKernel(net)),
        gpytorch.means.MultitaskMean(gpytorch.means.ZeroMean(), 2),
    )
    theirs: Any = MultitaskModel(x, y, likelihood, kernel, mean).double().eval()
    likelihood.noise, kernel.outputscale = NOISE, PRIOR
    mine = ours(net).fit(x, y)
    with torch.no_grad(), exact_computations():
        found = theirs(new)
        assert closeness(found.mean, mine.predict(new)) < 1e-8
        assert closeness(found.covariance_matrix, mine.predict(new, return_cov=True)[1]) < 1e-8
        assert closeness(found.variance, mine.predict(new, return_std=True)[1].square()) < 1e-8
